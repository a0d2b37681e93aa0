/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* upgrade: has the running lockd replace its binary. */
#include <getopt.h>
#include <stdio.h>

#include "admin.h"
#include "exit_codes.h"
#include "lockd_admin.h"

static int upgrade(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { 0 } };
        int c, code;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1)
                return c == 'h' ? admin_help(&admin_upgrade) : admin_usage(&admin_upgrade, "wrong options");
        if (optind < argc)
                return admin_usage(&admin_upgrade, "unexpected argument '%s'", argv[optind]);
        code = admin_call(admin, LOCKD_ADMIN_UPGRADE, NULL, NULL, NULL, NULL);
        if (code == EXIT_OK)
                printf("upgraded\n");
        return code;
}

const AdminCommand admin_upgrade = {
        .name = "upgrade",
        .help = "\n"
                "Has lockd try the binary that is installed now, and execute it with every lock.\n"
                "\n"
                "When the new binary, the configuration or the state is no good, the running lockd goes\n"
                "on as it was, with all locks, and this command says why.\n"
                "\n"
                "  -h, --help             show this help and end\n",
        .run = upgrade,
};
