/*
 * What stays on the PAM handle between calls: record texts and the helper's
 * notes, both wiped when they go, and descriptors: the one that keeps a home
 * active and those of the session. One is believed only while its number still
 * is the same file: a forked child may have closed and reused it.
 */
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
#define MARK ((void *)UINTPTR_MAX) /* "not ours", as other modules write it */
#define REFS "hearth-refs" /* this handle held a reference once */
#define LIMIT_MAX 256u

static const struct rule rules[] = {
	{ HOME_RECORD, true, RECORD, ALL, ALL },
	{ "systemd-user-record-", true, TEXT, ALL, ALL },
	{ "hearth-home-state-", true, TEXT, ALL, ALL },
	{ HOME_FD, true, REFERENCE, ALL, ALL },
	{ OTHER_FD, true, OTHER_REFERENCE, ALL, 0 },
	{ "hearth-session-fd", false, LIFELINE, 0, BIT(OPEN) },
	{ "hearth-inhibit-fd", false, LOCK, 0, BIT(OPEN) },
	{ "hearth-tty-fd", false, TERMINAL, BIT(OPEN) | BIT(CLOSE), BIT(OPEN) },
	{ "systemd.memory_max", false, LIMIT, BIT(OPEN), 0 },
	{ "systemd.tasks_max", false, LIMIT, BIT(OPEN), 0 },
	{ "systemd.cpu_weight", false, LIMIT, BIT(OPEN), 0 },
	{ "systemd.io_weight", false, LIMIT, BIT(OPEN), 0 },
	{ "systemd.runtime_max_sec", false, LIMIT, BIT(OPEN), 0 },
};

/* NULL: not a key for the helper. */
const struct rule *rule_of(const char *key)
{
	for (size_t i = 0; i < COUNT(rules); i++) {
		size_t n = strlen(rules[i].name), rest;

		if (strncmp(key, rules[i].name, n) != 0)
			continue;
		rest = strlen(key + n);
		if (rules[i].of_user ? rest >= 1 && rest <= NAME_BYTES : rest == 0)
			return &rules[i];
	}
	return NULL;
}

/* A descriptor of ours, as it lies on the handle. */
struct held {
	int fd;
	dev_t dev;
	ino_t ino;
	bool always; /* goes also where a child ends its copy of the handle silently */
};

static bool still_ours(const struct held *h)
{
	struct stat st;

	return fstat(h->fd, &st) == 0 && st.st_dev == h->dev && st.st_ino == h->ino;
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

static void free_held(pam_handle_t *pamh, void *data, int status)
{
	struct held *h = data;

	(void)pamh;
	if (h != NULL && (h->always || !(status & PAM_DATA_SILENT)) && still_ours(h))
		close(h->fd);
	free(h);
}

/* Reads what lies under a key of the rules. A text above its greatest length
 * is BUF_ERR. */
int data_load(pam_handle_t *pamh, const char *key, struct stored *s)
{
	const struct rule *rule = rule_of(key);
	const void *data = NULL;
	size_t max = rule->form == LIMIT ? LIMIT_MAX : MEMFD_MAX;
	int rc = pam_get_data(pamh, key, &data);
	struct stat st;

	*s = (struct stored){ .kind = KIND_NOTHING, .fd = -1 };
	if (rc != PAM_SUCCESS || data == NULL)
		return rc == PAM_NO_MODULE_DATA ? PAM_SUCCESS : rc;
	switch (rule->form) {
	case REFERENCE:
	case TERMINAL:
		if (still_ours(data))
			s->fd = ((const struct held *)data)->fd;
		break;
	case OTHER_REFERENCE: /* the module of systemd keeps the number plus 1 */
		if ((intptr_t)data > 0 && (intptr_t)data <= INT_MAX && fstat((int)(intptr_t)data - 1, &st) == 0 && S_ISFIFO(st.st_mode))
			s->fd = (int)(intptr_t)data - 1;
		break;
	default:
		if (data == MARK) {
			s->kind = KIND_MARK;
			return PAM_SUCCESS;
		}
		if (strnlen(data, max + 1) > max)
			return PAM_BUF_ERR;
		s->kind = KIND_TEXT;
		s->text = data;
	}
	if (s->fd >= 0)
		s->kind = KIND_HELD;
	return PAM_SUCCESS;
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

/* Takes fd over, whatever the outcome. BAD_ITEM: it is not what belongs under
 * that key. */
int data_store_fd(pam_handle_t *pamh, const char *key, int fd)
{
	enum form form = rule_of(key)->form;
	struct held *h = NULL;
	struct stat st;
	int rc = PAM_BAD_ITEM;

	if (fstat(fd, &st) < 0 || !(form == TERMINAL ? S_ISCHR(st.st_mode) : S_ISFIFO(st.st_mode)))
		goto fail;
	if (form == LIFELINE) /* of the session: it ends with the process, not with the handle */
		return pam_set_data(pamh, key, (void *)((intptr_t)fd + 1), NULL);
	rc = PAM_BUF_ERR;
	h = malloc(sizeof *h);
	if (h == NULL)
		goto fail;
	*h = (struct held){ fd, st.st_dev, st.st_ino, form == REFERENCE };
	/* First the note that close_session has work to do. */
	rc = form == REFERENCE ? pam_set_data(pamh, REFS, (void *)(uintptr_t)1, NULL) : PAM_SUCCESS;
	if (rc == PAM_SUCCESS)
		rc = pam_set_data(pamh, key, h, free_held);
	if (rc == PAM_SUCCESS)
		return rc;
fail:
	close(fd);
	free(h);
	return rc;
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
	snprintf(key, KEY_ROOM, "%s%s", prefix, name);
	return strlen(name) <= NAME_BYTES && rule_of(key) != NULL;
}

/* Whether something of that kind lies under prefix and name. */
bool data_is(pam_handle_t *pamh, const char *prefix, const char *name, enum kind kind)
{
	char key[KEY_ROOM];
	struct stored s;

	return key_for(key, prefix, name) && data_load(pamh, key, &s) == PAM_SUCCESS && s.kind == kind;
}

void data_drop_for(pam_handle_t *pamh, const char *prefix, const char *name)
{
	char key[KEY_ROOM];

	if (key_for(key, prefix, name))
		data_drop(pamh, key);
}

/* A sealed memfd with the text, or -1. */
int memfd_of(const char *text)
{
	size_t n = strlen(text);
	struct rlimit r;
	int fd;

	/* The kernel would answer a write above the limit with a signal. */
	if (getrlimit(RLIMIT_FSIZE, &r) < 0 || r.rlim_cur < n)
		return -1;
	fd = lift(memfd_create("hearth", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (fd >= 0 && (write(fd, text, n) != (ssize_t)n || fcntl(fd, F_ADD_SEALS, SEALS) < 0)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* The text of a sealed memfd of at most MEMFD_MAX bytes, NUL-terminated; NULL
 * if it is anything else. The descriptor stays the caller's. */
char *text_of_memfd(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	size_t n;
	char *s;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || st.st_size > (off_t)MEMFD_MAX)
		return NULL;
	n = (size_t)st.st_size;
	s = calloc(1, n + 1);
	if (s == NULL || (pread(fd, s, n, 0) == (ssize_t)n && strlen(s) == n))
		return s;
	explicit_bzero(s, n);
	free(s);
	return NULL;
}
