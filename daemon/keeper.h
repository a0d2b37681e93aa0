/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the holder is given, and when: each lease with its holds, their owners with pidfd and own connections, the
 * lockspaces, lockd's own listeners. Fills keep.h.
 *
 * There is no queue of messages: what the holder lacks is known by marks on the things themselves and put in the order in
 * which they came, in the words of that moment. A process of the holder that is replaced is just one that lacks everything.
 */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "restore.h"
#include "storage.h"

typedef struct KeeperOptions {
        const char *dir;     /* of the holder's sockets */
        const char *program; /* what is started when nobody listens there; NULL: nothing */
        const char *sockets[RESTORE_SERVERS]; /* as AdoptWish */
        void (*late)(void *userdata); /* more can be adopted now, by the next image of this program */
        void *userdata;
} KeeperOptions;

enum {
        KEEPER_E_BUSY = 1, /* another lockd has the holder */
};

/* Before the tables are restored: finds what the holder has. *ret_state (NULL: as before) is to be restored instead of
 * state; *ret_why is the text for KEEPER_E_BUSY, to be freed. -errno: without a holder, which is logged. */
int keeper_find(sd_event *loop, const KeeperOptions *options, const Storage *storage, const char *state, char **ret_state,
                char **ret_why);

/* Once they are restored and the listeners are open: gives it all that it lacks, from now on at once. */
void keeper_start(const RestoreParts *parts);
void keeper_stop(void);

/* Could lockd end now, and lose nothing? Gives the holder what it lacks first, for a moment. */
bool keeper_has_all(void);
/* Before it does: takes the listeners back, so that nobody connects to a dead ear. */
void keeper_leave(void);
/* Before an end that lets go of everything: sends the last words. */
void keeper_flush(void);

/* For lockd-admin status: "off", "connected", "stuck" or "missing", and how many leases a crash would lose. */
const char *keeper_status(size_t *ret_unkept);
