/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bytes <-> header + payload of libvirt's RPC framing, which virtlockd's protocol uses. Pure: no fd, no memory of
 * its own, no log. The daemon, the client and the tests share it. Thread safe.
 *
 *   u32 length (counts itself) | u32 program | u32 version | i32 procedure | u32 type | u32 serial | u32 status | payload
 *
 * all of them big-endian.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FRAME_LENGTH_SIZE 4U
#define FRAME_HEADER_SIZE 28U /* with the length */

typedef enum FrameType {
        FRAME_CALL = 0,
        FRAME_REPLY = 1,
        FRAME_MESSAGE = 2,
        FRAME_STREAM = 3,
        FRAME_CALL_WITH_FDS = 4,
        FRAME_REPLY_WITH_FDS = 5,
        FRAME_STREAM_HOLE = 6,
} FrameType;

typedef enum FrameStatus {
        FRAME_OK = 0,
        FRAME_ERROR = 1,
        FRAME_CONTINUE = 2,
} FrameStatus;

/* libvirt's keepalive program: a PING message is answered by a PONG message. */
#define FRAME_KEEPALIVE_PROGRAM 0x6b656570U
#define FRAME_KEEPALIVE_VERSION 1U
enum {
        FRAME_KEEPALIVE_PING = 1,
        FRAME_KEEPALIVE_PONG = 2,
};

typedef struct FrameHeader {
        uint32_t length; /* of the whole frame, in bytes */
        uint32_t program;
        uint32_t version;
        int32_t procedure;
        uint32_t type;   /* a FrameType, or whatever the other side sent */
        uint32_t serial;
        uint32_t status; /* a FrameStatus, or whatever the other side sent */
} FrameHeader;

enum {
        FRAME_E_PARTIAL = 1, /* bytes are missing */
        FRAME_E_SHORT,       /* the length is under FRAME_HEADER_SIZE: no way to go on with this stream */
        FRAME_E_LONG,        /* the length is over max. *ret is filled once the header is there, length is 0 before */
};

/* Looks at the start of buf, len bytes of it. 0: a whole frame of ret->length bytes is there and *ret describes it.
 * FRAME_E_*: see there; *ret is undefined for FRAME_E_PARTIAL and FRAME_E_SHORT. */
int frame_parse(const uint8_t *buf, size_t len, size_t max, FrameHeader *ret);

/* Writes header->length and the rest of the header into buf, which has room for FRAME_HEADER_SIZE bytes. */
void frame_write_header(uint8_t *buf, const FrameHeader *header);
