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
        return (lockd_bytes){ .lockd_bytes_len = text ? (u_int)strlen(text) : 0, .lockd_bytes_val = (char *)(uintptr_t)text };
}

static lockd_owner_state owner_state(const Owner *owner)
{
        if (owner->pidfd < 0 && !owner->dead)
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
                .number = owner->number,
                .name = borrow(owner->name),
                .id = owner->id,
                .pid = owner->key.pid,
                .start_time = owner->start_time,
                .proved = owner->proved,
                .connections = owner->own_peers,
                .socket = owner->own_peers > 0 ? owner->own_socket : 0,
                .state = owner_state(owner),
                .pidfd = owner->pidfd,
                .dead = owner->dead,
                .foreign_ns = owner->foreign_ns,
                .foreign_pid = owner->foreign_pid,
                .extra = borrow(owner->extra),
        };
        memcpy(ret->uuid, owner->key.uuid, sizeof(ret->uuid));
        ret->kill_sent = reaper_progress(owner, &ret->kill_left);
}

/* An exclusive lease has one hold, unless it was taken over like that. */
static bool is_conflict(const Lease *lease)
{
        const Hold *first = lease_first_hold(lease);

        if (lease->file.shared)
                return false;
        list_for_each(node, &lease->holds)
                if (list_entry(node, Hold, in_lease)->owner != first->owner)
                        return true;
        return false;
}

static lockd_state lease_state(const Lease *lease)
{
        if (lease->file.fd < 0)
                return LOCKD_STATE_UNPROTECTED;
        if (lease->releasing)
                return LOCKD_STATE_RELEASING;
        if (is_conflict(lease))
                return LOCKD_STATE_CONFLICT;
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
                holds[i].extra = borrow(hold->extra);
                holds[i].taken_by = list_linked(&hold->in_taken) ? hold->taker : 0;
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
                .local = lease->local,
                .releasing = lease->releasing,
                .fd = lease->file.fd,
                .dev = lease->file.id.dev,
                .ino = lease->file.id.ino,
                .block = lease->file.id.block != 0,
                .since = lease->since,
                .others = { .others_len = (u_int)lease->file.n_others, .others_val = lease->file.others },
                .holds = { .holds_len = (u_int)n, .holds_val = holds },
                .holds_total = (u_int)lease->n_holds,
                .extra = borrow(lease->extra),
        };
        return 0;
}

void snapshot_lease_done(lockd_record *record)
{
        free(record->holds.holds_val);
        record->holds.holds_val = NULL;
}

static const char *text_of(const lockd_bytes *bytes)
{
        return bytes->lockd_bytes_val ? bytes->lockd_bytes_val : "";
}

/* A nicety: without memory for it, it is forgotten. */
static char *extra_of(const lockd_bytes *bytes)
{
        return bytes->lockd_bytes_len > 0 ? strdup(bytes->lockd_bytes_val) : NULL;
}

int snapshot_restore_owner(OwnerTable *owners, const lockd_owner *record, Owner **ret)
{
        Owner seed = {
                .number = record->number,
                .key = { .pid = record->pid, .id = record->pid == 0 ? record->id : 0 },
                .id = record->id,
                .name = (char *)(uintptr_t)text_of(&record->name),
                .pidfd = record->pidfd,
                .start_time = record->start_time,
                .foreign_ns = record->foreign_ns,
                .foreign_pid = record->foreign_pid,
                .dead = record->dead,
                .proved = record->proved,
                .own_socket = record->socket,
        };

        int r;

        memcpy(seed.key.uuid, record->uuid, sizeof(seed.key.uuid));
        r = owner_restore(owners, &seed, ret);
        if (r == 0)
                (*ret)->extra = extra_of(&record->extra);
        return PASS(r);
}

int snapshot_restore_lease(LockspaceTable *lockspaces, const lockd_record *record, Lease **ret)
{
        Lockfile file = {
                .fd = record->fd,
                .id = { .dev = record->dev, .ino = record->ino, .block = record->block ? 1 : 0 },
                .kind = record->kind == LOCKD_KIND_CLASSIC ? LOCK_CLASSIC : LOCK_OFD,
                .shared = record->mode == LOCKD_MODE_SHARED,
        };
        LeaseTable *leases = lockspace_leases(lockspaces);
        uint64_t newest = lease_newest(leases);
        Lease *lease;
        int r;

        if (record->holds.holds_len == 0)
                return FAULT(-EINVAL);
        if (record->fd >= 0 && lease_find(leases, &file.id))
                return FAULT(-EEXIST);
        if (record->others.others_len > 0) {
                file.others = calloc(record->others.others_len, sizeof(*file.others));
                if (!file.others)
                        return FAULT(-ENOMEM);
                file.n_others = record->others.others_len;
                memcpy(file.others, record->others.others_val, file.n_others * sizeof(*file.others));
        }
        r = lease_new(leases, record->fd >= 0 ? &file : NULL, &lease);
        if (r < 0) {
                free(file.others);
                return PASS(r);
        }
        if (record->fd < 0) {
                lease->file.id = file.id;
                lease->file.shared = file.shared;
        }
        lease->id = record->id;
        lease->since = record->since;
        lease->extra = extra_of(&record->extra);
        lease->autocreate = record->autocreate;
        lease->local = record->local;
        /* A release that was under way on a block device starts again, with its flush. */
        lease->releasing = false;
        lease_set_newest(leases, record->id > newest ? record->id : newest);
        *ret = lease;
        return 0;
}

int snapshot_restore_hold(LockspaceTable *lockspaces, Lease *lease, const lockd_hold *record, Owner *owner, ListNode *taken)
{
        Hold *hold;
        int r = lockspace_restore_hold(lockspaces, lease, text_of(&record->lockspace), text_of(&record->resource), owner, &hold);

        if (r < 0)
                return PASS(r);
        hold->since = record->since;
        hold->unconfirmed = record->unconfirmed;
        hold->extra = extra_of(&record->extra);
        hold->taker = record->taken_by;
        if (taken)
                list_append(taken, &hold->in_taken);
        return 0;
}

int snapshot_resume_owner(Reaper *reaper, Owner *owner, const lockd_owner *record)
{
        ReaperState state = record->state == LOCKD_OWNER_KILLING    ? REAPER_KILLING :
                            record->state == LOCKD_OWNER_UNKILLABLE ? REAPER_UNKILLABLE :
                                                                      REAPER_ALIVE;

        return PASS(reaper_resume(reaper, owner, state, record->kill_sent, record->kill_left));
}
