/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* etc/lockd.conf shows the defaults: as it is, and with every key switched on, it changes nothing. */
#include <ctype.h>
#include <string.h>

#include "../daemon/config.h"
#include "harness.h"

#define SHIPPED "etc/lockd.conf"

static void load(const char *path, bool required, Config *ret)
{
        char *why = NULL;

        if (config_load(path, required, false, ret, &why) < 0)
                fail_msg("%s", why ? why : path);
        free(why);
}

/* No text means the default where a text is optional. */
static const char *text(const char *value)
{
        return value ? value : "";
}

static void assert_same(const Config *a, const Config *b)
{
        assert_int_equal(a->log_level, b->log_level);
        assert_string_equal(text(a->log_filters), text(b->log_filters));
        assert_string_equal(text(a->log_outputs), text(b->log_outputs));
        assert_int_equal(a->max_clients, b->max_clients);
        assert_int_equal(a->admin_max_clients, b->admin_max_clients);
        assert_int_equal(a->max_lockspaces, b->max_lockspaces);
        assert_int_equal(a->max_holds, b->max_holds);
        assert_int_equal(a->kill_on_disconnect, b->kill_on_disconnect);
        assert_string_equal(a->lock_socket, b->lock_socket);
        assert_string_equal(a->admin_socket, b->admin_socket);
        assert_int_equal(a->n_lockspaces, b->n_lockspaces);
        assert_int_equal(a->n_lockspaces, 0);
}

/* A key is "#key = value"; prose has a blank behind the '#'. Returns how many there are. */
static unsigned switch_on(const char *path)
{
        FILE *in = fopen(SHIPPED, "re"), *out = fopen(path, "we");
        unsigned n = 0;
        char line[512];

        assert_non_null(in);
        assert_non_null(out);
        while (fgets(line, sizeof(line), in)) {
                bool key = line[0] == '#' && islower((unsigned char)line[1]);

                n += key;
                fputs(key ? line + 1 : line, out);
        }
        fclose(in);
        fclose(out);
        return n;
}

static void test_as_shipped(void **state)
{
        Config defaults, shipped;

        (void)state;
        load("/missing/lockd.conf", false, &defaults);
        load(SHIPPED, true, &shipped);
        assert_same(&shipped, &defaults);
        config_done(&shipped);
        config_done(&defaults);
}

static void test_every_key_switched_on(void **state)
{
        const char *path = work_path("lockd.conf");
        Config defaults, all;

        (void)state;
        assert_true(switch_on(path) > 0);
        load("/missing/lockd.conf", false, &defaults);
        load(path, true, &all);
        assert_same(&all, &defaults);
        /* Read, not left out: these are given by the file itself. */
        assert_non_null(all.log_filters);
        assert_non_null(all.log_outputs);
        assert_non_null(all.lockspaces);
        config_done(&all);
        config_done(&defaults);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_as_shipped),
                cmocka_unit_test(test_every_key_switched_on),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
