/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the holder costs: acquires and releases a second, without and with it. One client at a time waits for each answer. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "harness.h"

#define ROUNDS 20000

static double measure(const char *config)
{
        TestDaemon d = { 0 };
        const char *image = make_file("disk.img", "data");
        int64_t begin;
        Vm vm;
        Conn *conn;
        double rate;

        daemon_start(&d, config, NULL);
        vm = vm_start(&d, "alpha");
        conn = vm_conn(&d, &vm);
        begin = now_msec();
        for (int i = 0; i < ROUNDS; i++) {
                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
                assert_int_equal(conn_release(conn, "", image), 0);
        }
        rate = ROUNDS * 1000.0 / (double)(now_msec() - begin + 1);
        conn_close(conn);
        vm_kill(&vm);
        daemon_stop(&d);
        return rate;
}

static void bench(void **state)
{
        double off = 0, on = 0;

        (void)state;
        for (int i = 0; i < 3; i++) {
                double a = measure("holder = \"off\"\n"), b = measure("holder = \"auto\"\n");

                off = a > off ? a : off;
                on = b > on ? b : on;
        }
        printf("acquire + release: %.0f/s without a holder, %.0f/s with one: %.0f %%\n", off, on, on / off * 100);
}

int main(void)
{
        const struct CMUnitTest tests[] = { cmocka_unit_test(bench) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
