/*
 * pam_home.so: the six PAM entry points. Each starts the helper, which holds
 * all policy, and does for it what only this process can do. What is decided
 * here is how a call ends when the helper does not, and the interlock: success
 * in auth and account counts only with a reference to the home.
 */
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <unistd.h>

#include <security/pam_ext.h>
#include <security/pam_modutil.h>

#include "shim.h"

#define EXPORT __attribute__((visibility("default")))

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define USER_MAX 1024u
#define ITEM_MAX 1024u
#define ARGS_MAX 8192u
#define ANSWER_MAX (32u << 10)
#define MAX_CONVS 64u
#define MAX_STORES 64u
#define MAX_STORED_FDS 8u

struct call {
	pam_handle_t *pamh;
	struct channel ch;
	unsigned convs, stores, fds;
	bool reference; /* stored, or seen to be held, in this call */
	char stored[MAX_STORED_FDS][KEY_ROOM];
};

static int not_ours(enum phase p)
{
	return p == OPEN || p == CLOSE ? PAM_SUCCESS : PAM_USER_UNKNOWN;
}

static bool has_arg(int argc, const char **argv, const char *name)
{
	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], name) == 0)
			return true;
	return false;
}

/* How a call ends without the helper's result. Never success in auth and
 * account, and never a lock-out of users who are not ours. */
static int failed(struct call *c, enum why w)
{
	const char *name = NULL;
	enum kind k;

	pam_syslog(c->pamh, LOG_ERR, "home helper %s: %s",
		   w == NO_START ? "cannot start" :
		   w == DIED ? "ended without a result" :
		   w == SILENT ? "is silent too long" : "broke the protocol", HELPER);
	for (unsigned i = 0; i < c->fds; i++)
		data_drop(c->pamh, c->stored[i]);
	if (pam_get_item(c->pamh, PAM_USER, (const void **)&name) != PAM_SUCCESS || name == NULL)
		name = "";
	switch (c->ch.phase) {
	case AUTH:
		return PAM_AUTHINFO_UNAVAIL;
	case ACCOUNT:
		return PAM_SERVICE_ERR;
	case OPEN:
		if ((data_for(c->pamh, HOME_FD, name, &k) && k == KIND_HELD) ||
		    (data_for(c->pamh, OTHER_FD, name, &k) && k == KIND_HELD) ||
		    (data_for(c->pamh, HOME_RECORD, name, &k) && k == KIND_TEXT))
			return PAM_SESSION_ERR;
		return PAM_SUCCESS;
	case CLOSE:
		data_drop_for(c->pamh, HOME_FD, name);
		return PAM_SUCCESS;
	default:
		return PAM_AUTHTOK_ERR;
	}
}

static void put_item(struct call *c, unsigned tag, int item, size_t max)
{
	const void *value = NULL;

	if (pam_get_item(c->pamh, item, &value) == PAM_SUCCESS && value != NULL && strlen(value) <= max)
		put_text(&c->ch, tag, value);
}

static void put_env(struct channel *c, unsigned tag, const char *name, const char *value)
{
	char both[1024 + 64];
	int n;

	if (value == NULL || strlen(value) > 1024)
		return;
	n = snprintf(both, sizeof both, "%s=%s", name, value);
	put(c, tag, both, (size_t)n);
}

static enum why send_start(struct call *c, int flags, int argc, const char **argv)
{
	static const char *const shared[] = {
		"XDG_SEAT", "XDG_VTNR", "XDG_SESSION_ID", "XDG_SESSION_TYPE", "XDG_SESSION_CLASS",
		"XDG_SESSION_DESKTOP", "XDG_SESSION_INCOMPLETE", "XDG_SESSION_INHIBIT",
		"XDG_SESSION_INHIBIT_WHY", "XDG_SESSION_EXTRA_DEVICE_ACCESS", "XDG_AREA",
		"XDG_RUNTIME_DIR", "SYSTEMD_HOME", "SYSTEMD_HOME_SUSPEND", "TERM", "HOME", "SHELL",
		"CREDENTIALS_DIRECTORY",
	};
	static const char *const process[] = {
		"SYSTEMD_ACTIVATION_UNIT", "SYSTEMD_ACTIVATION_SCOPE", "LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES",
	};
	struct channel *ch = &c->ch;
	const struct pam_conv *conv = NULL;
	bool secure = getauxval(AT_SECURE) != 0;
	uint64_t bounding, inheritable, permitted;
	enum why w;
	int host;

	channel_begin(ch, F_START);
	put_int(ch, 1, 2, 1);
	put_int(ch, 2, 1, ch->phase);
	put_int(ch, 3, 4, (uint32_t)flags);
	for (int i = 0; i < argc; i++)
		put_text(ch, 4, argv[i]);
	put_item(c, 5, PAM_SERVICE, ITEM_MAX);
	put_item(c, 6, PAM_USER, USER_MAX);
	put_item(c, 7, PAM_TTY, ITEM_MAX);
	put_item(c, 8, PAM_XDISPLAY, ITEM_MAX);
	put_item(c, 9, PAM_RHOST, ITEM_MAX);
	put_item(c, 10, PAM_RUSER, ITEM_MAX);
	if (ch->phase == AUTH || ch->phase == CHAUTHTOK) {
		put_item(c, 11, PAM_AUTHTOK, FRAME_MAX);
		put_item(c, 12, PAM_OLDAUTHTOK, FRAME_MAX);
	}
	if (pam_get_item(c->pamh, PAM_CONV, (const void **)&conv) != PAM_SUCCESS)
		conv = NULL;
	put_int(ch, 13, 1, conv != NULL && conv->conv != NULL);
	for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
		put_env(ch, 14, shared[i], pam_getenv(c->pamh, shared[i]));
	put_env(ch, 14, "DISPLAY", pam_getenv(c->pamh, "DISPLAY"));
	if (!secure) {
		for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
			put_env(ch, 15, shared[i], secure_getenv(shared[i]));
		for (size_t i = 0; i < sizeof process / sizeof *process; i++)
			put_env(ch, 15, process[i], secure_getenv(process[i]));
	}
	put_int(ch, 16, 4, (uint32_t)getpid());
	put_int(ch, 17, 4, (uint32_t)getppid());
	put_int(ch, 18, 4, getuid());
	put_int(ch, 19, 4, geteuid());
	put_int(ch, 20, 4, getgid());
	put_int(ch, 21, 4, getegid());
	put_int(ch, 22, 1, secure);
	if (ch->phase == OPEN) {
		if (own_caps(&bounding, &inheritable, &permitted)) {
			put_int(ch, 23, 8, bounding);
			put_int(ch, 24, 8, inheritable);
			put_int(ch, 25, 8, permitted);
		}
		put_int(ch, 26, 1, isatty(1) != 0);
	}

	/* The helper watches it: a child that the host forks meanwhile may
	 * keep the socket open for longer than the host lives. */
	host = lift((int)syscall(SYS_pidfd_open, getpid(), 0U));
	w = channel_send(ch, host);
	if (host >= 0)
		close(host);
	return w == BREACH ? NO_START : w;
}

/* The handlers leave the answer under construction. */
static enum why ack(struct call *c, int rc)
{
	channel_begin(&c->ch, F_ACK);
	put_int(&c->ch, 1, 4, (uint32_t)rc);
	return FINE;
}

/* An answer, or a token: secret, and absent unless all went well. */
static enum why answer(struct call *c, unsigned type, int rc, const char *secret)
{
	channel_begin(&c->ch, type);
	put_int(&c->ch, 1, 4, (uint32_t)rc);
	if (rc == PAM_SUCCESS)
		put_text(&c->ch, 2, secret);
	return FINE;
}

static enum why on_conv(struct call *c, const struct frame *f)
{
	static const int styles[] = { 0, PAM_PROMPT_ECHO_OFF, PAM_PROMPT_ECHO_ON, PAM_ERROR_MSG, PAM_TEXT_INFO };
	struct pam_message message = { .msg = get_text(f, 2, 1, 4096) };
	const struct pam_message *messages = &message;
	const struct pam_conv *conv = NULL;
	struct pam_response *r = NULL;
	int64_t before = now_ms();
	uint32_t style;
	int rc = PAM_CONV_ERR;

	if (++c->convs > MAX_CONVS || !get_int(f, 1, 1, &style) || style < 1 || style > 4 || message.msg == NULL)
		return BREACH;
	message.msg_style = styles[style];
	if (pam_get_item(c->pamh, PAM_CONV, (const void **)&conv) == PAM_SUCCESS && conv != NULL && conv->conv != NULL)
		rc = conv->conv(1, &messages, &r, conv->appdata_ptr);
	c->ch.over_at += now_ms() - before;
	if (rc == PAM_CONV_AGAIN || (rc == PAM_SUCCESS && r != NULL && r->resp != NULL && strlen(r->resp) > ANSWER_MAX))
		rc = PAM_CONV_ERR;
	answer(c, F_ANSWER, rc, r != NULL ? r->resp : NULL);
	if (r != NULL)
		drop_text(r->resp);
	free(r);
	return FINE;
}

static enum why on_get_token(struct call *c, const struct frame *f)
{
	const char *token = NULL, *prompt = get_text(f, 3, 1, 4096);
	int64_t before = now_ms();
	uint32_t item, verify;
	int rc;

	if (++c->convs > MAX_CONVS || !get_int(f, 1, 1, &item) || !get_int(f, 2, 1, &verify) || item < 1 || item > 2 ||
	    verify > 1 || (item == 2 && verify == 1) || (f->field[3].set && prompt == NULL))
		return BREACH;
	if (item == 2) {
		rc = pam_get_authtok(c->pamh, PAM_OLDAUTHTOK, &token, prompt);
	} else if (!verify) {
		rc = pam_get_authtok_noverify(c->pamh, &token, prompt);
	} else {
		/* libpam compares with what token points to on entry. */
		rc = pam_get_item(c->pamh, PAM_AUTHTOK, (const void **)&token);
		if (rc == PAM_SUCCESS)
			rc = token ? pam_get_authtok_verify(c->pamh, &token, prompt) : PAM_AUTHTOK_ERR;
	}
	c->ch.over_at += now_ms() - before;
	return answer(c, F_TOKEN, rc, token);
}

static enum why on_set_item(struct call *c, const struct frame *f)
{
	bool token = f->type == F_SET_TOKEN;
	const char *value = get_text(f, token ? 2 : 1, 1, token ? FRAME_MAX : USER_MAX);
	uint32_t which;

	if (value == NULL || (token && (!get_int(f, 1, 1, &which) || which != 1)))
		return BREACH;
	return ack(c, pam_set_item(c->pamh, token ? PAM_AUTHTOK : PAM_USER, value));
}

static enum why on_putenv(struct call *c, const struct frame *f)
{
	static const char *const outside_open[] = { "XDG_AREA", "XDG_SESSION_INCOMPLETE", "HOME", "SHELL" };
	static const char chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
	const char *kv = get_text(f, 1, 1, FRAME_MAX);
	bool known = c->ch.phase == OPEN;
	size_t n;

	if (kv == NULL)
		return BREACH;
	n = strcspn(kv, "=");
	for (size_t i = 0; i < sizeof outside_open / sizeof *outside_open; i++)
		known = known || (strlen(outside_open[i]) == n && memcmp(outside_open[i], kv, n) == 0);
	if (!known || n == 0 || strspn(kv, chars) != n || (kv[0] >= '0' && kv[0] <= '9'))
		return BREACH;
	return ack(c, pam_putenv(c->pamh, kv));
}

static bool is_text_key(enum key k)
{
	return k == KEY_HOME_RECORD || k == KEY_RECORD || k == KEY_STATE;
}

/* Keys under which the helper may put descriptors. */
static bool is_fd_key(enum key k)
{
	return k == KEY_HOME_FD || k == KEY_SESSION_FD || k == KEY_INHIBIT_FD;
}

/* *fd: a memfd to send along, or -1. */
static enum why on_load(struct call *c, const char *key, int *fd)
{
	enum kind kind;
	const char *text;
	int rc;

	if (!is_text_key(key_of(key)) && key_of(key) != KEY_HOME_FD && key_of(key) != KEY_OTHER_FD &&
	    (key_of(key) != KEY_LIMIT || c->ch.phase != OPEN))
		return BREACH;
	rc = data_load(c->pamh, key, &kind, &text);
	if (kind == KIND_HELD)
		c->reference = true;
	if (text != NULL && strlen(text) > BIG_VALUE) {
		*fd = memfd_of(text, strlen(text));
		text = NULL;
		if (*fd < 0) {
			rc = PAM_BUF_ERR;
			kind = KIND_NOTHING;
		}
	}
	channel_begin(&c->ch, F_VALUE);
	put_int(&c->ch, 1, 4, (uint32_t)rc);
	put_int(&c->ch, 2, 1, kind);
	put_text(&c->ch, 3, text);
	return FINE;
}

static enum why on_store(struct call *c, const char *key, struct frame *f)
{
	const char *text = get_text(f, 3, 0, FRAME_MAX);
	char *copy;
	uint32_t kind;

	if (++c->stores > MAX_STORES || !get_int(f, 2, 1, &kind) || !is_text_key(key_of(key)))
		return BREACH;
	if (kind == KIND_MARK && key_of(key) == KEY_HOME_RECORD && !f->field[3].set && f->fd < 0)
		return ack(c, data_store_mark(c->pamh, key));
	if (kind != KIND_TEXT || f->field[3].set == (f->fd >= 0) || (f->field[3].set && text == NULL))
		return BREACH;
	copy = text != NULL ? strdup(text) : text_of_memfd(f->fd);
	return copy != NULL ? ack(c, data_store_text(c->pamh, key, copy)) : BREACH;
}

static enum why on_store_fd(struct call *c, const char *key, struct frame *f)
{
	int rc;

	if (c->fds >= MAX_STORED_FDS || !is_fd_key(key_of(key)) || (key_of(key) != KEY_HOME_FD && c->ch.phase != OPEN))
		return BREACH;
	rc = data_store_fd(c->pamh, key, f->fd);
	f->fd = -1;
	if (rc == PAM_BAD_ITEM)
		return BREACH;
	if (rc == PAM_SUCCESS) {
		snprintf(c->stored[c->fds++], KEY_ROOM, "%s", key);
		c->reference = c->reference || key_of(key) == KEY_HOME_FD;
	}
	return ack(c, rc);
}

static enum why on_drop(struct call *c, const char *key)
{
	if (key_of(key) == KEY_HOME_FD)
		c->reference = false;
	else if (!is_text_key(key_of(key)) && !is_fd_key(key_of(key)))
		return BREACH;
	return ack(c, data_drop(c->pamh, key));
}

static enum why on_apply(struct call *c, const struct frame *f)
{
	uint32_t failed;

	if (!apply(&c->ch, f, &failed))
		return BREACH;
	ack(c, failed == 0 ? PAM_SUCCESS : PAM_SYSTEM_ERR);
	put_int(&c->ch, 2, 4, failed);
	return FINE;
}

static enum why on_tty_write(struct call *c, const struct frame *f)
{
	if (f->field[1].n == 0 || f->field[1].n > 512)
		return BREACH;
	return ack(c, tty_write(c->pamh, c->ch.phase, f->field[1].p, f->field[1].n));
}

/* A static helper cannot load the modules that know all users. */
static enum why on_lookup(struct call *c, const struct frame *f)
{
	const char *name = get_text(f, 1, 1, USER_MAX);
	struct passwd *pw;

	if (name == NULL)
		return BREACH;
	pw = pam_modutil_getpwnam(c->pamh, name);
	channel_begin(&c->ch, F_PASSWD);
	put_int(&c->ch, 1, 4, (uint32_t)(pw != NULL ? PAM_SUCCESS : PAM_USER_UNKNOWN));
	if (pw != NULL) {
		put_int(&c->ch, 2, 4, pw->pw_uid);
		put_int(&c->ch, 3, 4, pw->pw_gid);
		put_text(&c->ch, 4, pw->pw_dir);
		put_text(&c->ch, 5, pw->pw_shell);
	}
	return FINE;
}

static enum why on_request(struct call *c, struct frame *f, int *fd)
{
	const char *key = NULL;

	if (f->type >= F_LOAD && f->type <= F_DROP && (key = get_text(f, 1, 1, KEY_ROOM - 1)) == NULL)
		return BREACH;
	switch (f->type) {
	case F_CONV: return on_conv(c, f);
	case F_GET_TOKEN: return on_get_token(c, f);
	case F_SET_TOKEN: return on_set_item(c, f);
	case F_SET_USER: return on_set_item(c, f);
	case F_PUTENV: return on_putenv(c, f);
	case F_LOAD: return on_load(c, key, fd);
	case F_STORE: return on_store(c, key, f);
	case F_STORE_FD: return on_store_fd(c, key, f);
	case F_DROP: return on_drop(c, key);
	case F_APPLY: return on_apply(c, f);
	case F_TTY_WRITE: return on_tty_write(c, f);
	default: return on_lookup(c, f);
	}
}

static enum why on_log(struct call *c, const struct frame *f)
{
	const char *text = get_text(f, 2, 0, 2048);
	uint32_t priority;

	if (text == NULL || !get_int(f, 1, 1, &priority) || priority > 7)
		return BREACH;
	pam_syslog(c->pamh, (int)priority, "%s", text);
	return FINE;
}

static enum why on_result(struct call *c, const struct frame *f, int *result)
{
	uint32_t rc;

	if (!get_int(f, 1, 4, &rc) || rc > 29 || rc == PAM_OPEN_ERR || rc == PAM_SYMBOL_ERR || rc == PAM_MODULE_UNKNOWN)
		return BREACH;
	/* The interlock: whatever got into the helper, it lets nobody in
	 * without the home. */
	if (!c->reference && (((c->ch.phase == AUTH || c->ch.phase == ACCOUNT) && rc == PAM_SUCCESS) ||
			      (c->ch.phase == ACCOUNT && rc == PAM_NEW_AUTHTOK_REQD)))
		return BREACH;
	*result = (int)rc;
	return FINE;
}

/* Serves the helper until its result. */
static enum why serve(struct call *c, int *result)
{
	struct frame f;
	enum why w;
	int fd = -1;
	bool due = false; /* an answer is ready: only log lines may come before it */

	for (;;) {
		w = channel_receive(&c->ch, &f, !due);
		if (w == NOTHING) {
			w = channel_send(&c->ch, fd);
			due = false;
			if (fd >= 0)
				close(fd);
			fd = -1;
		} else if (w == FINE) {
			unsigned type = f.type;

			if (type == F_LOG)
				w = on_log(c, &f);
			else if (due)
				w = BREACH;
			else if (type == F_RESULT)
				w = on_result(c, &f, result);
			else
				w = on_request(c, &f, &fd);
			channel_done(&c->ch, &f);
			if (type == F_RESULT)
				break;
			due = due || type != F_LOG;
		}
		if (w != FINE)
			break;
	}
	if (fd >= 0)
		close(fd);
	return w;
}

static int with_helper(struct call *c, int flags, int argc, const char **argv)
{
	int pair[2] = { -1, -1 };
	enum why w = NO_START;
	size_t args = 0;
	int result = PAM_SYSTEM_ERR;

	for (int i = 0; i < argc; i++)
		args += strlen(argv[i]) + 1;
	c->ch.sock = -1;
	c->ch.in = malloc(FRAME_MAX + 1);
	c->ch.out = malloc(FRAME_MAX);
	if (args > ARGS_MAX || c->ch.in == NULL || c->ch.out == NULL)
		goto out;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		goto out;
	pair[0] = lift(pair[0]);
	pair[1] = lift(pair[1]);
	if (pair[0] < 0 || pair[1] < 0 || fcntl(pair[0], F_SETFL, O_NONBLOCK) < 0)
		goto out;
	if (!start_helper(pair[1]))
		goto out;
	close(pair[1]);
	pair[1] = -1;
	c->ch.sock = pair[0];
	c->ch.over_at = now_ms() + CALL_MS;
	w = send_start(c, flags, argc, argv);
	c->ch.silent_at = now_ms() + FIRST_MS;
	if (w == FINE)
		w = serve(c, &result);
	if (w == DIED && c->ch.frames == 0)
		w = NO_START;
out:
	if (pair[0] >= 0)
		close(pair[0]);
	if (pair[1] >= 0)
		close(pair[1]);
	free(c->ch.in);
	free(c->ch.out);
	return w == FINE ? result : failed(c, w);
}

static int run(pam_handle_t *pamh, enum phase phase, int flags, int argc, const char **argv)
{
	bool whole = (phase == OPEN || phase == CLOSE) &&
		     (has_arg(argc, argv, "register") || has_arg(argc, argv, "settings"));
	struct call c = { .pamh = pamh, .ch = { .phase = phase } };
	const char *user = NULL;
	enum kind k;
	int rc;

	if (phase == CLOSE && !whole && !data_refs(pamh))
		return PAM_SUCCESS;
	rc = pam_get_user(pamh, &user, NULL);
	if (rc != PAM_SUCCESS)
		return rc == PAM_CONV_AGAIN || rc == PAM_INCOMPLETE ? PAM_CONV_ERR : rc;
	if (user == NULL || user[0] == 0)
		return PAM_SERVICE_ERR;
	if (strlen(user) > USER_MAX)
		return not_ours(phase);
	if (!whole && (strcmp(user, "root") == 0 || strcmp(user, NOBODY) == 0 ||
		       !((user[0] >= 'A' && user[0] <= 'Z') || (user[0] >= 'a' && user[0] <= 'z') || user[0] == '_') ||
		       (data_for(pamh, HOME_RECORD, user, &k) && k == KIND_MARK)))
		return not_ours(phase);
	/* A unit's child that has given up its rights: a release would be refused
	 * to it, and what counts is that its reference ends. */
	if (phase == CLOSE && !whole && geteuid() != 0) {
		data_drop_for(pamh, HOME_FD, user);
		return PAM_SUCCESS;
	}
	return with_helper(&c, flags, argc, argv);
}

EXPORT int pam_sm_setcred(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	(void)pamh;
	(void)flags;
	(void)argc;
	(void)argv;
	return PAM_SUCCESS;
}

#define HOOK(name, phase)                                                                 \
	EXPORT int pam_sm_##name(pam_handle_t *pamh, int flags, int argc, const char **argv) \
	{                                                                                 \
		return run(pamh, phase, flags, argc, argv);                               \
	}

HOOK(authenticate, AUTH)
HOOK(acct_mgmt, ACCOUNT)
HOOK(open_session, OPEN)
HOOK(close_session, CLOSE)
HOOK(chauthtok, CHAUTHTOK)
