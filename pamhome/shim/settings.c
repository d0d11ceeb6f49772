/*
 * What only the login process can change about itself: umask, nice level,
 * limits, capabilities, the mark on its terminal. The values are the helper's;
 * here each step is tried although the one before failed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

/* All 64 bits of a set are in two words of capget(2), version 3. */
static bool get_caps(struct __user_cap_data_struct d[2])
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };

	return syscall(SYS_capget, &h, d) == 0;
}

static bool set_caps(const struct __user_cap_data_struct d[2])
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };

	return syscall(SYS_capset, &h, d) == 0;
}

/* How many capabilities this kernel has. */
static unsigned last_cap(void)
{
	unsigned n = 0;

	while (n < 64 && prctl(PR_CAPBSET_READ, n, 0, 0, 0) >= 0)
		n++;
	return n;
}

static bool has(uint64_t set, unsigned n)
{
	return (set >> n) & 1;
}

static bool apply_ambient(uint64_t set)
{
	struct __user_cap_data_struct d[2];
	bool ok;

	if (!get_caps(d))
		return false;
	d[0].inheritable = (uint32_t)set;
	d[1].inheritable = (uint32_t)(set >> 32);
	ok = set_caps(d);
	for (unsigned n = last_cap(); n-- > 0;)
		ok = prctl(PR_CAP_AMBIENT, has(set, n) ? PR_CAP_AMBIENT_RAISE : PR_CAP_AMBIENT_LOWER, n, 0, 0) == 0 && ok;
	return ok;
}

static bool apply_bounding(uint64_t set)
{
	struct __user_cap_data_struct before[2], d[2];
	bool ok;

	if (!get_caps(before))
		return false;
	d[0] = before[0];
	d[1] = before[1];
	d[0].effective |= d[0].permitted & (1u << CAP_SETPCAP);
	ok = set_caps(d);
	for (unsigned n = last_cap(); n-- > 0;)
		if (!has(set, n) && prctl(PR_CAPBSET_READ, n, 0, 0, 0) == 1)
			ok = prctl(PR_CAPBSET_DROP, n, 0, 0, 0) == 0 && ok;
	before[0].inheritable &= (uint32_t)set;
	before[1].inheritable &= (uint32_t)(set >> 32);
	return set_caps(before) && ok;
}

/* Without the power to raise the hard limit, the nearest that it allows. */
static bool apply_limit(uint32_t number, uint64_t soft, uint64_t hard)
{
	struct { uint64_t soft, hard; } want = { soft, hard }, have;

	if (want.soft > want.hard)
		want.soft = want.hard;
	if (syscall(SYS_prlimit64, 0, number, &want, NULL) == 0)
		return true;
	if (errno != EPERM || syscall(SYS_prlimit64, 0, number, NULL, &have) < 0)
		return false;
	if (want.hard > have.hard)
		want.hard = have.hard;
	if (want.soft > want.hard)
		want.soft = want.hard;
	return syscall(SYS_prlimit64, 0, number, &want, NULL) == 0;
}

/* Carries out an APPLY; failed collects FAILED_ bits. false: breach. */
bool apply(const struct channel *c, const struct frame *f, uint32_t *failed)
{
	uint64_t ambient = 0, bounding = 0;
	uint32_t mask = 0, nice_by = 0;
	const uint8_t *p = NULL;

	*failed = 0;
	if ((f->field[1].set && (!get_int(f, 1, 4, &mask) || mask > 0777)) || (f->field[2].set && !get_int(f, 2, 4, &nice_by)) ||
	    (f->field[4].set && !get_u64(f, 4, &ambient)) || (f->field[5].set && !get_u64(f, 5, &bounding)))
		return false;
	while ((p = next_field(c, 3, p)) != NULL)
		if (from_le(p - 4, 4) != 20)
			return false;
	if (f->field[1].set)
		umask((mode_t)mask);
	errno = 0;
	if (f->field[2].set && nice((int)(int32_t)nice_by) == -1 && errno != 0)
		*failed |= FAILED_NICE;
	while ((p = next_field(c, 3, p)) != NULL)
		if (!apply_limit((uint32_t)from_le(p, 4), from_le(p + 4, 8), from_le(p + 12, 8)))
			*failed |= FAILED_LIMIT;
	if (f->field[4].set && !apply_ambient(ambient))
		*failed |= FAILED_AMBIENT;
	if (f->field[5].set && !apply_bounding(bounding))
		*failed |= FAILED_BOUNDING;
	return true;
}

/* What capability sets the calling thread has, for the helper. */
bool own_caps(uint64_t *bounding, uint64_t *inheritable, uint64_t *permitted)
{
	struct __user_cap_data_struct d[2];

	if (!get_caps(d))
		return false;
	*inheritable = d[0].inheritable | (uint64_t)d[1].inheritable << 32;
	*permitted = d[0].permitted | (uint64_t)d[1].permitted << 32;
	*bounding = 0;
	for (unsigned n = last_cap(); n-- > 0;)
		if (prctl(PR_CAPBSET_READ, n, 0, 0, 0) == 1)
			*bounding |= UINT64_C(1) << n;
	return true;
}

/* Nobody counts on the mark, so a terminal that takes no more loses it. */
static void put_mark(int fd, const uint8_t *p, size_t n)
{
	ssize_t w = write(fd, p, n);

	(void)w;
}

/* open_session: onto standard output, if that is a terminal, which is kept
 * for close_session, when login has closed its own. */
int tty_write(pam_handle_t *pamh, enum phase phase, const uint8_t *p, size_t n)
{
	int rc, fd;

	if (phase == OPEN) {
		if (!isatty(1))
			return PAM_SUCCESS;
		fd = lift(open("/proc/self/fd/1", O_PATH | O_CLOEXEC));
		if (fd < 0)
			return PAM_SUCCESS;
		rc = data_store_fd(pamh, TTY_FD, fd);
		if (rc == PAM_SUCCESS)
			put_mark(1, p, n);
		return rc;
	}
	fd = data_reopen(pamh, TTY_FD);
	if (fd >= 0) {
		put_mark(fd, p, n);
		close(fd);
	}
	return PAM_SUCCESS;
}
