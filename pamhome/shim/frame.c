/*
 * The wire to the helper: one frame per SEQPACKET packet.
 *
 *   header  u16 type, u16 flags (0), u32 length of what follows
 *   field   u8 tag, u32 length, bytes; repeated to the packet's end
 *
 * All integers are little endian. Unknown tags are skipped; everything else
 * that does not fit is a breach, which ends the call.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define BIT(n) (1u << (n))
#define ALL (BIT(AUTH) | BIT(ACCOUNT) | BIT(OPEN) | BIT(CLOSE) | BIT(CHAUTHTOK))
#define MAX_FRAMES 1000u
#define MAX_LOGS 256u
#define MAX_FDS 4

enum passing { NO_FD, MAY_FD, MUST_FD };

/* What the helper may send: in which phase, with which fields. */
static const struct shape {
	uint8_t type, phases, need, may, fd, many;
} shapes[] = {
	{ F_CONV, ALL, BIT(1) | BIT(2), 0, NO_FD, 0 },
	{ F_GET_TOKEN, BIT(CHAUTHTOK), BIT(1) | BIT(2), BIT(3), NO_FD, 0 },
	{ F_SET_TOKEN, BIT(AUTH), BIT(1) | BIT(2), 0, NO_FD, 0 },
	{ F_SET_USER, ALL & ~BIT(CLOSE), BIT(1), 0, NO_FD, 0 },
	{ F_PUTENV, BIT(AUTH) | BIT(ACCOUNT) | BIT(OPEN), BIT(1), 0, NO_FD, 0 },
	{ F_LOAD, ALL, BIT(1), 0, NO_FD, 0 },
	{ F_STORE, ALL & ~BIT(CLOSE), BIT(1) | BIT(2), BIT(3), MAY_FD, 0 },
	{ F_STORE_FD, BIT(AUTH) | BIT(ACCOUNT) | BIT(OPEN), BIT(1), 0, MUST_FD, 0 },
	{ F_DROP, ALL, BIT(1), 0, NO_FD, 0 },
	{ F_APPLY, BIT(OPEN), 0, BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5), NO_FD, BIT(3) },
	{ F_TTY_WRITE, BIT(OPEN) | BIT(CLOSE), BIT(1), 0, NO_FD, 0 },
	{ F_LOOKUP, BIT(OPEN), BIT(1), 0, NO_FD, 0 },
	{ F_LOG, ALL, BIT(1) | BIT(2), 0, NO_FD, 0 },
	{ F_RESULT, ALL, BIT(1), 0, NO_FD, 0 },
};

int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void le(uint8_t *p, unsigned size, uint64_t v)
{
	for (; size > 0; size--, v >>= 8)
		*p++ = (uint8_t)v;
}

uint64_t from_le(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

void channel_begin(struct channel *c, unsigned type)
{
	le(c->out, 2, type);
	le(c->out + 2, 2, 0);
	c->out_n = FRAME_HEADER;
	c->out_full = false;
}

void put(struct channel *c, unsigned tag, const void *p, size_t n)
{
	if (c->out_full || n > FRAME_MAX || c->out_n + 5 + n > FRAME_MAX) {
		c->out_full = true;
		return;
	}
	c->out[c->out_n] = (uint8_t)tag;
	le(c->out + c->out_n + 1, 4, n);
	if (n > 0)
		memcpy(c->out + c->out_n + 5, p, n);
	c->out_n += 5 + n;
}

void put_text(struct channel *c, unsigned tag, const char *s)
{
	if (s != NULL)
		put(c, tag, s, strlen(s));
}

void put_int(struct channel *c, unsigned tag, unsigned size, uint64_t v)
{
	uint8_t b[8];

	le(b, size, v);
	put(c, tag, b, size);
}

/* A signal of the host only restarts the wait. */
static enum why wait_for(struct channel *c, short events)
{
	for (;;) {
		int64_t now = now_ms();
		int64_t left = (c->silent_at < c->over_at ? c->silent_at : c->over_at) - now;
		struct pollfd p = { .fd = c->sock, .events = events };
		int r;

		if (left <= 0)
			return SILENT;
		r = poll(&p, 1, (int)(left > 60000 ? 60000 : left));
		if (r > 0)
			return FINE;
		if (r < 0 && errno != EINTR)
			return DIED;
	}
}

/* Sends the frame under construction and wipes it: most carry a secret. */
enum why channel_send(struct channel *c, int fd)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec io = { .iov_base = c->out, .iov_len = c->out_n };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
	enum why w = BREACH;

	if (c->out_full)
		goto wipe;
	le(c->out + 4, 4, c->out_n - FRAME_HEADER);
	if (fd >= 0) {
		struct cmsghdr *h;

		memset(&control, 0, sizeof control);
		m.msg_control = control.room;
		m.msg_controllen = sizeof control.room;
		h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &fd, sizeof(int));
	}
	c->silent_at = now_ms() + SILENCE_MS;
	for (;;) {
		if (sendmsg(c->sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
			w = FINE;
			break;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK) {
			w = DIED;
			break;
		}
		w = wait_for(c, POLLOUT);
		if (w != FINE)
			break;
	}
wipe:
	explicit_bzero(c->out, c->out_n);
	c->out_n = 0;
	return w;
}

/* Takes the descriptors of a packet: returns how many there were and leaves
 * the first, moved to 3 or above; all others are closed. */
static int take_fds(struct msghdr *m, int *first)
{
	int n = 0;

	*first = -1;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h != NULL; h = CMSG_NXTHDR(m, h)) {
		size_t count;

		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof fd);
			if (n++ == 0)
				*first = lift(fd);
			else
				close(fd);
		}
	}
	return n;
}

static bool parse(struct channel *c, struct frame *f, int fds)
{
	uint8_t *p = c->in, *end = c->in + c->in_n;
	const struct shape *s = NULL;

	if (c->in_n < FRAME_HEADER || from_le(p + 2, 2) != 0 || from_le(p + 4, 4) != c->in_n - FRAME_HEADER)
		return false;
	f->type = (unsigned)from_le(p, 2);
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		if (shapes[i].type == f->type)
			s = &shapes[i];
	if (s == NULL || !(s->phases & BIT(c->phase)))
		return false;
	if (fds > 1 || (fds == 1 && (s->fd == NO_FD || f->fd < 0)) || (fds == 0 && s->fd == MUST_FD))
		return false;
	for (p += FRAME_HEADER; p < end;) {
		unsigned tag;
		uint32_t n;

		if (end - p < 5)
			return false;
		tag = p[0];
		n = (uint32_t)from_le(p + 1, 4);
		p += 5;
		if (n > (size_t)(end - p))
			return false;
		if (tag < FIELDS && ((s->need | s->may) & BIT(tag))) {
			if (f->field[tag].set && !(s->many & BIT(tag)))
				return false;
			f->field[tag].p = p;
			f->field[tag].n = n;
			f->field[tag].set = true;
		}
		p += n;
	}
	for (unsigned tag = 1; tag < FIELDS; tag++)
		if ((s->need & BIT(tag)) && !f->field[tag].set)
			return false;
	return true;
}

/* Receives the next frame. Without wait it returns NOTHING if none is there.
 * On FINE the caller ends with channel_done. */
enum why channel_receive(struct channel *c, struct frame *f, bool wait)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control;
	struct iovec io = { .iov_base = c->in, .iov_len = FRAME_MAX };
	ssize_t n;
	int fds;

	for (;;) {
		struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1,
				    .msg_control = control.room, .msg_controllen = sizeof control.room };
		enum why w;

		memset(f, 0, sizeof *f);
		f->fd = -1;
		n = recvmsg(c->sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n > 0) {
			c->in_n = (size_t)n;
			c->silent_at = now_ms() + SILENCE_MS;
			fds = take_fds(&m, &f->fd);
			if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || !parse(c, f, fds) ||
			    ++c->frames > MAX_FRAMES || (f->type == F_LOG && ++c->logs > MAX_LOGS)) {
				channel_done(c, f);
				return BREACH;
			}
			return FINE;
		}
		if (n == 0)
			return DIED;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return DIED;
		if (!wait)
			return NOTHING;
		w = wait_for(c, POLLIN);
		if (w != FINE)
			return w;
	}
}

void channel_done(struct channel *c, struct frame *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	explicit_bzero(c->in, c->in_n);
	c->in_n = 0;
}

bool get_int(const struct frame *f, unsigned tag, unsigned size, uint32_t *v)
{
	if (f->field[tag].n == size)
		*v = (uint32_t)from_le(f->field[tag].p, size);
	return f->field[tag].n == size;
}

bool get_u64(const struct frame *f, unsigned tag, uint64_t *v)
{
	if (f->field[tag].n == 8)
		*v = from_le(f->field[tag].p, 8);
	return f->field[tag].n == 8;
}

const uint8_t *next_field(const struct channel *c, unsigned tag, const uint8_t *before)
{
	const uint8_t *end = c->in + c->in_n;
	const uint8_t *p = before == NULL ? c->in + FRAME_HEADER : before + from_le(before - 4, 4);

	for (; p < end; p += 5 + from_le(p + 1, 4))
		if (p[0] == tag)
			return p + 5;
	return NULL;
}

const char *get_text(const struct frame *f, unsigned tag, size_t min, size_t max)
{
	size_t n = f->field[tag].n;

	if (!f->field[tag].set || n < min || n > max || memchr(f->field[tag].p, 0, n) != NULL)
		return NULL;
	/* All fields are parsed: what follows this one is no longer needed. */
	f->field[tag].p[n] = 0;
	return (const char *)f->field[tag].p;
}
