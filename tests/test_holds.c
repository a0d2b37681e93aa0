/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may hold what: exclusion, sharing, identity, release, and what ends a hold. */
#include <string.h>
#include <unistd.h>

#include "harness.h"

static TestDaemon daemon_under_test;

static int start(void **state)
{
        (void)state;
        daemon_start(&daemon_under_test, NULL, NULL);
        return 0;
}

static int end(void **state)
{
        (void)state;
        daemon_end(&daemon_under_test);
        return 0;
}

/* The main job: the second VM is refused with the first one's name, and the first one's end frees the image. */
static void test_second_is_refused_by_name(void **state)
{
        TestDaemon *d = &daemon_under_test;
        const char *image = make_file("disk.img", "data");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_false(is_lockable(image, false));
        assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_error(cb)->domain, VIRTLOCK_FROM_LOCKSPACE);
        assert_non_null(strstr(conn_message(cb), "is locked by VM 'alpha'"));
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

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_second_is_refused_by_name, start, end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
