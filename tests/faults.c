/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into lockd by the tests of upgrades: one chosen call fails, once.
 *
 * $FAULTS names a file with one line, "IMAGE CALL NUMBER ERRNO": the NUMBERth CALL of that image fails. IMAGE is
 *
 *      old     the lockd that upgrades itself, from when it opens the new binary on
 *      child   its child, before that executes the new binary
 *      trial   the new binary in its trial
 *      new     the new binary, until it serves
 *
 * The file is renamed to FILE.done when the call has failed. CALL is one of the functions below; malloc stands for
 * calloc and realloc, too.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <systemd/sd-event.h>
#include <unistd.h>

static char image[16], call[32];
static unsigned long number;
static int error;
static bool armed;
static pid_t pid;

/* Without the functions that may be made to fail. */
static void arm(const char *now)
{
        const char *path = getenv("FAULTS");
        char text[128] = "";
        long fd = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;

        armed = false;
        if (fd < 0)
                return;
        if (syscall(SYS_read, fd, text, sizeof(text) - 1) > 0 && sscanf(text, "%15s %31s %lu %d", image, call, &number, &error) == 4)
                armed = strcmp(image, now) == 0 || (strcmp(image, "child") == 0 && strcmp(now, "old") == 0);
        (void)syscall(SYS_close, fd);
}

/* libconfig and json-c end the process when they get no memory. lockd has some ready before it calls them, which a call that
 * fails by its number does not know: theirs do not count. */
static bool is_careless(void)
{
        void *frames[24];
        int n;

        armed = false; /* backtrace may want memory */
        n = backtrace(frames, 24);
        armed = true;
        for (int i = 0; i < n; i++) {
                Dl_info info;

                if (dladdr(frames[i], &info) && info.dli_fname && (strstr(info.dli_fname, "libconfig") || strstr(info.dli_fname, "libjson")))
                        return true;
        }
        return false;
}

static bool fails(const char *name)
{
        char done[4200];

        if (!armed || strcmp(name, call) != 0 || (strcmp(image, "child") == 0) != (syscall(SYS_getpid) != pid) || --number > 0)
                return false;
        if (strcmp(name, "malloc") == 0 && is_careless()) {
                number = 1;
                return false;
        }
        armed = false;
        (void)snprintf(done, sizeof(done), "%s.done", getenv("FAULTS"));
        (void)syscall(SYS_renameat2, AT_FDCWD, getenv("FAULTS"), AT_FDCWD, done, 0);
        errno = error;
        return true;
}

__attribute__((constructor)) static void start(int argc, char **argv)
{
        void *frame;

        pid = (pid_t)syscall(SYS_getpid);
        (void)backtrace(&frame, 1); /* loads what it needs now */
        if (getenv("LOCKD_STATE_FD"))
                arm(argc > 1 && strcmp(argv[argc - 1], "--check-state") == 0 ? "trial" : "new");
}

int sd_event_loop(sd_event *loop)
{
        int (*next)(sd_event *) = (int (*)(sd_event *))(uintptr_t)dlsym(RTLD_NEXT, "sd_event_loop");

        armed = false;
        return next(loop);
}

int open(const char *path, int flags, ...)
{
        size_t len = strlen(path);
        mode_t mode = 0;

        if (flags & (O_CREAT | O_TMPFILE)) {
                va_list ap;

                va_start(ap, flags);
                mode = va_arg(ap, mode_t);
                va_end(ap);
        }
        if (!getenv("LOCKD_STATE_FD") && len > 6 && strcmp(path + len - 6, "/lockd") == 0)
                arm("old");
        return fails("open") ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int memfd_create(const char *name, unsigned flags)
{
        return fails("memfd_create") ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}

int pipe2(int fds[2], int flags)
{
        return fails("pipe2") ? -1 : (int)syscall(SYS_pipe2, fds, flags);
}

pid_t fork(void)
{
        pid_t (*next)(void) = (pid_t(*)(void))(uintptr_t)dlsym(RTLD_NEXT, "fork");

        return fails("fork") ? -1 : next();
}

int pidfd_open(pid_t process, unsigned flags)
{
        return fails("pidfd_open") ? -1 : (int)syscall(SYS_pidfd_open, process, flags);
}

int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
        return fails("execveat") ? -1 : (int)syscall(SYS_execveat, dirfd, path, argv, envp, flags);
}

int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
        /* The other operations want no memory. */
        return op == EPOLL_CTL_ADD && fails("epoll_ctl") ? -1 : (int)syscall(SYS_epoll_ctl, epoll, op, fd, event);
}

int epoll_create1(int flags)
{
        return fails("epoll_create1") ? -1 : (int)syscall(SYS_epoll_create1, flags);
}

int fcntl(int fd, int command, ...)
{
        va_list ap;
        void *argument;

        va_start(ap, command);
        argument = va_arg(ap, void *);
        va_end(ap);
        return fails("fcntl") ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

off_t lseek(int fd, off_t offset, int whence)
{
        return fails("lseek") ? -1 : (off_t)syscall(SYS_lseek, fd, offset, whence);
}

/* ---- memory ---- */

#ifndef FAULTS_NO_MALLOC
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
        return fails("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
        return fails("malloc") ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
        return fails("malloc") ? NULL : __libc_realloc(p, size);
}
#endif
