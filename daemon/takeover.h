/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Take-over: virtlockd executes its own binary on SIGUSR1, finds lockd in its place, and has left its state in a file.
 * lockd goes on under the same pid with virtlockd's listeners, connections and locks.
 *
 * That state is translated into lockd's own (state.h); the tables are built from it as after any upgrade (restore.h).
 */
#pragma once

#include <stdbool.h>

#include "storage.h"

typedef struct Takeover Takeover;

/* Where virtlockd leaves its state, to be freed; NULL: out of memory. */
char *takeover_path(bool session);

/* Was this process virtlockd until now? To be asked before any inherited fd is closed. NULL: no. */
Takeover *takeover_find(bool session);

/* Converts the locks of local files, opens pidfds of the owners, and describes everything as a state, to be freed, which
 * is in a memfd, too: with that the image can be executed again, as after an upgrade. What cannot be understood is logged,
 * and kept: every inherited fd with a lock is in the state. -ENOMEM and the like: nothing was let go of, and the image can
 * be executed again without a state. */
int takeover_translate(Takeover *takeover, const Storage *storage, char **ret_state, int *ret_fd);

/* All is restored: virtlockd's file has done its duty and goes; one that could not be read is put aside. */
Takeover *takeover_done(Takeover *takeover);
