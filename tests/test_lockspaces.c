/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lockspaces and what is in them: folders, mounts that are missing, names, kinds of files, and the error that says why
 * something cannot be locked. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "harness.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static int start(void **state)
{
        (void)state;
        daemon_start(d, NULL, NULL);
        return 0;
}

static int stop(void **state)
{
        (void)state;
        daemon_stop(d);
        return 0;
}

static const char *make_directory(const char *name)
{
        const char *path = work_path(name);

        assert_int_equal(mkdir(path, 0755), 0);
        return path;
}

static void mount_at(const char *source, const char *path, const char *type, unsigned long flags, const char *options)
{
        if (mount(source, path, type, flags, options) < 0)
                fail_msg("mount %s at %s: %s", type ? type : source, path, strerror(errno));
}

/* After a round trip the daemon has also heard of what was mounted before it. */
static void settle(Conn *conn)
{
        assert_int_equal(conn_create_lockspace(conn, ""), 0);
}

static mode_t mode_of(const char *path)
{
        struct stat st;

        assert_int_equal(lstat(path, &st), 0);
        return st.st_mode & 07777;
}

/* A lockspace is its folder, however the path is written, and is made with its parents when it is missing. */
static void test_lockspaces(void **state)
{
        const char *space = work_path("made/with/parents"), *fresh = work_path("fresh"), *file = make_file("file", NULL);
        char doubled[PATH_MAX], trailing[PATH_MAX];
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        (void)snprintf(doubled, sizeof(doubled), "%s", work_path("made//with///parents"));
        (void)snprintf(trailing, sizeof(trailing), "%s//", space);
        assert_refused(conn, conn_acquire(conn, space, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC,
                       "does not exist");
        assert_int_equal(conn_create_lockspace(conn, trailing), 0);
        assert_int_equal(mode_of(space), 0700);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_int_equal(conn_acquire(conn, doubled, "lease", AUTOCREATE), 0);
        assert_true(file_exists(work_path("made/with/parents/lease")));
        assert_int_equal(conn_acquire(conn, space, "lease", AUTOCREATE), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_non_null(find_lease(d, space, "lease"));
        assert_int_equal(conn_release(conn, trailing, "lease"), 0);

        assert_int_equal(conn_new_lockspace(conn, fresh), 0);
        assert_int_equal(mode_of(fresh), 0700);
        assert_refused(conn, conn_new_lockspace(conn, fresh), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC, "already exists");
        assert_refused(conn, conn_new_lockspace(conn, doubled), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC, "already exists");
        assert_invalid(conn, conn_new_lockspace(conn, ""), "the default lockspace already exists");
        assert_int_equal(conn_create_lockspace(conn, ""), 0);

        for (int i = 0; i < 2; i++) {
                assert_refused(conn, conn_create_lockspace(conn, file), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                               "exists, but is not a directory");
                assert_refused(conn, conn_new_lockspace(conn, file), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                               "exists, but is not a directory");
        }
        assert_refused(conn, conn_acquire(conn, file, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC,
                       "does not exist");
        assert_int_equal(conn_create_lockspace(conn, "relative/path"), VIRTLOCK_ERR_INTERNAL);
        conn_close(conn);
        vm_kill(&a);
}

/* libvirtd ends when its driver gets an error at start: a folder that cannot be made is told when it is to be used. */
static void test_lockspace_that_cannot_be_made(void **state)
{
        const char *readonly = make_directory("readonly"), *space = work_path("readonly/leases");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        mount_at("tmpfs", readonly, "tmpfs", MS_RDONLY, NULL);
        settle(conn);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        daemon_expect_log(d, "cannot create the directory: Read-only file system");
        assert_system_error(conn, conn_acquire(conn, space, "lease", AUTOCREATE), ENOENT, "No such file or directory");
        assert_int_equal(umount(readonly), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* An /etc that only this test sees, with this line as its fstab. */
static void write_fstab(const char *line)
{
        const char *etc = work_path("etc");
        char command[PATH_MAX + 64];
        FILE *f;

        if (!file_exists(etc)) {
                (void)snprintf(command, sizeof(command), "cp -a /etc '%s'", etc);
                assert_int_equal(system(command), 0);
                mount_at(etc, "/etc", NULL, MS_BIND, NULL);
        }
        f = fopen("/etc/fstab", "we");
        assert_non_null(f);
        fputs(line, f);
        fclose(f);
}

/* "server:/export POINT/ nfs ..." in fstab. */
static void write_fstab_mount(const char *mount_point)
{
        char line[PATH_MAX + 64];

        (void)snprintf(line, sizeof(line), "server:/export %s/ nfs defaults 0 0\nnone none swap defaults 0 0\n",
                       mount_point);
        write_fstab(line);
}

/* The refusals of a lockspace whose file system is not mounted, and its way back. */
static void check_absent(Conn *conn, const char *mount_point, const char *below)
{
        char text[PATH_MAX + 64];

        (void)snprintf(text, sizeof(text), "the file system that belongs at %s", mount_point);
        assert_int_equal(conn_create_lockspace(conn, mount_point), 0);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        assert_false(file_exists(below));
        assert_refused(conn, conn_acquire(conn, mount_point, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL,
                       VIRTLOCK_FROM_LOCKSPACE, text);
        assert_refused(conn, conn_acquire(conn, below, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL,
                       VIRTLOCK_FROM_LOCKSPACE, text);
        assert_non_null(strstr(conn_message(conn), "is not mounted"));
        assert_int_equal(conn_create_resource(conn, mount_point, "lease"), VIRTLOCK_ERR_INTERNAL);
        assert_int_equal(conn_delete_resource(conn, mount_point, "lease"), VIRTLOCK_ERR_INTERNAL);
        assert_false(file_exists(below));
        assert_int_equal(rmdir(mount_point), 0); /* empty */
        assert_int_equal(mkdir(mount_point, 0755), 0);

        mount_at("tmpfs", mount_point, "tmpfs", 0, NULL);
        wait_until(conn_acquire(conn, mount_point, "lease", AUTOCREATE) == 0);
        assert_int_equal(conn_release(conn, mount_point, "lease"), 0);
        assert_int_equal(umount(mount_point), 0);
        settle(conn);
        assert_int_equal(conn_acquire(conn, mount_point, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL);
        assert_int_equal(rmdir(mount_point), 0);
        assert_int_equal(mkdir(mount_point, 0755), 0);
}

/* The share was not mounted at boot: no local folder is made, no lease in it is locked happily, and libvirtd starts. By
 * fstab, which is read again on HUP. */
static void test_missing_mount_of_fstab(void **state)
{
        const char *mount_point = make_directory("share"), *below = work_path("share/leases");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        write_fstab_mount(mount_point);
        daemon_reload(d, NULL);
        check_absent(conn, mount_point, below);
        write_fstab("");
        daemon_reload(d, NULL);
        assert_int_equal(conn_acquire(conn, mount_point, "lease", AUTOCREATE), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* The same by fstab as it is at start. */
static void test_missing_mount_at_start(void **state)
{
        const char *mount_point = make_directory("share2"), *below = work_path("share2/leases");
        Conn *conn;
        Vm a;

        (void)state;
        write_fstab_mount(mount_point);
        daemon_start(d, NULL, NULL);
        a = vm_start(d, "alpha");
        conn = vm_conn(d, &a);
        check_absent(conn, mount_point, below);
        conn_close(conn);
        vm_kill(&a);
        write_fstab("");
}

/* The same by the configuration. */
static void test_missing_mount_of_configuration(void **state)
{
        const char *mount_point = make_directory("share3"), *below = work_path("share3/leases");
        char config[3 * PATH_MAX];
        Conn *conn;
        Vm a;

        (void)state;
        (void)snprintf(config, sizeof(config),
                       "lockspaces = ( { path = \"%s\"; require_mount = \"%s\"; }, "
                       "{ path = \"%s/\"; require_mount = \"%s/\"; } );\n",
                       mount_point, mount_point, below, mount_point);
        daemon_start(d, config, NULL);
        a = vm_start(d, "alpha");
        conn = vm_conn(d, &a);
        check_absent(conn, mount_point, below);
        /* What is not required any more is not asked for. */
        daemon_reload(d, "");
        assert_int_equal(conn_acquire(conn, mount_point, "lease", AUTOCREATE), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* Unmounted, and a request right behind it: the old picture of the mounts is not good enough for it. */
static void test_request_behind_an_unmount(void **state)
{
        const char *mount_point = make_directory("share4");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        FrameHeader answer;

        (void)state;
        mount_at("tmpfs", mount_point, "tmpfs", 0, NULL);
        write_fstab_mount(mount_point);
        daemon_reload(d, NULL);
        assert_int_equal(conn_create_lockspace(conn, mount_point), 0);
        assert_int_equal(conn_acquire(conn, mount_point, "lease", AUTOCREATE), 0);
        assert_int_equal(conn_release(conn, mount_point, "lease"), 0);
        daemon_freeze(d);
        assert_int_equal(umount(mount_point), 0);
        conn_send_acquire(conn, mount_point, "lease", AUTOCREATE, 4711);
        daemon_thaw(d);
        assert_true(conn_receive(conn, &answer, NULL, NULL));
        assert_int_equal(answer.status, FRAME_ERROR);
        assert_int_equal(rmdir(mount_point), 0); /* empty */
        write_fstab("");
        conn_close(conn);
        vm_kill(&a);
}

/* The mount came later than libvirtd: when libvirtd names the lockspace again, its folder is made there. */
static void test_folder_after_mount(void **state)
{
        const char *mount_point = make_directory("share5"), *below = work_path("share5/leases");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        write_fstab_mount(mount_point);
        daemon_reload(d, NULL);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        assert_false(file_exists(below));
        mount_at("tmpfs", mount_point, "tmpfs", 0, NULL);
        settle(conn);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        assert_true(file_exists(below));
        assert_int_equal(conn_acquire(conn, below, "lease", AUTOCREATE), 0);
        assert_int_equal(conn_release(conn, below, "lease"), 0);
        assert_int_equal(umount(mount_point), 0);
        write_fstab("");
        conn_close(conn);
        vm_kill(&a);
}

/* A lockspace that the configuration names is like any other: its folder is made when it is missing. */
static void test_configured_lockspace(void **state)
{
        const char *space = work_path("configured/leases"), *mount_point = make_directory("share6");
        const char *below = work_path("share6/leases");
        const char *file = make_file("configured-file", NULL);
        char config[5 * PATH_MAX];
        Conn *conn;
        Vm a;

        (void)state;
        mount_at("tmpfs", mount_point, "tmpfs", 0, NULL);
        (void)snprintf(config, sizeof(config),
                       "lockspaces = ( { path = \"%s/\"; }, { path = \"%s\"; require_mount = \"%s\"; }, "
                       "{ path = \"%s\"; } );\n", space, below, mount_point, file);
        daemon_start(d, config, NULL);
        a = vm_start(d, "alpha");
        conn = vm_conn(d, &a);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_true(file_exists(space));
        assert_int_equal(conn_acquire(conn, space, "lease", AUTOCREATE), 0);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        assert_true(file_exists(below));
        assert_int_equal(conn_acquire(conn, below, "lease", AUTOCREATE), 0);
        assert_refused(conn, conn_create_lockspace(conn, file), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                       "exists, but is not a directory");
        conn_close(conn);
        vm_kill(&a);
}

/* What was not mounted when it was locked for, and is held: nothing of it is lost when the mount comes. */
static void test_mount_over_a_held_lease(void **state)
{
        const char *space = make_directory("covered"), *image = work_path("covered/lease");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_acquire(ca, space, "lease", AUTOCREATE), 0);
        mount_at("tmpfs", space, "tmpfs", 0, NULL);
        assert_false(file_exists(image));
        assert_busy(cb, conn_acquire(cb, space, "lease", AUTOCREATE), "by VM 'alpha'");
        assert_int_equal(umount(space), 0);
        assert_false(is_lockable(image, true));
        assert_int_equal(conn_release(ca, space, "lease"), 0);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* A file system that is not of the kinds known to answer. */
static void mount_foreign(const char *name)
{
        const char *path = make_directory(name);
        char options[3 * PATH_MAX], lower[64], upper[64], work[64];

        (void)snprintf(lower, sizeof(lower), "%s.lower", name);
        (void)snprintf(upper, sizeof(upper), "%s.upper", name);
        (void)snprintf(work, sizeof(work), "%s.work", name);
        (void)snprintf(options, sizeof(options), "lowerdir=%s,upperdir=%s,workdir=%s", make_directory(lower),
                       make_directory(upper), make_directory(work));
        if (mount("overlay", path, "overlay", 0, options) < 0)
                mount_at("none", path, "hugetlbfs", 0, NULL);
}

/* On storage that may hang lockd makes no folder (libvirtd would wait), and on storage that may be shared with other hosts
 * it removes no lease file. */
static void test_foreign_file_system(void **state)
{
        const char *missing = work_path("foreign/missing"), *space = work_path("foreign/leases");
        const char *lease = work_path("foreign/leases/lease");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        mount_foreign("foreign");
        settle(ca);
        assert_int_equal(mkdir(space, 0700), 0);
        assert_int_equal(conn_create_lockspace(ca, missing), 0);
        assert_false(file_exists(missing));
        assert_system_error(ca, conn_acquire(ca, missing, "lease", AUTOCREATE), ENOENT, "No such file or directory");
        assert_false(file_exists(missing));

        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_acquire(ca, space, "lease", AUTOCREATE), 0);
        assert_true(file_exists(lease));
        assert_false(is_lockable(lease, false));
        assert_busy(cb, conn_acquire(cb, "", lease, 0), "by VM 'alpha'");
        assert_int_equal(conn_release(ca, space, "lease"), 0);
        assert_true(file_exists(lease));
        assert_true(is_lockable(lease, false));
        assert_refused(ca, conn_delete_resource(ca, space, "lease"), VIRTLOCK_ERR_OPERATION_DENIED, VIRTLOCK_FROM_LOCKSPACE,
                       "not known to be local");
        assert_true(file_exists(lease));

        assert_int_equal(umount(work_path("foreign")), 0);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* A local symbolic link that leads to such storage does not make it local. */
static void test_foreign_by_symlink(void **state)
{
        const char *lease = work_path("shared-fs/leases/lease"), *space = work_path("to-shared-fs"), *way = work_path("way");
        const char *below = work_path("way/leases");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        mount_foreign("shared-fs");
        settle(conn);
        assert_int_equal(mkdir(work_path("shared-fs/leases"), 0700), 0);
        assert_int_equal(symlink(work_path("shared-fs/leases"), space), 0);
        assert_int_equal(symlink("shared-fs", way), 0);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        for (int i = 0; i < 2; i++) {
                const char *path = i == 0 ? space : below;

                assert_int_equal(conn_acquire(conn, path, "lease", AUTOCREATE), 0);
                assert_int_equal(conn_release(conn, path, "lease"), 0);
                assert_true(file_exists(lease));
                assert_refused(conn, conn_delete_resource(conn, path, "lease"), VIRTLOCK_ERR_OPERATION_DENIED,
                               VIRTLOCK_FROM_LOCKSPACE, "not known to be local");
                assert_true(file_exists(lease));
        }
        assert_int_equal(umount(work_path("shared-fs")), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* An automount point whose server does not answer: nothing touches it, so nothing waits for it. */
static void test_automount_point(void **state)
{
        const char *point = make_directory("automount"), *below = work_path("automount/leases");
        Vm a = vm_start(d, "alpha"), server = vm_start_bare("automounter");
        Conn *conn = vm_conn(d, &a);
        char options[128];
        int fds[2];

        (void)state;
        /* A process group of its own: the kernel lets that of the automounter pass. */
        assert_int_equal(setpgid(server.pid, server.pid), 0);
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        (void)snprintf(options, sizeof(options), "fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", fds[1], (int)server.pid);
        if (mount("automounter", point, "autofs", 0, options) < 0) {
                print_error("autofs cannot be mounted here (%s): lockspaces at automount points are NOT tested\n",
                            strerror(errno));
                skip();
        }
        settle(conn);
        assert_int_equal(conn_create_lockspace(conn, below), 0);
        assert_refused(conn, conn_acquire(conn, below, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                       "is not mounted");
        assert_int_equal(umount(point), 0);
        close(fds[0]);
        close(fds[1]);
        conn_close(conn);
        vm_kill(&a);
        vm_kill(&server);
}

/* ---- what is no lease ---- */

/* "../x" as a lease's name: names lead nowhere but into the lockspace. */
static void test_lease_names(void **state)
{
        const char *space = make_directory("names");
        char too_long[257], deep_path[4200];
        const char *const bad[] = { "", ".", "..", "../victim", "sub/lease", "/etc/hostname", "lease/", too_long };
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        memset(too_long, 'x', 256);
        too_long[256] = '\0';
        (void)make_file("victim", NULL);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                assert_refused(conn, conn_acquire(conn, space, bad[i], AUTOCREATE), VIRTLOCK_ERR_SYSTEM,
                               VIRTLOCK_FROM_LOCKSPACE, "not a lease name");
                assert_int_not_equal(conn_create_resource(conn, space, bad[i]), 0);
                assert_int_not_equal(conn_delete_resource(conn, space, bad[i]), 0);
        }
        assert_true(file_exists(work_path("victim")));
        assert_int_equal(rmdir(space), 0); /* still empty */

        /* Images are named by absolute paths: lockd's own working directory is nobody's business. */
        assert_refused(conn, conn_acquire(conn, "", "disk.img", AUTOCREATE), VIRTLOCK_ERR_SYSTEM, VIRTLOCK_FROM_LOCKSPACE,
                       "absolute path");
        assert_refused(conn, conn_acquire(conn, "", "", AUTOCREATE), VIRTLOCK_ERR_SYSTEM, VIRTLOCK_FROM_LOCKSPACE,
                       "absolute path");
        memset(deep_path, '/', 4096);
        deep_path[4096] = '\0';
        assert_system_error(conn, conn_acquire(conn, "", deep_path, 0), ENAMETOOLONG, "File name too long");
        conn_close(conn);
        vm_kill(&a);
}

/* A link in a lockspace leads to a file that is no lease: refused, and its target left alone. Images may be links. */
static void test_symlink_in_lockspace(void **state)
{
        const char *space = make_directory("linked"), *target = make_file("target", NULL);
        const char *dangling = work_path("dangling-target");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(symlink(target, work_path("linked/link")), 0);
        assert_int_equal(symlink(dangling, work_path("linked/dangling")), 0);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (uint32_t flags = 0; flags <= (SHARED | AUTOCREATE); flags++) {
                assert_system_error(conn, conn_acquire(conn, space, "link", flags), ELOOP, "symbolic link");
                assert_system_error(conn, conn_acquire(conn, space, "dangling", flags), ELOOP, "symbolic link");
        }
        assert_int_not_equal(conn_create_resource(conn, space, "dangling"), 0);
        assert_int_not_equal(conn_delete_resource(conn, space, "link"), 0);
        assert_true(file_exists(target));
        assert_false(file_exists(dangling));
        assert_int_equal(conn_acquire(conn, "", work_path("linked/link"), 0), 0);
        assert_false(is_lockable(target, true));
        conn_close(conn);
        vm_kill(&a);
}

/* What is wrong with an image that is a link is said in terms of images and links. */
static void test_image_links(void **state)
{
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(symlink("circle", work_path("circle")), 0);
        assert_system_error(conn, conn_acquire(conn, "", work_path("circle"), 0), ELOOP,
                            "Too many levels of symbolic links");
        if (strstr(conn_message(conn), "lease file"))
                fail_msg("an image is no lease file: %s", conn_message(conn));
        /* A link to nothing is a file that is missing, not one that is replaced again and again. */
        assert_int_equal(symlink(work_path("nothing"), work_path("dangling")), 0);
        assert_system_error(conn, conn_acquire(conn, "", work_path("dangling"), 0), ENOENT, "No such file or directory");
        assert_system_error(conn, conn_acquire(conn, "", work_path("dangling"), AUTOCREATE), ENOENT,
                            "No such file or directory");
        conn_close(conn);
        vm_kill(&a);
}

static int watch_opens(const char *path)
{
        int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

        assert_true(fd >= 0);
        assert_true(inotify_add_watch(fd, path, IN_OPEN) >= 0);
        return fd;
}

static bool was_opened(int fd)
{
        char events[4096];
        ssize_t n = read(fd, events, sizeof(events));

        assert_true(n > 0 || errno == EAGAIN);
        close(fd);
        return n > 0;
}

/* Opening a device can have effects, opening a FIFO can wait for ever: only files and disks are opened. */
static void test_only_files_are_opened(void **state)
{
        const char *space = make_directory("kinds"), *fifo = work_path("kinds/fifo"), *device = work_path("kinds/device");
        const char *file = make_file("kinds/file", NULL);
        const char *bound = work_path("kinds/socket");
        const char *const kinds[] = { "fifo", "device", "socket", "directory" };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int watch, sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        (void)make_directory("kinds/directory");
        assert_int_equal(mkfifo(fifo, 0600), 0);
        assert_int_equal(mknod(device, S_IFCHR | 0600, makedev(1, 3)), 0);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", bound);
        assert_int_equal(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
        close(sock);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
                for (uint32_t flags = 0; flags <= (SHARED | AUTOCREATE); flags++) {
                        char path[PATH_MAX];
                        bool is_directory = strcmp(kinds[i], "directory") == 0;

                        (void)snprintf(path, sizeof(path), "%s/%s", space, kinds[i]);
                        watch = watch_opens(path);
                        assert_system_error(conn, conn_acquire(conn, space, kinds[i], flags), is_directory ? EISDIR : EINVAL,
                                            is_directory ? "Is a directory" : "neither a regular file nor a block device");
                        assert_system_error(conn, conn_acquire(conn, "", path, flags), is_directory ? EISDIR : EINVAL,
                                            is_directory ? "Is a directory" : "neither a regular file nor a block device");
                        assert_false(was_opened(watch));
                        assert_int_not_equal(conn_delete_resource(conn, space, kinds[i]), 0);
                        assert_true(file_exists(path));
                }
        /* The watch does see what is opened. */
        watch = watch_opens(file);
        assert_int_equal(conn_acquire(conn, space, "file", 0), 0);
        assert_true(was_opened(watch));
        conn_close(conn);
        vm_kill(&a);
}

/* ---- causes ---- */

/* "Permission denied" shown as "locked", and the like: each cause has a message of its own, and none of them says that
 * somebody holds a lock. */
static void test_causes(void **state)
{
        const char *readonly = make_directory("ro"), *full = make_directory("full");
        char too_long[PATH_MAX];
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        (void)make_file("plain", "data");
        (void)make_file("ro/disk.img", "data");
        mount_at(readonly, readonly, NULL, MS_BIND, NULL);
        mount_at(NULL, readonly, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
        mount_at("tmpfs", full, "tmpfs", 0, "nr_inodes=2");
        (void)make_file("full/last", NULL);
        (void)snprintf(too_long, sizeof(too_long), "%s/%0300d", getenv("WORK"), 0);

        assert_system_error(conn, conn_acquire(conn, "", work_path("missing.img"), 0), ENOENT, "No such file or directory");
        assert_non_null(strstr(conn_message(conn), "Unable to open resource"));
        assert_non_null(strstr(conn_message(conn), work_path("missing.img")));
        assert_system_error(conn, conn_acquire(conn, "", work_path("missing/disk.img"), AUTOCREATE), ENOENT,
                            "No such file or directory");
        assert_system_error(conn, conn_acquire(conn, "", work_path("plain/disk.img"), AUTOCREATE), ENOTDIR,
                            "Not a directory");
        assert_system_error(conn, conn_acquire(conn, "", readonly, 0), EISDIR, "Is a directory");
        assert_system_error(conn, conn_acquire(conn, "", work_path("ro/disk.img"), 0), EROFS, "mounted read-only");
        assert_system_error(conn, conn_acquire(conn, "", work_path("ro/new.img"), AUTOCREATE), EROFS, "mounted read-only");
        assert_system_error(conn, conn_acquire(conn, "", work_path("full/new.img"), AUTOCREATE), ENOSPC, "is full");
        assert_system_error(conn, conn_acquire(conn, "", too_long, 0), ENAMETOOLONG, "File name too long");
        assert_int_equal(list_leases(d)->records.records_len, 0);
        conn_close(conn);
        vm_kill(&a);
}

static int start_without_privilege(void **state)
{
        (void)state;
        daemon_start_under(d, "setpriv --bounding-set=-dac_override,-dac_read_search", NULL);
        return 0;
}

static void test_permission(void **state)
{
        const char *image = make_file("forbidden.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(chmod(image, 0), 0);
        for (uint32_t flags = 0; flags <= (SHARED | AUTOCREATE); flags++) {
                assert_system_error(conn, conn_acquire(conn, "", image, flags), EACCES, "Permission denied");
                assert_non_null(strstr(conn_message(conn), "SELinux"));
                assert_null(strstr(conn_message(conn), "is locked"));
        }
        conn_close(conn);
        vm_kill(&a);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_lockspaces),
                TEST(test_lockspace_that_cannot_be_made),
                TEST(test_missing_mount_of_fstab),
                cmocka_unit_test_teardown(test_missing_mount_at_start, stop),
                cmocka_unit_test_teardown(test_missing_mount_of_configuration, stop),
                TEST(test_request_behind_an_unmount),
                TEST(test_folder_after_mount),
                cmocka_unit_test_teardown(test_configured_lockspace, stop),
                TEST(test_mount_over_a_held_lease),
                TEST(test_foreign_file_system),
                TEST(test_foreign_by_symlink),
                TEST(test_automount_point),
                TEST(test_lease_names),
                TEST(test_symlink_in_lockspace),
                TEST(test_image_links),
                TEST(test_only_files_are_opened),
                TEST(test_causes),
                cmocka_unit_test_setup_teardown(test_permission, start_without_privilege, stop),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
