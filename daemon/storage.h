/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which file system a path is on, by the mount table alone (statfs itself blocks on a dead mount), and the lockfile
 * operations sent to where they may run. A file system is local when it is of a kind that answers: tmpfs, and
 * ext4, xfs, btrfs on a plain disk, with no other kind above it. There, operations run inline and no symbolic link
 * leads them elsewhere (RESOLVE_NO_XDEV).
 */
#pragma once

#include <stdbool.h>

#include "lockfile.h"

typedef struct Storage Storage;

/* -errno: /proc/self/mountinfo cannot be read. */
int storage_new(Storage **ret);
Storage *storage_free(Storage *storage);

/* Becomes readable by EPOLLPRI when something was mounted or unmounted; then call storage_update(). A table that
 * cannot be read leaves the old one in force (-errno). */
int storage_watch_fd(const Storage *storage);
int storage_update(Storage *storage);

/* Reads /etc/fstab again: the places where a file system belongs. */
void storage_reload_fstab(Storage *storage);

/* Grows each time the table changes. */
unsigned long long storage_generation(const Storage *storage);

/* True when everything on the way to path is local, as far as the mount table tells. */
bool storage_is_local(const Storage *storage, const char *path);

/* The same for what is on the mount of that number (mountinfo's, fdinfo's mnt_id). */
bool storage_is_local_mount(const Storage *storage, int mount);

/* The mount point under which path belongs by fstab or by require_mount (NULL: none) and that is not mounted; NULL when
 * nothing is missing. Valid until the next storage_update() or storage_reload_fstab(). */
const char *storage_missing_mount(const Storage *storage, const char *path, const char *require_mount);

/* "nfs4 at /mnt/images", for messages. Valid until the next storage_update(). */
const char *storage_describe(const Storage *storage, const char *path);

/* A file under way between look and take. */
typedef struct StorageFile {
        LockfilePlace place;
        LockfileLook look;
        bool local;
} StorageFile;

/* As lockfile_look(), for an absolute path. follow: the last component may be a symbolic link. Whatever the result, end
 * with storage_done(). */
int storage_look(const Storage *storage, const char *path, bool follow, bool create, StorageFile *ret, LockfileStep *step);
void storage_done(StorageFile *file);

/* As lockfile_take(). */
int storage_take(StorageFile *file, bool shared, Lockfile *ret, pid_t *holder, LockfileStep *step);

/* Unlinks, where lockfile_unlink() finds it ours; unlocks; closes. unlink: only if the file was looked up as a local one.
 * The result is that of the unlink, LOCKFILE_E_KEPT or -errno; the lock is gone in any case. */
int storage_release(const Storage *storage, const char *path, bool unlink, Lockfile *file);

/* Starts a process that has file's data put on the device (fsync) and ends. */
int storage_start_flush(const Lockfile *file, pid_t *ret_pid, int *ret_pidfd);

enum {
        STORAGE_E_NOT_DIRECTORY = 1, /* something else is there */
};

/* Makes a directory and its parents, 0700, on local file systems only (-EXDEV: it is not on one). */
int storage_make_directory(const Storage *storage, const char *path);
