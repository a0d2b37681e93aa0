/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What lockd and lockd-holder say to each other: messages on an AF_UNIX SOCK_SEQPACKET socket, in the byte order of the
 * machine. Each begins with a HolderHead. Both ends may be of different versions: a newer lockd speaks the older ones, and
 * numbers are never used again for something else.
 *
 *      lockd                                holder
 *      HELLO role                    -->
 *                                    <--    WELCOME, OBJECTS..., END     what it keeps, with copies of the fds
 *                                    <--    BUSY                         another lockd is connected, and goes away
 *      PUT objects, fds              -->                                 new ones, or (without fd) other words for old ones
 *                                    <--    REFUSED ids                  these are not kept: put them again
 *      DROP ids                      -->
 *      FORK name                     -->                                 to the listener only
 *                                    <--    CHILD name, fd | error       the fd is a connection to the new child
 *      MOVE path                     -->                                 goes on as a fresh process image of that program
 *                                    <--    MOVED | error
 *
 * An object is kept until it is dropped, whatever happens to lockd. Its record is lockd's alone; what the holder itself has
 * to know of it is in the fields of HolderObject.
 */
#pragma once

#include <stdint.h>

#define HOLDER_VERSION 1U
#define HOLDER_SOCKET "socket"  /* the listener's, in the holder's folder; a child's is NAME.PID */
#define HOLDER_NAME_MAX 32U
#define HOLDER_FDS_MAX 253U     /* of one message: the kernel's limit */
#define HOLDER_RECORD_MAX (96U * 1024)
#define HOLDER_MESSAGE_MAX (128U * 1024)
#define HOLDER_BATCH 65536U     /* bytes after which a batch is sent */

enum {
        HOLDER_HELLO = 1, /* value[0]: a role */
        HOLDER_PUT,
        HOLDER_DROP,
        HOLDER_FORK,
        HOLDER_MOVE,
        HOLDER_WELCOME = 65, /* value[0]: pid, value[1]: fds that it can keep; n: objects that follow */
        HOLDER_OBJECTS,
        HOLDER_END,
        HOLDER_BUSY,         /* value[0]: pid of the lockd that is connected */
        HOLDER_REFUSED,      /* n ids; error */
        HOLDER_CHILD,        /* a name and one fd, or error; value[0]: pid */
        HOLDER_MOVED,        /* error, 0: done */
};

/* Who says HELLO. */
enum {
        HOLDER_ROLE_LOCKD = 1,
        HOLDER_ROLE_SHOW,    /* wants the dump, without fds; is refused by nobody */
        HOLDER_ROLE_REAP,    /* wants what dead owners had released; not while a lockd is connected */
};

typedef struct HolderHead {
        uint32_t type;
        uint32_t version;
        uint32_t n;       /* objects, ids, or bytes of a name that follow */
        int32_t error;    /* an errno */
        uint64_t value[2];
} HolderHead;

/* The first byte of an object's id. */
enum {
        HOLDER_LISTENER = 1,
        HOLDER_LOCKSPACE,
        HOLDER_OWNER,     /* fd: its pidfd; none: it has no process, and lives for ever */
        HOLDER_PEER,      /* fd: an own connection of owner */
        HOLDER_LEASE,     /* fd: locked; none: UNPROTECTED */
        HOLDER_HOLD,      /* of owner, on lease */
};
#define HOLDER_ID(kind, number) ((uint64_t)(kind) << 56 | (number))
#define HOLDER_KIND(id) ((unsigned)((id) >> 56))
#define HOLDER_NUMBER(id) ((id) & ((UINT64_C(1) << 56) - 1))

enum {
        HOLDER_HAS_FD = 1,    /* the next fd of the message is its */
        HOLDER_RELEASING = 2, /* a lease: given back; whatever is left of it to be done may be done, never undone */
        HOLDER_SAME = 4,      /* the record stays as it was */
        HOLDER_GONE = 8,      /* in PUT: drop it */
};

/* In PUT, OBJECTS and the holder's own state: followed by length bytes of record, padded to 8. */
typedef struct HolderObject {
        uint64_t id;
        uint64_t owner;  /* id, of a PEER or a HOLD */
        uint64_t lease;  /* id, of a HOLD */
        uint32_t flags;
        uint32_t length;
} HolderObject;

static inline uint32_t holder_padded(uint32_t length)
{
        return (length + 7U) & ~7U;
}
