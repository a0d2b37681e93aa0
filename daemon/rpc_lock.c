/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: virtlockd's eight procedures with virtlockd's error codes and domains; messages begin as virtlockd's do and
 * go on with who holds the lock and what to do.
 */
#include <errno.h>
#include <string.h>

#define LOG_SOURCE "rpc"
#include "fault.h"
#include "frame.h"
#include "log.h"
#include "rpc.h"
#include "virtlock.h"

/* The strings of the arguments, decoded in place: calls are decoded one at a time. */
typedef struct Names {
        char path[VIRTLOCK_STRING_MAX + 1];
        char name[VIRTLOCK_STRING_MAX + 1];
} Names;

static Names names;

static void register_room(void *args)
{
        ((virtlock_register *)args)->name.virtlock_string_val = names.name;
}

static void new_room(void *args)
{
        ((virtlock_new *)args)->path.virtlock_string_val = names.path;
}

static void create_lockspace_room(void *args)
{
        ((virtlock_create_lockspace *)args)->path.virtlock_string_val = names.path;
}

static void resource_room(void *args)
{
        ((virtlock_resource *)args)->path.virtlock_string_val = names.path;
        ((virtlock_resource *)args)->name.virtlock_string_val = names.name;
}

/* Makes a C string of one that was decoded in place. */
static int end_string(RpcCall *call, const virtlock_string *string)
{
        string->virtlock_string_val[string->virtlock_string_len] = '\0';
        if (strlen(string->virtlock_string_val) != string->virtlock_string_len)
                return rpc_refuse(call->error, VIRTLOCK_ERR_RPC, VIRTLOCK_FROM_RPC,
                                  "Unable to decode message payload: a name contains a NUL byte");
        return 0;
}

static int end_names(RpcCall *call)
{
        const virtlock_resource *args = call->args;
        int r = end_string(call, &args->path);

        return r != 0 ? r : end_string(call, &args->name);
}

static int refuse_busy(RpcCall *call, const LockspaceRefusal *refusal)
{
        RpcError *error = call->error;

        (void)rpc_refuse(error, VIRTLOCK_ERR_RESOURCE_BUSY, VIRTLOCK_FROM_LOCKSPACE, "Lockspace resource '%s' is locked", names.name);
        if (refusal->lease) {
                const Resource *resource = lease_first_hold(refusal->lease)->resource;

                rpc_name_holder(error, refusal->lease);
                if (strcmp(resource->name, names.name) != 0 && strlen(error->detail) + strlen(resource->name) + 32 < RPC_DETAIL_MAX)
                        (void)strcat(strcat(error->detail, " under the name "), resource->name);
        } else if (refusal->pid > 0)
                (void)sprintf(error->detail + strlen(error->detail), " by process %d, outside lockd", (int)refusal->pid);
        else
                (void)strcat(error->detail, " by a process outside this lockd: another host, or another program");
        return RPC_E_REFUSED;
}

/* The errno that a name that is none would have met in the kernel, as far as there is one. */
static int name_errno(void)
{
        if (strlen(names.name) > (*names.path ? LOCKSPACE_NAME_MAX : LOCKSPACE_PATH_MAX))
                return ENAMETOOLONG;
        return *names.path ? EINVAL : ENOENT;
}

/* The answer for every verdict of lockspace, and for faults of file operations, which libvirt wants to see with their
 * errno. doing: "open resource", with stock's words. */
static int refuse(RpcCall *call, int r, const LockspaceRefusal *refusal, const char *doing)
{
        static const char *const steps[] = {
                [LOCKFILE_OPEN] = NULL,
                [LOCKFILE_STATUS] = "Unable to check status of",
                [LOCKFILE_LOCK] = "Unable to acquire lock on",
                [LOCKFILE_UNLINK] = "Unable to delete lockspace resource",
        };
        RpcError *error = call->error;
        const int internal = VIRTLOCK_ERR_INTERNAL, lockspace = VIRTLOCK_FROM_LOCKSPACE;

        if (r < 0)
                return rpc_refuse_errno(error, lockspace, -r, "%s %s", steps[refusal->step] ? steps[refusal->step] : doing,
                                        *refusal->path ? refusal->path : names.name);
        switch (r) {
        case LOCKSPACE_E_UNKNOWN:
                return rpc_refuse(error, internal, VIRTLOCK_FROM_RPC, "Lockspace for path %.4096s does not exist", names.path);
        case LOCKSPACE_E_EXISTS:
                return rpc_refuse(error, internal, VIRTLOCK_FROM_RPC, "Lockspace for path %.4096s already exists", names.path);
        case LOCKSPACE_E_PATH:
                return rpc_refuse(error, internal, lockspace, "Lockspace path '%.4096s' is not an absolute path of at most %d bytes",
                                  names.path, LOCKSPACE_PATH_MAX);
        case LOCKSPACE_E_NAME:
                return rpc_refuse_errno(error, lockspace, name_errno(), "%s %.4096s, which is not %s", doing, names.name,
                                        *names.path ? "a lease name (1 to 255 bytes, without '/')" :
                                                      "an absolute path of at most 4095 bytes");
        case LOCKSPACE_E_NOT_DIRECTORY:
                return rpc_refuse(error, internal, lockspace, "Lockspace location %.4096s exists, but is not a directory", names.path);
        case LOCKSPACE_E_ABSENT:
                return rpc_refuse(error, internal, lockspace,
                                  "Lockspace %.4096s is absent: the file system that belongs at %.4096s is not mounted", names.path,
                                  refusal->mount);
        case LOCKSPACE_E_BUSY:
                return refuse_busy(call, refusal);
        case LOCKSPACE_E_KIND:
                return rpc_refuse_errno(error, lockspace, EINVAL, "%s %s, which is neither a regular file nor a block device", doing,
                                        refusal->path);
        case LOCKSPACE_E_UNSTABLE:
                return rpc_refuse(error, internal, lockspace, "Lockspace resource '%.4096s' is replaced again and again", names.name);
        case LOCKSPACE_E_OWNER_DEAD:
                return rpc_refuse(error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC, "the process of the lock owner, %s, has ended",
                                  owner_text(call->caller->owner));
        case LOCKSPACE_E_NOT_LOCKED:
                return rpc_refuse(error, VIRTLOCK_ERR_RESOURCE_BUSY, lockspace, "Lockspace resource '%.4096s' is not locked", names.name);
        case LOCKSPACE_E_NOT_OWNER:
                (void)rpc_refuse(error, internal, lockspace, "owner %u does not hold the resource lock: it is held",
                                 call->caller->owner->key.pid);
                rpc_name_holder(error, refusal->lease);
                return RPC_E_REFUSED;
        case LOCKSPACE_E_NOT_OURS:
                return rpc_refuse(error, VIRTLOCK_ERR_OPERATION_DENIED, lockspace,
                                  "%s is not deleted: it has content that is not a lease's, or several links", refusal->path);
        case LOCKSPACE_E_FOREIGN:
                return rpc_refuse(error, VIRTLOCK_ERR_OPERATION_DENIED, lockspace,
                                  "%s is not deleted: its file system (%s) is not known to be local", refusal->path,
                                  storage_describe(call->services->storage, refusal->path));
        case LOCKSPACE_E_MANY_LOCKSPACES:
                return rpc_refuse(error, internal, lockspace, "there are too many lockspaces: raise max_lockspaces in lockd.conf");
        case LOCKSPACE_E_MANY_HOLDS:
                return rpc_refuse(error, internal, lockspace, "there are too many locks: raise max_holds in lockd.conf");
        default:
                return FAULT(-EPROTO);
        }
}

static int refuse_owner(RpcCall *call, int r, const virtlock_register *args)
{
        static const char *const reasons[] = {
                [OWNER_E_GONE] = "there is no such process, or it has ended",
                [OWNER_E_FORBIDDEN] = "that is pid 1, the lock daemon itself or a thread, which cannot be a VM",
                [OWNER_E_NAMESPACE] = "it is a pid of another pid namespace, which only the process itself can register",
                [OWNER_E_NAME] = "its name has more than 1024 bytes",
        };

        if (r == CALLER_E_IDENTITY)
                return rpc_refuse(call->error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC,
                                  "this connection is already registered for %s", owner_text(call->caller->owner));
        return rpc_refuse(call->error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC, "lock owner pid %u cannot be registered: %s",
                          args->pid, reasons[r]);
}

static int call_register(RpcCall *call)
{
        const virtlock_register *args = call->args;
        int r = end_string(call, &args->name);

        if (r != 0)
                return r;
        if (args->id == 0)
                return rpc_refuse(call->error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC,
                                  "lock owner details have not been registered: id 0");
        r = caller_register(call->caller, call->services->owners, call->services->reaper, (const uint8_t *)args->uuid, names.name,
                            args->id, args->pid);
        return r > 0 ? refuse_owner(call, r, args) : PASS(r);
}

static int call_restrict(RpcCall *call)
{
        call->caller->restricted = true;
        return 0;
}

static int create_lockspace(RpcCall *call, const virtlock_string *path, bool fresh)
{
        LockspaceRefusal refusal = { .step = LOCKFILE_OPEN };
        int made, r = end_string(call, path);

        if (r != 0)
                return r;
        r = lockspace_create(call->services->lockspaces, names.path, fresh, &made);
        if (r < 0)
                return PASS(r);
        if (r > 0)
                return refuse(call, r, &refusal, "");
        /* libvirtd exits when its driver gets an error here: the error comes when something is to be locked there. */
        if (made < 0)
                log_warning("lockspace %s: cannot create the directory: %s (%s)", log_name(names.path), strerror(-made), fault_trail());
        return 0;
}

static int call_new(RpcCall *call)
{
        virtlock_new *args = call->args;

        if (args->path.virtlock_string_len == 0)
                return rpc_refuse(call->error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC, "the default lockspace already exists");
        return PASS(create_lockspace(call, &args->path, true));
}

static int call_create_lockspace(RpcCall *call)
{
        virtlock_create_lockspace *args = call->args;

        return PASS(create_lockspace(call, &args->path, false));
}

static int call_create_resource(RpcCall *call)
{
        LockspaceRefusal refusal;
        int r = end_names(call);

        if (r != 0)
                return r;
        r = lockspace_create_resource(call->services->lockspaces, names.path, names.name, &refusal);
        if (r < 0) /* stock: another domain, and quotes */
                return rpc_refuse_errno(call->error, VIRTLOCK_FROM_NONE, -r, "cannot create file '%s'", refusal.path);
        return r == 0 ? 0 : refuse(call, r, &refusal, "Unable to open/create resource");
}

static int call_delete_resource(RpcCall *call)
{
        LockspaceRefusal refusal;
        int r = end_names(call);

        if (r != 0)
                return r;
        r = lockspace_delete_resource(call->services->lockspaces, names.path, names.name, &refusal);
        return r == 0 ? 0 : refuse(call, r, &refusal, "Unable to delete lockspace resource");
}

static int call_acquire(RpcCall *call)
{
        const virtlock_resource *args = call->args;
        Caller *caller = call->caller;
        const AcquireRequest request = {
                .lockspace = names.path,
                .resource = names.name,
                .owner = caller->owner,
                .shared = args->flags & VIRTLOCK_ACQUIRE_SHARED,
                .autocreate = args->flags & VIRTLOCK_ACQUIRE_AUTOCREATE,
                .taken = caller->own ? NULL : &caller->taken,
                .taker = caller->number,
        };
        LockspaceRefusal refusal;
        int r = end_names(call);

        if (r != 0)
                return r;
        r = lockspace_acquire(call->services->lockspaces, &request, &refusal);
        return r == 0 ? 0 :
                        refuse(call, r, &refusal, request.autocreate ? "Unable to open/create resource" : "Unable to open resource");
}

static int call_release(RpcCall *call)
{
        LockspaceRefusal refusal;
        int r = end_names(call);

        if (r != 0)
                return r;
        r = lockspace_release(call->services->lockspaces, names.path, names.name, call->caller->owner, &refusal);
        return r == 0 ? 0 : refuse(call, r, &refusal, "");
}

#define ARGS(type) .args = (xdrproc_t)xdr_##type, .args_size = sizeof(type)
#define ARGS_IN(room, type) ARGS(type), .args_room = (room)
#define FLAGS(type, allowed, function) \
        .flags_offset = offsetof(type, flags), .flags_allowed = (allowed), .flags_function = "virLockSpaceProtocolDispatch" function

static const RpcProcedure procedures[] = {
        { .number = VIRTLOCK_REGISTER, .name = "REGISTER", ARGS_IN(register_room, virtlock_register), FLAGS(virtlock_register, 0, "Register"),
          .call = call_register },
        { .number = VIRTLOCK_RESTRICT, .name = "RESTRICT", ARGS(virtlock_restrict), FLAGS(virtlock_restrict, 0, "Restrict"),
          .needs_owner = true, .call = call_restrict },
        { .number = VIRTLOCK_NEW, .name = "NEW", ARGS_IN(new_room, virtlock_new), FLAGS(virtlock_new, 0, "New"),
          .needs_owner = true, .call = call_new },
        { .number = VIRTLOCK_CREATE_RESOURCE, .name = "CREATE_RESOURCE", ARGS_IN(resource_room, virtlock_resource),
          FLAGS(virtlock_resource, 0, "CreateResource"), .needs_owner = true, .call = call_create_resource },
        { .number = VIRTLOCK_DELETE_RESOURCE, .name = "DELETE_RESOURCE", ARGS_IN(resource_room, virtlock_resource),
          FLAGS(virtlock_resource, 0, "DeleteResource"), .needs_owner = true, .call = call_delete_resource },
        { .number = VIRTLOCK_ACQUIRE_RESOURCE, .name = "ACQUIRE_RESOURCE", ARGS_IN(resource_room, virtlock_resource),
          FLAGS(virtlock_resource, VIRTLOCK_ACQUIRE_SHARED | VIRTLOCK_ACQUIRE_AUTOCREATE, "AcquireResource"), .needs_owner = true,
          .takes = true, .call = call_acquire },
        { .number = VIRTLOCK_RELEASE_RESOURCE, .name = "RELEASE_RESOURCE", ARGS_IN(resource_room, virtlock_resource),
          FLAGS(virtlock_resource, 0, "ReleaseResource"), .needs_owner = true, .call = call_release },
        { .number = VIRTLOCK_CREATE_LOCKSPACE, .name = "CREATE_LOCKSPACE", ARGS_IN(create_lockspace_room, virtlock_create_lockspace),
          .call = call_create_lockspace },
};

const RpcProgram rpc_lock_program = {
        .number = VIRTLOCK_PROGRAM,
        .version = VIRTLOCK_VERSION,
        .message_max = VIRTLOCK_MESSAGE_MAX + FRAME_HEADER_SIZE,
        .reply_max = 65536,
        .procedures = procedures,
        .n_procedures = sizeof(procedures) / sizeof(procedures[0]),
};
