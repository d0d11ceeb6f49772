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
#define BIG_VALUE (48u << 10) /* above, a value travels as a memfd */
#define MEMFD_MAX (4u << 20)
#define NAME_BYTES 255u
#define USER_BYTES 1024u
#define KEY_ROOM 304u /* longest key with its NUL */
#define FIELDS 5u /* highest tag of the helper's frames */

#define BIT(n) (1u << (n))
#define COUNT(array) (sizeof(array) / sizeof *(array))

enum phase { SETCRED, AUTH, ACCOUNT, OPEN, CLOSE, CHAUTHTOK };
#define ALL (BIT(AUTH) | BIT(ACCOUNT) | BIT(OPEN) | BIT(CLOSE) | BIT(CHAUTHTOK))

/* 26 was a write to the terminal; the helper does that itself. */
enum type {
	F_START = 1, F_ANSWER, F_TOKEN, F_ACK, F_VALUE, F_PASSWD,
	F_CONV = 16, F_GET_TOKEN, F_SET_TOKEN, F_SET_USER, F_PUTENV, F_LOAD,
	F_STORE, F_STORE_FD, F_DROP, F_APPLY, F_LOOKUP = 27, F_LOG, F_RESULT,
};

/* Why a call ends without a result of the helper; NOTHING: no frame waits. */
enum why { FINE = 0, NOTHING, NO_START, DIED, BREACH, SILENT };

/* One received frame, checked against the table of frame.c. Texts end with a
 * NUL and point into the channel's buffer. */
struct frame {
	unsigned type;
	int fd; /* -1: none. The handler takes it or channel_done closes it. */
	struct value {
		char *text; /* NULL: the field is a number, or absent */
		uint64_t n; /* the number, or the text's length */
		bool set;
	} field[FIELDS + 1]; /* by tag */
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

/* spawn.c */
int lift(int fd);
bool start_helper(int sock);

/* data.c: what lives on the PAM handle */
enum form { RECORD, TEXT, REFERENCE, OTHER_REFERENCE, LIFELINE, LOCK, TERMINAL, LIMIT };

/* What the helper may do with a key, each a set of phases. */
struct rule {
	const char *name;
	bool of_user; /* a user's name follows */
	enum form form;
	unsigned load, store;
};

enum kind { KIND_NOTHING, KIND_TEXT, KIND_MARK, KIND_HELD };

struct stored {
	enum kind kind;
	const char *text; /* the handle's */
	int fd;           /* the handle's; -1: none */
};

const struct rule *rule_of(const char *key);
int data_load(pam_handle_t *pamh, const char *key, struct stored *s);
int data_store_text(pam_handle_t *pamh, const char *key, char *text);
int data_store_mark(pam_handle_t *pamh, const char *key);
int data_store_fd(pam_handle_t *pamh, const char *key, int fd);
int data_drop(pam_handle_t *pamh, const char *key);
bool data_refs(pam_handle_t *pamh);
bool data_is(pam_handle_t *pamh, const char *prefix, const char *name, enum kind kind);
void data_drop_for(pam_handle_t *pamh, const char *prefix, const char *name);
void drop_text(char *text);
int memfd_of(const char *text);
char *text_of_memfd(int fd);

/* capabilities.c */
bool apply_ambient(uint64_t set);
bool apply_bounding(uint64_t set);

#define HOME_RECORD "systemd-home-user-record-"
#define HOME_FD "hearth-home-fd-"
#define OTHER_FD "systemd-home-fd-"

#endif
