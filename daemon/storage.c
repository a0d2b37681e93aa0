/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: what is not known to be local is foreign. It refuses to know leases and owners.
 *
 * For a local path the lookup starts at the root of its mount and may not leave it. When it would (a symbolic link to
 * another mount, a mount that the table does not show yet), the kernel says EXDEV and the path counts as foreign.
 */
#include "storage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libmount.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"
#include "hash.h"

#define STORAGE_STACK_MAX 8 /* devices on top of each other */

typedef struct Mount {
        UT_hash_handle hh;
        int number; /* mountinfo's */
        bool local;
        char *type;
        size_t len;
        char point[];
} Mount;

typedef struct Mounts {
        Mount *by_point;            /* of several at one place the last one counts */
        bool lengths[PATH_MAX + 1]; /* of the mount points: what is as long as none of them need not be looked up */
} Mounts;

struct Storage {
        Mounts mounts;
        struct libmnt_table *fstab; /* NULL: none */
        struct libmnt_iter *iter;
        unsigned long long generation;
        int watch;
        char description[PATH_MAX + 64];
};

/* One line of a file in sysfs; "" when there is none. */
static void read_sysfs(const char *device, const char *file, char *buf, size_t size)
{
        char path[PATH_MAX];
        FILE *f;

        (void)snprintf(path, sizeof(path), "/sys/class/block/%s/%s", device, file);
        f = fopen(path, "re");
        if (!f || !fgets(buf, (int)size, f))
                buf[0] = '\0';
        if (f)
                (void)fclose(f);
}

/* The controllers of an NVMe disk with a path of its own for each: all on the bus of this machine? */
static bool is_local_nvme(const char *device)
{
        char pattern[PATH_MAX], transport[32];
        glob_t found;
        bool local;

        (void)snprintf(pattern, sizeof(pattern), "/sys/class/block/%s/device/nvme*/transport", device);
        local = glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0;
        for (size_t i = 0; local && i < found.gl_pathc; i++) {
                FILE *f = fopen(found.gl_pathv[i], "re");

                local = f && fgets(transport, sizeof(transport), f) && strncmp(transport, "pcie", 4) == 0;
                if (f)
                        (void)fclose(f);
        }
        globfree(&found);
        return local;
}

/* A disk that answers or fails, as opposed to one that may wait for ever; also all that it is made of. */
static bool is_plain_disk(const char *device, int depth)
{
        static const char *const waiting[] = { "/block/loop", "/block/nbd", "/block/rbd", "/block/drbd", "/session", "/rport-",
                                               "/nvme-fabrics" };
        char path[PATH_MAX], target[PATH_MAX], text[256];
        struct dirent *entry;
        bool plain = true;
        ssize_t n;
        DIR *dir;

        (void)snprintf(path, sizeof(path), "/sys/class/block/%s", device);
        n = readlink(path, target, sizeof(target) - 1);
        if (n <= 0 || depth == 0)
                return false;
        target[n] = '\0';
        for (size_t i = 0; i < sizeof(waiting) / sizeof(waiting[0]); i++)
                if (strstr(target, waiting[i]))
                        return false;
        read_sysfs(device, "dm/uuid", text, sizeof(text));
        if (strstr(text, "mpath-"))
                return false;
        read_sysfs(device, "partition", text, sizeof(text));
        if (*text) {
                char *slash = strrchr(target, '/');

                *slash = '\0';
                slash = strrchr(target, '/');
                return slash && is_plain_disk(slash + 1, depth - 1);
        }
        if (strstr(target, "/nvme-subsystem/") && !is_local_nvme(device))
                return false;
        (void)snprintf(path, sizeof(path), "/sys/class/block/%s/slaves", device);
        dir = opendir(path);
        while (dir && plain && (entry = readdir(dir)))
                if (entry->d_name[0] != '.')
                        plain = is_plain_disk(entry->d_name, depth - 1);
        if (dir)
                (void)closedir(dir);
        return plain;
}

static bool is_plain_number(dev_t dev)
{
        char path[64], target[PATH_MAX], *slash;
        ssize_t n;

        (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(dev), minor(dev));
        n = readlink(path, target, sizeof(target) - 1);
        if (n <= 0)
                return false;
        target[n] = '\0';
        slash = strrchr(target, '/');
        return slash && is_plain_disk(slash + 1, STORAGE_STACK_MAX);
}

static bool is_local_type(struct libmnt_fs *fs)
{
        static const char *const memory[] = { "tmpfs", "ramfs", "devtmpfs", "proc", "sysfs" };
        static const char *const disk[] = { "ext2", "ext3", "ext4", "xfs", "btrfs" };
        const char *type = mnt_fs_get_fstype(fs), *source = mnt_fs_get_srcpath(fs);
        dev_t dev = mnt_fs_get_devno(fs);
        struct stat st;

        if (!type)
                return false;
        for (size_t i = 0; i < sizeof(memory) / sizeof(memory[0]); i++)
                if (strcmp(type, memory[i]) == 0)
                        return true;
        for (size_t i = 0; i < sizeof(disk) / sizeof(disk[0]); i++) {
                if (strcmp(type, disk[i]) != 0)
                        continue;
                /* btrfs gives its mounts numbers of their own; its source is a node in /dev */
                if (major(dev) == 0)
                        dev = source && stat(source, &st) == 0 && S_ISBLK(st.st_mode) ? st.st_rdev : 0;
                return is_plain_number(dev);
        }
        return false;
}

static void mounts_done(Mounts *mounts)
{
        Mount *mount, *next;

        HASH_ITER(hh, mounts->by_point, mount, next) {
                HASH_DEL(mounts->by_point, mount);
                free(mount->type);
                free(mount);
        }
}

/* The mount that path is on: the longest mount point that is path or one of its parents. */
static Mount *mount_in(const Mounts *mounts, const char *path)
{
        size_t len = strnlen(path, PATH_MAX);
        const char *slash;
        Mount *mount;

        while (len > 0) {
                mount = NULL;
                if (mounts->lengths[len])
                        HASH_FIND(hh, mounts->by_point, path, len, mount);
                if (mount)
                        return mount;
                slash = memrchr(path, '/', len);
                len = slash ? (size_t)(slash - path) : 0;
                while (len > 0 && path[len - 1] == '/')
                        len--;
        }
        HASH_FIND(hh, mounts->by_point, "/", 1, mount);
        return mount;
}

static Mount *mount_of(const Storage *storage, const char *path)
{
        return mount_in(&storage->mounts, path);
}

static int add_mount(Mounts *mounts, struct libmnt_fs *fs)
{
        const char *point = mnt_fs_get_target(fs), *type = mnt_fs_get_fstype(fs);
        size_t len = point ? strlen(point) : 0;
        _cleanup_free_ char *folder = NULL;
        Mount *mount, *old, *above;

        if (len == 0)
                return 0;
        mount = calloc(1, sizeof(*mount) + len + 1);
        if (!mount)
                return FAULT(-ENOMEM);
        mount->number = mnt_fs_get_id(fs);
        mount->len = len;
        mount->type = strdup(type ? type : "unknown");
        memcpy(mount->point, point, len + 1);
        mount->local = is_local_type(fs);
        /* A local file system that is reached through a foreign one can hang like it. */
        folder = strdup(point);
        if (!folder) {
                free(mount->type);
                free(mount);
                return FAULT(-ENOMEM);
        }
        *strrchr(folder, '/') = '\0';
        above = len > 1 ? mount_in(mounts, *folder ? folder : "/") : NULL;
        if (above && !above->local)
                mount->local = false;
        HASH_FIND(hh, mounts->by_point, mount->point, len, old);
        if (old) {
                HASH_DEL(mounts->by_point, old);
                free(old->type);
                free(old);
        }
        HASH_ADD_KEYPTR(hh, mounts->by_point, mount->point, mount->len, mount);
        if (!mount->type || !hash_added(mount)) {
                if (hash_added(mount))
                        HASH_DEL(mounts->by_point, mount);
                free(mount->type);
                free(mount);
                return FAULT(-ENOMEM);
        }
        if (len <= PATH_MAX)
                mounts->lengths[len] = true;
        return 0;
}

int storage_update(Storage *storage)
{
        _cleanup_(mounts_done) Mounts fresh = { .by_point = NULL };
        struct libmnt_table *table = mnt_new_table_from_file("/proc/self/mountinfo");
        struct libmnt_iter *iter = mnt_new_iter(MNT_ITER_FORWARD);
        struct libmnt_fs *fs;
        Mounts old;
        int r = table && iter ? 0 : FAULT(-EIO);

        while (r == 0 && mnt_table_next_fs(table, iter, &fs) == 0)
                r = add_mount(&fresh, fs);
        mnt_free_iter(iter);
        mnt_unref_table(table);
        if (r < 0)
                return PASS(r);
        old = storage->mounts;
        storage->mounts = fresh;
        fresh = old;
        storage->generation++;
        return 0;
}

void storage_reload_fstab(Storage *storage)
{
        struct libmnt_table *fresh = mnt_new_table_from_file("/etc/fstab");

        if (!fresh && access("/etc/fstab", F_OK) == 0)
                return; /* no memory, or not readable now: what it said before is better than nothing */
        mnt_unref_table(storage->fstab);
        storage->fstab = fresh;
        storage->generation++;
}

int storage_new(Storage **ret)
{
        Storage *storage = calloc(1, sizeof(*storage));
        int r;

        if (!storage)
                return FAULT(-ENOMEM);
        storage->watch = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
        r = storage->watch < 0 ? FAULT(-errno) : 0;
        storage->iter = mnt_new_iter(MNT_ITER_FORWARD);
        if (r == 0)
                r = storage->iter ? storage_update(storage) : FAULT(-ENOMEM);
        if (r < 0) {
                storage_free(storage);
                return PASS(r);
        }
        storage_reload_fstab(storage);
        *ret = storage;
        return 0;
}

Storage *storage_free(Storage *storage)
{
        if (!storage)
                return NULL;
        mounts_done(&storage->mounts);
        mnt_unref_table(storage->fstab);
        mnt_free_iter(storage->iter);
        close_fd(storage->watch);
        free(storage);
        return NULL;
}

int storage_watch_fd(const Storage *storage)
{
        return storage->watch;
}

unsigned long long storage_generation(const Storage *storage)
{
        return storage->generation;
}

bool storage_is_local(const Storage *storage, const char *path)
{
        const Mount *mount = mount_of(storage, path);

        return mount && mount->local;
}

bool storage_is_local_mount(const Storage *storage, int number)
{
        for (const Mount *mount = storage->mounts.by_point; mount; mount = mount->hh.next)
                if (mount->number == number)
                        return mount->local;
        return false;
}

const char *storage_describe(const Storage *storage, const char *path)
{
        const Mount *mount = mount_of(storage, path);
        char *text = (char *)(uintptr_t)storage->description;

        if (!mount)
                return "an unknown file system";
        (void)snprintf(text, sizeof(storage->description), "%s at %s", mount->type, mount->point);
        return text;
}

/* path is dir, or lies below it. */
static bool is_below(const char *path, const char *dir)
{
        size_t len = strlen(dir);

        while (len > 1 && dir[len - 1] == '/')
                len--;
        if (strncmp(path, dir, len) != 0)
                return false;
        return len == 1 || path[len] == '\0' || path[len] == '/';
}

static bool is_mounted(const Storage *storage, const char *point)
{
        size_t len = strlen(point);
        Mount *mount;

        while (len > 1 && point[len - 1] == '/')
                len--;
        HASH_FIND(hh, storage->mounts.by_point, point, len, mount);
        return mount && strcmp(mount->type, "autofs") != 0;
}

const char *storage_missing_mount(const Storage *storage, const char *path, const char *require_mount)
{
        const char *missing = NULL;
        const Mount *mount;
        struct libmnt_fs *fs;

        if (require_mount && !is_mounted(storage, require_mount))
                return require_mount;
        /* Touching an automount point would start the mount, and wait for it. */
        mount = mount_of(storage, path);
        if (mount && strcmp(mount->type, "autofs") == 0)
                return mount->point;
        mnt_reset_iter(storage->iter, MNT_ITER_FORWARD);
        while (storage->fstab && mnt_table_next_fs(storage->fstab, storage->iter, &fs) == 0) {
                const char *point = mnt_fs_get_target(fs);

                if (point && *point == '/' && is_below(path, point) && !is_mounted(storage, point))
                        missing = point;
        }
        return missing;
}

/* Where to look path up, and with which limits. */
static int find_place(const Storage *storage, const char *path, bool follow, LockfilePlace *ret)
{
        const Mount *mount = mount_of(storage, path);
        LockfilePlace place = { .dirfd = AT_FDCWD, .path = path, .follow = follow };

        if (mount && mount->local) {
                place.resolve = RESOLVE_NO_XDEV;
                if (path[mount->len] == '\0')
                        place.resolve = 0; /* the file itself is a mount point */
                else if (mount->len > 1) {
                        place.dirfd = open(mount->point, O_PATH | O_DIRECTORY | O_CLOEXEC);
                        if (place.dirfd < 0)
                                return FAULT(-errno);
                        place.path = path + mount->len;
                        while (*place.path == '/')
                                place.path++;
                }
        }
        *ret = place;
        return 0;
}

static void place_done(LockfilePlace *place)
{
        place->dirfd = close_fd(place->dirfd);
}

static int open_directory(int dirfd, const char *name)
{
        struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_XDEV };
        long fd = syscall(SYS_openat2, dirfd, name, &how, sizeof(how));

        return fd < 0 ? -errno : (int)fd;
}

int storage_look(const Storage *storage, const char *path, bool follow, bool create, StorageFile *ret, LockfileStep *step)
{
        int r;

        *ret = (StorageFile){ .place = { .dirfd = -1 }, .look = LOCKFILE_LOOK_NONE };
        *step = LOCKFILE_OPEN;
        r = find_place(storage, path, follow, &ret->place);
        if (r < 0)
                return PASS(r);
        ret->local = ret->place.resolve != 0;
        r = lockfile_look(&ret->place, create, &ret->look, step);
        if (r == -EXDEV && ret->local) {
                place_done(&ret->place);
                ret->place = (LockfilePlace){ .dirfd = AT_FDCWD, .path = path, .follow = follow };
                ret->local = false;
                r = lockfile_look(&ret->place, create, &ret->look, step);
        }
        return PASS(r);
}

void storage_done(StorageFile *file)
{
        lockfile_look_done(&file->look);
        place_done(&file->place);
}

int storage_take(StorageFile *file, bool shared, Lockfile *ret, pid_t *holder, LockfileStep *step)
{
        return PASS(lockfile_take(&file->place, &file->look, shared, ret, holder, step));
}

/* Unlinks by the folder that path is in now; a folder that can only be reached over another mount is not touched. */
static int unlink_local(const Storage *storage, const char *path, const Lockfile *file)
{
        _cleanup_(place_done) LockfilePlace place = { .dirfd = -1 };
        char folder[PATH_MAX]; /* to give a lock back must not want memory */
        _cleanup_fd_ int dirfd = -1;
        LockfilePlace last = { .follow = false };
        const char *slash;
        size_t len;
        int r;

        r = find_place(storage, path, false, &place);
        if (r < 0)
                return PASS(r);
        if (place.resolve == 0)
                return LOCKFILE_E_KEPT;
        slash = strrchr(place.path, '/');
        len = slash ? (size_t)(slash - place.path) : 0;
        if (len >= sizeof(folder))
                return FAULT(-ENAMETOOLONG);
        memcpy(folder, place.path, len);
        folder[len] = '\0';
        dirfd = open_directory(place.dirfd, len > 0 ? folder : slash ? "/" : ".");
        if (dirfd < 0)
                return dirfd == -EXDEV ? LOCKFILE_E_KEPT : FAULT(dirfd);
        last.dirfd = dirfd;
        last.path = slash ? slash + 1 : place.path;
        return PASS(lockfile_unlink(&last, file));
}

int storage_release(const Storage *storage, const char *path, bool unlink, Lockfile *file)
{
        int r = unlink ? unlink_local(storage, path, file) : LOCKFILE_E_KEPT;

        lockfile_release(file);
        return PASS(r);
}

int storage_start_flush(const Lockfile *file, pid_t *ret_pid, int *ret_pidfd)
{
        pid_t pid = fork();
        int fd;

        if (pid < 0)
                return FAULT(-errno);
        if (pid == 0) {
                /* It keeps this one fd and no other: a copy that outlives us is a lock that nobody can find. */
                fd = dup2(file->fd, STDIN_FILENO);
                (void)close_range(STDIN_FILENO + 1, ~0U, 0);
                _exit(fd < 0 || fsync(fd) < 0);
        }
        fd = pidfd_open(pid, 0);
        if (fd < 0)
                return FAULT(-errno);
        *ret_pid = pid;
        *ret_pidfd = fd;
        return 0;
}

int storage_make_directory(const Storage *storage, const char *path)
{
        _cleanup_(place_done) LockfilePlace place = { .dirfd = -1 };
        _cleanup_free_ char *rest = NULL;
        char *save = NULL;
        int r;

        if (!storage_is_local(storage, path))
                return FAULT(-EXDEV);
        r = find_place(storage, path, true, &place);
        if (r < 0)
                return PASS(r);
        if (place.resolve == 0)
                return 0; /* a mount point */
        rest = strdup(place.path);
        if (!rest)
                return FAULT(-ENOMEM);
        if (place.dirfd == AT_FDCWD)
                place.dirfd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        for (char *name = strtok_r(rest, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
                int fd = open_directory(place.dirfd, name);

                if (fd == -ENOENT) {
                        if (mkdirat(place.dirfd, name, 0700) < 0 && errno != EEXIST)
                                return FAULT(-errno);
                        fd = open_directory(place.dirfd, name);
                }
                if (fd == -ENOTDIR && !save[strspn(save, "/")])
                        return STORAGE_E_NOT_DIRECTORY;
                if (fd < 0)
                        return FAULT(fd);
                close_fd(place.dirfd);
                place.dirfd = fd;
        }
        return 0;
}
