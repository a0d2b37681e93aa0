/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Take-over from stock virtlockd, and back. virtlockd runs as a copy in $WORK, which is replaced by lockd; SIGUSR1 has it
 * execute its own path. All the while another process tries to lock every image exclusively, and must never succeed.
 *
 * States that virtlockd would not write (cut off, of wrong types) are handed to lockd by a stand-in: a process that takes
 * the locks, leaves the file and executes lockd.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "exit_codes.h"
#include "harness.h"

#define STOCK "/usr/sbin/virtlockd"
#define STATE "/run/virtlockd-restart-exec.json"
#define IMAGES_MAX 16

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE

static TestDaemon daemon_under_test;
static char binary[128];
static int base_sockets;

/* ---- binaries ---- */

static const char *lockd_path(void)
{
        return getenv("LOCKD") ? getenv("LOCKD") : "build/lockd";
}

/* Puts a copy of from at to, at once. */
static void install(const char *from, const char *to)
{
        _cleanup_fd_ int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
        char temporary[160], buf[65536];
        ssize_t n;

        assert_true(in >= 0);
        (void)snprintf(temporary, sizeof(temporary), "%s.new", to);
        out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
        assert_true(out >= 0);
        while ((n = read(in, buf, sizeof(buf))) > 0)
                assert_int_equal(write(out, buf, (size_t)n), n);
        out = close_fd(out);
        assert_int_equal(rename(temporary, to), 0);
}

static bool runs(pid_t pid, const char *path)
{
        char exe[64];
        struct stat a, b;

        (void)snprintf(exe, sizeof(exe), "/proc/%d/exe", (int)pid);
        return stat(exe, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* ---- what the process has ---- */

static int count_fds(pid_t pid, const char *prefix)
{
        char dir[32], target[PATH_MAX];
        struct dirent *entry;
        int count = 0;
        DIR *d;

        (void)snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)pid);
        d = opendir(dir);
        while (d && (entry = readdir(d))) {
                ssize_t n = readlinkat(dirfd(d), entry->d_name, target, sizeof(target) - 1);

                target[n > 0 ? n : 0] = '\0';
                count += strncmp(target, prefix, strlen(prefix)) == 0;
        }
        if (d)
                closedir(d);
        return count;
}

/* Locks of that kind ("POSIX", "OFDLCK") on files under $WORK that its fds show. */
static int count_locks(pid_t pid, const char *kind)
{
        char dir[32], path[320], target[PATH_MAX], text[4096];
        struct dirent *entry;
        int count = 0;
        DIR *d;

        (void)snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)pid);
        d = opendir(dir);
        assert_non_null(d);
        while ((entry = readdir(d))) {
                ssize_t n = readlinkat(dirfd(d), entry->d_name, target, sizeof(target) - 1);
                FILE *file;

                target[n > 0 ? n : 0] = '\0';
                if (strncmp(target, getenv("WORK"), strlen(getenv("WORK"))) != 0)
                        continue;
                (void)snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", (int)pid, entry->d_name);
                file = fopen(path, "re");
                n = file ? (ssize_t)fread(text, 1, sizeof(text) - 1, file) : 0;
                if (file)
                        fclose(file);
                text[n] = '\0';
                count += strstr(text, kind) != NULL;
        }
        closedir(d);
        return count;
}

/* ---- the observer ---- */

typedef struct Observer {
        pid_t pid;
        volatile struct {
                unsigned long tries, got_in;
                bool stop;
        } *shared;
} Observer;

static void observe(Observer *observer, const char *const *images, int n)
{
        int fds[IMAGES_MAX];

        (void)close_range(3, ~0U, 0); /* copies of the stand-ins' ends would keep those alive */
        for (int i = 0; i < n; i++)
                if ((fds[i] = open(images[i], O_RDWR | O_CLOEXEC)) < 0)
                        _exit(1);
        while (!observer->shared->stop)
                for (int i = 0; i < n; i++)
                        for (int kind = 0; kind < 2; kind++) {
                                struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

                                if (fcntl(fds[i], kind ? F_OFD_SETLK : F_SETLK, &lock) == 0) {
                                        observer->shared->got_in++;
                                        lock.l_type = F_UNLCK;
                                        (void)fcntl(fds[i], kind ? F_OFD_SETLK : F_SETLK, &lock);
                                }
                                observer->shared->tries++;
                        }
        _exit(0);
}

static void observer_start(Observer *observer, const char *const *images, int n)
{
        observer->shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(observer->shared != MAP_FAILED);
        observer->pid = fork();
        if (observer->pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                observe(observer, images, n);
        }
        wait_until(observer->shared->tries > 0);
}

static void observer_end(Observer *observer)
{
        int status;

        observer->shared->stop = true;
        assert_int_equal(waitpid(observer->pid, &status, 0), observer->pid);
        assert_int_equal(status, 0);
        assert_int_equal(observer->shared->got_in, 0);
        assert_true(observer->shared->tries > 100);
        (void)munmap((void *)(uintptr_t)observer->shared, 4096);
}

/* ---- stock virtlockd ---- */

static void launch(char *const *argv)
{
        TestDaemon *d = &daemon_under_test;

        d->pid = fork();
        assert_true(d->pid >= 0);
        if (d->pid == 0) {
                int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)dup2(log, STDERR_FILENO);
                (void)dup2(log, STDOUT_FILENO);
                (void)close_range(3, ~0U, 0);
                execv(argv[0], argv);
                _exit(127);
        }
}

/* dir/name, with a number behind it unless that is negative. */
static void place(char *buf, size_t size, const char *dir, const char *name, int number)
{
        char digits[16] = "";

        if (number >= 0)
                (void)snprintf(digits, sizeof(digits), "%d", number);
        assert_true((size_t)snprintf(buf, size, "%s/%s%s", dir, name, digits) < size);
}

static void prepare(void)
{
        static int number;
        TestDaemon *d = &daemon_under_test;

        memset(d, 0, sizeof(*d));
        place(d->dir, sizeof(d->dir), getenv("WORK"), "t", number++);
        assert_int_equal(mkdir(d->dir, 0700), 0);
        (void)snprintf(d->lock_socket, sizeof(d->lock_socket), "/run/libvirt/virtlockd-sock");
        (void)snprintf(d->admin_socket, sizeof(d->admin_socket), "/run/libvirt/virtlockd-admin-sock");
        place(d->log, sizeof(d->log), d->dir, "log", -1);
        place(d->config, sizeof(d->config), d->dir, "virtlockd.conf", -1);
        place(binary, sizeof(binary), d->dir, "virtlockd", -1);
        (void)unlink(STATE);
        (void)unlink(STATE ".unread");
        (void)unlink(d->lock_socket);
        (void)unlink(d->admin_socket);
}

/* extra: an option, or NULL. */
static void start_stock(const char *extra)
{
        TestDaemon *d = &daemon_under_test;
        char *argv[] = { binary, (char *)(uintptr_t) "-f", d->config, (char *)(uintptr_t)extra, NULL };

        prepare();
        make_file(d->config + strlen(getenv("WORK")) + 1, "max_clients = 2000\n");
        install(STOCK, binary);
        launch(argv);
        wait_until(file_exists(d->lock_socket) && file_exists(d->admin_socket));
        base_sockets = count_fds(d->pid, "socket:");
}

/* Waits until virtlockd has just these connections: one that it has not seen the end of would end it. */
static void settle(int connections)
{
        wait_until(count_fds(daemon_under_test.pid, "socket:") == base_sockets + connections);
}

static void take_over(void)
{
        TestDaemon *d = &daemon_under_test;

        install(lockd_path(), binary);
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        wait_until(runs(d->pid, binary));
        wait_until(!file_exists(STATE));
        (void)list_leases(d);
}

/* A stock virtlockd is found by its pid file, which only it locks. */
static void end_all(void)
{
        daemon_end(&daemon_under_test);
}

static int teardown(void **state)
{
        (void)state;
        end_all();
        return 0;
}

static const lockd_hold *hold_of(const lockd_record *record, const char *vm)
{
        for (u_int i = 0; record && i < record->holds.holds_len; i++) {
                const lockd_bytes *name = &record->holds.holds_val[i].owner.name;

                if (name->lockd_bytes_len == strlen(vm) && memcmp(name->lockd_bytes_val, vm, strlen(vm)) == 0)
                        return &record->holds.holds_val[i];
        }
        return NULL;
}

static void expect_lease(const char *lockspace, const char *name, const Vm *vm, lockd_mode mode, lockd_state lease_state)
{
        const lockd_record *record = find_lease(&daemon_under_test, lockspace, name);
        const lockd_hold *hold;

        assert_non_null(record);
        assert_int_equal(record->mode, mode);
        assert_int_equal(record->state, lease_state);
        hold = hold_of(record, vm->name);
        assert_non_null(hold);
        assert_memory_equal(hold->owner.uuid, vm->uuid, 16);
        assert_int_equal(hold->owner.id, vm->id);
        assert_int_equal(hold->owner.pid, vm->pid);
}

/* ---- tests ---- */

/* What a host has: an image of one VM, a base image of two, an indirect lease. */
static void test_take_over(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image, *base, *folder, *alias, *lease, *images[3];
        Observer observer;
        Conn *ca, *cb;
        Vm a, b;
        pid_t pid;

        (void)state;
        start_stock(NULL);
        image = make_file("image", "data");
        base = make_file("base", "data");
        folder = work_path("leases");
        alias = work_path("alias");
        lease = work_path("leases/hash");
        assert_int_equal(symlink(image, alias), 0);
        a = vm_start(d, "alpha");
        b = vm_start(d, "beta");
        ca = vm_conn(d, &a);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_create_lockspace(ca, folder), 0);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_acquire(ca, "", base, SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", base, SHARED), 0);
        assert_int_equal(conn_acquire(ca, folder, "hash", AUTOCREATE), 0);
        settle(4);
        assert_int_equal(count_locks(d->pid, "POSIX"), 3);
        images[0] = image;
        images[1] = base;
        images[2] = lease;
        observer_start(&observer, images, 3);
        pid = d->pid;
        take_over();
        assert_int_equal(d->pid, pid);
        assert_int_equal(list_leases(d)->records.records_len, 3);
        expect_lease("", image, &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        expect_lease("", base, &a, LOCKD_MODE_SHARED, LOCKD_STATE_HELD);
        expect_lease("", base, &b, LOCKD_MODE_SHARED, LOCKD_STATE_HELD);
        expect_lease(folder, "hash", &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        assert_true(hold_of(find_lease(d, "", image), "alpha")->owner.proved);
        assert_int_equal(hold_of(find_lease(d, "", image), "alpha")->owner.connections, 1);
        assert_int_equal(count_locks(d->pid, "POSIX"), 0);
        assert_int_equal(count_locks(d->pid, "OFDLCK"), 3);
        assert_false(is_lockable(image, true));
        assert_true(is_lockable(base, true));
        /* The connections that virtlockd had, and its rules. */
        assert_int_equal(conn_acquire(cb, "", alias, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_non_null(strstr(conn_message(cb), "by VM 'alpha'"));
        assert_int_equal(conn_release(cb, "", image), VIRTLOCK_ERR_INTERNAL);
        assert_int_equal(conn_release(cb, "", base), 0);
        observer_end(&observer);
        assert_int_equal(conn_release(ca, "", base), 0);
        assert_true(is_lockable(base, false));
        conn_close(ca);
        assert_false(is_lockable(image, true));
        vm_kill(&a);
        wait_unlisted(d, "", image);
        wait_unlisted(d, folder, "hash");
        assert_true(is_lockable(image, false));
        assert_false(file_exists(lease));
        assert_int_equal(conn_acquire(cb, "", alias, 0), 0);
        conn_close(cb);
        vm_kill(&b);
}

/* virtlockd grants one image twice under two names. */
static void test_conflict(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image, *alias, *images[1];
        Observer observer;
        Conn *ca, *cb, *cc;
        Vm a, b, c;

        (void)state;
        start_stock(NULL);
        images[0] = image = make_file("twice", NULL);
        alias = work_path("twice-alias");
        assert_int_equal(symlink(image, alias), 0);
        a = vm_start(d, "alpha");
        b = vm_start(d, "beta");
        c = vm_start(d, "gamma");
        ca = vm_conn(d, &a);
        cb = vm_conn(d, &b);
        cc = vm_conn(d, &c);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_acquire(cb, "", alias, 0), 0);
        settle(6);
        observer_start(&observer, images, 1);
        take_over();
        assert_int_equal(list_leases(d)->records.records_len, 1);
        assert_int_equal(list_leases(d)->records.records_val[0].holds.holds_len, 2);
        assert_int_equal(list_leases(d)->records.records_val[0].state, LOCKD_STATE_CONFLICT);
        assert_true(daemon_log_has(d, "CONFLICT"));
        assert_int_equal(count_locks(d->pid, "OFDLCK"), 1);
        assert_int_equal(conn_acquire(cc, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_release(ca, "", image), 0);
        expect_lease("", alias, &b, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        assert_int_equal(conn_acquire(cc, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_acquire(ca, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        observer_end(&observer);
        vm_kill(&b);
        wait_unlisted(d, "", alias);
        assert_int_equal(conn_acquire(cc, "", image, 0), 0);
        conn_close(ca);
        conn_close(cb);
        conn_close(cc);
        vm_kill(&a);
        vm_kill(&c);
}

/* One owner several times; an owner without a process, as virtlockd knows it by 0 or by -1. */
static void test_repeated_and_nobody(void **state)
{
        static const uint8_t uuid[16] = { 1 }, other[16] = { 2 };
        TestDaemon *d = &daemon_under_test;
        const char *base, *xen, *minus, *odd;
        Conn *ca, *none, *negative, *admin;
        Vm a;

        (void)state;
        start_stock(NULL);
        base = make_file("base2", NULL);
        xen = make_file("xen", NULL);
        minus = make_file("minus", NULL);
        odd = make_file("odd \"name\"\\\n\x01 \xc3\xa9 \xe2\x82\xac", NULL);
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        none = conn_open(d);
        negative = conn_open(d);
        assert_int_equal(conn_register(none, "dom-u", uuid, 7, 0), 0);
        assert_int_equal(conn_register(negative, "dom \"m\"\n", other, 8, UINT32_MAX), 0);
        for (int i = 0; i < 3; i++)
                assert_int_equal(conn_acquire(ca, "", base, SHARED), 0);
        assert_int_equal(conn_acquire(none, "", xen, 0), 0);
        assert_int_equal(conn_acquire(negative, "", minus, 0), 0);
        assert_int_equal(conn_acquire(ca, "", odd, 0), 0);
        settle(4);
        take_over();
        assert_int_equal(list_leases(d)->records.records_len, 4);
        assert_int_equal(find_lease(d, "", base)->holds.holds_len, 3);
        assert_int_equal(hold_of(find_lease(d, "", xen), "dom-u")->owner.state, LOCKD_OWNER_NONE);
        assert_non_null(hold_of(find_lease(d, "", minus), "dom \"m\"\n"));
        assert_non_null(hold_of(find_lease(d, "", odd), "alpha"));
        for (int i = 0; i < 3; i++) {
                assert_false(is_lockable(base, false));
                assert_int_equal(conn_release(ca, "", base), 0);
        }
        assert_true(is_lockable(base, false));
        assert_int_equal(conn_release(none, "", minus), VIRTLOCK_ERR_INTERNAL);
        assert_int_equal(conn_release(negative, "", minus), 0);
        conn_close(none);
        conn_close(negative);
        assert_non_null(find_lease(d, "", xen));
        admin = admin_open(d);
        assert_int_equal(admin_release_call(admin, "", xen, "dom-u", LOCKD_RELEASE_SAFE), 0);
        assert_true(is_lockable(xen, false));
        conn_close(admin);
        conn_close(ca);
        vm_kill(&a);
}

/* A client whose process is gone ends virtlockd; here its locks stay until the copy of the connection is closed, and
 * whoever has its number now is left alone. */
static void test_dead_client_and_reused_pid(void **state)
{
        TestDaemon *d = &daemon_under_test;
        char image[128], last[16];
        Conn *ca;
        Vm a, stranger;
        int fd;

        (void)state;
        start_stock(NULL);
        (void)snprintf(image, sizeof(image), "%s", make_file("orphan", NULL));
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        conn_close(ca);
        settle(1);
        (void)vm_daemonize(&a);
        fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        (void)snprintf(last, sizeof(last), "%d", (int)a.pid - 1);
        assert_int_equal(write(fd, last, strlen(last)), (ssize_t)strlen(last));
        close(fd);
        stranger = vm_start_bare("stranger");
        assert_int_equal(stranger.pid, a.pid);
        take_over();
        expect_lease("", image, &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_ORPHANED);
        assert_int_equal(hold_of(find_lease(d, "", image), "alpha")->owner.state, LOCKD_OWNER_DEAD);
        ca = admin_open(d);
        assert_int_equal(admin_release_call(ca, "", image, "alpha", LOCKD_RELEASE_SAFE), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_not_equal(admin_release_call(ca, "", image, "alpha", LOCKD_RELEASE_KILL), 0);
        conn_close(ca);
        assert_true(vm_is_alive(&stranger));
        vm_kill(&stranger);
        assert_false(is_lockable(image, false));
        expect_lease("", image, &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_ORPHANED);
        vm_end_child(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
}

/* Owners without a connection of their own: one that lives, one that is dead, and one of whom virtlockd knows no more than
 * the number. */
static void test_owners_without_connection(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *living, *dead, *nameless;
        Conn *cl, *cd, *cn, *admin;
        Vm l, e, n;

        (void)state;
        start_stock(NULL);
        living = make_file("living", NULL);
        dead = make_file("dead", NULL);
        nameless = make_file("nameless", NULL);
        l = vm_start_bare("living");
        e = vm_start_bare("ended");
        n = vm_start_bare("nameless");
        cl = vm_conn(d, &l);
        cd = vm_conn(d, &e);
        cn = vm_conn(d, &n);
        assert_int_equal(conn_acquire(cl, "", living, 0), 0);
        assert_int_equal(conn_acquire(cd, "", dead, 0), 0);
        assert_int_equal(conn_acquire(cn, "", nameless, 0), 0);
        conn_close(cn);
        vm_kill(&e);
        settle(2);
        take_over();
        assert_int_equal(list_leases(d)->records.records_len, 3);
        expect_lease("", living, &l, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        expect_lease("", dead, &e, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        assert_non_null(hold_of(find_lease(d, "", nameless), "unknown"));
        assert_int_equal(find_lease(d, "", nameless)->holds.holds_val[0].owner.pid, n.pid);
        /* Nobody proved that it is the VM. */
        admin = admin_open(d);
        assert_int_equal(admin_release_call(admin, "", living, "living", LOCKD_RELEASE_KILL), VIRTLOCK_ERR_OPERATION_DENIED);
        assert_true(vm_is_alive(&l));
        vm_kill(&l);
        wait_unlisted(d, "", living);
        /* The end of a connection that is not its own ends nothing; an administrator does. */
        conn_close(cd);
        assert_non_null(find_lease(d, "", dead));
        assert_int_equal(admin_release_call(admin, "", dead, "ended", LOCKD_RELEASE_SAFE), 0);
        assert_true(is_lockable(dead, false));
        /* libvirtd comes and releases: now its name is known. */
        cn = vm_conn(d, &n);
        assert_int_equal(conn_release(cn, "", nameless), 0);
        assert_true(is_lockable(nameless, false));
        conn_close(cn);
        conn_close(cl);
        conn_close(admin);
        vm_kill(&n);
}

static void expect_classic(const char *one, const char *two)
{
        const lockd_record *record = find_lease(&daemon_under_test, "", one);

        if (!record)
                record = find_lease(&daemon_under_test, "", two); /* a lease goes by the name of its first hold */
        assert_non_null(record);
        assert_int_equal(record->kind, LOCKD_KIND_CLASSIC);
        assert_int_equal(record->state, LOCKD_STATE_CLASSIC);
        assert_int_equal(record->holds.holds_len, 2);
        assert_int_equal(count_locks(daemon_under_test.pid, "POSIX"), 1);
        assert_false(is_lockable(one, false));
        assert_false(is_lockable(two, false));
}

/* On a file system that is not known to be local the lock stays a classic one, also over an upgrade. */
static void test_foreign_stays_classic(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *mount_point, *options, *image, *alias;
        char text[512];
        Conn *ca, *admin;
        Vm a;

        (void)state;
        start_stock(NULL);
        assert_int_equal(mkdir(work_path("lower"), 0700), 0);
        assert_int_equal(mkdir(work_path("upper"), 0700), 0);
        assert_int_equal(mkdir(work_path("inner"), 0700), 0);
        mount_point = work_path("foreign");
        assert_int_equal(mkdir(mount_point, 0700), 0);
        (void)snprintf(text, sizeof(text), "lowerdir=%s,upperdir=%s,workdir=%s", work_path("lower"), work_path("upper"), work_path("inner"));
        options = text;
        assert_int_equal(mount("overlay", mount_point, "overlay", 0, options), 0);
        image = make_file("foreign/base", NULL);
        alias = work_path("foreign/alias");
        assert_int_equal(link(image, alias), 0);
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", image, SHARED), 0);
        assert_int_equal(conn_acquire(ca, "", alias, SHARED), 0);
        settle(2);
        take_over();
        expect_classic(image, alias);
        /* A look at it by any name must not close a real fd of it. */
        assert_int_equal(conn_acquire(ca, "", work_path("foreign/../foreign/base"), 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        expect_classic(image, alias);
        admin = admin_open(d);
        (void)conn_call(admin, 0, NULL, NULL); /* answered with an error: lockd is there */
        conn_close(admin);
        install(lockd_path(), binary);
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        wait_until(runs(d->pid, binary));
        expect_classic(image, alias);
        assert_int_equal(conn_release(ca, "", image), 0);
        assert_false(is_lockable(image, false));
        assert_int_equal(conn_release(ca, "", alias), 0);
        assert_true(is_lockable(image, false));
        assert_int_equal(count_fds(d->pid, mount_point), 0);
        conn_close(ca);
        vm_kill(&a);
        end_all();
        assert_int_equal(umount(mount_point), 0);
}

/* virtlockd reads no more than 10 MB of what it wrote. */
static void test_large_state(void **state)
{
        enum { LOCKS = 1400, DEEP = 14 };
        TestDaemon *d = &daemon_under_test;
        char folder[4096], name[4200], part[256];
        Conn *ca;
        Vm a;

        (void)state;
        start_stock(NULL);
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        (void)snprintf(folder, sizeof(folder), "%s/deep", d->dir);
        assert_int_equal(mkdir(folder, 0700), 0);
        memset(part, 'd', 250);
        part[250] = '\0';
        for (int i = 0; i < DEEP; i++) {
                (void)snprintf(folder + strlen(folder), sizeof(folder) - strlen(folder), "/%s", part);
                assert_int_equal(mkdir(folder, 0700), 0);
        }
        for (int i = 0; i < LOCKS; i++) {
                int fd;

                (void)snprintf(name, sizeof(name), "%s/%s%04d", folder, part, i);
                fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
                assert_true(fd >= 0);
                close(fd);
                assert_int_equal(conn_acquire(ca, "", name, i % 2 ? SHARED : 0), 0);
        }
        settle(2);
        take_over();
        assert_int_equal(list_leases(d)->records.records_len, LOCKS);
        assert_int_equal(count_locks(d->pid, "OFDLCK"), LOCKS);
        assert_int_equal(conn_release(ca, "", name), 0);
        vm_kill(&a);
        wait_until(list_leases(d)->records.records_len == 0);
        conn_close(ca);
}

/* With locks in hand neither a configuration nor an option ends it, and it never goes to the background again. */
static void test_arguments(void **state)
{
        static const char *const broken[] = { "max_clients = \"many\"\n", "frobnicate = 1\n", "= = =\n", "lockspaces = 7;\n" };
        TestDaemon *d = &daemon_under_test;
        char image[128];
        Conn *ca;
        Vm a;

        (void)state;
        start_stock("-t0x7000");
        (void)snprintf(image, sizeof(image), "%s", make_file("arguments", NULL));
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        settle(2);
        make_file(d->config + strlen(getenv("WORK")) + 1, broken[0]);
        take_over();
        assert_false(is_lockable(image, false));
        assert_true(daemon_log_has(d, "max_clients"));
        assert_int_equal(conn_release(ca, "", image), 0);
        conn_close(ca);
        vm_kill(&a);
}

/* ---- states that virtlockd does not write ---- */

typedef struct StandIn {
        int lock, admin, image, shared; /* numbers of its fds */
        char image_path[128], shared_path[128];
} StandIn;

static int listen_at(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 10) < 0)
                _exit(2);
        return fd;
}

static int lock_classic(const char *path, short type)
{
        struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_len = 1 };
        int fd = open(path, O_RDWR);

        if (fd < 0 || fcntl(fd, F_SETLK, &lock) < 0)
                _exit(3);
        return fd;
}

/* A process that has what virtlockd would have, leaves what make writes, and executes lockd. */
static void start_stand_in(void (*make)(FILE *file, const StandIn *in, const void *data), const void *data, const char *option)
{
        TestDaemon *d = &daemon_under_test;
        StandIn in = { 0 };

        prepare();
        (void)snprintf(in.image_path, sizeof(in.image_path), "%s", make_file("stand-in.image", NULL));
        (void)snprintf(in.shared_path, sizeof(in.shared_path), "%s", make_file("stand-in.shared", NULL));
        d->pid = fork();
        if (d->pid == 0) {
                char *argv[] = { (char *)(uintptr_t)lockd_path(), (char *)(uintptr_t) "-v", (char *)(uintptr_t)option, NULL };
                int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                FILE *file;

                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)dup2(log, STDERR_FILENO);
                (void)close_range(3, ~0U, 0);
                in.lock = listen_at(d->lock_socket);
                in.admin = listen_at(d->admin_socket);
                in.image = lock_classic(in.image_path, F_WRLCK);
                in.shared = lock_classic(in.shared_path, F_RDLCK);
                file = fopen(STATE, "we");
                if (!file)
                        _exit(4);
                make(file, &in, data);
                fclose(file);
                execv(argv[0], argv);
                _exit(127);
        }
        wait_until(runs(d->pid, lockd_path()));
        (void)list_leases(d);
}

static void good_state(FILE *file, const StandIn *in, const void *data)
{
        (void)data;
        fprintf(file,
                "{\"daemon\":{\"servers\":{\"admin\":{\"services\":[{\"socks\":[{\"fd\":%d,\"unlinkUNIX\":true}]}],\"clients\":[]},"
                "\"virtlockd\":{\"services\":[{\"socks\":[{\"fd\":%d,\"unlinkUNIX\":true}]}],\"clients\":[]}}},"
                "\"defaultLockspace\":{\"resources\":["
                "{\"name\":\"%s\",\"path\":\"%s\",\"fd\":%d,\"lockHeld\":true,\"flags\":0,\"owners\":[0]},"
                "{\"name\":\"%s\",\"path\":\"%s\",\"fd\":%d,\"lockHeld\":true,\"flags\":1,\"owners\":[0]}]},"
                "\"lockspaces\":[],\"magic\":\"%d\"}",
                in->admin, in->lock, in->image_path, in->image_path, in->image, in->shared_path, in->shared_path, in->shared,
                (int)getpid());
}

static size_t good_text(const StandIn *in, char *text, size_t size)
{
        FILE *memory = fmemopen(text, size, "w");

        good_state(memory, in, NULL);
        fclose(memory);
        return strlen(text);
}

/* data: how many bytes of it; never all. */
static void cut_state(FILE *file, const StandIn *in, const void *data)
{
        char text[4096];
        size_t len = good_text(in, text, sizeof(text)), wanted = (size_t) * (const int *)data;

        fwrite(text, 1, wanted < len ? wanted : len - 1, file);
}

/* data: a seed. A few bytes are others. */
static void mutated_state(FILE *file, const StandIn *in, const void *data)
{
        static const char bytes[] = "\"{}[]:,0123456789-.eEtfn \\\x01\x7f\xc3\xff";
        unsigned seed = *(const unsigned *)data;
        char text[4096];
        size_t len = good_text(in, text, sizeof(text));

        for (unsigned i = 0; i <= seed % 5; i++) {
                size_t at = (size_t)rand_r(&seed) % len;

                text[at] = bytes[(size_t)rand_r(&seed) % (sizeof(bytes) - 1)];
        }
        fwrite(text, 1, len, file);
}

/* data: the text, in which the first "PID" stands for the pid. */
static void raw_state(FILE *file, const StandIn *in, const void *data)
{
        const char *text = data, *pid = strstr(text, "PID");

        (void)in;
        if (pid)
                fprintf(file, "%.*s%d%s", (int)(pid - text), text, (int)getpid(), pid + 3);
        else
                fputs(text, file);
}

static void expect_both_held(void)
{
        static const uint8_t nobody[16];
        TestDaemon *d = &daemon_under_test;
        const lockd_record *record;
        Conn *conn;
        Vm a;

        assert_int_equal(list_leases(d)->records.records_len, 2);
        record = find_lease(d, "", work_path("stand-in.image"));
        assert_non_null(record);
        assert_int_equal(record->mode, LOCKD_MODE_EXCLUSIVE);
        assert_int_equal(record->kind, LOCKD_KIND_OFD);
        record = find_lease(d, "", work_path("stand-in.shared"));
        assert_non_null(record);
        assert_int_equal(record->mode, LOCKD_MODE_SHARED);
        assert_false(is_lockable(work_path("stand-in.image"), true));
        assert_false(is_lockable(work_path("stand-in.shared"), false));
        assert_true(is_lockable(work_path("stand-in.shared"), true));
        /* It serves. */
        a = vm_start(d, "alpha");
        conn = vm_conn(d, &a);
        assert_int_equal(conn_acquire(conn, "", work_path("stand-in.image"), 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_acquire(conn, "", make_file("stand-in.other", NULL), 0), 0);
        conn_close(conn);
        vm_kill(&a);
        wait_unlisted(d, "", work_path("stand-in.other"));
        conn = admin_open(d);
        /* Whose it is, nobody knows: it may be alive. */
        assert_int_equal(admin_release_call(conn, "", work_path("stand-in.image"), "unknown", LOCKD_RELEASE_SAFE),
                         VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(admin_release_call(conn, "", work_path("stand-in.image"), uuid_text(nobody), LOCKD_RELEASE_FORCE), 0);
        assert_true(is_lockable(work_path("stand-in.image"), false));
        conn_close(conn);
}

static void test_cut_off(void **state)
{
        (void)state;
        for (int at = 0; at < 1100; at += at < 600 ? 61 : 17) {
                start_stand_in(cut_state, &at, NULL);
                expect_both_held();
                end_all();
        }
}

/* Whatever the file says, no lock is lost and lockd serves. */
static void test_mutated(void **state)
{
        TestDaemon *d = &daemon_under_test;

        (void)state;
        for (unsigned seed = 1; seed <= 150; seed++) {
                start_stand_in(mutated_state, &seed, NULL);
                assert_int_equal(list_leases(d)->records.records_len, 2);
                assert_int_equal(count_locks(d->pid, "OFDLCK"), 2);
                assert_false(is_lockable(work_path("stand-in.image"), true));
                assert_false(is_lockable(work_path("stand-in.shared"), false));
                assert_true(runs(d->pid, lockd_path()));
                end_all();
        }
}

static void test_nonsense(void **state)
{
        static const char *const texts[] = {
                "",
                "\xff\xfe\x00garbage",
                "null",
                "[]",
                "\"PID\"",
                "{}",
                "{\"magic\":PID}",
                "{\"magic\":\"PID\"}",
                "{\"magic\":\"1\"}",
                "{\"magic\":\"PID\",\"daemon\":7,\"defaultLockspace\":[],\"lockspaces\":{}}",
                "{\"magic\":\"PID\",\"daemon\":{\"servers\":[1,2]},\"defaultLockspace\":{\"resources\":{}},\"lockspaces\":[1,null,\"x\",[]]}",
                "{\"magic\":\"PID\",\"daemon\":{\"servers\":{\"virtlockd\":{\"services\":[null,{\"socks\":[{\"fd\":\"4\"},{\"fd\":99999999999999999999},"
                "{\"fd\":-1},{\"fd\":1e300},{}]}],\"clients\":[null,{},{\"sock\":{\"fd\":2}},{\"sock\":{\"fd\":123456}},{\"sock\":7}]}}},"
                "\"defaultLockspace\":{\"resources\":[null,{},{\"name\":7},{\"name\":\"/x\",\"fd\":-7},{\"name\":\"/x\",\"fd\":0},"
                "{\"name\":\"/x\",\"fd\":2147483648},{\"name\":\"/x\",\"fd\":18446744073709551615,\"owners\":\"no\"}]},"
                "\"lockspaces\":[{\"directory\":7},{\"directory\":\"relative\",\"resources\":[{\"name\":\"y\",\"fd\":1000}]},{\"directory\":\"\"}]}",
        };

        (void)state;
        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
                start_stand_in(raw_state, texts[i], NULL);
                expect_both_held();
                end_all();
        }
}

/* One fd for two names, sockets as locks, locks as sockets, wrong kinds of everything. */
static void crossed_state(FILE *file, const StandIn *in, const void *data)
{
        (void)data;
        fprintf(file,
                "{\"daemon\":{\"servers\":{\"admin\":{\"services\":[{\"socks\":[{\"fd\":%d}]}],\"clients\":[{\"sock\":{\"fd\":%d}}]},"
                "\"virtlockd\":{\"services\":[{\"socks\":[{\"fd\":%d},{\"fd\":%d}]}],\"clients\":[{\"sock\":{\"fd\":%d},\"privateData\":{"
                "\"ownerName\":\"x\",\"ownerPid\":-5,\"ownerId\":99999999999,\"ownerUUID\":\"zz\"}}]}}},"
                "\"defaultLockspace\":{\"resources\":["
                "{\"name\":\"same\",\"fd\":%d,\"flags\":0,\"owners\":[99999999999999999999,\"x\",null,{},-3,2147483647]},"
                "{\"name\":\"same\",\"fd\":%d,\"flags\":1,\"owners\":[]},{\"name\":\"other\",\"fd\":%d,\"flags\":-1}]},"
                "\"lockspaces\":[],\"magic\":\"%d\"}",
                in->admin, in->lock, in->lock, in->admin, in->image, in->image, in->shared, in->shared, (int)getpid());
}

static void test_crossed(void **state)
{
        TestDaemon *d = &daemon_under_test;

        (void)state;
        start_stand_in(crossed_state, NULL, NULL);
        assert_int_equal(list_leases(d)->records.records_len, 2);
        assert_false(is_lockable(work_path("stand-in.image"), true));
        assert_false(is_lockable(work_path("stand-in.shared"), false));
}

/* Options that virtlockd took, or that make no sense: with locks in hand they are no reason to end, and -d forks nothing. */
static void test_options(void **state)
{
        static const char *const options[] = { "-d", "--frobnicate", "-tx", "stray", "-f/nonexistent", "-p/nonexistent/pid" };

        (void)state;
        for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
                start_stand_in(good_state, NULL, options[i]);
                assert_int_equal(list_leases(&daemon_under_test)->records.records_len, 2);
                assert_false(is_lockable(work_path("stand-in.image"), true));
                assert_int_equal(count_locks(daemon_under_test.pid, "OFDLCK"), 2);
                assert_false(file_exists(STATE));
                end_all();
        }
}

/* A file of another process is none of ours: a fresh lockd starts as ever, and leaves it alone. */
static void test_stale_state(void **state)
{
        int fd = open(STATE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        (void)state;
        assert_true(write(fd, "{\"magic\":\"1\"}", 13) == 13);
        close(fd);
        daemon_start(&daemon_under_test, NULL, NULL);
        assert_int_equal(list_leases(&daemon_under_test)->records.records_len, 0);
        assert_true(file_exists(STATE));
        assert_false(daemon_log_has(&daemon_under_test, "takeover"));
        (void)unlink(STATE);
}

/* ---- back ---- */

/* lockd-admin; its exit code, its output in text. */
static int administer(const char *const *arguments, char *text, size_t size)
{
        char *output;
        int code = run_admin(&daemon_under_test, &output, arguments);

        (void)snprintf(text, size, "%s", output);
        free(output);
        return code;
}

static int give_back(const char *path, char *text, size_t size)
{
        return administer((const char *const[]){ "upgrade", "--to-virtlockd", path, NULL }, text, size);
}

static void test_back_and_forth(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image, *base, *alias, *folder, *other, *images[3];
        char text[4096], stock[sizeof(binary)];
        Conn *ca, *cb, *cu;
        Observer observer;
        Vm a, b;

        (void)state;
        start_stock(NULL);
        place(stock, sizeof(stock), d->dir, "stock", -1);
        install(STOCK, stock);
        images[0] = image = make_file("bf image", NULL);
        images[1] = base = make_file("bf base", NULL);
        alias = work_path("bf alias");
        folder = work_path("bf leases");
        other = make_file("bf other", NULL);
        assert_int_equal(symlink(base, alias), 0);
        a = vm_start(d, "alpha");
        b = vm_start(d, "beta");
        ca = vm_conn(d, &a);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_create_lockspace(ca, folder), 0);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_acquire(ca, "", base, SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", base, SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", alias, SHARED), 0);
        assert_int_equal(conn_acquire(ca, folder, "lease", SHARED | AUTOCREATE), 0);
        images[2] = work_path("bf leases/lease");
        settle(4);
        observer_start(&observer, images, 3);
        for (int round = 0; round < 3; round++) {
                take_over();
                assert_int_equal(list_leases(d)->records.records_len, 3);
                assert_true(find_lease(d, "", base) || find_lease(d, "", alias));
                expect_lease("", image, &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
                expect_lease(folder, "lease", &a, LOCKD_MODE_SHARED, LOCKD_STATE_HELD);
                assert_int_equal(count_locks(d->pid, "POSIX"), 0);
                assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
                cu = conn_open(d); /* one that does not register */
                assert_int_equal(conn_acquire(cu, "", image, 0), VIRTLOCK_ERR_OPERATION_INVALID);
                assert_int_equal(give_back(stock, text, sizeof(text)), EXIT_OK);
                assert_true(runs(d->pid, stock));
                assert_false(file_exists(STATE));
                /* virtlockd's calls, on connections of before and on new ones. */
                assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
                assert_int_equal(conn_acquire(cb, "", other, 0), 0);
                assert_int_equal(conn_acquire(cu, "", image, 0), VIRTLOCK_ERR_OPERATION_INVALID);
                conn_close(cu);
                cu = vm_conn(d, &b);
                assert_int_equal(conn_release(cu, "", other), 0);
                conn_close(cu);
                settle(4);
                /* Its own upgrade executes what is at the path that it was given. */
                memcpy(binary, stock, sizeof(binary));
                place(stock, sizeof(stock), d->dir, "stock", round);
                install(STOCK, stock);
        }
        /* The files with several names keep their lock until the last of them goes. */
        assert_int_equal(conn_release(cb, "", base), 0);
        assert_int_equal(conn_release(ca, "", base), 0);
        assert_false(is_lockable(base, false));
        observer_end(&observer);
        assert_int_equal(conn_release(cb, "", alias), 0);
        assert_true(is_lockable(base, false));
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
        wait_until(is_lockable(image, false));
        wait_until(!file_exists(images[2]));
}

/* Whatever is in the way: lockd goes on, with its locks as they were. */
static void test_back_refused(void **state)
{
        static const char *const scripts[] = {
                "#!/bin/sh\nexit 1\n",
                "#!/bin/sh\necho /virtlockd-sock; exit 3\n",
                "#!/bin/sh\nchmod 600 \"$0\"; echo /run/libvirt/virtlockd-sock\n",
                "#!/bin/sh\ncp \"$0\" \"$0.n\"; mv \"$0.n\" \"$0\"; echo /run/libvirt/virtlockd-sock\n",
                "no program",
        };
        TestDaemon *d = &daemon_under_test;
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
        const char *image, *bytes, *forced, *images[1], *script;
        char text[4096];
        Observer observer;
        Conn *ca, *cb, *admin;
        Vm a, b;
        int fd;

        (void)state;
        start_stock(NULL);
        images[0] = image = make_file("refused", NULL);
        forced = make_file("forced", NULL);
        bytes = make_file("not \xff utf-8", NULL);
        a = vm_start(d, "alpha");
        b = vm_start(d, "beta");
        ca = vm_conn(d, &a);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        settle(4);
        take_over();
        observer_start(&observer, images, 1);
        assert_int_equal(give_back("/nonexistent", text, sizeof(text)), EXIT_FAILED);
        assert_int_equal(give_back("relative", text, sizeof(text)), EXIT_USAGE);
        assert_int_equal(give_back("/bin/true", text, sizeof(text)), EXIT_FAILED);
        assert_non_null(strstr(text, "is no virtlockd"));
        assert_int_equal(give_back(lockd_path()[0] == '/' ? lockd_path() : "/usr/sbin/virtlogd", text, sizeof(text)), EXIT_FAILED);
        for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
                script = make_file("script", scripts[i]);
                assert_int_equal(chmod(script, 0755), 0);
                assert_int_equal(give_back(script, text, sizeof(text)), EXIT_FAILED);
                assert_int_equal(count_locks(d->pid, "OFDLCK"), 1);
                assert_false(file_exists(STATE));
                (void)unlink(script);
        }
        /* Its file cannot be written. */
        assert_int_equal(mkdir(STATE, 0700), 0);
        assert_int_equal(give_back(STOCK, text, sizeof(text)), EXIT_FAILED);
        assert_int_equal(rmdir(STATE), 0);
        /* Its pid file is locked by another. */
        fd = open("/run/virtlockd.pid", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
        assert_int_equal(give_back(STOCK, text, sizeof(text)), EXIT_BUSY);
        assert_non_null(strstr(text, "pid file"));
        close(fd);
        /* What virtlockd cannot read, or cannot say. */
        assert_int_equal(conn_acquire(cb, "", bytes, 0), 0);
        assert_int_equal(give_back(STOCK, text, sizeof(text)), EXIT_FAILED);
        assert_non_null(strstr(text, "UTF-8"));
        assert_int_equal(conn_release(cb, "", bytes), 0);
        assert_int_equal(conn_acquire(cb, "", forced, 0), 0);
        admin = admin_open(d);
        assert_int_equal(admin_release_call(admin, "", forced, uuid_text(b.uuid), LOCKD_RELEASE_FORCE), 0);
        conn_close(admin);
        assert_int_equal(give_back(STOCK, text, sizeof(text)), EXIT_FAILED);
        assert_non_null(strstr(text, "UNPROTECTED"));
        /* A process that is gone, and half a request. */
        (void)vm_daemonize(&b);
        assert_int_equal(give_back(STOCK, text, sizeof(text)), EXIT_BUSY);
        vm_end_child(&b);
        wait_unlisted(d, "", forced);
        conn_send_bytes(cb, "\0\0", 2);
        wait_until(give_back(STOCK, text, sizeof(text)) == EXIT_BUSY && strstr(text, "not finished"));
        conn_close(cb);
        assert_int_equal(count_locks(d->pid, "OFDLCK"), 1);
        assert_true(runs(d->pid, binary));
        expect_lease("", image, &a, LOCKD_MODE_EXCLUSIVE, LOCKD_STATE_HELD);
        assert_int_equal(conn_acquire(ca, "", forced, 0), 0);
        /* Nothing in the way any more. */
        wait_until(give_back(STOCK, text, sizeof(text)) == EXIT_OK);
        assert_true(runs(d->pid, STOCK));
        observer_end(&observer);
        assert_int_equal(conn_release(ca, "", forced), 0);
        assert_int_equal(conn_release(ca, "", image), 0);
        conn_close(ca);
        vm_kill(&a);
}

/* ---- takeover --check ---- */

static int look(char *text, size_t size)
{
        return administer((const char *const[]){ "takeover", "--check", NULL }, text, size);
}

static void test_check(void **state)
{
        TestDaemon *d = &daemon_under_test;
        char text[8192], pid[16];
        const char *image, *alias;
        Conn *ca, *cb;
        Vm a, b;

        (void)state;
        prepare();
        assert_int_equal(look(text, sizeof(text)), EXIT_UNAVAILABLE);
        start_stock(NULL);
        image = make_file("look", NULL);
        alias = work_path("look-alias");
        assert_int_equal(link(image, alias), 0);
        a = vm_start(d, "alpha");
        b = vm_start(d, "beta");
        ca = vm_conn(d, &a);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        conn_close(ca);
        settle(3);
        assert_int_equal(look(text, sizeof(text)), EXIT_BUSY);
        assert_non_null(strstr(text, "has not been replaced by lockd"));
        install(lockd_path(), binary);
        assert_int_equal(look(text, sizeof(text)), EXIT_OK);
        assert_non_null(strstr(text, "connections: 3"));
        assert_non_null(strstr(text, "locks:       1 names, 1 files, 0 of them not on a local"));
        assert_null(strstr(text, "CONFLICT"));
        /* It has not touched virtlockd. */
        settle(3);
        assert_int_equal(conn_acquire(cb, "", alias, 0), 0);
        assert_int_equal(look(text, sizeof(text)), EXIT_OK);
        assert_non_null(strstr(text, "CONFLICT if the holders are two VMs"));
        (void)snprintf(pid, sizeof(pid), "%d", (int)a.pid);
        assert_int_not_equal(administer((const char *const[]){ "takeover", "--check", "--pid", pid, NULL }, text, sizeof(text)), EXIT_OK);
        (void)unlink(binary);
        assert_int_equal(look(text, sizeof(text)), EXIT_BUSY);
        take_over();
        assert_int_equal(look(text, sizeof(text)), EXIT_UNAVAILABLE);
        assert_non_null(strstr(text, "is lockd already"));
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_take_over, teardown),
                cmocka_unit_test_teardown(test_conflict, teardown),
                cmocka_unit_test_teardown(test_repeated_and_nobody, teardown),
                cmocka_unit_test_teardown(test_dead_client_and_reused_pid, teardown),
                cmocka_unit_test_teardown(test_owners_without_connection, teardown),
                cmocka_unit_test_teardown(test_foreign_stays_classic, teardown),
                cmocka_unit_test_teardown(test_large_state, teardown),
                cmocka_unit_test_teardown(test_arguments, teardown),
                cmocka_unit_test_teardown(test_cut_off, teardown),
                cmocka_unit_test_teardown(test_mutated, teardown),
                cmocka_unit_test_teardown(test_nonsense, teardown),
                cmocka_unit_test_teardown(test_crossed, teardown),
                cmocka_unit_test_teardown(test_options, teardown),
                cmocka_unit_test_teardown(test_stale_state, teardown),
                cmocka_unit_test_teardown(test_back_and_forth, teardown),
                cmocka_unit_test_teardown(test_back_refused, teardown),
                cmocka_unit_test_teardown(test_check, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
