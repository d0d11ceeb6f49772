/*
 * The capability sets of a session, which only its own thread can change. The
 * values are the helper's; each step is tried although the one before failed.
 */
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

/* All 64 bits of a set are in two words of capget(2), version 3. */
typedef struct __user_cap_data_struct sets[2];

static bool caps(long call, sets d)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };

	return syscall(call, &h, d) == 0;
}

/* Whether the bounding set has it; less than 0 beyond the last of this kernel. */
static int bounded(unsigned n)
{
	return n < 64 ? prctl(PR_CAPBSET_READ, n, 0, 0, 0) : -1;
}

bool apply_ambient(uint64_t set)
{
	sets d;
	bool ok;

	if (!caps(SYS_capget, d))
		return false;
	d[0].inheritable = (uint32_t)set;
	d[1].inheritable = (uint32_t)(set >> 32);
	ok = caps(SYS_capset, d);
	for (unsigned n = 0; bounded(n) >= 0; n++)
		ok = prctl(PR_CAP_AMBIENT, (set >> n) & 1 ? PR_CAP_AMBIENT_RAISE : PR_CAP_AMBIENT_LOWER, n, 0, 0) == 0 && ok;
	return ok;
}

bool apply_bounding(uint64_t set)
{
	sets before, d;
	bool ok;

	if (!caps(SYS_capget, before))
		return false;
	d[0] = before[0];
	d[1] = before[1];
	d[0].effective |= d[0].permitted & (1u << CAP_SETPCAP);
	ok = caps(SYS_capset, d);
	for (unsigned n = 0; bounded(n) >= 0; n++)
		if (!((set >> n) & 1) && bounded(n) == 1)
			ok = prctl(PR_CAPBSET_DROP, n, 0, 0, 0) == 0 && ok;
	before[0].inheritable &= (uint32_t)set;
	before[1].inheritable &= (uint32_t)(set >> 32);
	return caps(SYS_capset, before) && ok;
}
