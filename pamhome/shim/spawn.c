/*
 * Starting the helper from inside a process that belongs to somebody else.
 *
 * Two raw clones: the first with exit signal 0, so that the host's SIGCHLD
 * handler, mask or SIG_IGN never see it and only __WALL reaps it; the second
 * makes the helper an orphan at once, because exec turns exit signal 0 back
 * into SIGCHLD. Raw, because glibc's fork runs the host's atfork handlers,
 * and not clone3, which sandboxes answer with ENOSYS. In the children only
 * system calls are made.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* Moves a descriptor to 3 or above: hosts close 0 to 2 and mean others there. */
int lift(int fd)
{
	int up;

	if (fd < 0 || fd > 2)
		return fd;
	up = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return up;
}

static long raw_clone(long flags)
{
#if defined(__s390__) || defined(__CRIS__)
	return syscall(SYS_clone, 0L, flags, 0L, 0L, 0L);
#else
	return syscall(SYS_clone, flags, 0L, 0L, 0L, 0L);
#endif
}

/* glibc's own calls change the ids of all threads that it believes in, which
 * in this copy of the process do not exist. 32-bit systems have two of each. */
#ifdef SYS_setresuid32
#define RAW_SETRESGID SYS_setresgid32
#define RAW_SETRESUID SYS_setresuid32
#else
#define RAW_SETRESGID SYS_setresgid
#define RAW_SETRESUID SYS_setresuid
#endif

static void limit(int what, rlim_t value)
{
	struct rlimit r = { value, value };

	if (setrlimit(what, &r) == 0)
		return;
	/* Without the power to raise the hard limit, up to that. */
	if (getrlimit(what, &r) == 0) {
		r.rlim_cur = r.rlim_max;
		setrlimit(what, &r);
	}
}

static _Noreturn void become_helper(int sock)
{
	static const int limits[] = { RLIMIT_AS, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_CPU };
	char *const argv[] = { (char *)"pamhome", NULL };
	char *const envp[] = { NULL };
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	sigset_t none;
	int null;

	/* ruid and euid must agree, or the helper runs in secure mode. */
	if (geteuid() == 0) {
		if (syscall(RAW_SETRESGID, 0, 0, 0) < 0 || syscall(RAW_SETRESUID, 0, 0, 0) < 0)
			_exit(126);
		for (size_t i = 0; i < COUNT(limits); i++)
			limit(limits[i], RLIM_INFINITY);
	} else if (getegid() != getgid() && syscall(RAW_SETRESGID, getgid(), getgid(), getgid()) < 0) {
		_exit(126);
	}
	limit(RLIMIT_CORE, 0);
	setsid();
	for (int s = 1; s < NSIG; s++)
		sigaction(s, &dfl, NULL);
	sigemptyset(&none);
	umask(077);
	if (chdir("/") < 0)
		_exit(126);
	if (sock == 3) {
		if (fcntl(3, F_SETFD, 0) < 0)
			_exit(126);
	} else if (dup2(sock, 3) < 0) {
		_exit(126);
	}
	null = open("/dev/null", O_RDWR | O_NOCTTY);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		_exit(126);
	if (syscall(SYS_close_range, 4U, ~0U, 0U) < 0)
		for (int fd = 4; fd < 65536; fd++)
			close(fd);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(HELPER, argv, envp);
	_exit(127);
}

/* Starts the helper with sock as its descriptor 3. True says only that a
 * process was made; a failing exec shows as end of file on the socket. */
bool start_helper(int sock)
{
	pid_t pid;
	int status;

	/* A set-user-ID program of an ordinary user: no rights to lend. */
	if (geteuid() != 0 && getuid() != geteuid())
		return false;
	pid = (pid_t)raw_clone(0);
	if (pid < 0)
		return false;
	if (pid == 0) {
		sigset_t all;
		long child;

		/* The host's handlers must not run in a copy of it. */
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		child = raw_clone(SIGCHLD);
		if (child == 0)
			become_helper(sock);
		_exit(child < 0 ? 1 : 0);
	}
	for (;;) {
		if (waitpid(pid, &status, __WALL) == pid)
			return WIFEXITED(status) && WEXITSTATUS(status) == 0;
		/* Somebody else's waitpid(-1, __WALL) took it: the socket tells. */
		if (errno != EINTR)
			return true;
	}
}
