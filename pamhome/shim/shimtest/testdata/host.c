/*
 * A login program for tests: runs PAM hooks in the order given and prints
 * every call of its conversation function and every result.
 *
 *   host [-a ANSWER] [-i ITEM=VALUE] [-e K=V] [-r] [-R] [-n] CONFDIR SERVICE USER OP...
 *
 * -a answers a prompt, NULL is success without an answer, NOTHING also without
 * room for one; -r refuses prompts,
 * -R all messages, -n there is no conversation function.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <security/pam_appl.h>

static char *answers[64];
static int n_answers, next_answer, refuse, refuse_all, no_function, out = 1;
static volatile sig_atomic_t children;

static void say(const char *format, ...)
{
	char line[8192];
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(line, sizeof line, format, ap);
	va_end(ap);
	if (n >= (int)sizeof line)
		n = sizeof line - 1;
	if (write(out, line, n) < 0)
		_exit(99);
}

static const char *code(int rc)
{
	static const char *const names[] = {
		"SUCCESS", "OPEN_ERR", "SYMBOL_ERR", "SERVICE_ERR", "SYSTEM_ERR", "BUF_ERR", "PERM_DENIED", "AUTH_ERR",
		"CRED_INSUFFICIENT", "AUTHINFO_UNAVAIL", "USER_UNKNOWN", "MAXTRIES", "NEW_AUTHTOK_REQD", "ACCT_EXPIRED",
		"SESSION_ERR", "CRED_UNAVAIL", "CRED_EXPIRED", "CRED_ERR", "NO_MODULE_DATA", "CONV_ERR", "AUTHTOK_ERR",
		"AUTHTOK_RECOVERY_ERR", "AUTHTOK_LOCK_BUSY", "AUTHTOK_DISABLE_AGING", "TRY_AGAIN", "IGNORE", "ABORT",
		"AUTHTOK_EXPIRED", "MODULE_UNKNOWN", "BAD_ITEM", "CONV_AGAIN", "INCOMPLETE",
	};

	return rc >= 0 && rc < (int)(sizeof names / sizeof *names) ? names[rc] : "?";
}

static int conv(int n, const struct pam_message **m, struct pam_response **r, void *data)
{
	static const char *const styles[] = { "?", "PROMPT_ECHO_OFF", "PROMPT_ECHO_ON", "ERROR_MSG", "TEXT_INFO" };
	int style = m[0]->msg_style;
	int prompt = style == PAM_PROMPT_ECHO_OFF || style == PAM_PROMPT_ECHO_ON;

	(void)data;
	say("  conv n=%d %-15s '%s'", n, styles[style], m[0]->msg);
	if (refuse_all || (prompt && (refuse || next_answer == n_answers))) {
		say(" -> PAM_CONV_ERR\n");
		return PAM_CONV_ERR;
	}
	*r = calloc(n, sizeof **r);
	if (prompt) {
		char *a = answers[next_answer++];

		if (strcmp(m[0]->msg, "slow") == 0)
			usleep(300000);
		say(" -> '%s'", a);
		if (strcmp(a, "NOTHING") == 0) {
			free(*r);
			*r = NULL;
			say("\n");
			return PAM_SUCCESS;
		}
		if (strcmp(a, "NULL") != 0)
			(*r)[0].resp = strdup(a);
	}
	say("\n");
	return PAM_SUCCESS;
}

static void on_child(int s)
{
	(void)s;
	children++;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static int phase(pam_handle_t *h, const char *op)
{
	if (strcmp(op, "auth") == 0)
		return pam_authenticate(h, 0);
	if (strcmp(op, "acct") == 0)
		return pam_acct_mgmt(h, 0);
	if (strcmp(op, "setcred") == 0)
		return pam_setcred(h, PAM_ESTABLISH_CRED);
	if (strcmp(op, "open") == 0)
		return pam_open_session(h, 0);
	if (strcmp(op, "close") == 0)
		return pam_close_session(h, 0);
	if (strcmp(op, "chau") == 0)
		return pam_chauthtok(h, 0);
	return -1;
}

static void report(pam_handle_t *h, const char *op)
{
	const void *user = NULL;
	int rc = phase(h, op);

	pam_get_item(h, PAM_USER, &user);
	say("%s = PAM_%s PAM_USER='%s'\n", op, code(rc), user ? (const char *)user : "");
}

/* How many threads there are. */
static int tasks(void)
{
	DIR *d = opendir("/proc/self/task");
	int n = -2; /* . and .. */

	while (d != NULL && readdir(d) != NULL)
		n++;
	if (d != NULL)
		closedir(d);
	return n;
}

/* What is open at 3 and above, FIFOs by that name, and whether exec keeps it. */
static void fds(void)
{
	for (int fd = 3; fd < 256; fd++) {
		struct stat st;
		int flags = fcntl(fd, F_GETFD);

		if (flags < 0 || fd == out)
			continue;
		fstat(fd, &st);
		say("fd %s%s\n", S_ISFIFO(st.st_mode) ? "fifo" : "other", flags & FD_CLOEXEC ? " cloexec" : "");
	}
	if (tasks() > 1)
		say("threads %d\n", tasks());
	say("fds end\n");
}

struct job {
	const char *confdir, *service, *user;
};

static void *thread(void *arg)
{
	struct job *j = arg;
	struct pam_conv c = { conv, NULL };
	pam_handle_t *h;

	for (int i = 0; i < 20; i++) {
		int rc;

		if (pam_start_confdir(j->service, j->user, &c, j->confdir, &h) != PAM_SUCCESS)
			_exit(98);
		rc = pam_authenticate(h, 0);
		if (rc != PAM_SUCCESS)
			say("thread: %s\n", code(rc));
		pam_end(h, rc);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct { const char *name; int item; } items[] = {
		{ "tty", PAM_TTY }, { "xdisplay", PAM_XDISPLAY }, { "rhost", PAM_RHOST }, { "ruser", PAM_RUSER }, { "authtok", PAM_AUTHTOK },
	};
	struct pam_conv c = { conv, NULL };
	char *set[16], *env[16];
	int n_set = 0, n_env = 0, o, rc;
	pam_handle_t *h;

	close_range(3, ~0U, 0); /* what a test runner left open */
	while ((o = getopt(argc, argv, "+a:i:e:rRn")) != -1) {
		switch (o) {
		case 'a': answers[n_answers++] = optarg; break;
		case 'i': set[n_set++] = optarg; break;
		case 'e': env[n_env++] = optarg; break;
		case 'r': refuse = 1; break;
		case 'R': refuse_all = 1; break;
		case 'n': no_function = 1; break;
		default: return 97;
		}
	}
	argv += optind;
	argc -= optind;
	if (argc < 3)
		return 97;
	if (no_function)
		c.conv = NULL;
	rc = pam_start_confdir(argv[1], strcmp(argv[2], "-") ? argv[2] : NULL, &c, argv[0], &h);
	if (rc != PAM_SUCCESS) {
		say("pam_start: %s\n", code(rc));
		return 1;
	}
	for (int i = 0; i < n_set; i++) {
		char *value = strchr(set[i], '=');

		*value++ = 0;
		for (size_t k = 0; k < sizeof items / sizeof *items; k++)
			if (strcmp(items[k].name, set[i]) == 0)
				pam_set_item(h, items[k].item, value);
	}
	for (int i = 0; i < n_env; i++)
		pam_putenv(h, env[i]);
	for (int i = 3; i < argc; i++) {
		const char *op = argv[i];

		if (strncmp(op, "user=", 5) == 0) {
			pam_set_item(h, PAM_USER, op + 5);
		} else if (strncmp(op, "service=", 8) == 0) {
			pam_end(h, 0);
			if (pam_start_confdir(op + 8, argv[2], &c, argv[0], &h) != PAM_SUCCESS)
				return 95;
		} else if (strcmp(op, "clock") == 0) {
			struct timespec now;

			clock_gettime(CLOCK_MONOTONIC, &now);
			say("clock %lld us\n", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
		} else if (strcmp(op, "fds") == 0) {
			fds();
		} else if (strcmp(op, "env") == 0) {
			char **e = pam_getenvlist(h);

			for (int k = 0; e[k]; k++)
				say("env %s\n", e[k]);
			say("env end\n");
		} else if (strcmp(op, "sigchld-handler") == 0) {
			signal(SIGCHLD, on_child);
		} else if (strcmp(op, "sigchld-ignore") == 0) {
			signal(SIGCHLD, SIG_IGN);
		} else if (strcmp(op, "sigchld-block") == 0) {
			sigset_t s;

			sigemptyset(&s);
			sigaddset(&s, SIGCHLD);
			sigprocmask(SIG_BLOCK, &s, NULL);
		} else if (strcmp(op, "children") == 0) {
			sigset_t s;

			sigpending(&s);
			say("children: handler %d, pending %d, left %d\n", (int)children, sigismember(&s, SIGCHLD),
			    waitpid(-1, NULL, WNOHANG | __WALL) >= 0);
		} else if (strcmp(op, "close012") == 0) {
			out = fcntl(1, F_DUPFD_CLOEXEC, 50);
			close(0);
			close(1);
			close(2);
		} else if (strcmp(op, "small") == 0) {
			struct rlimit r = { 256 << 20, 256 << 20 };

			setrlimit(RLIMIT_AS, &r);
		} else if (strcmp(op, "noproc") == 0) {
			struct rlimit r = { 0, 0 };

			setrlimit(RLIMIT_NPROC, &r);
			if (setuid(65534) < 0)
				return 96;
		} else if (strncmp(op, "ruid=", 5) == 0) {
			if (setresgid(atoi(op + 5), -1, -1) < 0 || setresuid(atoi(op + 5), -1, -1) < 0)
				return 96;
		} else if (strncmp(op, "setuid=", 7) == 0) {
			if (setresuid(-1, atoi(op + 7), -1) < 0)
				return 96;
		} else if (strncmp(op, "fork:", 5) == 0) {
			pid_t pid = fork();
			int st;

			if (pid == 0) {
				if (strcmp(op + 5, "end") == 0) {
					/* A child that closed all and means
					 * others by their numbers. */
					for (int fd = 3; fd < 256; fd++)
						if (fd != out)
							close(fd);
					for (int k = 0; k < 8; k++)
						(void)!open("/dev/null", O_RDONLY);
					pam_end(h, PAM_DATA_SILENT);
					fds();
					_exit(0);
				}
				report(h, op + 5);
				_exit(0);
			}
			waitpid(pid, &st, 0);
		} else if (strncmp(op, "threads", 7) == 0) {
			struct job j = { argv[0], argv[1], argv[2] };
			pthread_t t[2];

			for (int k = 0; k < 2; k++)
				pthread_create(&t[k], NULL, thread, &j);
			for (int k = 0; k < 2; k++)
				pthread_join(t[k], NULL);
			say("threads end\n");
		} else if (strncmp(op, "dlopen=", 7) == 0) {
			/* dlopen=N:MODULE, as programs with many handles do */
			const char *module = strchr(op, ':') + 1;
			int left = 0;

			for (int k = atoi(op + 7); k > 0; k--) {
				void *m = dlopen(module, RTLD_NOW);

				if (m == NULL || dlsym(m, "pam_sm_authenticate") == NULL || dlclose(m) != 0)
					return 94;
			}
			if (dlopen(module, RTLD_NOW | RTLD_NOLOAD) != NULL)
				left = 1;
			say("dlopen: left %d\n", left);
		} else if (strncmp(op, "loop=", 5) == 0) {
			for (int k = atoi(op + 5); k > 0; k--) {
				pam_end(h, 0);
				if (pam_start_confdir(argv[1], argv[2], &c, argv[0], &h) != PAM_SUCCESS)
					return 95;
				if (k % 20 == 0 && (rc = pam_authenticate(h, 0)) != PAM_SUCCESS)
					say("loop: %s\n", code(rc));
			}
		} else {
			report(h, op);
		}
	}
	return pam_end(h, 0);
}
