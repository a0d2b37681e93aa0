/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What outlives lockd: the holder keeps locks and connections, and the next lockd takes them over. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "holder_protocol.h"

static TestDaemon daemon_under_test;

/* The processes of the holder, by their sockets. NULL name: the listener. */
static pid_t holder_pid(const TestDaemon *d, bool listener)
{
        char dir[128];
        struct dirent *entry;
        pid_t pid = 0;
        DIR *folder;

        if (listener) {
                struct sockaddr_un address = { .sun_family = AF_UNIX };
                int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
                const HolderHead hello = { .type = HOLDER_HELLO, .version = HOLDER_VERSION, .value = { HOLDER_ROLE_SHOW } };
                HolderHead welcome = { 0 };

                (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/lockd-holder/" HOLDER_SOCKET, d->dir);
                if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) > 0 &&
                    recv(fd, &welcome, sizeof(welcome), 0) > 0)
                        pid = (pid_t)welcome.value[0];
                close(fd);
                return pid;
        }
        (void)snprintf(dir, sizeof(dir), "%s/lockd-holder", d->dir);
        folder = opendir(dir);
        while (folder && (entry = readdir(folder))) {
                const char *dot = strrchr(entry->d_name, '.');

                if (*entry->d_name != '.' && dot && atoi(dot + 1) > 0 && kill(atoi(dot + 1), 0) == 0)
                        pid = atoi(dot + 1);
        }
        if (folder)
                closedir(folder);
        return pid;
}

static char *holder_dump(const TestDaemon *d)
{
        char command[512];
        char *text = NULL;
        size_t size = 0;
        FILE *f;

        (void)snprintf(command, sizeof(command), "%s --dir %s/lockd-holder --dump 2>&1", getenv("LOCKD_HOLDER") ? getenv("LOCKD_HOLDER") :
                       "build/lockd-holder", d->dir);
        f = popen(command, "re");
        assert_non_null(f);
        if (getdelim(&text, &size, '\0', f) < 0) {
                free(text);
                text = strdup("");
        }
        (void)pclose(f);
        return text;
}

static bool holder_has(const TestDaemon *d, const char *text)
{
        _cleanup_free_ char *dump = holder_dump(d);

        return strstr(dump, text) != NULL;
}

static bool has_ended(pid_t pid)
{
        char path[64], state = 0;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        f = fopen(path, "re");
        if (!f)
                return true;
        if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
                state = 'X';
        fclose(f);
        return state == 'Z' || state == 'X';
}

static void end_process(pid_t pid)
{
        assert_true(pid > 1);
        assert_int_equal(kill(pid, SIGKILL), 0);
        wait_until(has_ended(pid));
}

static void launch(TestDaemon *d)
{
        Conn *conn;

        daemon_launch(d, NULL);
        wait_until((conn = conn_open_at(d->admin_socket)) != NULL);
        conn_close(conn);
        (void)list_leases(d); /* it answers */
}

static void crash(TestDaemon *d)
{
        daemon_end(d);
        launch(d);
}

static int start(void **state)
{
        (void)state;
        daemon_start(&daemon_under_test, "holder = \"auto\"\n", NULL);
        return 0;
}

static int end(void **state)
{
        TestDaemon *d = &daemon_under_test;
        pid_t pid;

        (void)state;
        daemon_end(d);
        while ((pid = holder_pid(d, false)) > 0)
                end_process(pid);
        if ((pid = holder_pid(d, true)) > 0)
                end_process(pid);
        return 0;
}

static const char *lease_dir(const char *name)
{
        const char *dir = work_path(name);

        assert_true(mkdir(dir, 0700) == 0 || errno == EEXIST);
        return dir;
}

/* The main job. The image is locked at every moment, the next lockd knows who has it, and that one's death frees it. */
static void test_kill_loses_nothing(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *dir = lease_dir("leases");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_create_lockspace(ca, dir), 0);
        assert_int_equal(conn_acquire(ca, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        assert_int_equal(conn_release(ca, dir, "lease"), 0);
        assert_int_equal(conn_acquire(ca, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        daemon_end(d);
        assert_false(is_lockable(image, false));
        launch(d);
        assert_false(is_lockable(image, false));
        assert_non_null(find_lease(d, "", image));
        assert_non_null(find_lease(d, dir, "lease"));
        assert_int_equal(find_lease(d, "", image)->holds.holds_val[0].owner.connections, 1);
        conn_close(cb);
        cb = vm_conn(d, &b);
        assert_busy(cb, conn_acquire(cb, "", image, 0), "is locked by VM 'alpha'");
        assert_busy(cb, conn_acquire(cb, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), "is locked by VM 'alpha'");
        crash(d);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        wait_unlisted(d, dir, "lease");
        assert_true(is_lockable(image, false));
        wait_until(!holder_has(d, "disk.img"));
        wait_until(!holder_has(d, "alpha"));
        conn_close(ca);
        conn_close(cb);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_acquire(cb, "", image, 0), 0);
        conn_close(cb);
        vm_kill(&b);
        wait_unlisted(d, "", image);
}

/* It dies while nobody is there to see it. */
static void test_owner_dies_meanwhile(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *dir = lease_dir("leases");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        char path[128];

        (void)state;
        (void)snprintf(path, sizeof(path), "%s/lease", dir);
        assert_int_equal(conn_acquire(ca, "", image, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", image, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_create_lockspace(ca, dir), 0);
        assert_int_equal(conn_acquire(ca, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        daemon_end(d);
        vm_kill(&a);
        launch(d);
        wait_unlisted(d, dir, "lease");
        assert_false(file_exists(path));
        wait_until(count_holds(d, "", image) == 1);
        assert_false(is_lockable(image, false));
        vm_kill(&b);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        conn_close(ca);
        conn_close(cb);
}

/* The processes of the holder are replaced and filled again. */
static void test_holder_dies(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        pid_t child, listener;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        for (int i = 0; i < 2; i++) {
                child = holder_pid(d, false);
                listener = holder_pid(d, true);
                end_process(i == 0 ? child : listener);
                if (i == 0)
                        wait_until(holder_pid(d, false) > 0 && holder_pid(d, false) != child);
                else
                        wait_until(holder_pid(d, true) > 0 && holder_pid(d, true) != listener);
                wait_until(holder_has(d, "\"name\":\"alpha\"") && holder_has(d, "disk.img") && holder_has(d, "connection"));
                wait_until(holder_has(d, "listener"));
                crash(d);
                assert_false(is_lockable(image, false));
                assert_non_null(find_lease(d, "", image));
        }
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        conn_close(ca);
}

/* TERM ends lockd at once; the locks stay. */
static void test_term(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(kill(d->pid, SIGTERM), 0);
        assert_int_equal(daemon_wait(d), 0);
        assert_null(conn_open_at(d->lock_socket)); /* nobody connects to a dead ear */
        assert_false(is_lockable(image, false));
        assert_true(vm_is_alive(&a));
        launch(d);
        assert_non_null(find_lease(d, "", image));
        assert_int_equal(find_lease(d, "", image)->state, LOCKD_STATE_HELD);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_int_equal(kill(d->pid, SIGTERM), 0);
        assert_int_equal(daemon_wait(d), 0);
        launch(d);
        conn_close(ca);
}

/* A VM that closes its connection while lockd is down is seen to have closed it, and is alive: it holds. */
static void test_connection(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = vm_daemonize(&a);
        crash(d);
        wait_until(find_lease(d, "", image)->state == LOCKD_STATE_ORPHANED);
        crash(d);
        wait_until(find_lease(d, "", image)->state == LOCKD_STATE_ORPHANED);
        assert_false(is_lockable(image, false));
        daemon_end(d);
        vm_end_child(&a);
        wait_until(has_ended(child));
        launch(d);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        conn_close(ca);
}

/* Who was connected when lockd was killed may not have heard of its lock: it may ask once more. */
static void test_unconfirmed(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *told = make_file("told.img", "data"), *untold = make_file("untold.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", told, 0), 0);
        conn_close(ca);
        wait_until(find_lease(d, "", told)->holds.holds_val[0].taken_by == 0);
        wait_until(holder_has(d, "\"taken_by\":0"));
        assert_int_equal(conn_acquire(cb, "", untold, 0), 0);
        crash(d);
        conn_close(cb);
        assert_false(find_lease(d, "", told)->holds.holds_val[0].unconfirmed);
        assert_true(find_lease(d, "", untold)->holds.holds_val[0].unconfirmed);
        cb = vm_conn(d, &a);
        assert_busy(cb, conn_acquire(cb, "", told, 0), "is locked by VM 'alpha'");
        assert_int_equal(conn_acquire(cb, "", untold, 0), 0);
        assert_busy(cb, conn_acquire(cb, "", untold, 0), "is locked by VM 'alpha'");
        conn_close(cb);
        vm_kill(&a);
        wait_unlisted(d, "", told);
        wait_unlisted(d, "", untold);
}

/* A call that a killed lockd had not answered is answered by the next one, on the connection that outlived the first. */
static void test_unanswered_call(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *first = make_file("first.img", "data"), *second = make_file("second.img", "data");
        const uint8_t uuid[16] = { 7 };
        Conn *own = conn_open(d);
        FrameHeader header;

        (void)state;
        assert_int_equal(conn_register(own, "self", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_acquire(own, "", first, 0), 0);
        daemon_freeze(d);
        conn_send_acquire(own, "", second, 0, 70);
        conn_send_acquire(own, "", first, 0, 71);
        daemon_end(d);
        launch(d);
        do
                assert_true(conn_receive(own, &header, NULL, NULL));
        while (header.serial < 70); /* frozen between its answer and taking the call out, it leaves that to the next one */
        assert_int_equal(header.serial, 70);
        assert_int_equal(header.status, FRAME_OK);
        assert_true(conn_receive(own, &header, NULL, NULL));
        assert_int_equal(header.serial, 71);
        assert_non_null(find_lease(d, "", second));
        assert_int_equal(conn_release(own, "", first), 0);
        assert_int_equal(conn_release(own, "", second), 0);
        wait_until(list_leases(d)->records.records_len == 0);
        conn_close(own);
}

/* A lockspace that libvirt named once is known after a crash, locked or not. */
static void test_lockspaces_stay(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *dir = lease_dir("leases");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, dir), 0);
        conn_close(ca);
        crash(d);
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, dir, "lease");
}

/* With a holder that does not take anything, calls are answered a second later, and other things meanwhile. */
static void test_stuck(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        char name[64];
        int64_t slowest = 0;
        int n = 0;
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = holder_pid(d, false);
        assert_int_equal(kill(child, SIGSTOP), 0);
        for (; n < 2000 && slowest < 500; n++) {
                int64_t begin = now_msec();

                (void)snprintf(name, sizeof(name), "disk%d.img", n);
                assert_int_equal(conn_acquire(ca, "", make_file(name, "data"), 0), 0);
                slowest = now_msec() - begin > slowest ? now_msec() - begin : slowest;
        }
        if (slowest < 900 || slowest > 5000)
                fail_msg("the slowest of %d calls took %d ms", n, (int)slowest);
        assert_true(daemon_log_has(d, "takes nothing"));
        /* The next ones do not wait again. */
        slowest = now_msec();
        assert_int_equal(conn_acquire(ca, "", make_file("one-more.img", "data"), 0), 0);
        assert_true(now_msec() - slowest < 500);
        assert_int_equal(kill(d->pid, SIGTERM), 0);
        daemon_expect_log(d, "would be lost");
        assert_int_equal(kill(child, SIGCONT), 0);
        wait_until(holder_has(d, "one-more.img"));
        daemon_expect_log(d, "takes locks again");
        crash(d);
        assert_int_equal(list_leases(d)->records.records_len, n + 2);
        vm_kill(&a);
        wait_until(list_leases(d)->records.records_len == 0);
        conn_close(ca);
}

/* Its fds are in flight in a socket that nobody reads: they are held all the same, and adopted. */
static void test_killed_while_stuck(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", make_file("first.img", "data"), 0), 0);
        child = holder_pid(d, false);
        assert_int_equal(kill(child, SIGSTOP), 0);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        daemon_end(d);
        assert_false(is_lockable(image, false));
        assert_int_equal(kill(child, SIGCONT), 0);
        launch(d);
        assert_false(is_lockable(image, false));
        assert_non_null(find_lease(d, "", image));
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, "", image);
}

/* A process of the holder that does not answer at the start keeps its locks, and is heard when it does. */
static void test_silent_child(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *other = make_file("other.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb;
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        conn_close(ca);
        daemon_end(d);
        child = holder_pid(d, false);
        assert_int_equal(kill(child, SIGSTOP), 0);
        launch(d);
        cb = vm_conn(d, &b);
        assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_acquire(cb, "", other, 0), 0);
        assert_int_equal(kill(child, SIGCONT), 0);
        wait_until(find_lease(d, "", image) != NULL);
        assert_non_null(find_lease(d, "", other));
        assert_busy(cb, conn_acquire(cb, "", image, 0), "is locked by VM 'alpha'");
        crash(d);
        assert_non_null(find_lease(d, "", image));
        assert_non_null(find_lease(d, "", other));
        conn_close(cb);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        vm_kill(&b);
        wait_unlisted(d, "", other);
        assert_true(is_lockable(image, false));
}

/* One holder has one lockd. */
static void test_second_lockd(void **state)
{
        TestDaemon *d = &daemon_under_test, second = { 0 };
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        int status;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        second = *d;
        daemon_launch(&second, NULL);
        status = daemon_wait(&second);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 69);
        daemon_expect_log(d, "another lockd");
        assert_false(is_lockable(image, false));
        assert_non_null(find_lease(d, "", image));
        crash(d);
        assert_non_null(find_lease(d, "", image));
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, "", image);
}

/* An upgrade goes on with the same holder, and both know the same. */
static void test_upgrade(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *other = make_file("other.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = holder_pid(d, false);
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        daemon_expect_log(d, "after an upgrade");
        assert_int_equal(conn_acquire(ca, "", other, 0), 0);
        assert_int_equal(holder_pid(d, false), child);
        assert_int_equal(conn_release(ca, "", image), 0);
        wait_until(!holder_has(d, "disk.img"));
        assert_true(holder_has(d, "other.img"));
        assert_false(daemon_log_has(d, "refused"));
        crash(d);
        assert_null(find_lease(d, "", image));
        assert_non_null(find_lease(d, "", other));
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, "", other);
}

static int lock_outside(const char *path)
{
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
        int fd = open(path, O_RDWR | O_CLOEXEC);

        assert_true(fd >= 0);
        assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
        return fd;
}

/* A connection to a process of the holder, as a lockd's. */
static int connect_holder(const TestDaemon *d, const char *file, uint64_t role)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        const HolderHead hello = { .type = HOLDER_HELLO, .version = HOLDER_VERSION, .value = { role } };

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/lockd-holder/%s", d->dir, file);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(send(fd, &hello, sizeof(hello), MSG_NOSIGNAL), sizeof(hello));
        return fd;
}

static HolderHead receive_head(int fd)
{
        static char bytes[HOLDER_MESSAGE_MAX];
        struct pollfd p = { .fd = fd, .events = POLLIN };
        HolderHead head;

        assert_int_equal(poll(&p, 1, HARNESS_DEADLINE_MSEC), 1);
        assert_true(recv(fd, bytes, sizeof(bytes), 0) >= (ssize_t)sizeof(head));
        memcpy(&head, bytes, sizeof(head));
        return head;
}

static const char *child_socket(const TestDaemon *d)
{
        static char name[300];
        char dir[128];
        struct dirent *entry;
        DIR *folder;

        (void)snprintf(dir, sizeof(dir), "%s/lockd-holder", d->dir);
        folder = opendir(dir);
        assert_non_null(folder);
        *name = '\0';
        while ((entry = readdir(folder)))
                if (entry->d_type == DT_SOCK && strcmp(entry->d_name, HOLDER_SOCKET) != 0)
                        (void)snprintf(name, sizeof(name), "%s", entry->d_name);
        closedir(folder);
        return name;
}

static int run_tool(const TestDaemon *d, const char *arguments)
{
        char command[512];
        int status;

        (void)snprintf(command, sizeof(command), "%s --dir %s/lockd-holder %s >/dev/null 2>&1", getenv("LOCKD_HOLDER") ? getenv("LOCKD_HOLDER") :
                       "build/lockd-holder", d->dir, arguments);
        status = system(command);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

/* Without a lockd, what dead owners had is let go of when somebody says so; what the living have is not. */
static void test_release_dead(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *one = make_file("one.img", "data"), *two = make_file("two.img", "data"), *both = make_file("both.img", "data");
        const char *orphaned = make_file("orphaned.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta"), c = vm_start(d, "gamma");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b), *cc = vm_conn(d, &c);
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", one, 0), 0);
        assert_int_equal(conn_acquire(cb, "", two, 0), 0);
        assert_int_equal(conn_acquire(cc, "", orphaned, 0), 0);
        assert_int_equal(conn_acquire(ca, "", both, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", both, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(run_tool(d, "--release-dead"), 75); /* lockd is there */
        daemon_end(d);
        vm_kill(&a);
        child = vm_daemonize(&c);
        assert_false(is_lockable(one, false));
        assert_int_equal(run_tool(d, "--release-dead"), 0);
        assert_true(is_lockable(one, false));
        assert_false(is_lockable(two, false));
        assert_false(is_lockable(both, false));
        assert_false(is_lockable(orphaned, false));
        vm_end_child(&c);
        wait_until(has_ended(child));
        assert_int_equal(run_tool(d, "--release-dead"), 0);
        assert_true(is_lockable(orphaned, false));
        launch(d);
        assert_null(find_lease(d, "", one));
        assert_null(find_lease(d, "", orphaned));
        assert_int_equal(count_holds(d, "", both), 1);
        assert_non_null(find_lease(d, "", two));
        conn_close(ca);
        conn_close(cb);
        conn_close(cc);
        vm_kill(&b);
        wait_until(list_leases(d)->records.records_len == 0);
}

/* The same by itself, after a time: here a second instead of a minute. */
static void test_dead_go_by_themselves(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *binary = getenv("LOCKD_HOLDER") ? getenv("LOCKD_HOLDER") : "build/lockd-holder";
        pid_t listener = holder_pid(d, true);
        char dir[512];
        Conn *ca;
        Vm a;

        (void)state;
        daemon_end(d);
        end_process(listener);
        (void)snprintf(dir, sizeof(dir), "%s/lockd-holder", d->dir);
        listener = fork();
        if (listener == 0) {
                (void)close_range(3, ~0U, 0);
                execl(binary, "lockd-holder", "--dir", dir, "--alone", "1", NULL);
                _exit(127);
        }
        wait_until(holder_pid(d, true) == listener);
        launch(d);
        a = vm_start(d, "alpha");
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        daemon_end(d);
        (void)poll(NULL, 0, 1500);
        assert_false(is_lockable(image, false)); /* it lives */
        vm_kill(&a);
        wait_until(is_lockable(image, false));
        launch(d);
        assert_int_equal(list_leases(d)->records.records_len, 0);
        conn_close(ca);
        daemon_end(d);
        (void)kill(listener, SIGKILL);
        assert_int_equal(waitpid(listener, NULL, 0), listener);
}

/* A record that nobody can read costs nothing but itself: its lock stays, and lockd comes up. */
static void test_poisoned_record(void **state)
{
        static const char poison[] = "{\"lease\":{\"id\":77,\"resource\":";
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *poisoned = make_file("poisoned.img", "data");
        struct {
                HolderHead head;
                HolderObject object;
                char record[64];
        } put = {
                .head = { .type = HOLDER_PUT, .version = HOLDER_VERSION, .n = 1 },
                .object = { .id = HOLDER_ID(HOLDER_LEASE, 77), .flags = HOLDER_HAS_FD, .length = sizeof(poison) },
        };
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } control = { .align = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) } };
        struct iovec iov = { .iov_base = &put, .iov_len = sizeof(put) };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        int fd, locked;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        daemon_end(d);
        fd = connect_holder(d, child_socket(d), HOLDER_ROLE_LOCKD);
        while (receive_head(fd).type != HOLDER_END)
                ;
        locked = lock_outside(poisoned);
        memcpy(put.record, poison, sizeof(poison));
        memcpy(CMSG_DATA(&control.align), &locked, sizeof(locked));
        assert_int_equal(sendmsg(fd, &message, 0), sizeof(put));
        /* An id that is there is not put with another fd. */
        assert_int_equal(sendmsg(fd, &message, 0), sizeof(put));
        assert_int_equal(receive_head(fd).error, EEXIST);
        close(fd);
        close(locked);
        launch(d);
        assert_non_null(find_lease(d, "", image));
        assert_true(daemon_log_has(d, "cannot be made out"));
        assert_false(is_lockable(poisoned, false));
        crash(d);
        assert_non_null(find_lease(d, "", image));
        assert_false(is_lockable(poisoned, false));
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_false(is_lockable(poisoned, false));
}

/* A process of the holder goes on as a fresh image of its program: the same pid, the same locks. */
static void test_move(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *not_a_program = make_file("nonsense", "nonsense");
        const char *binary = getenv("LOCKD_HOLDER") ? getenv("LOCKD_HOLDER") : "build/lockd-holder";
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        struct {
                HolderHead head;
                char path[4096];
        } move = { .head = { .type = HOLDER_MOVE, .version = HOLDER_VERSION } };
        char *absolute = realpath(binary, NULL);
        const char *const programs[] = { not_a_program, absolute };
        HolderHead head;
        pid_t child;
        int fd;

        (void)state;
        assert_non_null(absolute);
        assert_int_equal(chmod(not_a_program, 0700), 0);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = holder_pid(d, false);
        daemon_end(d);
        fd = connect_holder(d, child_socket(d), HOLDER_ROLE_LOCKD);
        while (receive_head(fd).type != HOLDER_END)
                ;
        for (size_t i = 0; i < 2; i++) {
                move.head.n = (uint32_t)strlen(programs[i]);
                memcpy(move.path, programs[i], move.head.n);
                assert_int_equal(send(fd, &move, sizeof(move.head) + move.head.n, 0), sizeof(move.head) + move.head.n);
                head = receive_head(fd);
                assert_int_equal(head.type, HOLDER_MOVED);
                assert_int_equal(head.error != 0, i == 0);
                assert_false(is_lockable(image, false));
        }
        free(absolute);
        close(fd);
        assert_int_equal(holder_pid(d, false), child);
        launch(d);
        assert_non_null(find_lease(d, "", image));
        assert_true(holder_has(d, "disk.img"));
        conn_close(ca);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
}

/* An administrator who lets everything go leaves no holder behind. */
static void test_ends_by_itself(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a);
        pid_t child, listener;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = holder_pid(d, false);
        listener = holder_pid(d, true);
        assert_int_equal(kill(child, SIGTERM), 0);
        assert_int_equal(kill(listener, SIGTERM), 0);
        assert_true(holder_has(d, "disk.img")); /* they ignore it while they keep something */
        daemon_stop(d);
        assert_true(is_lockable(image, false));
        wait_until(has_ended(child) && has_ended(listener));
        launch(d);
        conn_close(ca);
        vm_kill(&a);
}

static void end_all(TestDaemon *d)
{
        pid_t child = holder_pid(d, false), listener = holder_pid(d, true);

        assert_int_equal(kill(d->pid, SIGSTOP), 0); /* it shall not replace them */
        end_process(child);
        end_process(listener);
        daemon_end(d);
}

/* What the journal says is locked again for those who live, and for nobody else; what somebody took is said to be stolen. */
static void test_both_die(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data"), *shared = make_file("shared.img", "data"), *dir = lease_dir("leases");
        const char *stolen = make_file("stolen.img", "data"), *dead = make_file("dead.img", "data"), *back = make_file("back.img", "data");
        const char *replaced = make_file("replaced.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta"), c = vm_start(d, "gamma");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b), *cc = vm_conn(d, &c);
        int outside;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_acquire(ca, "", shared, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", shared, VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_create_lockspace(ca, dir), 0);
        assert_int_equal(conn_acquire(ca, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        assert_int_equal(conn_acquire(ca, "", stolen, 0), 0);
        assert_int_equal(conn_acquire(ca, "", back, 0), 0);
        assert_int_equal(conn_release(ca, "", back), 0);
        assert_int_equal(conn_acquire(ca, "", replaced, 0), 0);
        assert_int_equal(conn_acquire(cc, "", dead, 0), 0);
        end_all(d);
        assert_true(is_lockable(image, false));
        vm_kill(&c);
        outside = lock_outside(stolen);
        assert_int_equal(rename(make_file("other.img", "data"), replaced), 0);
        launch(d);
        assert_false(is_lockable(image, false));
        assert_false(is_lockable(shared, false));
        assert_true(is_lockable(dead, false));
        assert_true(is_lockable(back, false));
        assert_true(is_lockable(replaced, false));
        assert_int_equal(find_lease(d, "", image)->state, LOCKD_STATE_HELD);
        assert_int_equal(count_holds(d, "", shared), 2);
        assert_non_null(find_lease(d, dir, "lease"));
        assert_null(find_lease(d, "", dead));
        assert_null(find_lease(d, "", back));
        assert_int_equal(find_lease(d, "", stolen)->state, LOCKD_STATE_UNPROTECTED);
        assert_int_equal(find_lease(d, "", replaced)->state, LOCKD_STATE_UNPROTECTED);
        assert_true(daemon_log_has(d, "REGAINED"));
        assert_int_equal(daemon_log_count(d, "STOLEN"), 2);
        conn_close(cb);
        cb = vm_conn(d, &b);
        assert_busy(cb, conn_acquire(cb, "", image, 0), "is locked by VM 'alpha'");
        /* What becomes free is taken before a third one can. */
        close(outside);
        wait_until(!is_lockable(stolen, false));
        wait_until(find_lease(d, "", stolen)->state == LOCKD_STATE_HELD);
        /* And once more, with what is known only from there. */
        wait_until(holder_has(d, "stolen.img"));
        end_all(d);
        launch(d);
        assert_int_equal(find_lease(d, "", image)->state, LOCKD_STATE_HELD);
        assert_int_equal(find_lease(d, "", stolen)->state, LOCKD_STATE_HELD);
        conn_close(ca);
        conn_close(cb);
        conn_close(cc);
        vm_kill(&a);
        vm_kill(&b);
        wait_until(list_leases(d)->records.records_len == 0);
        assert_true(is_lockable(image, false));
        assert_false(file_exists(work_path("leases/lease")));
        end_all(d);
        launch(d);
        assert_int_equal(list_leases(d)->records.records_len, 0);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_kill_loses_nothing, start, end),
                cmocka_unit_test_setup_teardown(test_owner_dies_meanwhile, start, end),
                cmocka_unit_test_setup_teardown(test_holder_dies, start, end),
                cmocka_unit_test_setup_teardown(test_term, start, end),
                cmocka_unit_test_setup_teardown(test_connection, start, end),
                cmocka_unit_test_setup_teardown(test_unconfirmed, start, end),
                cmocka_unit_test_setup_teardown(test_unanswered_call, start, end),
                cmocka_unit_test_setup_teardown(test_lockspaces_stay, start, end),
                cmocka_unit_test_setup_teardown(test_stuck, start, end),
                cmocka_unit_test_setup_teardown(test_killed_while_stuck, start, end),
                cmocka_unit_test_setup_teardown(test_silent_child, start, end),
                cmocka_unit_test_setup_teardown(test_second_lockd, start, end),
                cmocka_unit_test_setup_teardown(test_upgrade, start, end),
                cmocka_unit_test_setup_teardown(test_both_die, start, end),
                cmocka_unit_test_setup_teardown(test_release_dead, start, end),
                cmocka_unit_test_setup_teardown(test_dead_go_by_themselves, start, end),
                cmocka_unit_test_setup_teardown(test_poisoned_record, start, end),
                cmocka_unit_test_setup_teardown(test_move, start, end),
                cmocka_unit_test_setup_teardown(test_ends_by_itself, start, end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
