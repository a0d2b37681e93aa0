/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The way back from a state: an image that an upgrade executed builds its tables from it before it serves anyone. */
#pragma once

#include <stdbool.h>

#include "listener.h"
#include "lockspace.h"
#include "owner.h"
#include "peer.h"
#include "reaper.h"
#include "record.h"

/* Names the fd of the state in the environment. */
#define RESTORE_VARIABLE "LOCKD_STATE_FD"
/* How often this state was tried before; so many times a passing shortage is waited for, then losses are taken. */
#define RESTORE_TRIES_VARIABLE "LOCKD_STATE_TRIES"
#define RESTORE_TRIES_MAX 10

enum { RESTORE_LOCK, RESTORE_ADMIN, RESTORE_SERVERS };

/* What is carried over. The listeners may be NULL in restore, which fills fds and paths instead. */
typedef struct RestoreParts {
        LockspaceTable *lockspaces;
        OwnerTable *owners;
        Reaper *reaper;
        PeerSet *peers[RESTORE_SERVERS];
        Listener *listeners[RESTORE_SERVERS];
        int fds[RESTORE_SERVERS];     /* -1: none */
        int guards[RESTORE_SERVERS];  /* -1: none */
        char *paths[RESTORE_SERVERS]; /* NULL: not ours to remove */
        char *binary;                 /* where the next image is looked for; NULL: not known */
        bool ending;                  /* a TERM waits for the last lease to go */
        lockd_end seen;               /* what was restored */
        int state_fd;                 /* where the state came from: none of the fds that it is about */
        const char *expected[RESTORE_SERVERS]; /* where the configuration has the sockets */
        int *strays;                  /* fds that may be locks, and of which nothing else is known */
        size_t n_strays;
        char *unknown;                /* lines of kinds that are not known here; NULL: none */
} RestoreParts;

/* The state that this image was executed with, to be freed; NULL: none. Takes it out of the environment. *ret_fd is where it
 * came from: kept open, and inheritable, for upgrade_again(). -errno: it cannot be read. */
int restore_take_state(char **ret, int *ret_fd);

/* For --check-state, before anything else is opened: puts a stand-in under every fd number of the state. */
int restore_stand_in(const char *state);

/* Builds the tables. trial: the fds are stand-ins, and the first thing that cannot be restored is a failure, told on
 * stderr. Else that is logged, and costs at most a connection. The fds stay inheritable. -errno: this is no state. */
int restore_tables(RestoreParts *parts, const char *state, bool trial);
