/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a procedure may know of the connection that calls it: credentials, the owner that it registered, whether it is
 * restricted, what it took. Knows nothing of buffers and frames.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "list.h"
#include "lockspace.h"
#include "owner.h"
#include "reaper.h"
#include "record.h"

typedef struct Caller Caller;
struct RpcError;

/* What the last call on a connection was: an owner may never have learnt of a hold whose taker ended badly. */
typedef enum CallerLast { CALLER_LAST_OTHER, CALLER_LAST_GRANTED, CALLER_LAST_REFUSED } CallerLast;

struct Caller {
        uint64_t number;     /* of the connection, unique in the daemon's life */
        OwnerPeer process;   /* pidfd stays -1: asked of the socket when it is needed */
        int socket;
        Owner *owner;        /* NULL: not registered */
        uint32_t claimed_pid; /* as it was registered, before a namespace was translated */
        bool own;            /* the owner's own connection */
        bool restricted;
        CallerLast last;
        ListNode taken;      /* of Hold.in_taken; empty for an own connection */
        lockd_later later;   /* why its call has no answer yet */
        ReaperWait wait;     /* for a release that has to see its owner dead ... */
        uint64_t waits_for;  /* ... which has this number ... */
        uint64_t waited_holds; /* ... and this many holds */
        /* Sends the answer of a call that was put off: the error, or ret when that is NULL. Set by the connection. */
        void (*answer_later)(Caller *caller, const struct RpcError *error, const void *ret);
};

enum {
        CALLER_E_IDENTITY = 101, /* registered already, as somebody else */
};

void caller_init(Caller *caller, int socket, const OwnerPeer *process);

/* 0, CALLER_E_IDENTITY, OWNER_E_*, or -errno. */
int caller_register(Caller *caller, OwnerTable *owners, Reaper *reaper, const uint8_t uuid[OWNER_UUID_LEN], const char *name,
                    uint32_t id, uint32_t pid);

/* The connection has ended; unanswered: its last call, or the answer to it, never arrived whole. */
void caller_end(Caller *caller, Reaper *reaper, bool unanswered);
