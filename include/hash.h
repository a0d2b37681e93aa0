/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* uthash, told never to end the process: its default answer to a failed malloc is exit(), which would
 * release every lock of the host. After HASH_ADD* ask hash_added(): a failed add leaves the element out. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Eight bytes at a time: names are long, and are looked up three times a lock. */
static inline unsigned hash_bytes(const void *key, size_t len)
{
        const uint64_t odd = 0x9e3779b97f4a7c15U;
        const unsigned char *p = key;
        uint64_t hash = len, word;

        for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
                memcpy(&word, p, sizeof(word));
                hash = (hash ^ word) * odd;
                hash ^= hash >> 32;
        }
        word = 0;
        memcpy(&word, p, len);
        hash = (hash ^ word) * odd;
        return (unsigned)(hash ^ hash >> 32);
}

#define HASH_FUNCTION(key, len, hash) ((hash) = hash_bytes((key), (len)))
#define HASH_NONFATAL_OOM 1
#define uthash_fatal(msg) ((void)(msg))
#include <uthash.h>

#define hash_added(element) ((element)->hh.tbl != NULL)
