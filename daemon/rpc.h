/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A procedure as dispatch sees it, and what it is given. The tables of procedures are data: what has to be true before
 * the call is said there, not in each procedure.
 */
#pragma once

#include <rpc/rpc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "caller.h"
#include "lockspace.h"
#include "owner.h"
#include "reaper.h"

/* The parts of the daemon that procedures work on. */
typedef struct RpcServices {
        Storage *storage;
        LockspaceTable *lockspaces;
        OwnerTable *owners;
        Reaper *reaper;
        /* Starts an upgrade; later LOCKD_LATER_UPGRADE. 0; or -EALREADY, -errno with *ret_why. */
        int (*upgrade)(void *userdata, const char **ret_why);
        /* Starts to execute the virtlockd at path; later LOCKD_LATER_UPGRADE. -EALREADY, or -errno with the reason. */
        int (*give_back)(void *userdata, const char *path, const char **ret_why);
        /* Ends the daemon once the answer is out. */
        void (*stop)(void *userdata);
        void *userdata;
} RpcServices;

#define RPC_DETAIL_MAX 12288

typedef struct RpcError {
        int code;   /* virtlock_error_code; 0: none */
        int domain; /* virtlock_error_domain */
        int int1, int2;
        const char *function; /* VIRTLOCK_ERR_INVALID_ARG: stock's name of the function, its str1 */
        char detail[RPC_DETAIL_MAX];
} RpcError;

typedef struct RpcCall {
        const RpcServices *services;
        Caller *caller;
        void *args;
        void *ret; /* zeroed */
        RpcError *error;
} RpcCall;

enum {
        RPC_E_REFUSED = 1, /* call->error says why */
        RPC_E_LATER,       /* caller->answer_later() will be called, unless the caller goes before */
};

typedef struct RpcProcedure {
        int32_t number;
        const char *name;
        xdrproc_t args;
        size_t args_size;
        /* Gives the strings of zeroed args memory that stays; NULL: what they point to is allocated, and freed again. */
        void (*args_room)(void *args);
        xdrproc_t ret; /* NULL: an empty answer */
        size_t ret_size;
        bool needs_owner;
        bool open_to_restricted;
        bool takes; /* a hold: a refusal of the last such call leaves what the connection took before in doubt */
        /* Flags of the arguments that are allowed; flags_function NULL: there are none. */
        size_t flags_offset;
        uint32_t flags_allowed;
        const char *flags_function;
        /* 0, RPC_E_*, or -errno. What ret points to is freed by ret_done, if that is there. */
        int (*call)(RpcCall *call);
        void (*ret_done)(void *ret);
} RpcProcedure;

typedef struct RpcProgram {
        uint32_t number;
        uint32_t version;
        size_t message_max; /* bytes of the longest call, header included */
        size_t reply_max;
        const RpcProcedure *procedures;
        size_t n_procedures;
} RpcProgram;

extern const RpcProgram rpc_lock_program;
extern const RpcProgram rpc_admin_program;

/* After a restart: a release by kill goes on waiting for owner; NULL: that is gone already. */
void rpc_admin_resume_kill(Caller *caller, Owner *owner);

/* Both return RPC_E_REFUSED. */
int rpc_refuse(RpcError *error, int code, int domain, const char *format, ...) __attribute__((format(printf, 4, 5)));
int rpc_refuse_errno(RpcError *error, int domain, int number, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* "; look at ..." for an errno of a file operation, or "". */
const char *rpc_advice(int number);

/* Appends " by VM ..., since ..." to what refused, for a lease that somebody holds. */
void rpc_name_holder(RpcError *error, const Lease *lease);
