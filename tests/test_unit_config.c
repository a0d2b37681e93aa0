/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon/config: every key, what is wrong told with file and line, virtlockd.conf as it is shipped, and files that cannot be
 * read: whatever is there, the daemon that reads it again goes on. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../daemon/config.h"
#include "cleanup.h"
#include "harness.h"

#define VIRTLOCKD_CONF "/etc/libvirt/virtlockd.conf"

static const char *text(const char *value)
{
        return value ? value : "(null)";
}

/* What the settings are when nothing is set. */
static void assert_defaults(const Config *config)
{
        assert_int_equal(config->log_level, 3);
        assert_null(config->log_filters);
        assert_null(config->log_outputs);
        assert_int_equal(config->max_clients, 1024);
        assert_int_equal(config->admin_max_clients, 5000);
        assert_int_equal(config->max_lockspaces, 1024);
        assert_int_equal(config->max_holds, 200000);
        assert_false(config->kill_on_disconnect);
        assert_string_equal(config->lock_socket, "/run/libvirt/virtlockd-sock");
        assert_string_equal(config->admin_socket, "/run/libvirt/virtlockd-admin-sock");
        assert_int_equal(config->n_lockspaces, 0);
}

static void load(const char *path, Config *ret)
{
        char *why = NULL;

        memset(ret, 0, sizeof(*ret));
        if (config_load(path, true, false, ret, &why) < 0)
                fail_msg("%s", text(why));
        assert_null(why);
}

static void load_text(const char *content, Config *ret)
{
        load(make_file("lockd.conf", content), ret);
}

static void test_nothing_set(void **state)
{
        static const char *const empty[] = { "", "\n\n", "# a comment\n// another\n/* and\nanother */", "\n#log_level = 1\n" };
        Config config;

        (void)state;
        for (size_t i = 0; i < sizeof(empty) / sizeof(empty[0]); i++) {
                load_text(empty[i], &config);
                assert_defaults(&config);
                config_done(&config);
        }
        assert_null(config.lock_socket);
        config_done(&config); /* again: it is empty */
}

static void test_every_key(void **state)
{
        Config config;

        (void)state;
        load_text("log_level = 1\n"
                  "log_filters = \"1:rpc 4:peer\"\n"
                  "log_outputs = \"2:stderr 3:syslog:lockd\"\n"
                  "max_clients = 7;\n"
                  "admin_max_clients = 8\n"
                  "max_lockspaces = 9\n"
                  "max_holds = 10\n"
                  "on_disconnect = \"kill\"\n"
                  "lock_socket = \"/a/lock\", admin_socket = \"/a/admin\";\n"
                  "lockspaces = (\n"
                  "        { path = \"/shared/one\"; require_mount = \"/shared\"; },\n"
                  "        { path = \"/two\" }\n"
                  ")\n",
                  &config);
        assert_int_equal(config.log_level, 1);
        assert_string_equal(config.log_filters, "1:rpc 4:peer");
        assert_string_equal(config.log_outputs, "2:stderr 3:syslog:lockd");
        assert_int_equal(config.max_clients, 7);
        assert_int_equal(config.admin_max_clients, 8);
        assert_int_equal(config.max_lockspaces, 9);
        assert_int_equal(config.max_holds, 10);
        assert_true(config.kill_on_disconnect);
        assert_string_equal(config.lock_socket, "/a/lock");
        assert_string_equal(config.admin_socket, "/a/admin");
        assert_int_equal(config.n_lockspaces, 2);
        assert_string_equal(config.lockspaces[0].path, "/shared/one");
        assert_string_equal(config.lockspaces[0].require_mount, "/shared");
        assert_string_equal(config.lockspaces[1].path, "/two");
        assert_null(config.lockspaces[1].require_mount);
        config_done(&config);
}

/* The ends of each range, and other ways to write a value. */
static void test_good_values(void **state)
{
        static const struct {
                const char *line;
                size_t offset; /* of an unsigned in Config */
                unsigned value;
        } cases[] = {
                { "log_level = 1", offsetof(Config, log_level), 1 },
                { "log_level = 4", offsetof(Config, log_level), 4 },
                { "log_level: 2;", offsetof(Config, log_level), 2 },
                { "log_level = 0x3", offsetof(Config, log_level), 3 },
                { "log_level=2", offsetof(Config, log_level), 2 },
                { "max_clients = 1", offsetof(Config, max_clients), 1 },
                { "max_clients = 1000000", offsetof(Config, max_clients), 1000000 },
                { "admin_max_clients = 1", offsetof(Config, admin_max_clients), 1 },
                { "admin_max_clients = 1000000", offsetof(Config, admin_max_clients), 1000000 },
                { "max_lockspaces = 1", offsetof(Config, max_lockspaces), 1 },
                { "max_lockspaces = 1000000", offsetof(Config, max_lockspaces), 1000000 },
                { "max_holds = 1", offsetof(Config, max_holds), 1 },
                { "max_holds = 100000000", offsetof(Config, max_holds), 100000000 },
        };
        Config config;

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                load_text(cases[i].line, &config);
                assert_int_equal(*(const unsigned *)(const void *)((const char *)&config + cases[i].offset), cases[i].value);
                config_done(&config);
        }
        load_text("on_disconnect = \"hold\"", &config);
        assert_false(config.kill_on_disconnect);
        config_done(&config);
        load_text("lockspaces = ()", &config);
        assert_int_equal(config.n_lockspaces, 0);
        config_done(&config);
        load_text("lock_socket = \"/a b\\\"c\\\\\" \"d\"\nlog_filters = \"\"\nlog_outputs = \"\"", &config);
        assert_string_equal(config.lock_socket, "/a b\"c\\d");
        assert_string_equal(config.log_filters, "");
        config_done(&config);
}

/* The file is refused as a whole, and the text says where and what; nothing is left in ret. */
static void test_bad_values(void **state)
{
        static const struct {
                const char *line, *says;
                unsigned line_number; /* within line; the file has two lines before it */
        } cases[] = {
                { "log_level = 0", "log_level: wants a number from 1 to 4", 1 },
                { "log_level = 5", "log_level: wants a number from 1 to 4", 1 },
                { "log_level = -1", "log_level: wants a number from 1 to 4", 1 },
                { "log_level = 1.5", "log_level: wants a number", 1 },
                { "log_level = 2L", "log_level: wants a number", 1 },
                { "log_level = \"2\"", "log_level: wants a number", 1 },
                { "log_level = true", "log_level: wants a number", 1 },
                { "log_level = ( 1 )", "log_level: wants a number", 1 },
                { "max_clients = 0", "max_clients: wants a number from 1 to 1000000", 1 },
                { "max_clients = 1000001", "max_clients: wants a number from 1 to 1000000", 1 },
                { "max_clients = -5", "max_clients: wants a number", 1 },
                { "max_clients = 2147483648", "max_clients: wants a number", 1 },
                { "max_clients = \"many\"", "max_clients: wants a number", 1 },
                { "admin_max_clients = 0", "admin_max_clients: wants a number from 1 to 1000000", 1 },
                { "admin_max_clients = 1000001", "admin_max_clients: wants a number", 1 },
                { "admin_max_clients = [ 1 ]", "admin_max_clients: wants a number", 1 },
                { "max_lockspaces = 0", "max_lockspaces: wants a number from 1 to 1000000", 1 },
                { "max_lockspaces = 1000001", "max_lockspaces: wants a number", 1 },
                { "max_lockspaces = \"x\"", "max_lockspaces: wants a number", 1 },
                { "max_holds = 0", "max_holds: wants a number from 1 to 100000000", 1 },
                { "max_holds = 100000001", "max_holds: wants a number", 1 },
                { "max_holds = 1.0", "max_holds: wants a number", 1 },
                { "log_filters = 1", "log_filters: wants a string", 1 },
                { "log_filters = { a = 1 }", "log_filters: wants a string", 1 },
                { "log_filters = \"9:rpc\"", "log_filters", 1 },
                { "log_outputs = 3", "log_outputs: wants a string", 1 },
                { "log_outputs = \"3:printer\"", "log_outputs", 1 },
                { "lock_socket = 1", "lock_socket: wants a string", 1 },
                { "lock_socket = \"relative\"", "lock_socket: wants an absolute path", 1 },
                { "lock_socket = \"\"", "lock_socket: wants an absolute path", 1 },
                { "admin_socket = false", "admin_socket: wants a string", 1 },
                { "admin_socket = \"./x\"", "admin_socket: wants an absolute path", 1 },
                { "on_disconnect = \"maybe\"", "on_disconnect: wants \"hold\" or \"kill\"", 1 },
                { "on_disconnect = \"Kill\"", "on_disconnect: wants", 1 },
                { "on_disconnect = \"\"", "on_disconnect: wants", 1 },
                { "on_disconnect = 1", "on_disconnect: wants", 1 },
                { "lockspaces = \"/x\"", "lockspaces: wants a list", 1 },
                { "lockspaces = { path = \"/x\" }", "lockspaces: wants a list", 1 },
                { "lockspaces = [ \"/x\" ]", "lockspaces: wants a list", 1 },
                { "lockspaces = ( \"/x\" )", "wants a list of groups", 1 },
                { "lockspaces = (\n{ path = \"/x\" },\n1\n)", "wants a list of groups", 3 },
                { "lockspaces = ( { require_mount = \"/x\" } )", "a lockspace wants a path", 1 },
                { "lockspaces = (\n{ }\n)", "a lockspace wants a path", 2 },
                { "lockspaces = ( { path = 1 } )", "path: wants a string", 1 },
                { "lockspaces = (\n{ path = \"/x\"\nrequire_mount = \"x\" } )", "require_mount: wants an absolute path", 3 },
                { "lockspaces = ( { path = \"x\" } )", "path: wants an absolute path", 1 },
                { "lockspaces = ( { path = \"/x\"; mode = 1 } )", "mode: unknown key", 1 },
                { "loglevel = 1", "loglevel: unknown key", 1 },
                { "Log_level = 1", "Log_level: unknown key", 1 },
                { "path = \"/x\"", "path: unknown key", 1 },
                { "log_level = 1\nlog_level = 2", "duplicate", 2 },
                { "log_level", "syntax error", 2 }, /* seen at what comes next */
                { "log_level = ", "syntax error", 2 },
                { "log_level = 1 = 2", "syntax error", 1 },
                { "lock_socket = '/x'", "syntax error", 1 },
                { "}", "syntax error", 1 },
                { "\xff\xfe", "syntax error", 1 },
                { "@include \"x\"", "@include", 1 },
                { "log_level = 1\n \t@include\t\"/etc/libvirt/virtlockd.conf\"", "@include", 2 },
        };
        const Config untouched = { .log_level = 77 };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                _cleanup_free_ char *why = NULL;
                Config config = untouched;
                char content[512], where[64];
                const char *path;
                int r;

                (void)snprintf(content, sizeof(content), "# lockd.conf\n\n%s\n", cases[i].line);
                path = make_file("lockd.conf", content);
                r = config_load(path, true, false, &config, &why);
                if (r != -EINVAL)
                        fail_msg("%s: result %d", cases[i].line, r);
                if (!why || !strstr(why, cases[i].says) || strstr(why, "(null)"))
                        fail_msg("%s: no '%s' in: %s", cases[i].line, cases[i].says, text(why));
                (void)snprintf(where, sizeof(where), "%s:%u: ", path, 2 + cases[i].line_number);
                if (strncmp(why, where, strlen(where)) != 0)
                        fail_msg("%s: does not begin with '%s': %s", cases[i].line, where, why);
                assert_memory_equal(&config, &untouched, sizeof(config));
        }
}

/* What comes after a good setting spoils the whole. */
static void test_all_or_nothing(void **state)
{
        _cleanup_free_ char *why = NULL;
        Config config = { .log_level = 77 };

        (void)state;
        assert_int_equal(config_load(make_file("lockd.conf", "max_clients = 5\nlockspaces = ( { path = \"/x\"; require_mount = \"/\"; } )\n"
                                                             "lock_socket = \"/y\"\nlog_level = 9\n"),
                                     true, false, &config, &why),
                         -EINVAL);
        assert_int_equal(config.log_level, 77);
        assert_null(config.lock_socket);
}

/* virtlockd.conf, as Debian ships it and with everything that it proposes switched on. */
static void test_virtlockd_conf(void **state)
{
        char line[1024], path[128];
        FILE *in, *out;
        Config config;
        unsigned n = 0;

        (void)state;
        if (access(VIRTLOCKD_CONF, R_OK) < 0)
                fail_msg("%s is missing: Debian's package libvirt-daemon-system has it", VIRTLOCKD_CONF);
        load(VIRTLOCKD_CONF, &config);
        assert_defaults(&config);
        config_done(&config);

        (void)snprintf(path, sizeof(path), "%s", work_path("virtlockd.conf"));
        in = fopen(VIRTLOCKD_CONF, "re");
        out = fopen(path, "we");
        assert_non_null(in);
        assert_non_null(out);
        while (fgets(line, sizeof(line), in)) {
                bool setting = line[0] == '#' && line[1] >= 'a' && line[1] <= 'z' && strchr(line, '=');

                n += setting;
                fputs(setting ? line + 1 : line, out);
        }
        fclose(in);
        fclose(out);
        assert_int_equal(n, 5);
        load(path, &config);
        assert_int_equal(config.log_level, 3);
        assert_string_equal(config.log_filters, "1:locking 4:object 4:json 4:event 1:util");
        assert_string_equal(config.log_outputs, "3:syslog:virtlockd");
        assert_int_equal(config.max_clients, 1024);
        assert_int_equal(config.admin_max_clients, 5);
        config_done(&config);
}

static void test_missing(void **state)
{
        const char *path = work_path("nowhere/lockd.conf");
        _cleanup_free_ char *why = NULL, *why_not = NULL;
        Config config = { 0 };

        (void)state;
        assert_int_equal(config_load(path, false, false, &config, &why), 0);
        assert_defaults(&config);
        assert_null(why);
        config_done(&config);
        config.log_level = 77;
        assert_int_equal(config_load(path, true, false, &config, &why_not), -ENOENT);
        assert_non_null(strstr(why_not, path));
        assert_int_equal(config.log_level, 77);
}

/* In a child, as a library may take an error for a reason to end the process: how did config_load() come back? */
static int load_in_child(const char *path, char ret_why[512])
{
        char *shared = mmap(NULL, 512, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        pid_t pid;
        int status;

        assert_ptr_not_equal(shared, MAP_FAILED);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                char *why = NULL;
                Config config;
                int r;

                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)alarm(5);
                r = config_load(path, true, false, &config, &why);
                (void)snprintf(shared, 512, "%s", text(why));
                _exit(r == 0 ? 100 : r == -EINVAL ? 101 : 102);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        (void)snprintf(ret_why, 512, "%s", shared);
        (void)munmap(shared, 512);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Files that cannot be read, or have no end: an error with their name, and the process goes on. */
static void test_unreadable(void **state)
{
        static const char *const kinds[] = { "directory", "input error", "include of a directory", "include of an input error",
                                             "include of nothing", "include of itself", "FIFO", "endless", "too large", "NUL byte" };
        const char *path = work_path("odd.conf"), *directory = work_path("directory");
        bool failed = false;

        (void)state;
        assert_int_equal(mkdir(directory, 0700), 0);
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
                char content[512], why[512];
                int result;

                (void)unlink(path);
                (void)rmdir(path);
                switch (i) {
                case 0:
                        assert_int_equal(mkdir(path, 0700), 0);
                        break;
                case 1:
                        assert_int_equal(symlink("/proc/self/mem", path), 0); /* read() says EIO */
                        break;
                case 6:
                        assert_int_equal(mkfifo(path, 0600), 0);
                        break;
                case 7:
                        assert_int_equal(symlink("/dev/zero", path), 0);
                        break;
                case 8: /* a hole of 1 MiB */
                case 9:
                        (void)make_file("odd.conf", "log_level = 1\n");
                        assert_int_equal(truncate(path, i == 8 ? 1024 * 1024 + 1 : 20), 0);
                        break;
                default:
                        (void)snprintf(content, sizeof(content), "log_level = 1\n@include \"%s\"\n",
                                       i == 2 ? directory : i == 3 ? "/proc/self/mem" : i == 4 ? "/nowhere" : path);
                        (void)make_file("odd.conf", content);
                }
                result = load_in_child(path, why);
                if (result != 101 && result != 102)
                        print_error("%s: the process %s (%d)\n", kinds[i], result < 0 ? "was killed" : "ended", result);
                else if (!strstr(why, path))
                        print_error("%s: '%s' does not name the file\n", kinds[i], why);
                else
                        continue;
                failed = true;
        }
        assert_false(failed);
}

/* The daemon itself: HUP, with a file that cannot be read, changes nothing. */
static void test_reload(void **state)
{
        const char *image = make_file("disk.img", "data");
        TestDaemon d;
        Conn *conn;
        Vm vm;

        (void)state;
        daemon_start(&d, NULL, NULL);
        vm = vm_start(&d, "alpha");
        conn = vm_conn(&d, &vm);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(unlink(d.config), 0);
        assert_int_equal(symlink("/proc/self/mem", d.config), 0);
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        wait_until(daemon_log_has(&d, "the configuration stays as it was") || waitpid(d.pid, NULL, WNOHANG) != 0);
        assert_int_equal(kill(d.pid, 0), 0);
        assert_false(is_lockable(image, false));
        assert_int_equal(conn_release(conn, "", image), 0);
        conn_close(conn);
        vm_kill(&vm);
        daemon_stop(&d);
}

static void test_places(void **state)
{
        static const struct {
                const char *xdg_runtime, *xdg_config, *home;
                bool session;
                const char *lock, *config;
        } cases[] = {
                { "/run/user/5", "/c", "/h", false, "/run/libvirt/virtlockd-sock", NULL },
                { "/run/user/5", "/c", "/h", true, "/run/user/5/libvirt/virtlockd-sock", "/c/lockd/lockd.conf" },
                { NULL, NULL, "/h", true, "/run/user/0/libvirt/virtlockd-sock", "/h/.config/lockd/lockd.conf" },
                { NULL, NULL, NULL, true, "/run/user/0/libvirt/virtlockd-sock", "/.config/lockd/lockd.conf" },
        };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                const struct {
                        const char *name, *value;
                } variables[] = { { "XDG_RUNTIME_DIR", cases[i].xdg_runtime }, { "XDG_CONFIG_HOME", cases[i].xdg_config },
                                  { "HOME", cases[i].home } };
                _cleanup_free_ char *why = NULL, *path = NULL;
                Config config;

                for (size_t j = 0; j < 3; j++)
                        assert_int_equal(variables[j].value ? setenv(variables[j].name, variables[j].value, 1) :
                                                              unsetenv(variables[j].name), 0);
                assert_int_equal(config_load("/nowhere", false, cases[i].session, &config, &why), 0);
                assert_string_equal(config.lock_socket, cases[i].lock);
                config_done(&config);
                path = config_default_path(cases[i].session);
                if (cases[i].config)
                        assert_string_equal(path, cases[i].config);
                else
                        assert_string_equal(path, LOCKD_SYSCONFDIR "/lockd/lockd.conf");
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_nothing_set),
                cmocka_unit_test(test_every_key),
                cmocka_unit_test(test_good_values),
                cmocka_unit_test(test_bad_values),
                cmocka_unit_test(test_all_or_nothing),
                cmocka_unit_test(test_virtlockd_conf),
                cmocka_unit_test(test_missing),
                cmocka_unit_test(test_unreadable),
                cmocka_unit_test(test_reload),
                cmocka_unit_test(test_places),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
