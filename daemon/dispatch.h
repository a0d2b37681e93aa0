/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a frame to a procedure and back to a frame: finds the procedure, checks its preconditions, decodes, calls,
 * encodes. Verdicts and faults become error replies here.
 */
#pragma once

#include "frame.h"
#include "rpc.h"

/* One frame to send; the bytes are good until the next call of a function of this file. */
typedef struct DispatchReply {
        const uint8_t *bytes;
        size_t len;
} DispatchReply;

enum {
        DISPATCH_E_NONE = 1, /* nothing to answer */
        DISPATCH_E_LATER,    /* caller->answer_later() will be called */
};

/* Is it a keepalive message, which is answered at once, whatever else waits? */
bool dispatch_is_keepalive(const FrameHeader *header);

/* 0 with a reply, DISPATCH_E_*, or -ENOMEM: not even an error reply could be made. */
int dispatch_frame(const RpcProgram *program, const RpcServices *services, Caller *caller, const FrameHeader *header,
                   const uint8_t *payload, DispatchReply *ret);

/* The late answer to a call. */
int dispatch_answer(const RpcProgram *program, const FrameHeader *call, const RpcError *error, const void *value,
                    DispatchReply *ret);

/* An error reply to a frame that is not to be dispatched: a virtlock_error_code, and why. */
int dispatch_refuse(const FrameHeader *header, int code, const char *why, DispatchReply *ret);
