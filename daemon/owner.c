/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: an owner in the table is a process that had not ended when it was last asked, and no two owners in it are
 * the same process with the same uuid. It refuses to know what is held, and never signals.
 */
#include "owner.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"
#include "fds.h"
#include "log.h"
#include "uuid.h"

struct OwnerTable {
        Owner *owners;     /* by key; those that live */
        ListNode all;      /* of Owner.in_all */
        uint64_t newest;   /* the last number given */
        dev_t namespace_dev; /* of our own pid namespace */
        ino_t namespace_ino;
};

int owner_table_new(OwnerTable **ret)
{
        OwnerTable *table = calloc(1, sizeof(*table));
        struct stat st;

        if (!table)
                return FAULT(-ENOMEM);
        list_init(&table->all);
        if (stat("/proc/self/ns/pid", &st) == 0) {
                table->namespace_dev = st.st_dev;
                table->namespace_ino = st.st_ino;
        }
        *ret = table;
        return 0;
}

OwnerTable *owner_table_free(OwnerTable *table)
{
        free(table);
        return NULL;
}

static ssize_t read_proc(uint32_t pid, const char *file, char *buf, size_t size)
{
        _cleanup_fd_ int fd = -1;
        char path[64];
        ssize_t n;

        (void)snprintf(path, sizeof(path), "/proc/%u/%s", pid, file);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        n = read(fd, buf, size - 1);
        if (n < 0)
                return -errno;
        buf[n] = '\0';
        return n;
}

/* Fields 3 and 22 of /proc/PID/stat; the name before them may contain anything, ')' too. */
static int read_stat(uint32_t pid, char *ret_state, uint64_t *ret_start)
{
        char text[1024], *p;
        unsigned long long start;

        if (read_proc(pid, "stat", text, sizeof(text)) <= 0)
                return -ESRCH;
        p = strrchr(text, ')');
        if (!p || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", ret_state,
                         &start) != 2)
                return -ESRCH;
        *ret_start = start;
        return 0;
}

static bool has_ended(int pidfd)
{
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

int owner_process_start(uint32_t pid, uint64_t *ret)
{
        char state;

        return read_stat(pid, &state, ret);
}

bool owner_has_ended(const Owner *owner)
{
        return owner->dead || (owner->pidfd >= 0 && has_ended(owner->pidfd));
}

/* Translates key->pid, which the peer sent. A peer in our own pid namespace means what it says. One in another namespace
 * can name itself (the last entry of its NSpid), or a VM that has already named itself there. */
static int map_pid(const OwnerTable *table, const OwnerPeer *peer, OwnerKey *key, ino_t *ret_namespace)
{
        char path[64], text[4096], *line, *last;
        Owner *owner, *next;
        struct stat st;

        *ret_namespace = 0;
        if (peer->pid == 0)
                return OWNER_E_NAMESPACE;
        (void)snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)peer->pid);
        if (stat(path, &st) < 0)
                return errno == ENOENT || errno == ESRCH ? OWNER_E_GONE : FAULT(-errno);
        if (st.st_dev == table->namespace_dev && st.st_ino == table->namespace_ino)
                return 0;
        *ret_namespace = st.st_ino;
        if (read_proc((uint32_t)peer->pid, "status", text, sizeof(text)) <= 0)
                return OWNER_E_GONE;
        line = strstr(text, "\nNSpid:");
        if (!line)
                return OWNER_E_NAMESPACE;
        line[1 + strcspn(line + 1, "\n")] = '\0';
        last = strrchr(line, '\t');
        if (last && strtoul(last + 1, NULL, 10) == key->pid) {
                key->pid = (uint32_t)peer->pid;
                return 0;
        }
        HASH_ITER(hh, table->owners, owner, next)
                if (owner->foreign_ns == st.st_ino && owner->foreign_pid == key->pid &&
                    memcmp(owner->key.uuid, key->uuid, OWNER_UUID_LEN) == 0) {
                        key->pid = owner->key.pid;
                        return 0;
                }
        return OWNER_E_NAMESPACE;
}

/* Opens a process that may become an owner. */
static int open_process(uint32_t pid, int *ret_pidfd, uint64_t *ret_start)
{
        _cleanup_fd_ int fd = -1;
        char state;

        if (pid == 1 || pid == (uint32_t)getpid() || pid > INT32_MAX)
                return OWNER_E_FORBIDDEN;
        fd = pidfd_open((pid_t)pid, 0);
        if (fd < 0 && (errno == EINVAL || errno == ENOENT))
                return OWNER_E_FORBIDDEN; /* a thread: its process is the owner */
        if (fd < 0 && errno == ESRCH)
                return OWNER_E_GONE;
        if (fd < 0 || fds_is_spare(fd))
                return FAULT(fd < 0 ? -errno : -EMFILE);
        if (read_stat(pid, &state, ret_start) < 0 || state == 'Z' || state == 'X' || has_ended(fd))
                return OWNER_E_GONE;
        *ret_pidfd = TAKE_FD(fd);
        return 0;
}

static Owner *owner_free(Owner *owner)
{
        if (!owner)
                return NULL;
        if (owner->in_table)
                HASH_DEL(owner->table->owners, owner);
        list_unlink(&owner->in_all);
        close_fd(owner->pidfd);
        free(owner->name);
        free(owner->extra);
        free(owner);
        return NULL;
}

static void owner_freep(Owner **owner)
{
        *owner = owner_free(*owner);
}

/* A process that was taken over from virtlockd by its number alone (nobody registers with id 0) becomes the VM that
 * registers with that number first, as long as it is the same process. */
static Owner *find_nameless(OwnerTable *table, const OwnerKey *key, const char *name, uint32_t id)
{
        const OwnerKey nameless = { .pid = key->pid };
        Owner *owner;
        char *copy;

        if (key->pid == 0)
                return NULL;
        HASH_FIND(hh, table->owners, &nameless, sizeof(nameless), owner);
        if (!owner || owner->id != 0 || owner->pidfd < 0 || owner_has_ended(owner) || !(copy = strdup(name)))
                return NULL;
        HASH_DEL(table->owners, owner);
        owner->key = *key;
        owner->id = id;
        free(owner->name);
        owner->name = copy;
        HASH_ADD(hh, table->owners, key, sizeof(owner->key), owner);
        owner->in_table = hash_added(owner);
        return owner;
}

int owner_find(OwnerTable *table, const OwnerPeer *peer, const uint8_t uuid[OWNER_UUID_LEN], const char *name, uint32_t id,
               uint32_t pid, Owner **ret, bool *ret_new)
{
        _cleanup_(owner_freep) Owner *owner = NULL;
        OwnerKey key = { .pid = pid, .id = pid == 0 ? id : 0 };
        ino_t namespace = 0;
        int r;

        if (strlen(name) > OWNER_NAME_MAX)
                return OWNER_E_NAME;
        memcpy(key.uuid, uuid, OWNER_UUID_LEN);
        if (pid != 0) {
                r = map_pid(table, peer, &key, &namespace);
                if (r != 0)
                        return PASS(r);
        }
        HASH_FIND(hh, table->owners, &key, sizeof(key), owner);
        if (owner && !owner_has_ended(owner)) {
                *ret_new = false;
                *ret = TAKE_PTR(owner);
                return 0;
        }
        if (!owner && (*ret = find_nameless(table, &key, name, id))) {
                *ret_new = false;
                return 0;
        }
        if (owner)
                owner_mark_dead(owner); /* its number has a new bearer, or none; the reaper will hear of it */
        owner = calloc(1, sizeof(*owner));
        if (!owner)
                return FAULT(-ENOMEM);
        owner->table = table;
        owner->key = key;
        owner->id = id;
        owner->pidfd = -1;
        owner->foreign_ns = namespace;
        owner->foreign_pid = pid;
        list_init(&owner->holds);
        owner->name = strdup(name);
        if (!owner->name)
                return FAULT(-ENOMEM);
        if (key.pid != 0) {
                r = open_process(key.pid, &owner->pidfd, &owner->start_time);
                if (r != 0)
                        return PASS(r);
        }
        HASH_ADD(hh, table->owners, key, sizeof(owner->key), owner);
        if (!hash_added(owner))
                return FAULT(-ENOMEM);
        owner->in_table = true;
        owner->number = ++table->newest;
        list_append(&table->all, &owner->in_all);
        *ret_new = true;
        *ret = TAKE_PTR(owner);
        return 0;
}

int owner_restore(OwnerTable *table, const Owner *seed, Owner **ret)
{
        Owner *owner = calloc(1, sizeof(*owner));

        if (!owner)
                return FAULT(-ENOMEM);
        *owner = (Owner){
                .table = table,
                .number = seed->number,
                .key = seed->key,
                .id = seed->id,
                .name = strdup(seed->name),
                .pidfd = seed->pidfd,
                .start_time = seed->start_time,
                .foreign_ns = seed->foreign_ns,
                .foreign_pid = seed->foreign_pid,
                .dead = seed->dead,
                .proved = seed->proved,
                .own_socket = seed->own_socket,
        };
        list_init(&owner->holds);
        if (owner->name && !owner->dead) {
                HASH_ADD(hh, table->owners, key, sizeof(owner->key), owner);
                owner->in_table = hash_added(owner);
        }
        if (!owner->name || owner->in_table == owner->dead) {
                owner->pidfd = -1; /* stays the caller's */
                owner_free(owner);
                return FAULT(-ENOMEM);
        }
        list_append(&table->all, &owner->in_all);
        if (owner->number > table->newest)
                table->newest = owner->number;
        *ret = owner;
        return 0;
}

const ListNode *owner_table_all(const OwnerTable *table)
{
        return &table->all;
}

uint64_t owner_table_newest(const OwnerTable *table)
{
        return table->newest;
}

void owner_table_set_newest(OwnerTable *table, uint64_t newest)
{
        if (newest > table->newest)
                table->newest = newest;
}

bool owner_is_peer(const Owner *owner, const OwnerPeer *peer)
{
        if (owner->pidfd < 0 || peer->pid <= 0 || (uint32_t)peer->pid != owner->key.pid)
                return false;
        /* Two processes that live now and have one number are one process. */
        if (peer->pidfd >= 0)
                return !has_ended(peer->pidfd) && !owner_has_ended(owner);
        return owner->start_time <= peer->accepted && !owner_has_ended(owner);
}

void owner_mark_dead(Owner *owner)
{
        owner->dead = true;
        if (owner->in_table)
                HASH_DEL(owner->table->owners, owner);
        owner->in_table = false;
}

Owner *owner_drop_if_idle(Owner *owner)
{
        if (owner->peers > 0 || owner->n_holds > 0)
                return owner;
        return owner_free(owner);
}

const char *owner_describe(const Owner *owner, char buf[OWNER_DESCRIPTION_MAX])
{
        char uuid[UUID_TEXT], name[256];

        (void)snprintf(buf, OWNER_DESCRIPTION_MAX, "VM '%s' (uuid %s, pid %u)", log_escape(owner->name, name, sizeof(name)),
                       uuid_format(owner->key.uuid, uuid), owner->key.pid);
        return buf;
}
