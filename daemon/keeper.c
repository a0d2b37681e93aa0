/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a hold that is marked as kept is in the holder with its lease, its owner and the owner's connections; a lease
 * that is being released is marked there before anything of it is undone, or nothing is unlinked. The loop never waits.
 *
 *      hold changes --> at the end of its process's queue --> put: [owner] [its connections] [lease] hold, as many as fit
 *      ACQUIRE      --> put at once; not possible: its answer waits for that hold, KEEPER_WAIT_USEC at most
 */
#include "keeper.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#define LOG_SOURCE "holder"
#include "adopt.h"
#include "cleanup.h"
#include "fault.h"
#include "hash.h"
#include "holder_link.h"
#include "journal.h"
#include "keep.h"
#include "log.h"
#include "regain.h"
#include "snapshot.h"
#include "state.h"

#define KEEPER_WAIT_USEC (1000U * 1000U)
#define PUTS_USEC 2000U
#define SETTLE_TRIES 100 /* milliseconds */
#define MARKS_MAX 1024U /* things in one message */

typedef struct Queue {
        ListNode holds; /* of Hold.in_unkept, by turn */
        bool stuck;     /* somebody waited in vain; until something is taken again */
        bool full;      /* said that it has no room */
} Queue;

/* A thing in the message that is being made, and how it was before. */
typedef struct Mark {
        uint64_t *mask, bit, *words;
        bool *flag;
} Mark;

static struct Keeper {
        sd_event *loop;
        HolderLink *link; /* NULL: none */
        RestoreParts parts;
        HolderFound *found;
        Queue queues[HOLDER_CHILDREN_MAX];
        ListNode waits; /* of Caller.in_unkept */
        uint64_t turn;
        HolderChild *last_child; /* where what was granted last goes */
        sd_event_source *timer, *puts;
        Journal *journal; /* NULL: none */
        Regain *regain;
        const char *dir;
        bool journal_failed, in_doubt;
        bool listeners_kept, leaving, silent, puts_armed;
        uint64_t services_before; /* the highest number of a listener or a lockspace that was found */
        void (*late)(void *userdata);
        void *userdata;
        Mark marks[MARKS_MAX];
        unsigned n_marks;
        HolderMessage message;
        char text[HOLDER_RECORD_MAX];
} keeper;

static uint64_t now_usec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static Queue *queue_of(const HolderChild *child)
{
        return &keeper.queues[__builtin_ctzll(holder_child_bit(child))];
}

/* ---- a message ---- */

/* The line of a record in keeper.text. Its length, or -1: too long. */
static int text_of(StateKind kind, const void *record)
{
        static FILE *file; /* kept: a stream costs more than the line */
        long len;

        if (!file)
                file = fmemopen(keeper.text, sizeof(keeper.text), "we");
        if (!file)
                return -1;
        rewind(file);
        if (state_write(file, kind, record) < 0 || fflush(file) != 0 || (len = ftell(file)) < 0) {
                (void)fclose(file);
                file = NULL;
                return -1;
        }
        return (int)len;
}

/* *flag, or bit of *mask, says that the holder has it. */
static bool add_object(StateKind kind, const void *record, HolderObject *said, int fd, Mark mark)
{
        int len = record ? text_of(kind, record) : 0;

        if (len < 0 || keeper.n_marks == MARKS_MAX)
                return false;
        said->length = (uint32_t)len;
        said->flags |= fd >= 0 ? HOLDER_HAS_FD : 0;
        if (!holder_message_add(&keeper.message, said, keeper.text, fd))
                return false;
        keeper.marks[keeper.n_marks++] = mark;
        if (mark.mask)
                *mark.mask |= mark.bit;
        if (mark.words)
                *mark.words |= mark.bit;
        if (mark.flag)
                *mark.flag = true;
        return true;
}

static void undo_marks(unsigned from)
{
        while (keeper.n_marks > from) {
                Mark *mark = &keeper.marks[--keeper.n_marks];

                if (mark->mask)
                        *mark->mask &= ~mark->bit;
                if (mark->words)
                        *mark->words &= ~mark->bit;
                if (mark->flag)
                        *mark->flag = false;
        }
}

static bool add_owner(HolderChild *child, Owner *owner)
{
        const uint64_t bit = holder_child_bit(child);
        HolderObject said = { .id = HOLDER_ID(HOLDER_OWNER, owner->number) };
        lockd_owner record;

        if ((owner->kept & bit) && (owner->kept_words & bit))
                return true;
        snapshot_owner(owner, &record);
        if (owner->kept & bit)
                return add_object(STATE_OWNER, &record, &said, -1, (Mark){ .words = &owner->kept_words, .bit = bit });
        return add_object(STATE_OWNER, &record, &said, owner->pidfd, (Mark){ .mask = &owner->kept, .words = &owner->kept_words, .bit = bit });
}

static bool add_peers(HolderChild *child, Owner *owner)
{
        const uint64_t bit = holder_child_bit(child);

        list_for_each(node, &owner->own_callers) {
                Caller *caller = list_entry(node, Caller, in_owner);
                HolderObject said = { .id = HOLDER_ID(HOLDER_PEER, caller->number), .owner = HOLDER_ID(HOLDER_OWNER, owner->number) };
                lockd_peer record;

                if (caller->kept & bit)
                        continue;
                peer_record(peer_of_caller(caller), &record);
                /* They change with every message: what is in them dies with lockd. */
                record.input = record.output = (lockd_bytes){ 0 };
                record.later = LOCKD_LATER_NO;
                if (!add_object(STATE_PEER, &record, &said, record.fd, (Mark){ .mask = &caller->kept, .bit = bit }))
                        return false;
        }
        return true;
}

static bool add_lease(Lease *lease)
{
        HolderObject said = { .id = HOLDER_ID(HOLDER_LEASE, lease->id) };
        lockd_record record;
        bool added;

        if (lease->kept)
                return true;
        if (snapshot_lease(lease, 0, &record) < 0)
                return false;
        added = add_object(STATE_LEASE, &record, &said, lease->file.fd, (Mark){ .flag = &lease->kept });
        snapshot_lease_done(&record);
        return added;
}

/* All or nothing. */
static bool add_hold(HolderChild *child, Hold *hold)
{
        const HolderMessage before = { .len = keeper.message.len, .n = keeper.message.n, .n_fds = keeper.message.n_fds };
        const unsigned marks = keeper.n_marks;
        Lease *lease = hold->resource->lease;
        HolderObject said = {
                .id = HOLDER_ID(HOLDER_HOLD, hold->number),
                .owner = HOLDER_ID(HOLDER_OWNER, hold->owner->number),
                .lease = HOLDER_ID(HOLDER_LEASE, lease->id),
        };
        const bool was_kept = hold->kept;
        lockd_hold record;

        if (holder_child_reserve(child) == 0 && add_owner(child, hold->owner) && add_peers(child, hold->owner) && add_lease(lease)) {
                snapshot_hold(hold, &record);
                if (add_object(STATE_HOLD, &record, &said, -1, (Mark){ .flag = was_kept ? NULL : &hold->kept }))
                        return true;
        }
        undo_marks(marks);
        keeper.message.len = before.len;
        keeper.message.n = before.n;
        keeper.message.n_fds = before.n_fds;
        return false;
}

/* ---- those who wait ---- */

static void arm_timer(uint64_t usec)
{
        int enabled = SD_EVENT_OFF;

        (void)sd_event_source_get_enabled(keeper.timer, &enabled);
        if (enabled != SD_EVENT_OFF)
                return;
        (void)sd_event_source_set_time_relative(keeper.timer, usec);
        (void)sd_event_source_set_enabled(keeper.timer, SD_EVENT_ONESHOT);
}

static bool is_put(const Caller *caller)
{
        const ListNode *holds = &queue_of(caller->keeper)->holds;

        return list_empty(holds) || list_entry(holds->next, Hold, in_unkept)->turn > caller->turn;
}

static void answer_waits(void)
{
        const uint64_t now = now_usec();
        uint64_t next = 0;

        list_for_each_safe(node, &keeper.waits) {
                Caller *caller = list_entry(node, Caller, in_unkept);
                Queue *queue = queue_of(caller->keeper);

                if (!is_put(caller) && now < caller->until && !queue->stuck) {
                        next = next ? next : caller->until;
                        continue;
                }
                if (!is_put(caller) && !queue->stuck) {
                        queue->stuck = true;
                        log_error("the holder (process %d for %s) takes nothing: calls are answered without it; a crash of lockd would "
                                  "lose their locks", (int)holder_child_pid(caller->keeper), holder_child_name(caller->keeper));
                }
                list_unlink(node);
                caller->answer_later(caller, NULL, NULL);
        }
        if (next)
                arm_timer(next > now ? next - now : 1);
}

/* ---- putting ---- */

/* One message of what is first in the queue. 0: go on; 1: nothing is left; -errno: not now. */
static int put_some(HolderChild *child)
{
        Queue *queue = queue_of(child);
        unsigned n = 0;
        int r;

        if (list_empty(&queue->holds))
                return 1;
        holder_message_init(&keeper.message);
        keeper.n_marks = 0;
        list_for_each(node, &queue->holds) {
                if (keeper.message.len > HOLDER_BATCH || !add_hold(child, list_entry(node, Hold, in_unkept)))
                        break;
                n++;
        }
        if (n == 0) {
                Hold *hold = list_entry(queue->holds.next, Hold, in_unkept);

                /* Not even alone: too long, or no memory. It goes to the end, unprotected for now. */
                log_error("'%s' cannot be given to the holder: a crash of lockd would lose this lock (%s)", log_name(hold->resource->name),
                          fault_trail());
                list_unlink(&hold->in_unkept);
                return -EMSGSIZE;
        }
        r = holder_child_put(child, &keeper.message);
        if (r < 0) {
                undo_marks(0);
                if (r == -EMFILE && !queue->full)
                        log_error("the holder has no room for more files: raise LimitNOFILE of lockd-holder; a crash of lockd would lose "
                                  "new locks");
                queue->full = queue->full || r == -EMFILE;
                return r;
        }
        if (queue->stuck || queue->full)
                log_warning("the holder takes locks again");
        queue->stuck = queue->full = false;
        while (n-- > 0)
                list_unlink(queue->holds.next);
        return 0;
}

static void put_all(HolderChild *child)
{
        int r;

        while ((r = put_some(child)) == 0)
                ;
        if (r == -EMFILE || r == -EMSGSIZE)
                arm_timer(KEEPER_WAIT_USEC);
        if (!list_empty(&keeper.waits))
                answer_waits();
}

static void put_everything(void)
{
        for (HolderChild *child = NULL; (child = holder_link_next(keeper.link, child));)
                put_all(child);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
        (void)source;
        (void)usec;
        (void)userdata;
        put_everything();
        answer_waits();
        return 0;
}

/* What nobody waits for is put in a moment. */
static int on_puts(sd_event_source *source, uint64_t usec, void *userdata)
{
        (void)source;
        (void)usec;
        (void)userdata;
        keeper.puts_armed = false;
        put_everything();
        return 0;
}

/* One for each file system. A device is opened by a node: that is on another one than the data. */
static HolderChild *child_of(const Lease *lease)
{
        static HolderChild *last;
        static uint64_t last_dev;
        char name[HOLDER_NAME_MAX + 1];

        if (lease->file.fd < 0 || lease->file.id.block)
                return holder_link_child(keeper.link, lease->file.fd < 0 ? "none" : "devices");
        if (!last || lease->file.id.dev != last_dev) {
                last_dev = lease->file.id.dev;
                (void)snprintf(name, sizeof(name), "%u-%u", major(last_dev), minor(last_dev));
                last = holder_link_child(keeper.link, name);
        }
        return last;
}

static void enqueue(Hold *hold)
{
        Lease *lease = hold->resource->lease;

        if (!lease->keeper)
                lease->keeper = child_of(lease);
        if (list_linked(&hold->in_unkept))
                return;
        hold->turn = ++keeper.turn;
        list_append(&queue_of(lease->keeper)->holds, &hold->in_unkept);
        if (!keeper.puts_armed && keeper.puts) {
                keeper.puts_armed = true;
                (void)sd_event_source_set_time_relative(keeper.puts, PUTS_USEC);
                (void)sd_event_source_set_enabled(keeper.puts, SD_EVENT_ONESHOT);
        }
}

/* ---- what happens ---- */

static void hold_changed(Hold *hold)
{
        if (keeper.journal && hold->resource->lease->file.fd >= 0 && journal_put(keeper.journal, hold) < 0 &&
            !keeper.journal_failed) {
                keeper.journal_failed = true;
                log_error("the journal cannot be written: %s; it does not have all locks", fault_trail());
        }
        enqueue(hold);
        keeper.last_child = hold->resource->lease->keeper;
}

static void hold_gone(Hold *hold)
{
        HolderChild *child = hold->resource->lease->keeper;

        list_unlink(&hold->in_unkept);
        if (keeper.journal)
                journal_drop(keeper.journal, hold);
        if (hold->kept)
                holder_child_drop(child, HOLDER_ID(HOLDER_HOLD, hold->number), false);
        hold->kept = false;
}

static bool lease_releasing(Lease *lease)
{
        const HolderObject said = { .id = HOLDER_ID(HOLDER_LEASE, lease->id), .flags = HOLDER_RELEASING | HOLDER_SAME };

        /* First the journal: what the holder says is being released must not be in it, or it would be locked again. */
        list_for_each(node, &lease->holds)
                if (keeper.journal)
                        journal_drop(keeper.journal, list_entry(node, Hold, in_lease));
        if (!lease->kept)
                return true;
        holder_message_init(&keeper.message);
        (void)holder_message_add(&keeper.message, &said, NULL, -1);
        return holder_child_put(lease->keeper, &keeper.message) == 0;
}

static void lease_gone(Lease *lease)
{
        if (lease->kept)
                holder_child_drop(lease->keeper, HOLDER_ID(HOLDER_LEASE, lease->id), true);
        lease->kept = false;
}

/* It goes along with one of its holds. */
static void owner_changed(Owner *owner)
{
        owner->kept_words = 0;
        if (owner->kept)
                list_for_each(node, &owner->holds)
                        enqueue(list_entry(node, Hold, in_owner));
}

static void drop_everywhere(uint64_t mask, uint64_t id)
{
        for (HolderChild *child = NULL; mask && (child = holder_link_next(keeper.link, child));)
                if (mask & holder_child_bit(child))
                        holder_child_drop(child, id, true);
}

static void owner_gone(Owner *owner)
{
        drop_everywhere(owner->kept, HOLDER_ID(HOLDER_OWNER, owner->number));
        owner->kept = 0;
}

static void peer_gone(Caller *caller)
{
        drop_everywhere(caller->kept, HOLDER_ID(HOLDER_PEER, caller->number));
        caller->kept = 0;
}

static void keep_services(void);

static void lockspace_added(Lockspace *lockspace)
{
        (void)lockspace;
        keep_services();
}

static bool is_safe(Caller *caller)
{
        HolderChild *child = keeper.last_child;
        Queue *queue = child ? queue_of(child) : NULL;

        if (!child)
                return true;
        put_all(child);
        if (queue->stuck || list_empty(&queue->holds) || (!holder_child_ready(child) && holder_link_failing(keeper.link)))
                return true;
        caller->later = LOCKD_LATER_HOLDER;
        caller->keeper = child;
        caller->turn = keeper.turn;
        caller->until = now_usec() + KEEPER_WAIT_USEC;
        list_append(&keeper.waits, &caller->in_unkept);
        arm_timer(KEEPER_WAIT_USEC);
        return false;
}

static void give_up(void)
{
        LeaseTable *leases = lockspace_leases(keeper.parts.lockspaces);
        size_t cursor = 0;

        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                list_for_each(node, &lease->holds)
                        hold_gone(list_entry(node, Hold, in_lease));
                lease_gone(lease);
        }
        list_for_each(node, owner_table_all(keeper.parts.owners)) {
                Owner *owner = list_entry(node, Owner, in_all);

                list_for_each(own, &owner->own_callers)
                        peer_gone(list_entry(own, Caller, in_owner));
                owner_gone(owner);
        }
        keeper_leave();
}

static void resume(void)
{
        LeaseTable *leases = lockspace_leases(keeper.parts.lockspaces);
        size_t cursor = 0;

        keeper.leaving = keeper.listeners_kept = false;
        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++)
                list_for_each(node, &lease->holds)
                        hold_changed(list_entry(node, Hold, in_lease));
        keep_services();
        put_everything();
}

static const KeepCalls calls = {
        .hold_changed = hold_changed,
        .hold_gone = hold_gone,
        .lease_releasing = lease_releasing,
        .lease_gone = lease_gone,
        .owner_changed = owner_changed,
        .owner_gone = owner_gone,
        .peer_gone = peer_gone,
        .lockspace_added = lockspace_added,
        .is_safe = is_safe,
        .give_up = give_up,
        .resume = resume,
};

/* ---- what the listener keeps ---- */

static lockd_bytes borrow(const char *text)
{
        return (lockd_bytes){ text ? (u_int)strlen(text) : 0, (char *)(uintptr_t)text };
}

static uint64_t service_id(unsigned kind, uint64_t number)
{
        return HOLDER_ID(kind, keeper.services_before + number);
}

static void put_service(StateKind kind, const void *record, HolderObject said, int fd, bool *flag)
{
        if (*flag)
                return;
        holder_message_init(&keeper.message);
        keeper.n_marks = 0;
        if (!add_object(kind, record, &said, fd, (Mark){ .flag = flag }) || holder_child_put(holder_link_listener(keeper.link), &keeper.message) < 0)
                undo_marks(0);
}

/* The listeners, so that clients can wait while no lockd is there, and the lockspaces, which libvirt names only once. */
static void keep_services(void)
{
        static bool kept[RESTORE_SERVERS];

        if (!holder_child_ready(holder_link_listener(keeper.link)) || keeper.leaving)
                return;
        for (int i = 0; i < RESTORE_SERVERS; i++) {
                struct stat st = { 0 };
                lockd_listener record = { .server = (lockd_server)i, .fd = -1, .guard = -1, .path = borrow(keeper.parts.paths[i]) };

                if (!keeper.listeners_kept)
                        kept[i] = false;
                if (keeper.parts.paths[i] && lstat(keeper.parts.paths[i], &st) == 0) {
                        record.dev = st.st_dev;
                        record.ino = st.st_ino;
                }
                /* One that systemd opened is systemd's. */
                if (keeper.parts.paths[i] && keeper.parts.listeners[i])
                        put_service(STATE_LISTENER, &record, (HolderObject){ .id = service_id(HOLDER_LISTENER, (unsigned)i + 1) },
                                    listener_fd(keeper.parts.listeners[i]), &kept[i]);
        }
        keeper.listeners_kept = true;
        for (const Lockspace *l = lockspace_next(keeper.parts.lockspaces, NULL); l; l = lockspace_next(keeper.parts.lockspaces, l)) {
                const lockd_lockspace record = { .path = borrow(l->path), .extra = borrow(l->extra) };
                bool *flag = (bool *)(uintptr_t)&l->kept;

                put_service(STATE_LOCKSPACE, &record, (HolderObject){ .id = service_id(HOLDER_LOCKSPACE, l->number) }, -1, flag);
        }
}

/* ---- the processes of the holder ---- */

static void on_ready(HolderChild *child, void *userdata)
{
        (void)userdata;
        if (child == holder_link_listener(keeper.link))
                keep_services();
        put_all(child);
}

static void forget_lease(Lease *lease)
{
        lease->kept = false;
        list_for_each(node, &lease->holds) {
                Hold *hold = list_entry(node, Hold, in_lease);

                hold->kept = false;
                enqueue(hold);
        }
}

static void on_gone(HolderChild *child, void *userdata)
{
        LeaseTable *leases = lockspace_leases(keeper.parts.lockspaces);
        const uint64_t bit = holder_child_bit(child);
        size_t cursor = 0;

        (void)userdata;
        if (child == holder_link_listener(keeper.link)) {
                keeper.listeners_kept = false;
                for (const Lockspace *l = lockspace_next(keeper.parts.lockspaces, NULL); l; l = lockspace_next(keeper.parts.lockspaces, l))
                        ((Lockspace *)(uintptr_t)l)->kept = false;
        }
        list_for_each(node, owner_table_all(keeper.parts.owners)) {
                Owner *owner = list_entry(node, Owner, in_all);

                owner->kept &= ~bit;
                list_for_each(own, &owner->own_callers)
                        list_entry(own, Caller, in_owner)->kept &= ~bit;
        }
        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++)
                if (lease->keeper == child)
                        forget_lease(lease);
}

/* It had no memory, or no free number for an fd: what it says that it has not is put again in a while. */
static void on_refused(HolderChild *child, uint64_t id, int error, void *userdata)
{
        LeaseTable *leases = lockspace_leases(keeper.parts.lockspaces);
        const uint64_t bit = holder_child_bit(child);
        size_t cursor = 0;

        (void)userdata;
        log_error("holder process %d refused %llx: %s; it is given again, but a crash of lockd would lose a lock", (int)holder_child_pid(child),
                  (unsigned long long)id, strerror(error));
        if (error == EEXIST)
                return;
        queue_of(child)->full = true;
        list_for_each(node, owner_table_all(keeper.parts.owners)) {
                Owner *owner = list_entry(node, Owner, in_all);

                if (id == HOLDER_ID(HOLDER_OWNER, owner->number))
                        owner->kept &= ~bit;
                list_for_each(own, &owner->own_callers)
                        if (id == HOLDER_ID(HOLDER_PEER, list_entry(own, Caller, in_owner)->number))
                                list_entry(own, Caller, in_owner)->kept &= ~bit;
        }
        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                if (id == HOLDER_ID(HOLDER_LEASE, lease->id))
                        forget_lease(lease);
                list_for_each(node, &lease->holds) {
                        Hold *hold = list_entry(node, Hold, in_lease);

                        if (lease->keeper == child &&
                            (id == HOLDER_ID(HOLDER_HOLD, hold->number) || id == HOLDER_ID(HOLDER_OWNER, hold->owner->number))) {
                                hold->kept = hold->kept && HOLDER_KIND(id) != HOLDER_HOLD;
                                enqueue(hold);
                        }
                }
        }
        arm_timer(KEEPER_WAIT_USEC);
}

static void on_late(void *userdata)
{
        (void)userdata;
        keeper.late(keeper.userdata);
}

/* ---- start and end ---- */

int keeper_find(sd_event *loop, const KeeperOptions *options, const Storage *storage, const char *state, char **ret_state,
                char **ret_why)
{
        static const HolderEvents events = { .ready = on_ready, .gone = on_gone, .refused = on_refused, .late = on_late };
        AdoptWish wish = { .storage = storage, .state = state };
        unsigned silent = 0;
        Adopted adopted = { 0 };
        pid_t busy = 0;
        int r;

        *ret_state = *ret_why = NULL;
        keeper.loop = loop;
        keeper.late = options->late;
        keeper.userdata = options->userdata;
        list_init(&keeper.waits);
        for (size_t i = 0; i < HOLDER_CHILDREN_MAX; i++)
                list_init(&keeper.queues[i].holds);
        r = holder_link_new(loop, options->dir, options->program, &events, &keeper.link);
        if (r < 0)
                return PASS(r);
        r = holder_link_collect(keeper.link, &keeper.found, &silent, &busy);
        if (r == HOLDER_LINK_E_BUSY) {
                if (asprintf(ret_why, "another lockd (pid %d) is connected to the holder in %s: stop it first, or choose another "
                             "holder_dir in lockd.conf", (int)busy, options->dir) < 0)
                        *ret_why = NULL;
                return KEEPER_E_BUSY;
        }
        if (r < 0)
                log_error("lockd-holder cannot be started in %s: %s (%s); a crash of lockd would lose its locks", options->dir, strerror(-r),
                          fault_trail());
        keeper.silent = silent > 0;
        keeper.dir = options->dir;
        for (int i = 0; i < RESTORE_SERVERS; i++)
                wish.sockets[i] = options->sockets[i];
        r = adopt(keeper.found, &wish, &adopted);
        if (r < 0)
                log_error("what the holder keeps cannot be adopted: %s (%s); it stays locked", strerror(-r), fault_trail());
        if (adopted.leases > 0 || adopted.finished > 0 || adopted.left > 0)
                log_warning("%zu leases adopted from the holder, %zu releases finished, %zu left that cannot be made out", adopted.leases,
                            adopted.finished, adopted.left);
        keeper.in_doubt = silent > 0 || adopted.left > 0 || r < 0;
        *ret_state = adopted.state;
        return 0;
}

/* ---- matching what was found with what was restored ---- */

typedef struct Match {
        UT_hash_handle hh;
        uint64_t id;
        HolderFound *found; /* the copies by next_same */
} Match;

static int mark_kept(Match *matches, uint64_t id, int fd, uint64_t *ret_mask, HolderChild **ret_child)
{
        Match *match;
        int n = 0;

        *ret_mask = 0;
        HASH_FIND(hh, matches, &id, sizeof(id), match);
        for (HolderFound *f = match ? match->found : NULL; f; f = f->next_same)
                if (holder_child_ready(f->child)) {
                        *ret_mask |= holder_child_bit(f->child);
                        *ret_child = f->child;
                        f->fate = HOLDER_FOUND_KEEP;
                        if (f->fd == fd)
                                f->fd = -1; /* the tables have it */
                        n++;
                }
        return n;
}

static void mark_tables(Match *matches)
{
        LeaseTable *leases = lockspace_leases(keeper.parts.lockspaces);
        HolderChild *child = NULL;
        size_t cursor = 0;
        uint64_t mask;

        list_for_each(node, owner_table_all(keeper.parts.owners)) {
                Owner *owner = list_entry(node, Owner, in_all);

                (void)mark_kept(matches, HOLDER_ID(HOLDER_OWNER, owner->number), owner->pidfd, &owner->kept, &child);
                owner->kept_words = owner->kept;
                list_for_each(own, &owner->own_callers) {
                        Caller *caller = list_entry(own, Caller, in_owner);

                        (void)mark_kept(matches, HOLDER_ID(HOLDER_PEER, caller->number), caller->socket, &caller->kept, &child);
                }
        }
        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                lease->kept = mark_kept(matches, HOLDER_ID(HOLDER_LEASE, lease->id), lease->file.fd, &mask, &child) > 0;
                if (lease->kept)
                        lease->keeper = child;
                list_for_each(node, &lease->holds) {
                        Hold *hold = list_entry(node, Hold, in_lease);

                        hold->kept = mark_kept(matches, HOLDER_ID(HOLDER_HOLD, hold->number), -1, &mask, &child) > 0;
                        if (!lease->kept || !hold->kept || !(hold->owner->kept & holder_child_bit(child)))
                                enqueue(hold);
                }
        }
}

static void match_found(void)
{
        Match *matches = NULL, *match, *next;

        for (HolderFound *f = keeper.found; f; f = f->next) {
                HASH_FIND(hh, matches, &f->said.id, sizeof(f->said.id), match);
                if (match) {
                        f->next_same = match->found;
                        match->found = f;
                        continue;
                }
                match = calloc(1, sizeof(*match));
                if (!match)
                        continue; /* not known to be kept: put again, refused, and said so */
                match->id = f->said.id;
                match->found = f;
                HASH_ADD(hh, matches, id, sizeof(match->id), match);
                if (!hash_added(match))
                        free(match);
        }
        mark_tables(matches);
        for (HolderFound *f = keeper.found; f; f = f->next)
                for (int i = 0; i < RESTORE_SERVERS && HOLDER_KIND(f->said.id) == HOLDER_LISTENER; i++)
                        if (f->fd == listener_fd(keeper.parts.listeners[i]))
                                f->fd = -1;
        /* Listeners and lockspaces have been given again under new numbers. */
        for (HolderFound *f = keeper.found; f; f = f->next)
                if (f->fate == HOLDER_FOUND_DROP || HOLDER_KIND(f->said.id) <= HOLDER_LOCKSPACE ||
                    (f->fate == HOLDER_FOUND_OPEN && HOLDER_KIND(f->said.id) != HOLDER_LEASE))
                        holder_child_drop(f->child, f->said.id, f->said.flags & HOLDER_HAS_FD);
        HASH_ITER(hh, matches, match, next) {
                HASH_DEL(matches, match);
                free(match);
        }
        holder_found_free(keeper.found);
        keeper.found = NULL;
}

/* What is held is in the journal from now on; what is in the journal only is locked again. */
static void start_journal(const RestoreParts *parts)
{
        LeaseTable *leases = lockspace_leases(parts->lockspaces);
        RegainParts regain = { .loop = keeper.loop, .lockspaces = parts->lockspaces, .owners = parts->owners, .reaper = parts->reaper,
                               .in_doubt = keeper.in_doubt };
        size_t cursor = 0;
        int r;

        r = journal_open(keeper.dir, &keeper.journal);
        if (r < 0) {
                log_error("there is no journal: %s (%s); without lockd and the holder, locks are lost", strerror(-r), fault_trail());
                return;
        }
        lease_skip_numbers(leases, journal_newest(keeper.journal));
        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++)
                list_for_each(node, &lease->holds) {
                        Hold *hold = list_entry(node, Hold, in_lease);

                        if (lease->file.fd >= 0 && !journal_claim(keeper.journal, hold))
                                (void)journal_put(keeper.journal, hold);
                }
        regain.journal = keeper.journal;
        r = regain_all(&regain, &keeper.regain);
        if (r < 0)
                log_error("the journal: %s (%s)", strerror(-r), fault_trail());
        put_everything();
}

void keeper_start(const RestoreParts *parts)
{
        int r;

        keeper.parts = *parts;
        if (!keeper.link)
                return;
        r = sd_event_add_time_relative(keeper.loop, &keeper.timer, CLOCK_MONOTONIC, 0, 0, on_timer, NULL);
        if (r >= 0)
                r = sd_event_source_set_enabled(keeper.timer, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_add_time_relative(keeper.loop, &keeper.puts, CLOCK_MONOTONIC, 0, PUTS_USEC, on_puts, NULL);
        if (r < 0) {
                log_error("without the holder: %s", strerror(-r));
                keeper_stop();
                return;
        }
        for (HolderFound *f = keeper.found; f; f = f->next)
                if (HOLDER_KIND(f->said.id) <= HOLDER_LOCKSPACE && HOLDER_NUMBER(f->said.id) > keeper.services_before)
                        keeper.services_before = HOLDER_NUMBER(f->said.id);
        keep_services();
        match_found();
        keep_set(&calls);
        put_everything();
        start_journal(parts);
        if (keeper.silent) {
                /* What a silent one has, has numbers, too. */
                struct timespec now;
                uint64_t number;

                clock_gettime(CLOCK_REALTIME, &now);
                number = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
                lease_skip_numbers(lockspace_leases(parts->lockspaces), number);
                owner_table_set_newest(parts->owners, number);
                peer_set_set_newest(parts->peers[RESTORE_LOCK], number);
        }
}

void keeper_stop(void)
{
        keep_set(NULL);
        holder_found_free(keeper.found);
        keeper.found = NULL;
        keeper.timer = sd_event_source_disable_unref(keeper.timer);
        keeper.puts = sd_event_source_disable_unref(keeper.puts);
        keeper.regain = regain_free(keeper.regain);
        keeper.journal = journal_close(keeper.journal);
        keeper.link = holder_link_free(keeper.link);
}

bool keeper_has_all(void)
{
        size_t unkept;

        for (int i = 0; keeper.link && i < SETTLE_TRIES; i++) {
                bool left = false;

                put_everything();
                for (size_t queue = 0; queue < HOLDER_CHILDREN_MAX; queue++)
                        left = left || !list_empty(&keeper.queues[queue].holds);
                if (!left)
                        break;
                (void)poll(NULL, 0, 1);
        }
        return strcmp(keeper_status(&unkept), "connected") == 0 && unkept == 0;
}

void keeper_flush(void)
{
        if (keeper.link)
                holder_link_flush(keeper.link, true);
}

void keeper_leave(void)
{
        if (!keeper.link)
                return;
        keeper.leaving = true;
        for (int i = 0; i < RESTORE_SERVERS; i++)
                holder_child_drop(holder_link_listener(keeper.link), service_id(HOLDER_LISTENER, (unsigned)i + 1), true);
        keeper_flush();
}

static bool is_kept(const Lease *lease)
{
        if (lease->file.fd >= 0 && (!lease->kept || lease->file.kind == LOCK_CLASSIC))
                return false;
        list_for_each(node, &lease->holds)
                if (!list_entry(node, Hold, in_lease)->kept)
                        return false;
        return true;
}

const char *keeper_status(size_t *ret_unkept)
{
        LeaseTable *leases = keeper.parts.lockspaces ? lockspace_leases(keeper.parts.lockspaces) : NULL;
        size_t cursor = 0;
        bool stuck = false;

        *ret_unkept = 0;
        for (Lease *lease; leases && (lease = lease_next(leases, &cursor)); cursor++)
                *ret_unkept += !is_kept(lease);
        if (!keeper.link)
                return "off";
        for (size_t i = 0; i < HOLDER_CHILDREN_MAX; i++)
                stuck = stuck || keeper.queues[i].stuck || keeper.queues[i].full;
        if (stuck)
                return "stuck";
        return holder_child_ready(holder_link_listener(keeper.link)) ? "connected" : "missing";
}
