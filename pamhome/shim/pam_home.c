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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <unistd.h>

#include <security/pam_ext.h>
#include <security/pam_modutil.h>

#include "shim.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define ITEM_BYTES 1024u
#define ARGS_BYTES 8192u
#define ANSWER_BYTES (32u << 10)
#define MAX_CONVS 64u
#define MAX_STORES 64u
#define MAX_STORED_FDS 8u
#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"

/* Steps of APPLY that failed, in its ACK. The umask cannot. */
enum { FAILED_NICE = 2, FAILED_AMBIENT = 8, FAILED_BOUNDING = 16 };

struct call {
	pam_handle_t *pamh;
	struct channel ch;
	unsigned convs, stores, fds;
	bool reference; /* stored, or seen to be held, in this call */
	char stored[MAX_STORED_FDS][KEY_ROOM];
};

/* NULL where it is not set. */
static const void *item_of(pam_handle_t *pamh, int item)
{
	const void *value = NULL;

	return pam_get_item(pamh, item, &value) == PAM_SUCCESS ? value : NULL;
}

/* How a call ends without the helper's result. Never success in auth and
 * account, and never a lock-out of users who are not ours. */
static int failed(struct call *c, enum why w)
{
	const char *name = item_of(c->pamh, PAM_USER);

	pam_syslog(c->pamh, LOG_ERR, "home helper %s: %s",
		   w == NO_START ? "cannot start" :
		   w == DIED ? "ended without a result" :
		   w == SILENT ? "is silent too long" : "broke the protocol", HELPER);
	for (unsigned i = 0; i < c->fds; i++)
		data_drop(c->pamh, c->stored[i]);
	if (name == NULL)
		name = "";
	switch (c->ch.phase) {
	case AUTH:
		return PAM_AUTHINFO_UNAVAIL;
	case ACCOUNT:
		return PAM_SERVICE_ERR;
	case OPEN:
		return data_is(c->pamh, HOME_FD, name, KIND_HELD) || data_is(c->pamh, OTHER_FD, name, KIND_HELD) ||
		       data_is(c->pamh, HOME_RECORD, name, KIND_TEXT) ? PAM_SESSION_ERR : PAM_SUCCESS;
	case CLOSE:
		data_drop_for(c->pamh, HOME_FD, name);
		return PAM_SUCCESS;
	default:
		return PAM_AUTHTOK_ERR;
	}
}

static void put_env(struct channel *c, unsigned tag, const char *name, const char *value)
{
	char both[1024 + 64];

	if (value != NULL && strlen(value) <= 1024) {
		snprintf(both, sizeof both, "%s=%s", name, value);
		put_text(c, tag, both);
	}
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
	static const int items[] = { PAM_SERVICE, PAM_USER, PAM_TTY, PAM_XDISPLAY, PAM_RHOST, PAM_RUSER, PAM_AUTHTOK, PAM_OLDAUTHTOK };
	struct channel *ch = &c->ch;
	const struct pam_conv *conv = item_of(c->pamh, PAM_CONV);
	bool secure = getauxval(AT_SECURE) != 0, tokens = ch->phase == AUTH || ch->phase == CHAUTHTOK;
	uint32_t ids[] = { (uint32_t)getpid(), (uint32_t)getppid(), getuid(), geteuid(), getgid(), getegid() };
	enum why w;
	int host;

	channel_begin(ch, F_START);
	put_int(ch, 1, 2, 1);
	put_int(ch, 2, 1, ch->phase);
	put_int(ch, 3, 4, (uint32_t)flags);
	for (int i = 0; i < argc; i++)
		put_text(ch, 4, argv[i]);
	for (unsigned i = 0; i < COUNT(items); i++) {
		bool token = items[i] == PAM_AUTHTOK || items[i] == PAM_OLDAUTHTOK;
		const char *value = item_of(c->pamh, items[i]);

		if (value != NULL && (token ? tokens : strlen(value) <= (items[i] == PAM_USER ? USER_BYTES : ITEM_BYTES)))
			put_text(ch, 5 + i, value);
	}
	put_int(ch, 13, 1, conv != NULL && conv->conv != NULL);
	for (size_t i = 0; i < COUNT(shared); i++) {
		put_env(ch, 14, shared[i], pam_getenv(c->pamh, shared[i]));
		put_env(ch, 15, shared[i], secure ? NULL : secure_getenv(shared[i]));
	}
	put_env(ch, 14, "DISPLAY", pam_getenv(c->pamh, "DISPLAY"));
	for (size_t i = 0; i < COUNT(process); i++)
		put_env(ch, 15, process[i], secure ? NULL : secure_getenv(process[i]));
	for (unsigned i = 0; i < COUNT(ids); i++)
		put_int(ch, 16 + i, 4, ids[i]);
	put_int(ch, 22, 1, secure);

	/* The helper watches it: a child that the host forks meanwhile may
	 * keep the socket open for longer than the host lives. */
	host = lift((int)syscall(SYS_pidfd_open, getpid(), 0U));
	w = channel_send(ch, host);
	if (host >= 0)
		close(host);
	return w == BREACH ? NO_START : w;
}

/* The handlers leave the answer under construction. */
static enum why answer(struct call *c, unsigned type, int rc)
{
	channel_begin(&c->ch, type);
	put_int(&c->ch, 1, 4, (uint32_t)rc);
	return FINE;
}

static enum why on_conv(struct call *c, const struct frame *f)
{
	static const int styles[] = { 0, PAM_PROMPT_ECHO_OFF, PAM_PROMPT_ECHO_ON, PAM_ERROR_MSG, PAM_TEXT_INFO };
	struct pam_message message = { .msg_style = styles[f->field[1].n], .msg = f->field[2].text };
	const struct pam_message *messages = &message;
	const struct pam_conv *conv = item_of(c->pamh, PAM_CONV);
	struct pam_response *r = NULL;
	int rc = PAM_CONV_ERR;

	if (conv != NULL && conv->conv != NULL)
		rc = conv->conv(1, &messages, &r, conv->appdata_ptr);
	if (rc == PAM_CONV_AGAIN || (rc == PAM_SUCCESS && r != NULL && r->resp != NULL && strlen(r->resp) > ANSWER_BYTES))
		rc = PAM_CONV_ERR;
	answer(c, F_ANSWER, rc);
	if (rc == PAM_SUCCESS && r != NULL)
		put_text(&c->ch, 2, r->resp);
	if (r != NULL)
		drop_text(r->resp);
	free(r);
	return FINE;
}

static enum why on_get_token(struct call *c, const struct frame *f)
{
	const char *token = NULL, *prompt = f->field[3].text;
	int rc;

	if (f->field[2].n == 0) {
		rc = pam_get_authtok_noverify(c->pamh, &token, prompt);
	} else {
		/* libpam compares with what token points to on entry. */
		token = item_of(c->pamh, PAM_AUTHTOK);
		rc = token != NULL ? pam_get_authtok_verify(c->pamh, &token, prompt) : PAM_AUTHTOK_ERR;
	}
	answer(c, F_TOKEN, rc);
	if (rc == PAM_SUCCESS)
		put_text(&c->ch, 2, token);
	return FINE;
}

static enum why on_putenv(struct call *c, const char *kv)
{
	static const char *const outside_open[] = { "XDG_AREA", "XDG_SESSION_INCOMPLETE", "HOME", "SHELL" };
	size_t n = strcspn(kv, "=");
	bool known = c->ch.phase == OPEN;

	for (size_t i = 0; i < COUNT(outside_open); i++)
		known = known || (strlen(outside_open[i]) == n && memcmp(outside_open[i], kv, n) == 0);
	if (!known || strspn(kv, LETTERS) == 0 || strspn(kv, LETTERS "0123456789") != n)
		return BREACH;
	return answer(c, F_ACK, pam_putenv(c->pamh, kv));
}

/* *fd: what goes along, or -1: a memfd, or the terminal of the session, which
 * is that of standard output until one is stored. */
static enum why on_load(struct call *c, const struct rule *rule, const char *key, int *fd)
{
	struct stored s;
	int rc;

	if (!(rule->load & BIT(c->ch.phase)))
		return BREACH;
	rc = data_load(c->pamh, key, &s);
	if (rule->form == REFERENCE || rule->form == OTHER_REFERENCE) {
		c->reference = c->reference || s.kind == KIND_HELD;
	} else if (rule->form == TERMINAL) {
		if (s.fd >= 0)
			*fd = fcntl(s.fd, F_DUPFD_CLOEXEC, 3);
		else if (c->ch.phase == OPEN && isatty(1) && (fcntl(1, F_GETFL) & O_ACCMODE) != O_RDONLY)
			*fd = lift(open("/proc/self/fd/1", O_PATH | O_CLOEXEC));
		s.kind = *fd >= 0 ? KIND_HELD : KIND_NOTHING;
	} else if (s.text != NULL && strlen(s.text) > BIG_VALUE) {
		*fd = memfd_of(s.text);
		s.text = NULL;
		if (*fd < 0)
			rc = PAM_BUF_ERR;
		s.kind = *fd >= 0 ? KIND_TEXT : KIND_NOTHING;
	}
	answer(c, F_VALUE, rc);
	put_int(&c->ch, 2, 1, s.kind);
	put_text(&c->ch, 3, s.text);
	return FINE;
}

static enum why on_store(struct call *c, const struct rule *rule, const char *key, const struct frame *f)
{
	const char *text = f->field[3].text;
	char *copy;

	if (++c->stores > MAX_STORES || (rule->form != TEXT && rule->form != RECORD))
		return BREACH;
	if (f->field[2].n == KIND_MARK && rule->form == RECORD && text == NULL && f->fd < 0)
		return answer(c, F_ACK, data_store_mark(c->pamh, key));
	if (f->field[2].n != KIND_TEXT || (text != NULL) == (f->fd >= 0))
		return BREACH;
	copy = text != NULL ? strdup(text) : text_of_memfd(f->fd);
	return copy != NULL ? answer(c, F_ACK, data_store_text(c->pamh, key, copy)) : BREACH;
}

static enum why on_store_fd(struct call *c, const struct rule *rule, const char *key, struct frame *f)
{
	int rc;

	if (c->fds >= MAX_STORED_FDS || rule->form == TEXT || rule->form == RECORD)
		return BREACH;
	rc = data_store_fd(c->pamh, key, f->fd);
	f->fd = -1;
	if (rc == PAM_BAD_ITEM)
		return BREACH;
	if (rc == PAM_SUCCESS) {
		snprintf(c->stored[c->fds++], KEY_ROOM, "%s", key);
		c->reference = c->reference || rule->form == REFERENCE;
	}
	return answer(c, F_ACK, rc);
}

static enum why on_key(struct call *c, struct frame *f, int *fd)
{
	const char *key = f->field[1].text;
	const struct rule *rule = rule_of(key);

	if (rule == NULL)
		return BREACH;
	if (f->type == F_LOAD)
		return on_load(c, rule, key, fd);
	/* Whatever may be stored may be dropped, in any phase. */
	if (!(rule->store & (f->type == F_DROP ? ALL : BIT(c->ch.phase))))
		return BREACH;
	if (f->type == F_STORE)
		return on_store(c, rule, key, f);
	if (f->type == F_STORE_FD)
		return on_store_fd(c, rule, key, f);
	if (rule->form == REFERENCE)
		c->reference = false;
	return answer(c, F_ACK, data_drop(c->pamh, key));
}

/* Each step although the one before failed. */
static enum why on_apply(struct call *c, const struct frame *f)
{
	const struct value *v = f->field;
	uint32_t bits = 0;

	if (v[1].set)
		umask((mode_t)v[1].n);
	errno = 0;
	if (v[2].set && nice((int)(int32_t)v[2].n) == -1 && errno != 0)
		bits |= FAILED_NICE;
	if (v[4].set && !apply_ambient(v[4].n))
		bits |= FAILED_AMBIENT;
	if (v[5].set && !apply_bounding(v[5].n))
		bits |= FAILED_BOUNDING;
	answer(c, F_ACK, bits == 0 ? PAM_SUCCESS : PAM_SYSTEM_ERR);
	put_int(&c->ch, 2, 4, bits);
	return FINE;
}

/* A static helper cannot load the modules that know all users. */
static enum why on_lookup(struct call *c, const char *name)
{
	const struct passwd *pw = pam_modutil_getpwnam(c->pamh, name);

	answer(c, F_PASSWD, pw != NULL ? PAM_SUCCESS : PAM_USER_UNKNOWN);
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
	int64_t before = now_ms();
	enum why w;

	switch (f->type) {
	case F_CONV:
	case F_GET_TOKEN:
		if (++c->convs > MAX_CONVS)
			return BREACH;
		w = f->type == F_CONV ? on_conv(c, f) : on_get_token(c, f);
		c->ch.over_at += now_ms() - before;
		return w;
	case F_SET_TOKEN: return answer(c, F_ACK, pam_set_item(c->pamh, PAM_AUTHTOK, f->field[2].text));
	case F_SET_USER: return answer(c, F_ACK, pam_set_item(c->pamh, PAM_USER, f->field[1].text));
	case F_PUTENV: return on_putenv(c, f->field[1].text);
	case F_APPLY: return on_apply(c, f);
	case F_LOOKUP: return on_lookup(c, f->field[1].text);
	default: return on_key(c, f, fd);
	}
}

static enum why on_result(struct call *c, int rc, int *result)
{
	if (rc == PAM_OPEN_ERR || rc == PAM_SYMBOL_ERR || rc == PAM_MODULE_UNKNOWN)
		return BREACH;
	/* The interlock: whatever got into the helper, it lets nobody in
	 * without the home. */
	if (!c->reference && (((c->ch.phase == AUTH || c->ch.phase == ACCOUNT) && rc == PAM_SUCCESS) ||
			      (c->ch.phase == ACCOUNT && rc == PAM_NEW_AUTHTOK_REQD)))
		return BREACH;
	*result = rc;
	return FINE;
}

/* Serves the helper until its result. */
static enum why serve(struct call *c, int *result)
{
	struct frame f;
	enum why w = FINE;
	int fd = -1;
	bool due = false; /* an answer is ready: only log lines may come before it */
	bool over = false;

	while (w == FINE && !over) {
		w = channel_receive(&c->ch, &f, !due);
		if (w == NOTHING) {
			w = channel_send(&c->ch, fd);
			due = false;
			if (fd >= 0)
				close(fd);
			fd = -1;
		} else if (w == FINE) {
			over = f.type == F_RESULT;
			if (f.type == F_LOG)
				pam_syslog(c->pamh, (int)f.field[1].n, "%s", f.field[2].text);
			else if (due)
				w = BREACH;
			else if (over)
				w = on_result(c, (int)f.field[1].n, result);
			else
				w = on_request(c, &f, &fd);
			due = due || f.type != F_LOG;
			channel_done(&c->ch, &f);
		}
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
	c->ch.in = malloc(FRAME_MAX + 1);
	c->ch.out = malloc(FRAME_MAX);
	if (args > ARGS_BYTES || c->ch.in == NULL || c->ch.out == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		goto out;
	pair[0] = lift(pair[0]);
	pair[1] = lift(pair[1]);
	if (pair[0] < 0 || pair[1] < 0 || fcntl(pair[0], F_SETFL, O_NONBLOCK) < 0 || !start_helper(pair[1]))
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
	for (int i = 0; i < 2; i++)
		if (pair[i] >= 0)
			close(pair[i]);
	/* An answer that was never sent may be a password. */
	if (c->ch.out != NULL)
		explicit_bzero(c->ch.out, c->ch.out_n);
	free(c->ch.in);
	free(c->ch.out);
	return w == FINE ? result : failed(c, w);
}

static int run(pam_handle_t *pamh, enum phase phase, int flags, int argc, const char **argv)
{
	struct call c = { .pamh = pamh, .ch = { .phase = phase } };
	const char *user = NULL;
	bool whole = false; /* the session half, which is for everybody */
	int rc;

	for (int i = 0; i < argc && (phase == OPEN || phase == CLOSE); i++)
		whole = whole || strcmp(argv[i], "register") == 0 || strcmp(argv[i], "settings") == 0;
	if (phase == SETCRED || (phase == CLOSE && !whole && !data_refs(pamh)))
		return PAM_SUCCESS;
	rc = pam_get_user(pamh, &user, NULL);
	if (rc != PAM_SUCCESS)
		return rc == PAM_CONV_AGAIN || rc == PAM_INCOMPLETE ? PAM_CONV_ERR : rc;
	if (user == NULL || user[0] == 0)
		return PAM_SERVICE_ERR;
	/* Names that are nobody's home cost no process. */
	if (strlen(user) > USER_BYTES ||
	    (!whole && (strcmp(user, "root") == 0 || strcmp(user, NOBODY) == 0 || strspn(user, LETTERS) == 0 ||
			data_is(pamh, HOME_RECORD, user, KIND_MARK))))
		return phase == OPEN || phase == CLOSE ? PAM_SUCCESS : PAM_USER_UNKNOWN;
	/* A unit's child that has given up its rights: a release would be refused
	 * to it, and what counts is that its reference ends. */
	if (phase == CLOSE && !whole && geteuid() != 0) {
		data_drop_for(pamh, HOME_FD, user);
		return PAM_SUCCESS;
	}
	return with_helper(&c, flags, argc, argv);
}

#define HOOK(name, phase)                                                    \
	__attribute__((visibility("default"))) int pam_sm_##name(            \
		pam_handle_t *pamh, int flags, int argc, const char **argv)  \
	{                                                                    \
		return run(pamh, phase, flags, argc, argv);                  \
	}

HOOK(authenticate, AUTH)
HOOK(setcred, SETCRED)
HOOK(acct_mgmt, ACCOUNT)
HOOK(open_session, OPEN)
HOOK(close_session, CLOSE)
HOOK(chauthtok, CHAUTHTOK)
