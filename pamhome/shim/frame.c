/*
 * The wire to the helper: one frame per SEQPACKET packet.
 *
 *   header  u16 type, u16 flags (0), u32 length of what follows
 *   field   u8 tag, u32 length, bytes; repeated to the packet's end
 *
 * All integers are little endian. Unknown tags are skipped; everything else
 * that does not fit the table is a breach, which ends the call.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define SESSION (BIT(AUTH) | BIT(ACCOUNT) | BIT(OPEN))
#define MAX_FRAMES 1000u
#define MAX_LOGS 256u
#define MAX_FDS 4

/* Kinds of field: the size of a number, or a text. */
enum { NONE = 0, U8 = 1, U32 = 4, U64 = 8, STRING = 16, MAY = 32 };
enum passing { NO_FD, MAY_FD, MUST_FD };

/* What the helper may send: in which phases, and each field by its tag, with
 * the least and greatest number or length. */
static const struct shape {
	uint8_t type, phases, fd;
	struct { uint8_t kind; uint64_t min, max; } field[FIELDS];
} shapes[] = {
	{ F_CONV, ALL, NO_FD, { { U8, 1, 4 }, { STRING, 1, 4096 } } },
	{ F_GET_TOKEN, BIT(CHAUTHTOK), NO_FD, { { U8, 1, 1 }, { U8, 0, 1 }, { STRING | MAY, 1, 4096 } } },
	{ F_SET_TOKEN, BIT(AUTH), NO_FD, { { U8, 1, 1 }, { STRING, 1, FRAME_MAX } } },
	{ F_SET_USER, ALL & ~BIT(CLOSE), NO_FD, { { STRING, 1, USER_BYTES } } },
	{ F_PUTENV, SESSION, NO_FD, { { STRING, 1, FRAME_MAX } } },
	{ F_LOAD, ALL, NO_FD, { { STRING, 1, KEY_ROOM - 1 } } },
	{ F_STORE, ALL & ~BIT(CLOSE), MAY_FD, { { STRING, 1, KEY_ROOM - 1 }, { U8, KIND_TEXT, KIND_MARK }, { STRING | MAY, 0, FRAME_MAX } } },
	{ F_STORE_FD, SESSION, MUST_FD, { { STRING, 1, KEY_ROOM - 1 } } },
	{ F_DROP, ALL, NO_FD, { { STRING, 1, KEY_ROOM - 1 } } },
	{ F_APPLY, BIT(OPEN), NO_FD, { { U32 | MAY, 0, 0777 }, { U32 | MAY, 0, UINT32_MAX }, { NONE, 0, 0 },
				       { U64 | MAY, 0, UINT64_MAX }, { U64 | MAY, 0, UINT64_MAX } } },
	{ F_LOOKUP, BIT(OPEN), NO_FD, { { STRING, 1, USER_BYTES } } },
	{ F_LOG, ALL, NO_FD, { { U8, 0, 7 }, { STRING, 0, 2048 } } },
	{ F_RESULT, ALL, NO_FD, { { U32, 0, 29 } } },
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

static uint64_t from_le(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	while (size-- > 0)
		v = v << 8 | p[size];
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
		int64_t end = c->silent_at < c->over_at ? c->silent_at : c->over_at;
		int64_t left = end - now_ms();
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

/* What a failed system call on the socket means: FINE, try again. */
static enum why again(struct channel *c, short events)
{
	if (errno == EINTR)
		return FINE;
	return errno == EAGAIN || errno == EWOULDBLOCK ? wait_for(c, events) : DIED;
}

/* Sends the frame under construction and wipes it: most carry a secret. */
enum why channel_send(struct channel *c, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec io = { .iov_base = c->out, .iov_len = c->out_n };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
	enum why w = c->out_full ? BREACH : FINE;

	le(c->out + 4, 4, c->out_n - FRAME_HEADER);
	if (fd >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof fd);
	}
	c->silent_at = now_ms() + SILENCE_MS;
	while (w == FINE && sendmsg(c->sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		w = again(c, POLLOUT);
	explicit_bzero(c->out, c->out_n);
	c->out_n = 0;
	return w;
}

/* Takes the descriptors of a packet: returns how many there were and leaves
 * the first, moved to 3 or above; all others are closed. */
static int take_fds(struct msghdr *m, int *first)
{
	int n = 0, fd;

	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h != NULL; h = CMSG_NXTHDR(m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + CMSG_LEN(sizeof fd) <= h->cmsg_len; at += sizeof fd) {
			memcpy(&fd, CMSG_DATA(h) + at, sizeof fd);
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
	size_t n;

	if (c->in_n < FRAME_HEADER || from_le(p + 2, 2) != 0 || from_le(p + 4, 4) != c->in_n - FRAME_HEADER)
		return false;
	f->type = (unsigned)from_le(p, 2);
	for (size_t i = 0; i < COUNT(shapes); i++)
		if (shapes[i].type == f->type)
			s = &shapes[i];
	if (s == NULL || !(s->phases & BIT(c->phase)))
		return false;
	if (fds > 1 || (fds == 1 && (s->fd == NO_FD || f->fd < 0)) || (fds == 0 && s->fd == MUST_FD))
		return false;
	for (p += FRAME_HEADER; p < end; p += n) {
		unsigned tag = p[0], kind;
		struct value *v;

		if (end - p < 5 || (n = from_le(p + 1, 4)) > (size_t)(end - p) - 5)
			return false;
		p += 5;
		if (tag < 1 || tag > FIELDS || (kind = s->field[tag - 1].kind & ~MAY) == NONE)
			continue;
		v = &f->field[tag];
		if (v->set || (kind == STRING ? memchr(p, 0, n) != NULL : n != kind))
			return false;
		*v = kind == STRING ? (struct value){ (char *)p, n, true } : (struct value){ NULL, from_le(p, kind), true };
		if (v->n < s->field[tag - 1].min || v->n > s->field[tag - 1].max)
			return false;
	}
	for (unsigned tag = 1; tag <= FIELDS; tag++) {
		struct value *v = &f->field[tag];

		if (!v->set && s->field[tag - 1].kind != NONE && !(s->field[tag - 1].kind & MAY))
			return false;
		/* All fields are parsed: what follows this one is no longer needed. */
		if (v->text != NULL)
			v->text[v->n] = 0;
	}
	return true;
}

/* Receives the next frame. Without wait it returns NOTHING if none is there.
 * On FINE the caller ends with channel_done. */
enum why channel_receive(struct channel *c, struct frame *f, bool wait)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_FDS * sizeof(int))];
	struct iovec io = { .iov_base = c->in, .iov_len = FRAME_MAX };
	struct msghdr m = { 0 };
	ssize_t n = -1;

	while (n < 0) {
		enum why w = FINE;

		m = (struct msghdr){ .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
		n = recvmsg(c->sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && !wait && (errno == EAGAIN || errno == EWOULDBLOCK))
			return NOTHING;
		if (n < 0 && (w = again(c, POLLIN)) != FINE)
			return w;
	}
	*f = (struct frame){ .fd = -1 };
	c->in_n = (size_t)n;
	c->silent_at = now_ms() + SILENCE_MS;
	n = take_fds(&m, &f->fd);
	if (c->in_n > 0 && !(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && parse(c, f, (int)n) && ++c->frames <= MAX_FRAMES &&
	    (f->type != F_LOG || ++c->logs <= MAX_LOGS))
		return FINE;
	n = (ssize_t)c->in_n;
	channel_done(c, f);
	return n == 0 ? DIED : BREACH; /* 0: end of file */
}

void channel_done(struct channel *c, struct frame *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	explicit_bzero(c->in, c->in_n);
	c->in_n = 0;
}
