/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names are bytes; a terminal and JSON want UTF-8. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the UTF-8 character at p, of which len bytes are there; 0: none (overlong forms, surrogates and what is
 * beyond U+10FFFF are none). len > 0. */
static inline size_t utf8_length(const unsigned char *p, size_t len)
{
        size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;

        if (n == 0 || n > len)
                return 0;
        for (size_t i = 1; i < n; i++)
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
            (p[0] == 0xf4 && p[1] > 0x8f))
                return 0;
        return n;
}

/* UTF-8 without a NUL. */
static inline bool utf8_is_text(const char *bytes, size_t len)
{
        const unsigned char *p = (const unsigned char *)bytes;

        for (size_t i = 0, n; i < len; i += n) {
                n = utf8_length(p + i, len - i);
                if (n == 0 || p[i] == '\0')
                        return false;
        }
        return true;
}
