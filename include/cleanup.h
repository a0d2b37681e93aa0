/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Owning locals: the variable gives up what it owns when its scope ends; TAKE_* hands it over visibly. */
#pragma once

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

#define TAKE_PTR(p)                       \
        ({                                \
                __typeof__(p) *_pp = &(p);\
                __typeof__(p) _p = *_pp;  \
                *_pp = NULL;              \
                _p;                       \
        })

#define TAKE_FD(fd)                       \
        ({                                \
                int *_fp = &(fd);         \
                int _f = *_fp;            \
                *_fp = -1;                \
                _f;                       \
        })

/* Closes fd when it is one; errno survives. Returns -1, to be stored where the fd was. */
static inline int close_fd(int fd)
{
        int saved = errno;

        if (fd >= 0)
                (void)close(fd);
        errno = saved;
        return -1;
}

static inline void close_fdp(int *fd)
{
        *fd = close_fd(*fd);
}

static inline void freep(void *p)
{
        free(*(void **)p);
}

#define _cleanup_fd_ _cleanup_(close_fdp)
#define _cleanup_free_ _cleanup_(freep)
