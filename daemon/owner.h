/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The owner of holds: a VM's process, by its pidfd from registration on, never by a number alone. An owner
 * registered with pid 0 has no process; uuid and id tell it apart.
 *
 * An owner lives in the table while its process does; a dead one is taken out, so that a new process with the same pid
 * and uuid is a new owner. It is freed when it has neither connections nor holds.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "hash.h"
#include "list.h"

#define OWNER_UUID_LEN 16
#define OWNER_NAME_MAX 1024
#define OWNER_ID_LOST UINT32_MAX /* with pid 0: stands for an owner that was lost, and that may live */

typedef struct Owner Owner;
typedef struct OwnerTable OwnerTable;

typedef struct OwnerKey {
        uint8_t uuid[OWNER_UUID_LEN];
        uint32_t pid;
        uint32_t id; /* counts for pid 0 only, 0 otherwise */
} OwnerKey;

struct Owner {
        UT_hash_handle hh;
        OwnerTable *table;
        uint64_t number;     /* unique in the daemon's life */
        OwnerKey key;
        char *name;
        uint32_t id;
        int pidfd;           /* -1: no process */
        uint64_t start_time; /* field 22 of /proc/PID/stat */
        ino_t foreign_ns;    /* 0, or the pid namespace in which it registered itself ... */
        uint32_t foreign_pid; /* ... and its pid there */
        ListNode in_all;     /* of the table, the dead ones too */
        bool in_table;
        bool dead;           /* the pidfd said so */
        bool proved;         /* a connection of its own showed that it is that process */
        unsigned peers;      /* registered connections, its own ones included */
        unsigned own_peers;  /* its own connections that are open */
        ino_t own_socket;    /* our end of the newest of them */
        size_t n_holds;
        size_t unprotected;  /* of them: holds that were taken away by force */
        ListNode holds;      /* of Hold */
        struct Death *death; /* the reaper's */
        char *extra;         /* what a newer lockd's state said beside; NULL: nothing */
};

/* What the kernel says of the process at the other end of a connection. */
typedef struct OwnerPeer {
        pid_t pid;         /* 0: in a pid namespace that is not visible from here */
        uid_t uid;
        int pidfd;         /* -1: the kernel has no SO_PEERPIDFD */
        uint64_t accepted; /* clock ticks since boot, when the connection was accepted */
} OwnerPeer;

enum {
        OWNER_E_GONE = 1,  /* no such process, or a zombie */
        OWNER_E_FORBIDDEN, /* pid 1, lockd itself, or a thread */
        OWNER_E_NAMESPACE, /* a pid of another pid namespace that cannot be mapped */
        OWNER_E_NAME,      /* a name of more than OWNER_NAME_MAX bytes */
};

int owner_table_new(OwnerTable **ret);
/* All owners must be gone. */
OwnerTable *owner_table_free(OwnerTable *table);

/* Finds the owner, or makes a new one: ret_new. 0, OWNER_E_*, or -errno. An idle new owner is the caller's to drop. */
int owner_find(OwnerTable *table, const OwnerPeer *peer, const uint8_t uuid[OWNER_UUID_LEN], const char *name, uint32_t id,
               uint32_t pid, Owner **ret, bool *ret_new);

/* An owner as it was before a restart: key, name, id, pidfd (taken over on success), start_time, number, dead, proved,
 * own_socket, foreign_* of seed. */
int owner_restore(OwnerTable *table, const Owner *seed, Owner **ret);

/* All owners, the dead ones too: nodes are Owner.in_all. */
const ListNode *owner_table_all(const OwnerTable *table);
/* The last number given. */
uint64_t owner_table_newest(const OwnerTable *table);
void owner_table_set_newest(OwnerTable *table, uint64_t newest);

/* Is the process at the other end of that connection the owner? */
bool owner_is_peer(const Owner *owner, const OwnerPeer *peer);

/* Its process has ended; asks the pidfd. */
bool owner_has_ended(const Owner *owner);

/* When the process of that number was started, in clock ticks since boot. -ESRCH: there is none. */
int owner_process_start(uint32_t pid, uint64_t *ret);

/* Takes it out of the table: nobody finds it any more, its holds stay. */
void owner_mark_dead(Owner *owner);

/* Dead by both signs: the process has ended, and nobody has its own connection open. */
static inline bool owner_is_gone(const Owner *owner)
{
        return owner->dead && owner->own_peers == 0;
}

/* Frees it when nothing refers to it any more; returns NULL then. */
Owner *owner_drop_if_idle(Owner *owner);

/* "VM 'name' (uuid ..., pid 1)", escaped, for messages; returns buf. */
#define OWNER_DESCRIPTION_MAX 512
const char *owner_describe(const Owner *owner, char buf[OWNER_DESCRIPTION_MAX]);
#define owner_text(owner) owner_describe((owner), (char[OWNER_DESCRIPTION_MAX]){ 0 })
