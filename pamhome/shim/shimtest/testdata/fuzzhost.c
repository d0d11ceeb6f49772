/*
 * A login program whose module gets its helper's packets from standard input:
 *
 *   input   u32 length, then that many bytes: u8 phase, u8 conversation, packets
 *   packet  u8 descriptors, with 0x80 for a header that is made to fit,
 *           u16 length, bytes
 *
 * The module is built without spawn.c; what it would start is start_helper
 * here. For each input one byte is printed. What must never happen aborts.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <security/pam_appl.h>

#define EXPORT __attribute__((visibility("default"), used))

static uint8_t *input;
static uint32_t input_n;
static int helper_end = -1;

/* What the module would do to this process; see the build's -D. */
EXPORT long fuzz_syscall(long n, ...) { (void)n; return 0; }
EXPORT int fuzz_prctl(int what, ...) { return what % 2; }
EXPORT int fuzz_nice(int by) { (void)by; return 0; }

EXPORT int lift(int fd)
{
	int up;

	if (fd < 0 || fd > 2)
		return fd;
	up = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return up;
}

static int memfd(bool sealed)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (write(fd, "{}", 2) != 2)
		abort();
	if (sealed)
		fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	return fd;
}

static int fifo(void)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		abort();
	close(p[0]);
	return p[1];
}

/* Everything the helper will ever say is there before the first answer. */
EXPORT bool start_helper(int sock)
{
	uint8_t *p = input + 2, *end = input + input_n;

	helper_end = fcntl(sock, F_DUPFD_CLOEXEC, 3);
	while (end - p >= 3) {
		unsigned with = p[0], n = p[1] | p[2] << 8;
		union {
			struct cmsghdr align;
			char room[CMSG_SPACE(6 * sizeof(int))];
		} control;
		struct iovec io;
		struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
		int fds[6], n_fds = 0;

		p += 3;
		if (n > (size_t)(end - p))
			n = (unsigned)(end - p);
		io = (struct iovec){ p, n };
		if ((with & 0x80) && n >= 8) {
			uint8_t head[6] = { 0, 0, (uint8_t)(n - 8), (uint8_t)((n - 8) >> 8), 0, 0 };

			memcpy(p + 2, head, sizeof head);
		}
		switch ((with & 0x7f) % 7) {
		case 1: fds[n_fds++] = fifo(); break;
		case 2: fds[n_fds++] = memfd(true); break;
		case 3: fds[n_fds++] = memfd(false); break;
		case 4: fds[n_fds++] = fifo(); fds[n_fds++] = fifo(); break;
		case 6: fds[n_fds++] = open("/dev/null", O_RDWR | O_CLOEXEC); break;
		case 5: while (n_fds < 6) fds[n_fds++] = memfd(true); break;
		}
		if (n_fds > 0) {
			struct cmsghdr *h;

			memset(&control, 0, sizeof control);
			m.msg_control = control.room;
			m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
			h = CMSG_FIRSTHDR(&m);
			h->cmsg_level = SOL_SOCKET;
			h->cmsg_type = SCM_RIGHTS;
			h->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
			memcpy(CMSG_DATA(h), fds, n_fds * sizeof(int));
		}
		if (n > 0) /* an empty packet is an end of file */
			(void)!sendmsg(helper_end, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		for (int i = 0; i < n_fds; i++)
			close(fds[i]);
		p += n;
	}
	shutdown(helper_end, SHUT_WR);
	return true;
}

static int conv(int n, const struct pam_message **m, struct pam_response **r, void *data)
{
	unsigned how = input[1];

	(void)m;
	(void)data;
	if (how & 1)
		return how % 32;
	*r = how & 2 ? NULL : calloc(n, sizeof **r);
	if (*r != NULL && !(how & 4)) {
		(*r)->resp = calloc(1, how & 8 ? 40000 : 12);
		memset((*r)->resp, 'x', how & 8 ? 39999 : 11);
	}
	return PAM_SUCCESS;
}

static int count(bool fifos)
{
	int n = 0;

	for (int fd = 3; fd < 64; fd++) {
		struct stat st;

		if (fd != helper_end && fstat(fd, &st) == 0 && (!fifos || S_ISFIFO(st.st_mode)))
			n++;
	}
	return n;
}

static bool read_all(void *p, size_t n)
{
	return fread(p, 1, n, stdin) == n;
}

int main(int argc, char **argv)
{
	struct pam_conv c = { conv, NULL };
	int open_before = -1;

	if (argc != 2)
		return 97;
	while (read_all(&input_n, sizeof input_n)) {
		pam_handle_t *h;
		int rc, before;

		if (input_n < 2)
			return 96;
		input = malloc(input_n);
		if (!read_all(input, input_n))
			return 95;
		before = count(false);
		if (open_before < 0)
			open_before = before;
		if (pam_start_confdir("svc", "ann", &c, argv[1], &h) != PAM_SUCCESS)
			return 94;
		switch (input[0] % 5) {
		case 0: rc = pam_authenticate(h, 0); break;
		case 1: rc = pam_acct_mgmt(h, 0); break;
		case 2: rc = pam_open_session(h, 0); break;
		case 3: rc = pam_close_session(h, 0); break;
		default: rc = pam_chauthtok(h, 0);
		}
		if ((input[0] % 5 == 0 && rc == PAM_SUCCESS) || (input[0] % 5 == 1 && (rc == PAM_SUCCESS || rc == PAM_NEW_AUTHTOK_REQD)))
			if (count(true) == 0) {
				fprintf(stderr, "phase %d succeeds without a reference\n", input[0] % 5);
				abort();
			}
		pam_end(h, rc);
		if (helper_end >= 0)
			close(helper_end);
		helper_end = -1;
		if (count(false) > (before > open_before ? before : open_before) + 1) { /* syslog keeps one */
			fprintf(stderr, "descriptors stay open: %d, before %d\n", count(false), before);
			abort();
		}
		free(input);
		putchar(rc);
		fflush(stdout);
	}
	return 0;
}
