/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Exit codes of every tool, after sysexits.h. The table in lockd-admin(8) is compared with this one by the tests. */
#pragma once

enum {
        EXIT_OK = 0,
        EXIT_FAILED = 1,       /* the daemon answered with an error that has no code of its own */
        EXIT_USAGE = 64,       /* the command line is wrong */
        EXIT_UNAVAILABLE = 69, /* no daemon answers, or not in time */
        EXIT_SOFTWARE = 70,    /* a fault inside the program: out of memory, an answer it cannot read */
        EXIT_CANTCREAT = 73,   /* a file cannot be created */
        EXIT_IOERR = 74,       /* storage failed */
        EXIT_BUSY = 75,        /* held by somebody else, or its owner lives */
        EXIT_NOPERM = 77,      /* permission denied */
        EXIT_CONFIG = 78,      /* the configuration is wrong */
};
