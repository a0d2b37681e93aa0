/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* release and stop: the commands that take locks away. */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "admin.h"
#include "exit_codes.h"
#include "lockd_admin.h"

static lockd_bytes bytes(const char *text)
{
        return (lockd_bytes){ .lockd_bytes_len = (u_int)strlen(text), .lockd_bytes_val = (char *)(uintptr_t)text };
}

static int release(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = {
                { "lockspace", required_argument, NULL, 'l' }, { "owner", required_argument, NULL, 'o' },
                { "kill", no_argument, NULL, 'k' },            { "force", no_argument, NULL, 'f' },
                { "help", no_argument, NULL, 'h' },            { 0 },
        };
        lockd_release_args args = { .how = LOCKD_RELEASE_SAFE };
        const char *lockspace = "", *owner = NULL;
        bool kill = false, force = false;
        lockd_release_ret ret = { 0 };
        int c, code;

        while ((c = getopt_long(argc, argv, "l:o:h", options, NULL)) != -1) {
                switch (c) {
                case 'l':
                        lockspace = optarg;
                        break;
                case 'o':
                        owner = optarg;
                        break;
                case 'k':
                        kill = true;
                        break;
                case 'f':
                        force = true;
                        break;
                case 'h':
                        return admin_help(&admin_release);
                default:
                        return admin_usage(&admin_release, "wrong options");
                }
        }
        if (argc - optind != 1)
                return admin_usage(&admin_release, "wants one RESOURCE");
        if (!owner)
                return admin_usage(&admin_release, "wants --owner: whose lock it is, by uuid, name or pid");
        if (kill && force)
                return admin_usage(&admin_release, "--kill and --force exclude each other");
        args.lockspace = bytes(lockspace);
        args.resource = bytes(argv[optind]);
        args.owner = bytes(owner);
        args.how = kill ? LOCKD_RELEASE_KILL : force ? LOCKD_RELEASE_FORCE : LOCKD_RELEASE_SAFE;
        code = admin_call(admin, LOCKD_ADMIN_RELEASE, (xdrproc_t)xdr_lockd_release_args, &args, (xdrproc_t)xdr_lockd_release_ret, &ret);
        if (code == EXIT_OK)
                printf("released: %u\n", ret.released);
        return code;
}

const AdminCommand admin_release = {
        .name = "release",
        .help = "[-l LOCKSPACE] RESOURCE --owner OWNER [--kill | --force]\n"
                "Takes a lock away from the owner that is named, if it is that owner that holds it.\n"
                "\n"
                "Without --kill or --force only a lock that no living process can miss is released.\n"
                "\n"
                "  -l, --lockspace PATH  the lockspace of RESOURCE (default: RESOURCE is an image's path)\n"
                "  -o, --owner OWNER     the VM's uuid or name, or the pid of its process\n"
                "      --kill            kill the VM (TERM, 1.6 s later KILL), see it dead, release all it holds\n"
                "      --force           release under the living VM, named by its uuid; it is listed as\n"
                "                        UNPROTECTED from then on\n"
                "  -h, --help            show this help and end\n",
        .run = release,
};

static int stop(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = {
                { "release-all", no_argument, NULL, 'a' },
                { "force", no_argument, NULL, 'f' },
                { "help", no_argument, NULL, 'h' },
                { 0 },
        };
        lockd_stop_args args = { 0 };
        int c;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
                switch (c) {
                case 'a':
                        args.release_all = TRUE;
                        break;
                case 'f':
                        args.force = TRUE;
                        break;
                case 'h':
                        return admin_help(&admin_stop);
                default:
                        return admin_usage(&admin_stop, "wrong options");
                }
        }
        if (optind < argc)
                return admin_usage(&admin_stop, "unexpected argument '%s'", argv[optind]);
        if (args.release_all != args.force)
                return admin_usage(&admin_stop, "--release-all and --force go together");
        return admin_call(admin, LOCKD_ADMIN_STOP, (xdrproc_t)xdr_lockd_stop_args, &args, NULL, NULL);
}

const AdminCommand admin_stop = {
        .name = "stop",
        .help = "[--release-all --force]\n"
                "Ends lockd, if nothing is held.\n"
                "\n"
                "      --release-all  let go of every lock of this host, while VMs may be writing,\n"
                "      --force        and mean it\n"
                "  -h, --help         show this help and end\n",
        .run = stop,
};
