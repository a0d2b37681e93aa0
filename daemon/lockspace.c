/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: one file has at most one lease, an exclusive lease has one hold (more only if virtlockd had granted them:
 * CONFLICT), and a lease is locked in the kernel from before its first hold until after its last one.
 *
 * Acquire: is the name locked? Else look at the file: is it locked under another name? Else take it. All that can fail
 * comes before the first link. Release goes by the name alone; the file system is not asked which file that is.
 */
#include "lockspace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOG_SOURCE "lockspace"
#include "cleanup.h"
#include "fault.h"
#include "log.h"

#define TAKE_ATTEMPTS_MAX 100

struct LockspaceTable {
        Storage *storage;
        LeaseTable *leases;
        Lockspace *lockspaces;
        unsigned max_lockspaces, max_holds;
};

/* "//" and a trailing "/" make no difference. */
static void normalize(const char *path, char ret[LOCKSPACE_PATH_MAX + 1])
{
        size_t n = 0;

        for (; *path; path++)
                if (*path != '/' || n == 0 || ret[n - 1] != '/')
                        ret[n++] = *path;
        while (n > 1 && ret[n - 1] == '/')
                n--;
        ret[n] = '\0';
}

static Lockspace *find(const LockspaceTable *table, const char *path)
{
        char plain[LOCKSPACE_PATH_MAX + 1];
        Lockspace *lockspace;

        HASH_FIND_STR(table->lockspaces, path, lockspace);
        if (lockspace || strlen(path) > LOCKSPACE_PATH_MAX)
                return lockspace;
        normalize(path, plain);
        HASH_FIND_STR(table->lockspaces, plain, lockspace);
        return lockspace;
}

static int add(LockspaceTable *table, const char *path, Lockspace **ret)
{
        size_t len = strlen(path);
        Lockspace *lockspace = calloc(1, sizeof(*lockspace) + len + 1);

        if (!lockspace)
                return FAULT(-ENOMEM);
        lockspace->table = table;
        memcpy(lockspace->path, path, len + 1);
        HASH_ADD_KEYPTR(hh, table->lockspaces, lockspace->path, len, lockspace);
        if (!hash_added(lockspace)) {
                free(lockspace);
                return FAULT(-ENOMEM);
        }
        *ret = lockspace;
        return 0;
}

int lockspace_table_new(Storage *storage, LockspaceTable **ret)
{
        LockspaceTable *table = calloc(1, sizeof(*table));
        Lockspace *lockspace;
        int r;

        if (!table)
                return FAULT(-ENOMEM);
        table->storage = storage;
        table->max_lockspaces = table->max_holds = UINT32_MAX;
        r = lease_table_new(&table->leases);
        if (r == 0)
                r = add(table, "", &lockspace);
        if (r < 0) {
                lockspace_table_free(table);
                return PASS(r);
        }
        *ret = table;
        return 0;
}

LockspaceTable *lockspace_table_free(LockspaceTable *table)
{
        Lockspace *lockspace, *next;

        if (!table)
                return NULL;
        HASH_ITER(hh, table->lockspaces, lockspace, next) {
                HASH_DEL(table->lockspaces, lockspace);
                table_done(&lockspace->resources);
                free(lockspace->require_mount);
                free(lockspace->extra);
                free(lockspace);
        }
        lease_table_free(table->leases);
        free(table);
        return NULL;
}

LeaseTable *lockspace_leases(const LockspaceTable *table)
{
        return table->leases;
}

void lockspace_set_limits(LockspaceTable *table, unsigned max_lockspaces, unsigned max_holds)
{
        table->max_lockspaces = max_lockspaces;
        table->max_holds = max_holds;
}

static bool is_absent(const LockspaceTable *table, Lockspace *lockspace)
{
        unsigned long long generation = storage_generation(table->storage);

        if (*lockspace->path && lockspace->looked != generation) {
                lockspace->absent = storage_missing_mount(table->storage, lockspace->path, lockspace->require_mount) != NULL;
                lockspace->looked = generation;
        }
        return lockspace->absent;
}

int lockspace_create(LockspaceTable *table, const char *path, bool fresh, int *ret_made)
{
        char plain[LOCKSPACE_PATH_MAX + 1];
        Lockspace *lockspace = find(table, path);

        *ret_made = 0;
        if (lockspace && fresh)
                return LOCKSPACE_E_EXISTS;
        if (lockspace && !*lockspace->path)
                return 0;
        if (*path != '/' || strlen(path) > LOCKSPACE_PATH_MAX)
                return LOCKSPACE_E_PATH;
        if (!lockspace && HASH_COUNT(table->lockspaces) > table->max_lockspaces) /* the default one is not counted */
                return LOCKSPACE_E_MANY_LOCKSPACES;
        normalize(path, plain);
        /* Also of a lockspace that is known: its mount may have come, or its directory gone, since. */
        if (!storage_missing_mount(table->storage, plain, lockspace ? lockspace->require_mount : NULL) &&
            storage_is_local(table->storage, plain))
                *ret_made = storage_make_directory(table->storage, plain);
        if (*ret_made == STORAGE_E_NOT_DIRECTORY)
                return LOCKSPACE_E_NOT_DIRECTORY;
        return lockspace ? 0 : PASS(add(table, plain, &lockspace));
}

void lockspace_forget_mounts(LockspaceTable *table)
{
        for (Lockspace *lockspace = table->lockspaces; lockspace; lockspace = lockspace->hh.next) {
                free(TAKE_PTR(lockspace->require_mount));
                lockspace->looked = 0;
        }
}

int lockspace_require_mount(LockspaceTable *table, const char *path, const char *mount)
{
        Lockspace *lockspace = find(table, path);
        char plain[LOCKSPACE_PATH_MAX + 1], *copy = NULL;
        int r;

        if (strlen(path) > LOCKSPACE_PATH_MAX)
                return FAULT(-ENAMETOOLONG);
        if (mount && !(copy = strdup(mount)))
                return FAULT(-ENOMEM);
        if (!lockspace) {
                normalize(path, plain);
                r = add(table, plain, &lockspace);
                if (r < 0) {
                        free(copy);
                        return PASS(r);
                }
        }
        free(lockspace->require_mount);
        lockspace->require_mount = copy;
        lockspace->looked = 0;
        return 0;
}

int lockspace_restore(LockspaceTable *table, const char *path, const char *extra)
{
        Lockspace *lockspace = find(table, path);
        int r = 0;

        if (strlen(path) > LOCKSPACE_PATH_MAX)
                return FAULT(-EINVAL);
        if (!lockspace)
                r = add(table, path, &lockspace);
        if (r == 0 && extra && !(lockspace->extra = strdup(extra)))
                r = FAULT(-ENOMEM);
        return PASS(r);
}

const Lockspace *lockspace_next(const LockspaceTable *table, const Lockspace *previous)
{
        return previous ? previous->hh.next : table->lockspaces;
}

static bool is_name(const Lockspace *lockspace, const char *name)
{
        size_t len = strlen(name);

        if (!*lockspace->path)
                return *name == '/' && len <= LOCKSPACE_PATH_MAX;
        return len > 0 && len <= LOCKSPACE_NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

#define RESOURCE_PATH_SIZE (LOCKSPACE_PATH_MAX + LOCKSPACE_NAME_MAX + 2)

static void resource_path(const Lockspace *lockspace, const char *name, char buf[RESOURCE_PATH_SIZE])
{
        char *end = stpcpy(buf, lockspace->path);

        if (end > buf && end[-1] != '/')
                *end++ = '/';
        end = mempcpy(end, name, strnlen(name, (size_t)(buf + RESOURCE_PATH_SIZE - 1 - end)));
        *end = '\0';
}

static Resource *find_resource(const Lockspace *lockspace, const char *name)
{
        const uint32_t hash = hash_bytes(name, strlen(name));

        table_for_each(node, &lockspace->resources, hash)
                if (strcmp(table_entry(node, Resource, by_name)->name, name) == 0)
                        return table_entry(node, Resource, by_name);
        return NULL;
}

/* What acquire, create and delete check first. */
static int find_name(LockspaceTable *table, const char *path, const char *name, Lockspace **ret, Resource **ret_resource,
                     LockspaceRefusal *refusal)
{
        Lockspace *lockspace = find(table, path);

        refusal->lease = NULL;
        refusal->pid = 0;
        refusal->step = LOCKFILE_OPEN;
        refusal->path[0] = '\0';
        if (!lockspace)
                return LOCKSPACE_E_UNKNOWN;
        if (!is_name(lockspace, name))
                return LOCKSPACE_E_NAME;
        resource_path(lockspace, name, refusal->path);
        *ret = lockspace;
        *ret_resource = find_resource(lockspace, name);
        if (!*ret_resource && is_absent(table, lockspace)) {
                refusal->mount = storage_missing_mount(table->storage, lockspace->path, lockspace->require_mount);
                return LOCKSPACE_E_ABSENT;
        }
        return 0;
}

const Resource *lockspace_find_resource(LockspaceTable *table, const char *lockspace, const char *resource)
{
        Lockspace *found = find(table, lockspace);

        return found ? find_resource(found, resource) : NULL;
}

static void drop_resource(Resource *resource)
{
        if (resource->in_table)
                table_remove(&resource->lockspace->resources, &resource->by_name);
        resource_free(resource);
}

static void note_taker(Hold *hold, const AcquireRequest *request)
{
        if (!request->taken)
                return;
        list_unlink(&hold->in_taken);
        list_append(request->taken, &hold->in_taken);
        hold->taker = request->taker;
}

static int add_resource(Lockspace *lockspace, const char *name, Lease *lease, Resource **ret)
{
        Resource *resource;
        int r;

        r = resource_new(lockspace, name, lease, &resource);
        if (r < 0)
                return PASS(r);
        if (!table_add(&lockspace->resources, &resource->by_name, hash_bytes(name, strlen(name)))) {
                resource_free(resource);
                return FAULT(-ENOMEM);
        }
        resource->in_table = true;
        *ret = resource;
        return 0;
}

int lockspace_restore_hold(LockspaceTable *table, Lease *lease, const char *path, const char *name, Owner *owner, Hold **ret)
{
        Lockspace *lockspace = find(table, path);
        Resource *resource, *fresh = NULL;
        int r;

        if (!lockspace)
                return FAULT(-EINVAL);
        resource = find_resource(lockspace, name);
        if (lease->file.fd < 0) /* UNPROTECTED: nobody finds it by its name */
                r = resource_new(lockspace, name, lease, &fresh);
        else if (resource)
                r = resource->lease == lease ? 0 : FAULT(-EINVAL);
        else
                r = add_resource(lockspace, name, lease, &fresh);
        if (r < 0)
                return PASS(r);
        r = hold_new(fresh ? fresh : resource, owner, ret);
        if (r < 0 && fresh)
                drop_resource(fresh);
        if (r == 0 && lease->file.fd < 0)
                owner->unprotected++;
        return PASS(r);
}

/* Adds a hold on lease under name. resource: that name, when it is known already. On a fault nothing has changed. */
static int link_hold(Lockspace *lockspace, const char *name, Resource *resource, Lease *lease, const AcquireRequest *request)
{
        Resource *fresh = NULL;
        Hold *hold;
        int r;

        if (!resource) {
                r = add_resource(lockspace, name, lease, &fresh);
                if (r < 0)
                        return PASS(r);
                resource = fresh;
        }
        r = hold_new(resource, request->owner, &hold);
        if (r < 0) {
                if (fresh)
                        drop_resource(fresh);
                return PASS(r);
        }
        note_taker(hold, request);
        return 0;
}

/* What a verdict of lockfile means here. */
static int verdict(int r)
{
        switch (r) {
        case LOCKFILE_E_KIND:
                return LOCKSPACE_E_KIND;
        case LOCKFILE_E_BUSY:
                return LOCKSPACE_E_BUSY;
        case LOCKFILE_E_STALE:
                return LOCKSPACE_E_UNSTABLE;
        default:
                return PASS(r);
        }
}

static bool is_full(const LockspaceTable *table)
{
        return lease_count_holds(table->leases) >= table->max_holds;
}

/* The file is locked already, by us. */
static int join(Lockspace *lockspace, Resource *resource, Lease *lease, const AcquireRequest *request, LockspaceRefusal *refusal)
{
        Hold *hold;
        int r;

        refusal->lease = lease;
        if (lease->releasing || lease->file.shared != request->shared)
                return LOCKSPACE_E_BUSY;
        hold = resource ? hold_find(lease, request->owner, resource, true) : NULL;
        if (hold) {
                hold->unconfirmed = false;
                note_taker(hold, request);
                return 0;
        }
        hold = hold_find(lease, request->owner, NULL, true);
        if (hold) {
                /* It was taken under another name of the file: it moves to the one by which it will be released. */
                r = link_hold(lockspace, request->resource, resource, lease, request);
                if (r == 0)
                        lockspace_release_hold(lockspace->table, hold);
                return PASS(r);
        }
        if (!lease->file.shared)
                return LOCKSPACE_E_BUSY;
        if (is_full(lockspace->table))
                return LOCKSPACE_E_MANY_HOLDS;
        return PASS(link_hold(lockspace, request->resource, resource, lease, request));
}

/* The file is locked by nobody that we know. */
static int take(LockspaceTable *table, Lockspace *lockspace, StorageFile *file, const AcquireRequest *request,
                LockspaceRefusal *refusal)
{
        Lockfile locked = LOCKFILE_NONE;
        Lease *lease;
        int r;

        if (is_full(table))
                return LOCKSPACE_E_MANY_HOLDS;
        r = storage_take(file, request->shared, &locked, &refusal->pid, &refusal->step);
        if (r != 0)
                return verdict(r);
        r = lease_new(table->leases, &locked, &lease);
        if (r == 0) {
                lease->autocreate = request->autocreate;
                lease->local = file->local;
                r = link_hold(lockspace, request->resource, NULL, lease, request);
                if (r == 0)
                        return 0;
                locked = lease->file;
                lease_free(lease);
        }
        (void)storage_release(table->storage, refusal->path, request->autocreate && file->local, &locked);
        return PASS(r);
}

/* resource: the name is known, and shared. */
static int look_and_take(LockspaceTable *table, Lockspace *lockspace, Resource *resource, const AcquireRequest *request,
                         LockspaceRefusal *refusal)
{
        const bool create = request->autocreate && !resource && !is_full(table);
        StorageFile file;
        Lease *lease;
        int r;

        r = storage_look(table->storage, refusal->path, !*lockspace->path, create, &file, &refusal->step);
        lease = r == 0 ? lease_find(table->leases, &file.look.id) : NULL;
        if (r == -ENOENT && request->autocreate && is_full(table))
                r = LOCKSPACE_E_MANY_HOLDS; /* and no file is left behind */
        else if (r != 0)
                r = verdict(r);
        else if (resource && resource->lease != lease) {
                /* The file was replaced under a name that is shared: one name cannot be two files. */
                refusal->lease = resource->lease;
                r = LOCKSPACE_E_BUSY;
        } else if (lease)
                r = join(lockspace, resource, lease, request, refusal);
        else
                r = take(table, lockspace, &file, request, refusal);
        storage_done(&file);
        return PASS(r);
}

/* The owner has it again: no longer unprotected. */
static void forget_unprotected(const Resource *resource, Owner *owner)
{
        if (!resource)
                return;
        list_for_each_safe(node, &owner->holds) {
                Hold *hold = list_entry(node, Hold, in_owner);

                if (hold->resource->lease->file.fd < 0 && hold->resource->lockspace == resource->lockspace &&
                    strcmp(hold->resource->name, resource->name) == 0)
                        lockspace_release_hold(resource->lockspace->table, hold);
        }
}

/* Ends holds of owners that are dead by both signs, but whose turn has not come yet: who asks right after a VM's death
 * is not refused for it. True: the lease may be another one now. */
static bool drop_gone(LockspaceTable *table, const Lease *lease)
{
        bool last = false, dropped = false;

        while (!last) {
                Hold *hold = lease_first_hold(lease);

                if (lease->releasing || hold->owner->own_peers > 0 || !owner_has_ended(hold->owner) || lockspace_wants_flush(hold))
                        break;
                last = lease->n_holds == 1;
                lockspace_release_hold(table, hold);
                dropped = true;
        }
        return dropped;
}

static int attempt(LockspaceTable *table, const AcquireRequest *request, LockspaceRefusal *refusal)
{
        Lockspace *lockspace;
        Resource *resource;
        int r;

        r = find_name(table, request->lockspace, request->resource, &lockspace, &resource, refusal);
        if (r != 0)
                return r;
        if (request->owner->dead)
                return LOCKSPACE_E_OWNER_DEAD;
        /* A shared name is looked at again: the file behind it may have been replaced. */
        if (resource && (!request->shared || !resource->lease->file.shared))
                r = join(lockspace, resource, resource->lease, request, refusal);
        else
                r = look_and_take(table, lockspace, resource, request, refusal);
        if (r == LOCKSPACE_E_BUSY && refusal->lease && drop_gone(table, refusal->lease))
                return LOCKSPACE_E_UNSTABLE;
        if (r == 0 && request->owner->unprotected > 0)
                forget_unprotected(find_resource(lockspace, request->resource), request->owner);
        return PASS(r);
}

int lockspace_acquire(LockspaceTable *table, const AcquireRequest *request, LockspaceRefusal *refusal)
{
        int r = LOCKSPACE_E_UNSTABLE;

        for (int i = 0; r == LOCKSPACE_E_UNSTABLE && i < TAKE_ATTEMPTS_MAX; i++)
                r = attempt(table, request, refusal);
        return PASS(r);
}

void lockspace_release_hold(LockspaceTable *table, Hold *hold)
{
        char path[RESOURCE_PATH_SIZE];
        Resource *resource = hold->resource;
        Lease *lease = resource->lease;
        int r;

        if (lease->file.fd < 0)
                hold->owner->unprotected--;
        hold_free(hold);
        if (lease->n_holds == 0 && lease->file.fd >= 0) {
                lease->releasing = true;
                resource_path(resource->lockspace, resource->name, path);
                r = storage_release(table->storage, path, lease->autocreate && lease->local, &lease->file);
                if (r < 0)
                        log_warning("%s: not removed: %s (%s)", log_name(path), strerror(-r), fault_trail());
        }
        if (resource->n_holds == 0)
                drop_resource(resource);
        if (lease->n_holds == 0)
                lease_free(lease);
}

bool lockspace_wants_flush(const Hold *hold)
{
        const Lease *lease = hold->resource->lease;

        return lease->file.id.block && lease->file.fd >= 0 && lease->n_holds == 1 && !lease->releasing;
}

int lockspace_start_flush(Hold *hold, pid_t *ret_flusher, int *ret_pidfd)
{
        int r = storage_start_flush(&hold->resource->lease->file, ret_flusher, ret_pidfd);

        if (r == 0)
                hold->resource->lease->releasing = true;
        return PASS(r);
}

int lockspace_release(LockspaceTable *table, const char *lockspace, const char *name, const Owner *owner,
                      LockspaceRefusal *refusal)
{
        Lockspace *found = find(table, lockspace);
        Resource *resource;
        Hold *hold;

        if (!found)
                return LOCKSPACE_E_UNKNOWN;
        resource = find_resource(found, name);
        if (!resource || resource->lease->releasing)
                return LOCKSPACE_E_NOT_LOCKED;
        hold = hold_find(resource->lease, owner, resource, false);
        if (!hold) {
                refusal->lease = resource->lease;
                return LOCKSPACE_E_NOT_OWNER;
        }
        lockspace_release_hold(table, hold);
        return 0;
}

int lockspace_force_hold(LockspaceTable *table, Hold *hold)
{
        Owner *owner = hold->owner;
        Resource *resource;
        Lease *unprotected;
        Hold *mark;
        int r;

        r = lease_new(table->leases, NULL, &unprotected);
        if (r < 0)
                return PASS(r);
        r = resource_new(hold->resource->lockspace, hold->resource->name, unprotected, &resource);
        if (r == 0) {
                r = hold_new(resource, owner, &mark);
                if (r < 0)
                        resource_free(resource);
        }
        if (r < 0) {
                lease_free(unprotected);
                return PASS(r);
        }
        unprotected->file.shared = hold->resource->lease->file.shared;
        unprotected->file.id = hold->resource->lease->file.id;
        owner->unprotected++;
        lockspace_release_hold(table, hold);
        return 0;
}

int lockspace_create_resource(LockspaceTable *table, const char *path, const char *name, LockspaceRefusal *refusal)
{
        Lockspace *lockspace;
        Resource *resource;
        StorageFile file;
        int r;

        r = find_name(table, path, name, &lockspace, &resource, refusal);
        if (r != 0)
                return r;
        if (!resource) {
                r = storage_look(table->storage, refusal->path, !*lockspace->path, true, &file, &refusal->step);
                if (r == 0)
                        refusal->lease = lease_find(table->leases, &file.look.id);
                storage_done(&file);
                if (r != 0)
                        return verdict(r);
        } else
                refusal->lease = resource->lease;
        return refusal->lease ? LOCKSPACE_E_BUSY : 0;
}

int lockspace_delete_resource(LockspaceTable *table, const char *path, const char *name, LockspaceRefusal *refusal)
{
        Lockfile locked = LOCKFILE_NONE;
        Lockspace *lockspace;
        Resource *resource;
        StorageFile file;
        int r;

        r = find_name(table, path, name, &lockspace, &resource, refusal);
        if (r != 0)
                return r;
        if (resource) {
                refusal->lease = resource->lease;
                return LOCKSPACE_E_BUSY;
        }
        r = storage_look(table->storage, refusal->path, false, false, &file, &refusal->step);
        if (r == -ENOENT) {
                storage_done(&file);
                return 0;
        }
        if (r != 0)
                r = verdict(r);
        else if (!file.local)
                r = LOCKSPACE_E_FOREIGN;
        else if ((refusal->lease = lease_find(table->leases, &file.look.id)))
                r = LOCKSPACE_E_BUSY;
        else
                r = verdict(storage_take(&file, false, &locked, &refusal->pid, &refusal->step));
        storage_done(&file);
        if (r != 0)
                return PASS(r);
        refusal->step = LOCKFILE_UNLINK;
        r = storage_release(table->storage, refusal->path, true, &locked);
        return r == LOCKFILE_E_KEPT ? LOCKSPACE_E_NOT_OURS : PASS(r);
}
