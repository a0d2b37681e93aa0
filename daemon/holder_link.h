/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockd's end of the holder: which of its processes there are, the connections to them, and messages. Knows the protocol
 * (protocol/holder_protocol.h) and refuses to know what is kept: that is keeper.c's.
 *
 * A HolderChild stands for a name (a file system), over the deaths of the processes that bear it: one that has ended is
 * replaced, and has then nothing of what it was given. Child 0 is the listener itself.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "holder_protocol.h"

#define HOLDER_CHILDREN_MAX 64U /* bits of a mask */

typedef struct HolderLink HolderLink;
typedef struct HolderChild HolderChild;

typedef struct HolderEvents {
        void (*ready)(HolderChild *child, void *userdata);   /* takes messages: again, or for the first time */
        void (*gone)(HolderChild *child, void *userdata);    /* what it had is lost */
        void (*refused)(HolderChild *child, uint64_t id, int error, void *userdata);
        void (*late)(void *userdata);                        /* a process that was silent at the start answers now */
        void *userdata;
} HolderEvents;

/* What is to become of something that was found: adopt.c decides. */
typedef enum HolderFate {
        HOLDER_FOUND_KEEP, /* stays in the holder, whatever the tables say */
        HOLDER_FOUND_OPEN, /* to be dropped if nothing in the tables is it */
        HOLDER_FOUND_DROP, /* of no more use */
} HolderFate;

/* What a process of the holder had from a lockd before this one. */
typedef struct HolderFound {
        struct HolderFound *next, *next_same; /* the latter for keeper.c */
        HolderChild *child;
        HolderObject said;
        int fd; /* ours now; -1: none */
        HolderFate fate;
        char record[]; /* with a NUL behind it */
} HolderFound;

enum {
        HOLDER_LINK_E_BUSY = 1, /* another lockd has it */
};

/* dir: where its sockets are; program: NULL, or what to start when nobody listens there. */
int holder_link_new(sd_event *loop, const char *dir, const char *program, const HolderEvents *events, HolderLink **ret);
HolderLink *holder_link_free(HolderLink *link);

/* At the start, waiting a second for each process: finds them, or starts the listener, and takes all that they have.
 * *ret_silent: how many did not answer. 0, HOLDER_LINK_E_BUSY with the pid of that lockd, or -errno: there is no listener,
 * and it is tried again later. */
int holder_link_collect(HolderLink *link, HolderFound **ret, unsigned *ret_silent, pid_t *ret_busy);
void holder_found_free(HolderFound *found);

/* The process of that name; it is started if need be. Never NULL: with too many names some share one. */
HolderChild *holder_link_child(HolderLink *link, const char *name);
/* The listener could not be started: nothing will be taken soon. */
bool holder_link_failing(const HolderLink *link);
HolderChild *holder_link_listener(HolderLink *link);
/* The child behind previous (NULL: the first, the listener), or NULL. */
HolderChild *holder_link_next(HolderLink *link, const HolderChild *previous);

bool holder_child_ready(const HolderChild *child);
uint64_t holder_child_bit(const HolderChild *child);
const char *holder_child_name(const HolderChild *child);
pid_t holder_child_pid(const HolderChild *child);

/* Objects on their way. */
typedef struct HolderMessage {
        size_t len;
        uint32_t n;
        unsigned n_fds;
        int fds[HOLDER_FDS_MAX];
        union {
                HolderHead head;
                unsigned char bytes[HOLDER_MESSAGE_MAX];
        };
} HolderMessage;

void holder_message_init(HolderMessage *message);
/* false: it is full, or the record is too long ever to be taken. */
bool holder_message_add(HolderMessage *message, const HolderObject *said, const char *record, int fd);

/* Sends it without waiting. 0: the kernel has it, and what happens to us does not matter any more. -EAGAIN: not now, ready
 * will be called; -ENOTCONN, -EMFILE: it has no room for more fds. */
int holder_child_put(HolderChild *child, HolderMessage *message);

/* Forgets an object, some time soon. reserve: memory for one more of these, before the object is put. */
int holder_child_reserve(HolderChild *child);
void holder_child_drop(HolderChild *child, uint64_t id, bool had_fd);
/* Sends what is to be dropped. wait: up to a second. */
void holder_link_flush(HolderLink *link, bool wait);

/* Has every process go on as a fresh image of program. */
void holder_link_move(HolderLink *link, const char *program);
