/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whatever goes wrong with an upgrade: no lock is let go, every connection is served, every call answered once, one line
 * in the log and in lockd-admin's output says what happened.
 *
 * This program is also the new binary that goes wrong: executed with a state it does what the file beside it, named
 * "*.plan", says. The first word is for the trial, the second one for the execution.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "world.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* ---- the new binary ---- */

/* The state with one line of that kind changed: "drop", "garble", or "cut" (all behind it is missing). */
static char *spoil(char *state, const char *how, const char *kind)
{
        char begin[32], *line, *end, *fresh;

        (void)snprintf(begin, sizeof(begin), "{\"%s\":", kind);
        line = strncmp(state, begin, strlen(begin)) == 0 ? state : NULL;
        for (char *p = state; !line && (p = strchr(p, '\n')); p++)
                if (strncmp(p + 1, begin, strlen(begin)) == 0)
                        line = p + 1;
        if (!line)
                return NULL;
        end = strchr(line, '\n');
        if (strcmp(how, "cut") == 0) {
                line[(end - line) / 2] = '\0';
                return strdup(state);
        }
        *line = '\0';
        if (asprintf(&fresh, "%s%s%s", state, strcmp(how, "garble") == 0 ? "{\"\xff!\n" : "", end + 1) < 0)
                return NULL;
        return fresh;
}

/* Unknown members in each record, and a line of an unknown kind. */
static char *extend(const char *state)
{
        FILE *out;
        char *fresh = NULL;
        size_t size;

        out = open_memstream(&fresh, &size);
        while (out && *state) {
                size_t len = strcspn(state, "\n");

                if (strncmp(state, "{\"end\"", 6) == 0)
                        fprintf(out, "{\"flux\":{\"capacity\":88}}\n");
                if (state[len - 1] == '}' && state[len - 2] == '}')
                        fprintf(out, "%.*s,\"novelty\":{\"a\":[1,\"\\u20ac\"]}}}\n", (int)len - 2, state);
                else
                        fprintf(out, "%.*s\n", (int)len, state);
                state += len + (state[len] == '\n');
        }
        if (out)
                fclose(out);
        return fresh;
}

/* Whole state of fd to memory; and another one in its place. */
static char *read_state(int fd)
{
        char *text = NULL;
        size_t size = 0;
        FILE *file = fdopen(dup(fd), "re");

        if (!file || lseek(fd, 0, SEEK_SET) < 0 || getdelim(&text, &size, '\0', file) < 0)
                _exit(40);
        fclose(file);
        (void)lseek(fd, 0, SEEK_SET);
        return text;
}

static void replace_state(int fd, const char *text)
{
        int fresh = memfd_create("state", 0);

        if (!text || fresh < 0 || write(fresh, text, strlen(text)) != (ssize_t)strlen(text) || lseek(fresh, 0, SEEK_SET) < 0 ||
            dup2(fresh, fd) < 0)
                _exit(41);
        close(fresh);
}

static void obey(const char *word, const char *exe)
{
        int state = atoi(getenv("LOCKD_STATE_FD"));
        char path[4300], how[16] = "", kind[16] = "";

        if (strcmp(word, "exit") == 0)
                _exit(1);
        if (strcmp(word, "abort") == 0)
                (void)raise(SIGKILL);
        if (strcmp(word, "segv") == 0) {
                (void)signal(SIGSEGV, SIG_DFL);
                (void)sigprocmask(SIG_SETMASK, &(sigset_t){ 0 }, NULL);
                (void)raise(SIGSEGV);
        }
        if (strcmp(word, "loud") == 0) {
                fprintf(stderr, "first line\nsecond line\n");
                for (int i = 0; i < 100000; i++)
                        fprintf(stderr, "more than a pipe takes ");
                _exit(3);
        }
        if (strcmp(word, "hang") == 0)
                for (;;)
                        (void)pause();
        if (strcmp(word, "wait") == 0) {
                (void)snprintf(path, sizeof(path), "%s.go", exe);
                while (access(path, F_OK) < 0)
                        (void)poll(NULL, 0, 2);
        }
        if (strcmp(word, "replace") == 0) {
                (void)snprintf(path, sizeof(path), "%s.next", exe);
                if (rename(path, exe) < 0)
                        _exit(42);
        }
        if (strcmp(word, "config") == 0) {
                (void)snprintf(path, sizeof(path), "%.*s/lockd.conf", (int)(strrchr(exe, '/') - exe), exe);
                if (truncate(path, 0) < 0 || close(open(path, O_WRONLY | O_APPEND)) < 0)
                        _exit(43);
                FILE *f = fopen(path, "we");

                fprintf(f, "max_clients = \"many\n");
                fclose(f);
        }
        if (strcmp(word, "signals") == 0)
                for (int i = 0; i < 100; i++)
                        for (const int *s = (int[]){ SIGUSR1, SIGHUP, SIGTERM, SIGINT, 0 }; *s; s++)
                                (void)kill(getpid(), *s);
        if (strcmp(word, "extend") == 0)
                replace_state(state, extend(read_state(state)));
        if (sscanf(word, "%15[a-z]:%15[a-z]", how, kind) == 2)
                replace_state(state, spoil(read_state(state), how, kind));
        if (strcmp(word, "save") == 0) {
                FILE *f;

                (void)snprintf(path, sizeof(path), "%s.state", exe);
                f = fopen(path, "we");
                fputs(read_state(state), f);
                fclose(f);
        }
}

static int play(char **argv)
{
        bool trial = false;
        char exe[4200] = "", path[4300], words[2][32] = { "", "" };
        FILE *f;

        for (char **p = argv; *p; p++)
                trial |= strcmp(*p, "--check-state") == 0;
        if (readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0)
                return 44;
        if (strstr(exe, " (deleted)"))
                *strstr(exe, " (deleted)") = '\0';
        (void)snprintf(path, sizeof(path), "%s.plan", exe);
        f = fopen(path, "re");
        if (!f || fscanf(f, "%31s %31s", words[0], words[1]) != 2)
                return 45;
        fclose(f);
        obey(words[trial ? 0 : 1], exe);
        (void)snprintf(path, sizeof(path), "%s.real", exe);
        if (trial)
                (void)execv(path, argv);
        /* The real one in our place, as if it had been there all the time. */
        if (rename(path, exe) == 0)
                (void)execv(exe, argv);
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 46;
}

/* ---- the tests ---- */

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;
static World world;

static const char *lockd(void)
{
        return getenv("LOCKD") ? getenv("LOCKD") : "build/lockd";
}

static const char *beside(const char *suffix)
{
        static char buffers[4][128];
        static unsigned next;
        char *buf = buffers[next++ % 4];

        (void)snprintf(buf, sizeof(buffers[0]), "%s%s", d->binary, suffix);
        return buf;
}

/* The installed binary goes wrong like this from now on. */
static void install_bad(const char *in_trial, const char *in_execution)
{
        FILE *f = fopen(beside(".plan"), "we");

        assert_non_null(f);
        fprintf(f, "%s %s\n", in_trial, in_execution);
        fclose(f);
        install_copy(lockd(), beside(".real"));
        install_copy("/proc/self/exe", d->binary);
}

static void install_text(const char *text, mode_t mode)
{
        FILE *f = fopen(beside(".new"), "we");

        assert_non_null(f);
        fputs(text, f);
        fclose(f);
        assert_int_equal(chmod(beside(".new"), mode), 0);
        assert_int_equal(rename(beside(".new"), d->binary), 0);
}

static void install_good(void)
{
        install_copy(lockd(), d->binary);
}

static int start(void **state)
{
        (void)state;
        daemon_start_copy(d, NULL, NULL);
        world_start(&world, d, strrchr(d->dir, '/') + 1 + 1);
        return 0;
}

/* In the end a good binary is taken, nothing was lost, and all ends well. */
static int finish(void **state)
{
        (void)state;
        install_good();
        expect_upgrade(&world);
        world_finish(&world);
        daemon_stop(d);
        return 0;
}

/* ---- the binary ---- */

static void test_unusable_file(void **state)
{
        (void)state;
        assert_int_equal(unlink(d->binary), 0);
        expect_no_upgrade(&world, "No such file or directory");
        install_good();
        assert_int_equal(chmod(d->binary, 0600), 0);
        expect_no_upgrade(&world, "Permission denied");
        install_text("", 0755);
        expect_no_upgrade(&world, "Exec format error");
        install_text("Hello world\n", 0755);
        expect_no_upgrade(&world, "Exec format error");
        install_text("#!/bin/sh\nexit 0\n", 0755);
        expect_no_upgrade(&world, "not a binary");
        assert_int_equal(unlink(d->binary), 0);
        assert_int_equal(mkdir(d->binary, 0755), 0);
        expect_no_upgrade(&world, "no upgrade");
        assert_int_equal(rmdir(d->binary), 0);
        assert_int_equal(symlink("lockd", d->binary), 0);
        expect_no_upgrade(&world, "symbolic links");
}

/* Opening it must not wait for a writer. */
static void test_fifo(void **state)
{
        (void)state;
        assert_int_equal(unlink(d->binary), 0);
        assert_int_equal(mkfifo(d->binary, 0755), 0);
        expect_no_upgrade(&world, "no upgrade");
        assert_int_equal(unlink(d->binary), 0);
}

static void test_half_a_binary(void **state)
{
        (void)state;
        assert_int_equal(truncate(d->binary, 0) < 0 && errno == ETXTBSY, 1);
        install_copy(lockd(), beside(".half"));
        assert_int_equal(truncate(beside(".half"), 5000), 0);
        assert_int_equal(rename(beside(".half"), d->binary), 0);
        expect_no_upgrade(&world, "no upgrade");
}

static void test_bad_trial(void **state)
{
        (void)state;
        install_bad("exit", "exit");
        expect_no_upgrade(&world, "its trial ended with code 1");
        install_bad("abort", "exit");
        expect_no_upgrade(&world, "its trial was ended by signal 9");
        install_bad("segv", "exit");
        expect_no_upgrade(&world, "its trial was ended by signal 11");
        install_bad("loud", "exit");
        expect_no_upgrade(&world, "code 3: first line second line more");
}

/* A trial that hangs is ended at its deadline; meanwhile lockd serves, and a second upgrade is refused. */
static void test_trial_hangs(void **state)
{
        _cleanup_free_ char *said = NULL;
        FrameHeader call = { .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = LOCKD_ADMIN_UPGRADE, .serial = 4 };
        Conn *admin = admin_open(d);
        struct pollfd p = { .fd = conn_fd(admin), .events = POLLIN };
        FrameHeader answer;
        int64_t begin = now_msec();

        (void)state;
        install_bad("hang", "exit");
        conn_send_frame(admin, call, NULL, 0);
        assert_true(conn_ping(admin, 17));
        assert_int_equal(run_admin(d, &said, (const char *[]){ "upgrade", NULL }), 75);
        assert_non_null(strstr(said, "under way already"));
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        daemon_expect_log(d, "an upgrade is under way already");
        world_check(&world);
        assert_int_equal(poll(&p, 1, 28000), 1);
        assert_true(now_msec() - begin >= 15000);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_int_equal(answer.serial, 4);
        assert_int_equal(answer.status, FRAME_ERROR);
        assert_int_equal(daemon_log_count(d, "its trial did not end within"), 1);
        assert_true(conn_ping(admin, 18));
        conn_close(admin);
        world_check(&world);
}

/* The trial reads the same state by the same functions: it refuses what the execution would have stumbled over. */
static void test_trial_refuses_the_state(void **state)
{
        static const char *const bad[] = { "garble:lockd", "garble:owner", "garble:peer", "garble:lease", "garble:lockspace",
                                           "garble:listener", "garble:end", "drop:end", "drop:lease", "drop:owner", "drop:peer",
                                           "cut:lease", "cut:end" };

        (void)state;
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                install_bad(bad[i], "pass");
                expect_no_upgrade(&world, "its trial ended with code");
        }
}

/* What was tried is what is executed, whatever lies there by then. */
static void test_replaced_after_the_trial(void **state)
{
        FILE *f;

        (void)state;
        install_bad("replace", "pass");
        f = fopen(beside(".next"), "we");
        fprintf(f, "nonsense\n");
        fclose(f);
        assert_int_equal(chmod(beside(".next"), 0755), 0);
        expect_upgrade(&world);
        install_text("", 0755);
        expect_no_upgrade(&world, "Exec format error");
}

/* ---- the configuration ---- */

static void test_broken_configuration(void **state)
{
        FILE *f = fopen(d->config, "ae");

        (void)state;
        fprintf(f, "max_clients = \"many\"\n");
        fclose(f);
        expect_no_upgrade(&world, "lockd.conf:3: max_clients");
        f = fopen(d->config, "we");
        fprintf(f, "lock_socket = \"%s\"\nadmin_socket = \"%s\"\n", d->lock_socket, d->admin_socket);
        fclose(f);
}

/* It breaks between trial and execution: the new image keeps everything, says so, and goes on; so does the one after it. */
static void test_configuration_breaks_after_the_trial(void **state)
{
        FILE *f;

        (void)state;
        install_bad("pass", "config");
        expect_upgrade(&world);
        daemon_expect_log(d, "lockd.conf:2");
        expect_no_upgrade(&world, "lockd.conf:2");
        f = fopen(d->config, "we");
        fprintf(f, "lock_socket = \"%s\"\nadmin_socket = \"%s\"\n", d->lock_socket, d->admin_socket);
        fclose(f);
        daemon_reload(d, NULL);
        world_check(&world);
}

/* ---- signals ---- */

static unsigned upgrades(void)
{
        return daemon_log_count(d, "up after an upgrade");
}

/* Asked for once or a hundred times, also while the new image starts: nothing is lost, and in the end it is up. */
static void test_many_requests(void **state)
{
        unsigned before = upgrades();

        (void)state;
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        wait_until(upgrades() > before);
        world_check(&world);
        for (int i = 0; i < 100; i++) {
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                if (i % 3 == 0)
                        pause_briefly();
        }
        wait_until(upgrades() >= before + 2);
        world_check(&world);
        wait_until(run_admin(d, NULL, (const char *[]){ "upgrade", NULL }) == 0);
        assert_int_equal(daemon_log_count(d, "no upgrade to"), 0);
}

static void test_signals_while_the_new_image_starts(void **state)
{
        unsigned before = upgrades();

        (void)state;
        install_bad("pass", "signals");
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        /* And one more, for the signal that came. */
        wait_until(upgrades() == before + 2);
        world_check(&world);
        assert_true(daemon_log_has(d, "leases are held and would be lost, so lockd goes on"));
        world.ends = true;
}

/* HUP, TERM and INT at random moments of one upgrade after the other. */
static void test_signals_at_any_moment(void **state)
{
        const int signals[] = { SIGHUP, SIGTERM, SIGINT, SIGUSR1 };
        unsigned before = upgrades();

        (void)state;
        srandom(3);
        wait_until(({
                assert_int_equal(kill(d->pid, signals[random() % 4]), 0);
                upgrades() > before + 5;
        }));
        assert_int_equal(daemon_log_count(d, "no upgrade to"), 0);
        world_check(&world);
        /* The last one may be under way. */
        wait_until(run_admin(d, NULL, (const char *[]){ "upgrade", NULL }) == 0);
        world.ends = true;
}

/* While the new image takes its time, calls wait; then each is answered, once. */
static void test_slow_start(void **state)
{
        FrameHeader call = { .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = LOCKD_ADMIN_UPGRADE, .serial = 9 };
        Conn *admin = admin_open(d), *old = conn_open(d), *fresh;
        struct pollfd p = { .fd = conn_fd(old), .events = POLLIN };
        FrameHeader answer;

        (void)state;
        install_bad("pass", "wait");
        conn_send_frame(admin, call, NULL, 0);
        daemon_expect_log(d, "executing");
        fresh = conn_open(d);
        for (uint32_t i = 0; i < 10; i++) {
                FrameHeader ping = { .program = VIRTLOCK_PROGRAM, .version = 1, .procedure = 99, .serial = i };

                conn_send_frame(old, ping, NULL, 0);
                conn_send_frame(fresh, ping, NULL, 0);
        }
        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        assert_int_equal(poll(&p, 1, 100), 0);
        fclose(fopen(beside(".go"), "we"));
        for (uint32_t i = 0; i < 10; i++) {
                assert_true(conn_receive(old, &answer, NULL, NULL));
                assert_int_equal(answer.serial, i);
                assert_true(conn_receive(fresh, &answer, NULL, NULL));
                assert_int_equal(answer.serial, i);
        }
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_int_equal(answer.serial, 9);
        assert_int_equal(answer.status, FRAME_OK);
        /* No second answer came before. */
        assert_true(conn_ping(admin, 1));
        assert_true(conn_ping(old, 1));
        assert_true(conn_ping(fresh, 1));
        wait_until(upgrades() == 2);
        world_check(&world);
        conn_close(admin);
        conn_close(old);
        conn_close(fresh);
}

/* ---- the machine ---- */

static unsigned count_fds(void)
{
        char path[64];
        unsigned n = 0;

        for (int fd = 0; fd < 4096; fd++) {
                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)d->pid, fd);
                n += file_exists(path) || faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
        }
        return n;
}

/* Only so many more fds can be opened. */
static void leave_fds(unsigned n, bool hard)
{
        struct rlimit rl, old;
        unsigned open_fds = count_fds(), limit = 0, unused = 0;
        char path[64];

        for (; unused < n || limit < open_fds + n; limit++) {
                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%u", (int)d->pid, limit);
                if (faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && ++unused > n)
                        break;
        }
        assert_int_equal(prlimit(d->pid, RLIMIT_NOFILE, NULL, &old), 0);
        rl = (struct rlimit){ .rlim_cur = limit, .rlim_max = hard ? limit : old.rlim_max };
        assert_int_equal(prlimit(d->pid, RLIMIT_NOFILE, &rl, NULL), 0);
}

static void allow_fds(void)
{
        struct rlimit rl;

        assert_int_equal(prlimit(d->pid, RLIMIT_NOFILE, NULL, &rl), 0);
        rl.rlim_cur = rl.rlim_max;
        assert_int_equal(prlimit(d->pid, RLIMIT_NOFILE, &rl, NULL), 0);
}

/* An upgrade is asked for on a connection that is open already; true: it was done. */
static bool try_upgrade(Conn *admin)
{
        FrameHeader call = { .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = LOCKD_ADMIN_UPGRADE, .serial = 4 };
        FrameHeader answer;

        conn_send_frame(admin, call, NULL, 0);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_int_equal(answer.procedure, LOCKD_ADMIN_UPGRADE);
        assert_int_equal(answer.serial, 4);
        assert_true(conn_ping(admin, 5));
        return answer.status == FRAME_OK;
}

/* No fd is free for one or another of the things that an upgrade opens. */
static void test_no_fds(void **state)
{
        Conn *admin = admin_open(d);
        unsigned refused = 0;

        (void)state;
        assert_true(conn_ping(admin, 1));
        for (unsigned n = 0; n < 12; n++) {
                unsigned before = daemon_log_count(d, "no upgrade to ");

                leave_fds(n, false);
                if (!try_upgrade(admin)) {
                        assert_int_equal(daemon_log_count(d, "no upgrade to "), before + 1);
                        refused++;
                }
                world_check_quietly(&world);
                allow_fds();
                world_check(&world);
        }
        print_message("%u of 12 were refused\n", refused);
        assert_true(refused > 2);
        assert_true(daemon_log_has(d, strerror(EMFILE)));
        conn_close(admin);
}

/* The same with a limit that the new image cannot raise. Not to have enough to start would be its end, and all locks': it
 * starts with what there is. */
static void test_no_fds_for_the_new_image(void **state)
{
        Conn *admin = admin_open(d);

        (void)state;
        assert_true(conn_ping(admin, 1));
        for (unsigned n = 14; n-- > 0;) {
                leave_fds(n, true);
                print_message("%u free: %s\n", n, try_upgrade(admin) ? "done" : "refused");
                world_check_quietly(&world);
        }
        conn_close(admin);
        world_abandon(&world);
        daemon_end(d);
}

/* ---- chosen calls fail ---- */

static unsigned step_of(unsigned step)
{
        return getenv("LOCKD_TEST_ALL") ? 1 : step;
}

static const char *faults_file(void)
{
        return work_path("faults");
}

static int start_with_faults(void **state)
{
        char library[4200], *slash;
        ssize_t n = readlink("/proc/self/exe", library, sizeof(library) - 20);

        (void)state;
        assert_true(n > 0);
        library[n] = '\0';
        slash = strrchr(library, '/');
        (void)strcpy(slash, "/faults.so");
        assert_true(file_exists(library));
        assert_int_equal(setenv("LD_PRELOAD", library, 1), 0);
        assert_int_equal(setenv("FAULTS", faults_file(), 1), 0);
        daemon_start_copy(d, NULL, NULL);
        assert_int_equal(unsetenv("LD_PRELOAD"), 0);
        assert_int_equal(unsetenv("FAULTS"), 0);
        world_start(&world, d, strrchr(d->dir, '/') + 1 + 1);
        return 0;
}

/* Did that call fail in this upgrade? ret_done: and was it done? */
static bool upgrade_with_fault(const char *image, const char *call, unsigned number, int error, bool *ret_done)
{
        _cleanup_free_ char *said = NULL;
        FILE *f = fopen(faults_file(), "we");
        char done[4200];
        bool hit;

        assert_non_null(f);
        fprintf(f, "%s %s %u %d\n", image, call, number, error);
        fclose(f);
        *ret_done = run_admin(d, &said, (const char *[]){ "-T", "28", "upgrade", NULL }) == 0;
        (void)snprintf(done, sizeof(done), "%s.done", faults_file());
        hit = unlink(done) == 0;
        (void)unlink(faults_file());
        if (kill(d->pid, 0) < 0 || waitpid(d->pid, NULL, WNOHANG) == d->pid) {
                d->pid = 0;
                fail_msg("lockd ended: call %u of %s in the %s image failed", number, call, image);
        }
        return hit;
}

static void test_failing_calls(void **state)
{
        static const struct {
                const char *image, *call;
                int error;
        } faults[] = {
                { "old", "open", EMFILE },        { "old", "memfd_create", ENOMEM }, { "old", "memfd_create", EMFILE },
                { "old", "pipe2", ENFILE },       { "old", "fork", ENOMEM },         { "old", "fork", EAGAIN },
                { "old", "pidfd_open", EMFILE },  { "old", "execveat", ENOMEM },     { "old", "execveat", EACCES },
                { "old", "fcntl", EMFILE },       { "old", "lseek", EIO },           { "old", "epoll_ctl", ENOMEM },
                { "child", "execveat", ENOMEM },  { "trial", "epoll_ctl", ENOMEM },  { "trial", "epoll_create1", EMFILE },
                { "trial", "fcntl", ENOMEM },     { "trial", "open", EMFILE },
        };

        (void)state;
        for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
                bool hit = true, done;
                unsigned n = 1;

                for (; hit; n++) {
                        unsigned before = daemon_log_count(d, "no upgrade to ");

                        hit = upgrade_with_fault(faults[i].image, faults[i].call, n, faults[i].error, &done);
                        assert_int_equal(daemon_log_count(d, "no upgrade to "), before + (done ? 0 : 1));
                        assert_true(hit || done);
                        world_check(&world);
                }
                print_message("%s in the %s image: %u calls\n", faults[i].call, faults[i].image, n - 2);
                assert_true(n > 2);
        }
}

/* The new image has the locks: nothing that fails there may end it. */
static void test_failing_calls_in_the_new_image(void **state)
{
        static const struct {
                const char *call;
                int error;
        } faults[] = { { "open", EMFILE }, { "epoll_ctl", ENOMEM }, { "epoll_create1", EMFILE }, { "fcntl", ENOMEM }, { "lseek", EIO } };

        (void)state;
        for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
                bool hit = true, done;
                unsigned n = 1;

                /* Each costs the second after which it tries again. */
                for (; hit; n += n < 3 ? 1 : step_of(17)) {
                        hit = upgrade_with_fault("new", faults[i].call, n, faults[i].error, &done);
                        world_check(&world);
                }
                print_message("%s in the new image: up to call %u\n", faults[i].call, n);
        }
}

#ifndef SANITIZED
static void fail_allocations(const char *image, unsigned step)
{
        bool hit = true, done;
        unsigned n = 1, refused = 0;

        for (; hit; n += step) {
                hit = upgrade_with_fault(image, "malloc", n, ENOMEM, &done);
                refused += !done;
                world_check_quietly(&world);
                if (n % (step * 16) == 1)
                        world_check(&world);
        }
        world_check(&world);
        print_message("memory in the %s image: about %u allocations, %u upgrades refused\n", image, n - 2 * step, refused);
}

static void test_no_memory(void **state)
{
        (void)state;
        fail_allocations("old", step_of(23));
        fail_allocations("trial", step_of(97));
}

static void test_no_memory_in_the_new_image(void **state)
{
        (void)state;
        fail_allocations("new", step_of(97));
}
#endif

/* ---- a state that goes bad between trial and execution ---- */

/* What cannot be restored costs at most its connection: never a lock. */
static void test_spoiled_state(void **state)
{
        const char *kind = *state;
        static const char *const how[] = { "drop", "garble" };

        for (size_t i = 0; i < 2; i++) {
                char word[32];

                daemon_start_copy(d, NULL, NULL);
                world_start(&world, d, strrchr(d->dir, '/') + 1 + 1);
                (void)snprintf(word, sizeof(word), "%s:%s", how[i], kind);
                install_bad("pass", word);
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                wait_until(upgrades() == 1 || waitpid(d->pid, NULL, WNOHANG) == d->pid);
                if (kill(d->pid, 0) < 0) {
                        d->pid = 0;
                        fail_msg("lockd ended: %s", word);
                }
                world_check_locks(&world);
                assert_true(daemon_log_has(d, "cannot be restored") || daemon_log_has(d, "the state ") || daemon_log_has(d, "of the state") ||
                            daemon_log_has(d, "no record has it"));
                (void)list_leases(d);
                install_good();
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                wait_until(upgrades() == 2);
                world_check_locks(&world);
                world_abandon(&world);
                daemon_end(d);
        }
}

/* What a newer lockd wrote comes back out of an older one. */
static void test_unknown_members_are_kept(void **state)
{
        _cleanup_free_ char *text = NULL;
        size_t size = 0, n = 0, lines = 0;
        FILE *f;

        (void)state;
        install_bad("pass", "extend");
        expect_upgrade(&world);
        for (int i = 0; i < 2; i++) {
                install_good();
                expect_upgrade(&world);
        }
        install_bad("pass", "save");
        expect_upgrade(&world);
        f = fopen(beside(".state"), "re");
        assert_true(f && getdelim(&text, &size, '\0', f) > 0);
        fclose(f);
        assert_non_null(strstr(text, "{\"flux\":{\"capacity\":88}}\n"));
        for (const char *p = text; (p = strstr(p, "\"novelty\":{\"a\":[1,\"\xe2\x82\xac\"]}")); p++)
                n++;
        for (const char *p = text; (p = strstr(p, "{\"owner\":{")) || (p = NULL); p++)
                lines++;
        for (const char *p = text; (p = strstr(p, "{\"lease\":{")); p++)
                lines++;
        print_message("%zu members kept, %zu owners and leases\n", n, lines);
        assert_true(n >= lines);
}

/* ---- /run ---- */

/* Nothing of an upgrade needs a writable /run, or room on it. */
static void test_read_only_run(void **state)
{
        char folder[200];

        (void)state;
        (void)snprintf(folder, sizeof(folder), "%s", work_path("outside"));
        /* The images are somewhere else. */
        assert_int_equal(mkdir(folder, 0700), 0);
        assert_int_equal(mount("tmpfs", folder, "tmpfs", 0, NULL), 0);
        daemon_start_copy(d, NULL, (const char *[]){ "-p", work_path("pid"), NULL });
        world_start(&world, d, "outside/world");
        assert_int_equal(mount("/run", "/run", NULL, MS_BIND | MS_REC, NULL), 0);
        assert_int_equal(mount(NULL, "/run", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
        assert_true(open(work_path("x"), O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS);
        expect_upgrade(&world);
        expect_upgrade(&world);
        assert_int_equal(umount2("/run", MNT_DETACH), 0);
        expect_upgrade(&world);
        world_finish(&world);
        daemon_stop(d);
        assert_int_equal(umount2(folder, MNT_DETACH), 0);
}

static void test_full_run(void **state)
{
        struct statfs fs;
        char options[64];
        int fd;

        (void)state;
        assert_int_equal(statfs("/run", &fs), 0);
        (void)snprintf(options, sizeof(options), "size=%lluk", (unsigned long long)(fs.f_blocks - fs.f_bfree) * (unsigned long long)fs.f_bsize / 1024 + 64);
        assert_int_equal(mount(NULL, "/run", NULL, MS_REMOUNT, options), 0);
        fd = open(work_path("filler"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        while (write(fd, options, sizeof(options)) > 0)
                continue;
        assert_int_equal(errno, ENOSPC);
        for (int i = 0; i < 3; i++) {
                assert_int_equal(run_admin(d, NULL, (const char *[]){ "upgrade", NULL }), 0);
                world_check(&world);
        }
        assert_int_equal(ftruncate(fd, 0), 0);
        close(fd);
        assert_int_equal(mount(NULL, "/run", NULL, MS_REMOUNT, "size=50%"), 0);
}

int main(int argc, char **argv)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_unusable_file, start, finish),
                cmocka_unit_test_setup_teardown(test_fifo, start, finish),
                cmocka_unit_test_setup_teardown(test_half_a_binary, start, finish),
                cmocka_unit_test_setup_teardown(test_bad_trial, start, finish),
                cmocka_unit_test_setup_teardown(test_trial_hangs, start, finish),
                cmocka_unit_test_setup_teardown(test_trial_refuses_the_state, start, finish),
                cmocka_unit_test_setup_teardown(test_replaced_after_the_trial, start, finish),
                cmocka_unit_test_setup_teardown(test_broken_configuration, start, finish),
                cmocka_unit_test_setup_teardown(test_configuration_breaks_after_the_trial, start, finish),
                cmocka_unit_test_setup_teardown(test_many_requests, start, finish),
                cmocka_unit_test_setup_teardown(test_signals_while_the_new_image_starts, start, finish),
                cmocka_unit_test_setup_teardown(test_signals_at_any_moment, start, finish),
                cmocka_unit_test_setup_teardown(test_slow_start, start, finish),
                cmocka_unit_test_setup_teardown(test_no_fds, start, finish),
                cmocka_unit_test_setup(test_no_fds_for_the_new_image, start),
                cmocka_unit_test_setup_teardown(test_failing_calls, start_with_faults, finish),
                cmocka_unit_test_setup_teardown(test_failing_calls_in_the_new_image, start_with_faults, finish),
#ifndef SANITIZED
                cmocka_unit_test_setup_teardown(test_no_memory, start_with_faults, finish),
                cmocka_unit_test_setup_teardown(test_no_memory_in_the_new_image, start_with_faults, finish),
#endif
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"lockd"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"listener"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"lockspace"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"owner"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"peer"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"lease"),
                cmocka_unit_test_prestate(test_spoiled_state, (void *)(uintptr_t)"end"),
                cmocka_unit_test_setup_teardown(test_unknown_members_are_kept, start, finish),
                cmocka_unit_test(test_read_only_run),
                cmocka_unit_test_setup_teardown(test_full_run, start, finish),
        };

        if (getenv("LOCKD_STATE_FD"))
                return play(argv);
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
