/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockd is killed before and after every system call of one acquire, one release, one upgrade and one adoption. After each
 * of these points the next lockd has to make sense of what is there: nothing is lost, nothing is left, and the VM's own
 * call, on the connection that outlives lockd, is answered.
 *
 * $LOCKD_TEST_STEP: every how manieth point of the long ones (upgrade, adoption) is tried; 1: all. Default 9.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"

static TestDaemon daemon_under_test;

/* ---- a VM that makes its calls itself, one for each letter it is sent, and sends back how they ended ---- */

typedef struct Caller {
        pid_t pid;
        int control;
} Caller;

static void run_caller(int control, const char *dir)
{
        const uint8_t uuid[16] = { 9 };
        Conn *conn = conn_open_at(daemon_under_test.lock_socket);
        char command;
        int32_t code = 0;

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!conn || conn_register(conn, "caller", uuid, 5, (uint32_t)getpid()) != 0 || conn_create_lockspace(conn, dir) != 0)
                _exit(3);
        do {
                if (write(control, &code, sizeof(code)) != (ssize_t)sizeof(code) || read(control, &command, 1) != 1)
                        _exit(0);
                code = command == 'a' ? conn_acquire(conn, dir, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE) :
                       command == 'b' ? conn_acquire(conn, dir, "first", VIRTLOCK_ACQUIRE_AUTOCREATE) :
                                        conn_release(conn, dir, "lease");
        } while (true);
}

static int32_t caller_answer(const Caller *caller)
{
        struct pollfd p = { .fd = caller->control, .events = POLLIN };
        int32_t code = -1;

        if (poll(&p, 1, HARNESS_DEADLINE_MSEC) != 1 || read(caller->control, &code, sizeof(code)) != (ssize_t)sizeof(code))
                fail_msg("the VM's own call was not answered");
        return code;
}

static void caller_ask(const Caller *caller, char command)
{
        assert_int_equal(write(caller->control, &command, 1), 1);
}

static Caller caller_start(const char *dir)
{
        Caller caller;
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        caller.pid = fork();
        assert_true(caller.pid >= 0);
        if (caller.pid == 0) {
                close(fds[0]);
                run_caller(fds[1], dir);
        }
        close(fds[1]);
        caller.control = fds[0];
        assert_int_equal(caller_answer(&caller), 0);
        return caller;
}

static void caller_end(Caller *caller)
{
        (void)kill(caller->pid, SIGKILL);
        assert_int_equal(waitpid(caller->pid, NULL, 0), caller->pid);
        close(caller->control);
}

/* ---- points ---- */

typedef enum Until { UNTIL_ANSWER, UNTIL_IDLE, UNTIL_EXECUTED_AND_IDLE } Until;

static uint64_t syscall_number(pid_t pid)
{
        struct {
                uint8_t op;
                uint8_t pad[3];
                uint32_t arch;
                uint64_t ip, sp, nr, args[6];
                uint64_t rest[4];
        } info = { 0 };

        if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) <= 0 || info.op != 1)
                return UINT64_MAX;
        return info.nr;
}

static bool has_answer(const Caller *caller)
{
        struct pollfd p = { .fd = caller->control, .events = POLLIN };

        return poll(&p, 1, 0) == 1;
}

/* Lets lockd run to its nth stop at a system call and kills it there. false: it got through before. It is not traced then,
 * and lives. */
static bool kill_at(TestDaemon *d, unsigned n, Until until, const Caller *caller)
{
        unsigned stops = 0;
        bool executed = until == UNTIL_IDLE;

        for (;;) {
                int status, signal = 0;
                pid_t pid = waitpid(d->pid, &status, __WALL | (until == UNTIL_ANSWER ? WNOHANG : 0));

                if (pid == 0) {
                        if (!has_answer(caller)) {
                                struct pollfd p = { .fd = caller->control, .events = POLLIN };

                                (void)poll(&p, 1, 1);
                                continue;
                        }
                        /* Answered, and lockd waits. */
                        assert_int_equal(ptrace(PTRACE_INTERRUPT, d->pid, NULL, NULL), 0);
                        assert_int_equal(waitpid(d->pid, &status, __WALL), d->pid);
                        assert_int_equal(ptrace(PTRACE_DETACH, d->pid, NULL, NULL), 0);
                        return false;
                }
                assert_int_equal(pid, d->pid);
                if (!WIFSTOPPED(status))
                        fail_msg("lockd ended by itself at point %u: status %#x, see %s", stops, (unsigned)status, d->log);
                if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8))
                        executed = true;
                else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
                        if (++stops == n) {
                                daemon_end(d);
                                return true;
                        }
                        if (until != UNTIL_ANSWER && executed && syscall_number(d->pid) == SYS_epoll_wait) {
                                assert_int_equal(ptrace(PTRACE_DETACH, d->pid, NULL, NULL), 0);
                                return false;
                        }
                } else if (WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP)
                        signal = WSTOPSIG(status);
                (void)ptrace(PTRACE_SYSCALL, d->pid, NULL, (void *)(intptr_t)signal);
        }
}

#define TRACE_OPTIONS ((void *)(intptr_t)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC))

static void attach(const TestDaemon *d)
{
        assert_int_equal(ptrace(PTRACE_SEIZE, d->pid, NULL, TRACE_OPTIONS), 0);
        assert_int_equal(ptrace(PTRACE_INTERRUPT, d->pid, NULL, NULL), 0);
}

static void launch(TestDaemon *d)
{
        Conn *conn;

        daemon_launch(d, NULL);
        wait_until((conn = conn_open_at(d->admin_socket)) != NULL);
        conn_close(conn);
        (void)list_leases(d);
}

static pid_t a_holder(const TestDaemon *d)
{
        char dir[128];
        struct dirent *entry;
        pid_t pid = 0;
        DIR *folder;

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

static const char *start(void)
{
        const char *dir = work_path("leases");

        assert_true(mkdir(dir, 0700) == 0 || errno == EEXIST);
        (void)unlink(work_path("leases/lease"));
        (void)unlink(work_path("leases/first"));
        daemon_start(&daemon_under_test, "holder = \"auto\"\n", NULL);
        return dir;
}

/* All is over: nothing may be left anywhere. */
static void end(Caller *caller, const char *lease, const char *first)
{
        TestDaemon *d = &daemon_under_test;

        caller_end(caller);
        wait_until(list_leases(d)->records.records_len == 0);
        assert_false(file_exists(lease));
        assert_false(file_exists(first));
}

static int clean(void **state)
{
        TestDaemon *d = &daemon_under_test;
        pid_t pid;

        (void)state;
        daemon_end(d);
        while ((pid = a_holder(d)) > 0) {
                (void)kill(pid, SIGKILL);
                wait_until(a_holder(d) != pid);
        }
        return 0;
}

/* The VM's own acquire, then its own release, each killed everywhere. */
static void test_acquire_and_release(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *dir = start(), *lease = work_path("leases/lease"), *first = work_path("leases/first");
        unsigned points[2] = { 0 };

        (void)state;
        for (int release = 0; release < 2; release++)
                for (unsigned n = 1;; n++) {
                        Caller caller = caller_start(dir);
                        int32_t code;
                        bool killed;

                        /* One that it has already: its connection is one that outlives lockd. */
                        caller_ask(&caller, 'b');
                        assert_int_equal(caller_answer(&caller), 0);
                        if (release) {
                                caller_ask(&caller, 'a');
                                assert_int_equal(caller_answer(&caller), 0);
                        }
                        attach(d);
                        caller_ask(&caller, release ? 'r' : 'a');
                        killed = kill_at(d, n, UNTIL_ANSWER, &caller);
                        if (killed)
                                launch(d);
                        code = caller_answer(&caller);
                        assert_non_null(find_lease(d, dir, "first"));
                        assert_false(is_lockable(first, false));
                        if (!release) {
                                if (code != 0)
                                        fail_msg("acquire, point %u: error %d", n, code);
                                assert_non_null(find_lease(d, dir, "lease"));
                                assert_false(is_lockable(lease, false));
                        } else {
                                /* Released before it was asked again: "not locked" is an answer, too. */
                                if (code != 0 && code != VIRTLOCK_ERR_RESOURCE_BUSY)
                                        fail_msg("release, point %u: error %d", n, code);
                                if (find_lease(d, dir, "lease"))
                                        fail_msg("release, point %u: answered %d, and it is held", n, code);
                                assert_false(file_exists(lease));
                        }
                        end(&caller, lease, first);
                        if (!killed)
                                break;
                        points[release] = n;
                }
        print_message("%u points of an acquire, %u of a release\n", points[0], points[1]);
        assert_true(points[0] > 10 && points[1] > 5);
}

static unsigned step(void)
{
        return getenv("LOCKD_TEST_STEP") ? (unsigned)atoi(getenv("LOCKD_TEST_STEP")) : 9;
}

static void test_upgrade(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *dir = start(), *lease = work_path("leases/lease"), *first = work_path("leases/first");
        Caller caller = caller_start(dir);
        unsigned n = 1, tried = 0;

        (void)state;
        caller_ask(&caller, 'a');
        assert_int_equal(caller_answer(&caller), 0);
        for (bool killed = true; killed; n += step(), tried++) {
                attach(d);
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                killed = kill_at(d, n, UNTIL_EXECUTED_AND_IDLE, &caller);
                assert_false(is_lockable(lease, false));
                if (killed)
                        launch(d);
                assert_false(is_lockable(lease, false));
                assert_non_null(find_lease(d, dir, "lease"));
        }
        print_message("%u points of an upgrade, of %u\n", tried, n - step());
        assert_true(n > 100);
        end(&caller, lease, first);
}

static void test_adoption(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *dir = start(), *lease = work_path("leases/lease"), *first = work_path("leases/first");
        Caller caller = caller_start(dir);
        unsigned n = 1, tried = 0;

        (void)state;
        caller_ask(&caller, 'a');
        assert_int_equal(caller_answer(&caller), 0);
        daemon_end(d);
        for (bool killed = true; killed; n += step(), tried++) {
                daemon_launch(d, NULL);
                /* From its first system calls on: it was just forked. */
                attach(d);
                killed = kill_at(d, n, UNTIL_IDLE, &caller);
                assert_false(is_lockable(lease, false));
        }
        assert_non_null(find_lease(d, dir, "lease"));
        print_message("%u points of an adoption, of %u\n", tried, n - step());
        assert_true(n > 100);
        end(&caller, lease, first);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_acquire_and_release, clean),
                cmocka_unit_test_teardown(test_upgrade, clean),
                cmocka_unit_test_teardown(test_adoption, clean),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
