/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From what the holder kept to a state, as an upgrade would have written it: there is one way to restore tables, that of
 * restore.c. Also after an upgrade, whose state may lack what a crash before it has left.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "holder_link.h"
#include "storage.h"

typedef struct AdoptWish {
        const Storage *storage;
        const char *state;      /* of an upgrade; NULL: none. What it has is not adopted */
        const char *sockets[2]; /* where lockd is to listen, in the order of lockd_server; NULL: not by a socket of the holder's */
} AdoptWish;

typedef struct Adopted {
        char *state;   /* NULL: there is nothing more to restore than before */
        size_t leases, finished, left;
} Adopted;

/* Releases that were under way are finished here. Every entry has its fate afterwards, and its fd only if the state names
 * that. -errno: nothing was done. */
int adopt(HolderFound *found, const AdoptWish *wish, Adopted *ret);
