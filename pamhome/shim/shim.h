/*
 * The parts of pam_home.so. This side of the wire knows libpam and the
 * process it sits in, and no policy: what a record, a bus error or a text
 * means is the helper's business.
 *
 * Rules that hold in every file: no thread, no constructor, no static data
 * that changes, no library but libc and libpam, no signal disposition or mask
 * of the host touched, descriptors at 3 or above and close-on-exec, nothing
 * allocated that outlives the call except PAM data.
 */
#ifndef HEARTH_SHIM_H
#define HEARTH_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <security/pam_modules.h>

/* The helper. Only the packager's choice counts: no search path. */
#ifndef HELPER
#define HELPER "/usr/lib/hearth/pamhome"
#endif
#ifndef NOBODY
#define NOBODY "nobody"
#endif

/* Limits in milliseconds; a test build shortens them. */
#ifndef FIRST_MS
#define FIRST_MS 30000 /* to the first frame: the helper only reads the cache */
#endif
#ifndef SILENCE_MS
#define SILENCE_MS 200000 /* a question of 30 s and a bus call of 120 s fit */
#endif
#ifndef CALL_MS
#define CALL_MS 900000 /* the whole call, the host's conversation not counted */
#endif

#define FRAME_MAX 65536u
#define FRAME_HEADER 8u
#define BIG_VALUE (48u << 10)  /* above, a value travels as a memfd */
#define MEMFD_MAX (4u << 20)
#define NAME_MAX_BYTES 255u
#define FIELDS 6u /* tags of the helper's frames are below */
#define KEY_ROOM 304u /* longest key with its NUL */

enum phase { AUTH = 1, ACCOUNT = 2, OPEN = 3, CLOSE = 4, CHAUTHTOK = 5 };

enum type {
	F_START = 1, F_ANSWER, F_TOKEN, F_ACK, F_VALUE, F_PASSWD,
	F_CONV = 16, F_GET_TOKEN, F_SET_TOKEN, F_SET_USER, F_PUTENV, F_LOAD,
	F_STORE, F_STORE_FD, F_DROP, F_APPLY, F_TTY_WRITE, F_LOOKUP,
	F_LOG = 28, F_RESULT = 29,
};

/* Steps of APPLY that failed, in its ACK. The umask cannot. */
enum { FAILED_NICE = 2, FAILED_LIMIT = 4, FAILED_AMBIENT = 8, FAILED_BOUNDING = 16 };

/* Why a call ends without a result of the helper; NOTHING: no frame waits. */
enum why { FINE = 0, NOTHING, NO_START, DIED, BREACH, SILENT };

/* One received frame. Its fields point into the channel's buffer. */
struct frame {
	unsigned type;
	int fd; /* -1: none. The handler takes it or channel_done closes it. */
	struct {
		uint8_t *p;
		uint32_t n;
		bool set;
	} field[FIELDS];
};

struct channel {
	int sock;
	enum phase phase;
	uint8_t *in, *out; /* FRAME_MAX bytes each, in one more for a NUL */
	size_t in_n, out_n;
	bool out_full;
	unsigned frames, logs;
	int64_t silent_at, over_at; /* monotonic, ms */
};

/* frame.c: bytes and time */
int64_t now_ms(void);
void channel_begin(struct channel *c, unsigned type);
void put(struct channel *c, unsigned tag, const void *p, size_t n);
void put_text(struct channel *c, unsigned tag, const char *s);
void put_int(struct channel *c, unsigned tag, unsigned size, uint64_t v);
enum why channel_send(struct channel *c, int fd);
enum why channel_receive(struct channel *c, struct frame *f, bool wait);
void channel_done(struct channel *c, struct frame *f);
uint64_t from_le(const uint8_t *p, unsigned size);
bool get_int(const struct frame *f, unsigned tag, unsigned size, uint32_t *v);
bool get_u64(const struct frame *f, unsigned tag, uint64_t *v);
/* The fields of one tag in turn: before NULL is the first, NULL the end. Their
 * length stands in the four bytes before. Not after get_text. */
const uint8_t *next_field(const struct channel *c, unsigned tag, const uint8_t *before);
/* A text field of min to max bytes, NUL-terminated in the packet, or NULL. */
const char *get_text(const struct frame *f, unsigned tag, size_t min, size_t max);

/* spawn.c */
int lift(int fd);
bool start_helper(int sock);

/* data.c: what lives on the PAM handle */
enum key {
	KEY_FOREIGN, KEY_HOME_RECORD, KEY_RECORD, KEY_STATE, KEY_HOME_FD, KEY_OTHER_FD,
	KEY_SESSION_FD, KEY_INHIBIT_FD, KEY_TTY_FD, KEY_LIMIT,
};
enum kind { KIND_NOTHING, KIND_TEXT, KIND_MARK, KIND_HELD };
enum key key_of(const char *key);
int data_load(pam_handle_t *pamh, const char *key, enum kind *kind, const char **text);
int data_store_text(pam_handle_t *pamh, const char *key, char *text);
void drop_text(char *text);
int data_store_mark(pam_handle_t *pamh, const char *key);
int data_store_fd(pam_handle_t *pamh, const char *key, int fd);
int data_drop(pam_handle_t *pamh, const char *key);
int data_reopen(pam_handle_t *pamh, const char *key);
bool data_refs(pam_handle_t *pamh);
bool data_for(pam_handle_t *pamh, const char *prefix, const char *name, enum kind *kind);
void data_drop_for(pam_handle_t *pamh, const char *prefix, const char *name);
int memfd_of(const char *text, size_t n);
char *text_of_memfd(int fd);

/* settings.c */
bool apply(const struct channel *c, const struct frame *f, uint32_t *failed);
bool own_caps(uint64_t *bounding, uint64_t *inheritable, uint64_t *permitted);
int tty_write(pam_handle_t *pamh, enum phase phase, const uint8_t *p, size_t n);

#define HOME_RECORD "systemd-home-user-record-"
#define RECORD "systemd-user-record-"
#define STATE "hearth-home-state-"
#define HOME_FD "hearth-home-fd-"
#define OTHER_FD "systemd-home-fd-"
#define SESSION_FD "hearth-session-fd"
#define INHIBIT_FD "hearth-inhibit-fd"
#define TTY_FD "hearth-tty-fd"
#define REFS "hearth-refs"

#endif
