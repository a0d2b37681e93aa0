/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a record says what the tables say, and nothing in the tables is left out of it. */
#include "snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "lockspace.h"
#include "reaper.h"

static lockd_bytes borrow(const char *text)
{
        return (lockd_bytes){ .lockd_bytes_len = (u_int)strlen(text), .lockd_bytes_val = (char *)(uintptr_t)text };
}

static lockd_owner_state owner_state(const Owner *owner)
{
        if (owner->pidfd < 0)
                return LOCKD_OWNER_NONE;
        switch (reaper_state(owner)) {
        case REAPER_KILLING:
                return LOCKD_OWNER_KILLING;
        case REAPER_UNKILLABLE:
                return LOCKD_OWNER_UNKILLABLE;
        case REAPER_DEAD:
                return LOCKD_OWNER_DEAD;
        case REAPER_ALIVE:
        default:
                return LOCKD_OWNER_ALIVE;
        }
}

void snapshot_owner(const Owner *owner, lockd_owner *ret)
{
        *ret = (lockd_owner){
                .name = borrow(owner->name),
                .id = owner->id,
                .pid = owner->key.pid,
                .start_time = owner->start_time,
                .proved = owner->proved,
                .connections = owner->own_peers,
                .socket = owner->own_peers > 0 ? owner->own_socket : 0,
                .state = owner_state(owner),
        };
        memcpy(ret->uuid, owner->key.uuid, sizeof(ret->uuid));
}

static lockd_state lease_state(const Lease *lease)
{
        if (lease->file.fd < 0)
                return LOCKD_STATE_UNPROTECTED;
        if (lease->releasing)
                return LOCKD_STATE_RELEASING;
        list_for_each(node, &lease->holds) {
                const Owner *owner = list_entry(node, Hold, in_lease)->owner;

                if (!owner->dead)
                        return lease->file.kind == LOCK_CLASSIC ? LOCKD_STATE_CLASSIC : LOCKD_STATE_HELD;
                if (owner_is_gone(owner))
                        return LOCKD_STATE_RELEASING;
        }
        return LOCKD_STATE_ORPHANED;
}

int snapshot_lease(const Lease *lease, size_t max_holds, lockd_record *ret)
{
        size_t n = lease->n_holds < max_holds ? lease->n_holds : max_holds, i = 0;
        const Resource *resource = lease_first_hold(lease)->resource;
        lockd_hold *holds = calloc(n ? n : 1, sizeof(*holds));

        if (!holds)
                return FAULT(-ENOMEM);
        list_for_each(node, &lease->holds) {
                const Hold *hold = list_entry(node, Hold, in_lease);

                if (i == n)
                        break;
                snapshot_owner(hold->owner, &holds[i].owner);
                holds[i].resource = borrow(hold->resource->name);
                holds[i].lockspace = borrow(hold->resource->lockspace->path);
                holds[i].since = hold->since;
                holds[i].unconfirmed = hold->unconfirmed;
                i++;
        }
        *ret = (lockd_record){
                .id = lease->id,
                .lockspace = borrow(resource->lockspace->path),
                .resource = borrow(resource->name),
                .mode = lease->file.shared ? LOCKD_MODE_SHARED : LOCKD_MODE_EXCLUSIVE,
                .state = lease_state(lease),
                .kind = lease->file.fd < 0                 ? LOCKD_KIND_NONE :
                        lease->file.kind == LOCK_CLASSIC ? LOCKD_KIND_CLASSIC :
                                                           LOCKD_KIND_OFD,
                .autocreate = lease->autocreate,
                .dev = lease->file.id.dev,
                .ino = lease->file.id.ino,
                .since = lease->since,
                .holds = { .holds_len = (u_int)n, .holds_val = holds },
                .holds_total = (u_int)lease->n_holds,
        };
        return 0;
}

void snapshot_lease_done(lockd_record *record)
{
        free(record->holds.holds_val);
        record->holds.holds_val = NULL;
}
