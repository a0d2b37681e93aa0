/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a state that can be read is restored as far as it can be: what cannot costs at most its connection, never
 * the fd of a lock. In a trial the first thing that cannot be restored is a failure instead.
 */
#include "restore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOG_SOURCE "upgrade"
#include "cleanup.h"
#include "fault.h"
#include "hash.h"
#include "log.h"
#include "rpc.h"
#include "snapshot.h"
#include "state.h"

int restore_take_state(char **ret, int *ret_fd)
{
        const char *value = getenv(RESTORE_VARIABLE);
        _cleanup_free_ char *text = NULL;
        struct stat st;
        size_t len = 0;

        *ret = NULL;
        *ret_fd = -1;
        if (!value)
                return 0;
        *ret_fd = atoi(value);
        (void)unsetenv(RESTORE_VARIABLE);
        if (fstat(*ret_fd, &st) < 0)
                return FAULT(-errno);
        text = malloc((size_t)st.st_size + 1);
        if (!text)
                return FAULT(-ENOMEM);
        while (len < (size_t)st.st_size) {
                ssize_t n = pread(*ret_fd, text + len, (size_t)st.st_size - len, (off_t)len);

                if (n <= 0)
                        return FAULT(n < 0 ? -errno : -EBADMSG);
                len += (size_t)n;
        }
        text[len] = '\0';
        *ret = TAKE_PTR(text);
        return 0;
}

/* Calls handle for each record until it fails; only: the start of the lines that matter,
 * NULL: all do. strict: also a line that cannot be read is a failure. The text is left as it was. Lines of an unknown kind go to
 * unknown, if that is not NULL. */
static int for_each_record(const char *state, int (*handle)(StateKind kind, StateRecord *record, void *userdata), void *userdata,
                           FILE *unknown, const char *only, bool strict)
{
        _cleanup_free_ char *line = NULL;
        size_t size = 0;

        while (*state) {
                size_t len = strcspn(state, "\n");
                StateRecord record;
                StateKind kind;
                int r;

                if (only && strncmp(state, only, strlen(only)) != 0) {
                        state += len + (state[len] == '\n');
                        continue;
                }
                if (len + 1 > size) {
                        char *larger = realloc(line, len + 1);

                        if (!larger)
                                return FAULT(-ENOMEM);
                        line = larger;
                        size = len + 1;
                }
                memcpy(line, state, len);
                line[len] = '\0';
                state += len + (state[len] == '\n');
                r = state_read(line, &kind, &record);
                if (r == STATE_E_UNKNOWN) {
                        if (unknown)
                                (void)fprintf(unknown, "%s\n", line);
                        continue;
                }
                if (r < 0 && !strict && r != -ENOMEM) {
                        log_error("a line of the state cannot be read: %s (%s): %.200s", strerror(-r), fault_trail(), line);
                        continue;
                }
                if (r < 0)
                        return PASS(r);
                r = handle(kind, &record, userdata);
                state_done(kind, &record);
                if (r < 0)
                        return PASS(r);
        }
        return 0;
}

/* An eventfd of its own for each number: epoll refuses a file that is watched in too many ways. */
static int stand_in_at(int number)
{
        int fd, r;

        if (number <= STDERR_FILENO)
                return 0;
        fd = eventfd(0, EFD_CLOEXEC);
        if (fd == number)
                return 0;
        r = fd < 0 || dup2(fd, number) < 0 ? FAULT(-errno) : 0;
        close_fd(fd);
        return r;
}

static int stand_in(StateKind kind, StateRecord *record, void *userdata)
{
        int r;

        (void)userdata;
        switch (kind) {
        case STATE_LISTENER:
                r = stand_in_at(record->listener.fd);
                return r < 0 ? PASS(r) : PASS(stand_in_at(record->listener.guard));
        case STATE_OWNER:
                return PASS(stand_in_at(record->owner.pidfd));
        case STATE_PEER:
                return PASS(stand_in_at(record->peer.fd));
        case STATE_LEASE:
                r = stand_in_at(record->lease.fd);
                for (u_int i = 0; r == 0 && i < record->lease.others.others_len; i++)
                        r = stand_in_at(record->lease.others.others_val[i]);
                return PASS(r);
        case STATE_STRAY:
                return PASS(stand_in_at(record->stray.fd));
        case STATE_HEADER:
        case STATE_LOCKSPACE:
        case STATE_END:
        default:
                return 0;
        }
}

int restore_stand_in(const char *state)
{
        return PASS(for_each_record(state, stand_in, NULL, NULL, NULL, true));
}

/* number -> object, while the state is read. */
typedef struct Ref {
        UT_hash_handle hh;
        uint64_t number;
        void *object;
} Ref;

typedef struct Restore {
        RestoreParts *parts;
        bool trial;
        bool patient; /* a shortage of memory or the like may pass: rather try all of it again */
        bool begun, ended;
        int problems;
        Ref *owners, *callers;
        lockd_end seen;
        uint8_t *claimed; /* by fd number: a record has it */
        size_t n_claimed;
        Owner *nobody;    /* holds what cannot be given to its owner */
} Restore;


static void *ref_find(Ref *refs, uint64_t number)
{
        Ref *ref;

        HASH_FIND(hh, refs, &number, sizeof(number), ref);
        return ref ? ref->object : NULL;
}

static int ref_add(Ref **refs, uint64_t number, void *object)
{
        Ref *ref = calloc(1, sizeof(*ref));

        if (!ref)
                return FAULT(-ENOMEM);
        ref->number = number;
        ref->object = object;
        HASH_ADD(hh, *refs, number, sizeof(ref->number), ref);
        if (!hash_added(ref)) {
                free(ref);
                return FAULT(-ENOMEM);
        }
        return 0;
}

static void refs_free(Ref *refs)
{
        Ref *ref, *next;

        HASH_ITER(hh, refs, ref, next) {
                HASH_DEL(refs, ref);
                free(ref);
        }
}

static void claim(Restore *restore, int fd)
{
        if (fd < 0)
                return;
        if ((size_t)fd >= restore->n_claimed) {
                size_t n = ((size_t)fd + 1) * 2;
                uint8_t *larger = realloc(restore->claimed, n);

                if (!larger)
                        return; /* then it is told of as unclaimed, and kept */
                memset(larger + restore->n_claimed, 0, n - restore->n_claimed);
                restore->claimed = larger;
                restore->n_claimed = n;
        }
        restore->claimed[fd] = 1;
}

/* Something could not be restored: r, when that ends the attempt, or 0 to go on without it. */
static int problem(Restore *restore, const char *what, uint64_t number, int r)
{
        if (restore->patient && (r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -ENOSPC))
                return r;
        restore->problems++;
        if (restore->trial) {
                fprintf(stderr, "%s %llu cannot be restored: %s\n", what, (unsigned long long)number, strerror(-r));
                return r;
        }
        log_error("%s %llu cannot be restored: %s (%s)", what, (unsigned long long)number, strerror(-r), fault_trail());
        return 0;
}

static const char *text_of(const lockd_bytes *bytes)
{
        return bytes->lockd_bytes_val ? bytes->lockd_bytes_val : "";
}

static int restore_header(Restore *restore, const lockd_header *header)
{
        if (header->format > STATE_FORMAT)
                return problem(restore, "a state of format", header->format, FAULT(-EPROTONOSUPPORT));
        if (header->binary.lockd_bytes_len > 0)
                restore->parts->binary = strdup(header->binary.lockd_bytes_val);
        restore->parts->ending = header->ending;
        restore->begun = true;
        lease_set_newest(lockspace_leases(restore->parts->lockspaces), header->lease_newest);
        peer_set_set_newest(restore->parts->peers[RESTORE_LOCK], header->peer_newest);
        owner_table_set_newest(restore->parts->owners, header->owner_newest);
        return 0;
}

static int add_stray(RestoreParts *parts, int fd)
{
        int *strays = reallocarray(parts->strays, parts->n_strays + 1, sizeof(*strays));

        if (!strays)
                return FAULT(-ENOMEM);
        strays[parts->n_strays++] = fd;
        parts->strays = strays;
        return 0;
}

/* An fd of which nothing is known but that it may be a lock: it goes along from image to image. */
static int restore_stray(Restore *restore, const lockd_stray *record)
{
        int r = add_stray(restore->parts, record->fd);

        claim(restore, record->fd);
        return r < 0 ? problem(restore, "stray fd", (uint64_t)record->fd, r) : 0;
}

static int restore_listener(Restore *restore, const lockd_listener *record)
{
        RestoreParts *parts = restore->parts;
        unsigned server = (unsigned)record->server;

        if (server >= RESTORE_SERVERS || (!restore->trial && fcntl(record->fd, F_GETFD) < 0))
                return problem(restore, "listener", server, -EINVAL);
        claim(restore, record->fd);
        claim(restore, record->guard);
        parts->fds[server] = record->fd;
        parts->guards[server] = record->guard;
        if (record->path.lockd_bytes_len > 0) {
                parts->paths[server] = strdup(text_of(&record->path));
                if (!parts->paths[server])
                        return problem(restore, "listener", server, -ENOMEM);
        }
        return 0;
}

static int restore_lockspace(Restore *restore, const lockd_lockspace *record)
{
        int r = lockspace_restore(restore->parts->lockspaces, text_of(&record->path), record->extra.lockd_bytes_val);

        restore->seen.lockspaces += r == 0;
        return r < 0 ? problem(restore, text_of(&record->path), 0, r) : 0;
}

static int restore_owner(Restore *restore, const lockd_owner *record)
{
        Owner *owner;
        int r;

        claim(restore, record->pidfd);
        r = snapshot_restore_owner(restore->parts->owners, record, &owner);
        if (r == 0)
                r = ref_add(&restore->owners, record->number, owner);
        restore->seen.owners += r == 0;
        return r < 0 ? problem(restore, "owner", record->number, r) : 0;
}

static int restore_peer(Restore *restore, const lockd_peer *record)
{
        Owner *owner = ref_find(restore->owners, record->owner);
        unsigned server = (unsigned)record->server;
        Peer *peer;
        int r = 0;

        claim(restore, record->fd);
        if (server >= RESTORE_SERVERS || (record->owner != 0 && !owner))
                r = FAULT(-EINVAL);
        if (r == 0)
                r = peer_restore(restore->parts->peers[server], record, owner, &peer);
        if (r < 0) {
                r = problem(restore, "connection", record->number, r);
                if (r < 0)
                        return r;
                /* Its end can no longer be seen: an own connection counts as open until an administrator decides. */
                if (record->own && owner) {
                        owner->peers++;
                        owner->own_peers++;
                } else if (!record->own)
                        close_fd(record->fd);
                return 0;
        }
        restore->seen.peers++;
        if (server == RESTORE_LOCK)
                r = ref_add(&restore->callers, record->number, peer_caller(peer));
        return r < 0 ? problem(restore, "connection", record->number, r) : 0;
}

/* The owner of what has none any more, so that it is listed and can be released by name. */
static Owner *nobody(Restore *restore)
{
        static char name[] = "unknown";
        const Owner seed = { .name = name, .key = { .id = OWNER_ID_LOST }, .id = OWNER_ID_LOST, .pidfd = -1 };

        if (!restore->nobody && owner_restore(restore->parts->owners, &seed, &restore->nobody) == 0) {
                restore->nobody->number = owner_table_newest(restore->parts->owners) + 1;
                owner_table_set_newest(restore->parts->owners, restore->nobody->number);
                if (snapshot_resume_owner(restore->parts->reaper, restore->nobody, &(lockd_owner){ 0 }) < 0)
                        log_error("no memory to watch an owner");
        }
        return restore->nobody;
}

static int restore_holds(Restore *restore, Lease *lease, const lockd_record *record)
{
        int r = 0;

        for (u_int i = 0; r == 0 && i < record->holds.holds_len; i++) {
                const lockd_hold *hold = &record->holds.holds_val[i];
                Caller *taker = hold->taken_by ? ref_find(restore->callers, hold->taken_by) : NULL;
                Owner *owner = ref_find(restore->owners, hold->owner.number);

                if (!owner) {
                        r = problem(restore, "the owner of lease", record->id, -ESRCH);
                        owner = r == 0 ? nobody(restore) : NULL;
                        if (!owner)
                                return r < 0 ? r : FAULT(-ENOMEM);
                }
                r = snapshot_restore_hold(restore->parts->lockspaces, lease, hold, owner, taker ? &taker->taken : NULL);
                restore->seen.holds += r == 0;
        }
        return PASS(r);
}

static int restore_lease(Restore *restore, const lockd_record *record)
{
        Lease *lease = NULL;
        int r;

        r = snapshot_restore_lease(restore->parts->lockspaces, record, &lease);
        if (r == 0)
                r = restore_holds(restore, lease, record);
        if (r < 0 && lease && lease->n_holds == 0) {
                lease->file.fd = -1; /* stays open: it is reported as unclaimed */
                lease_free(lease);
                lease = NULL;
        }
        if (lease) {
                claim(restore, record->fd);
                for (u_int i = 0; i < record->others.others_len; i++)
                        claim(restore, record->others.others_val[i]);
                restore->seen.leases++;
        }
        return r < 0 ? problem(restore, "lease", record->id, r) : 0;
}

static int restore_end(Restore *restore, const lockd_end *end)
{
        const lockd_end *seen = &restore->seen;

        restore->ended = true;
        restore->seen.highest_fd = end->highest_fd;
        if (restore->begun && memcmp(end, seen, sizeof(*end)) == 0)
                return 0;
        log_error("the state%s had %llu lockspaces, %llu leases, %llu holds, %llu owners, %llu connections; restored were %llu, %llu, "
                  "%llu, %llu, %llu", restore->begun ? "" : " has no beginning; it", (unsigned long long)end->lockspaces,
                  (unsigned long long)end->leases, (unsigned long long)end->holds, (unsigned long long)end->owners,
                  (unsigned long long)end->peers, (unsigned long long)seen->lockspaces, (unsigned long long)seen->leases,
                  (unsigned long long)seen->holds, (unsigned long long)seen->owners, (unsigned long long)seen->peers);
        return restore->trial ? FAULT(-EBADMSG) : 0;
}

static int restore_record(StateKind kind, StateRecord *record, void *userdata)
{
        Restore *restore = userdata;

        switch (kind) {
        case STATE_HEADER:
                return PASS(restore_header(restore, &record->header));
        case STATE_LISTENER:
                return PASS(restore_listener(restore, &record->listener));
        case STATE_LOCKSPACE:
                return restore_lockspace(restore, &record->lockspace);
        case STATE_OWNER:
                return PASS(restore_owner(restore, &record->owner));
        case STATE_PEER:
                return PASS(restore_peer(restore, &record->peer));
        case STATE_LEASE:
                return PASS(restore_lease(restore, &record->lease));
        case STATE_STRAY:
                return PASS(restore_stray(restore, &record->stray));
        case STATE_END:
        default:
                return PASS(restore_end(restore, &record->end));
        }
}

static int resume_record(StateKind kind, StateRecord *record, void *userdata)
{
        Restore *restore = userdata;

        if (kind == STATE_OWNER) {
                Owner *owner = ref_find(restore->owners, record->owner.number);
                int r = 0;

                /* Connections whose lines were lost are open all the same. */
                if (owner && !restore->trial && owner->own_peers < record->owner.connections) {
                        owner->peers += record->owner.connections - owner->own_peers;
                        owner->own_peers = record->owner.connections;
                }
                if (owner)
                        r = snapshot_resume_owner(restore->parts->reaper, owner, &record->owner);

                return r < 0 ? problem(restore, "owner", record->owner.number, r) : 0;
        }
        return 0;
}

static int resume_waits(StateKind kind, StateRecord *record, void *userdata)
{
        Restore *restore = userdata;

        if (kind == STATE_PEER && record->peer.server == LOCKD_SERVER_ADMIN)
                list_for_each(node, peer_set_all(restore->parts->peers[RESTORE_ADMIN])) {
                        Caller *caller = peer_caller(peer_of(node));

                        if (caller->number != record->peer.number)
                                continue;
                        if (record->peer.later == LOCKD_LATER_KILL)
                                rpc_admin_resume_kill(caller, ref_find(restore->owners, record->peer.waits_for));
                        else if (record->peer.later == LOCKD_LATER_UPGRADE && !restore->trial)
                                caller->answer_later(caller, NULL, NULL);
                }
        return 0;
}

/* Deaths, kills and waits that were under way go on. */
static int resume(Restore *restore, const char *state)
{
        int r = for_each_record(state, resume_record, restore, NULL, "{\"owner\"", false);

        if (r == 0)
                r = for_each_record(state, resume_waits, restore, NULL, "{\"peer\"", false);
        return PASS(r);
}

/* Is it the listening socket of a server that has lost its record? */
static bool adopt_listener(Restore *restore, int fd)
{
        RestoreParts *parts = restore->parts;
        struct sockaddr_un address = { 0 };
        socklen_t len = sizeof(address);
        int listening = 0;
        socklen_t size = sizeof(listening);

        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening ||
            getsockname(fd, (struct sockaddr *)&address, &len) < 0)
                return false;
        for (int i = 0; i < RESTORE_SERVERS; i++)
                if (parts->fds[i] < 0 && parts->expected[i] && strcmp(parts->expected[i], address.sun_path) == 0) {
                        parts->fds[i] = fd;
                        return true;
                }
        return false;
}

/* An fd that came along and that no record has: if it is locked, it becomes a lease of nobody; it is kept in any case. */
static void adopt_unclaimed(Restore *restore, int fd)
{
        char link[48], target[PATH_MAX];
        Lockfile file = LOCKFILE_NONE;
        ssize_t n;
        int r;

        (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        n = readlink(link, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        r = lockfile_adopt(fd, &file, NULL);
        if (r == 0) {
                const lockd_bytes name = { (u_int)strlen(target), target }, space = { 0, target + n };
                lockd_hold hold = { .resource = name, .lockspace = space };
                const lockd_record record = {
                        .id = lease_newest(lockspace_leases(restore->parts->lockspaces)) + 1,
                        .lockspace = space,
                        .resource = name,
                        .mode = file.shared ? LOCKD_MODE_SHARED : LOCKD_MODE_EXCLUSIVE,
                        .kind = file.kind == LOCK_CLASSIC ? LOCKD_KIND_CLASSIC : LOCKD_KIND_OFD,
                        .fd = fd,
                        .dev = file.id.dev,
                        .ino = file.id.ino,
                        .block = file.id.block != 0,
                        .holds = { 1, &hold },
                };

                r = restore_lease(restore, &record);
        } else if (adopt_listener(restore, fd))
                r = 0;
        else
                (void)add_stray(restore->parts, fd);
        log_error("fd %d (%s) came with the upgrade, but no record has it: it stays open%s", fd, log_name(target),
                  file.fd >= 0 && r == 0 ? " and is listed under the owner 'unknown'" : "");
}

/* The highest fd that came along, when the state does not say it. */
static unsigned highest_inherited(void)
{
        unsigned highest = 0;
        struct dirent *entry;
        DIR *dir = opendir("/proc/self/fd");

        while (dir && (entry = readdir(dir)))
                if ((unsigned)atoi(entry->d_name) > highest)
                        highest = (unsigned)atoi(entry->d_name);
        if (dir)
                (void)closedir(dir);
        return highest;
}

/* What this image was executed with is not close-on-exec yet; what it opened itself is. */
static void adopt_all_unclaimed(Restore *restore)
{
        unsigned highest = restore->seen.highest_fd > 0 ? restore->seen.highest_fd : highest_inherited();

        for (int fd = STDERR_FILENO + 1; fd <= (int)highest; fd++) {
                int flags;

                if ((size_t)fd < restore->n_claimed && restore->claimed[fd])
                        continue;
                flags = fcntl(fd, F_GETFD);
                if (flags >= 0 && !(flags & FD_CLOEXEC))
                        adopt_unclaimed(restore, fd);
        }
}

int restore_tables(RestoreParts *parts, const char *state, bool trial)
{
        const char *tries = getenv(RESTORE_TRIES_VARIABLE);
        Restore restore = { .parts = parts, .trial = trial, .patient = !trial && (tries ? atoi(tries) : 0) < RESTORE_TRIES_MAX };
        size_t unknown_len = 0;
        FILE *unknown = open_memstream(&parts->unknown, &unknown_len);
        int r = unknown ? 0 : FAULT(-ENOMEM);

        claim(&restore, parts->state_fd);
        if (r == 0)
                r = for_each_record(state, restore_record, &restore, unknown, NULL, trial || restore.patient);
        if (unknown)
                (void)fclose(unknown);
        if (unknown_len == 0)
                free(TAKE_PTR(parts->unknown));
        if (r == 0 && !restore.ended)
                r = trial ? FAULT(-EBADMSG) : (log_error("the state has no end: it was cut off"), 0);
        if (r == 0)
                r = resume(&restore, state);
        if (r == 0 && !trial)
                adopt_all_unclaimed(&restore);
        parts->seen = restore.seen;
        refs_free(restore.owners);
        refs_free(restore.callers);
        free(restore.claimed);
        return PASS(r);
}
