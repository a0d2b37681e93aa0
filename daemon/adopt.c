/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a lock that was granted and not given back is in the state afterwards, or is left where it is, in the holder. A
 * record that makes no sense costs nothing but itself: each is read by a child first, whose crash names the culprit.
 *
 *      lease releasing, or granted to nobody yet, or its fd not locked any more   finished: unlink, unlock, close; dropped
 *      it, one of its holds, or one of their owners cannot be read                left: nobody else gets the file
 *      else                                                                       adopted, with its holds and their owners
 */
#include "adopt.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOG_SOURCE "holder"
#include "cleanup.h"
#include "fault.h"
#include "hash.h"
#include "lockspace.h"
#include "log.h"
#include "state.h"

typedef enum Fate { FATE_OPEN, FATE_ADOPT, FATE_DONE, FATE_LEFT, FATE_KNOWN } Fate;

typedef struct Item {
        UT_hash_handle hh; /* by id; of several copies the first one */
        uint64_t id;
        HolderFound *found;
        StateKind kind;
        StateRecord record;
        Fate fate;
        struct Item *first; /* of a copy: the one in the table */
        struct Item *next_hold;
        struct Item *holds; /* of a lease */
        bool bad;
        bool wanted; /* an owner: by a lease that is adopted */
        bool asking; /* an owner: a call on a connection of its own has no answer yet, and is handled again */
} Item;

typedef struct Adoption {
        const AdoptWish *wish;
        Adopted *ret;
        Item *items;
        size_t n;
        Item *by_id;
        Item *known; /* ids that the state has */
} Adoption;

static Item *find(Adoption *adoption, uint64_t id)
{
        Item *item;

        HASH_FIND(hh, adoption->by_id, &id, sizeof(id), item);
        return item;
}

static StateKind kind_of(uint64_t id)
{
        static const StateKind kinds[] = {
                [HOLDER_LISTENER] = STATE_LISTENER, [HOLDER_LOCKSPACE] = STATE_LOCKSPACE, [HOLDER_OWNER] = STATE_OWNER,
                [HOLDER_PEER] = STATE_PEER,         [HOLDER_LEASE] = STATE_LEASE,         [HOLDER_HOLD] = STATE_HOLD,
        };

        return HOLDER_KIND(id) > 0 && HOLDER_KIND(id) < sizeof(kinds) / sizeof(kinds[0]) ? kinds[HOLDER_KIND(id)] : STATE_END;
}

static void read_item(Item *item)
{
        item->bad = state_read(item->found->record, &item->kind, &item->record) != 0;
        if (!item->bad && item->kind != kind_of(item->id)) {
                state_done(item->kind, &item->record);
                item->bad = true;
        }
}

/* Has a child read all of them, from one on; *progress is where it is. Returns where it died, or n. */
static size_t try_from(Adoption *adoption, size_t from, volatile size_t *progress)
{
        int status = 0;
        pid_t pid;

        *progress = from;
        pid = fork();
        if (pid == 0) {
                (void)alarm(30);
                for (; *progress < adoption->n; (*progress)++)
                        read_item(&adoption->items[*progress]);
                _exit(0);
        }
        if (pid < 0)
                return adoption->n; /* no memory for it: then it is done without */
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
        return WIFEXITED(status) ? adoption->n : *progress;
}

/* A record that brings this program down would bring down each one that comes after it. */
static int read_all(Adoption *adoption)
{
        volatile size_t *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        if (progress == MAP_FAILED)
                return FAULT(-errno);
        for (size_t from = 0; from < adoption->n; from++) {
                from = try_from(adoption, from, progress);
                if (from < adoption->n)
                        adoption->items[from].bad = true;
        }
        for (size_t i = 0; i < adoption->n; i++)
                if (!adoption->items[i].bad)
                        read_item(&adoption->items[i]);
        (void)munmap((void *)(uintptr_t)progress, sizeof(*progress));
        return 0;
}

static int make_items(Adoption *adoption, HolderFound *found)
{
        for (HolderFound *f = found; f; f = f->next)
                adoption->n++;
        adoption->items = calloc(adoption->n + 1, sizeof(*adoption->items));
        if (!adoption->items)
                return FAULT(-ENOMEM);
        for (Item *item = adoption->items; found; found = found->next, item++) {
                item->found = found;
                item->id = found->said.id;
                item->first = find(adoption, item->id);
                if (item->first)
                        continue;
                HASH_ADD(hh, adoption->by_id, id, sizeof(item->id), item);
                if (!hash_added(item))
                        return FAULT(-ENOMEM);
        }
        return 0;
}

static void link_holds(Adoption *adoption)
{
        for (size_t i = 0; i < adoption->n; i++) {
                Item *item = &adoption->items[i], *lease;

                if (HOLDER_KIND(item->id) != HOLDER_HOLD || item->first || !(lease = find(adoption, item->found->said.lease)))
                        continue;
                item->next_hold = lease->holds;
                lease->holds = item;
        }
}

static const char *text_of(const lockd_bytes *bytes)
{
        return bytes->lockd_bytes_val ? bytes->lockd_bytes_val : "";
}

static void give_up_fd(Item *item)
{
        item->found->fd = close_fd(item->found->fd);
}

/* What the release of a lease has not done yet. */
static void finish(Adoption *adoption, Item *item)
{
        const lockd_record *record = &item->record.lease;
        Lockfile file = {
                .fd = TAKE_FD(item->found->fd),
                .id = { .dev = record->dev, .ino = record->ino, .block = record->block ? 1 : 0 },
                .kind = record->kind == LOCKD_KIND_CLASSIC ? LOCK_CLASSIC : LOCK_OFD,
                .shared = record->mode == LOCKD_MODE_SHARED,
        };
        char path[LOCKSPACE_RESOURCE_PATH_SIZE];

        item->fate = FATE_DONE;
        adoption->ret->finished++;
        if (file.fd < 0)
                return;
        /* Not locked any more: it had been unlinked before, or was to stay. */
        if (lockfile_verify(&file) != 0) {
                close_fd(file.fd);
                return;
        }
        lockspace_resource_path(text_of(&record->lockspace), text_of(&record->resource), path);
        (void)storage_release(adoption->wish->storage, path, record->autocreate && record->local, &file);
}

static bool is_bad(Adoption *adoption, Item *lease)
{
        if (lease->bad)
                return true;
        for (Item *hold = lease->holds; hold; hold = hold->next_hold) {
                Item *owner = find(adoption, hold->found->said.owner);

                if (hold->bad || !owner || owner->bad || HOLDER_NUMBER(owner->id) != hold->record.hold.owner.number)
                        return true;
        }
        return false;
}

static bool is_known(Adoption *adoption, uint64_t id)
{
        Item *item;

        HASH_FIND(hh, adoption->known, &id, sizeof(id), item);
        return item != NULL;
}

static void decide_lease(Adoption *adoption, Item *lease)
{
        const lockd_record *record = &lease->record.lease;
        const Lockfile file = {
                .fd = lease->found->fd,
                .id = { .dev = record->dev, .ino = record->ino, .block = record->block ? 1 : 0 },
        };
        int r;

        if (is_known(adoption, lease->id)) {
                lease->fate = FATE_KNOWN;
                return;
        }
        if (is_bad(adoption, lease)) {
                lease->fate = FATE_LEFT;
                adoption->ret->left++;
                log_error("a lock that the holder keeps cannot be made out, it stays locked: %s",
                          log_name(lease->found->record));
                return;
        }
        if ((lease->found->said.flags & HOLDER_RELEASING) || !lease->holds) {
                finish(adoption, lease);
                return;
        }
        r = lease->found->fd >= 0 && record->kind != LOCKD_KIND_CLASSIC ? lockfile_verify(&file) : 0;
        if (r == LOCKFILE_E_STALE) {
                finish(adoption, lease); /* lockd alone unlocks: it had given it back */
                return;
        }
        lease->fate = r == 0 ? FATE_ADOPT : FATE_LEFT;
        adoption->ret->left += r != 0;
        adoption->ret->leases += r == 0;
        for (Item *hold = lease->holds; r == 0 && hold; hold = hold->next_hold)
                find(adoption, hold->found->said.owner)->wanted = true;
}

/* ---- the state ---- */

static bool has_ended(int pidfd)
{
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return pidfd >= 0 && poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static void max_of(u_quad_t *max, uint64_t number)
{
        if (number > *max)
                *max = number;
}

static int write_header(Adoption *adoption, FILE *file)
{
        lockd_header header = { .format = STATE_FORMAT, .release = { sizeof(LOCKD_VERSION) - 1, (char *)(uintptr_t)LOCKD_VERSION } };

        for (size_t i = 0; i < adoption->n; i++) {
                uint64_t id = adoption->items[i].id, number = HOLDER_NUMBER(id);

                if (HOLDER_KIND(id) == HOLDER_LEASE)
                        max_of(&header.lease_newest, number);
                else if (HOLDER_KIND(id) == HOLDER_PEER)
                        max_of(&header.peer_newest, number);
                else if (HOLDER_KIND(id) == HOLDER_OWNER)
                        max_of(&header.owner_newest, number);
                else if (HOLDER_KIND(id) == HOLDER_HOLD && !adoption->items[i].bad)
                        max_of(&header.peer_newest, adoption->items[i].record.hold.taken_by);
        }
        return PASS(state_write(file, STATE_HEADER, &header));
}

static int write_listener(Adoption *adoption, FILE *file, Item *item)
{
        lockd_listener *record = &item->record.listener;
        const char *wanted = (unsigned)record->server < 2 ? adoption->wish->sockets[record->server] : NULL;
        struct stat st;

        if (!wanted || item->found->fd < 0 || strcmp(text_of(&record->path), wanted) != 0 || lstat(wanted, &st) < 0 || st.st_dev != record->dev || st.st_ino != record->ino)
                return 0; /* nobody finds it by that name any more */
        record->fd = item->found->fd;
        record->guard = -1;
        item->fate = FATE_ADOPT;
        return PASS(state_write(file, STATE_LISTENER, record));
}

static int write_owner(Adoption *adoption, FILE *file, Item *item, lockd_end *end)
{
        lockd_owner *record = &item->record.owner;

        if (!item->wanted || is_known(adoption, item->id))
                return 0;
        record->pidfd = item->found->fd;
        record->dead = has_ended(record->pidfd);
        record->state = LOCKD_OWNER_ALIVE; /* who wanted it killed has to say so again */
        record->kill_sent = FALSE;
        item->fate = FATE_ADOPT;
        end->owners++;
        return PASS(state_write(file, STATE_OWNER, record));
}

static int write_peer(Adoption *adoption, FILE *file, Item *item, lockd_end *end)
{
        lockd_peer *record = &item->record.peer;
        int unread = 0;
        Item *owner = find(adoption, item->found->said.owner);

        if (!owner || !owner->wanted || item->found->fd < 0 || record->server != LOCKD_SERVER_LOCK || is_known(adoption, item->id))
                return 0;
        record->fd = item->found->fd;
        record->later = LOCKD_LATER_NO;
        owner->asking = owner->asking || (ioctl(record->fd, FIONREAD, &unread) == 0 && unread > 0);
        item->fate = FATE_ADOPT;
        end->peers++;
        return PASS(state_write(file, STATE_PEER, record));
}

static int write_lease(Adoption *adoption, FILE *file, Item *item, lockd_end *end)
{
        lockd_record *record = &item->record.lease;
        u_int n = 0;
        int r;

        for (Item *hold = item->holds; hold; hold = hold->next_hold)
                n++;
        free(record->holds.holds_val); /* it has none of its own */
        record->holds.holds_val = calloc(n, sizeof(lockd_hold));
        record->holds.holds_len = 0;
        if (!record->holds.holds_val)
                return FAULT(-ENOMEM);
        for (Item *hold = item->holds; hold; hold = hold->next_hold) {
                lockd_hold *copy = &record->holds.holds_val[record->holds.holds_len++];

                *copy = hold->record.hold;
                hold->fate = FATE_ADOPT;
                /* Its taker's connection was open when lockd ended: nobody knows whether it has heard of it. */
                copy->unconfirmed = copy->unconfirmed || copy->taken_by != 0 || find(adoption, hold->found->said.owner)->asking;
                copy->taken_by = 0;
        }
        record->fd = item->found->fd;
        record->releasing = FALSE;
        r = state_write(file, STATE_LEASE, record);
        end->leases++;
        end->holds += n;
        free(record->holds.holds_val); /* what they point to is the holds' */
        record->holds.holds_val = NULL;
        record->holds.holds_len = 0;
        return PASS(r);
}

/* Lines of one kind. */
static int write_kind(Adoption *adoption, FILE *file, StateKind kind, lockd_end *end)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < adoption->n; i++) {
                Item *item = &adoption->items[i];

                if (item->bad || item->first || item->kind != kind)
                        continue;
                if (kind == STATE_LISTENER)
                        r = write_listener(adoption, file, item);
                else if (kind == STATE_LOCKSPACE) {
                        item->fate = FATE_ADOPT;
                        end->lockspaces++;
                        r = state_write(file, kind, &item->record.lockspace);
                } else if (kind == STATE_OWNER)
                        r = write_owner(adoption, file, item, end);
                else if (kind == STATE_PEER)
                        r = write_peer(adoption, file, item, end);
                else if (kind == STATE_LEASE && item->fate == FATE_ADOPT) {
                        /* The lockspace of each hold, in case that its own line is lost. */
                        for (Item *hold = item->holds; r == 0 && hold; hold = hold->next_hold, end->lockspaces++)
                                r = state_write(file, STATE_LOCKSPACE, &(lockd_lockspace){ .path = hold->record.hold.lockspace });
                        if (r == 0)
                                r = write_lease(adoption, file, item, end);
                }
        }
        return PASS(r);
}

/* The state of an upgrade up to its last line, whose numbers are taken. */
static int copy_state(const char *state, FILE *file, lockd_end *end)
{
        while (*state) {
                size_t len = strcspn(state, "\n");
                _cleanup_free_ char *line = strndup(state, len);
                StateRecord record;
                StateKind kind;

                if (!line)
                        return FAULT(-ENOMEM);
                state += len + (state[len] == '\n');
                if (strncmp(line, "{\"end\"", 6) == 0 && state_read(line, &kind, &record) == 0) {
                        *end = record.end;
                        state_done(kind, &record);
                } else if (fprintf(file, "%s\n", line) < 0)
                        return FAULT(-errno);
        }
        return 0;
}

static int write_state(Adoption *adoption, char **ret)
{
        static const StateKind kinds[] = { STATE_LISTENER, STATE_LOCKSPACE, STATE_OWNER, STATE_PEER, STATE_LEASE };
        lockd_end end = { 0 };
        char *text = NULL;
        size_t size = 0;
        FILE *file = open_memstream(&text, &size);
        int r = file ? 0 : FAULT(-errno);

        if (r == 0)
                r = adoption->wish->state ? copy_state(adoption->wish->state, file, &end) : write_header(adoption, file);
        /* A known state has its listeners and lockspaces. */
        for (size_t i = adoption->wish->state ? 2 : 0; r == 0 && i < sizeof(kinds) / sizeof(kinds[0]); i++)
                r = write_kind(adoption, file, kinds[i], &end);
        if (r == 0)
                r = state_write(file, STATE_END, &end);
        if (file && fclose(file) != 0 && r == 0)
                r = FAULT(-ENOMEM);
        if (r < 0)
                free(text);
        else
                *ret = text;
        return PASS(r);
}

/* ---- */

static int note_known(Adoption *adoption)
{
        const char *state = adoption->wish->state;

        while (state && *state) {
                size_t len = strcspn(state, "\n");
                _cleanup_free_ char *line = strndup(state, len);
                StateRecord record;
                StateKind kind;
                uint64_t id = 0;
                Item *item;

                if (!line)
                        return FAULT(-ENOMEM);
                state += len + (state[len] == '\n');
                if (state_read(line, &kind, &record) != 0)
                        continue;
                if (kind == STATE_OWNER)
                        id = HOLDER_ID(HOLDER_OWNER, record.owner.number);
                else if (kind == STATE_PEER && record.peer.server == LOCKD_SERVER_LOCK)
                        id = HOLDER_ID(HOLDER_PEER, record.peer.number);
                else if (kind == STATE_LEASE)
                        id = HOLDER_ID(HOLDER_LEASE, record.lease.id);
                state_done(kind, &record);
                if (id == 0)
                        continue;
                item = calloc(1, sizeof(*item));
                if (!item)
                        return FAULT(-ENOMEM);
                item->id = id;
                HASH_ADD(hh, adoption->known, id, sizeof(item->id), item);
                if (!hash_added(item)) {
                        free(item);
                        return FAULT(-ENOMEM);
                }
        }
        return 0;
}

static void settle(Adoption *adoption)
{
        /* What is left takes its holds and owners along. */
        for (size_t i = 0; i < adoption->n; i++)
                if (adoption->items[i].fate == FATE_LEFT)
                        for (Item *hold = adoption->items[i].holds; hold; hold = hold->next_hold) {
                                Item *owner = find(adoption, hold->found->said.owner);

                                hold->fate = FATE_LEFT;
                                if (owner && owner->fate == FATE_OPEN)
                                        owner->fate = FATE_LEFT;
                        }
        for (size_t i = 0; i < adoption->n; i++) {
                Item *item = &adoption->items[i], *owner = item->found->said.owner ? find(adoption, item->found->said.owner) : NULL;
                Fate fate = item->first ? item->first->fate : item->fate;

                if (HOLDER_KIND(item->id) == HOLDER_PEER && owner && owner->fate == FATE_LEFT)
                        fate = FATE_LEFT;
                if (HOLDER_KIND(item->id) == HOLDER_LEASE && (fate == FATE_OPEN || item->first))
                        fate = FATE_LEFT; /* a second one of that number */
                if (fate != FATE_ADOPT || item->first)
                        give_up_fd(item);
                item->found->fate = fate == FATE_DONE ? HOLDER_FOUND_DROP : fate == FATE_OPEN ? HOLDER_FOUND_OPEN : HOLDER_FOUND_KEEP;
        }
}

static void adoption_done(Adoption *adoption)
{
        Item *item, *next;

        HASH_ITER(hh, adoption->known, item, next) {
                HASH_DEL(adoption->known, item);
                free(item);
        }
        HASH_CLEAR(hh, adoption->by_id);
        for (size_t i = 0; adoption->items && i < adoption->n; i++)
                if (!adoption->items[i].bad)
                        state_done(adoption->items[i].kind, &adoption->items[i].record);
        free(adoption->items);
}

int adopt(HolderFound *found, const AdoptWish *wish, Adopted *ret)
{
        Adoption adoption = { .wish = wish, .ret = ret };
        int r;

        *ret = (Adopted){ 0 };
        r = make_items(&adoption, found);
        if (r == 0)
                r = note_known(&adoption);
        if (r == 0)
                r = read_all(&adoption);
        if (r == 0) {
                link_holds(&adoption);
                for (size_t i = 0; i < adoption.n; i++)
                        if (HOLDER_KIND(adoption.items[i].id) == HOLDER_LEASE && !adoption.items[i].first)
                                decide_lease(&adoption, &adoption.items[i]);
                if (adoption.n > 0 && (!wish->state || ret->leases > 0))
                        r = write_state(&adoption, &ret->state);
        }
        if (r == 0)
                settle(&adoption);
        adoption_done(&adoption);
        return PASS(r);
}
