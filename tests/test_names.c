/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of any length and any bytes, as they are locked, refused, listed and logged: nothing is cut, nothing breaks. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"

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

/* ---- JSON as a stranger's parser sees it ---- */

static json_object *list_json(void)
{
        const char *const arguments[] = { "list", "--json", NULL };
        _cleanup_free_ char *text = NULL;
        struct json_tokener *tokener = json_tokener_new();
        json_object *root;

        assert_int_equal(run_admin(d, &text, arguments), 0);
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
        root = json_tokener_parse_ex(tokener, text, (int)strlen(text));
        if (!root)
                fail_msg("%s in: %s", json_tokener_error_desc(json_tokener_get_error(tokener)), text);
        json_tokener_free(tokener);
        return root;
}

static json_object *field(json_object *object, const char *name)
{
        json_object *value;

        if (!json_object_object_get_ex(object, name, &value))
                fail_msg("no field %s", name);
        return value;
}

/* Is that JSON value these bytes: a string, or, when they are not UTF-8, an array of numbers? */
static bool is_json_of(json_object *value, const char *bytes)
{
        size_t len = strlen(bytes);

        if (json_object_is_type(value, json_type_string))
                return (size_t)json_object_get_string_len(value) == len &&
                       memcmp(json_object_get_string(value), bytes, len) == 0;
        if (!json_object_is_type(value, json_type_array) || json_object_array_length(value) != len)
                return false;
        for (size_t i = 0; i < len; i++)
                if (json_object_get_int(json_object_array_get_idx(value, i)) != (unsigned char)bytes[i])
                        return false;
        return true;
}

static json_object *find_json(json_object *root, const char *lockspace, const char *name)
{
        json_object *leases = field(root, "leases");

        for (size_t i = 0; i < json_object_array_length(leases); i++) {
                json_object *lease = json_object_array_get_idx(leases, i);

                if (is_json_of(field(lease, "lockspace"), lockspace) && is_json_of(field(lease, "resource"), name))
                        return lease;
        }
        return NULL;
}

/* ---- one name through everything ---- */

/* Acquired, refused by its full name, listed as the same bytes in both forms, released. */
static void check_name(const char *lockspace, const char *name)
{
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        json_object *root, *lease, *hold;

        if (conn_acquire(ca, lockspace, name, AUTOCREATE) != 0)
                fail_msg("%s", conn_message(ca));
        assert_busy(cb, conn_acquire(cb, lockspace, name, AUTOCREATE), name);
        assert_non_null(strstr(conn_message(cb), "is locked by VM 'alpha'"));
        assert_int_equal(list_leases(d)->records.records_len, 1);
        assert_non_null(find_lease(d, lockspace, name));
        root = list_json();
        assert_int_equal(json_object_array_length(field(root, "leases")), 1);
        lease = find_json(root, lockspace, name);
        assert_non_null(lease);
        hold = json_object_array_get_idx(field(lease, "holds"), 0);
        assert_true(is_json_of(field(hold, "resource"), name));
        assert_true(is_json_of(field(hold, "lockspace"), lockspace));
        json_object_put(root);
        assert_int_equal(conn_release(ca, lockspace, name), 0);
        assert_null(find_lease(d, lockspace, name));
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* Makes folders until the path is this long; ret has room for it. */
static void make_deep_directory(char *ret, size_t len)
{
        size_t n = strlen(getenv("WORK"));
        int dir = open(getenv("WORK"), O_PATH | O_DIRECTORY | O_CLOEXEC);

        memcpy(ret, getenv("WORK"), n + 1);
        while (n < len) {
                size_t left = len - n - 1, part = left > 201 ? 200 : left;
                char name[256];
                int next;

                memset(name, 'd', part);
                name[part] = '\0';
                assert_true(mkdirat(dir, name, 0700) == 0 || errno == EEXIST);
                next = openat(dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
                assert_true(next >= 0);
                close(dir);
                dir = next;
                n += (size_t)sprintf(ret + n, "/%s", name);
        }
        close(dir);
        assert_int_equal(strlen(ret), len);
}

/* Names were cut at 32, 48 or 128 bytes elsewhere: the longest path that the kernel knows is whole. */
static void test_longest_path(void **state)
{
        char path[PATH_MAX], longer[PATH_MAX + 1];
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        make_deep_directory(path, PATH_MAX - 1 - 101);
        path[PATH_MAX - 1 - 101] = '/';
        memset(path + PATH_MAX - 101, 'i', 100);
        path[PATH_MAX - 1] = '\0';
        assert_int_equal(strlen(path), 4095);
        check_name("", path);
        /* Two that differ in the last byte only are two. */
        assert_int_equal(conn_acquire(conn, "", path, AUTOCREATE), 0);
        path[PATH_MAX - 2] = 'j';
        assert_int_equal(conn_acquire(conn, "", path, AUTOCREATE), 0);
        assert_int_equal(list_leases(d)->records.records_len, 2);
        (void)snprintf(longer, sizeof(longer), "%sk", path);
        assert_system_error(conn, conn_acquire(conn, "", longer, AUTOCREATE), ENAMETOOLONG, "at most 4095 bytes");
        conn_close(conn);
        vm_kill(&a);
}

/* The longest lease name, in a deep lockspace, too. */
static void test_longest_lease_name(void **state)
{
        const char *space = work_path("space");
        char name[256], deep[PATH_MAX];
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        memset(name, 'n', 255);
        name[255] = '\0';
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        check_name(space, name);
        make_deep_directory(deep, 3800);
        assert_int_equal(conn_create_lockspace(conn, deep), 0);
        check_name(deep, name);
        /* Here the kernel cannot take both together: that is said, and nothing else happens. */
        make_deep_directory(deep, 4095);
        assert_int_equal(conn_create_lockspace(conn, deep), 0);
        assert_system_error(conn, conn_acquire(conn, deep, name, AUTOCREATE), ENAMETOOLONG, "File name too long");
        assert_busy(conn, conn_release(conn, deep, name), "is not locked");
        deep[4094] = '\0';
        assert_int_equal(conn_create_lockspace(conn, deep), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* Every byte that a file's name can have, alone and all in one. */
static void test_every_byte(void **state)
{
        const char *space = work_path("bytes");
        char names[256][4], all[256] = "", path[PATH_MAX];
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        json_object *root;
        size_t n = 0;

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (int byte = 1; byte < 256; byte++) {
                if (byte == '/')
                        continue;
                names[n][0] = 'x';
                names[n][1] = (char)byte;
                names[n][2] = 'y';
                names[n][3] = '\0';
                all[n] = (char)byte;
                assert_int_equal(conn_acquire(conn, space, names[n], AUTOCREATE), 0);
                n++;
        }
        assert_int_equal(n, 254);
        all[n] = '\0';
        assert_int_equal(list_leases(d)->records.records_len, n);
        root = list_json();
        assert_int_equal(json_object_array_length(field(root, "leases")), n);
        for (size_t i = 0; i < n; i++) {
                assert_non_null(find_lease(d, space, names[i]));
                assert_non_null(find_json(root, space, names[i]));
                assert_int_equal(conn_release(conn, space, names[i]), 0);
        }
        json_object_put(root);
        conn_close(conn);
        vm_kill(&a);
        check_name(space, all);
        (void)snprintf(path, sizeof(path), "%s/%s", space, all);
        check_name("", path);
}

/* What is nearly UTF-8 is not, and what is stays readable. */
static void test_encodings(void **state)
{
        static const struct {
                const char *name;
                bool text;
        } names[] = {
                { "plain", true },
                { "\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\xa7", true },        /* 2, 3 and 4 bytes */
                { "quote\" back\\slash \x01\x1f\x7f\ttab", true },
                { "line\nline\r\n", true },
                { "%s%n%d", true },
                { "\xef\xbf\xbf\xef\xbb\xbf", true },                    /* U+FFFF, and a byte order mark */
                { "\xf4\x8f\xbf\xbf", true },                            /* the last character */
                { "\xf4\x90\x80\x80", false },                           /* behind it */
                { "\xc0\xaf", false },                                   /* overlong '/' */
                { "\xe0\x80\xaf", false },
                { "\xf0\x80\x80\xaf", false },
                { "\xed\xa0\x80", false },                               /* half of a surrogate pair */
                { "\x80", false },
                { "cut\xe2\x82", false },
                { "\xff\xfe", false },
        };
        const char *space = work_path("encodings");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        json_object *root;

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
                check_name(space, names[i].name);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
                assert_int_equal(conn_acquire(conn, space, names[i].name, AUTOCREATE), 0);
        root = list_json();
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                json_object *lease = find_json(root, space, names[i].name);

                assert_non_null(lease);
                if (json_object_is_type(field(lease, "resource"), json_type_string) != names[i].text)
                        fail_msg("name %zu is %s", i, names[i].text ? "a string" : "not a string");
        }
        json_object_put(root);
        conn_close(conn);
        vm_kill(&a);
}

/* A lockspace's and a VM's name may be just as odd. */
static void test_other_names(void **state)
{
        const char *space = work_path("odd\n\"space\xff"), *vm_name = "vm \n'\"\\\xff\x01 %s";
        const uint8_t uuid[16] = { 1 };
        Conn *conn = conn_open(d), *other = conn_open(d);
        char long_name[1026];
        json_object *root, *lease, *owner;

        (void)state;
        assert_int_equal(conn_register(conn, vm_name, uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_int_equal(conn_acquire(conn, space, "lease", AUTOCREATE), 0);
        root = list_json();
        lease = find_json(root, space, "lease");
        assert_non_null(lease);
        owner = field(json_object_array_get_idx(field(lease, "holds"), 0), "owner");
        assert_true(is_json_of(field(owner, "name"), vm_name));
        json_object_put(root);
        conn_close(conn);

        memset(long_name, 'n', 1025);
        long_name[1025] = '\0';
        assert_invalid(other, conn_register(other, long_name, uuid, 1, 0), "1024 bytes");
        long_name[1024] = '\0';
        assert_int_equal(conn_register(other, long_name, uuid, 1, 0), 0);
        assert_int_equal(conn_acquire(other, space, "second", AUTOCREATE), 0);
        root = list_json();
        lease = find_json(root, space, "second");
        assert_non_null(lease);
        owner = field(json_object_array_get_idx(field(lease, "holds"), 0), "owner");
        assert_true(is_json_of(field(owner, "name"), long_name));
        json_object_put(root);
        conn_close(other);
}

static size_t count_lines(const char *text)
{
        size_t n = 0;

        for (; *text; text++)
                n += *text == '\n';
        return n;
}

/* A name with a line end in it cannot forge a line of the table or of the log, and control characters do not reach the
 * terminal. */
static void test_names_cannot_forge_lines(void **state)
{
        static const char name[] = "lease\n- - - forged by nobody HELD\x1b[2J\r";
        const char *const arguments[] = { "list", NULL };
        const char *space = work_path("forged"), *image = work_path("image\nforged in the log");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b), *admin = admin_open(d);
        _cleanup_free_ char *text = NULL;

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_acquire(ca, space, name, AUTOCREATE), 0);
        assert_int_equal(conn_acquire(ca, "", image, AUTOCREATE), 0);
        assert_int_equal(run_admin(d, &text, arguments), 0);
        assert_int_equal(count_lines(text), 3);
        assert_null(strchr(text, '\x1b'));
        assert_null(strchr(text, '\r'));
        assert_non_null(strstr(text, "lease\\x0a- - - forged by nobody HELD\\x1b[2J\\x0d"));
        assert_int_equal(conn_acquire(cb, space, name, AUTOCREATE), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_acquire(cb, "", image, AUTOCREATE), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(admin_release_call(admin, space, name, uuid_text(a.uuid), LOCKD_RELEASE_FORCE), 0);
        daemon_expect_log(d, "forged by nobody");
        daemon_expect_log(d, "forged in the log");
        assert_false(daemon_log_has(d, "\n- - - forged"));
        assert_false(daemon_log_has(d, "\nforged in the log"));
        assert_false(daemon_log_has(d, "\x1b"));
        conn_close(admin);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* The administrator can name what is listed: release takes the same bytes. */
static void test_release_takes_any_name(void **state)
{
        static const char name[] = "odd\nname\xff'\"";
        const char *space = work_path("by-hand");
        const char *const arguments[] = { "release", "--lockspace", space, name, "--owner", "alpha", "--kill", NULL };
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        assert_int_equal(conn_acquire(conn, space, name, AUTOCREATE), 0);
        assert_int_equal(run_admin(d, NULL, arguments), 0);
        assert_null(find_lease(d, space, name));
        vm_wait(&a);
        conn_close(conn);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_longest_path),
                TEST(test_longest_lease_name),
                TEST(test_every_byte),
                TEST(test_encodings),
                TEST(test_other_names),
                TEST(test_names_cannot_forge_lines),
                TEST(test_release_takes_any_name),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
