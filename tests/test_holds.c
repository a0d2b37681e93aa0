/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may hold what: exclusion, sharing, lease files, identity and release. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
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

static mode_t mode_of(const char *path)
{
        struct stat st;

        assert_int_equal(lstat(path, &st), 0);
        return st.st_mode & 07777;
}

/* The main job: the second VM is refused with the first one's name, and the first one's end frees the image. */
static void test_second_is_refused_by_name(void **state)
{
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_false(is_lockable(image, false));
        assert_busy(cb, conn_acquire(cb, "", image, 0), "is locked by VM 'alpha'");
        assert_non_null(strstr(conn_message(cb), uuid_text(a.uuid)));
        conn_close(ca);
        assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        assert_int_equal(conn_acquire(cb, "", image, 0), 0);
        conn_close(cb);
        vm_kill(&b);
        wait_unlisted(d, "", image);
}

/* Two may have a disk only when both have it shared; a refused try changes nothing for the one that has it. */
static void test_matrix(void **state)
{
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        const char *image = make_file("matrix.img", "data");

        (void)state;
        for (uint32_t first = 0; first <= SHARED; first++)
                for (uint32_t second = 0; second <= SHARED; second++)
                        for (int same = 0; same <= 1; same++) {
                                Conn *other = same ? ca : cb;
                                bool both = first && second;

                                assert_int_equal(conn_acquire(ca, "", image, first), 0);
                                assert_int_equal(conn_acquire(other, "", image, second),
                                                 both ? 0 : VIRTLOCK_ERR_RESOURCE_BUSY);
                                assert_int_equal(count_holds(d, "", image), both ? 2 : 1);
                                assert_int_equal(find_lease(d, "", image)->mode,
                                                 first ? LOCKD_MODE_SHARED : LOCKD_MODE_EXCLUSIVE);
                                assert_false(is_lockable(image, false));
                                assert_int_equal(is_lockable(image, true), first != 0);
                                if (both)
                                        assert_int_equal(conn_release(other, "", image), 0);
                                assert_false(is_lockable(image, false));
                                assert_int_equal(conn_release(ca, "", image), 0);
                                assert_true(is_lockable(image, false));
                        }
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* A disk plugged in twice: the second time is refused, and the first hold is not hurt. */
static void test_same_owner_again(void **state)
{
        const char *image = make_file("twice.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *first = vm_conn(d, &a), *second = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_acquire(first, "", image, 0), 0);
        assert_busy(first, conn_acquire(first, "", image, 0), "is locked by VM 'alpha'");
        assert_busy(second, conn_acquire(second, "", image, 0), "is locked by VM 'alpha'");
        assert_int_equal(count_holds(d, "", image), 1);
        assert_false(is_lockable(image, true));
        conn_close(first);
        conn_close(second);
        vm_kill(&a);
}

/* One VM may have a shared disk several times: each release ends one hold, and only the last one the lock. */
static void test_shared_several_times(void **state)
{
        const char *image = make_file("shared.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        for (unsigned n = 1; n <= 3; n++) {
                assert_int_equal(conn_acquire(conn, "", image, SHARED), 0);
                assert_int_equal(count_holds(d, "", image), n);
        }
        for (unsigned n = 3; n >= 1; n--) {
                assert_int_equal(count_holds(d, "", image), n);
                assert_false(is_lockable(image, false));
                assert_int_equal(conn_release(conn, "", image), 0);
        }
        assert_null(find_lease(d, "", image));
        assert_true(is_lockable(image, false));
        assert_busy(conn, conn_release(conn, "", image), "is not locked");
        conn_close(conn);
        vm_kill(&a);
}

/* A shared disk that three VMs have: who wants it alone learns of one of them, and that there are more. */
static void test_refusal_counts_the_others(void **state)
{
        const char *image = make_file("many.img", "data");
        Vm vms[] = { vm_start(d, "one"), vm_start(d, "two"), vm_start(d, "three"), vm_start(d, "late") };
        Conn *conns[4];

        (void)state;
        for (int i = 0; i < 4; i++)
                conns[i] = vm_conn(d, &vms[i]);
        for (int i = 0; i < 3; i++)
                assert_int_equal(conn_acquire(conns[i], "", image, SHARED), 0);
        assert_busy(conns[3], conn_acquire(conns[3], "", image, 0), "by VM 'one'");
        assert_non_null(strstr(conn_message(conns[3]), "and 2 more"));
        /* The death of one leaves the others' holds. */
        vm_kill(&vms[0]);
        wait_until(count_holds(d, "", image) == 2);
        assert_false(is_lockable(image, false));
        for (int i = 0; i < 4; i++)
                conn_close(conns[i]);
        for (int i = 1; i < 4; i++)
                vm_kill(&vms[i]);
}

/* ---- lease files ---- */

/* Lease files do not pile up: lockd makes one that is missing, for nobody else to read, and removes it with the last hold. */
static void test_autocreate(void **state)
{
        const char *space = make_directory("auto");
        const char *lease = work_path("auto/lease"), *image = work_path("auto.img");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_system_error(ca, conn_acquire(ca, space, "lease", 0), ENOENT, "No such file or directory");
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                assert_int_equal(conn_acquire(ca, space, "lease", mode | AUTOCREATE), 0);
                assert_true(file_exists(lease));
                assert_int_equal(mode_of(lease), 0600);
                assert_true(find_lease(d, space, "lease")->autocreate);
                if (mode == SHARED) {
                        assert_int_equal(conn_acquire(cb, space, "lease", mode | AUTOCREATE), 0);
                        assert_int_equal(conn_release(ca, space, "lease"), 0);
                        assert_true(file_exists(lease));
                        assert_int_equal(conn_release(cb, space, "lease"), 0);
                } else
                        assert_int_equal(conn_release(ca, space, "lease"), 0);
                assert_false(file_exists(lease));
        }
        assert_int_equal(conn_acquire(ca, "", image, AUTOCREATE), 0);
        assert_int_equal(mode_of(image), 0600);
        /* The end of the owner removes it, too. */
        assert_int_equal(conn_acquire(ca, space, "lease", AUTOCREATE), 0);
        vm_kill(&a);
        wait_unlisted(d, space, "lease");
        wait_unlisted(d, "", image);
        assert_false(file_exists(lease));
        assert_false(file_exists(image));
        conn_close(ca);
        conn_close(cb);
        vm_kill(&b);
}

/* A lockspace may turn out to be a folder of images: what has content, or another name, or was there and not asked to be
 * made, is never removed. */
static void test_content_is_never_unlinked(void **state)
{
        const char *space = make_directory("images");
        const char *image = make_file("images/disk.img", "content"), *linked = make_file("images/linked", NULL);
        const char *plain = make_file("images/plain", NULL), *written = work_path("images/written");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        int fd;

        (void)state;
        assert_int_equal(link(linked, work_path("images/other")), 0);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                assert_int_equal(conn_acquire(conn, space, "disk.img", mode | AUTOCREATE), 0);
                assert_int_equal(conn_acquire(conn, space, "linked", mode | AUTOCREATE), 0);
                assert_int_equal(conn_acquire(conn, space, "plain", mode), 0);
                /* Made by lockd, written to by the VM. */
                assert_int_equal(conn_acquire(conn, space, "written", mode | AUTOCREATE), 0);
                fd = open(written, O_WRONLY | O_CLOEXEC);
                assert_int_equal(write(fd, "data", 4), 4);
                close(fd);
                assert_int_equal(conn_release(conn, space, "disk.img"), 0);
                assert_int_equal(conn_release(conn, space, "linked"), 0);
                assert_int_equal(conn_release(conn, space, "plain"), 0);
                assert_int_equal(conn_release(conn, space, "written"), 0);
                assert_true(file_exists(image));
                assert_true(file_exists(linked));
                assert_true(file_exists(plain));
                assert_true(file_exists(written));
                assert_true(is_lockable(image, false));
                assert_true(is_lockable(linked, false));
        }
        conn_close(conn);
        vm_kill(&a);
}

/* Somebody renames or replaces the file of a lease under its holder: neither the new file nor the old one is removed. */
static void test_replaced_file_is_not_deleted(void **state)
{
        const char *space = make_directory("replaced");
        const char *lease = work_path("replaced/lease"), *away = work_path("replaced/away");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (int replaced = 0; replaced <= 1; replaced++)
                for (uint32_t mode = 0; mode <= SHARED; mode++) {
                        assert_int_equal(conn_acquire(conn, space, "lease", mode | AUTOCREATE), 0);
                        assert_int_equal(rename(lease, away), 0);
                        if (replaced)
                                (void)make_file("replaced/lease", NULL);
                        assert_int_equal(conn_release(conn, space, "lease"), 0);
                        assert_int_equal(file_exists(lease), replaced);
                        assert_true(file_exists(away));
                        assert_true(is_lockable(away, false));
                        assert_int_equal(unlink(away), 0);
                        if (replaced)
                                assert_int_equal(unlink(lease), 0);
                }
        /* A symbolic link in its place: neither it nor its target goes. */
        assert_int_equal(conn_acquire(conn, space, "lease", AUTOCREATE), 0);
        assert_int_equal(rename(lease, away), 0);
        assert_int_equal(symlink(away, lease), 0);
        assert_int_equal(conn_release(conn, space, "lease"), 0);
        assert_true(file_exists(lease));
        assert_true(file_exists(away));
        conn_close(conn);
        vm_kill(&a);
}

/* ---- outside processes ---- */

/* A process outside lockd that locks byte 0 of path until it is killed. */
static pid_t lock_outside(const char *path, int command, short type)
{
        struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_len = 1 };
        int fds[2], fd;
        pid_t pid;
        char byte;

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                fd = open(path, O_RDWR | O_CLOEXEC);
                if (fd < 0 || fcntl(fd, command, &lock) < 0 || write(fds[1], "k", 1) != 1)
                        _exit(1);
                for (;;)
                        (void)pause();
        }
        close(fds[1]);
        assert_int_equal(read(fds[0], &byte, 1), 1);
        close(fds[0]);
        return pid;
}

static void end_outside(pid_t pid)
{
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Another program has the image: its lock counts, whichever of the two kinds it is, and its pid is named where the kernel
 * tells. */
static void test_outside_process(void **state)
{
        const char *image = make_file("outside.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        char text[64];
        pid_t pid;

        (void)state;
        pid = lock_outside(image, F_SETLK, F_WRLCK);
        (void)snprintf(text, sizeof(text), "is locked by process %d, outside lockd", (int)pid);
        assert_busy(conn, conn_acquire(conn, "", image, 0), text);
        assert_busy(conn, conn_acquire(conn, "", image, SHARED), text);
        assert_null(find_lease(d, "", image));
        end_outside(pid);

        pid = lock_outside(image, F_OFD_SETLK, F_WRLCK);
        assert_busy(conn, conn_acquire(conn, "", image, 0), "is locked by a process outside");
        end_outside(pid);

        pid = lock_outside(image, F_SETLK, F_RDLCK);
        assert_int_equal(conn_acquire(conn, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_acquire(conn, "", image, SHARED), 0);
        assert_int_equal(conn_release(conn, "", image), 0);
        end_outside(pid);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* Another daemon has the lease file shared as well: it is not removed under its feet. */
static void test_shared_outside_keeps_the_file(void **state)
{
        const char *space = make_directory("mixed"), *lease = make_file("mixed/lease", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        pid_t pid = lock_outside(lease, F_SETLK, F_RDLCK);

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_int_equal(conn_acquire(conn, space, "lease", SHARED | AUTOCREATE), 0);
        assert_int_equal(conn_release(conn, space, "lease"), 0);
        assert_true(file_exists(lease));
        assert_false(is_lockable(lease, false));
        end_outside(pid);
        assert_true(is_lockable(lease, false));
        conn_close(conn);
        vm_kill(&a);
}

/* Takes and releases one lease over and over; who has it makes a file that must not be there yet. */
static void contend(const TestDaemon *daemon, const char *space, const char *inside, int rounds)
{
        const uint8_t uuid[16] = { (uint8_t)getpid() };
        Conn *conn = conn_open(daemon);
        int64_t deadline = now_msec() + 4 * HARNESS_DEADLINE_MSEC;

        if (conn_register(conn, "contender", uuid, 1, (uint32_t)getpid()) != 0 || conn_create_lockspace(conn, space) != 0)
                _exit(2);
        for (int i = 0; i < rounds;) {
                int fd, r = conn_acquire(conn, space, "lease", AUTOCREATE);

                if (now_msec() > deadline)
                        _exit(3);
                if (r == VIRTLOCK_ERR_RESOURCE_BUSY)
                        continue;
                fd = r == 0 ? open(inside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
                if (fd < 0) {
                        fprintf(stderr, "round %d: %s\n", i, r == 0 ? "both have it" : conn_message(conn));
                        _exit(1);
                }
                close(fd);
                if (unlink(inside) < 0 || conn_release(conn, space, "lease") != 0)
                        _exit(4);
                i++;
        }
        _exit(0);
}

/* Two daemons, one folder of leases, files that come and go: never do both have the lease. */
static void test_unlink_race(void **state)
{
        const char *space = make_directory("contended"), *inside = work_path("inside");
        TestDaemon second;
        pid_t pids[3];
        int status;

        (void)state;
        daemon_start(&second, NULL, NULL);
        for (int i = 0; i < 3; i++) {
                pids[i] = fork();
                assert_true(pids[i] >= 0);
                if (pids[i] == 0) {
                        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                        contend(i == 0 ? &second : d, space, inside, 1000);
                }
        }
        for (int i = 0; i < 3; i++) {
                assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
                assert_int_equal(status, 0);
        }
        assert_false(file_exists(work_path("contended/lease")));
        daemon_stop(&second);
}

/* ---- identity ---- */

/* One image under two names is one lease: whichever way the second VM writes it, it is refused with the holder's name and
 * the name under which that has it. */
static void test_aliases(void **state)
{
        const char *space = make_directory("alias"), *image = make_file("alias/disk.img", "data");
        const char *bound = make_directory("bound"), *other_space = make_directory("links");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        struct {
                const char *space, *name;
        } names[8];
        char doubled[PATH_MAX], dotted[PATH_MAX], long_way[PATH_MAX];
        int n = 0;

        (void)state;
        assert_int_equal(symlink("alias/disk.img", work_path("symlink")), 0);
        assert_int_equal(symlink("alias", work_path("directory-link")), 0);
        assert_int_equal(link(image, work_path("links/hard-link")), 0);
        assert_int_equal(mount(space, bound, NULL, MS_BIND, NULL), 0);
        (void)snprintf(doubled, sizeof(doubled), "%s//disk.img", space);
        (void)snprintf(dotted, sizeof(dotted), "%s/./disk.img", space);
        (void)snprintf(long_way, sizeof(long_way), "%s/../alias/disk.img", space);
        names[n].space = "", names[n++].name = image;
        names[n].space = "", names[n++].name = work_path("symlink");
        names[n].space = "", names[n++].name = work_path("directory-link/disk.img");
        names[n].space = "", names[n++].name = work_path("bound/disk.img");
        names[n].space = "", names[n++].name = doubled;
        names[n].space = "", names[n++].name = long_way;
        names[n].space = space, names[n++].name = "disk.img";
        names[n].space = other_space, names[n++].name = "hard-link";
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_create_lockspace(ca, other_space), 0);
        for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++) {
                        char under[PATH_MAX + 32];

                        /* Alone: nobody else, not even the same VM. */
                        assert_int_equal(conn_acquire(ca, names[i].space, names[i].name, 0), 0);
                        assert_busy(cb, conn_acquire(cb, names[j].space, names[j].name, 0), "by VM 'alpha'");
                        (void)snprintf(under, sizeof(under), "under the name %s", names[i].name);
                        if (strcmp(names[i].name, names[j].name) != 0 && !strstr(conn_message(cb), under))
                                fail_msg("no \"%s\" in: %s", under, conn_message(cb));
                        assert_int_equal(conn_acquire(cb, names[j].space, names[j].name, SHARED),
                                         VIRTLOCK_ERR_RESOURCE_BUSY);
                        assert_int_equal(conn_acquire(ca, names[j].space, names[j].name, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
                        assert_int_equal(list_leases(d)->records.records_len, 1);
                        assert_int_equal(conn_release(ca, names[i].space, names[i].name), 0);
                        assert_true(is_lockable(image, false));
                        if (i == j)
                                continue;
                        /* Shared: one lease, two names; the one that goes does not take the other's lock along. */
                        assert_int_equal(conn_acquire(ca, names[i].space, names[i].name, SHARED), 0);
                        assert_int_equal(conn_acquire(cb, names[j].space, names[j].name, SHARED), 0);
                        assert_int_equal(list_leases(d)->records.records_len, 1);
                        assert_int_equal(conn_acquire(ca, names[j].space, names[j].name, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
                        assert_int_equal(conn_release(cb, names[j].space, names[j].name), 0);
                        assert_false(is_lockable(image, false));
                        assert_int_equal(conn_release(ca, names[i].space, names[i].name), 0);
                        assert_true(is_lockable(image, false));
                        /* ... in the other order. */
                        assert_int_equal(conn_acquire(ca, names[i].space, names[i].name, SHARED), 0);
                        assert_int_equal(conn_acquire(cb, names[j].space, names[j].name, SHARED), 0);
                        assert_int_equal(conn_release(ca, names[i].space, names[i].name), 0);
                        assert_false(is_lockable(image, false));
                        assert_busy(ca, conn_acquire(ca, names[i].space, names[i].name, 0), "by VM 'beta'");
                        assert_int_equal(conn_release(cb, names[j].space, names[j].name), 0);
                        assert_true(is_lockable(image, false));
                }
        assert_int_equal(umount(bound), 0);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* A release counts for the name that was acquired and no other. */
static void test_release_is_by_name(void **state)
{
        const char *image = make_file("named.img", "data"), *renamed = work_path("renamed.img");
        const char *alias = work_path("alias.img");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(symlink("named.img", alias), 0);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_busy(conn, conn_release(conn, "", alias), "is not locked");
        assert_false(is_lockable(image, false));
        /* The file has another name now: the old one is what libvirt knows. */
        assert_int_equal(rename(image, renamed), 0);
        assert_busy(conn, conn_release(conn, "", renamed), "is not locked");
        assert_int_equal(conn_release(conn, "", image), 0);
        assert_true(is_lockable(renamed, false));
        /* The same for two holds under two names. */
        assert_int_equal(rename(renamed, image), 0);
        assert_int_equal(conn_acquire(conn, "", image, SHARED), 0);
        assert_int_equal(conn_acquire(conn, "", alias, SHARED), 0);
        assert_int_equal(conn_release(conn, "", alias), 0);
        assert_busy(conn, conn_release(conn, "", alias), "is not locked");
        assert_int_equal(conn_release(conn, "", image), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* A held image was replaced under its name. The old file stays locked and the name stays taken: one name cannot be two
 * files. Once the holder is gone the name means the new file. */
static void test_replaced_while_held(void **state)
{
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                const char *image = make_file("swap.img", "old"), *old = work_path("swap.old"), *fresh;

                assert_int_equal(conn_acquire(ca, "", image, mode), 0);
                assert_int_equal(rename(image, old), 0);
                fresh = make_file("swap.img", "new");
                assert_busy(cb, conn_acquire(cb, "", image, mode), "by VM 'alpha'");
                assert_false(is_lockable(old, false));
                assert_true(is_lockable(fresh, false));
                assert_int_equal(conn_release(ca, "", image), 0);
                assert_true(is_lockable(old, false));
                assert_int_equal(conn_acquire(cb, "", image, mode), 0);
                assert_false(is_lockable(fresh, false));
                assert_int_equal(conn_release(cb, "", image), 0);
                assert_int_equal(unlink(old), 0);
        }
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* The wrong one lets go, or nobody has it: said as stock says it, and nothing changes. */
static void test_release_refusals(void **state)
{
        const char *image = make_file("mine.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        char text[64];

        (void)state;
        assert_busy(ca, conn_release(ca, "", image), "resource busy: Lockspace resource '");
        assert_non_null(strstr(conn_message(ca), "' is not locked"));
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                assert_int_equal(conn_acquire(ca, "", image, mode), 0);
                (void)snprintf(text, sizeof(text), "internal error: owner %d does not hold the resource lock", (int)b.pid);
                assert_refused(cb, conn_release(cb, "", image), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE, text);
                assert_non_null(strstr(conn_message(cb), "VM 'alpha'"));
                assert_false(is_lockable(image, false));
                assert_int_equal(conn_release(ca, "", image), 0);
        }
        assert_refused(ca, conn_release(ca, "/no/such/lockspace", "lease"), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC,
                       "Lockspace for path /no/such/lockspace does not exist");
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* ---- CREATE_RESOURCE and DELETE_RESOURCE ---- */

/* Stock deletes an image here. */
static void test_create_and_delete(void **state)
{
        const char *space = make_directory("resources"), *lease = work_path("resources/lease");
        const char *alias = work_path("resources/alias");
        const char *image = make_file("resources/disk.img", "content");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        pid_t pid;

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_create_resource(ca, space, "lease"), 0);
        assert_int_equal(mode_of(lease), 0600);
        assert_int_equal(conn_create_resource(ca, space, "lease"), 0);
        assert_true(is_lockable(lease, false));
        assert_int_equal(conn_delete_resource(ca, space, "lease"), 0);
        assert_false(file_exists(lease));
        assert_int_equal(conn_delete_resource(ca, space, "lease"), 0);

        assert_refused(ca, conn_delete_resource(ca, space, "disk.img"), VIRTLOCK_ERR_OPERATION_DENIED,
                       VIRTLOCK_FROM_LOCKSPACE, "is not deleted");
        assert_refused(ca, conn_delete_resource(ca, "", image), VIRTLOCK_ERR_OPERATION_DENIED, VIRTLOCK_FROM_LOCKSPACE,
                       "is not deleted");
        assert_true(file_exists(image));
        assert_true(is_lockable(image, false));

        /* Not while somebody has it, under whatever name. */
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                assert_int_equal(conn_acquire(ca, space, "lease", mode | AUTOCREATE), 0);
                assert_int_equal(link(lease, alias), 0);
                assert_busy(cb, conn_create_resource(cb, space, "lease"), "by VM 'alpha'");
                assert_busy(cb, conn_create_resource(cb, space, "alias"), "by VM 'alpha'");
                assert_busy(cb, conn_delete_resource(cb, space, "lease"), "by VM 'alpha'");
                assert_busy(cb, conn_delete_resource(cb, space, "alias"), "by VM 'alpha'");
                assert_busy(cb, conn_delete_resource(cb, "", lease), "by VM 'alpha'");
                assert_busy(ca, conn_delete_resource(ca, space, "lease"), "by VM 'alpha'");
                assert_true(file_exists(lease));
                assert_false(is_lockable(lease, false));
                assert_int_equal(unlink(alias), 0);
                assert_int_equal(conn_release(ca, space, "lease"), 0);
        }
        (void)make_file("resources/lease", NULL);
        pid = lock_outside(lease, F_SETLK, F_RDLCK);
        assert_busy(ca, conn_delete_resource(ca, space, "lease"), "outside lockd");
        assert_true(file_exists(lease));
        end_outside(pid);
        assert_refused(ca, conn_create_resource(ca, "/no/such/lockspace", "lease"), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC,
                       "does not exist");
        assert_refused(ca, conn_delete_resource(ca, "/no/such/lockspace", "lease"), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_RPC,
                       "does not exist");
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_second_is_refused_by_name),
                TEST(test_matrix),
                TEST(test_same_owner_again),
                TEST(test_shared_several_times),
                TEST(test_refusal_counts_the_others),
                TEST(test_autocreate),
                TEST(test_content_is_never_unlinked),
                TEST(test_replaced_file_is_not_deleted),
                TEST(test_outside_process),
                TEST(test_shared_outside_keeps_the_file),
                TEST(test_unlink_race),
                TEST(test_aliases),
                TEST(test_release_is_by_name),
                TEST(test_replaced_while_held),
                TEST(test_release_refusals),
                TEST(test_create_and_delete),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
