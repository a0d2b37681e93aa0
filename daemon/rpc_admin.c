/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: an administrator takes a lock away by name only, and every such deed leaves one audit line. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "lockd_admin.h"
#include "log.h"
#include "rpc.h"
#include "snapshot.h"
#include "uuid.h"
#include "virtlock.h"

#define LIST_SLOTS_MAX 1024U         /* looked at for one answer */
#define LIST_BYTES_MAX (512U * 1024) /* about; a lease that is longer comes alone */
#define LIST_HOLDS_MAX 4096U         /* of one lease */


static bool equals(const lockd_bytes *bytes, const char *text)
{
        size_t len = strlen(text);

        return bytes->lockd_bytes_len == len && (len == 0 || memcmp(bytes->lockd_bytes_val, text, len) == 0);
}

/* A name, a uuid or a pid in text form. */
static bool is_owner(const Owner *owner, const lockd_bytes *text)
{
        char uuid[UUID_TEXT], pid[16];

        (void)snprintf(pid, sizeof(pid), "%u", owner->key.pid);
        return equals(text, owner->name) || equals(text, uuid_format(owner->key.uuid, uuid)) ||
               (owner->key.pid != 0 && equals(text, pid));
}

static bool hold_matches(const Hold *hold, const lockd_list_args *args)
{
        return (!args->lockspace || equals(args->lockspace, hold->resource->lockspace->path)) &&
               (!args->resource || equals(args->resource, hold->resource->name)) &&
               (!args->vm || is_owner(hold->owner, args->vm)) && (args->pid == 0 || hold->owner->key.pid == args->pid);
}

static bool lease_matches(const Lease *lease, const lockd_list_args *args)
{
        list_for_each(node, &lease->holds)
                if (hold_matches(list_entry(node, Hold, in_lease), args))
                        return true;
        return false;
}

static int call_list(RpcCall *call)
{
        const lockd_list_args *args = call->args;
        LeaseTable *leases = lockspace_leases(call->services->lockspaces);
        lockd_list_ret *ret = call->ret;
        size_t cursor = args->cursor, bytes = 0;
        uint64_t newest = args->newest ? args->newest : lease_newest(leases);
        const size_t end = cursor + LIST_SLOTS_MAX;
        Lease *lease;

        ret->newest = newest;
        ret->records.records_val = calloc(LIST_SLOTS_MAX, sizeof(lockd_record));
        if (!ret->records.records_val)
                return FAULT(-ENOMEM);
        for (; (lease = lease_next(leases, &cursor)) && cursor < end && bytes < LIST_BYTES_MAX; cursor++) {
                lockd_record *record = &ret->records.records_val[ret->records.records_len];
                int r;

                if (lease->id > newest || !lease_matches(lease, args))
                        continue;
                r = snapshot_lease(lease, LIST_HOLDS_MAX, record);
                if (r < 0)
                        return PASS(r);
                ret->records.records_len++;
                bytes += xdr_sizeof((xdrproc_t)xdr_lockd_record, record);
        }
        ret->cursor = lease ? cursor : 0;
        return 0;
}

static void list_done(void *value)
{
        lockd_list_ret *ret = value;

        for (u_int i = 0; i < ret->records.records_len; i++)
                snapshot_lease_done(&ret->records.records_val[i]);
        free(ret->records.records_val);
}

static int refuse(RpcCall *call, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int refuse(RpcCall *call, int code, const char *format, ...)
{
        char text[4096];
        va_list ap;

        va_start(ap, format);
        (void)vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        return rpc_refuse(call->error, code, VIRTLOCK_FROM_LOCKSPACE, "%s", text);
}

/* bytes as a C string of at most max bytes; NULL: longer, or with a NUL inside. To be freed. */
static char *c_string(const lockd_bytes *bytes, size_t max)
{
        if (bytes->lockd_bytes_len > max || (bytes->lockd_bytes_len && memchr(bytes->lockd_bytes_val, '\0', bytes->lockd_bytes_len)))
                return NULL;
        return strndup(bytes->lockd_bytes_len ? bytes->lockd_bytes_val : "", bytes->lockd_bytes_len);
}

/* The end of a kill: the owner is dead and its holds are gone, or it outlived KILL. */
static void killed(ReaperWait *wait, int result)
{
        Caller *caller = (Caller *)(void *)((char *)wait - offsetof(Caller, wait));
        static RpcError error;
        lockd_release_ret ret = { .released = (u_int)caller->waited_holds };

        if (result < 0) {
                (void)rpc_refuse(&error, VIRTLOCK_ERR_RESOURCE_BUSY, VIRTLOCK_FROM_LOCKSPACE, "%s",
                                 result == -EBUSY ? "its process has ended, but its connection is still open in another process: the "
                                                    "lock is freed when that closes it" :
                                                    "its owner was sent TERM and KILL and is not dead yet: it keeps its locks until it is");
                caller->answer_later(caller, &error, NULL);
        } else
                caller->answer_later(caller, NULL, &ret);
}

static int release_by_kill(RpcCall *call, Hold *hold)
{
        Owner *owner = hold->owner;
        int r;

        call->caller->wait.done = killed;
        call->caller->later = LOCKD_LATER_KILL;
        call->caller->waits_for = owner->number;
        call->caller->waited_holds = owner->n_holds;
        r = reaper_kill(call->services->reaper, owner, &call->caller->wait);
        if (r == REAPER_E_NOT_PROVED)
                return refuse(call, VIRTLOCK_ERR_OPERATION_DENIED,
                              "%s is not killed: no connection of its own ever showed that it is the process it was registered as",
                              owner_text(owner));
        if (r == REAPER_E_ENDED)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY,
                              "the process of %s has ended, but its connection is still open in another process: the lock is freed when "
                              "that closes it", owner_text(owner));
        if (r < 0)
                return PASS(r);
        log_audit("release --kill of '%s' in lockspace '%s': killing %s, which has %zu holds", log_name(hold->resource->name),
              log_name(hold->resource->lockspace->path), owner_text(owner), owner->n_holds);
        return RPC_E_LATER;
}

void rpc_admin_resume_kill(Caller *caller, Owner *owner)
{
        caller->wait.done = killed;
        if (owner)
                reaper_wait(owner, &caller->wait);
        else
                killed(&caller->wait, 0);
}

static int release_by_force(RpcCall *call, Hold *hold, const char *named)
{
        Owner *owner = hold->owner;
        char uuid[UUID_TEXT];
        bool living = !owner->dead && owner->pidfd >= 0;
        int r;

        if (strcmp(named, uuid_format(owner->key.uuid, uuid)) != 0)
                return refuse(call, VIRTLOCK_ERR_INVALID_ARG, "--force wants the VM named by its uuid: %s holds '%s'", owner_text(owner),
                              log_name(hold->resource->name));
        log_audit("release --force of '%s' in lockspace '%s' under %s%s", log_name(hold->resource->name),
              log_name(hold->resource->lockspace->path), owner_text(owner), living ? ", which lives and is UNPROTECTED now" : "");
        if (living) {
                r = lockspace_force_hold(call->services->lockspaces, hold);
                return PASS(r);
        }
        lockspace_release_hold(call->services->lockspaces, hold);
        reaper_drop_if_idle(call->services->reaper, owner);
        return 0;
}

/* No option: only what nobody alive can miss. */
static int release_safely(RpcCall *call, Hold *hold)
{
        Owner *owner = hold->owner;

        if (owner->id == OWNER_ID_LOST)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY,
                              "its owner was lost in an upgrade and may be alive: make sure that it is not, then use --force with the uuid");
        if (owner->pidfd >= 0 || owner->dead)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY,
                              owner->dead ? "the process of %s has ended, but its connection is still open in another process" :
                                            "%s is alive: stop it, or use --kill, or --force with its uuid",
                              owner_text(owner));
        log_audit("release of '%s' in lockspace '%s' of %s, which has no process", log_name(hold->resource->name),
              log_name(hold->resource->lockspace->path), owner_text(owner));
        lockspace_release_hold(call->services->lockspaces, hold);
        reaper_drop_if_idle(call->services->reaper, owner);
        return 0;
}

/* The hold of the owner that is named; several: the name fits more than one owner. */
static Hold *find_hold(const Resource *resource, const lockd_bytes *owner, bool *ret_several)
{
        Hold *found = NULL;

        *ret_several = false;
        list_for_each(node, &resource->lease->holds) {
                Hold *hold = list_entry(node, Hold, in_lease);

                if (hold->resource != resource || !is_owner(hold->owner, owner))
                        continue;
                if (found && found->owner != hold->owner)
                        *ret_several = true;
                found = hold;
        }
        return found;
}

static int release_named(RpcCall *call, const char *lockspace, const char *name, const char *named)
{
        const lockd_release_args *args = call->args;
        const Resource *resource = lockspace_find_resource(call->services->lockspaces, lockspace, name);
        lockd_release_ret *ret = call->ret;
        Hold *hold;
        bool several;

        if (!resource)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY, "Lockspace resource '%s' is not locked in lockspace '%s'", name, lockspace);
        hold = find_hold(resource, &args->owner, &several);
        if (several)
                return refuse(call, VIRTLOCK_ERR_INVALID_ARG, "'%s' names more than one owner of '%s': use the uuid", named, name);
        if (!hold) {
                (void)refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY, "Lockspace resource '%s' is not held by '%s': it is held", name, named);
                rpc_name_holder(call->error, resource->lease);
                return RPC_E_REFUSED;
        }
        /* A flush to a device that never answers leaves --force; the unlock reaches the flusher's copy, too. */
        if ((resource->lease->releasing || owner_is_gone(hold->owner)) && args->how != LOCKD_RELEASE_FORCE)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY, "Lockspace resource '%s' is being released already", name);
        ret->released = 1;
        switch (args->how) {
        case LOCKD_RELEASE_KILL:
                return PASS(release_by_kill(call, hold));
        case LOCKD_RELEASE_FORCE:
                return PASS(release_by_force(call, hold, named));
        case LOCKD_RELEASE_SAFE:
                return PASS(release_safely(call, hold));
        default:
                return refuse(call, VIRTLOCK_ERR_INVALID_ARG, "unknown way to release: %d", (int)args->how);
        }
}

static int call_release(RpcCall *call)
{
        const lockd_release_args *args = call->args;
        char *lockspace = c_string(&args->lockspace, LOCKSPACE_PATH_MAX);
        char *name = c_string(&args->resource, LOCKSPACE_PATH_MAX);
        char *owner = c_string(&args->owner, OWNER_NAME_MAX);
        int r;

        if (lockspace && name && owner)
                r = release_named(call, lockspace, name, owner);
        else
                r = refuse(call, VIRTLOCK_ERR_INVALID_ARG, "a name is too long or contains a NUL byte");
        free(lockspace);
        free(name);
        free(owner);
        return PASS(r);
}

static int call_upgrade(RpcCall *call)
{
        const char *why;
        int r = call->services->upgrade(call->services->userdata, &why);

        if (r == -EALREADY)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY, "an upgrade is under way already");
        if (r < 0)
                return rpc_refuse(call->error, VIRTLOCK_ERR_SYSTEM, VIRTLOCK_FROM_NONE, "no upgrade: the installed lockd %s; lockd goes on with all locks", why);
        log_audit("upgrade");
        call->caller->later = LOCKD_LATER_UPGRADE;
        return RPC_E_LATER;
}

static int call_give_back(RpcCall *call)
{
        const lockd_give_back_args *args = call->args;
        char *path = c_string(&args->path, LOCKSPACE_PATH_MAX);
        const char *why;
        int r;

        if (!path)
                return refuse(call, VIRTLOCK_ERR_INVALID_ARG, "the path is too long or contains a NUL byte");
        r = call->services->give_back(call->services->userdata, path, &why);
        if (r == 0) {
                log_audit("upgrade --to-virtlockd %s", log_name(path));
                call->caller->later = LOCKD_LATER_UPGRADE;
        }
        free(path);
        if (r == -EALREADY)
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY, "an upgrade is under way already");
        if (r < 0)
                return refuse(call, r == -EBUSY ? VIRTLOCK_ERR_RESOURCE_BUSY : VIRTLOCK_ERR_INTERNAL, "not given back to virtlockd: %s", why);
        return RPC_E_LATER;
}

static int call_stop(RpcCall *call)
{
        const lockd_stop_args *args = call->args;
        size_t n = lease_count(lockspace_leases(call->services->lockspaces));

        if (n > 0 && !(args->release_all && args->force))
                return refuse(call, VIRTLOCK_ERR_RESOURCE_BUSY,
                              "%zu leases are held and would be lost: see 'lockd-admin list'; 'stop --release-all --force' lets them go", n);
        log_audit("stop%s: %zu leases go", n > 0 ? " --release-all --force" : "", n);
        call->services->stop(call->services->userdata);
        return 0;
}

static const RpcProcedure procedures[] = {
        { .number = LOCKD_ADMIN_LIST, .name = "LIST", .args = (xdrproc_t)xdr_lockd_list_args, .args_size = sizeof(lockd_list_args),
          .ret = (xdrproc_t)xdr_lockd_list_ret, .ret_size = sizeof(lockd_list_ret), .call = call_list, .ret_done = list_done },
        { .number = LOCKD_ADMIN_RELEASE, .name = "RELEASE", .args = (xdrproc_t)xdr_lockd_release_args,
          .args_size = sizeof(lockd_release_args), .ret = (xdrproc_t)xdr_lockd_release_ret, .ret_size = sizeof(lockd_release_ret),
          .call = call_release },
        { .number = LOCKD_ADMIN_UPGRADE, .name = "UPGRADE", .call = call_upgrade },
        { .number = LOCKD_ADMIN_GIVEBACK, .name = "GIVEBACK", .args = (xdrproc_t)xdr_lockd_give_back_args,
          .args_size = sizeof(lockd_give_back_args), .call = call_give_back },
        { .number = LOCKD_ADMIN_STOP, .name = "STOP", .args = (xdrproc_t)xdr_lockd_stop_args, .args_size = sizeof(lockd_stop_args),
          .call = call_stop },
};

const RpcProgram rpc_admin_program = {
        .number = LOCKD_ADMIN_PROGRAM,
        .version = LOCKD_ADMIN_VERSION,
        .message_max = LOCKD_ADMIN_MESSAGE_MAX,
        .reply_max = LOCKD_ADMIN_REPLY_MAX,
        .procedures = procedures,
        .n_procedures = sizeof(procedures) / sizeof(procedures[0]),
};
