/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may hold what: lockspaces and the policy of acquire and release. Knows nothing of XDR, events, JSON or processes.
 *
 * Names are C strings of any bytes. The default lockspace is "", its resources are absolute paths of images; any other
 * lockspace is the absolute path of a directory, its resources are files in it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lease.h"
#include "storage.h"

#define LOCKSPACE_PATH_MAX 4095
#define LOCKSPACE_NAME_MAX 255

typedef struct LockspaceTable LockspaceTable;

struct Lockspace {
        UT_hash_handle hh;
        LockspaceTable *table;
        Table resources;               /* locked names */
        char *require_mount;           /* NULL: none configured */
        unsigned long long looked;     /* storage generation at which absent was found */
        char *extra;                   /* as Hold.extra */
        bool absent;                   /* a file system belongs here and is not mounted */
        char path[];
};

enum {
        LOCKSPACE_E_UNKNOWN = 1,   /* no such lockspace */
        LOCKSPACE_E_EXISTS,        /* it exists, and was to be new */
        LOCKSPACE_E_PATH,          /* not an absolute path, or too long */
        LOCKSPACE_E_NAME,          /* not a name of a lease, or too long */
        LOCKSPACE_E_NOT_DIRECTORY,
        LOCKSPACE_E_ABSENT,        /* the mount is missing: refusal.mount */
        LOCKSPACE_E_BUSY,          /* held: refusal.lease, or by somebody outside: refusal.pid */
        LOCKSPACE_E_KIND,          /* neither a regular file nor a block device */
        LOCKSPACE_E_UNSTABLE,      /* the file is replaced again and again */
        LOCKSPACE_E_OWNER_DEAD,    /* the owner's process has ended */
        LOCKSPACE_E_NOT_LOCKED,
        LOCKSPACE_E_NOT_OWNER,     /* locked by others, not by this owner: refusal.lease */
        LOCKSPACE_E_NOT_OURS,      /* the file has content that is not a lease's: not deleted */
        LOCKSPACE_E_FOREIGN,       /* not on this kind of file system: refusal.path */
        LOCKSPACE_E_MANY_LOCKSPACES, /* max_lockspaces are there */
        LOCKSPACE_E_MANY_HOLDS,    /* max_holds are there */
};

/* What a message needs beyond the verdict. With a fault, path and step say where it was born. */
typedef struct LockspaceRefusal {
        const Lease *lease;
        const char *mount;
        pid_t pid; /* 0: not known */
        LockfileStep step;
        char path[LOCKSPACE_PATH_MAX + LOCKSPACE_NAME_MAX + 2];
} LockspaceRefusal;

/* Owns the table of leases too; storage stays the caller's. */
int lockspace_table_new(Storage *storage, LockspaceTable **ret);
/* All leases must be gone. */
LockspaceTable *lockspace_table_free(LockspaceTable *table);
LeaseTable *lockspace_leases(const LockspaceTable *table);

/* What clients may have lockd keep. What is there already stays. */
void lockspace_set_limits(LockspaceTable *table, unsigned max_lockspaces, unsigned max_holds);

/* Finds or makes a lockspace, and its directory where the file system is local. A directory that cannot be made is
 * reported (ret_made, -errno) and does not fail the call. fresh: LOCKSPACE_E_EXISTS when it is there.
 * 0, LOCKSPACE_E_PATH, _EXISTS, _NOT_DIRECTORY, _MANY_LOCKSPACES, or -errno. */
int lockspace_create(LockspaceTable *table, const char *path, bool fresh, int *ret_made);

/* Forgets what lockspace_require_mount() said, for a new configuration. */
void lockspace_forget_mounts(LockspaceTable *table);

/* A configured lockspace needs this mount; NULL: none. */
int lockspace_require_mount(LockspaceTable *table, const char *path, const char *mount);

/* After a restart: a lockspace, without touching its directory; a hold on a lease, without touching its file. */
int lockspace_restore(LockspaceTable *table, const char *path, const char *extra);
int lockspace_restore_hold(LockspaceTable *table, Lease *lease, const char *lockspace, const char *resource, Owner *owner,
                           Hold **ret);

/* The lockspace behind previous (NULL: the first one) or NULL. */
const Lockspace *lockspace_next(const LockspaceTable *table, const Lockspace *previous);

typedef struct AcquireRequest {
        const char *lockspace;
        const char *resource;
        Owner *owner;
        bool shared;
        bool autocreate;
        ListNode *taken; /* where the connection that asks keeps its holds; NULL: it is the owner's own */
        uint64_t taker;  /* the number of that connection */
} AcquireRequest;

/* 0 (granted), LOCKSPACE_E_*, or -errno. */
int lockspace_acquire(LockspaceTable *table, const AcquireRequest *request, LockspaceRefusal *refusal);

/* Ends one hold of owner under this name. */
int lockspace_release(LockspaceTable *table, const char *lockspace, const char *resource, const Owner *owner,
                      LockspaceRefusal *refusal);

/* Ends a hold; the lease goes with its last one. */
void lockspace_release_hold(LockspaceTable *table, Hold *hold);

/* A block device that only this hold keeps: what its dead writer left in the cache goes to the device before it is free.
 * start_flush does that in a process of its own (0 or -errno; the caller reaps flusher and owns pidfd) and the lease is
 * RELEASING from then on. */
bool lockspace_wants_flush(const Hold *hold);
int lockspace_start_flush(Hold *hold, pid_t *ret_flusher, int *ret_pidfd);

/* Ends a hold under its living owner; the owner stays listed with it, UNPROTECTED. -ENOMEM: nothing has changed. */
int lockspace_force_hold(LockspaceTable *table, Hold *hold);

/* The locked resource, or NULL. */
const Resource *lockspace_find_resource(LockspaceTable *table, const char *lockspace, const char *resource);

/* Creates, or removes, the file of a resource that is not locked. */
int lockspace_create_resource(LockspaceTable *table, const char *lockspace, const char *resource, LockspaceRefusal *refusal);
int lockspace_delete_resource(LockspaceTable *table, const char *lockspace, const char *resource, LockspaceRefusal *refusal);
