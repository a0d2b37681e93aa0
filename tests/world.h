/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All that an upgrade has to carry over, at once: leases and owners of every kind, connections in every condition. Made
 * once on a daemon, checked as often as wanted, and answered to the last call at the end.
 */
#pragma once

#include "harness.h"

#define WORLD_CUTS_MAX 16

typedef struct World {
        TestDaemon *daemon;
        char dir[128];
        Vm own, shared_b, shared_c, mute, half, orphan, bare;
        Conn *conns[16];  /* that are between two calls; some registered, some not */
        unsigned n_conns;
        Conn *cut[WORLD_CUTS_MAX]; /* each has sent that much of a request */
        size_t cut_at[WORLD_CUTS_MAX];
        unsigned n_cut;
        Conn *full;       /* has sent many calls and read no answer */
        Conn *listing;    /* the same on the admin socket */
        int gone;         /* a connection of a process that is gone */
        Conn *twice;      /* of the owner with an unconfirmed hold */
        unsigned serial;
        bool ends;        /* lockd was sent TERM: it ends with the last lock */
        uint8_t *list;    /* what list said at first, as XDR */
        size_t list_len;
        unsigned n_leases;
} World;

/* Its files are in a folder of that name. */
void world_start(World *world, TestDaemon *daemon, const char *folder);
/* Nothing is lost: every lock is held, list says what it said, every connection is served. */
void world_check(World *world);
/* The same without a new connection. */
void world_check_quietly(World *world);
/* Only the locks. */
void world_check_locks(const World *world);
/* Every call that was under way is answered, once, and everybody's end ends their locks. Nothing is left. */
void world_finish(World *world);

/* The end without a word. */
void world_abandon(World *world);

/* Another number for each image that a process executes; 0: in the middle of an execution. */
unsigned long long image_of(pid_t pid);

/* Leases as bytes that can be compared; to be freed. */
uint8_t *encode_leases(const lockd_list_ret *list, size_t *ret_len);

/* lockd-admin upgrade is refused with this text, logged in one line with it, and the world is as it was. */
void expect_no_upgrade(World *world, const char *text);
/* lockd-admin upgrade does it. */
void expect_upgrade(World *world);
