/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into lockd under valgrind, which knows neither openat2 nor pidfd_open: the first becomes an openat, without its
 * limits, the second an fd that never gets readable. For counting instructions, not for tests of what lockd does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <unistd.h>

int pidfd_open(pid_t pid, unsigned flags)
{
        (void)pid;
        (void)flags;
        return eventfd(0, EFD_CLOEXEC);
}

long syscall(long number, ...)
{
        const struct open_how *how;
        long args[6], result;
        va_list ap;

        va_start(ap, number);
        for (int i = 0; i < 6; i++)
                args[i] = va_arg(ap, long);
        va_end(ap);
        if (number == SYS_openat2) {
                how = (const struct open_how *)args[2];
                return openat((int)args[0], (const char *)args[1], (int)how->flags, (mode_t)how->mode);
        }
        {
                register long r10 __asm__("r10") = args[3];
                register long r8 __asm__("r8") = args[4];
                register long r9 __asm__("r9") = args[5];

                __asm__ volatile("syscall"
                                 : "=a"(result)
                                 : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8), "r"(r9)
                                 : "rcx", "r11", "memory");
        }
        if (result < 0 && result > -4096) {
                errno = (int)-result;
                return -1;
        }
        return result;
}
