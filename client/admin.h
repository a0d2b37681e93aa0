/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the commands of lockd-admin share: the connection, made when it is needed, and how its failures end the program. */
#pragma once

#include <rpc/rpc.h>
#include <stdint.h>

typedef struct Admin Admin;

typedef struct AdminCommand {
        const char *name;
        const char *help; /* from the synopsis on */
        /* argv[0] is the command's name; returns an exit code (exit_codes.h). */
        int (*run)(Admin *admin, int argc, char **argv);
} AdminCommand;

extern const AdminCommand admin_list, admin_release, admin_stop, admin_takeover, admin_upgrade;

/* Calls procedure of lockd's admin program. EXIT_OK, or an exit code after the reason went to stderr. */
int admin_call(Admin *admin, int32_t procedure, xdrproc_t args_proc, const void *args, xdrproc_t ret_proc, void *ret);

/* Calls a procedure that has the daemon hand everything over to a virtlockd. EXIT_OK once that answers. */
int admin_hand_over(Admin *admin, int32_t procedure, xdrproc_t args_proc, const void *args);

/* Says that the command line is wrong: EXIT_USAGE. */
int admin_usage(const AdminCommand *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Shows the command's help: EXIT_OK. */
int admin_help(const AdminCommand *command);
