/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state: what is written is read back equal, by the fast way and by json-c; what a lockd was started with it hands on
 * unchanged; the states of all releases load.
 *
 * tests/states/vN.json is a state of format N. When this test says that the current format's file is not what lockd writes:
 * was a member added? Then write the file anew (LOCKD_TEST_WRITE_STATE=FILE has this program do it). Can an older lockd not do
 * without it? Then raise STATE_FORMAT, and add a file beside the old ones.
 *
 * LOCKD_TEST_STATES: how many random states go through a daemon (25). LOCKD_TEST_SEED: of what is random; it is printed.
 *
 * This program is also the binary to which those daemons are upgraded: it saves its state in STATE_SAVE, and ends.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../daemon/state.h"
#include "cleanup.h"
#include "harness.h"
#include "wire.h"

static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        return (uint32_t)(seed >> 33) % n;
}

/* Often an edge. */
static uint64_t rnd_hyper(void)
{
        const uint64_t edges[] = { 0, 1, INT32_MAX, UINT32_MAX, (uint64_t)UINT32_MAX + 1, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX };

        return rnd(2) ? edges[rnd(sizeof(edges) / sizeof(edges[0]))] : (uint64_t)rnd(UINT32_MAX) << 20 ^ rnd(UINT32_MAX);
}

static lockd_bytes bytes_of(const char *text)
{
        return (lockd_bytes){ .lockd_bytes_len = (u_int)strlen(text), .lockd_bytes_val = strdup(text) };
}

static size_t longest = SIZE_MAX;

/* Bytes that may not be NUL; of any length up to max, often odd ones. */
static lockd_bytes rnd_bytes(size_t max, bool nul)
{
        static const char *const odd[] = { "", "plain", "\"", "\\", "\\u0041", "\x01\x1f\x7f", "\n\r\t\b\f/", "\xff", "\xc3\x28", "\xed\xa0\x80",
                                           "\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac", "\xe2\x82", "]},[{", ("a\xf4\x90\x80\x80" "b"), "\xc0\x80" };
        size_t n = rnd(3) ? rnd(40) : rnd((uint32_t)(max < longest ? max : longest) + 1);
        lockd_bytes bytes;

        if (rnd(2))
                return bytes_of(odd[rnd(sizeof(odd) / sizeof(odd[0]))]);
        bytes = (lockd_bytes){ .lockd_bytes_len = (u_int)n, .lockd_bytes_val = malloc(n + 1) };
        assert_non_null(bytes.lockd_bytes_val);
        for (size_t i = 0; i < n; i++)
                bytes.lockd_bytes_val[i] = (char)(rnd(3) ? 'a' + (int)rnd(26) : nul ? (int)rnd(256) : 1 + (int)rnd(255));
        bytes.lockd_bytes_val[n] = '\0';
        return bytes;
}

/* What a newer lockd may have said. */
static lockd_bytes rnd_extra(void)
{
        static const char *const texts[] = { "", "", "", "{\"news\":1}", "{\"news\":{\"a\":[1,2,{\"b\":null}],\"c\":\"\xc3\xa9\\n\"},\"more\":false}" };

        return bytes_of(texts[rnd(sizeof(texts) / sizeof(texts[0]))]);
}

/* ---- one record, any content ---- */

static const xdrproc_t procs[] = {
        [STATE_HEADER] = (xdrproc_t)xdr_lockd_header,       [STATE_LISTENER] = (xdrproc_t)xdr_lockd_listener,
        [STATE_LOCKSPACE] = (xdrproc_t)xdr_lockd_lockspace, [STATE_OWNER] = (xdrproc_t)xdr_lockd_owner,
        [STATE_PEER] = (xdrproc_t)xdr_lockd_peer,           [STATE_LEASE] = (xdrproc_t)xdr_lockd_record,
        [STATE_STRAY] = (xdrproc_t)xdr_lockd_stray,         [STATE_END] = (xdrproc_t)xdr_lockd_end,
};

/* Every byte of the record by its type's own functions: random bytes are decoded, so that no member is forgotten. */
static void rnd_record(StateKind kind, StateRecord *ret)
{
        memset(ret, 0, sizeof(*ret));
        switch (kind) {
        case STATE_HEADER:
                ret->header = (lockd_header){ .format = rnd(9), .release = rnd_bytes(100, false), .binary = rnd_bytes(4095, false), .ending = rnd(2),
                                              .lease_newest = rnd_hyper(), .peer_newest = rnd_hyper(), .owner_newest = rnd_hyper() };
                return;
        case STATE_LISTENER:
                ret->listener = (lockd_listener){ .server = (lockd_server)rnd(3), .fd = (int)rnd(1000) - 1, .path = rnd_bytes(107, false),
                                                  .guard = (int)rnd(1000) - 1 };
                return;
        case STATE_LOCKSPACE:
                ret->lockspace = (lockd_lockspace){ .path = rnd_bytes(4095, false), .extra = rnd_extra() };
                return;
        case STATE_OWNER:
                ret->owner = (lockd_owner){ .number = rnd_hyper(), .name = rnd_bytes(1024, false), .id = rnd(UINT32_MAX), .pid = rnd(UINT32_MAX),
                                            .start_time = rnd_hyper(), .proved = rnd(2), .connections = rnd(9), .socket = rnd_hyper(),
                                            .state = (lockd_owner_state)rnd(9), .pidfd = rnd(2) ? -1 : (int)(rnd(UINT32_MAX) / 2), .dead = rnd(2),
                                            .foreign_ns = rnd_hyper(), .foreign_pid = rnd(UINT32_MAX), .kill_sent = rnd(2),
                                            .kill_left = rnd_hyper(), .extra = rnd_extra() };
                for (int i = 0; i < LOCKD_UUID_LEN; i++)
                        ret->owner.uuid[i] = (char)rnd(256);
                return;
        case STATE_PEER:
                ret->peer = (lockd_peer){ .number = rnd_hyper(), .server = (lockd_server)rnd(2), .fd = (int)rnd(100000) - 1, .pid = rnd(UINT32_MAX),
                                          .uid = rnd(UINT32_MAX), .accepted = rnd_hyper(), .owner = rnd_hyper(), .claimed_pid = rnd(UINT32_MAX),
                                          .own = rnd(2), .restricted = rnd(2), .last = rnd(4), .state = rnd(4), .half_closed = rnd(2), .deaf = rnd(2),
                                          .refusal = rnd_bytes(200, false), .input = rnd_bytes(200000, true), .output = rnd_bytes(300000, true),
                                          .later = (lockd_later)rnd(4), .waits_for = rnd_hyper(), .waited_holds = rnd_hyper(),
                                          .call_version = rnd(UINT32_MAX), .call_procedure = (int)rnd(2000) - 1000,
                                          .call_serial = rnd(UINT32_MAX), .extra = rnd_extra() };
                return;
        case STATE_LEASE:
                ret->lease = (lockd_record){ .id = rnd_hyper(), .lockspace = rnd_bytes(4095, false), .resource = rnd_bytes(4095, false),
                                             .mode = (lockd_mode)rnd(4), .state = (lockd_state)rnd(9), .kind = (lockd_kind)rnd(5),
                                             .autocreate = rnd(2), .local = rnd(2), .releasing = rnd(2), .fd = (int)rnd(100000) - 1,
                                             .dev = rnd_hyper(), .ino = rnd_hyper(), .block = rnd(2), .since = rnd_hyper(), .extra = rnd_extra() };
                ret->lease.holds.holds_len = rnd(4) ? rnd(3) : rnd(300);
                ret->lease.holds.holds_val = calloc(ret->lease.holds.holds_len + 1, sizeof(lockd_hold));
                for (u_int i = 0; i < ret->lease.holds.holds_len; i++)
                        ret->lease.holds.holds_val[i] = (lockd_hold){ .owner = { .number = rnd_hyper() }, .resource = rnd_bytes(255, false),
                                                                      .lockspace = rnd_bytes(100, false), .since = rnd_hyper(),
                                                                      .unconfirmed = rnd(2), .taken_by = rnd_hyper(), .extra = rnd_extra() };
                return;
        case STATE_STRAY:
                ret->stray = (lockd_stray){ .fd = (int)rnd(100000) - 1 };
                return;
        case STATE_END:
        default:
                ret->end = (lockd_end){ .lockspaces = rnd_hyper(), .leases = rnd_hyper(), .holds = rnd_hyper(), .owners = rnd_hyper(),
                                        .peers = rnd_hyper(), .highest_fd = rnd(UINT32_MAX) };
                return;
        }
}

static char *line_of(StateKind kind, const void *record)
{
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);

        assert_non_null(f);
        assert_int_equal(state_write(f, kind, record), 0);
        assert_int_equal(fclose(f), 0);
        assert_true(size > 0 && text[size - 1] == '\n');
        text[size - 1] = '\0';
        assert_null(strchr(text, '\n'));
        return text;
}

static void assert_reads_as(const char *line, StateKind kind, const uint8_t *wanted, size_t len)
{
        _cleanup_free_ uint8_t *got = NULL;
        StateRecord record;
        StateKind read_kind;
        size_t n;

        if (state_read(line, &read_kind, &record) != 0)
                fail_msg("cannot be read: %.500s", line);
        assert_int_equal(read_kind, kind);
        got = encode_args(procs[kind], &record, &n);
        if (n != len || memcmp(got, wanted, len) != 0)
                fail_msg("reads otherwise: %.500s", line);
        state_done(read_kind, &record);
}

/* The same line as json-c writes it, with blanks: it is not what state_write() writes, so it is read the other way. */
static void assert_is_json(const char *line, StateKind kind, const uint8_t *wanted, size_t len)
{
        json_object *object = json_tokener_parse(line);

        if (!object)
                fail_msg("no JSON: %.500s", line);
        assert_reads_as(json_object_to_json_string_ext(object, JSON_C_TO_STRING_SPACED), kind, wanted, len);
        json_object_put(object);
}

static void test_records(void **state)
{
        (void)state;
        for (int i = 0; i < 4000; i++) {
                StateKind kind = (StateKind)rnd(STATE_END + 1);
                _cleanup_free_ uint8_t *bytes = NULL;
                _cleanup_free_ char *line = NULL;
                StateRecord record;
                size_t len;

                rnd_record(kind, &record);
                bytes = encode_args(procs[kind], &record, &len);
                line = line_of(kind, &record);
                assert_reads_as(line, kind, bytes, len);
                assert_is_json(line, kind, bytes, len);
                state_done(kind, &record);
        }
}

/* The longest fields that there can be. */
static void test_maximal_fields(void **state)
{
        StateRecord record = { 0 };
        _cleanup_free_ uint8_t *bytes = NULL;
        _cleanup_free_ char *line = NULL;
        char *p;
        size_t len;

        (void)state;
        record.peer.output = (lockd_bytes){ LOCKD_BYTES_MAX, p = malloc(LOCKD_BYTES_MAX + 1) };
        for (size_t i = 0; i < LOCKD_BYTES_MAX; i++)
                p[i] = (char)i;
        record.peer.refusal = (lockd_bytes){ LOCKD_BYTES_MAX, malloc(LOCKD_BYTES_MAX + 1) };
        memset(record.peer.refusal.lockd_bytes_val, 0xfe, LOCKD_BYTES_MAX);
        record.peer.extra = bytes_of("");
        bytes = encode_args(procs[STATE_PEER], &record, &len);
        line = line_of(STATE_PEER, &record);
        assert_reads_as(line, STATE_PEER, bytes, len);
        state_done(STATE_PEER, &record);
}

static void test_missing_members(void **state)
{
        StateRecord record;
        StateKind kind;

        (void)state;
        assert_int_equal(state_read("{\"lease\":{}}", &kind, &record), 0);
        assert_int_equal(kind, STATE_LEASE);
        assert_int_equal(record.lease.fd, -1);
        assert_int_equal(record.lease.id, 0);
        assert_int_equal(record.lease.holds.holds_len, 0);
        state_done(kind, &record);
        assert_int_equal(state_read("{\"owner\":{\"number\":3}}", &kind, &record), 0);
        assert_int_equal(record.owner.pidfd, -1);
        assert_int_equal(record.owner.number, 3);
        state_done(kind, &record);
        assert_int_equal(state_read("{\"listener\":{\"server\":1}}", &kind, &record), 0);
        assert_int_equal(record.listener.fd, -1);
        assert_int_equal(record.listener.guard, -1);
        state_done(kind, &record);
}

/* Members and kinds of a newer lockd; members in another order. */
static void test_unknown(void **state)
{
        _cleanup_free_ char *line = NULL;
        StateRecord record;
        StateKind kind;

        (void)state;
        assert_int_equal(state_read("{\"flux\":{\"a\":1}}", &kind, &record), STATE_E_UNKNOWN);
        assert_int_equal(state_read("{\"lease\":{\"fd\":9,\"hue\":\"blue\",\"id\":7,\"holds\":[{\"owner\":2,\"tint\":[]}]}}", &kind, &record), 0);
        assert_int_equal(record.lease.fd, 9);
        assert_int_equal(record.lease.id, 7);
        assert_int_equal(record.lease.holds.holds_val[0].owner.number, 2);
        line = line_of(kind, &record);
        assert_non_null(strstr(line, "\"hue\":\"blue\""));
        assert_non_null(strstr(line, "\"tint\":[]"));
        assert_non_null(strstr(line, "\"id\":7"));
        state_done(kind, &record);
}

/* What is no line is said to be none, leaks nothing, and reads nothing behind its end. */
static void test_damaged_lines(void **state)
{
        static const char *const bad[] = { "", "{", "[]", "7", "\"lease\"", "{\"lease\":", "{\"lease\":7}", "{\"lease\":[]}", "{\"lease\":{\"id\":}}",
                                           "{\"owner\":{\"uuid\":\"12\"}}", "{\"peer\":{\"input\":\"123\"}}", "{\"peer\":{\"input\":\"zz\"}}",
                                           "{\"lease\":{\"resource\":7}}", "{\"lease\":{\"resource\":{}}}", "{\"lease\":{\"holds\":[7]}}" };
        StateRecord record;
        StateKind kind;

        (void)state;
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                if (state_read(bad[i], &kind, &record) != -EBADMSG)
                        fail_msg("was read: %s", bad[i]);
        for (int i = 0; i < 20000; i++) {
                _cleanup_free_ char *line = NULL, *exact = NULL;
                StateKind made = (StateKind)rnd(STATE_END + 1);
                size_t len;

                rnd_record(made, &record);
                line = line_of(made, &record);
                state_done(made, &record);
                len = strlen(line);
                if (len > 3000)
                        continue;
                for (uint32_t n = 1 + rnd(4); n > 0; n--)
                        line[rnd((uint32_t)len)] = rnd(2) ? (char)(1 + rnd(255)) : "{}[]\",:0\\u"[rnd(10)];
                if (rnd(3) == 0)
                        line[rnd((uint32_t)len)] = '\0';
                /* A block of its own size: AddressSanitizer and valgrind see a byte too far. */
                exact = strdup(line);
                if (state_read(exact, &kind, &record) == 0)
                        state_done(kind, &record);
        }
}

/* ---- a whole state through a daemon ---- */

#define FDS_MAX 400

typedef struct Whole {
        char dir[100], lock_socket[108], admin_socket[108], config[128], next[128], saved[140];
        FILE *out;
        char *text;
        size_t size;
        struct {
                int number, fd;
        } fds[FDS_MAX]; /* what lockd finds under that number */
        size_t n_fds;
        int other_ends[FDS_MAX]; /* of connections */
        size_t n_other_ends;
        int next_number;
        lockd_end end;
        unsigned n_owners;
        struct {
                uint64_t number;
                uint64_t peers[4]; /* its connections that are not its own */
                unsigned n_peers, own;
                bool process, dead, killing;
        } owners[16];
} Whole;

/* fd will have a number of its own in lockd. */
static int place(Whole *whole, int fd)
{
        assert_true(fd >= 0 && whole->n_fds < FDS_MAX);
        whole->next_number += 1 + (int)rnd(4);
        whole->fds[whole->n_fds].number = whole->next_number;
        whole->fds[whole->n_fds++].fd = fd;
        whole->end.highest_fd = (u_int)whole->next_number;
        return whole->next_number;
}

/* full: nothing more can be sent on it. */
static int connection(Whole *whole, bool full)
{
        static const char block[4096];
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        while (full && send(fds[0], block, sizeof(block), MSG_NOSIGNAL) > 0)
                continue;
        whole->other_ends[whole->n_other_ends++] = fds[1];
        return fds[0];
}

static int listening(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 10), 0);
        return fd;
}

static void write_line(Whole *whole, StateKind kind, StateRecord *record)
{
        assert_int_equal(state_write(whole->out, kind, record), 0);
        state_done(kind, record);
}

static void write_listeners(Whole *whole)
{
        for (int i = 0; i < 2; i++) {
                const char *path = i == 0 ? whole->lock_socket : whole->admin_socket;
                StateRecord record = { .listener = { .server = (lockd_server)i, .fd = place(whole, listening(path)), .path = bytes_of(path) } };

                record.listener.guard = rnd(4) ? place(whole, eventfd(0, EFD_CLOEXEC)) : -1;
                write_line(whole, STATE_LISTENER, &record);
        }
}

static void write_owner(Whole *whole, unsigned i)
{
        StateRecord record;
        lockd_owner *owner = &record.owner;

        rnd_record(STATE_OWNER, &record);
        free(owner->name.lockd_bytes_val);
        owner->name = rnd_bytes(1024, false);
        owner->number = whole->owners[i].number;
        owner->pid = whole->owners[i].process ? 1000 + i : 0;
        owner->pidfd = whole->owners[i].process ? place(whole, eventfd(0, EFD_CLOEXEC)) : -1;
        owner->dead = whole->owners[i].dead;
        owner->connections = whole->owners[i].own;
        owner->socket = whole->owners[i].own ? rnd_hyper() : 0;
        owner->proved = whole->owners[i].own > 0 || rnd(2);
        owner->kill_sent = owner->kill_left = 0;
        owner->state = !whole->owners[i].process ? LOCKD_OWNER_NONE : owner->dead ? LOCKD_OWNER_DEAD : LOCKD_OWNER_ALIVE;
        if (owner->state == LOCKD_OWNER_ALIVE && rnd(4) == 0) {
                owner->state = rnd(3) ? LOCKD_OWNER_KILLING : LOCKD_OWNER_UNKILLABLE;
                owner->kill_sent = owner->state == LOCKD_OWNER_KILLING ? rnd(2) : TRUE;
                owner->kill_left = owner->state == LOCKD_OWNER_KILLING ? 3600000000ULL : 0;
        }
        if (owner->state == LOCKD_OWNER_UNKILLABLE)
                owner->kill_sent = FALSE;
        whole->owners[i].killing = owner->state == LOCKD_OWNER_KILLING;
        write_line(whole, STATE_OWNER, &record);
        whole->end.owners++;
}

/* Who has which connections, before either is written. */
static void plan_owners(Whole *whole)
{
        uint64_t peer = 1;

        whole->n_owners = 1 + rnd(8);
        for (unsigned i = 0; i < whole->n_owners; i++) {
                whole->owners[i].number = 3 * i + 1 + rnd(3);
                whole->owners[i].process = rnd(5) > 0;
                whole->owners[i].own = whole->owners[i].process ? rnd(3) : 0;
                whole->owners[i].dead = whole->owners[i].own && rnd(4) == 0;
                whole->owners[i].n_peers = whole->owners[i].own ? rnd(3) : 1 + rnd(2);
                for (unsigned j = 0; j < whole->owners[i].n_peers; j++)
                        whole->owners[i].peers[j] = 1000 * (i + 1) + peer++;
        }
}

static void write_peer(Whole *whole, unsigned server, uint64_t number, uint64_t owner, bool own, uint64_t waits_for)
{
        StateRecord record;
        lockd_peer *peer = &record.peer;

        rnd_record(STATE_PEER, &record);
        free(peer->refusal.lockd_bytes_val);
        free(peer->input.lockd_bytes_val);
        peer->refusal = bytes_of("");
        peer->input = bytes_of("");
        peer->number = number;
        peer->server = (lockd_server)server;
        peer->owner = owner;
        peer->claimed_pid = owner ? rnd(100000) : 0;
        peer->own = own;
        peer->last = rnd(3);
        peer->half_closed = own && rnd(5) == 0;
        /* Open, about to be closed, or not listened to any more. */
        peer->state = own ? 2 * (rnd(5) == 0) : rnd(5) == 0;
        peer->deaf = peer->state == 2;
        if (peer->state != 1 && (peer->deaf || rnd(3))) {
                free(peer->output.lockd_bytes_val);
                peer->output = bytes_of("");
        } else if (peer->output.lockd_bytes_len == 0) {
                free(peer->output.lockd_bytes_val);
                peer->output = bytes_of("not sent");
        }
        peer->fd = place(whole, connection(whole, peer->output.lockd_bytes_len > 0));
        peer->later = LOCKD_LATER_NO;
        peer->waits_for = peer->waited_holds = 0;
        peer->call_version = peer->call_serial = 0;
        peer->call_procedure = 0;
        /* A part of a message. */
        if (peer->state == 0 && rnd(2)) {
                free(peer->input.lockd_bytes_val);
                peer->input = (lockd_bytes){ 1 + rnd(90), calloc(1, 100) };
                peer->input.lockd_bytes_val[3] = 100;
                for (u_int i = 4; i < peer->input.lockd_bytes_len; i++)
                        peer->input.lockd_bytes_val[i] = (char)rnd(256);
        }
        if (waits_for) {
                peer->state = 0;
                peer->later = LOCKD_LATER_KILL;
                peer->waits_for = waits_for;
                peer->waited_holds = rnd(100);
                peer->call_version = LOCKD_ADMIN_VERSION;
                peer->call_procedure = LOCKD_ADMIN_RELEASE;
                peer->call_serial = rnd(UINT32_MAX);
        }
        write_line(whole, STATE_PEER, &record);
        whole->end.peers++;
}

static void write_peers(Whole *whole)
{
        uint64_t own = 500;

        for (unsigned i = 0; i < whole->n_owners; i++) {
                for (unsigned j = 0; j < whole->owners[i].own; j++)
                        write_peer(whole, 0, own++, whole->owners[i].number, true, 0);
                for (unsigned j = 0; j < whole->owners[i].n_peers; j++)
                        write_peer(whole, 0, whole->owners[i].peers[j], whole->owners[i].number, false, 0);
        }
        for (uint32_t n = rnd(3); n > 0; n--)
                write_peer(whole, 0, own++, 0, false, 0);
        for (uint32_t n = rnd(3); n > 0; n--)
                write_peer(whole, 1, own++, 0, false, 0);
        for (unsigned i = 0; i < whole->n_owners; i++)
                if (whole->owners[i].killing && rnd(2))
                        write_peer(whole, 1, own++, 0, false, whole->owners[i].number);
}

static int locked_file(const Whole *whole, uint64_t id, bool shared, struct stat *ret)
{
        struct flock lock = { .l_type = shared ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
        char path[160];
        int fd;

        (void)snprintf(path, sizeof(path), "%s/file%llu", whole->dir, (unsigned long long)id);
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
        assert_int_equal(fstat(fd, ret), 0);
        return fd;
}

/* A name nobody else has. */
static lockd_bytes rnd_name(bool path, uint64_t id)
{
        lockd_bytes odd = rnd_bytes(100, false);
        char *text;

        for (u_int i = 0; i < odd.lockd_bytes_len; i++)
                if (odd.lockd_bytes_val[i] == '/')
                        odd.lockd_bytes_val[i] = '.';
        assert_true(asprintf(&text, "%s%llu.%s", path ? "/" : "", (unsigned long long)id, odd.lockd_bytes_val) > 0);
        free(odd.lockd_bytes_val);
        return (lockd_bytes){ (u_int)strlen(text), text };
}

static void write_lease(Whole *whole, uint64_t id, const char *const *spaces, unsigned n_spaces)
{
        bool unprotected = rnd(6) == 0, shared = rnd(2), gone = true;
        unsigned n = shared && !unprotected ? 1 + rnd(5) : 1;
        StateRecord record;
        lockd_record *lease = &record.lease;
        struct stat st;

        rnd_record(STATE_LEASE, &record);
        state_done(STATE_LEASE, &record);
        *lease = (lockd_record){ .id = id, .mode = shared ? LOCKD_MODE_SHARED : LOCKD_MODE_EXCLUSIVE, .kind = LOCKD_KIND_NONE, .fd = -1,
                                 .state = LOCKD_STATE_UNPROTECTED, .since = rnd_hyper(), .extra = rnd_extra() };
        if (!unprotected) {
                int fd = locked_file(whole, id, shared, &st);

                lease->fd = place(whole, fd);
                lease->kind = LOCKD_KIND_OFD;
                lease->dev = st.st_dev;
                lease->ino = st.st_ino;
                lease->autocreate = rnd(2);
                lease->local = rnd(4) > 0;
        }
        lease->holds.holds_val = calloc(n, sizeof(lockd_hold));
        lease->holds.holds_len = n;
        for (unsigned i = 0; i < n; i++) {
                lockd_hold *hold = &lease->holds.holds_val[i];
                unsigned o = rnd(whole->n_owners), space = rnd(n_spaces);

                *hold = (lockd_hold){ .owner = { .number = whole->owners[o].number }, .lockspace = bytes_of(spaces[space]),
                                      .resource = rnd_name(space == 0, id * 100 + i), .since = rnd_hyper(), .extra = rnd_extra() };
                if (i > 0 && rnd(2)) {
                        /* The same name once more. */
                        free(hold->lockspace.lockd_bytes_val);
                        free(hold->resource.lockd_bytes_val);
                        hold->lockspace = bytes_of(lease->holds.holds_val[0].lockspace.lockd_bytes_val);
                        hold->resource = bytes_of(lease->holds.holds_val[0].resource.lockd_bytes_val);
                }
                hold->unconfirmed = rnd(4) == 0;
                if (whole->owners[o].n_peers > 0 && rnd(2))
                        hold->taken_by = whole->owners[o].peers[rnd(whole->owners[o].n_peers)];
                gone = gone && whole->owners[o].dead;
        }
        lease->lockspace = bytes_of(lease->holds.holds_val[0].lockspace.lockd_bytes_val);
        lease->resource = bytes_of(lease->holds.holds_val[0].resource.lockd_bytes_val);
        if (!unprotected)
                lease->state = gone ? LOCKD_STATE_ORPHANED : LOCKD_STATE_HELD;
        whole->end.leases++;
        whole->end.holds += n;
        write_line(whole, STATE_LEASE, &record);
}

static void whole_begin(Whole *whole, const char *name)
{
        FILE *f;

        *whole = (Whole){ .next_number = 20 };
        (void)snprintf(whole->dir, sizeof(whole->dir), "%s", work_path(name));
        (void)mkdir(whole->dir, 0700);
        (void)snprintf(whole->lock_socket, sizeof(whole->lock_socket), "%s/lock", whole->dir);
        (void)snprintf(whole->admin_socket, sizeof(whole->admin_socket), "%s/admin", whole->dir);
        (void)snprintf(whole->config, sizeof(whole->config), "%s/lockd.conf", whole->dir);
        (void)snprintf(whole->next, sizeof(whole->next), "%s/next", whole->dir);
        (void)snprintf(whole->saved, sizeof(whole->saved), "%s/saved", whole->dir);
        (void)unlink(whole->lock_socket);
        (void)unlink(whole->admin_socket);
        (void)unlink(whole->saved);
        f = fopen(whole->config, "we");
        assert_non_null(f);
        fprintf(f, "lock_socket = \"%s\"\nadmin_socket = \"%s\"\n", whole->lock_socket, whole->admin_socket);
        fclose(f);
}

static void rnd_whole(Whole *whole, const char *name)
{
        const char *const spaces[] = { "", "/run/one", "/run/two", "/\xfe" };
        unsigned n_spaces = 1 + rnd(4);
        StateRecord header = { 0 };
        uint64_t id = 0;

        whole_begin(whole, name);
        whole->out = open_memstream(&whole->text, &whole->size);
        header.header = (lockd_header){ .format = STATE_FORMAT, .release = bytes_of(LOCKD_VERSION), .binary = bytes_of(whole->next), .ending = rnd(2),
                                        .lease_newest = 5000 + rnd(9), .peer_newest = 20000 + rnd(9), .owner_newest = 6000 + rnd(9) };
        write_line(whole, STATE_HEADER, &header);
        write_listeners(whole);
        for (unsigned i = 0; i < n_spaces; i++) {
                StateRecord record = { .lockspace = { .path = bytes_of(spaces[i]), .extra = rnd_extra() } };

                write_line(whole, STATE_LOCKSPACE, &record);
                whole->end.lockspaces++;
        }
        plan_owners(whole);
        for (unsigned i = 0; i < whole->n_owners; i++)
                write_owner(whole, i);
        write_peers(whole);
        for (uint32_t n = 1 + rnd(12); n > 0; n--)
                write_lease(whole, id += 1 + rnd(9), spaces, n_spaces);
        for (uint32_t n = rnd(3); n > 0; n--) {
                StateRecord record = { .stray = { .fd = place(whole, eventfd(0, EFD_CLOEXEC)) } };

                write_line(whole, STATE_STRAY, &record);
        }
        for (uint32_t n = rnd(3); n > 0; n--)
                fprintf(whole->out, "{\"flux\":{\"capacity\":%u}}\n", n);
        assert_int_equal(state_write(whole->out, STATE_END, &whole->end), 0);
        fclose(whole->out);
}

static const char *lockd(void)
{
        return getenv("LOCKD") ? getenv("LOCKD") : "build/lockd";
}

/* Under that number in a child that is about to execute lockd; numbers below 1000 are taken one after the other. */
static void move_fds(const Whole *whole, int state)
{
        static int high[FDS_MAX];

        for (size_t i = 0; i < whole->n_fds; i++)
                high[i] = fcntl(whole->fds[i].fd, F_DUPFD_CLOEXEC, 2000);
        state = fcntl(state, F_DUPFD_CLOEXEC, 2000);
        (void)close_range(3, 1999, 0);
        for (size_t i = 0; i < whole->n_fds; i++)
                (void)dup2(high[i], whole->fds[i].number);
        (void)dup2(state, 3);
}

/* A lockd that finds that state as an upgrade would have left it. */
static pid_t start_with(const Whole *whole, bool trial)
{
        char log[140];
        int state = memfd_create("state", MFD_CLOEXEC), fd;
        pid_t pid;

        assert_int_equal(write(state, whole->text, strlen(whole->text)), (ssize_t)strlen(whole->text));
        assert_int_equal(lseek(state, 0, SEEK_SET), 0);
        (void)snprintf(log, sizeof(log), "%s/log", whole->dir);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                (void)dup2(fd, STDERR_FILENO);
                (void)dup2(fd, STDOUT_FILENO);
                move_fds(whole, state);
                (void)setenv("LOCKD_STATE_FD", "3", 1);
                (void)setenv("STATE_SAVE", whole->saved, 1);
                (void)setenv("STATE_LOCKD", lockd(), 1);
                execl(lockd(), "lockd", "-v", "-f", whole->config, trial ? "--check-state" : (char *)NULL, (char *)NULL);
                _exit(127);
        }
        close(state);
        return pid;
}

static char *read_file(const char *path)
{
        char *text = NULL;
        size_t size = 0;
        FILE *f = fopen(path, "re");

        if (f && getdelim(&text, &size, '\0', f) < 0)
                text[0] = '\0';
        if (f)
                fclose(f);
        return text;
}

/* kill_left is a clock. */
static void mask(char *text)
{
        for (char *p = text; (p = strstr(p, "\"kill_left\":3")); p++)
                for (char *digit = p + 12; *digit >= '0' && *digit <= '9'; digit++)
                        *digit = '9';
}

static void assert_same_state(char *a, char *b)
{
        char *save_a = NULL, *save_b = NULL, *x, *y;

        mask(a);
        mask(b);
        x = strtok_r(a, "\n", &save_a);
        y = strtok_r(b, "\n", &save_b);
        while (x || y) {
                if (!x || !y || strcmp(x, y) != 0)
                        fail_msg("seed leads to another state:\n%s\n%s", x ? x : "(nothing)", y ? y : "(nothing)");
                x = strtok_r(NULL, "\n", &save_a);
                y = strtok_r(NULL, "\n", &save_b);
        }
}

/* What lockd writes when it is told to upgrade itself; ends it. */
static char *state_of(const Whole *whole, pid_t pid)
{
        int status;

        wait_until(({
                Conn *conn = conn_open_at(whole->lock_socket);
                bool up = conn && conn_ping(conn, 1);

                if (conn)
                        conn_close(conn);
                up || waitpid(pid, &status, WNOHANG) == pid;
        }));
        (void)kill(pid, SIGUSR1);
        wait_until(waitpid(pid, &status, WNOHANG) != 0);
        return read_file(whole->saved);
}

static void whole_end(Whole *whole)
{
        for (size_t i = 0; i < whole->n_fds; i++)
                close(whole->fds[i].fd);
        for (size_t i = 0; i < whole->n_other_ends; i++)
                close(whole->other_ends[i]);
        free(whole->text);
        *whole = (Whole){ 0 };
}

/* The connection that asks whether lockd is up has come and gone: it is in no state, but had a number. */
static void test_whole_states(void **state)
{
        const int n = getenv("LOCKD_TEST_STATES") ? atoi(getenv("LOCKD_TEST_STATES")) : 25;

        (void)state;
        for (int i = 0; i < n; i++) {
                _cleanup_free_ char *after = NULL;
                uint64_t begin = seed;
                Whole whole;
                char *newest;

                rnd_whole(&whole, "whole");
                install_copy("/proc/self/exe", whole.next);
                after = state_of(&whole, start_with(&whole, false));
                if (!after)
                        fail_msg("seed %llu: lockd ended, or was not upgraded: see %s/log", (unsigned long long)begin, whole.dir);
                newest = strstr(after, "\"peer_newest\":");
                assert_non_null(newest);
                memcpy(newest, strstr(whole.text, "\"peer_newest\":"), strlen("\"peer_newest\":20000"));
                print_message("%s", i % 10 == 9 ? ".\n" : "");
                assert_same_state(whole.text, after);
                whole_end(&whole);
        }
}

/* ---- states of all releases ---- */

static const char *states_dir(void)
{
        static char dir[4200];

        (void)snprintf(dir, sizeof(dir), "%.*s/states", (int)(strrchr(__FILE__, '/') - __FILE__), __FILE__);
        return dir;
}

/* Something for each fd that the state names. */
static void stand_in(Whole *whole)
{
        _cleanup_free_ char *copy = strdup(whole->text);
        char *save = NULL;

        for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                struct stat st;
                StateRecord record;
                StateKind kind;
                int number = -1, fd = -1, r = state_read(line, &kind, &record);

                assert_true(r == 0 || r == STATE_E_UNKNOWN);
                if (r != 0)
                        continue;
                if (kind == STATE_LISTENER) {
                        number = record.listener.fd;
                        fd = listening(number >= 0 && record.listener.server == LOCKD_SERVER_LOCK ? whole->lock_socket : whole->admin_socket);
                        if (record.listener.guard >= 0) {
                                whole->fds[whole->n_fds].number = record.listener.guard;
                                whole->fds[whole->n_fds++].fd = eventfd(0, EFD_CLOEXEC);
                        }
                } else if (kind == STATE_OWNER && record.owner.pidfd >= 0) {
                        number = record.owner.pidfd;
                        fd = eventfd(0, EFD_CLOEXEC);
                } else if (kind == STATE_PEER) {
                        number = record.peer.fd;
                        fd = connection(whole, record.peer.output.lockd_bytes_len > 0);
                } else if (kind == STATE_LEASE && record.lease.fd >= 0) {
                        number = record.lease.fd;
                        fd = locked_file(whole, record.lease.id, record.lease.mode == LOCKD_MODE_SHARED, &st);
                } else if (kind == STATE_STRAY) {
                        number = record.stray.fd;
                        fd = eventfd(0, EFD_CLOEXEC);
                }
                if (number >= 0) {
                        whole->fds[whole->n_fds].number = number;
                        whole->fds[whole->n_fds++].fd = fd;
                }
                state_done(kind, &record);
        }
}

/* Every line of the current format's file is what state_write() makes of it; it loads, in a trial and for good, and comes out
 * as it went in. */
static void check_golden(const char *name, unsigned format)
{
        _cleanup_free_ char *after = NULL, *release = NULL;
        char path[4300];
        Whole whole;
        int status;
        pid_t pid;

        print_message("%s\n", name);
        whole_begin(&whole, "golden");
        install_copy("/proc/self/exe", whole.next);
        (void)snprintf(path, sizeof(path), "%s/%s", states_dir(), name);
        whole.text = read_file(path);
        assert_non_null(whole.text);
        if (format == STATE_FORMAT) {
                _cleanup_free_ char *copy = strdup(whole.text);
                char *save = NULL;

                for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                        _cleanup_free_ char *again = NULL;
                        StateRecord record;
                        StateKind kind;
                        int r = state_read(line, &kind, &record);

                        assert_true(r == 0 || r == STATE_E_UNKNOWN);
                        if (r != 0)
                                continue;
                        again = line_of(kind, &record);
                        state_done(kind, &record);
                        if (strcmp(again, line) != 0)
                                fail_msg("the format has changed without a new file in tests/states (see the top of this test):\n%s\n%s", line,
                                         again);
                }
        }
        stand_in(&whole);
        pid = start_with(&whole, true);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        after = state_of(&whole, start_with(&whole, false));
        assert_non_null(after);
        if (format == STATE_FORMAT) {
                /* The release is this one. */
                release = strndup(strstr(whole.text, "\"release\":"), strcspn(strstr(whole.text, "\"release\":"), ","));
                if (strncmp(strstr(after, "\"release\":"), release, strlen(release)) == 0) {
                        memcpy(strstr(after, "\"peer_newest\":"), strstr(whole.text, "\"peer_newest\":"), strlen("\"peer_newest\":20000"));
                        assert_same_state(whole.text, after);
                }
        }
        whole_end(&whole);
}

static void test_golden(void **state)
{
        struct dirent *entry;
        DIR *dir = opendir(states_dir());
        bool current = false;

        (void)state;
        assert_non_null(dir);
        while ((entry = readdir(dir))) {
                unsigned format;

                if (sscanf(entry->d_name, "v%u", &format) != 1)
                        continue;
                current = current || format == STATE_FORMAT;
                check_golden(entry->d_name, format);
        }
        closedir(dir);
        if (!current)
                fail_msg("tests/states has no state of format %u", STATE_FORMAT);
}

/* A state that is richer than most, with this test's folder in its paths. */
static int write_golden(const char *path)
{
        Whole whole = { 0 };
        FILE *f;

        seed = 42;
        longest = 40;
        do {
                whole_end(&whole);
                rnd_whole(&whole, "golden");
        }
        while (whole.end.leases < 8 || whole.end.owners < 5 || whole.end.peers < 12 || !strstr(whole.text, "stray") ||
               !strstr(whole.text, "\"kill_left\":3") || !strstr(whole.text, "flux") || !strstr(whole.text, "\"state\":5") ||
               !strstr(whole.text, "\"dead\":true") || !strstr(whole.text, "\"later\":1"));
        f = fopen(path, "we");
        if (!f || fputs(whole.text, f) < 0 || fclose(f) != 0)
                return 1;
        return 0;
}

/* ---- the next binary ---- */

static int save_state(char **argv)
{
        char buf[65536];
        int in = atoi(getenv("LOCKD_STATE_FD")), out;
        ssize_t n;

        for (char **p = argv; *p; p++)
                if (strcmp(*p, "--check-state") == 0) {
                        (void)execv(getenv("STATE_LOCKD"), argv);
                        return 40;
                }
        out = open(getenv("STATE_SAVE"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        while ((n = read(in, buf, sizeof(buf))) > 0)
                if (write(out, buf, (size_t)n) != n)
                        return 41;
        return 0;
}

int main(int argc, char **argv)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_records), cmocka_unit_test(test_maximal_fields), cmocka_unit_test(test_missing_members),
                cmocka_unit_test(test_unknown), cmocka_unit_test(test_damaged_lines),  cmocka_unit_test(test_whole_states),
                cmocka_unit_test(test_golden),
        };

        if (getenv("LOCKD_STATE_FD"))
                return save_state(argv);
        if (getenv("LOCKD_TEST_WRITE_STATE"))
                return write_golden(getenv("LOCKD_TEST_WRITE_STATE"));
        seed = getenv("LOCKD_TEST_SEED") ? strtoull(getenv("LOCKD_TEST_SEED"), NULL, 10) : 20260102;
        print_message("seed %llu\n", (unsigned long long)seed);
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
