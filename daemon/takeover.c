/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: no fd that virtlockd left with a lock is closed while it is the only one that keeps that lock, and each of
 * them becomes a lease, whatever the file says or does not say of it.
 *
 * virtlockd knows owners by number only; processes are found again like this:
 *
 *   own connection (its peer has the owner's number), and the kernel has that process: proved, by its pidfd
 *   own connection, but the process is gone, or its number has another bearer:  dead, held until that connection closes
 *   no own connection, a process with that number lives:  held until it ends, never signalled (nothing proves it)
 *   no own connection, no such process:  held as by an owner without a process. Only its connection could have told when
 *       it is over, so nothing but RELEASE or an administrator, by name, ends it
 *   number 0 or -1 (virtlockd takes both for "no process"):  the same
 *
 * In each case the lock is held longer rather than shorter than virtlockd would have.
 *
 * virtlockd may have granted one inode exclusively under several names: that is one lease with all those holds, CONFLICT.
 */
#include "takeover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "takeover"
#include "cleanup.h"
#include "fault.h"
#include "hash.h"
#include "log.h"
#include "lockspace.h"
#include "owner.h"
#include "restore.h"
#include "state.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define FLAG_SHARED 1
#define FLAG_AUTOCREATE 2
#define FEED_MAX (1 << 30) /* bytes that the parser is given at once */
#define CLOCK_SLACK_TICKS 200U

/* An fd that this process was executed with. */
typedef struct Inherited {
        int fd;
        bool claimed;
} Inherited;

/* An owner to be. */
typedef struct ClaimKey {
        uint8_t uuid[OWNER_UUID_LEN];
        int32_t pid; /* as virtlockd has it, 0 and -1 too */
        uint32_t id;
} ClaimKey;

typedef struct Claimant {
        UT_hash_handle hh;
        ClaimKey key;
        char *name;
        lockd_owner record;
        int own_fd;          /* its newest own connection; -1: none */
        uint64_t accepted;   /* clock ticks since boot, of that connection */
        bool looked;         /* its process has been looked for */
        int pidfd;           /* of the process behind an own connection, alive; -1: none */
        bool unknown_kernel; /* which cannot tell the process behind a connection */
        bool doubt;          /* asking failed: it may live */
} Claimant;

/* Who has what virtlockd wrote down as this number's. */
typedef struct PidRef {
        UT_hash_handle hh;
        int32_t pid;
        unsigned n; /* identities that registered with it */
        Claimant *first;
} PidRef;

typedef struct Connection {
        lockd_peer record;
        Claimant *claimant; /* NULL: not registered */
} Connection;

typedef struct Found {
        char *lockspace, *name;
        Lockfile file;
        int mount;
        bool locked, shared, autocreate;
        int32_t *owners;
        size_t n_owners;
        struct Found *next; /* of the same file */
} Found;

typedef struct Group {
        UT_hash_handle hh;
        FileId id;
        Found *first, *last;
} Group;

typedef struct NameKey {
        UT_hash_handle hh;
        char text[];
} NameKey;

struct Takeover {
        char *path;
        json_object *root; /* NULL: it cannot be read */
        char *why;         /* ... because of this */
        Inherited *inherited;
        size_t n_inherited;
        const Storage *storage;
        int listeners[RESTORE_SERVERS];
        bool listener_is_ours[RESTORE_SERVERS];
        Claimant *claimants;
        PidRef *pids;
        Connection *connections;
        size_t n_connections;
        Found **found;
        size_t n_found;
        Group *groups;
        NameKey *names, *lockspaces;
        uint64_t owner_newest, peer_newest;
        lockd_end end;
        size_t n_classic, n_conflicts, n_odd;
};

/* ---- what was inherited ---- */

static int compare_fds(const void *a, const void *b)
{
        return ((const Inherited *)a)->fd - ((const Inherited *)b)->fd;
}

static int note_inherited(Takeover *takeover)
{
        DIR *dir = opendir("/proc/self/fd");
        struct dirent *entry;
        size_t size = 0;

        if (!dir)
                return FAULT(-errno);
        while ((entry = readdir(dir))) {
                int fd = atoi(entry->d_name);

                if (fd <= STDERR_FILENO || fd == dirfd(dir))
                        continue;
                if (takeover->n_inherited == size) {
                        void *larger = reallocarray(takeover->inherited, size = size ? size * 2 : 64, sizeof(*takeover->inherited));

                        if (!larger) {
                                closedir(dir);
                                return FAULT(-ENOMEM);
                        }
                        takeover->inherited = larger;
                }
                takeover->inherited[takeover->n_inherited++] = (Inherited){ .fd = fd };
        }
        closedir(dir);
        if (takeover->n_inherited > 1)
                qsort(takeover->inherited, takeover->n_inherited, sizeof(*takeover->inherited), compare_fds);
        return 0;
}

static bool is_listener(int fd)
{
        int value = 0, domain = 0;
        socklen_t len = sizeof(value), domain_len = sizeof(domain);

        return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) == 0 && value &&
               getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_len) == 0 && domain == AF_UNIX;
}

static bool is_connection(int fd)
{
        struct sockaddr_un address;
        socklen_t len = sizeof(address);

        return !is_listener(fd) && getpeername(fd, (struct sockaddr *)&address, &len) == 0 && address.sun_family == AF_UNIX;
}

static bool is_locked(int fd)
{
        Lockfile file;
        int mount;

        return lockfile_adopt(fd, &file, &mount) == 0;
}

static bool any_inherited(const Takeover *takeover, bool (*is)(int fd))
{
        for (size_t i = 0; i < takeover->n_inherited; i++)
                if (is(takeover->inherited[i].fd))
                        return true;
        return false;
}

static Inherited *find_inherited(const Takeover *takeover, int64_t number)
{
        const Inherited key = { .fd = (int)number };

        if (number <= STDERR_FILENO || number > INT_MAX || takeover->n_inherited == 0)
                return NULL;
        return bsearch(&key, takeover->inherited, takeover->n_inherited, sizeof(key), compare_fds);
}

static bool is_file(int fd)
{
        struct statx st;

        return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) == 0 && (S_ISREG(st.stx_mode) || S_ISBLK(st.stx_mode));
}

/* The fd, if it was inherited, is of that sort, and nothing else claims it; else -1. */
static int claim(Takeover *takeover, int64_t number, bool (*is)(int fd))
{
        Inherited *inherited = find_inherited(takeover, number);

        if (!inherited || inherited->claimed || !is(inherited->fd))
                return -1;
        inherited->claimed = true;
        return inherited->fd;
}

/* ---- the file ---- */

char *takeover_path(bool session)
{
        const char *dir = getenv("XDG_RUNTIME_DIR"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
        char *path;
        int n;

        if (!session)
                return strdup("/run/virtlockd-restart-exec.json");
        if (dir && *dir)
                n = asprintf(&path, "%s/libvirt/virtlockd-restart-exec.json", dir);
        else if (cache && *cache)
                n = asprintf(&path, "%s/libvirt/virtlockd-restart-exec.json", cache);
        else
                n = asprintf(&path, "%s/.cache/libvirt/virtlockd-restart-exec.json", home ? home : "");
        return n < 0 ? NULL : path;
}

static int read_all(int fd, char **ret, size_t *ret_len)
{
        _cleanup_free_ char *text = NULL;
        size_t len = 0, size = 0;

        for (;;) {
                ssize_t n;

                if (len == size) {
                        char *larger = realloc(text, size = size ? size * 2 : 65536);

                        if (!larger)
                                return FAULT(-ENOMEM);
                        text = larger;
                }
                n = read(fd, text + len, size - len);
                if (n < 0)
                        return FAULT(-errno);
                if (n == 0)
                        break;
                len += (size_t)n;
        }
        *ret = TAKE_PTR(text);
        *ret_len = len;
        return 0;
}

/* Why it is not read: static text. */
static const char *parse_file(const char *path, json_object **ret)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
        _cleanup_free_ char *text = NULL;
        struct json_tokener *tokener;
        json_object *root = NULL;
        size_t len = 0, at = 0;
        struct stat st;

        if (fd < 0)
                return errno == ENOENT ? "it is not there" : strerror(errno);
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid())
                return "it is not a file of ours";
        if (read_all(fd, &text, &len) < 0)
                return "it cannot be read";
        tokener = json_tokener_new();
        if (!tokener)
                return "out of memory";
        do {
                size_t n = len - at < FEED_MAX ? len - at : FEED_MAX;

                root = json_tokener_parse_ex(tokener, text + at, (int)n);
                at += n;
        } while (!root && at < len && json_tokener_get_error(tokener) == json_tokener_continue);
        json_tokener_free(tokener);
        if (json_object_is_type(root, json_type_object)) {
                *ret = root;
                return NULL;
        }
        json_object_put(root);
        return "it is cut off, or no JSON";
}

static json_object *member(json_object *object, const char *name, json_type type)
{
        json_object *value;

        return json_object_is_type(object, json_type_object) && json_object_object_get_ex(object, name, &value) &&
               json_object_is_type(value, type) ? value : NULL;
}

static const char *text_member(json_object *object, const char *name)
{
        json_object *value = member(object, name, json_type_string);

        return value ? json_object_get_string(value) : NULL;
}

static int64_t number_member(json_object *object, const char *name, int64_t missing)
{
        json_object *value = member(object, name, json_type_int);

        return value ? json_object_get_int64(value) : missing;
}

static bool bool_member(json_object *object, const char *name)
{
        json_object *value = member(object, name, json_type_boolean);

        return value && json_object_get_boolean(value);
}

/* virtlockd writes -1 as the largest number of 32 or 64 bits. */
static int32_t pid_of(json_object *value)
{
        int64_t number = json_object_is_type(value, json_type_int) ? json_object_get_int64(value) : -1;

        return number >= 0 && number <= INT32_MAX ? (int32_t)number : -1;
}

static Takeover *takeover_free(Takeover *takeover);

static void takeover_freep(Takeover **takeover)
{
        *takeover = takeover_free(*takeover);
}

/* sd_listen_fds() would say so, too: a service manager starts us with sockets, and nothing else. */
static bool is_activated(void)
{
        const char *pid = getenv("LISTEN_PID");

        return pid && strtol(pid, NULL, 10) == (long)getpid();
}

Takeover *takeover_find(bool session)
{
        _cleanup_(takeover_freep) Takeover *takeover = calloc(1, sizeof(*takeover));
        const char *why, *magic;
        char pid[16];

        if (!takeover)
                return NULL;
        takeover->path = takeover_path(session);
        /* Nothing inherited, nothing to take over. */
        if (!takeover->path || note_inherited(takeover) < 0 || takeover->n_inherited == 0)
                return NULL;
        (void)snprintf(pid, sizeof(pid), "%d", (int)getpid());
        why = parse_file(takeover->path, &takeover->root);
        magic = text_member(takeover->root, "magic");
        if (!why && !magic)
                why = "it has no magic";
        else if (!why && strcmp(magic, pid) != 0)
                why = "it is of another process";
        /* Classic locks of this very process from before its first statement: somebody executed us with them. So it is with
         * listening sockets, if they do not come from a service manager, and a file that is ours or was not finished. */
        if (!any_inherited(takeover, is_locked) &&
            (access(takeover->path, F_OK) < 0 || (magic && why) || is_activated() || !any_inherited(takeover, is_listener)))
                return NULL;
        if (why) {
                takeover->why = strdup(why);
                json_object_put(TAKE_PTR(takeover->root));
        }
        return TAKE_PTR(takeover);
}

/* ---- owners ---- */

/* What is no uuid leaves zeros. */
static void parse_uuid(const char *text, uint8_t ret[OWNER_UUID_LEN])
{
        for (int i = 0; text && i < OWNER_UUID_LEN; i++) {
                unsigned byte;

                text += *text == '-';
                if (strlen(text) < 2 || sscanf(text, "%2x", &byte) != 1)
                        return;
                ret[i] = (uint8_t)byte;
                text += 2;
        }
}

static int find_pid(Takeover *takeover, int32_t pid, PidRef **ret)
{
        PidRef *ref;

        HASH_FIND(hh, takeover->pids, &pid, sizeof(pid), ref);
        if (!ref) {
                ref = calloc(1, sizeof(*ref));
                if (!ref)
                        return FAULT(-ENOMEM);
                ref->pid = pid;
                HASH_ADD(hh, takeover->pids, pid, sizeof(ref->pid), ref);
                if (!hash_added(ref)) {
                        free(ref);
                        return FAULT(-ENOMEM);
                }
        }
        *ret = ref;
        return 0;
}

/* fresh: it was not known yet. */
static int find_claimant(Takeover *takeover, const ClaimKey *key, const char *name, Claimant **ret, bool *ret_fresh)
{
        Claimant *claimant;

        *ret_fresh = false;
        HASH_FIND(hh, takeover->claimants, key, sizeof(*key), claimant);
        if (!claimant) {
                claimant = calloc(1, sizeof(*claimant));
                if (!claimant)
                        return FAULT(-ENOMEM);
                claimant->key = *key;
                claimant->own_fd = claimant->pidfd = -1;
                claimant->record.number = ++takeover->owner_newest;
                claimant->name = strndup(name, OWNER_NAME_MAX);
                if (claimant->name)
                        HASH_ADD(hh, takeover->claimants, key, sizeof(claimant->key), claimant);
                if (!claimant->name || !hash_added(claimant)) {
                        free(claimant->name);
                        free(claimant);
                        return FAULT(-ENOMEM);
                }
                *ret_fresh = true;
        }
        *ret = claimant;
        return 0;
}

/* Whose a hold of that number is. Without a process a number says nothing when several registered with it. */
static int find_holder(Takeover *takeover, int32_t pid, Claimant **ret)
{
        const ClaimKey nameless = { .pid = pid };
        PidRef *ref;
        bool fresh;
        int r;

        r = find_pid(takeover, pid, &ref);
        if (r < 0)
                return PASS(r);
        if (ref->first && (pid > 0 || ref->n == 1)) {
                *ret = ref->first;
                return 0;
        }
        return PASS(find_claimant(takeover, &nameless, "unknown", ret, &fresh));
}

static bool has_ended(int pidfd)
{
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* The process that made this connection, if it lives. */
static void look_behind(Claimant *claimant, int connection)
{
        socklen_t len = sizeof(int);
        int pidfd = -1;

        if (claimant->pidfd >= 0)
                return;
        if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0) {
                if (errno == ENOPROTOOPT)
                        claimant->unknown_kernel = true;
                else if (errno != ESRCH && errno != EINVAL && errno != ENODATA)
                        claimant->doubt = true;
                return;
        }
        if (has_ended(pidfd))
                close_fd(pidfd);
        else
                claimant->pidfd = pidfd;
}

/* Finds the process of an owner again; see the head of this file. */
static void look_for_process(Claimant *claimant)
{
        lockd_owner *record = &claimant->record;
        _cleanup_fd_ int pidfd = TAKE_FD(claimant->pidfd);
        bool proved = pidfd >= 0, own = claimant->own_fd >= 0;
        uint64_t start = 0;

        if (claimant->looked)
                return;
        claimant->looked = true;
        record->pidfd = -1;
        if (claimant->key.pid <= 1 || claimant->key.pid == (int32_t)getpid())
                return;
        if (pidfd < 0 && (!own || claimant->unknown_kernel)) {
                pidfd = pidfd_open((pid_t)claimant->key.pid, 0);
                if (pidfd < 0 && errno != ESRCH)
                        claimant->doubt = true;
        }
        if (pidfd >= 0 && (owner_process_start((uint32_t)claimant->key.pid, &start) < 0 || has_ended(pidfd)))
                pidfd = close_fd(pidfd);
        record->dead = own && pidfd < 0 && !claimant->doubt;
        if (pidfd < 0)
                return;
        /* An older kernel does not tell who is behind the connection. The wall clock does, as long as nobody has set it: so a
         * "no" is not believed, only the process is not signalled then. */
        if (own && claimant->unknown_kernel)
                proved = start <= claimant->accepted + CLOCK_SLACK_TICKS;
        record->proved = proved;
        record->start_time = start;
        (void)fcntl(pidfd, F_SETFD, 0); /* it is part of the state, whichever image restores that */
        record->pidfd = TAKE_FD(pidfd);
}

/* ---- listeners and connections ---- */

static json_object *server_of(const Takeover *takeover, int server)
{
        return member(member(member(takeover->root, "daemon", json_type_object), "servers", json_type_object),
                      server == RESTORE_LOCK ? "virtlockd" : "admin", json_type_object);
}

/* The path of a socket; NULL: it has none. */
static const char *socket_path(int fd, struct sockaddr_un *address)
{
        socklen_t len = sizeof(*address);

        memset(address, 0, sizeof(*address));
        if (getsockname(fd, (struct sockaddr *)address, &len) < 0 || address->sun_family != AF_UNIX || address->sun_path[0] != '/')
                return NULL;
        return address->sun_path;
}

static void take_listener(Takeover *takeover, int server, json_object *sock)
{
        int64_t number = number_member(sock, "fd", -1);

        if (takeover->listeners[server] < 0)
                takeover->listeners[server] = claim(takeover, number, is_listener);
        if (takeover->listeners[server] == number) {
                takeover->listener_is_ours[server] = bool_member(sock, "unlinkUNIX");
                return;
        }
        takeover->n_odd++;
        log_error("virtlockd's state has a listener that is none: fd %lld", (long long)number);
}

static void take_listeners(Takeover *takeover, int server)
{
        json_object *services = member(server_of(takeover, server), "services", json_type_array);

        for (size_t i = 0; services && i < json_object_array_length(services); i++) {
                json_object *socks = member(json_object_array_get_idx(services, i), "socks", json_type_array);

                for (size_t j = 0; socks && j < json_object_array_length(socks); j++)
                        take_listener(takeover, server, json_object_array_get_idx(socks, j));
        }
}

/* By what they are, when the state does not say it. */
static void guess_listeners(Takeover *takeover)
{
        for (size_t i = 0; i < takeover->n_inherited; i++) {
                Inherited *inherited = &takeover->inherited[i];
                struct sockaddr_un address;
                const char *path;
                int server;

                if (inherited->claimed || !is_listener(inherited->fd) || !(path = socket_path(inherited->fd, &address)))
                        continue;
                server = strstr(path, "admin") ? RESTORE_ADMIN : RESTORE_LOCK;
                if (takeover->listeners[server] >= 0)
                        continue;
                inherited->claimed = true;
                takeover->listeners[server] = inherited->fd;
                takeover->listener_is_ours[server] = true;
                log_error("virtlockd's state does not tell which fd listens at %s: it is fd %d", path, inherited->fd);
        }
}

static uint64_t boot_ticks(void)
{
        struct timespec now;

        clock_gettime(CLOCK_BOOTTIME, &now);
        return (uint64_t)now.tv_sec * (uint64_t)sysconf(_SC_CLK_TCK) +
               (uint64_t)now.tv_nsec * (uint64_t)sysconf(_SC_CLK_TCK) / 1000000000U;
}

/* When a connection of that second was accepted, in ticks since boot. */
static uint64_t accepted_at(int64_t conn_time)
{
        int64_t ago = (int64_t)time(NULL) - conn_time - 1;
        uint64_t now = boot_ticks();

        if (conn_time <= 0 || ago < 0)
                return now;
        return (uint64_t)ago >= now / (uint64_t)sysconf(_SC_CLK_TCK) ? 0 : now - (uint64_t)ago * (uint64_t)sysconf(_SC_CLK_TCK);
}

static int register_client(Takeover *takeover, Connection *connection, json_object *client)
{
        json_object *data = member(client, "privateData", json_type_object);
        const char *name = text_member(data, "ownerName");
        lockd_peer *peer = &connection->record;
        ClaimKey key = { .pid = 0 };
        json_object *pid = member(data, "ownerPid", json_type_int);
        int64_t id = number_member(data, "ownerId", 0);
        PidRef *ref;
        bool fresh;
        int r;

        peer->restricted = bool_member(data, "restricted");
        if (!name || !pid || (id == 0 && !*name))
                return 0; /* not registered */
        key.pid = pid_of(pid);
        key.id = (uint32_t)id;
        parse_uuid(text_member(data, "ownerUUID"), key.uuid);
        r = find_claimant(takeover, &key, name, &connection->claimant, &fresh);
        if (r == 0)
                r = find_pid(takeover, key.pid, &ref);
        if (r < 0)
                return PASS(r);
        ref->n += fresh ? 1 : 0;
        peer->claimed_pid = (u_int)key.pid;
        peer->own = key.pid > 0 && peer->pid == (u_int)key.pid;
        if (!ref->first || (peer->own && ref->first->own_fd < 0))
                ref->first = connection->claimant;
        if (peer->own) {
                struct stat st;

                connection->claimant->own_fd = peer->fd;
                connection->claimant->accepted = peer->accepted;
                if (fstat(peer->fd, &st) == 0)
                        connection->claimant->record.socket = st.st_ino;
                look_behind(connection->claimant, peer->fd);
        }
        return 0;
}

static int take_client(Takeover *takeover, int server, json_object *client)
{
        int64_t number = number_member(member(client, "sock", json_type_object), "fd", -1);
        Connection *connection = &takeover->connections[takeover->n_connections];
        struct ucred cred;
        socklen_t len = sizeof(cred);
        int fd = claim(takeover, number, is_connection);

        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
                takeover->n_odd++;
                log_error("virtlockd's state has a connection that is none: fd %lld", (long long)number);
                return 0;
        }
        *connection = (Connection){
                .record = {
                        .number = ++takeover->peer_newest,
                        .server = server == RESTORE_LOCK ? LOCKD_SERVER_LOCK : LOCKD_SERVER_ADMIN,
                        .fd = fd,
                        .pid = (u_int)cred.pid,
                        .uid = cred.uid,
                        .accepted = accepted_at(number_member(client, "conn_time", 0)),
                },
        };
        takeover->n_connections++;
        return server == RESTORE_LOCK ? PASS(register_client(takeover, connection, client)) : 0;
}

static int take_clients(Takeover *takeover, int server)
{
        json_object *clients = member(server_of(takeover, server), "clients", json_type_array);
        size_t n = clients ? json_object_array_length(clients) : 0;
        Connection *larger;
        int r = 0;

        larger = reallocarray(takeover->connections, takeover->n_connections + n + 1, sizeof(*larger));
        if (!larger)
                return FAULT(-ENOMEM);
        takeover->connections = larger;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = take_client(takeover, server, json_object_array_get_idx(clients, i));
        return PASS(r);
}

/* ---- resources ---- */

/* LOCKSPACE_PATH_MAX bytes at most; "//" and a trailing "/" make no difference to lockd. NULL: not the path of a
 * lockspace. */
static char *plain_path(const char *path)
{
        char *plain = *path == '/' && strlen(path) <= LOCKSPACE_PATH_MAX ? malloc(strlen(path) + 1) : NULL;
        size_t n = 0;

        for (; plain && *path; path++)
                if (*path != '/' || n == 0 || plain[n - 1] != '/')
                        plain[n++] = *path;
        while (n > 1 && plain[n - 1] == '/')
                n--;
        if (plain)
                plain[n] = '\0';
        return plain;
}

/* 1: text is new in the set, 0: it was there. */
static int add_name(NameKey **set, const char *text)
{
        size_t len = strlen(text);
        NameKey *key;

        HASH_FIND(hh, *set, text, len, key);
        if (key)
                return 0;
        key = calloc(1, sizeof(*key) + len + 1);
        if (!key)
                return FAULT(-ENOMEM);
        memcpy(key->text, text, len + 1);
        HASH_ADD_KEYPTR(hh, *set, key->text, len, key);
        if (!hash_added(key)) {
                free(key);
                return FAULT(-ENOMEM);
        }
        return 1;
}

static Found *found_free(Found *found)
{
        if (!found)
                return NULL;
        free(found->lockspace);
        free(found->name);
        free(found->owners);
        free(found);
        return NULL;
}

/* Two files under one name cannot both have it. */
static int make_unique(Takeover *takeover, Found *found)
{
        for (int i = 0;; i++) {
                _cleanup_free_ char *both = NULL;
                char *other;
                int r;

                if (asprintf(&both, "%s\n%s", found->lockspace, found->name) < 0)
                        return FAULT(-ENOMEM);
                r = add_name(&takeover->names, both);
                if (r != 0)
                        return r < 0 ? PASS(r) : 0;
                if (asprintf(&other, "%s (fd %d)", found->name, found->file.fd) < 0)
                        return FAULT(-ENOMEM);
                log_error("virtlockd's state has '%s' twice: fd %d is '%s' now", log_name(found->name), found->file.fd, log_name(other));
                takeover->n_odd++;
                free(found->name);
                found->name = other;
        }
}

static int add_to_group(Takeover *takeover, Found *found)
{
        Group *group;

        HASH_FIND(hh, takeover->groups, &found->file.id, sizeof(found->file.id), group);
        if (group) {
                group->last->next = found;
                group->last = found;
                return 0;
        }
        group = calloc(1, sizeof(*group));
        if (!group)
                return FAULT(-ENOMEM);
        group->id = found->file.id;
        group->first = group->last = found;
        HASH_ADD(hh, takeover->groups, id, sizeof(group->id), group);
        if (!hash_added(group)) {
                free(group);
                return FAULT(-ENOMEM);
        }
        return 0;
}

/* Takes found over, also on failure. */
static int add_found(Takeover *takeover, Found *found)
{
        Found **larger;
        int r;

        if ((takeover->n_found & (takeover->n_found + 1)) == 0) {
                larger = reallocarray(takeover->found, 2 * takeover->n_found + 2, sizeof(*larger));
                if (!larger) {
                        found_free(found);
                        return FAULT(-ENOMEM);
                }
                takeover->found = larger;
        }
        takeover->found[takeover->n_found++] = found;
        r = make_unique(takeover, found);
        if (r == 0 && *found->lockspace)
                r = add_name(&takeover->lockspaces, found->lockspace);
        return r < 0 ? PASS(r) : PASS(add_to_group(takeover, found));
}

static int set_owners(Found *found, json_object *owners)
{
        size_t n = owners ? json_object_array_length(owners) : 0;

        found->n_owners = n ? n : 1;
        found->owners = calloc(found->n_owners, sizeof(*found->owners));
        if (!found->owners)
                return FAULT(-ENOMEM);
        found->owners[0] = -1;
        for (size_t i = 0; i < n; i++)
                found->owners[i] = pid_of(json_object_array_get_idx(owners, i));
        return 0;
}

/* directory: NULL for the default lockspace. */
static int take_resource(Takeover *takeover, const char *directory, json_object *resource)
{
        const char *name = text_member(resource, "name");
        int64_t flags = number_member(resource, "flags", 0), number = number_member(resource, "fd", -1);
        Found *found = calloc(1, sizeof(*found));
        int fd, r;

        if (!found)
                return FAULT(-ENOMEM);
        fd = name ? claim(takeover, number, is_file) : -1;
        r = fd < 0 ? -EBADF : lockfile_adopt(fd, &found->file, &found->mount);
        if (r < 0 || r == LOCKFILE_E_KIND) {
                takeover->n_odd++;
                log_error("virtlockd's state has a resource that is none: '%s', fd %lld", log_name(name ? name : ""), (long long)number);
                found_free(found);
                return 0;
        }
        found->locked = r == 0;
        found->shared = (flags & FLAG_SHARED) != 0;
        found->autocreate = (flags & FLAG_AUTOCREATE) != 0;
        found->lockspace = directory ? plain_path(directory) : strdup("");
        found->name = strdup(name);
        if (directory && !found->lockspace) {
                free(found->name);
                found->lockspace = strdup("");
                if (asprintf(&found->name, "%s/%s", directory, name) < 0)
                        found->name = NULL;
        }
        r = found->lockspace && found->name ? set_owners(found, member(resource, "owners", json_type_array)) : FAULT(-ENOMEM);
        if (r < 0) {
                found_free(found);
                return PASS(r);
        }
        return PASS(add_found(takeover, found));
}

static int take_resources(Takeover *takeover, const char *directory, json_object *lockspace)
{
        json_object *resources = member(lockspace, "resources", json_type_array);
        int r = 0;

        for (size_t i = 0; r == 0 && resources && i < json_object_array_length(resources); i++)
                r = take_resource(takeover, directory, json_object_array_get_idx(resources, i));
        return PASS(r);
}

static int take_lockspaces(Takeover *takeover)
{
        json_object *lockspaces = member(takeover->root, "lockspaces", json_type_array);
        int r = take_resources(takeover, NULL, member(takeover->root, "defaultLockspace", json_type_object));

        for (size_t i = 0; r >= 0 && lockspaces && i < json_object_array_length(lockspaces); i++) {
                json_object *lockspace = json_object_array_get_idx(lockspaces, i);
                const char *directory = text_member(lockspace, "directory");
                _cleanup_free_ char *plain = directory ? plain_path(directory) : NULL;

                if (plain)
                        r = add_name(&takeover->lockspaces, plain);
                if (r >= 0)
                        r = take_resources(takeover, directory ? directory : "?", lockspace);
        }
        return r < 0 ? PASS(r) : 0;
}

/* A lock that the state does not mention is a lock all the same. Nobody knows whose. */
static int salvage(Takeover *takeover)
{
        for (size_t i = 0; i < takeover->n_inherited; i++) {
                Inherited *inherited = &takeover->inherited[i];
                char path[48], target[PATH_MAX + 16];
                Found *found;
                Lockfile file;
                int mount, r;
                ssize_t n;

                if (inherited->claimed || lockfile_adopt(inherited->fd, &file, &mount) != 0)
                        continue;
                (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", inherited->fd);
                n = readlink(path, target, sizeof(target) - 1);
                target[n > 0 ? n : 0] = '\0';
                found = calloc(1, sizeof(*found));
                if (!found)
                        return FAULT(-ENOMEM);
                inherited->claimed = true;
                *found = (Found){ .file = file, .mount = mount, .locked = true, .shared = file.shared };
                found->lockspace = strdup("");
                found->name = strdup(*target == '/' ? target : path);
                r = found->lockspace && found->name ? set_owners(found, NULL) : FAULT(-ENOMEM);
                if (r < 0) {
                        found_free(found);
                        return PASS(r);
                }
                takeover->n_odd++;
                log_error("virtlockd's state does not mention '%s' (fd %d), which is locked: it is held for an unknown owner until an "
                          "administrator releases it", log_name(found->name), inherited->fd);
                r = add_found(takeover, found);
                if (r < 0)
                        return PASS(r);
        }
        return 0;
}

/* ---- translation ---- */

static lockd_bytes borrow(const char *text)
{
        return (lockd_bytes){ text ? (u_int)strlen(text) : 0, (char *)(uintptr_t)text };
}

/* One file, its lock and its further fds. Returns the number of holds. */
static size_t merge_group(Takeover *takeover, const Group *group, Lockfile *ret, bool *ret_local, bool *ret_autocreate)
{
        const Found *best = group->first;
        size_t n = 0, n_holds = 0;
        bool shared = true;

        *ret_local = *ret_autocreate = true;
        for (const Found *found = group->first; found; found = found->next) {
                n++;
                n_holds += found->n_owners;
                shared = shared && found->shared;
                *ret_local = *ret_local && storage_is_local_mount(takeover->storage, found->mount);
                *ret_autocreate = *ret_autocreate && found->autocreate;
                /* The fd that shows the lock; one that is safe already before one that is not. */
                if (found->locked && (!best->locked || (found->file.kind == LOCK_OFD && best->file.kind != LOCK_OFD)))
                        best = found;
        }
        *ret = best->file;
        ret->shared = shared;
        if (n > 1) {
                ret->others = calloc(n - 1, sizeof(*ret->others));
                if (!ret->others)
                        return 0;
                for (const Found *found = group->first; found; found = found->next)
                        if (found != best)
                                ret->others[ret->n_others++] = found->file.fd;
        }
        if (!best->locked)
                log_error("'%s': virtlockd had lost its lock on it; it is locked again if it is free", log_name(best->name));
        return n_holds;
}

/* From classic to OFD, where nothing can hang. */
static void convert(Takeover *takeover, const Group *group, Lockfile *file, bool local)
{
        const char *name = log_name(group->first->name);
        int r;

        if (!local && file->kind == LOCK_OFD)
                return; /* lockd had given it back like that */
        if (!local) {
                log_warning("'%s' is not on a local file system: its lock stays a classic one (CLASSIC)", name);
                takeover->n_classic++;
                return;
        }
        r = lockfile_convert(file, LOCK_OFD);
        if (r != 0) {
                log_error("'%s': its lock stays a classic one (CLASSIC): %s", name,
                          r == LOCKFILE_E_BUSY ? "somebody outside has it locked, too" : strerror(-r));
                takeover->n_classic++;
                return;
        }
        for (size_t i = 0; i < file->n_others; i++)
                close_fd(file->others[i]);
        free(TAKE_PTR(file->others));
        file->n_others = 0;
}

static void tell_conflict(Takeover *takeover, const Group *group, const lockd_record *record)
{
        const lockd_hold *holds = record->holds.holds_val;

        for (u_int i = 1; record->mode == LOCKD_MODE_EXCLUSIVE && i < record->holds.holds_len; i++)
                if (holds[i].owner.number != holds[0].owner.number) {
                        log_error("CONFLICT: virtlockd granted one file exclusively to VM '%s' (pid %u) as '%.*s' and to VM '%s' (pid %u) "
                                  "as '%.*s': both may be writing to it. Stop one of them", log_name(holds[0].owner.name.lockd_bytes_val),
                                  holds[0].owner.pid, (int)holds[0].resource.lockd_bytes_len, log_name(group->first->name),
                                  log_name(holds[i].owner.name.lockd_bytes_val), holds[i].owner.pid,
                                  (int)holds[i].resource.lockd_bytes_len, log_name(holds[i].resource.lockd_bytes_val));
                        takeover->n_conflicts++;
                        return;
                }
}

static uint64_t now_usec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int fill_holds(Takeover *takeover, const Group *group, uint64_t since, lockd_hold *holds)
{
        size_t n = 0;

        for (const Found *found = group->first; found; found = found->next)
                for (size_t i = 0; i < found->n_owners; i++) {
                        Claimant *claimant;
                        int r = find_holder(takeover, found->owners[i], &claimant);

                        if (r < 0)
                                return PASS(r);
                        holds[n] = (lockd_hold){
                                .lockspace = borrow(found->lockspace),
                                .resource = borrow(found->name),
                                .since = since,
                        };
                        holds[n].owner.number = claimant->record.number;
                        holds[n].owner.name = borrow(claimant->name);
                        holds[n].owner.pid = (u_int)claimant->key.pid;
                        n++;
                }
        return 0;
}

static int write_lease(Takeover *takeover, const Group *group, FILE *file)
{
        _cleanup_free_ lockd_hold *holds = NULL;
        Lockfile locked = LOCKFILE_NONE;
        bool local, autocreate;
        lockd_record record;
        uint64_t since = now_usec();
        size_t n;
        int r;

        n = merge_group(takeover, group, &locked, &local, &autocreate);
        holds = calloc(n ? n : 1, sizeof(*holds));
        r = n > 0 && holds ? fill_holds(takeover, group, since, holds) : FAULT(-ENOMEM);
        if (r == 0) {
                convert(takeover, group, &locked, local);
                record = (lockd_record){
                        .id = ++takeover->end.leases,
                        .lockspace = borrow(group->first->lockspace),
                        .resource = borrow(group->first->name),
                        .mode = locked.shared ? LOCKD_MODE_SHARED : LOCKD_MODE_EXCLUSIVE,
                        .kind = locked.kind == LOCK_OFD ? LOCKD_KIND_OFD : LOCKD_KIND_CLASSIC,
                        .autocreate = autocreate,
                        .local = local,
                        .fd = locked.fd,
                        .dev = locked.id.dev,
                        .ino = locked.id.ino,
                        .block = locked.id.block != 0,
                        .since = since,
                        .others = { (u_int)locked.n_others, locked.others },
                        .holds = { (u_int)n, holds },
                };
                takeover->end.holds += n;
                tell_conflict(takeover, group, &record);
                r = state_write(file, STATE_LEASE, &record);
        }
        free(locked.others);
        return PASS(r);
}

static int write_listeners(const Takeover *takeover, FILE *file)
{
        int r = 0;

        for (int i = 0; r == 0 && i < RESTORE_SERVERS; i++) {
                struct sockaddr_un address;
                lockd_listener record = { .server = (lockd_server)i, .fd = takeover->listeners[i], .guard = -1 };

                if (record.fd < 0)
                        continue;
                if (takeover->listener_is_ours[i])
                        record.path = borrow(socket_path(record.fd, &address));
                r = state_write(file, STATE_LISTENER, &record);
        }
        return PASS(r);
}

static int write_owners(Takeover *takeover, FILE *file)
{
        for (Claimant *claimant = takeover->claimants; claimant; claimant = claimant->hh.next) {
                lockd_owner *record = &claimant->record;
                int r;

                look_for_process(claimant);
                memcpy(record->uuid, claimant->key.uuid, sizeof(record->uuid));
                record->name = borrow(claimant->name);
                record->pid = claimant->key.pid > 0 ? (u_int)claimant->key.pid : 0;
                /* Two without a name and a process must not be one. */
                record->id = claimant->key.pid < 0 && claimant->key.id == 0 ? UINT32_MAX : claimant->key.id;
                r = state_write(file, STATE_OWNER, record);
                if (r < 0)
                        return PASS(r);
                takeover->end.owners++;
        }
        return 0;
}

static int write_peers(Takeover *takeover, FILE *file)
{
        for (size_t i = 0; i < takeover->n_connections; i++) {
                Connection *connection = &takeover->connections[i];
                int r;

                connection->record.owner = connection->claimant ? connection->claimant->record.number : 0;
                r = state_write(file, STATE_PEER, &connection->record);
                if (r < 0)
                        return PASS(r);
                takeover->end.peers++;
        }
        return 0;
}

/* The leases come last in a state, but only they tell which owners there are: they are written first, to a text of their
 * own. */
static int write_leases(Takeover *takeover, char **ret, size_t *ret_len)
{
        FILE *file = open_memstream(ret, ret_len);
        int r = file ? 0 : FAULT(-errno);

        for (Group *group = takeover->groups; r == 0 && group; group = group->hh.next)
                r = write_lease(takeover, group, file);
        if (file && fclose(file) != 0 && r == 0)
                r = FAULT(-errno);
        return PASS(r);
}

static int write_state(Takeover *takeover, FILE *file)
{
        _cleanup_free_ char *leases = NULL;
        lockd_header header = { .format = STATE_FORMAT, .release = borrow("virtlockd") };
        size_t len = 0;
        int r;

        r = write_leases(takeover, &leases, &len);
        header.lease_newest = takeover->end.leases;
        header.peer_newest = takeover->peer_newest;
        header.owner_newest = takeover->owner_newest;
        if (r == 0)
                r = state_write(file, STATE_HEADER, &header);
        if (r == 0)
                r = write_listeners(takeover, file);
        for (NameKey *lockspace = takeover->lockspaces; r == 0 && lockspace; lockspace = lockspace->hh.next, takeover->end.lockspaces++)
                r = state_write(file, STATE_LOCKSPACE, &(lockd_lockspace){ .path = borrow(lockspace->text) });
        if (r == 0)
                r = write_owners(takeover, file);
        if (r == 0)
                r = write_peers(takeover, file);
        if (r == 0 && len > 0 && fwrite(leases, len, 1, file) != 1)
                r = FAULT(-ENOMEM);
        if (r == 0)
                r = state_write(file, STATE_END, &takeover->end);
        return PASS(r);
}

int takeover_translate(Takeover *takeover, const Storage *storage, char **ret_state, int *ret_fd)
{
        _cleanup_free_ char *text = NULL;
        _cleanup_fd_ int fd = -1;
        size_t len = 0;
        FILE *file;
        int r = 0;

        takeover->storage = storage;
        if (!takeover->root)
                log_error("virtlockd's state in %s cannot be used: %s. Every lock is kept, but nobody knows whose it is", takeover->path,
                          takeover->why ? takeover->why : "");
        for (int i = 0; i < RESTORE_SERVERS; i++) {
                takeover->listeners[i] = -1;
                take_listeners(takeover, i);
        }
        guess_listeners(takeover);
        for (int i = 0; r == 0 && i < RESTORE_SERVERS; i++)
                r = take_clients(takeover, i);
        if (r == 0)
                r = take_lockspaces(takeover);
        if (r == 0)
                r = salvage(takeover);
        if (r < 0)
                return PASS(r);
        file = open_memstream(&text, &len);
        if (!file)
                return FAULT(-errno);
        r = write_state(takeover, file);
        if (fclose(file) != 0 && r == 0)
                r = FAULT(-errno);
        if (r < 0)
                return PASS(r);
        fd = memfd_create("lockd-state", 0);
        if (fd < 0 || write(fd, text, len) != (ssize_t)len)
                return FAULT(fd < 0 ? -errno : -ENOSPC);
        log_info("taken over from virtlockd: %llu leases with %llu holds of %llu owners, %llu connections; %zu leases stay CLASSIC, %zu are "
                 "in CONFLICT, %zu oddities", (unsigned long long)takeover->end.leases, (unsigned long long)takeover->end.holds,
                 (unsigned long long)takeover->end.owners, (unsigned long long)takeover->end.peers, takeover->n_classic,
                 takeover->n_conflicts, takeover->n_odd);
        *ret_fd = TAKE_FD(fd);
        *ret_state = TAKE_PTR(text);
        return 0;
}

static void names_free(NameKey *names)
{
        NameKey *name, *next;

        HASH_ITER(hh, names, name, next) {
                HASH_DEL(names, name);
                free(name);
        }
}

/* Frees what was understood; the fds are the daemon's, or stay open. */
static Takeover *takeover_free(Takeover *takeover)
{
        Claimant *claimant, *next_claimant;
        Group *group, *next_group;
        PidRef *ref, *next_ref;

        if (!takeover)
                return NULL;
        HASH_ITER(hh, takeover->claimants, claimant, next_claimant) {
                HASH_DEL(takeover->claimants, claimant);
                free(claimant->name);
                free(claimant);
        }
        HASH_ITER(hh, takeover->pids, ref, next_ref) {
                HASH_DEL(takeover->pids, ref);
                free(ref);
        }
        HASH_ITER(hh, takeover->groups, group, next_group) {
                HASH_DEL(takeover->groups, group);
                free(group);
        }
        for (size_t i = 0; i < takeover->n_found; i++)
                found_free(takeover->found[i]);
        names_free(takeover->names);
        names_free(takeover->lockspaces);
        free(takeover->found);
        free(takeover->connections);
        free(takeover->inherited);
        json_object_put(takeover->root);
        free(takeover->path);
        free(takeover->why);
        free(takeover);
        return NULL;
}

Takeover *takeover_done(Takeover *takeover)
{
        _cleanup_free_ char *aside = NULL;

        if (!takeover)
                return NULL;
        if (takeover->root)
                (void)unlink(takeover->path);
        else if (asprintf(&aside, "%s.unread", takeover->path) < 0)
                aside = NULL;
        else if (rename(takeover->path, aside) == 0)
                log_error("virtlockd's state was put aside as %s", aside);
        return takeover_free(takeover);
}
