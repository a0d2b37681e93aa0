/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The text form of a uuid. */
#pragma once

#include <stdio.h>

#define UUID_TEXT 37 /* with the NUL */

/* uuid is 16 bytes. Returns buf. */
static inline const char *uuid_format(const void *uuid, char buf[UUID_TEXT])
{
        const unsigned char *bytes = uuid;
        char *p = buf;

        for (int i = 0; i < 16; i++)
                p += sprintf(p, "%02x%s", bytes[i], i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
        return buf;
}
