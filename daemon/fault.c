/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: the trail is that of the last fault born; writing it allocates nothing and cannot fail. */
#include "fault.h"

#include <stdio.h>
#include <string.h>

static char trail[512];

int fault_born(int r, const char *file, int line, const char *function)
{
        const char *base = strrchr(file, '/');

        if (r < 0)
                (void)snprintf(trail, sizeof(trail), "%s (%s:%d)", function, base ? base + 1 : file, line);
        return r;
}

int fault_pass(int r, const char *function)
{
        size_t len = strlen(trail);

        if (r < 0)
                (void)snprintf(trail + len, sizeof(trail) - len, " < %s", function);
        return r;
}

const char *fault_trail(void)
{
        return trail;
}
