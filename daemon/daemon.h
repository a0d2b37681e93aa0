/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The daemon: the loop, the listeners, the tables, the signals; the one place where modules are wired together. */
#pragma once

#include <stdbool.h>

typedef struct DaemonOptions {
        const char *config;   /* NULL: the default path */
        const char *pid_file; /* NULL: none */
        unsigned timeout;     /* seconds without a client and a hold after which it ends; 0: never */
        bool verbose;
        bool session;         /* not root: sockets and configuration of a user */
        bool background;
        bool check_state;     /* try the state and the configuration, then end */
        struct Takeover *takeover; /* this process was virtlockd until now; NULL: no */
        char **argv;          /* for the next image */
        int ready_fd;         /* -1, or where one byte, the exit code, tells the parent that it is up */
} DaemonOptions;

/* Runs until the end; returns the exit code (exit_codes.h). */
int daemon_run(const DaemonOptions *options);
