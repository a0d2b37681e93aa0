/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: nothing but the command line is read here, and every signal is blocked from the first statement on. */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "cleanup.h"
#include "config.h"
#include "daemon.h"
#include "exit_codes.h"
#include "log.h"
#include "restore.h"
#include "takeover.h"

static const char help[] =
        "Usage: lockd [OPTION]...\n"
        "Holds locks on disk images for virtual machines, by the protocol of virtlockd.\n"
        "\n"
        "  -d, --daemon         run in the background, log to syslog\n"
        "  -f, --config FILE    read FILE instead of " LOCKD_SYSCONFDIR "/lockd/lockd.conf\n"
        "  -t, --timeout SECS   end after SECS seconds without a client and a lock\n"
        "  -p, --pid-file FILE  write the process id to FILE\n"
        "  -v, --verbose        log informational messages, too\n"
        "  -V, --version        show the version and end\n"
        "  -h, --help           show this help and end\n"
        "\n"
        "Signals: HUP reads the configuration and opens log files again; USR1 executes the lockd\n"
        "that is installed now, keeping every lock and connection; TERM and INT end lockd when no\n"
        "lock is held. See lockd(8), lockd.conf(5), lockd-admin(8).\n";

static const struct option long_options[] = {
        { "daemon", no_argument, NULL, 'd' },       { "config", required_argument, NULL, 'f' },
        { "timeout", required_argument, NULL, 't' }, { "pid-file", required_argument, NULL, 'p' },
        { "verbose", no_argument, NULL, 'v' },      { "version", no_argument, NULL, 'V' },
        { "help", no_argument, NULL, 'h' },         { "check-state", no_argument, NULL, 'C' },
        { 0 },
};

static int usage(void)
{
        fprintf(stderr, "Try 'lockd --help'.\n");
        return EXIT_USAGE;
}

/* -1: go on; else end with that code. Whatever is wrong, the rest has been read. */
static int parse_argv(int argc, char **argv, DaemonOptions *options)
{
        bool wrong = false;
        char *end;
        int c;

        while ((c = getopt_long(argc, argv, "df:t:p:vVh", long_options, NULL)) != -1) {
                switch (c) {
                case 'd':
                        options->background = true;
                        break;
                case 'f':
                        options->config = optarg;
                        break;
                case 't': {
                        unsigned long seconds = strtoul(optarg, &end, 0); /* virtlockd takes 0x3c, too */

                        if (*end || *optarg < '0' || *optarg > '9' || seconds == 0 || seconds > 100000000) {
                                fprintf(stderr, "lockd: --timeout wants a number of seconds, not '%s'\n", optarg);
                                wrong = true;
                                break;
                        }
                        options->timeout = (unsigned)seconds;
                        break;
                }
                case 'p':
                        options->pid_file = optarg;
                        break;
                case 'v':
                        options->verbose = true;
                        break;
                case 'C':
                        options->check_state = true;
                        break;
                case 'V':
                        printf("lockd %s\n", LOCKD_VERSION);
                        return EXIT_OK;
                case 'h':
                        fputs(help, stdout);
                        return EXIT_OK;
                default:
                        wrong = true;
                }
        }
        if (optind < argc) {
                fprintf(stderr, "lockd: unexpected argument '%s'\n", argv[optind]);
                wrong = true;
        }
        return wrong ? usage() : -1;
}

/* Goes on in a child; the parent ends with the child's exit code once that is up, or has failed. Nothing is locked yet. */
static void go_to_background(DaemonOptions *options)
{
        int fds[2], null;
        char code = EXIT_SOFTWARE;
        pid_t pid;

        if (pipe2(fds, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
                perror("lockd");
                _exit(EXIT_SOFTWARE);
        }
        if (pid > 0) {
                close_fd(fds[1]);
                if (read(fds[0], &code, 1) != 1)
                        code = EXIT_SOFTWARE;
                _exit(code);
        }
        close_fd(fds[0]);
        options->ready_fd = fds[1];
        (void)setsid();
        (void)chdir("/");
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null >= 0) {
                (void)dup2(null, STDIN_FILENO);
                (void)dup2(null, STDOUT_FILENO);
                close_fd(null);
        }
        log_default_output("1:syslog:lockd");
}

/* An absolute form of path, before the working directory changes; NULL stays. Lives as long as the program. */
static const char *absolute(const char *path)
{
        _cleanup_free_ char *cwd = NULL;
        char *full;

        if (!path || *path == '/')
                return path;
        cwd = getcwd(NULL, 0);
        return cwd && asprintf(&full, "%s/%s", cwd, path) >= 0 ? full : path;
}

/* The command line for the next image: the same, with paths that do not depend on the working directory. */
static char **next_argv(char *name, const DaemonOptions *options)
{
        static char timeout[16];
        static char *argv[10];
        int n = 0;

        argv[n++] = name;
        if (options->background)
                argv[n++] = (char *)(uintptr_t) "-d";
        if (options->verbose)
                argv[n++] = (char *)(uintptr_t) "-v";
        if (options->config) {
                argv[n++] = (char *)(uintptr_t) "-f";
                argv[n++] = (char *)(uintptr_t)options->config;
        }
        if (options->pid_file) {
                argv[n++] = (char *)(uintptr_t) "-p";
                argv[n++] = (char *)(uintptr_t)options->pid_file;
        }
        if (options->timeout) {
                (void)snprintf(timeout, sizeof(timeout), "-t%u", options->timeout);
                argv[n++] = timeout;
        }
        return argv;
}

/* Numbers 0 to 2 belong to the standard streams: a lock's fd there would be written to by whoever prints. */
static void fill_standard_fds(void)
{
        int fd;

        do
                fd = open("/dev/null", O_RDWR);
        while (fd >= 0 && fd <= STDERR_FILENO);
        close_fd(fd);
}

/* What a shell or a service manager left open is none of ours, sockets that are meant for us excepted. */
static void close_strange_fds(void)
{
        int n = sd_listen_fds(0);

        (void)close_range(SD_LISTEN_FDS_START + (unsigned)(n > 0 ? n : 0), ~0U, 0);
}

int main(int argc, char **argv)
{
        DaemonOptions options = { .ready_fd = -1 };
        _cleanup_free_ char *pid_file = NULL;
        sigset_t all;
        int r;

        (void)sigfillset(&all);
        (void)sigprocmask(SIG_BLOCK, &all, NULL);
        (void)prctl(PR_SET_NAME, "lockd");
        fill_standard_fds();
        options.session = geteuid() != 0;
        if (!getenv(RESTORE_VARIABLE)) {
                options.takeover = takeover_find(options.session);
                if (!options.takeover)
                        close_strange_fds();
        }
        (void)umask(077);
        r = parse_argv(argc, argv, &options);
        /* With locks in hand an option that makes no sense is no reason to end. */
        if (r >= 0 && (r == EXIT_OK || options.check_state || (!options.takeover && !getenv(RESTORE_VARIABLE))))
                return r;
        options.config = absolute(options.config);
        options.pid_file = absolute(options.pid_file);
        options.argv = next_argv(argv[0], &options);
        if (options.background && !options.pid_file)
                options.pid_file = pid_file = config_runtime_path(options.session, "lockd.pid");
        /* An image that an upgrade executed is in the background already, and a fork would leave classic locks behind. */
        if (options.background && !options.check_state && !options.takeover && !getenv(RESTORE_VARIABLE))
                go_to_background(&options);
        else if (options.background)
                log_default_output("1:syslog:lockd");
        /* A trial leaves its tables to the end of the process. */
        if (options.check_state)
                _exit(daemon_run(&options));
        return daemon_run(&options);
}
