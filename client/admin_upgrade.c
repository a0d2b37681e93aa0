/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* upgrade: has the running lockd replace its binary. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "admin.h"
#include "exit_codes.h"
#include "lockd_admin.h"

static int upgrade(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = {
                { "to-virtlockd", required_argument, NULL, 'v' },
                { "help", no_argument, NULL, 'h' },
                { 0 },
        };
        lockd_give_back_args args = { .path = { 0 } };
        int c, code;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
                if (c != 'v')
                        return c == 'h' ? admin_help(&admin_upgrade) : admin_usage(&admin_upgrade, "wrong options");
                args.path = (lockd_bytes){ .lockd_bytes_len = (u_int)strlen(optarg), .lockd_bytes_val = optarg };
        }
        if (optind < argc)
                return admin_usage(&admin_upgrade, "unexpected argument '%s'", argv[optind]);
        if (args.path.lockd_bytes_val) {
                if (*args.path.lockd_bytes_val != '/')
                        return admin_usage(&admin_upgrade, "--to-virtlockd wants an absolute path");
                code = admin_hand_over(admin, LOCKD_ADMIN_GIVEBACK, (xdrproc_t)xdr_lockd_give_back_args, &args);
                if (code == EXIT_OK)
                        printf("given back: virtlockd answers\n");
                return code;
        }
        code = admin_call(admin, LOCKD_ADMIN_UPGRADE, NULL, NULL, NULL, NULL);
        if (code == EXIT_OK)
                printf("upgraded\n");
        return code;
}

const AdminCommand admin_upgrade = {
        .name = "upgrade",
        .help = "[--to-virtlockd PATH]\n"
                "Has lockd try the binary that is installed now, and execute it with every lock.\n"
                "\n"
                "When the new binary, the configuration or the state is no good, the running lockd goes\n"
                "on as it was, with all locks, and this command says why.\n"
                "\n"
                "      --to-virtlockd PATH  execute the virtlockd at PATH instead, with every lock and\n"
                "                           connection of VMs\n"
                "  -h, --help               show this help and end\n",
        .run = upgrade,
};
