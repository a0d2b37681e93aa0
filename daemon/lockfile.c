/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: this is the only caller of F_*SETLK, and a Lockfile whose fd is not -1 is locked. It refuses to know
 * why a file is locked, for whom, and on which file system it is.
 */
#include "lockfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"
#include "fds.h"

#define LOCK_BYTE 0
#define LOCK_LENGTH 1
#define CONVERT_ATTEMPTS 50
#define CONVERT_PAUSE_USEC 2000U

/* First bytes of a record that lockd wrote into a lease file. */
static const char record_magic[8] = { 'l', 'o', 'c', 'k', 'd', 'r', 'e', 'c' };

static int open_place(const LockfilePlace *place, uint64_t flags, uint64_t mode)
{
        struct open_how how = {
                .flags = flags | O_CLOEXEC | (place->follow ? 0 : O_NOFOLLOW),
                .mode = mode,
                .resolve = place->resolve,
        };
        long fd = syscall(SYS_openat2, place->dirfd, place->path, &how, sizeof(how));

        return fd < 0 ? -errno : (int)fd;
}

static FileId identity(const struct stat *st)
{
        if (S_ISBLK(st->st_mode))
                return (FileId){ .dev = st->st_rdev, .block = 1 };
        return (FileId){ .dev = st->st_dev, .ino = st->st_ino };
}

static bool same_file(const FileId *a, const FileId *b)
{
        return a->dev == b->dev && a->ino == b->ino && a->block == b->block;
}

int lockfile_look(const LockfilePlace *place, bool create, LockfileLook *ret, LockfileStep *step)
{
        LockfileLook look = LOCKFILE_LOOK_NONE;
        struct stat st;
        int r;

        *step = LOCKFILE_OPEN;
        /* O_EXCL first: a file that was not there is a regular one, of ours, and needs no second open. */
        if (create) {
                look.fd = open_place(place, O_RDWR | O_CREAT | O_EXCL | O_NOCTTY, 0600);
                look.created = look.fd >= 0;
                if (look.created && fds_is_spare(look.fd)) {
                        (void)unlinkat(place->dirfd, place->path, 0);
                        lockfile_look_done(&look);
                        return FAULT(-EMFILE);
                }
                if (look.fd < 0 && look.fd != -EEXIST)
                        return FAULT(look.fd);
        }
        if (look.fd < 0)
                look.fd = open_place(place, O_PATH, 0);
        if (look.fd == -ENOENT && create)
                /* It was there a moment ago, and is gone; or it is a link that leads nowhere. */
                return fstatat(place->dirfd, place->path, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode) ? FAULT(-ENOENT) :
                                                                                                                LOCKFILE_E_STALE;
        if (look.fd < 0)
                return FAULT(look.fd);
        if (fstat(look.fd, &st) < 0) {
                r = -errno;
                *step = LOCKFILE_STATUS;
                lockfile_look_done(&look);
                return FAULT(r);
        }
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
                lockfile_look_done(&look);
                if (S_ISLNK(st.st_mode))
                        return FAULT(-ELOOP);
                return S_ISDIR(st.st_mode) ? FAULT(-EISDIR) : LOCKFILE_E_KIND;
        }
        look.id = identity(&st);
        *ret = look;
        return 0;
}

void lockfile_look_done(LockfileLook *look)
{
        look->fd = close_fd(look->fd);
}

/* 0, LOCKFILE_E_BUSY, or -errno. */
static int set_kind(int fd, short type, LockKind kind)
{
        struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = LOCK_LENGTH };

        if (fcntl(fd, kind == LOCK_OFD ? F_OFD_SETLK : F_SETLK, &lock) == 0)
                return 0;
        /* EACCES is a security module's no, not a lock. */
        return errno == EAGAIN ? LOCKFILE_E_BUSY : FAULT(-errno);
}

/* The same; *kind is what to try, and what it became: a file system that has no OFD locks (EINVAL) gets a classic one. */
static int set_lock(int fd, short type, LockKind *kind)
{
        int r = set_kind(fd, type, *kind);

        if (r == -EINVAL && *kind == LOCK_OFD) {
                *kind = LOCK_CLASSIC;
                r = set_kind(fd, type, *kind);
        }
        return PASS(r);
}

/* Who has the lock that refused us. Only classic locks have an owner that the kernel names. */
static pid_t lock_holder(int fd, bool shared)
{
        struct flock lock = {
                .l_type = shared ? F_RDLCK : F_WRLCK,
                .l_whence = SEEK_SET,
                .l_start = LOCK_BYTE,
                .l_len = LOCK_LENGTH,
        };

        if (fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK || lock.l_pid <= 0)
                return 0;
        return lock.l_pid;
}

/* A lock on a file that was unlinked or replaced meanwhile excludes nobody. */
static int still_named(const LockfilePlace *place, const FileId *id)
{
        struct stat st;
        FileId named;

        if (fstatat(place->dirfd, place->path, &st, place->follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? LOCKFILE_E_STALE : FAULT(-errno);
        named = identity(&st);
        return same_file(&named, id) && st.st_nlink > 0 ? 0 : LOCKFILE_E_STALE;
}

int lockfile_take(const LockfilePlace *place, LockfileLook *look, bool shared, Lockfile *ret, pid_t *holder,
                  LockfileStep *step)
{
        Lockfile file = { .fd = -1, .id = look->id, .kind = LOCK_OFD, .shared = shared };
        int r;

        *holder = 0;
        *step = LOCKFILE_OPEN;
        if (look->created)
                file.fd = TAKE_FD(look->fd);
        else {
                char path[32];

                (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", look->fd);
                file.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
                if (file.fd < 0)
                        return FAULT(-errno);
        }
        if (fds_is_spare(file.fd)) {
                close_fd(file.fd);
                return FAULT(-EMFILE);
        }
        *step = LOCKFILE_LOCK;
        r = set_lock(file.fd, shared ? F_RDLCK : F_WRLCK, &file.kind);
        if (r != 0) {
                if (r == LOCKFILE_E_BUSY)
                        *holder = lock_holder(file.fd, shared);
                close_fd(file.fd);
                return PASS(r);
        }
        *step = LOCKFILE_STATUS;
        r = still_named(place, &file.id);
        if (r != 0) {
                lockfile_release(&file);
                return PASS(r);
        }
        *ret = file;
        return 0;
}

static bool may_unlink(const Lockfile *file, const struct stat *named)
{
        FileId id = identity(named);
        char head[sizeof(record_magic)];

        if (!S_ISREG(named->st_mode) || named->st_nlink != 1 || !same_file(&id, &file->id))
                return false;
        if (named->st_size == 0)
                return true;
        return pread(file->fd, head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
               memcmp(head, record_magic, sizeof(head)) == 0;
}

int lockfile_unlink(const LockfilePlace *place, const Lockfile *file)
{
        LockKind kind = file->kind;
        struct stat st;

        /* Nobody may have it shared while it goes. */
        if (file->shared && set_lock(file->fd, F_WRLCK, &kind) != 0)
                return LOCKFILE_E_KEPT;
        if (fstatat(place->dirfd, place->path, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? LOCKFILE_E_KEPT : FAULT(-errno);
        if (!may_unlink(file, &st))
                return LOCKFILE_E_KEPT;
        return unlinkat(place->dirfd, place->path, 0) < 0 ? FAULT(-errno) : 0;
}

/* The line of byte 0 among the locks of ours in an fdinfo; NULL: none. */
static const char *own_lock_line(const char *fdinfo, bool *ret_ofd, bool *ret_shared)
{
        const char *line = fdinfo;

        while ((line = strstr(line, "\nlock:"))) {
                char type[8] = "", mode[8] = "", end[24] = "";
                unsigned long long start;
                int pid;

                line += sizeof("\nlock:") - 1;
                if (sscanf(line, " %*[^:]: %7s %*s %7s %d %*s %llu %23s", type, mode, &pid, &start, end) != 5 || start != LOCK_BYTE ||
                    strcmp(end, "0") != 0)
                        continue;
                *ret_ofd = strcmp(type, "OFDLCK") == 0;
                *ret_shared = strcmp(mode, "READ") == 0;
                if (*ret_ofd || (strcmp(type, "POSIX") == 0 && pid == (int)getpid()))
                        return line;
        }
        return NULL;
}

int lockfile_adopt(int fd, Lockfile *ret, int *ret_mount)
{
        _cleanup_fd_ int info = -1;
        bool ofd = false, shared = false;
        char text[4096], *mount;
        struct statx st;
        ssize_t n;

        (void)snprintf(text, sizeof(text), "/proc/self/fdinfo/%d", fd);
        info = open(text, O_RDONLY | O_CLOEXEC);
        n = info < 0 ? -1 : read(info, text, sizeof(text) - 1);
        if (n < 0)
                return FAULT(-errno);
        text[n] = '\0';
        mount = strstr(text, "mnt_id:");
        if (ret_mount)
                *ret_mount = mount ? atoi(mount + sizeof("mnt_id:") - 1) : -1;
        if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &st) < 0)
                return FAULT(-errno);
        if (!S_ISREG(st.stx_mode) && !S_ISBLK(st.stx_mode))
                return LOCKFILE_E_KIND;
        *ret = (Lockfile){ .fd = fd, .kind = LOCK_CLASSIC };
        if (S_ISBLK(st.stx_mode))
                ret->id = (FileId){ .dev = makedev(st.stx_rdev_major, st.stx_rdev_minor), .block = 1 };
        else
                ret->id = (FileId){ .dev = makedev(st.stx_dev_major, st.stx_dev_minor), .ino = st.stx_ino };
        if (!own_lock_line(text, &ofd, &shared))
                return LOCKFILE_E_STALE;
        ret->kind = ofd ? LOCK_OFD : LOCK_CLASSIC;
        ret->shared = shared;
        return 0;
}

int lockfile_verify(const Lockfile *file)
{
        Lockfile seen = LOCKFILE_NONE;
        int r = lockfile_adopt(file->fd, &seen, NULL);

        return seen.fd >= 0 && !same_file(&seen.id, &file->id) ? LOCKFILE_E_KIND : PASS(r);
}

/* For a shared rival that slipped in for a moment. */
static int make_exclusive(int fd, LockKind kind)
{
        int r = LOCKFILE_E_BUSY;

        for (int i = 0; r == LOCKFILE_E_BUSY && i < CONVERT_ATTEMPTS; i++) {
                if (i > 0)
                        (void)usleep(CONVERT_PAUSE_USEC);
                r = set_kind(fd, F_WRLCK, kind);
        }
        return PASS(r);
}

int lockfile_convert(Lockfile *file, LockKind kind)
{
        const LockKind old = file->kind;
        int r = 0;

        if (kind == old)
                return 0;
        /* Both kinds fit on one open file description: to the kernel they have different owners, so exclusive ones would
         * refuse each other, and an unlock of one kind leaves the other. */
        if (!file->shared)
                r = set_kind(file->fd, F_RDLCK, old);
        if (r != 0)
                return PASS(r);
        r = set_kind(file->fd, F_RDLCK, kind);
        if (r == 0) {
                (void)set_kind(file->fd, F_UNLCK, old);
                file->kind = kind;
                if (!file->shared)
                        r = make_exclusive(file->fd, kind);
                if (r == 0)
                        return 0;
                (void)set_kind(file->fd, F_RDLCK, old);
                (void)set_kind(file->fd, F_UNLCK, kind);
                file->kind = old;
        }
        if (!file->shared)
                (void)set_kind(file->fd, F_WRLCK, old);
        return PASS(r);
}

void lockfile_release(Lockfile *file)
{
        if (file->fd < 0)
                return;
        /* The unlock reaches every copy of the fd, wherever one may have leaked; the close alone would not. */
        (void)set_lock(file->fd, F_UNLCK, &file->kind);
        file->fd = close_fd(file->fd);
        for (size_t i = 0; i < file->n_others; i++)
                close_fd(file->others[i]);
        free(TAKE_PTR(file->others));
        file->n_others = 0;
}
