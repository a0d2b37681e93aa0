/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One file and the fcntl lock on its byte 0, length 1: virtlockd's byte, so that a mixed fleet excludes each other.
 *
 *   look: find or create the file, learn its identity; nothing is opened that could have effects
 *   take: open it for real, lock it, make sure that the name still means that file
 *   release: unlink where that is allowed, unlock, close
 *
 * Between look and take the caller asks itself whether it knows the file already: closing another real fd of a file
 * would drop a classic lock that we have on it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Identity of a file, good while an fd of it is open: all names of one file agree. A block device is its st_rdev,
 * whichever node it was reached by. */
typedef struct FileId {
        uint64_t dev;
        uint64_t ino;
        uint64_t block; /* 1: dev is the device's own number and ino is 0 */
} FileId;

typedef enum LockKind { LOCK_OFD, LOCK_CLASSIC } LockKind;

/* Where a file is: path is relative to dirfd (or absolute, with AT_FDCWD); resolve are openat2's RESOLVE_* flags. */
typedef struct LockfilePlace {
        int dirfd;
        const char *path;
        uint64_t resolve;
        bool follow; /* the last component may be a symbolic link: images yes, lease files no */
} LockfilePlace;

typedef struct LockfileLook {
        int fd; /* O_PATH, or a real one when created */
        FileId id;
        bool created;
} LockfileLook;

typedef struct Lockfile {
        int fd; /* -1: none */
        FileId id;
        LockKind kind;
        bool shared;
        int *others; /* further fds of a file with a classic lock, NULL: none. To close one would drop the lock */
        size_t n_others;
} Lockfile;

/* The step at which a fault happened, for the message. */
typedef enum LockfileStep { LOCKFILE_OPEN, LOCKFILE_STATUS, LOCKFILE_LOCK, LOCKFILE_UNLINK } LockfileStep;

enum {
        LOCKFILE_E_KIND = 1, /* neither a regular file nor a block device: not opened */
        LOCKFILE_E_BUSY,     /* somebody outside this process holds the lock */
        LOCKFILE_E_STALE,    /* the name meant another file by the time the lock was had: look again */
        LOCKFILE_E_KEPT,     /* not unlinked: not ours to remove */
};

#define LOCKFILE_NONE ((Lockfile){ .fd = -1 })
#define LOCKFILE_LOOK_NONE ((LockfileLook){ .fd = -1 })

/* 0, LOCKFILE_E_KIND, or -errno with *step. Ends with lockfile_look_done(). */
int lockfile_look(const LockfilePlace *place, bool create, LockfileLook *ret, LockfileStep *step);
void lockfile_look_done(LockfileLook *look);

/* 0, LOCKFILE_E_BUSY with *holder (a pid, 0 when the kernel does not tell), LOCKFILE_E_STALE, or -errno with *step. */
int lockfile_take(const LockfilePlace *place, LockfileLook *look, bool shared, Lockfile *ret, pid_t *holder,
                  LockfileStep *step);

/* Unlinks the file that file has locked, under an exclusive lock on it, if place still names it, it has one link and
 * is empty or starts with a lockd record. LOCKFILE_E_KEPT: it stays, and so does the lock. -errno: unlink failed. */
int lockfile_unlink(const LockfilePlace *place, const Lockfile *file);

/* Is that fd still open on that file, and locked? Asks /proc, never by locking again. 0, LOCKFILE_E_KIND: another file,
 * LOCKFILE_E_STALE: not locked, or -errno. */
int lockfile_verify(const Lockfile *file);

/* A Lockfile for an fd that this process was executed with, if it is a lockable file that has a lock of ours; asks /proc
 * and the kernel's cache, never a server, and never locks. ret_mount: NULL, or for the number of its mount. 0,
 * LOCKFILE_E_KIND, LOCKFILE_E_STALE: it shows no lock of ours (kind and shared are a guess then), or -errno. */
int lockfile_adopt(int fd, Lockfile *ret, int *ret_mount);

/* Makes the lock one of the other kind. Nobody gets it exclusively meanwhile, as a shared lock covers the steps between.
 * LOCKFILE_E_BUSY: somebody got in with a shared lock (or the lock was lost before); -errno: not on this file system. The
 * kind is as it was in both cases. */
int lockfile_convert(Lockfile *file, LockKind kind);

/* Gives the lock up, for every copy of the fd, and closes. Cannot fail. */
void lockfile_release(Lockfile *file);
