/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A value <-> the frame that carries it, by the XDR functions that rpcgen made. Used by the daemon, the client and
 * the tests; keeps no state; thread safe.
 */
#pragma once

#include <rpc/rpc.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

/* Decodes the whole payload into value, which the caller has zeroed. -EBADMSG: not the bytes of such a value, or more
 * than those. Whatever the outcome, wire_free() then frees what value points to. */
int wire_decode(xdrproc_t proc, const uint8_t *payload, size_t len, void *value);

/* Encodes header and value as one frame into buf, size bytes, and sets header->length. A NULL proc has no payload.
 * -EMSGSIZE: it does not fit. */
int wire_encode(FrameHeader *header, xdrproc_t proc, const void *value, uint8_t *buf, size_t size);

/* Bytes that wire_encode() needs for this value. */
size_t wire_size(xdrproc_t proc, const void *value);

/* Frees what a decoded value points to, not value itself. */
void wire_free(xdrproc_t proc, void *value);
