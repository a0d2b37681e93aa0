/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * USR1, HUP and TERM come before and after every system call of an upgrade, from the one that reads the request to the one
 * with which the new image waits for clients: nothing is lost, and the signal is heeded.
 *
 * lockd is traced; at its nth stop the signal is sent, and it goes on without the tracer. Every STEPth point is taken, all
 * with LOCKD_TEST_ALL.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "world.h"

#define STEP 10

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static const struct {
        int number;
        const char *name;
} signals[] = { { SIGUSR1, "USR1" }, { SIGHUP, "HUP" }, { SIGTERM, "TERM" } };

static unsigned step_of(unsigned step)
{
        return getenv("LOCKD_TEST_ALL") ? 1 : step;
}

static void wait_for_stop(int *ret_status)
{
        assert_int_equal(waitpid(d->pid, ret_status, __WALL), d->pid);
        if (!WIFSTOPPED(*ret_status)) {
                d->pid = 0;
                fail_msg("lockd ended: %#x", (unsigned)*ret_status);
        }
}

/* It begins to wait for events. */
static bool waits(const struct __ptrace_syscall_info *info)
{
        if (info->op != PTRACE_SYSCALL_INFO_ENTRY)
                return false;
        return info->entry.nr == SYS_epoll_pwait || info->entry.nr == SYS_epoll_pwait2
#ifdef SYS_epoll_wait
               || info->entry.nr == SYS_epoll_wait
#endif
                ;
}

/* A trial that runs has ended, and nobody knows yet: what comes now comes with it. */
static void let_the_trial_end(void)
{
        char path[64], state = 'R';
        int child = 0;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)d->pid, (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        (void)fscanf(f, "%d", &child);
        fclose(f);
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", child);
        while (child > 0) {
                f = fopen(path, "re");
                if (!f)
                        return;
                (void)fscanf(f, "%*d %*s %c", &state);
                fclose(f);
                if (state == 'Z')
                        return;
                pause_briefly();
        }
}

/* Asks for an upgrade and sends the signal when lockd has stopped that often; before and after a system call count as one
 * each. 0: sends none, and returns how often it stopped until the new image waits. *ret_call: the system call's number. */
static unsigned upgrade_with_signal(unsigned point, int signal, long *ret_call)
{
        const unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC;
        bool executed = false;
        unsigned stops = 0;
        int status;

        *ret_call = -1;
        assert_int_equal(ptrace(PTRACE_SEIZE, d->pid, NULL, (void *)options), 0);
        assert_int_equal(ptrace(PTRACE_INTERRUPT, d->pid, NULL, NULL), 0);
        wait_for_stop(&status);
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        for (;;) {
                struct __ptrace_syscall_info info;

                assert_int_equal(ptrace(PTRACE_SYSCALL, d->pid, NULL, NULL), 0);
                wait_for_stop(&status);
                executed = executed || status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8);
                if (WSTOPSIG(status) != (SIGTRAP | 0x80))
                        continue;
                assert_true(ptrace(PTRACE_GET_SYSCALL_INFO, d->pid, (void *)sizeof(info), &info) > 0);
                stops++;
                if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
                        *ret_call = (long)info.entry.nr;
                if (stops == point || (executed && waits(&info)))
                        break;
        }
        if (point > 0) {
                let_the_trial_end();
                assert_int_equal(kill(d->pid, signal), 0);
        }
        assert_int_equal(ptrace(PTRACE_DETACH, d->pid, NULL, NULL), 0);
        return stops;
}

/* No signal waits to be read, no trial runs, and it answers. */
static bool is_idle(void)
{
        char path[64], line[256];
        unsigned long long pending = 0;
        bool children;
        Conn *conn;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                (void)sscanf(line, "ShdPnd: %llx", &pending);
        fclose(f);
        if (pending & (1ULL << (SIGUSR1 - 1) | 1ULL << (SIGHUP - 1) | 1ULL << (SIGTERM - 1)))
                return false;
        conn = conn_open(d);
        assert_true(conn_ping(conn, 1));
        conn_close(conn);
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)d->pid, (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        children = fgets(line, sizeof(line), f) != NULL;
        fclose(f);
        return !children;
}

static void wait_until_upgraded(unsigned long long image, unsigned point, long call, const char *name)
{
        unsigned long long now;

        wait_until(({
                if (waitpid(d->pid, NULL, WNOHANG) == d->pid) {
                        d->pid = 0;
                        fail_msg("lockd ended: %s at point %u, system call %ld", name, point, call);
                }
                (now = image_of(d->pid)) != 0 && now != image;
        }));
        wait_until(is_idle());
}

/* The world, with each of the signals at each of the points. */
static void test_every_point(void **state)
{
        unsigned points, step = step_of(STEP), taken = 0;
        World world;
        long call;

        (void)state;
        daemon_start_copy(d, "log_level = 4\n", NULL);
        world_start(&world, d, "signals");
        points = upgrade_with_signal(0, 0, &call);
        wait_until(is_idle());
        world_check(&world);
        for (size_t s = 0; s < sizeof(signals) / sizeof(signals[0]); s++) {
                bool reached = true;

                /* Each signal takes other points. Each upgrade has a few more or less. */
                for (unsigned point = 1 + (unsigned)s; reached; point += step, taken++) {
                        unsigned long long image = image_of(d->pid);

                        reached = upgrade_with_signal(point, signals[s].number, &call) == point;
                        wait_until_upgraded(image, point, call, signals[s].name);
                        world_check_quietly(&world);
                }
        }
        print_message("%u points in an upgrade, %u taken\n", points, taken);
        assert_true(points > 200 && taken > 3 * (points / step) - 6);
        world_check(&world);
        assert_int_equal(daemon_log_count(d, "no upgrade to"), 0);
        assert_int_equal(daemon_log_count(d, "restored"), 0);
        world.ends = true;
        world_finish(&world);
}

/* Nothing is held: a TERM, whenever it came, ends lockd. */
static void test_term_is_not_forgotten(void **state)
{
        unsigned points, step = step_of(2 * STEP), taken = 0;
        long call;

        (void)state;
        daemon_start_copy(d, NULL, NULL);
        points = upgrade_with_signal(0, 0, &call);
        wait_until(is_idle());
        daemon_end(d);
        for (unsigned point = 1; point < points; point += step, taken++) {
                int status = -1;

                daemon_start_copy(d, NULL, NULL);
                (void)upgrade_with_signal(point, SIGTERM, &call);
                {
                        int64_t deadline = now_msec() + HARNESS_DEADLINE_MSEC;

                        while (waitpid(d->pid, &status, WNOHANG) == 0 && now_msec() < deadline)
                                pause_briefly();
                }
                if (status != 0)
                        fail_msg("TERM at point %u of %u, system call %ld: %s", point, points, call, status == -1 ? "forgotten" : "a bad end");
                d->pid = 0;
        }
        print_message("%u points in an upgrade, %u taken\n", points, taken);
}

int main(int argc, char **argv)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_every_point),
                cmocka_unit_test(test_term_is_not_forgotten),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
