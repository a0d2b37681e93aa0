/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * daemon/log: what is printable, where lines go, which are let through, and that nobody who reads the log can hold up who
 * writes it: a line that does not fit is dropped and counted.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#define LOG_SOURCE "lockspace"
#include "../daemon/log.h"
#include "cleanup.h"
#include "harness.h"

#define LINES 1000

static const char *why;

static unsigned count_fds(void)
{
        unsigned n = 0;

        for (int fd = 0; fd < 1024; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

static const char *content_of(const char *path)
{
        static char content[64 * 1024];
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n;

        assert_true(fd >= 0);
        n = read(fd, content, sizeof(content) - 1);
        assert_true(n >= 0);
        content[n] = '\0';
        close(fd);
        return content;
}

static bool has(const char *path, const char *text)
{
        return strstr(content_of(path), text) != NULL;
}

/* "LEVEL:file:PATH" of a fresh file in the work folder; *ret_path is its path. */
static const char *file_output(int level, const char *name, const char **ret_path)
{
        static char buffers[4][256];
        static unsigned next;
        char *text = buffers[next++ % 4];

        *ret_path = work_path(name);
        (void)unlink(*ret_path);
        (void)snprintf(text, sizeof(buffers[0]), "%d:file:%s", level, *ret_path);
        return text;
}

static int back_to_stderr(void **state)
{
        (void)state;
        return log_setup(LOG_LEVEL_WARNING, NULL, NULL, &why);
}

/* ---- names ---- */

static void test_escape(void **state)
{
        static const struct {
                const char *name, *printable;
        } cases[] = {
                { "", "" },
                { "/images/disk.img", "/images/disk.img" },
                { " ~", " ~" },
                { "a\nb\rc\td", "a\\x0ab\\x0dc\\x09d" },
                { "\x01\x1f\x7f", "\\x01\\x1f\\x7f" },
                { "\x1b[31mred", "\\x1b[31mred" },
                { "a\\b", "a\\x5cb" },
                { "\\x0a", "\\x5cx0a" },
                { "%s%n", "%s%n" },
                { "K\xc3\xbc" "che", "K\xc3\xbc" "che" },
        };
        char buf[256];

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                assert_ptr_equal(log_escape(cases[i].name, buf, sizeof(buf)), buf);
                assert_string_equal(buf, cases[i].printable);
        }
        assert_string_equal(log_name("a\nb"), "a\\x0ab");
}

/* Never a byte beyond the buffer, always a NUL, "..." where something was cut. */
static void test_escape_in_little_room(void **state)
{
        static const char *const names[] = {
                "", "a", "abcdefgh", "\n\n\n\n\n\n\n\n", "abcdefghijklmnopqrstuvwxyz0123456789", "\\a\\b\\c\\d\\e\\f",
        };
        char buf[64], whole[256];

        (void)state;
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                (void)log_escape(names[i], whole, sizeof(whole));
                for (size_t size = 8; size < sizeof(buf); size++) {
                        memset(buf, 0x5a, sizeof(buf));
                        (void)log_escape(names[i], buf, size);
                        for (size_t j = size; j < sizeof(buf); j++)
                                assert_int_equal(buf[j], 0x5a);
                        assert_true(memchr(buf, '\0', size) != NULL);
                        if (strcmp(buf, whole) == 0)
                                continue;
                        assert_true(strlen(buf) >= 3 && strcmp(buf + strlen(buf) - 3, "...") == 0);
                        assert_memory_equal(buf, whole, strlen(buf) - 3);
                }
        }
}

/* ---- settings ---- */

static void test_bad_settings(void **state)
{
        static const char *const filters[] = {
                "1", "1:", "0:rpc", "5:rpc", "x:rpc", ":rpc", "1rpc", "1:+", "1:rpc 7:x", "-1:rpc", "11:rpc",
                "1:0123456789012345678901234567890123456789012345678901234567890123456789",
        };
        static const char *const outputs[] = {
                "stderr", "3", "3:", "0:stderr", "5:stderr", "3:stderr:x", "3:file", "3:file:", "3:file:relative", "3:syslog",
                "3:syslog:", "3:journald:x", "3:printer", "3:stderrr", "3:std", "1:stderr 3:x",
                "1:stderr 1:stderr 1:stderr 1:stderr 1:stderr 1:stderr 1:stderr 1:stderr 1:stderr",
        };
        char many[1024] = "";
        const char *path;
        unsigned fds;

        (void)state;
        assert_int_equal(log_setup(LOG_LEVEL_INFO, NULL, file_output(1, "kept.log", &path), &why), 0);
        fds = count_fds();
        for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
                why = NULL;
                if (log_setup(LOG_LEVEL_DEBUG, filters[i], "1:stderr", &why) != -EINVAL)
                        fail_msg("log_filters '%s' is taken", filters[i]);
                assert_non_null(strstr(why, "log_filters"));
        }
        for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]); i++) {
                why = NULL;
                if (log_setup(LOG_LEVEL_DEBUG, "4:rpc", outputs[i], &why) != -EINVAL)
                        fail_msg("log_outputs '%s' is taken", outputs[i]);
                assert_non_null(strstr(why, "log_outputs"));
        }
        for (int i = 0; i < 33; i++)
                (void)strcat(many, "1:x ");
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, many, NULL, &why), -EINVAL);
        /* Of the right form, and cannot be opened: after one that could. */
        path = work_path("nowhere/log");
        (void)snprintf(many, sizeof(many), "1:file:%s 1:file:%s", work_path("opened.log"), path);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, many, &why), -ENOENT);
        assert_non_null(strstr(why, "cannot be opened"));
        (void)snprintf(many, sizeof(many), "1:file:%s", getenv("WORK"));
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, many, &why), -EISDIR);
        /* All that changed nothing. */
        assert_int_equal(count_fds(), fds);
        log_info("still there");
        log_debug("still not");
        assert_true(has(work_path("kept.log"), "still there"));
        assert_false(has(work_path("kept.log"), "still not"));
        assert_int_equal(log_setup(LOG_LEVEL_WARNING, "", "", &why), 0);
        assert_int_equal(count_fds(), fds - 1);
}

/* ---- what is let through ---- */

static void write_all(const char *source)
{
        log_write(LOG_LEVEL_DEBUG, source, "%s-debug", source);
        log_write(LOG_LEVEL_INFO, source, "%s-info", source);
        log_write(LOG_LEVEL_WARNING, source, "%s-warning", source);
        log_write(LOG_LEVEL_ERROR, source, "%s-error", source);
        log_write(LOG_LEVEL_AUDIT, source, "%s-audit", source);
}

/* From which level on were the lines of source written? 1 to 5. */
static int level_seen(const char *path, const char *source)
{
        static const char *const names[] = { "debug", "info", "warning", "error", "audit" };
        int first = 6;

        for (int level = 5; level >= 1; level--) {
                char text[64];

                (void)snprintf(text, sizeof(text), ": %s-%s\n", source, names[level - 1]);
                if (!has(path, text))
                        break;
                first = level;
        }
        for (int level = 1; level < first; level++) {
                char text[64];

                (void)snprintf(text, sizeof(text), ": %s-%s\n", source, names[level - 1]);
                assert_false(has(path, text));
        }
        return first;
}

static void test_levels_and_filters(void **state)
{
        static const struct {
                LogLevel level;
                const char *filters;
                int output;
                int rpc, lockspace; /* the first level that is seen of these sources */
        } cases[] = {
                { LOG_LEVEL_DEBUG, NULL, 1, 1, 1 },
                { LOG_LEVEL_INFO, "", 1, 2, 2 },
                { LOG_LEVEL_WARNING, NULL, 1, 3, 3 },
                { LOG_LEVEL_ERROR, NULL, 1, 4, 4 },
                { LOG_LEVEL_DEBUG, NULL, 4, 4, 4 },             /* the output has a level of its own */
                { LOG_LEVEL_WARNING, "1:rpc", 1, 1, 3 },
                { LOG_LEVEL_DEBUG, "4:rpc", 1, 4, 1 },
                { LOG_LEVEL_WARNING, "1:rpc", 2, 2, 3 },
                { LOG_LEVEL_WARNING, "2:rpc 1:rpc", 1, 2, 3 },  /* the first that matches */
                { LOG_LEVEL_WARNING, "1:rp 4:lock", 1, 1, 4 },  /* a part of the name is enough */
                { LOG_LEVEL_WARNING, "1:+rpc", 1, 1, 3 },       /* libvirt's way to ask for a stack trace */
                { LOG_LEVEL_WARNING, "1:nothing", 1, 3, 3 },
                { LOG_LEVEL_WARNING, "  1:rpc   2:space  ", 1, 1, 2 },
                { LOG_LEVEL_WARNING, "1:lock*ce", 1, 3, 1 },    /* virtlockd.conf: "shell wildcard syntax" */
                { LOG_LEVEL_WARNING, "1:r?c", 1, 1, 3 },
                { LOG_LEVEL_WARNING, "1:*", 1, 1, 1 },
                { LOG_LEVEL_WARNING, "1:[a-l]ockspace", 1, 3, 1 },
        };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                const char *path;
                int rpc, lockspace;

                assert_int_equal(log_setup(cases[i].level, cases[i].filters, file_output(cases[i].output, "levels.log", &path), &why), 0);
                write_all("rpc");
                write_all("lockspace");
                rpc = level_seen(path, "rpc");
                lockspace = level_seen(path, "lockspace");
                if (rpc != cases[i].rpc || lockspace != cases[i].lockspace)
                        fail_msg("log_level %d, log_filters '%s', output %d: rpc from %d on (not %d), lockspace from %d on (not %d)",
                                 (int)cases[i].level, cases[i].filters ? cases[i].filters : "", cases[i].output, rpc, cases[i].rpc, lockspace,
                                 cases[i].lockspace);
        }
}

/* ---- outputs ---- */

static void test_file(void **state)
{
        const char *path, *moved = work_path("rotated.log"), *outputs = file_output(1, "current.log", &path);
        unsigned fds;
        struct stat st;

        (void)state;
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, outputs, &why), 0);
        fds = count_fds();
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        log_warning("first line");
        log_warning("a name with\na line of its own\nand 100%%");
        assert_true(has(path, ": warning : lockspace: first line\n"));
        assert_true(has(path, "a name with a line of its own and 100%\n"));
        assert_int_equal(log_dropped(), 0);

        /* Rotation: lines go on to the old file until it is told. */
        assert_int_equal(rename(path, moved), 0);
        log_warning("second line");
        log_reopen();
        log_warning("third line");
        assert_true(has(moved, "second line"));
        assert_false(has(moved, "third line"));
        assert_true(has(path, "third line"));
        assert_false(has(path, "second line"));
        assert_int_equal(count_fds(), fds);

        /* Where it cannot be opened again, the old one is better than none. */
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0700), 0);
        log_reopen();
        log_warning("nowhere else");
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(log_dropped(), 0);
        log_reopen();
        log_warning("back again");
        assert_true(has(path, "back again"));
        assert_int_equal(count_fds(), fds);

        /* What was there stays. */
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, outputs, &why), 0);
        log_warning("appended");
        assert_true(has(path, "back again") && has(path, "appended"));
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, NULL, &why), 0);
        assert_int_equal(count_fds(), fds - 1);
}

static void test_long_lines(void **state)
{
        static char text[100000];
        const char *path;

        (void)state;
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, file_output(1, "long.log", &path), &why), 0);
        memset(text, 'x', sizeof(text) - 1);
        for (size_t len = 1; len < sizeof(text); len = len * 3 / 2 + 1) {
                const char *content;

                assert_int_equal(truncate(path, 0), 0);
                log_error("%.*s", (int)len, text);
                content = content_of(path);
                assert_true(strlen(content) > 0);
                assert_int_equal(content[strlen(content) - 1], '\n');
                assert_ptr_equal(strchr(content, '\n'), content + strlen(content) - 1);
                if (len < 2048)
                        assert_true(strlen(content) > len);
        }
        assert_int_equal(log_dropped(), 0);
}

/* Each event goes to every output that wants it; errno is the caller's. */
static void test_several_outputs(void **state)
{
        const char *all_path, *some_path;
        char outputs[600];
        const char *all = file_output(1, "all.log", &all_path), *some = file_output(4, "some.log", &some_path);

        (void)state;
        (void)snprintf(outputs, sizeof(outputs), "%s %s", all, some);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, outputs, &why), 0);
        errno = EXDEV;
        log_info("for one");
        log_error("for both");
        assert_int_equal(errno, EXDEV);
        assert_true(has(all_path, "for one") && has(all_path, "for both"));
        assert_true(!has(some_path, "for one") && has(some_path, "for both"));
}

static int bind_datagram(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        assert_true(fd >= 0);
        (void)unlink(path);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        return fd;
}

static const char *receive_line(int fd)
{
        static char line[16 * 1024];
        struct pollfd p = { .fd = fd, .events = POLLIN };
        ssize_t n;

        if (poll(&p, 1, 0) != 1)
                return NULL;
        n = recv(fd, line, sizeof(line) - 1, 0);
        assert_true(n >= 0);
        line[n] = '\0';
        return line;
}

/* The logger may come late, be restarted, or be slow. */
static void check_logger(const char *path, const char *outputs, const char *expected)
{
        unsigned long long before = log_dropped(), dropped;
        int64_t start = now_msec();
        unsigned fds = count_fds(), got = 0;
        int fd;

        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, outputs, &why), 0);
        log_warning("nobody listens");
        assert_int_equal(log_dropped(), before + 1);
        fd = bind_datagram(path);
        log_warning("hello\nworld");
        assert_string_equal(receive_line(fd), expected);
        assert_int_equal(log_dropped(), before + 1);
        close(fd);
        log_warning("gone");
        assert_int_equal(log_dropped(), before + 2);
        fd = bind_datagram(path);
        log_warning("hello\nworld");
        assert_string_equal(receive_line(fd), expected);

        /* It does not read. */
        before = log_dropped();
        for (int i = 0; i < LINES; i++)
                log_warning("line %d", i);
        dropped = log_dropped() - before;
        assert_true(dropped > 0 && dropped < LINES);
        while (receive_line(fd))
                got++;
        assert_int_equal(got + dropped, LINES);
        log_warning("hello\nworld");
        assert_string_equal(receive_line(fd), expected);
        assert_true(now_msec() - start < HARNESS_DEADLINE_MSEC / 2);
        close(fd);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, NULL, &why), 0);
        assert_int_equal(count_fds(), fds);
}

static void test_syslog(void **state)
{
        char expected[64];

        (void)state;
        /* A /dev of our own: the real one has the host's logger. */
        assert_int_equal(mount("tmpfs", "/dev", "tmpfs", 0, NULL), 0);
        (void)snprintf(expected, sizeof(expected), "<28>lockd[%d]: hello world", (int)getpid());
        check_logger("/dev/log", "1:syslog:lockd", expected);
        assert_int_equal(umount("/dev"), 0);
}

static void test_journald(void **state)
{
        (void)state;
        assert_int_equal(mkdir("/run/systemd", 0755), 0);
        assert_int_equal(mkdir("/run/systemd/journal", 0755), 0);
        check_logger("/run/systemd/journal/socket", "1:journald",
                     "MESSAGE=hello world\nPRIORITY=4\nSYSLOG_IDENTIFIER=lockd\nLIBVIRT_SOURCE=lockspace\n");
}

static void test_priorities(void **state)
{
        static const struct {
                LogLevel level;
                int priority;
        } cases[] = {
                { LOG_LEVEL_DEBUG, 7 }, { LOG_LEVEL_INFO, 6 }, { LOG_LEVEL_WARNING, 4 }, { LOG_LEVEL_ERROR, 3 }, { LOG_LEVEL_AUDIT, 5 },
        };
        int fd;

        (void)state;
        assert_int_equal(mount("tmpfs", "/dev", "tmpfs", 0, NULL), 0);
        fd = bind_datagram("/dev/log");
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, "1:syslog:me", &why), 0);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                int priority = 0;

                log_write(cases[i].level, "x", "y");
                assert_int_equal(sscanf(receive_line(fd), "<%d>me[", &priority), 1);
                assert_int_equal(priority, 3 * 8 + cases[i].priority); /* facility daemon */
        }
        close(fd);
        assert_int_equal(umount("/dev"), 0);
}

/* ---- who reads the log cannot hold up who writes it ---- */

/* Puts fd where stderr is; returns the old one. */
static int redirect_stderr(int fd)
{
        int saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);

        assert_true(saved >= 0);
        assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
        return saved;
}

static void restore_stderr(int saved)
{
        assert_int_equal(dup2(saved, STDERR_FILENO), STDERR_FILENO);
        close(saved);
}

static size_t read_all(int fd)
{
        char bytes[65536];
        struct pollfd p = { .fd = fd, .events = POLLIN };
        size_t lines = 0;

        while (poll(&p, 1, 0) == 1 && (p.revents & POLLIN)) {
                ssize_t n = read(fd, bytes, sizeof(bytes));

                if (n <= 0)
                        break;
                for (ssize_t i = 0; i < n; i++)
                        lines += bytes[i] == '\n';
        }
        return lines;
}

/* A full pipe or socket as stderr: nothing waits, every line is either there or counted, and later lines come again. */
static void check_full_stderr(int reader, int writer, size_t len)
{
        static char text[8000];
        unsigned long long before = log_dropped(), dropped;
        int64_t start = now_msec();
        size_t lines;
        int saved;

        memset(text, 'x', sizeof(text) - 1);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, NULL, &why), 0);
        saved = redirect_stderr(writer);
        for (int i = 0; i < LINES; i++)
                log_warning("%d %.*s", i, (int)len, text);
        dropped = log_dropped() - before;
        lines = read_all(reader);
        log_warning("again");
        lines += read_all(reader);
        restore_stderr(saved);
        assert_true(now_msec() - start < HARNESS_DEADLINE_MSEC / 2);
        assert_true(dropped > 0 && dropped < LINES);
        assert_int_equal(log_dropped() - before, dropped);
        assert_int_equal(lines + dropped, LINES + 1);
}

static void test_full_stderr(void **state)
{
        static const size_t lengths[] = { 100, 1000, 4000, 7000 };

        (void)state;
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
                int fds[2];

                /* Blocking ones, as whoever starts lockd leaves them. */
                assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
                check_full_stderr(fds[0], fds[1], lengths[i]);
                close(fds[0]);
                close(fds[1]);
                assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
                check_full_stderr(fds[0], fds[1], lengths[i]);
                close(fds[0]);
                close(fds[1]);
        }
}

static void test_gone_reader(void **state)
{
        unsigned long long before = log_dropped();
        int fds[2], saved;

        (void)state;
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, NULL, &why), 0);
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        close(fds[0]);
        saved = redirect_stderr(fds[1]);
        for (int i = 0; i < 10; i++)
                log_warning("line");
        restore_stderr(saved);
        close(fds[1]);
        assert_int_equal(log_dropped(), before + 10);
}

/* A FIFO as a log file: no reader at first, one that does not read, one that leaves. */
static void test_fifo(void **state)
{
        const char *path = work_path("fifo");
        unsigned long long before, dropped;
        int64_t start = now_msec();
        char output[256];
        size_t lines;
        int fd;

        (void)state;
        assert_int_equal(mkfifo(path, 0600), 0);
        (void)snprintf(output, sizeof(output), "1:file:%s", path);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, output, &why), -ENXIO);
        fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, output, &why), 0);
        before = log_dropped();
        for (int i = 0; i < 10 * LINES; i++)
                log_warning("a line of some length, so that the FIFO is full in the end");
        dropped = log_dropped() - before;
        lines = read_all(fd);
        assert_true(dropped > 0);
        assert_int_equal(lines + dropped, 10 * LINES);
        close(fd);
        log_warning("nobody there");
        assert_int_equal(log_dropped(), before + dropped + 1);
        assert_true(now_msec() - start < HARNESS_DEADLINE_MSEC / 2);
}

/* A full disk: the line is dropped and counted. */
static void test_full_disk(void **state)
{
        unsigned long long before;

        (void)state;
        if (access("/dev/full", W_OK) < 0)
                assert_int_equal(mknod("/dev/full", S_IFCHR | 0666, makedev(1, 7)), 0);
        assert_int_equal(log_setup(LOG_LEVEL_DEBUG, NULL, "1:file:/dev/full", &why), 0);
        before = log_dropped();
        log_warning("no room");
        assert_int_equal(log_dropped(), before + 1);
}

static void test_default_output(void **state)
{
        const char *path;
        char output[256];

        (void)state;
        (void)snprintf(output, sizeof(output), "%s", file_output(1, "default.log", &path));
        log_default_output(output);
        assert_int_equal(log_setup(LOG_LEVEL_WARNING, NULL, NULL, &why), 0);
        log_warning("to the default");
        assert_true(has(path, "to the default"));
        log_default_output("1:stderr");
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_escape),
                cmocka_unit_test(test_escape_in_little_room),
                cmocka_unit_test_teardown(test_file, back_to_stderr), /* first: it wants nothing dropped yet */
                cmocka_unit_test_teardown(test_long_lines, back_to_stderr),
                cmocka_unit_test_teardown(test_bad_settings, back_to_stderr),
                cmocka_unit_test_teardown(test_levels_and_filters, back_to_stderr),
                cmocka_unit_test_teardown(test_several_outputs, back_to_stderr),
                cmocka_unit_test_teardown(test_syslog, back_to_stderr),
                cmocka_unit_test_teardown(test_journald, back_to_stderr),
                cmocka_unit_test_teardown(test_priorities, back_to_stderr),
                cmocka_unit_test_teardown(test_full_stderr, back_to_stderr),
                cmocka_unit_test_teardown(test_gone_reader, back_to_stderr),
                cmocka_unit_test_teardown(test_fifo, back_to_stderr),
                cmocka_unit_test_teardown(test_full_disk, back_to_stderr),
                cmocka_unit_test_teardown(test_default_output, back_to_stderr),
        };
        sigset_t blocked;

        /* As main() does: writing to a pipe that nobody reads is an error, not a death. */
        (void)sigfillset(&blocked);
        (void)sigdelset(&blocked, SIGINT);
        (void)sigdelset(&blocked, SIGALRM);
        (void)alarm(60); /* a line that waits for its reader would wait for ever */
        (void)sigprocmask(SIG_BLOCK, &blocked, NULL);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
