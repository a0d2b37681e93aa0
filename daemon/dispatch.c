/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a call is answered exactly once, with its own serial, and a fault of one request ends there. */
#include "dispatch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOG_SOURCE "rpc"
#include "fault.h"
#include "log.h"
#include "virtlock.h"
#include "wire.h"

#define ARGS_MAX 256U /* bytes of the largest decoded arguments and answers, what they point to apart */

/* Bytes of the reply under way. */
static uint8_t first_buffer[8192]; /* for nearly all, and when there is no memory */
static uint8_t *buffer = first_buffer;
static size_t buffer_size = sizeof(first_buffer);

static int encode(FrameHeader *header, xdrproc_t proc, const void *value, DispatchReply *ret)
{
        int r = wire_encode(header, proc, value, buffer, buffer_size);

        if (r < 0) {
                size_t size = wire_size(proc, value);
                uint8_t *larger = malloc(size);

                if (!larger)
                        return FAULT(-ENOMEM);
                if (buffer != first_buffer)
                        free(buffer);
                buffer = larger;
                buffer_size = size;
                r = wire_encode(header, proc, value, buffer, buffer_size);
                if (r < 0)
                        return FAULT(r);
        }
        *ret = (DispatchReply){ .bytes = buffer, .len = header->length };
        return 0;
}

static const char *text_of(int code)
{
        switch (code) {
        case VIRTLOCK_ERR_INTERNAL:
                return "internal error: ";
        case VIRTLOCK_ERR_OPERATION_DENIED:
                return "operation forbidden: ";
        case VIRTLOCK_ERR_OPERATION_INVALID:
                return "Requested operation is not valid: ";
        case VIRTLOCK_ERR_RESOURCE_BUSY:
                return "resource busy: ";
        case VIRTLOCK_ERR_INVALID_ARG:
                return "invalid argument: ";
        default:
                return "";
        }
}

static int encode_error(FrameHeader *header, const RpcError *error, DispatchReply *ret)
{
        static char text[RPC_DETAIL_MAX + 64];
        char format[64];
        char *message = text, *str1 = format, *str2 = (char *)(uintptr_t)error->detail;
        virtlock_error wire = {
                .code = error->code,
                .domain = error->domain,
                .message = &message,
                .level = VIRTLOCK_ERROR_LEVEL,
                .str1 = &str1,
                .str2 = &str2,
                .int1 = error->int1,
                .int2 = error->int2,
        };

        (void)snprintf(text, sizeof(text), "%s%s", error->function ? "" : text_of(error->code), error->detail);
        (void)snprintf(format, sizeof(format), "%s%%s", text_of(error->code));
        if (error->function) {
                str1 = (char *)(uintptr_t)error->function;
                str2 = (char *)(uintptr_t) "flags";
        }
        header->status = FRAME_ERROR;
        return PASS(encode(header, (xdrproc_t)xdr_virtlock_error, &wire, ret));
}

static FrameHeader reply_to(const FrameHeader *call)
{
        FrameHeader header = *call;

        header.type = FRAME_REPLY;
        header.status = FRAME_OK;
        return header;
}

static RpcError *new_error(void)
{
        static RpcError error;

        error.code = 0;
        error.detail[0] = '\0';
        error.function = NULL;
        return &error;
}

bool dispatch_is_keepalive(const FrameHeader *header)
{
        return header->program == FRAME_KEEPALIVE_PROGRAM && header->version == FRAME_KEEPALIVE_VERSION &&
               header->type == FRAME_MESSAGE;
}

static int answer_keepalive(const FrameHeader *header, DispatchReply *ret)
{
        FrameHeader pong = *header;

        if (header->procedure != FRAME_KEEPALIVE_PING)
                return DISPATCH_E_NONE;
        pong.procedure = FRAME_KEEPALIVE_PONG;
        pong.status = FRAME_OK;
        return PASS(encode(&pong, NULL, NULL, ret));
}

#define refuse_rpc(error, ...) rpc_refuse((error), VIRTLOCK_ERR_RPC, VIRTLOCK_FROM_RPC, __VA_ARGS__)

static int find_procedure(const RpcProgram *program, const FrameHeader *header, const RpcProcedure **ret, RpcError *error)
{
        *ret = NULL;
        /* The order, and the signs, are virtlockd's. */
        if (header->program != program->number || header->version != program->version)
                return refuse_rpc(error, "Cannot find program %d version %d", (int)header->program, (int)header->version);
        if (header->type != FRAME_CALL)
                return refuse_rpc(error, "Unexpected message type %u", header->type);
        if (header->status != FRAME_OK)
                return refuse_rpc(error, "Unexpected message status %u", header->status);
        for (size_t i = 0; i < program->n_procedures; i++)
                if (program->procedures[i].number == header->procedure) {
                        *ret = &program->procedures[i];
                        return 0;
                }
        return refuse_rpc(error, "unknown procedure: %d", header->procedure);
}

static int check_flags(const RpcProcedure *procedure, const void *args, RpcError *error)
{
        uint32_t flags;

        if (!procedure->flags_function)
                return 0;
        memcpy(&flags, (const char *)args + procedure->flags_offset, sizeof(flags));
        flags &= ~procedure->flags_allowed;
        if (!flags)
                return 0;
        (void)rpc_refuse(error, VIRTLOCK_ERR_INVALID_ARG, VIRTLOCK_FROM_RPC, "unsupported flags (0x%x) in function %s", flags,
                         procedure->flags_function);
        error->function = procedure->flags_function;
        error->int1 = error->int2 = 0;
        return RPC_E_REFUSED;
}

static int check_caller(const RpcProcedure *procedure, const Caller *caller, RpcError *error)
{
        if (caller->restricted && !procedure->open_to_restricted)
                return rpc_refuse(error, VIRTLOCK_ERR_OPERATION_DENIED, VIRTLOCK_FROM_RPC,
                                  "lock manager connection has been restricted");
        if (procedure->needs_owner && !caller->owner)
                return rpc_refuse(error, VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC,
                                  "lock owner details have not been registered");
        return 0;
}

/* Decodes, checks, calls. */
static int call_procedure(const RpcProcedure *procedure, RpcCall *call, const uint8_t *payload, size_t len)
{
        int r;

        memset(call->args, 0, procedure->args_size);
        memset(call->ret, 0, procedure->ret_size);
        if (procedure->args_room)
                procedure->args_room(call->args);
        r = wire_decode(procedure->args, payload, len, call->args);
        if (r < 0)
                r = refuse_rpc(call->error, "Unable to decode message payload");
        if (r == 0)
                r = check_flags(procedure, call->args, call->error);
        if (r == 0)
                r = check_caller(procedure, call->caller, call->error);
        if (r == 0)
                r = procedure->call(call);
        call->caller->last = !procedure->takes ? CALLER_LAST_OTHER : r == 0 ? CALLER_LAST_GRANTED : CALLER_LAST_REFUSED;
        if (!procedure->args_room)
                wire_free(procedure->args, call->args);
        return PASS(r);
}

int dispatch_frame(const RpcProgram *program, const RpcServices *services, Caller *caller, const FrameHeader *header,
                   const uint8_t *payload, DispatchReply *ret)
{
        union {
                uint64_t align;
                char bytes[ARGS_MAX];
        } args, value;
        RpcError *error = new_error();
        RpcCall call = { .services = services, .caller = caller, .args = args.bytes, .ret = value.bytes, .error = error };
        FrameHeader reply = reply_to(header);
        const RpcProcedure *procedure;
        int r;

        if (dispatch_is_keepalive(header))
                return answer_keepalive(header, ret);
        r = find_procedure(program, header, &procedure, error);
        if (r == 0)
                r = call_procedure(procedure, &call, payload, header->length - FRAME_HEADER_SIZE);
        if (r == RPC_E_LATER)
                return DISPATCH_E_LATER;
        if (r < 0) {
                log_error("%s: %s (%s)", procedure->name, strerror(-r), fault_trail());
                (void)rpc_refuse_errno(error, VIRTLOCK_FROM_LOCKSPACE, -r, "lockd failed in %s", procedure->name);
        } else if (r == RPC_E_REFUSED)
                log_info("%s refused: %s", procedure ? procedure->name : "call", log_name(error->detail));
        if (r != 0)
                r = encode_error(&reply, error, ret);
        else
                r = encode(&reply, procedure->ret, value.bytes, ret);
        if (procedure && procedure->ret_done)
                procedure->ret_done(value.bytes);
        return PASS(r);
}

int dispatch_answer(const RpcProgram *program, const FrameHeader *call, const RpcError *error, const void *value,
                    DispatchReply *ret)
{
        FrameHeader reply = reply_to(call);

        if (error)
                return PASS(encode_error(&reply, error, ret));
        for (size_t i = 0; i < program->n_procedures; i++)
                if (program->procedures[i].number == call->procedure)
                        return PASS(encode(&reply, program->procedures[i].ret, value, ret));
        return FAULT(-ENOENT);
}

int dispatch_refuse(const FrameHeader *header, int code, const char *why, DispatchReply *ret)
{
        FrameHeader reply = reply_to(header);
        RpcError *error = new_error();

        (void)rpc_refuse(error, code, VIRTLOCK_FROM_RPC, "%s", why);
        return PASS(encode_error(&reply, error, ret));
}
