/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: what clients can make lockd open never uses up the spare numbers. */
#include "fds.h"

#include <stdint.h>
#include <sys/resource.h>

static unsigned limit = 1024;

void fds_raise_limit(void)
{
        struct rlimit rl;

        if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
                return;
        if (rl.rlim_cur < rl.rlim_max) {
                rl.rlim_cur = rl.rlim_max;
                (void)setrlimit(RLIMIT_NOFILE, &rl);
                (void)getrlimit(RLIMIT_NOFILE, &rl);
        }
        limit = rl.rlim_cur > INT32_MAX ? INT32_MAX : (unsigned)rl.rlim_cur;
}

unsigned fds_limit(void)
{
        return limit;
}

bool fds_is_spare(int fd)
{
        return fd >= 0 && (unsigned)fd + FDS_SPARE >= limit;
}
