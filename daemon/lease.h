/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is locked now and for whom: leases, the names they go by, and the holds that owners have on them.
 *
 *      Resource (a name in a lockspace) --> Lease (one file, one lock, one mode) <-- Hold --> Owner
 *
 * A lease usually has one resource; it has more when one file was shared under several names. Every hold remembers the
 * resource under which it was acquired.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "list.h"
#include "lockfile.h"
#include "owner.h"
#include "table.h"

typedef struct Lease Lease;
typedef struct LeaseTable LeaseTable;
typedef struct Lockspace Lockspace;
typedef struct Resource Resource;

struct Resource {
        TableNode by_name; /* of its lockspace */
        Lockspace *lockspace;
        Lease *lease;
        uint32_t n_holds; /* under this name */
        bool in_table;
        char name[];
};

typedef struct Hold {
        Resource *resource;
        Owner *owner;
        ListNode in_lease;
        ListNode in_owner;
        ListNode in_taken;  /* by a connection that is not the owner's own and that is still open ... */
        uint64_t taker;     /* ... and has this number */
        uint64_t since;     /* microseconds since 1970 */
        bool unconfirmed;   /* its taker may never have learnt of it: the owner's next acquire of it is granted, once */
        char *extra;        /* what a newer lockd's state said beside; NULL: nothing */
} Hold;

struct Lease {
        TableNode by_file;
        LeaseTable *table;
        Lockfile file; /* fd -1: UNPROTECTED, not locked any more */
        uint64_t id;   /* growing, never used again */
        size_t slot;
        uint64_t since; /* microseconds since 1970 */
        bool autocreate;
        bool local;
        bool releasing;
        bool in_table;
        uint32_t n_holds;
        char *extra; /* as Hold.extra */
        ListNode holds; /* never empty outside acquire and release */
};

int lease_table_new(LeaseTable **ret);
/* All leases must be gone. */
LeaseTable *lease_table_free(LeaseTable *table);

/* A lease for a locked file, still without a name and a hold; it takes the fd over on success only. NULL file: one that
 * is not locked (UNPROTECTED), which nobody finds by its identity. */
int lease_new(LeaseTable *table, Lockfile *file, Lease **ret);
/* The holds must be gone and the file released. */
Lease *lease_free(Lease *lease);

Lease *lease_find(const LeaseTable *table, const FileId *id);

/* The lease in slot *cursor or the next one after it, with its slot in *cursor; NULL at the end. A slot keeps its lease
 * as long as that lives. */
Lease *lease_next(const LeaseTable *table, size_t *cursor);
/* Those that are locked: UNPROTECTED ones are not counted. */
size_t lease_count(const LeaseTable *table);
size_t lease_count_holds(const LeaseTable *table);
/* The id of the newest lease. */
uint64_t lease_newest(const LeaseTable *table);
void lease_set_newest(LeaseTable *table, uint64_t newest);

/* A name for a lease, not yet in a lockspace's table. */
int resource_new(Lockspace *lockspace, const char *name, Lease *lease, Resource **ret);
Resource *resource_free(Resource *resource);

/* The hold is in the lists of lease and owner. */
int hold_new(Resource *resource, Owner *owner, Hold **ret);
Hold *hold_free(Hold *hold);

/* A hold of owner on lease, of that name unless resource is NULL, unconfirmed if asked for; NULL: none. */
Hold *hold_find(const Lease *lease, const Owner *owner, const Resource *resource, bool unconfirmed);

static inline Hold *lease_first_hold(const Lease *lease)
{
        return list_empty(&lease->holds) ? NULL : list_entry(lease->holds.next, Hold, in_lease);
}
