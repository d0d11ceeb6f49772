/*
 * What stays on the PAM handle between calls: record texts and the helper's
 * notes, both wiped when they go, and descriptors: the one that keeps a home
 * active and those of the session. One is believed only while its number still
 * is the same file: a forked child may have closed and reused it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define LIMIT_MAX 256u
#define MARK ((void *)UINTPTR_MAX) /* "not ours", as other modules write it */

struct reference {
	int fd;
	dev_t dev;
	ino_t ino;
};

static bool named(const char *key, const char *prefix)
{
	size_t n = strlen(prefix), k = strlen(key);

	return strncmp(key, prefix, n) == 0 && k > n && k - n <= NAME_MAX_BYTES;
}

enum key key_of(const char *key)
{
	static const struct {
		const char *name;
		enum key key;
	} whole[] = {
		{ SESSION_FD, KEY_SESSION_FD }, { INHIBIT_FD, KEY_INHIBIT_FD }, { TTY_FD, KEY_TTY_FD },
		{ "systemd.memory_max", KEY_LIMIT }, { "systemd.tasks_max", KEY_LIMIT }, { "systemd.cpu_weight", KEY_LIMIT },
		{ "systemd.io_weight", KEY_LIMIT }, { "systemd.runtime_max_sec", KEY_LIMIT },
	};

	if (named(key, HOME_RECORD))
		return KEY_HOME_RECORD;
	if (named(key, RECORD))
		return KEY_RECORD;
	if (named(key, STATE))
		return KEY_STATE;
	if (named(key, HOME_FD))
		return KEY_HOME_FD;
	if (named(key, OTHER_FD))
		return KEY_OTHER_FD;
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
		if (strcmp(key, whole[i].name) == 0)
			return whole[i].key;
	return KEY_FOREIGN;
}

static bool is_fifo(int fd, struct stat *st)
{
	return fd >= 0 && fstat(fd, st) == 0 && S_ISFIFO(st->st_mode);
}

static bool still_ours(const struct reference *r)
{
	struct stat st;

	return r->fd >= 0 && fstat(r->fd, &st) == 0 && st.st_dev == r->dev && st.st_ino == r->ino;
}

void drop_text(char *text)
{
	if (text != NULL)
		explicit_bzero(text, strlen(text));
	free(text);
}

static void free_text(pam_handle_t *pamh, void *data, int status)
{
	(void)pamh;
	(void)status;
	drop_text(data);
}

static void free_reference(pam_handle_t *pamh, void *data, int status)
{
	struct reference *r = data;

	(void)pamh;
	(void)status;
	if (r == NULL)
		return;
	if (still_ours(r))
		close(r->fd);
	free(r);
}

/* A child that ends its copy of the handle leaves the parent's session be. */
static void free_unless_silent(pam_handle_t *pamh, void *data, int status)
{
	if (status & PAM_DATA_SILENT)
		free(data);
	else
		free_reference(pamh, data, status);
}

/* Reads what lies under a key. The text stays the handle's; a text above
 * MEMFD_MAX is BUF_ERR, a limit above LIMIT_MAX is nothing. */
int data_load(pam_handle_t *pamh, const char *key, enum kind *kind, const char **text)
{
	enum key k = key_of(key);
	const void *data = NULL;
	int rc = pam_get_data(pamh, key, &data);
	intptr_t fd;
	struct stat st;

	*kind = KIND_NOTHING;
	*text = NULL;
	if (rc == PAM_NO_MODULE_DATA || (rc == PAM_SUCCESS && data == NULL))
		return PAM_SUCCESS;
	if (rc != PAM_SUCCESS)
		return rc;
	switch (k) {
	case KEY_HOME_FD:
		if (still_ours(data))
			*kind = KIND_HELD;
		return PAM_SUCCESS;
	case KEY_OTHER_FD:
		fd = (intptr_t)data - 1;
		if (fd >= 0 && fd <= INT_MAX && is_fifo((int)fd, &st))
			*kind = KIND_HELD;
		return PAM_SUCCESS;
	case KEY_LIMIT:
		if (strnlen(data, LIMIT_MAX + 1) > LIMIT_MAX)
			return PAM_SUCCESS;
		*kind = KIND_TEXT;
		*text = data;
		return PAM_SUCCESS;
	default:
		if (data == MARK) {
			*kind = KIND_MARK;
			return PAM_SUCCESS;
		}
		if (strnlen(data, MEMFD_MAX + 1) > MEMFD_MAX)
			return PAM_BUF_ERR;
		*kind = KIND_TEXT;
		*text = data;
		return PAM_SUCCESS;
	}
}

/* Takes text over, whatever the outcome. */
int data_store_text(pam_handle_t *pamh, const char *key, char *text)
{
	int rc = pam_set_data(pamh, key, text, free_text);

	if (rc != PAM_SUCCESS)
		drop_text(text);
	return rc;
}

int data_store_mark(pam_handle_t *pamh, const char *key)
{
	return pam_set_data(pamh, key, MARK, NULL);
}

/* Takes fd over, whatever the outcome. BAD_ITEM: no FIFO, which all but the
 * terminal are. */
int data_store_fd(pam_handle_t *pamh, const char *key, int fd)
{
	enum key k = key_of(key);
	struct reference *r;
	struct stat st;
	int rc;

	if (fstat(fd, &st) < 0 || (k != KEY_TTY_FD && !S_ISFIFO(st.st_mode))) {
		close(fd);
		return PAM_BAD_ITEM;
	}
	if (k == KEY_SESSION_FD) /* the session's lifeline: it ends with the process, not with the handle */
		return pam_set_data(pamh, key, (void *)((intptr_t)fd + 1), NULL);
	r = malloc(sizeof *r);
	if (r == NULL) {
		close(fd);
		return PAM_BUF_ERR;
	}
	*r = (struct reference){ .fd = fd, .dev = st.st_dev, .ino = st.st_ino };
	/* First the note that close_session has work to do. */
	rc = k == KEY_HOME_FD ? pam_set_data(pamh, REFS, (void *)(uintptr_t)1, NULL) : PAM_SUCCESS;
	if (rc == PAM_SUCCESS)
		rc = pam_set_data(pamh, key, r, k == KEY_HOME_FD ? free_reference : free_unless_silent);
	if (rc != PAM_SUCCESS)
		free_reference(pamh, r, 0);
	return rc;
}

/* Opens the terminal under a key for writing; -1 if it is gone. */
int data_reopen(pam_handle_t *pamh, const char *key)
{
	char path[32];
	const void *data = NULL;

	if (pam_get_data(pamh, key, &data) != PAM_SUCCESS || data == NULL || !still_ours(data))
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", ((const struct reference *)data)->fd);
	return lift(open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

/* Drops what lies under a key; its destructor runs. */
int data_drop(pam_handle_t *pamh, const char *key)
{
	const void *data;

	if (pam_get_data(pamh, key, &data) == PAM_NO_MODULE_DATA)
		return PAM_SUCCESS;
	return pam_set_data(pamh, key, NULL, NULL);
}

bool data_refs(pam_handle_t *pamh)
{
	const void *data = NULL;

	return pam_get_data(pamh, REFS, &data) == PAM_SUCCESS && data != NULL;
}

static bool key_for(char *key, const char *prefix, const char *name)
{
	return strlen(name) <= NAME_MAX_BYTES && snprintf(key, KEY_ROOM, "%s%s", prefix, name) < (int)KEY_ROOM;
}

/* Says what lies under prefix and name; false: cannot be such a key. */
bool data_for(pam_handle_t *pamh, const char *prefix, const char *name, enum kind *kind)
{
	char key[KEY_ROOM];
	const char *text;

	return key_for(key, prefix, name) && data_load(pamh, key, kind, &text) == PAM_SUCCESS;
}

void data_drop_for(pam_handle_t *pamh, const char *prefix, const char *name)
{
	char key[KEY_ROOM];

	if (key_for(key, prefix, name))
		data_drop(pamh, key);
}

/* A sealed memfd with the text, or -1. */
int memfd_of(const char *text, size_t n)
{
	struct rlimit r;
	int fd;

	/* The kernel would answer a write above the limit with a signal. */
	if (getrlimit(RLIMIT_FSIZE, &r) < 0 || r.rlim_cur < n)
		return -1;
	fd = lift(memfd_create("hearth", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (fd < 0)
		return -1;
	while (n > 0) {
		ssize_t w = write(fd, text, n);

		if (w < 0 && errno == EINTR)
			continue;
		if (w <= 0)
			goto fail;
		text += w;
		n -= (size_t)w;
	}
	if (fcntl(fd, F_ADD_SEALS, SEALS) == 0)
		return fd;
fail:
	close(fd);
	return -1;
}

/* The text of a sealed memfd of at most MEMFD_MAX bytes, NUL-terminated; NULL
 * if it is anything else. The descriptor stays the caller's. */
char *text_of_memfd(int fd)
{
	struct stat st;
	size_t n, have = 0;
	char *s;

	if ((fcntl(fd, F_GET_SEALS) & SEALS) != SEALS || fcntl(fd, F_GET_SEALS) < 0)
		return NULL;
	if (fstat(fd, &st) < 0 || st.st_size < 0 || st.st_size > (off_t)MEMFD_MAX)
		return NULL;
	n = (size_t)st.st_size;
	s = malloc(n + 1);
	if (s == NULL)
		return NULL;
	while (have < n) {
		ssize_t r = pread(fd, s + have, n - have, (off_t)have);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			break;
		have += (size_t)r;
	}
	s[have] = 0;
	if (have == n && memchr(s, 0, n) == NULL)
		return s;
	explicit_bzero(s, have);
	free(s);
	return NULL;
}
