/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Death of owners. An owner is dead when its process has ended *and* nobody has its own connection open any more; then
 * its holds go, in slices that leave the loop to others. Also the kill that the configuration or an administrator asked
 * for: TERM, 1.6 s later KILL, and nothing is freed before the owner is dead. Only processes that were proved by their
 * own connection are signalled. Never sleeps.
 */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "list.h"
#include "lockspace.h"
#include "owner.h"

typedef struct Reaper Reaper;

/* What to do with an owner that lost its last own connection and lives. */
typedef enum ReaperPolicy { REAPER_HOLD, REAPER_KILL } ReaperPolicy;

typedef enum ReaperState {
        REAPER_ALIVE,
        REAPER_KILLING,    /* has been sent a signal */
        REAPER_UNKILLABLE, /* outlived KILL */
        REAPER_DEAD,       /* its process has ended */
} ReaperState;

enum {
        REAPER_E_NOT_PROVED = 1, /* no connection of its own ever showed that it is that process: never signalled */
        REAPER_E_ENDED,          /* its process has ended, but a copy of its connection is open */
};

/* Somebody waits for the end of an owner; done is called once, with 0 when its holds are gone, -ETIMEDOUT when it
 * outlived KILL, or -EBUSY when its process has ended but its connection is open in another one. Unlink node to stop waiting. */
typedef struct ReaperWait {
        ListNode node;
        void (*done)(struct ReaperWait *wait, int result);
} ReaperWait;

int reaper_new(sd_event *loop, LockspaceTable *lockspaces, Reaper **ret);
Reaper *reaper_free(Reaper *reaper);

void reaper_set_policy(Reaper *reaper, ReaperPolicy policy);

/* Watches a new owner. */
int reaper_watch(Reaper *reaper, Owner *owner);

/* One of its registered connections has closed (own: its own one). The owner may be freed by this. */
void reaper_peer_closed(Reaper *reaper, Owner *owner, bool own);

/* Frees the owner if nothing refers to it any more. */
void reaper_drop_if_idle(Reaper *reaper, Owner *owner);

/* Kills the owner; wait (or NULL) is told the end. 0, REAPER_E_*, or -errno. */
int reaper_kill(Reaper *reaper, Owner *owner, ReaperWait *wait);

/* Waits for the end of an owner, whoever brings it about. */
void reaper_wait(Owner *owner, ReaperWait *wait);

ReaperState reaper_state(const Owner *owner);

/* A kill under way: has KILL been sent, and how many microseconds until its next step. */
bool reaper_progress(const Owner *owner, uint64_t *ret_left);

/* After a restart: watches an owner that was watched before, and goes on with its kill or its death. Its holds and
 * connections must be back. */
int reaper_resume(Reaper *reaper, Owner *owner, ReaperState state, bool kill_sent, uint64_t left);

/* Ends every hold: the end of the daemon. */
void reaper_release_all(Reaper *reaper);
