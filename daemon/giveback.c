/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: virtlockd is executed only with a state that it can load whole, and every lock stays locked on the way there
 * and on the way back from a failure.
 *
 * What ends virtlockd while it loads its state, and with it every lock: a connection whose process is gone, a name that is
 * not UTF-8, more than 10 MB, a configuration that it cannot parse, a pid file that somebody else has locked. What it
 * cannot say: unfinished requests, a release under way, a lock that was taken away by force.
 *
 * virtlockd never looks at its locks: it keeps the fds. So locks that have to stay OFD may: those on other than local file
 * systems, where a conversion might hang or let a rival on another host in, and those of files with several names, which
 * virtlockd thinks are several resources, each with an fd of its own: closing the first would drop a classic lock.
 */
#include "giveback.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "giveback"
#include "cleanup.h"
#include "config.h"
#include "fault.h"
#include "log.h"
#include "takeover.h"
#include "utf8.h"
#include "uuid.h"

#define TRIAL_USEC (10U * 1000U * 1000U)
#define STATE_MAX (10U * 1024 * 1024) /* virtlockd reads no more */
#define HELP_TEXT "/virtlockd-sock" /* its own --help names its socket; that of other daemons of libvirt does not */

typedef struct IntList {
        int *values;
        size_t n, size;
} IntList;

struct Giveback {
        sd_event *loop;
        char **argv;
        bool session;
        void (*failed)(const char *why, void *userdata);
        void *userdata;
        const RestoreParts *parts;
        char *path;       /* NULL: none is under way */
        struct stat file; /* that was tried */
        pid_t trial;
        int output;
        sd_event_source *ended, *deadline;
        IntList keep, copies; /* fds for virtlockd; those of them that were made for it */
        char why[2048];
};

int giveback_new(sd_event *loop, char **argv, bool session, void (*failed)(const char *why, void *userdata), void *userdata,
                 Giveback **ret)
{
        Giveback *giveback = calloc(1, sizeof(*giveback));

        if (!giveback)
                return FAULT(-ENOMEM);
        *giveback = (Giveback){
                .loop = loop,
                .argv = argv,
                .session = session,
                .failed = failed,
                .userdata = userdata,
                .output = -1,
        };
        *ret = giveback;
        return 0;
}

static void end_attempt(Giveback *giveback)
{
        giveback->ended = sd_event_source_disable_unref(giveback->ended);
        giveback->deadline = sd_event_source_disable_unref(giveback->deadline);
        giveback->output = close_fd(giveback->output);
        for (size_t i = 0; i < giveback->copies.n; i++)
                close_fd(giveback->copies.values[i]);
        free(TAKE_PTR(giveback->copies.values));
        free(TAKE_PTR(giveback->keep.values));
        giveback->copies = giveback->keep = (IntList){ 0 };
        free(TAKE_PTR(giveback->path));
}

Giveback *giveback_free(Giveback *giveback)
{
        if (!giveback)
                return NULL;
        end_attempt(giveback);
        free(giveback);
        return NULL;
}

bool giveback_is_under_way(const Giveback *giveback)
{
        return giveback->path != NULL;
}

const char *giveback_why(const Giveback *giveback)
{
        return giveback->why;
}

/* Returns r. */
static int because(Giveback *giveback, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int because(Giveback *giveback, int r, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        (void)vsnprintf(giveback->why, sizeof(giveback->why), format, ap);
        va_end(ap);
        return r;
}

static int out_of_memory(Giveback *giveback)
{
        return because(giveback, FAULT(-ENOMEM), "out of memory");
}

static int add(IntList *list, int value)
{
        if (list->n == list->size) {
                size_t size = list->size ? list->size * 2 : 64;
                int *values = reallocarray(list->values, size, sizeof(*values));

                if (!values)
                        return FAULT(-ENOMEM);
                list->values = values;
                list->size = size;
        }
        list->values[list->n++] = value;
        return 0;
}

/* ---- can virtlockd take it? ---- */

static bool is_text(const char *text)
{
        return utf8_is_text(text, strlen(text));
}

/* virtlockd asks /proc for the process behind each connection. */
static bool process_is_there(uint32_t pid)
{
        char path[64], text[512], *p;
        ssize_t n;
        int fd;

        (void)snprintf(path, sizeof(path), "/proc/%u/stat", pid);
        fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        close_fd(fd);
        if (n <= 0)
                return false;
        text[n] = '\0';
        p = strrchr(text, ')');
        return p && p[1] == ' ' && p[2] != 'Z' && p[2] != 'X';
}

static int check_peer(Giveback *giveback, Peer *peer)
{
        const Caller *caller = peer_caller(peer);
        lockd_peer record;

        peer_record(peer, &record);
        if (record.state != 0 || record.half_closed || record.deaf || record.refusal.lockd_bytes_len > 0)
                return because(giveback, -EBUSY, "the connection of pid %u is being closed, or half closed: end that process", record.pid);
        if (record.later != LOCKD_LATER_NO || record.input.lockd_bytes_len > 0 || record.output.lockd_bytes_len > 0)
                return because(giveback, -EBUSY, "a request of pid %u is not finished: try again", record.pid);
        if (!process_is_there(record.pid))
                return because(giveback, -EBUSY, "pid %u has ended, or is in a pid namespace that cannot be seen from here, and its "
                               "connection is open: virtlockd would end because of it", record.pid);
        if (caller->owner && !is_text(caller->owner->name))
                return because(giveback, -EINVAL, "the name of %s is not UTF-8: virtlockd could not read it", owner_text(caller->owner));
        return 0;
}

static int check_peers(Giveback *giveback)
{
        int r = 0;

        list_for_each(node, peer_set_all(giveback->parts->peers[RESTORE_LOCK])) {
                r = check_peer(giveback, peer_of(node));
                if (r < 0)
                        return r;
        }
        list_for_each(node, peer_set_all(giveback->parts->peers[RESTORE_ADMIN])) {
                lockd_peer record;

                peer_record(peer_of(node), &record);
                if (record.later == LOCKD_LATER_KILL)
                        return because(giveback, -EBUSY, "an administrator's release --kill is under way: try again");
        }
        return 0;
}

static int check_owners(Giveback *giveback)
{
        list_for_each(node, owner_table_all(giveback->parts->owners)) {
                const Owner *owner = list_entry(node, Owner, in_all);

                if (reaper_state(owner) == REAPER_KILLING)
                        return because(giveback, -EBUSY, "%s is being killed: try again", owner_text(owner));
                if (owner->dead && owner->n_holds > 0)
                        return because(giveback, -EBUSY, "%s has ended and its holds are not released yet%s", owner_text(owner),
                                       owner->own_peers > 0 ? ", as its connection is open in another process" : ": try again");
                if (owner->n_holds > 0 && owner->own_peers == 0 && owner->pidfd >= 0)
                        log_warning("%s has no connection of its own: virtlockd will not notice its end", owner_text(owner));
        }
        return 0;
}

/* Has it several names? */
static bool has_names(const Lease *lease)
{
        const Resource *first = lease_first_hold(lease)->resource;

        list_for_each(node, &lease->holds)
                if (list_entry(node, Hold, in_lease)->resource != first)
                        return true;
        return false;
}

static int check_leases(Giveback *giveback)
{
        LeaseTable *leases = lockspace_leases(giveback->parts->lockspaces);
        size_t cursor = 0;

        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                const Hold *hold = lease_first_hold(lease);
                const char *name = hold->resource->name;

                if (lease->file.fd < 0)
                        return because(giveback, -EINVAL, "'%s' was released by force under %s (UNPROTECTED), which virtlockd cannot express: "
                                       "end that VM first", log_name(name), owner_text(hold->owner));
                if (lease->releasing)
                        return because(giveback, -EBUSY, "'%s' is being released: try again", log_name(name));
                if (lease->file.kind == LOCK_CLASSIC && has_names(lease))
                        return because(giveback, -EINVAL, "'%s' has several names and a classic lock: releasing one name, virtlockd would drop "
                                       "the lock of all", log_name(name));
                list_for_each(node, &lease->holds) {
                        const Resource *resource = list_entry(node, Hold, in_lease)->resource;

                        if (!is_text(resource->name) || !is_text(resource->lockspace->path))
                                return because(giveback, -EINVAL, "the name '%s' is not UTF-8: virtlockd could not read it",
                                               log_name(resource->name));
                }
        }
        return 0;
}

/* Every line empty, a comment, or a plain setting: more than that is syntax of lockd's alone, and virtlockd ends at what
 * it cannot parse. A file of empty lines only is a syntax error, too. */
static bool virtlockd_can_read(const char *path)
{
        _cleanup_free_ char *line = NULL;
        bool good = true, any = false;
        FILE *file = fopen(path, "re");
        size_t size = 0;
        ssize_t n;

        if (!file)
                return false;
        while (good && (n = getline(&line, &size, file)) > 0) {
                const char *p = line + strspn(line, " \t");

                any = any || *p != '\n';
                if (*p == '#' || *p == '\n')
                        continue;
                good = islower((unsigned char)*p);
                p += strspn(p, "abcdefghijklmnopqrstuvwxyz_");
                p += strspn(p, " \t");
                good = good && *p++ == '=';
                if (!good)
                        break;
                p += strspn(p, " \t");
                if (*p == '"') {
                        p += 1 + strcspn(p + 1, "\"\n");
                        good = *p++ == '"';
                } else {
                        good = isdigit((unsigned char)*p);
                        p += strspn(p, "0123456789");
                }
                if (good) {
                        p += strspn(p, " \t\r");
                        good = *p == '\n' || *p == '#' || *p == '\0';
                }
        }
        if (good && !any)
                good = ftell(file) == 0;
        fclose(file);
        return good;
}

/* virtlockd's own, if there is one. */
static int check_default_config(Giveback *giveback)
{
        const char *home = getenv("XDG_CONFIG_HOME");
        _cleanup_free_ char *path = NULL;
        int n;

        if (!giveback->session)
                n = asprintf(&path, "/etc/libvirt/virtlockd.conf");
        else if (home)
                n = asprintf(&path, "%s/libvirt/virtlockd.conf", home);
        else
                n = asprintf(&path, "%s/.config/libvirt/virtlockd.conf", getenv("HOME") ? getenv("HOME") : "");
        if (n < 0) {
                path = NULL;
                return out_of_memory(giveback);
        }
        if (access(path, F_OK) == 0 && !virtlockd_can_read(path))
                return because(giveback, -EINVAL, "%s has more in it than virtlockd may understand: it ends at what it cannot parse", path);
        return 0;
}

/* virtlockd locks byte 0 of its pid file, or ends. */
static int check_pid_file(Giveback *giveback, const char *path)
{
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
        _cleanup_free_ char *standard = NULL;
        _cleanup_fd_ int fd = -1;

        if (!path) {
                standard = config_runtime_path(giveback->session, giveback->session ? "libvirt/virtlockd.pid" : "virtlockd.pid");
                if (!standard)
                        return out_of_memory(giveback);
                path = standard;
        }
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
        if (fd < 0)
                return because(giveback, -errno, "virtlockd cannot write its pid file %s: %s", path, strerror(errno));
        if (fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
                return because(giveback, -EBUSY, "somebody has locked %s, virtlockd's pid file: is a virtlockd running?", path);
        return 0;
}

/* The command line: ours, but a configuration that only lockd understands is left away. */
static char **arguments(Giveback *giveback, const char **ret_pid_file, bool *ret_config)
{
        size_t n = 0, kept = 1;
        char **argv;

        while (giveback->argv[n])
                n++;
        argv = calloc(n + 1, sizeof(*argv));
        if (!argv)
                return NULL;
        *ret_pid_file = NULL;
        *ret_config = false;
        argv[0] = giveback->path;
        for (size_t i = 1; i < n; i++) {
                if (strcmp(giveback->argv[i], "-f") == 0 && i + 1 < n) {
                        *ret_config = virtlockd_can_read(giveback->argv[i + 1]);
                        if (!*ret_config) {
                                i++;
                                continue;
                        }
                }
                if (strcmp(giveback->argv[i], "-p") == 0 && i + 1 < n)
                        *ret_pid_file = giveback->argv[i + 1];
                argv[kept++] = giveback->argv[i];
        }
        return argv;
}

static int check(Giveback *giveback)
{
        _cleanup_free_ char **argv = NULL;
        const char *pid_file;
        bool config;
        int r = check_peers(giveback);

        if (r == 0)
                r = check_owners(giveback);
        if (r == 0)
                r = check_leases(giveback);
        if (r == 0 && giveback->parts->ending)
                r = because(giveback, -EINVAL, "lockd was told by a signal to end with the last lock, which virtlockd would not do");
        if (r < 0)
                return r;
        argv = arguments(giveback, &pid_file, &config);
        if (!argv)
                return out_of_memory(giveback);
        if (!config)
                r = check_default_config(giveback);
        return r < 0 ? r : check_pid_file(giveback, pid_file);
}

/* ---- virtlockd's state ---- */

static void put_text(FILE *file, const char *text)
{
        (void)fputc('"', file);
        for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
                if (*p == '"' || *p == '\\')
                        (void)fprintf(file, "\\%c", *p);
                else if (*p < 0x20)
                        (void)fprintf(file, "\\u%04x", *p);
                else
                        (void)fputc(*p, file);
        }
        (void)fputc('"', file);
}

static void put_socket(FILE *file, int fd, bool is_client, bool unlink)
{
        (void)fprintf(file, "{\"fd\":%d,\"errfd\":-1,\"pid\":0,\"isClient\":%s,\"unlinkUNIX\":%s}", fd, is_client ? "true" : "false",
                      unlink ? "true" : "false");
}

static int64_t accepted_time(uint64_t ticks)
{
        uint64_t hz = (uint64_t)sysconf(_SC_CLK_TCK);
        struct timespec now;

        clock_gettime(CLOCK_BOOTTIME, &now);
        return (int64_t)time(NULL) - (int64_t)now.tv_sec + (int64_t)(ticks / hz);
}

static int put_client(Giveback *giveback, FILE *file, uint64_t id, Peer *peer)
{
        const Caller *caller = peer_caller(peer);
        const Owner *owner = caller->owner;
        const uint8_t none[OWNER_UUID_LEN] = { 0 };
        char uuid[UUID_TEXT];
        lockd_peer record;

        peer_record(peer, &record);
        (void)fprintf(file, "%s{\"id\":%llu,\"auth\":0,\"auth_pending\":false,\"readonly\":false,\"nrequests_max\":1,\"conn_time\":%lld,\"sock\":",
                      id > 1 ? "," : "", (unsigned long long)id, (long long)accepted_time(record.accepted));
        put_socket(file, record.fd, true, false);
        /* One that has not registered: id 0 is how virtlockd knows it, too. */
        (void)fprintf(file, ",\"privateData\":{\"restricted\":%s,\"ownerPid\":%u,\"ownerId\":%u,\"ownerName\":",
                      record.restricted ? "true" : "false",
                      !owner                ? 0 :
                      owner->key.pid != 0 ? owner->key.pid :
                                            record.claimed_pid, owner ? owner->id : 0);
        put_text(file, owner ? owner->name : "");
        (void)fprintf(file, ",\"ownerUUID\":\"%s\"}}", uuid_format(owner ? owner->key.uuid : none, uuid));
        return PASS(add(&giveback->keep, record.fd));
}

static int put_server(Giveback *giveback, FILE *file, int server)
{
        const RestoreParts *parts = giveback->parts;
        int fd = listener_fd(parts->listeners[server]), r;
        unsigned limit = listener_limit(parts->listeners[server]); /* virtlockd reads its own only at a fresh start */
        uint64_t id = 0;

        (void)fprintf(file, "\"%s\":{\"min_workers\":0,\"max_workers\":0,\"priority_workers\":0,\"max_clients\":%u,"
                      "\"max_anonymous_clients\":%u,\"keepaliveInterval\":4294967295,\"keepaliveCount\":0,\"next_client_id\":%zu,"
                      "\"services\":[{\"auth\":0,\"readonly\":false,\"nrequests_client_max\":1,\"socks\":[",
                      server == RESTORE_LOCK ? "virtlockd" : "admin", limit, limit, peer_set_count(parts->peers[server]) + 1);
        put_socket(file, fd, false, parts->paths[server] != NULL);
        (void)fprintf(file, "]}],\"clients\":[");
        r = add(&giveback->keep, fd);
        /* Administrators' connections end: virtlockd does not speak lockd's program. */
        if (server == RESTORE_LOCK)
                list_for_each(node, peer_set_all(parts->peers[server]))
                        if (r == 0)
                                r = put_client(giveback, file, ++id, peer_of(node));
        (void)fprintf(file, "]}");
        return PASS(r);
}

/* virtlockd's number for an owner: -1 is one of its two for "no process". */
static long long owner_number(const Giveback *giveback, const Owner *owner)
{
        if (owner->key.pid != 0)
                return owner->key.pid;
        if (owner->id == UINT32_MAX)
                return -1;
        list_for_each(node, peer_set_all(giveback->parts->peers[RESTORE_LOCK])) {
                const Caller *caller = peer_caller(peer_of(node));

                if (caller->owner == owner && caller->claimed_pid == UINT32_MAX)
                        return -1;
        }
        return 0;
}

static int put_resource(Giveback *giveback, FILE *file, const Resource *resource)
{
        const Lease *lease = resource->lease;
        const char *directory = resource->lockspace->path;
        _cleanup_free_ char *path = NULL;
        int fd = lease->file.fd, r;
        bool first = true;

        if (asprintf(&path, "%s%s%s", directory, *directory ? "/" : "", resource->name) < 0) {
                path = NULL;
                return FAULT(-ENOMEM);
        }
        if (lease_first_hold(lease)->resource != resource) {
                fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
                if (fd < 0)
                        return FAULT(-errno);
                r = add(&giveback->copies, fd);
                if (r < 0) {
                        close_fd(fd);
                        return PASS(r);
                }
        }
        (void)fprintf(file, "{\"name\":");
        put_text(file, resource->name);
        (void)fprintf(file, ",\"path\":");
        put_text(file, path);
        (void)fprintf(file, ",\"fd\":%d,\"lockHeld\":true,\"flags\":%d,\"owners\":[", fd,
                      (lease->file.shared ? 1 : 0) | (lease->autocreate ? 2 : 0));
        list_for_each(node, &lease->holds) {
                const Hold *hold = list_entry(node, Hold, in_lease);

                if (hold->resource != resource)
                        continue;
                (void)fprintf(file, "%s%llu", first ? "" : ",", (unsigned long long)owner_number(giveback, hold->owner));
                first = false;
        }
        (void)fprintf(file, "]}");
        r = add(&giveback->keep, fd);
        for (size_t i = 0; r == 0 && i < lease->file.n_others; i++)
                r = add(&giveback->keep, lease->file.others[i]);
        return PASS(r);
}

static int put_resources(Giveback *giveback, FILE *file, const Lockspace *lockspace)
{
        const Table *resources = &lockspace->resources;
        bool first = true;
        int r = 0;

        (void)fprintf(file, "\"resources\":[");
        for (size_t i = 0; r == 0 && i < resources->n_buckets; i++)
                for (const TableNode *node = resources->buckets[i]; r == 0 && node; node = node->next) {
                        if (!first)
                                (void)fputc(',', file);
                        first = false;
                        r = put_resource(giveback, file, table_entry(node, Resource, by_name));
                }
        (void)fprintf(file, "]");
        return PASS(r);
}

static int put_state(Giveback *giveback, FILE *file)
{
        LockspaceTable *lockspaces = giveback->parts->lockspaces;
        bool first = true;
        int r;

        (void)fprintf(file, "{\"daemon\":{\"servers\":{");
        r = put_server(giveback, file, RESTORE_ADMIN);
        (void)fputc(',', file);
        if (r == 0)
                r = put_server(giveback, file, RESTORE_LOCK);
        (void)fprintf(file, "}},\"defaultLockspace\":{");
        for (const Lockspace *l = lockspace_next(lockspaces, NULL); r == 0 && l; l = lockspace_next(lockspaces, l))
                if (!*l->path)
                        r = put_resources(giveback, file, l);
        (void)fprintf(file, "},\"lockspaces\":[");
        for (const Lockspace *l = lockspace_next(lockspaces, NULL); r == 0 && l; l = lockspace_next(lockspaces, l)) {
                if (!*l->path || !is_text(l->path))
                        continue;
                (void)fprintf(file, "%s{\"directory\":", first ? "" : ",");
                put_text(file, l->path);
                (void)fputc(',', file);
                r = put_resources(giveback, file, l);
                (void)fputc('}', file);
                first = false;
        }
        (void)fprintf(file, "],\"magic\":\"%d\"}\n", (int)getpid());
        return PASS(r);
}

static int write_file(const char *path, const char *text, size_t len)
{
        _cleanup_fd_ int fd = -1;

        if (unlink(path) < 0 && errno != ENOENT)
                return FAULT(-errno);
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return FAULT(-errno);
        while (len > 0) {
                ssize_t n = write(fd, text, len);

                if (n < 0) {
                        int r = -errno;

                        (void)unlink(path);
                        return FAULT(r);
                }
                text += n;
                len -= (size_t)n;
        }
        return 0;
}

static int leave_state(Giveback *giveback, const char *path)
{
        _cleanup_free_ char *text = NULL;
        size_t len = 0;
        FILE *file = open_memstream(&text, &len);
        int r;

        if (!file)
                return out_of_memory(giveback);
        r = put_state(giveback, file);
        if (fclose(file) != 0 && r == 0)
                r = FAULT(-ENOMEM);
        if (r < 0)
                return because(giveback, r, "its state cannot be made: %s", strerror(-r));
        if (len >= STATE_MAX)
                return because(giveback, -EFBIG, "the state has %zu bytes, and virtlockd reads no more than %u", len, STATE_MAX);
        r = write_file(path, text, len);
        return r < 0 ? because(giveback, r, "%s cannot be written: %s", path, strerror(-r)) : 0;
}

/* ---- the locks ---- */

static bool becomes_classic(const Lease *lease)
{
        return lease->local && lease->file.kind == LOCK_OFD && !has_names(lease);
}

static void undo(LeaseTable *leases, const IntList *slots)
{
        for (size_t i = 0; i < slots->n; i++) {
                size_t cursor = (size_t)slots->values[i];
                Lease *lease = lease_next(leases, &cursor);
                int r = lockfile_convert(&lease->file, LOCK_OFD);

                if (r != 0)
                        log_error("'%s': its lock stays a classic one (CLASSIC): %s", log_name(lease_first_hold(lease)->resource->name),
                                  r == LOCKFILE_E_BUSY ? "somebody outside has it locked, too" : strerror(-r));
        }
}

static int make_classic(Giveback *giveback, IntList *slots)
{
        LeaseTable *leases = lockspace_leases(giveback->parts->lockspaces);
        size_t cursor = 0;

        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                int r;

                if (!becomes_classic(lease))
                        continue;
                r = add(slots, (int)cursor);
                if (r < 0)
                        return out_of_memory(giveback);
                r = lockfile_convert(&lease->file, LOCK_CLASSIC);
                if (r != 0) {
                        slots->n--;
                        return because(giveback, r < 0 ? r : -EBUSY, "the lock of '%s' cannot be made a classic one: %s",
                                       log_name(lease_first_hold(lease)->resource->name),
                                       r < 0 ? strerror(-r) : "somebody outside has it locked, too");
                }
        }
        return 0;
}

/* ---- the execution ---- */

/* virtlockd wants an empty mask, and must not die of a signal before it has its handlers: until then they are ignored, and
 * what is pending goes. */
static void set_signals(bool for_virtlockd)
{
        static const int numbers[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE };
        sigset_t set;

        if (for_virtlockd)
                (void)sigemptyset(&set);
        else
                (void)sigfillset(&set);
        if (!for_virtlockd)
                (void)sigprocmask(SIG_SETMASK, &set, NULL);
        for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
                (void)signal(numbers[i], for_virtlockd ? SIG_IGN : SIG_DFL);
        if (for_virtlockd)
                (void)sigprocmask(SIG_SETMASK, &set, NULL);
}

static bool is_that_file(const Giveback *giveback)
{
        struct stat st;

        return stat(giveback->path, &st) == 0 && st.st_dev == giveback->file.st_dev && st.st_ino == giveback->file.st_ino &&
               st.st_mtim.tv_sec == giveback->file.st_mtim.tv_sec && st.st_mtim.tv_nsec == giveback->file.st_mtim.tv_nsec;
}

static int execute(Giveback *giveback)
{
        _cleanup_free_ char **argv = NULL;
        const char *pid_file;
        bool config;
        int r = 0;

        argv = arguments(giveback, &pid_file, &config);
        if (!argv)
                return out_of_memory(giveback);
        if (!is_that_file(giveback))
                return because(giveback, -ESTALE, "%s has been replaced since it was tried", giveback->path);
        (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
        /* What may be a lock, and nothing more is known of: virtlockd keeps it open without knowing. */
        for (size_t i = 0; i < giveback->parts->n_strays; i++)
                (void)fcntl(giveback->parts->strays[i], F_SETFD, 0);
        for (size_t i = 0; r == 0 && i < giveback->keep.n; i++)
                if (fcntl(giveback->keep.values[i], F_SETFD, 0) < 0)
                        r = -errno;
        if (r == 0) {
                log_audit("executing %s", log_name(giveback->path));
                set_signals(true);
                (void)execv(giveback->path, argv);
                r = -errno;
                set_signals(false);
        }
        (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
        return because(giveback, FAULT(r), "it cannot be executed: %s", strerror(-r));
}

/* From here to the execution nothing is dispatched. Returns on failure only. */
static void give(Giveback *giveback)
{
        _cleanup_free_ char *path = takeover_path(giveback->session);
        IntList slots = { 0 };
        int r = path ? check(giveback) : out_of_memory(giveback);

        if (r == 0)
                r = leave_state(giveback, path);
        if (r == 0) {
                r = make_classic(giveback, &slots);
                if (r == 0)
                        r = execute(giveback);
                undo(lockspace_leases(giveback->parts->lockspaces), &slots);
                free(slots.values);
                (void)unlink(path);
        }
}

static void give_up(Giveback *giveback)
{
        log_error("not given back to %s: %s; this lockd goes on, nothing is lost", giveback->path, giveback->why);
        end_attempt(giveback);
        giveback->failed(giveback->why, giveback->userdata);
}

/* ---- is it virtlockd? ---- */

static int on_trial_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Giveback *giveback = userdata;
        siginfo_t info = { 0 };
        char said[8192];
        ssize_t n;

        (void)source;
        (void)fd;
        (void)revents;
        (void)waitid(P_PID, (id_t)giveback->trial, &info, WEXITED | WNOHANG);
        n = read(giveback->output, said, sizeof(said) - 1);
        said[n > 0 ? n : 0] = '\0';
        if (info.si_code != CLD_EXITED || info.si_status != 0)
                (void)because(giveback, -EINVAL, "%s cannot be executed: '--help' ended with %s %d", giveback->path,
                              info.si_code == CLD_EXITED ? "code" : "signal", info.si_status);
        else if (!strstr(said, HELP_TEXT))
                (void)because(giveback, -EINVAL, "%s is no virtlockd, as its --help tells", giveback->path);
        else
                give(giveback);
        give_up(giveback);
        return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
        Giveback *giveback = userdata;

        (void)source;
        (void)usec;
        (void)kill(giveback->trial, SIGKILL); /* our own child, not yet waited for */
        return 0;
}

static void run_trial(const char *path, int output)
{
        const char *const argv[] = { path, "--help", NULL };
        int null = open("/dev/null", O_RDWR);
        sigset_t none;

        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)dup2(output, STDOUT_FILENO);
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(output, STDERR_FILENO);
        (void)close_range(3, ~0U, 0);
        (void)execv(path, (char **)(uintptr_t)argv);
        _exit(126);
}

static int start_trial(Giveback *giveback)
{
        _cleanup_fd_ int output = -1, pidfd = -1;
        int pipes[2], r;

        if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK) < 0)
                return FAULT(-errno);
        giveback->output = pipes[0];
        output = pipes[1];
        giveback->trial = fork();
        if (giveback->trial == 0)
                run_trial(giveback->path, output);
        if (giveback->trial < 0)
                return FAULT(-errno);
        pidfd = pidfd_open(giveback->trial, 0);
        r = pidfd < 0 ? -errno : sd_event_add_io(giveback->loop, &giveback->ended, pidfd, EPOLLIN, on_trial_ended, giveback);
        if (r >= 0) {
                (void)sd_event_source_set_io_fd_own(giveback->ended, true);
                TAKE_FD(pidfd);
                r = sd_event_add_time_relative(giveback->loop, &giveback->deadline, CLOCK_MONOTONIC, TRIAL_USEC, 0, on_deadline, giveback);
        }
        if (r < 0) {
                (void)kill(giveback->trial, SIGKILL);
                (void)waitpid(giveback->trial, NULL, 0);
                return FAULT(r);
        }
        return 0;
}

int giveback_start(Giveback *giveback, const char *path, const RestoreParts *parts)
{
        int r;

        if (giveback->path)
                return -EALREADY;
        giveback->parts = parts;
        if (*path != '/')
                return because(giveback, -EINVAL, "'%s' is not an absolute path", path);
        giveback->path = strdup(path);
        if (!giveback->path)
                return out_of_memory(giveback);
        if (stat(path, &giveback->file) < 0)
                r = because(giveback, -errno, "%s: %s", path, strerror(errno));
        else if (!S_ISREG(giveback->file.st_mode) || access(path, X_OK) < 0)
                r = because(giveback, -EACCES, "%s is not an executable file", path);
        else
                r = check(giveback);
        if (r == 0) {
                r = start_trial(giveback);
                if (r < 0)
                        (void)because(giveback, r, "its trial cannot be started: %s (%s)", strerror(-r), fault_trail());
        }
        if (r < 0) {
                log_error("not given back to %s: %s; this lockd goes on, nothing is lost", path, giveback->why);
                end_attempt(giveback);
        }
        return r;
}
