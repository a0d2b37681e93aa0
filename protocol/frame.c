/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a frame is handed on only when all its bytes are there and its length is within the bounds. */
#include "frame.h"

#include <endian.h>
#include <string.h>

static uint32_t read_word(const uint8_t *p)
{
        uint32_t word;

        memcpy(&word, p, sizeof(word));
        return be32toh(word);
}

static uint8_t *write_word(uint8_t *p, uint32_t word)
{
        word = htobe32(word);
        memcpy(p, &word, sizeof(word));
        return p + sizeof(word);
}

int frame_parse(const uint8_t *buf, size_t len, size_t max, FrameHeader *ret)
{
        uint32_t length;

        if (len < FRAME_LENGTH_SIZE)
                return FRAME_E_PARTIAL;
        length = read_word(buf);
        if (length < FRAME_HEADER_SIZE)
                return FRAME_E_SHORT;
        ret->length = 0;
        if (len < FRAME_HEADER_SIZE)
                return length > max ? FRAME_E_LONG : FRAME_E_PARTIAL;
        *ret = (FrameHeader){
                .length = length,
                .program = read_word(buf + 4),
                .version = read_word(buf + 8),
                .procedure = (int32_t)read_word(buf + 12),
                .type = read_word(buf + 16),
                .serial = read_word(buf + 20),
                .status = read_word(buf + 24),
        };
        if (length > max)
                return FRAME_E_LONG;
        return len < length ? FRAME_E_PARTIAL : 0;
}

void frame_write_header(uint8_t *buf, const FrameHeader *header)
{
        buf = write_word(buf, header->length);
        buf = write_word(buf, header->program);
        buf = write_word(buf, header->version);
        buf = write_word(buf, (uint32_t)header->procedure);
        buf = write_word(buf, header->type);
        buf = write_word(buf, header->serial);
        (void)write_word(buf, header->status);
}
