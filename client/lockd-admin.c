/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: every failure ends with one line on stderr that says what to do, and with an exit code of exit_codes.h. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "admin.h"
#include "cleanup.h"
#include "client.h"
#include "exit_codes.h"
#include "lockd_admin.h"

struct Admin {
        char *socket;
        unsigned timeout_msec;
        Client *client;
};

static const AdminCommand *const commands[] = { &admin_list, &admin_release, &admin_upgrade, &admin_takeover, &admin_stop };

static int unavailable(const Admin *admin, int error)
{
        const char *what = error == -ENOENT || error == -ECONNREFUSED ? "no lock daemon listens there" :
                           error == -ETIMEDOUT                          ? "the lock daemon does not answer" :
                           error == -EMSGSIZE                           ? "an argument is longer than any name can be" :
                           error == -ECONNRESET                         ? "the lock daemon closed the connection" :
                                                                          strerror(-error);

        fprintf(stderr, "lockd-admin: %s: %s\n", admin->socket, what);
        if (error == -EACCES || error == -EPERM)
                return EXIT_NOPERM;
        if (error == -EMSGSIZE)
                return EXIT_USAGE;
        return error == -ENOMEM || error == -EBADMSG ? EXIT_SOFTWARE : EXIT_UNAVAILABLE;
}

static int refused(const Admin *admin)
{
        if (client_error(admin->client)->code == VIRTLOCK_ERR_RPC)
                fprintf(stderr, "lockd-admin: %s is not the admin socket of a lockd that knows this command (virtlockd's, an older "
                        "lockd's, or the lock socket?): %s\n", admin->socket, client_error_message(admin->client));
        else
                fprintf(stderr, "lockd-admin: %s\n", client_error_message(admin->client));
        switch (client_error(admin->client)->code) {
        case VIRTLOCK_ERR_RESOURCE_BUSY:
                return EXIT_BUSY;
        case VIRTLOCK_ERR_INVALID_ARG:
                return EXIT_USAGE;
        case VIRTLOCK_ERR_OPERATION_DENIED:
                return EXIT_NOPERM;
        case VIRTLOCK_ERR_RPC:
                return EXIT_UNAVAILABLE; /* a daemon that does not know the call */
        default:
                return EXIT_FAILED;
        }
}

int admin_call(Admin *admin, int32_t procedure, xdrproc_t args_proc, const void *args, xdrproc_t ret_proc, void *ret)
{
        int r = 0;

        if (!admin->client)
                r = client_new(admin->socket, admin->timeout_msec, &admin->client);
        if (r == 0)
                r = client_call(admin->client, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, procedure, args_proc, args, ret_proc, ret);
        if (r == 0)
                return EXIT_OK;
        return r > 0 ? refused(admin) : unavailable(admin, r);
}

/* Who answers now? virtlockd does not know lockd's program, and says so. */
static int await_virtlockd(Admin *admin)
{
        const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
        int r = -ENOENT;

        for (unsigned waited = 0; waited <= admin->timeout_msec; waited += 20) {
                lockd_list_args args = { 0 };
                lockd_list_ret ret = { 0 };

                admin->client = client_free(admin->client);
                r = client_new(admin->socket, admin->timeout_msec, &admin->client);
                if (r == 0)
                        r = client_call(admin->client, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, LOCKD_ADMIN_LIST,
                                        (xdrproc_t)xdr_lockd_list_args, &args, (xdrproc_t)xdr_lockd_list_ret, &ret);
                xdr_free((xdrproc_t)xdr_lockd_list_ret, &ret);
                if (r > 0)
                        return EXIT_OK;
                if (r == 0) {
                        fprintf(stderr, "lockd-admin: the connection was closed, but it is lockd that still answers\n");
                        return EXIT_FAILED;
                }
                (void)nanosleep(&pause, NULL);
        }
        fprintf(stderr, "lockd-admin: lockd has executed virtlockd, which does not answer: look at its log\n");
        return unavailable(admin, r);
}

int admin_hand_over(Admin *admin, int32_t procedure, xdrproc_t args_proc, const void *args)
{
        int r = client_new(admin->socket, admin->timeout_msec, &admin->client);

        if (r < 0)
                return unavailable(admin, r);
        r = client_call(admin->client, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, procedure, args_proc, args, NULL, NULL);
        if (r > 0)
                return refused(admin);
        return r == -ECONNRESET ? await_virtlockd(admin) : unavailable(admin, r == 0 ? -EBADMSG : r);
}

int admin_usage(const AdminCommand *command, const char *format, ...)
{
        va_list ap;

        fprintf(stderr, "lockd-admin %s: ", command->name);
        va_start(ap, format);
        vfprintf(stderr, format, ap);
        va_end(ap);
        fprintf(stderr, "\nTry 'lockd-admin %s --help'.\n", command->name);
        return EXIT_USAGE;
}

int admin_help(const AdminCommand *command)
{
        printf("Usage: lockd-admin %s %s", command->name, command->help);
        return EXIT_OK;
}

static void help(void)
{
        fputs("Usage: lockd-admin [OPTION]... COMMAND [ARGUMENT]...\n"
              "Shows and releases the locks that lockd holds for virtual machines.\n"
              "\n"
              "  -s, --socket PATH      the daemon's admin socket (LOCKD_ADMIN_SOCKET;\n"
              "                         default: where lockd listens without a configuration)\n"
              "  -T, --timeout SECONDS  how long to wait for an answer (default 30)\n"
              "  -V, --version          show the version and end\n"
              "  -h, --help             show this help and end\n"
              "\n"
              "Commands (each has a --help):\n", stdout);
        for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
                printf("  %-9s%.*s\n", commands[i]->name, (int)strcspn(strchr(commands[i]->help, '\n') + 1, "\n"),
                       strchr(commands[i]->help, '\n') + 1);
        fputs("\nExit codes: 0 done, 1 refused, 64 usage, 69 no answer, 70 internal, 74 output failed,\n"
              "75 held or owner alive, 77 not permitted. See lockd-admin(8).\n", stdout);
}

static int run_command(Admin *admin, int argc, char **argv)
{
        for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
                if (strcmp(commands[i]->name, argv[0]) == 0) {
                        optind = 0;
                        return commands[i]->run(admin, argc, argv);
                }
        fprintf(stderr, "lockd-admin: unknown command '%s'\nTry 'lockd-admin --help'.\n", argv[0]);
        return EXIT_USAGE;
}

/* With a standard stream closed the connection would get its number, and output would be sent to the daemon. What was
 * closed stays unusable: writing there fails, as it should. */
static void fill_standard_fds(void)
{
        int fd;

        do
                fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        while (fd >= 0 && fd <= STDERR_FILENO);
        if (fd >= 0)
                close(fd);
}

static int finish(int code)
{
        if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_OK) {
                fprintf(stderr, "lockd-admin: cannot write: %s\n", strerror(errno));
                return EXIT_IOERR;
        }
        return code;
}

int main(int argc, char **argv)
{
        static const struct option long_options[] = {
                { "socket", required_argument, NULL, 's' }, { "timeout", required_argument, NULL, 'T' },
                { "version", no_argument, NULL, 'V' },      { "help", no_argument, NULL, 'h' },
                { 0 },
        };
        const char *socket = getenv("LOCKD_ADMIN_SOCKET");
        Admin admin = { .timeout_msec = CLIENT_TIMEOUT_MSEC };
        char *end;
        double seconds;
        int c, code;

        fill_standard_fds();
        while ((c = getopt_long(argc, argv, "+s:T:Vh", long_options, NULL)) != -1) {
                switch (c) {
                case 's':
                        socket = optarg;
                        break;
                case 'T':
                        seconds = strtod(optarg, &end);
                        if (*end || end == optarg || !(seconds > 0 && seconds <= 86400)) {
                                fprintf(stderr, "lockd-admin: --timeout wants seconds, not '%s'\n", optarg);
                                return EXIT_USAGE;
                        }
                        admin.timeout_msec = (unsigned)(seconds * 1000);
                        break;
                case 'V':
                        printf("lockd-admin %s\n", LOCKD_VERSION);
                        return finish(EXIT_OK);
                case 'h':
                        help();
                        return finish(EXIT_OK);
                default:
                        fprintf(stderr, "Try 'lockd-admin --help'.\n");
                        return EXIT_USAGE;
                }
        }
        if (optind == argc) {
                fprintf(stderr, "lockd-admin: no command\nTry 'lockd-admin --help'.\n");
                return EXIT_USAGE;
        }
        admin.socket = socket ? strdup(socket) : client_admin_socket();
        if (!admin.socket)
                return EXIT_SOFTWARE;
        code = run_command(&admin, argc - optind, argv + optind);
        client_free(admin.client);
        free(admin.socket);
        return finish(code);
}
