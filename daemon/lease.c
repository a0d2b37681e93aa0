/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: no two leases in the table are one file, and every hold is in exactly the lists of its lease and its owner.
 * It refuses to know files, policy, and why a hold comes or goes.
 */
#include "lease.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cleanup.h"
#include "fault.h"
#include "hash.h"

#define SLOT_NONE SIZE_MAX

/* Leases stand in numbered slots, so that a listing can be taken in pages of bounded work. */
typedef struct Slot {
        Lease *lease;
        size_t next_free; /* of a free slot */
} Slot;

struct LeaseTable {
        Table by_file;
        uint64_t newest;
        size_t count;
        size_t n_holds;
        size_t n_slots;
        size_t first_free;
        Slot *slots;
};

int lease_table_new(LeaseTable **ret)
{
        LeaseTable *table = calloc(1, sizeof(*table));

        if (!table)
                return FAULT(-ENOMEM);
        table->first_free = SLOT_NONE;
        *ret = table;
        return 0;
}

LeaseTable *lease_table_free(LeaseTable *table)
{
        if (table) {
                free(table->slots);
                table_done(&table->by_file);
        }
        free(table);
        return NULL;
}

static uint64_t now_usec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int reserve_slot(LeaseTable *table)
{
        size_t n = table->n_slots ? table->n_slots * 2 : 64;
        Slot *slots;

        if (table->first_free != SLOT_NONE)
                return 0;
        slots = reallocarray(table->slots, n, sizeof(*slots));
        if (!slots)
                return FAULT(-ENOMEM);
        for (size_t i = n; i-- > table->n_slots;) {
                slots[i] = (Slot){ .next_free = table->first_free };
                table->first_free = i;
        }
        table->slots = slots;
        table->n_slots = n;
        return 0;
}

int lease_new(LeaseTable *table, Lockfile *file, Lease **ret)
{
        _cleanup_free_ Lease *lease = malloc(sizeof(*lease));
        int r;

        if (!lease)
                return FAULT(-ENOMEM);
        r = reserve_slot(table);
        if (r < 0)
                return PASS(r);
        *lease = (Lease){ .table = table, .file = LOCKFILE_NONE };
        list_init(&lease->holds);
        if (file) {
                lease->file.id = file->id;
                if (!table_add(&table->by_file, &lease->by_file, hash_bytes(&file->id, sizeof(file->id))))
                        return FAULT(-ENOMEM);
                lease->in_table = true;
                lease->file = *file;
                file->fd = -1;
        }
        lease->id = ++table->newest;
        lease->since = now_usec();
        lease->slot = table->first_free;
        table->first_free = table->slots[lease->slot].next_free;
        table->slots[lease->slot].lease = lease;
        table->count += lease->in_table;
        *ret = TAKE_PTR(lease);
        return 0;
}

Lease *lease_free(Lease *lease)
{
        LeaseTable *table;

        if (!lease)
                return NULL;
        table = lease->table;
        if (lease->in_table)
                table_remove(&table->by_file, &lease->by_file);
        table->slots[lease->slot] = (Slot){ .next_free = table->first_free };
        table->first_free = lease->slot;
        table->count -= lease->in_table;
        free(lease->extra);
        free(lease);
        return NULL;
}

Lease *lease_find(const LeaseTable *table, const FileId *id)
{
        const uint32_t hash = hash_bytes(id, sizeof(*id));

        table_for_each(node, &table->by_file, hash)
                if (memcmp(&table_entry(node, Lease, by_file)->file.id, id, sizeof(*id)) == 0)
                        return table_entry(node, Lease, by_file);
        return NULL;
}

Lease *lease_next(const LeaseTable *table, size_t *cursor)
{
        for (; *cursor < table->n_slots; (*cursor)++)
                if (table->slots[*cursor].lease)
                        return table->slots[*cursor].lease;
        return NULL;
}

size_t lease_count(const LeaseTable *table)
{
        return table->count;
}

size_t lease_count_holds(const LeaseTable *table)
{
        return table->n_holds;
}

uint64_t lease_newest(const LeaseTable *table)
{
        return table->newest;
}

void lease_set_newest(LeaseTable *table, uint64_t newest)
{
        table->newest = newest;
}

int resource_new(Lockspace *lockspace, const char *name, Lease *lease, Resource **ret)
{
        size_t len = strlen(name), size = offsetof(Resource, name) + len + 1;
        Resource *resource = malloc(size > sizeof(*resource) ? size : sizeof(*resource)); /* the padding is for the name, too */

        if (!resource)
                return FAULT(-ENOMEM);
        *resource = (Resource){ .lockspace = lockspace, .lease = lease };
        memcpy(resource->name, name, len + 1);
        *ret = resource;
        return 0;
}

Resource *resource_free(Resource *resource)
{
        free(resource);
        return NULL;
}

int hold_new(Resource *resource, Owner *owner, Hold **ret)
{
        Hold *hold = malloc(sizeof(*hold));

        if (!hold)
                return FAULT(-ENOMEM);
        *hold = (Hold){
                .resource = resource,
                .owner = owner,
                .since = resource->lease->n_holds > 0 ? now_usec() : resource->lease->since, /* the first one: of this moment */
        };
        list_append(&resource->lease->holds, &hold->in_lease);
        list_append(&owner->holds, &hold->in_owner);
        resource->lease->table->n_holds++;
        resource->lease->n_holds++;
        resource->n_holds++;
        owner->n_holds++;
        *ret = hold;
        return 0;
}

Hold *hold_free(Hold *hold)
{
        if (!hold)
                return NULL;
        list_unlink(&hold->in_lease);
        list_unlink(&hold->in_owner);
        list_unlink(&hold->in_taken);
        hold->resource->lease->table->n_holds--;
        hold->resource->lease->n_holds--;
        hold->resource->n_holds--;
        hold->owner->n_holds--;
        free(hold->extra);
        free(hold);
        return NULL;
}

static bool matches(const Hold *hold, const Lease *lease, const Owner *owner, const Resource *resource, bool unconfirmed)
{
        return hold->resource->lease == lease && hold->owner == owner && (!resource || hold->resource == resource) &&
               (!unconfirmed || hold->unconfirmed);
}

Hold *hold_find(const Lease *lease, const Owner *owner, const Resource *resource, bool unconfirmed)
{
        /* The shorter list: a base image has thousands of holds, a VM has few. */
        if (lease->n_holds <= owner->n_holds) {
                list_for_each(node, &lease->holds)
                        if (matches(list_entry(node, Hold, in_lease), lease, owner, resource, unconfirmed))
                                return list_entry(node, Hold, in_lease);
        } else {
                list_for_each(node, &owner->holds)
                        if (matches(list_entry(node, Hold, in_owner), lease, owner, resource, unconfirmed))
                                return list_entry(node, Hold, in_owner);
        }
        return NULL;
}
