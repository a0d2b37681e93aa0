/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Nothing that a client sends ends the daemon, disturbs another client, or costs unbounded memory or time. What cannot be
 * understood gets an error reply or a closed connection; an owner's own connection is never closed while it has holds.
 *
 * In every test a VM holds an image: after each misdeed it must still be locked, and its connection must be answered.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "wire.h"

#define ANSWER_MSEC 2000 /* an answer to somebody who did nothing wrong may take this long on a busy machine */
#define CALL_MAX (VIRTLOCK_MESSAGE_MAX + FRAME_HEADER_SIZE)
#define IDLE_MSEC 200
#define IDLE_CPU_MSEC 40 /* of IDLE_MSEC; a loop that spins takes nearly all of it */
#define CROWD 200
#define MIB (1024L * 1024)

/* One frame or a part of it, whole with its header. */
typedef struct Bytes {
        uint8_t *bytes;
        size_t len;
} Bytes;

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;
static Vm holder;
static Conn *witness; /* a connection for holder, that took its image */
static const char *image;

/* ---- frames ---- */

static Bytes frame_of(FrameHeader header, const uint8_t *payload, size_t len)
{
        Bytes frame = { .bytes = malloc(FRAME_HEADER_SIZE + len), .len = FRAME_HEADER_SIZE + len };

        assert_non_null(frame.bytes);
        if (header.length == 0)
                header.length = (uint32_t)frame.len;
        frame_write_header(frame.bytes, &header);
        if (len > 0)
                memcpy(frame.bytes + FRAME_HEADER_SIZE, payload, len);
        return frame;
}

static FrameHeader call_header(uint32_t program, int32_t procedure)
{
        return (FrameHeader){ .program = program, .version = 1, .procedure = procedure, .serial = 1 };
}

static Bytes call_frame(uint32_t program, int32_t procedure, xdrproc_t proc, const void *args)
{
        size_t len;
        _cleanup_free_ uint8_t *payload = encode_args(proc, args, &len);

        return frame_of(call_header(program, procedure), payload, len);
}

static virtlock_string string_of(const char *text)
{
        return (virtlock_string){ (u_int)strlen(text), (char *)(uintptr_t)text };
}

static Bytes register_frame(const Vm *vm)
{
        virtlock_register args = { .name = string_of(vm->name), .id = vm->id, .pid = (u_int)vm->pid };

        memcpy(args.uuid, vm->uuid, sizeof(args.uuid));
        return call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &args);
}

static Bytes resource_frame(int32_t procedure, const char *lockspace, const char *name, uint32_t flags)
{
        virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };

        return call_frame(VIRTLOCK_PROGRAM, procedure, (xdrproc_t)xdr_virtlock_resource, &args);
}

static void send_whole(Conn *conn, Bytes frame)
{
        conn_send_bytes(conn, frame.bytes, frame.len);
        free(frame.bytes);
}

/* ---- what must stay true ---- */

static void ping(Conn *conn)
{
        const FrameHeader call = {
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
        };
        FrameHeader answer;

        conn_send_frame(conn, call, NULL, 0);
        assert_true(conn_receive(conn, &answer, NULL, NULL));
        assert_int_equal(answer.program, FRAME_KEEPALIVE_PROGRAM);
        assert_int_equal(answer.procedure, FRAME_KEEPALIVE_PONG);
        assert_int_equal(answer.type, FRAME_MESSAGE);
        assert_int_equal(answer.length, FRAME_HEADER_SIZE);
}

static void check_others(void)
{
        int64_t start = now_msec();

        assert_false(is_lockable(image, false));
        ping(witness);
        assert_int_equal(conn_create_lockspace(witness, ""), 0);
        if (now_msec() - start > ANSWER_MSEC)
                fail_msg("the witness waited %d ms for its answers", (int)(now_msec() - start));
}

/* The next frame is an error with that code; false: the connection was closed instead. */
static bool receive_error(Conn *conn, int code)
{
        _cleanup_free_ uint8_t *payload = NULL;
        virtlock_error error = { 0 };
        FrameHeader header;
        size_t len;

        if (!conn_receive(conn, &header, &payload, &len))
                return false;
        assert_int_equal(header.type, FRAME_REPLY);
        assert_int_equal(header.status, FRAME_ERROR);
        assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_error, payload, len, &error), 0);
        if (error.code != code)
                fail_msg("error %d, not %d: %s", error.code, code, *error.message);
        wire_free((xdrproc_t)xdr_virtlock_error, &error);
        return true;
}

static void expect_closed(Conn *conn)
{
        FrameHeader header;

        assert_false(conn_receive(conn, &header, NULL, NULL));
}

static unsigned long read_status(const char *key)
{
        char path[64], line[256];
        unsigned long value = 0;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (strncmp(line, key, strlen(key)) == 0 && line[strlen(key)] == ':')
                        value = strtoul(line + strlen(key) + 1, NULL, 10);
        fclose(f);
        return value;
}

static long resident_bytes(void)
{
        return (long)read_status("VmRSS") * 1024;
}

/* AddressSanitizer keeps what is freed, and reserves terabytes of address space. */
static bool is_sanitized(void)
{
        return read_status("VmSize") > 1024UL * 1024 * 1024;
}

static double cpu_msec(void)
{
        struct timespec used;
        clockid_t clock;

        assert_int_equal(clock_getcpuclockid(d->pid, &clock), 0);
        assert_int_equal(clock_gettime(clock, &used), 0);
        return (double)used.tv_sec * 1000 + (double)used.tv_nsec / 1000000;
}

/* Time has to pass here: it is the absence of work that is measured. */
static double cpu_used_in(int msec)
{
        double before = cpu_msec();

        (void)poll(NULL, 0, msec);
        return cpu_msec() - before;
}

static void check_idle(const char *when)
{
        double used;

        wait_until(cpu_used_in(IDLE_MSEC / 10) < (double)IDLE_CPU_MSEC / 10); /* what it was given to do is done */
        used = cpu_used_in(IDLE_MSEC);
        if (used > IDLE_CPU_MSEC)
                fail_msg("%s: lockd used %.1f ms of %d ms, doing nothing", when, used, IDLE_MSEC);
}

static unsigned count_fds(void)
{
        char path[64];
        unsigned n = 0;

        for (int fd = 0; fd < 4096; fd++) {
                struct stat st;

                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)d->pid, fd);
                n += lstat(path, &st) == 0;
        }
        return n;
}

static int start(void **state)
{
        (void)state;
        daemon_start(d, NULL, NULL);
        image = make_file("held.img", "data");
        holder = vm_start(d, "holder");
        witness = vm_conn(d, &holder);
        assert_int_equal(conn_acquire(witness, "", image, 0), 0);
        check_others();
        return 0;
}

static int stop(void **state)
{
        (void)state;
        conn_close(witness);
        vm_kill(&holder);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        daemon_stop(d);
        return 0;
}

/* ---- malformed frames, one by one ---- */

static void test_lengths(void **state)
{
        static const uint32_t too_long[] = { CALL_MAX + 1, 1U << 20, 33554432 + 4, 33554432 + 5, 0x7fffffff, 0x80000000, 0xffffffff };
        uint8_t junk[64];

        (void)state;
        memset(junk, 0xa5, sizeof(junk));
        for (uint32_t length = 0; length < FRAME_HEADER_SIZE; length++) {
                Conn *conn = conn_open(d);
                uint8_t word[4] = { 0, 0, 0, (uint8_t)length };

                conn_send_bytes(conn, word, sizeof(word));
                conn_send_bytes(conn, junk, length % 3 ? length : 0);
                expect_closed(conn);
                conn_close(conn);
        }
        for (size_t i = 0; i < sizeof(too_long) / sizeof(too_long[0]); i++) {
                FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE);
                Conn *conn = conn_open(d);

                header.length = too_long[i];
                conn_send_frame(conn, header, junk, i % 2 ? sizeof(junk) : 0);
                assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                expect_closed(conn);
                conn_close(conn);
        }
        check_others();
        check_idle("after bad lengths");
}

/* Each word of the header but the length, with values that it cannot have: an error, and the connection goes on. */
static void test_headers(void **state)
{
        static const uint32_t words[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff };
        Conn *conn = conn_open(d);

        (void)state;
        for (int field = 0; field < 5; field++)
                for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
                        FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE);
                        const uint32_t right[] = { VIRTLOCK_PROGRAM, 1, 0, FRAME_CALL, FRAME_OK };
                        Bytes frame;

                        if (words[i] == right[field] || (field == 2 && words[i] >= 1 && words[i] <= 8))
                                continue;
                        switch (field) {
                        case 0:
                                header.program = words[i];
                                break;
                        case 1:
                                header.version = words[i];
                                break;
                        case 2:
                                header.procedure = (int32_t)words[i];
                                break;
                        case 3:
                                header.type = words[i];
                                break;
                        default:
                                header.status = words[i];
                        }
                        header.serial = words[i];
                        frame = frame_of(header, (const uint8_t *)"junkjunk", 8);
                        send_whole(conn, frame);
                        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                }
        /* The keepalive program: whatever has to be answered is answered, and the rest does not harm. */
        for (int32_t procedure = -1; procedure < 4; procedure++)
                for (uint32_t version = 0; version < 3; version++) {
                        FrameHeader header = call_header(FRAME_KEEPALIVE_PROGRAM, procedure);

                        header.version = version;
                        conn_send_frame(conn, header, NULL, 0);
                        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                        header.type = FRAME_MESSAGE;
                        if (version == FRAME_KEEPALIVE_VERSION && procedure != FRAME_KEEPALIVE_PING)
                                conn_send_frame(conn, header, "junk", 4);
                }
        ping(conn);
        conn_close(conn);
        check_others();
}

/* Valid arguments of every procedure; *ret_len 0: that was the last one. */
static Bytes valid_call(size_t n, const Vm *vm, const char *lockspace)
{
        virtlock_restrict restrict_args = { 0 };
        virtlock_new new_args = { .path = string_of(lockspace) };
        virtlock_create_lockspace create_args = { .path = string_of(lockspace) };

        switch (n) {
        case 0:
                return register_frame(vm);
        case 1:
                return call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_NEW, (xdrproc_t)xdr_virtlock_new, &new_args);
        case 2:
                return call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_CREATE_LOCKSPACE, (xdrproc_t)xdr_virtlock_create_lockspace, &create_args);
        case 3:
                return resource_frame(VIRTLOCK_CREATE_RESOURCE, lockspace, "lease", 0);
        case 4:
                return resource_frame(VIRTLOCK_ACQUIRE_RESOURCE, lockspace, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE);
        case 5:
                return resource_frame(VIRTLOCK_RELEASE_RESOURCE, lockspace, "lease", 0);
        case 6:
                return resource_frame(VIRTLOCK_DELETE_RESOURCE, lockspace, "lease", 0);
        case 7:
                return call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_RESTRICT, (xdrproc_t)xdr_virtlock_restrict, &restrict_args);
        default:
                return (Bytes){ 0 };
        }
}
#define VALID_CALLS 8

/* Every procedure with every length of payload but the right one. */
static void test_payload_lengths(void **state)
{
        Vm vm = vm_start_bare("short");
        Conn *conn = vm_conn(d, &vm);
        const char *lockspace = work_path("spaces/a");

        (void)state;
        for (size_t n = 0; n < VALID_CALLS; n++) {
                Bytes valid = valid_call(n, &vm, lockspace);
                uint8_t *padded = calloc(1, valid.len + 16);

                assert_non_null(padded);
                memcpy(padded, valid.bytes, valid.len);
                for (size_t len = FRAME_HEADER_SIZE; len < valid.len + 16; len++) {
                        uint32_t big = htobe32((uint32_t)len);

                        if (len == valid.len)
                                continue;
                        memcpy(padded, &big, sizeof(big));
                        conn_send_bytes(conn, padded, len);
                        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                }
                free(padded);
                free(valid.bytes);
        }
        /* Nothing of all that was done. */
        assert_false(file_exists(lockspace));
        assert_int_equal(conn_acquire(conn, lockspace, "lease", 0), VIRTLOCK_ERR_INTERNAL);
        conn_close(conn);
        vm_kill(&vm);
        check_others();
}

static void put_word(uint8_t **p, uint32_t word)
{
        word = htobe32(word);
        *p = mempcpy(*p, &word, sizeof(word));
}

/* Strings: with a NUL inside, longer than their message, longer than allowed, and the longest that are allowed. */
static void test_strings(void **state)
{
        static const uint32_t lengths[] = { 65537, 65536 + 4, 0x20000, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff };
        static uint8_t payload[CALL_MAX];
        static char text[VIRTLOCK_STRING_MAX + 1];
        Vm vm = vm_start_bare("strings");
        Conn *conn = vm_conn(d, &vm);
        virtlock_resource args = { .path = string_of(""), .name = { (u_int)strlen(image) + 5, text } };

        (void)state;
        (void)strcpy(text, image);
        (void)strcpy(text + strlen(image) + 1, "more");
        send_whole(conn, call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args));
        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
                for (int place = 0; place < 2; place++) {
                        uint8_t *p = payload;

                        if (place)
                                put_word(&p, 0);
                        put_word(&p, lengths[i]);
                        memset(p, 'x', 66000);
                        conn_send_frame(conn, call_header(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE), payload,
                                        i % 2 ? 64 : (size_t)(p - payload) + 66000);
                        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                }
        /* The longest legal call is understood, and refused for what it says. */
        memset(text, 'y', VIRTLOCK_STRING_MAX);
        args.path = args.name = (virtlock_string){ VIRTLOCK_STRING_MAX, text };
        send_whole(conn, call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args));
        assert_true(receive_error(conn, VIRTLOCK_ERR_INTERNAL));
        args.path = string_of("");
        for (int i = 0; i < 2; i++) {
                text[0] = i ? '/' : 'y';
                send_whole(conn, call_frame(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args));
                assert_true(receive_error(conn, VIRTLOCK_ERR_SYSTEM));
        }
        /* A call to the admin program, here, and one of the lock program there. */
        conn_send_frame(conn, call_header(LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_STOP), "\0\0\0\1\0\0\0\1", 8);
        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
        conn_close(conn);
        conn = admin_open(d);
        send_whole(conn, resource_frame(VIRTLOCK_RELEASE_RESOURCE, "", image, 0));
        assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
        conn_close(conn);
        vm_kill(&vm);
        check_others();
}

/* ---- messages that never complete, or come in pieces ---- */

/* REGISTER and ACQUIRE, cut at every byte. A third of the connections closes, a third closes its sending side, a third stays. */
static void test_halves(void **state)
{
        const char *wanted = make_file("wanted.img", "data");
        Vm vm = vm_start_bare("half");
        Bytes frames[] = { register_frame(&vm), resource_frame(VIRTLOCK_ACQUIRE_RESOURCE, "", wanted, 0) };
        Conn *conns[512];
        size_t n = 0;

        (void)state;
        for (int i = 0; i < 2; i++)
                for (size_t cut = 0; cut < frames[i].len; cut++) {
                        Conn *conn = i ? vm_conn(d, &vm) : conn_open(d);

                        assert_true(n < sizeof(conns) / sizeof(conns[0]));
                        conn_send_bytes(conn, frames[i].bytes, cut);
                        conns[n++] = conn;
                }
        check_others();
        check_idle("with half-sent messages");
        for (size_t i = 0; i < n; i++) {
                if (i % 3 == 0)
                        conn_close(conns[i]);
                else if (i % 3 == 1) {
                        assert_int_equal(shutdown(conn_fd(conns[i]), SHUT_WR), 0);
                        expect_closed(conns[i]);
                        conn_close(conns[i]);
                }
        }
        check_others();
        assert_true(is_lockable(wanted, false));
        assert_null(find_lease(d, "", wanted));
        for (size_t i = 2; i < n; i += 3)
                conn_close(conns[i]);
        check_others();
        free(frames[0].bytes);
        free(frames[1].bytes);
        vm_kill(&vm);
}

static void send_slowly(Conn *conn, Bytes frame)
{
        for (size_t i = 0; i < frame.len; i++)
                conn_send_bytes(conn, frame.bytes + i, 1);
        free(frame.bytes);
}

static void expect_ok(Conn *conn)
{
        FrameHeader header;

        assert_true(conn_receive(conn, &header, NULL, NULL));
        assert_int_equal(header.status, FRAME_OK);
}

static void test_byte_by_byte(void **state)
{
        const FrameHeader ping_call = {
                .length = FRAME_HEADER_SIZE,
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
        };
        const char *slow = make_file("slow.img", "data"), *lockspace = work_path("spaces/slow");
        Vm vm = vm_start_bare("slow");
        Conn *conn = conn_open(d);

        (void)state;
        send_slowly(conn, register_frame(&vm));
        expect_ok(conn);
        send_slowly(conn, frame_of(ping_call, NULL, 0));
        expect_ok(conn);
        send_slowly(conn, resource_frame(VIRTLOCK_ACQUIRE_RESOURCE, "", slow, 0));
        expect_ok(conn);
        assert_false(is_lockable(slow, false));
        send_slowly(conn, resource_frame(VIRTLOCK_RELEASE_RESOURCE, "", slow, 0));
        expect_ok(conn);
        assert_true(is_lockable(slow, false));
        for (size_t n = 1; n < VALID_CALLS; n++) {
                send_slowly(conn, valid_call(n, &vm, lockspace));
                if (n == 2) /* what NEW made exists */
                        assert_true(file_exists(lockspace));
                expect_ok(conn);
        }
        conn_close(conn);
        vm_kill(&vm);
        check_others();
}

/* Two calls and a part of a third in each piece: what is cut is kept, what is whole is answered in order. */
static void test_pieces(void **state)
{
        const char *image2 = make_file("pieces.img", "data");
        Vm vm = vm_start_bare("pieces");
        Conn *conn = vm_conn(d, &vm);
        uint8_t stream[65536];
        size_t len = 0, rounds = 60;

        (void)state;
        for (size_t i = 0; i < rounds; i++)
                for (int half = 0; half < 2; half++) {
                        Bytes frame = resource_frame(half ? VIRTLOCK_RELEASE_RESOURCE : VIRTLOCK_ACQUIRE_RESOURCE, "", image2, 0);

                        assert_true(len + frame.len <= sizeof(stream));
                        memcpy(stream + len, frame.bytes, frame.len);
                        len += frame.len;
                        free(frame.bytes);
                }
        for (size_t at = 0, piece = 1; at < len; at += piece, piece = piece * 7 % 251) {
                if (piece > len - at)
                        piece = len - at;
                conn_send_bytes(conn, stream + at, piece);
        }
        for (size_t i = 0; i < 2 * rounds; i++)
                expect_ok(conn);
        assert_true(is_lockable(image2, false));
        conn_close(conn);
        vm_kill(&vm);
        check_others();
}

/* ---- mutations ---- */

static uint64_t random_state;

static uint64_t next_random(void)
{
        uint64_t z = random_state += 0x9e3779b97f4a7c15U;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        return z ^ (z >> 31);
}

static size_t pick(size_t n)
{
        return n > 0 ? (size_t)(next_random() % n) : 0;
}

static void mutate(Bytes *frame, size_t room)
{
        static const uint32_t interesting[] = { 0, 1, 2, 3, 4, 27, 28, 29, 255, 256, 4095, 4096, 65535, 65536, 65537, CALL_MAX,
                                                CALL_MAX + 1, 0x7fffffff, 0x80000000, 0xffffffff };
        uint32_t word;
        size_t at;

        switch (pick(7)) {
        case 0: /* a bit */
                frame->bytes[pick(frame->len)] ^= (uint8_t)(1U << pick(8));
                break;
        case 1: /* a byte */
                frame->bytes[pick(frame->len)] = (uint8_t)next_random();
                break;
        case 2: /* a word, as those that matter are aligned */
        case 3:
                if (frame->len < sizeof(word))
                        break;
                at = pick(frame->len / 4) * 4;
                word = htobe32(interesting[pick(sizeof(interesting) / sizeof(interesting[0]))]);
                memcpy(frame->bytes + at, &word, sizeof(word));
                break;
        case 4: /* cut */
                frame->len = 1 + pick(frame->len);
                break;
        case 5: /* longer, by a part of itself */
                at = pick(frame->len);
                if (frame->len + (frame->len - at) <= room) {
                        memcpy(frame->bytes + frame->len, frame->bytes + at, frame->len - at);
                        frame->len += frame->len - at;
                }
                break;
        default: /* a part of it elsewhere */
                at = pick(frame->len);
                memmove(frame->bytes + pick(at + 1), frame->bytes + at, frame->len - at);
        }
}

static void drain(Conn *conn)
{
        uint8_t answers[4096];

        while (recv(conn_fd(conn), answers, sizeof(answers), MSG_DONTWAIT) > 0)
                ;
}

static bool is_closed(Conn *conn)
{
        struct pollfd p = { .fd = conn_fd(conn), .events = POLLIN | POLLRDHUP };

        return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLRDHUP));
}

/* Mutated names may be those of real files: what is not the test's own cannot be written. */
static void protect_host(void)
{
        char line[4096], point[2048];
        FILE *f = fopen("/proc/self/mounts", "re");

        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (sscanf(line, "%*s %2047s", point) == 1 && strncmp(point, "/run", 4) != 0)
                        (void)mount(NULL, point, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
        fclose(f);
        assert_int_equal(access("/", W_OK), -1);
}

static void allow_host(void)
{
        assert_int_equal(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL), 0);
}

/* Calls that would end the daemon, and rightly so. */
static bool is_stop(const Bytes *frame)
{
        FrameHeader header;

        return frame->len >= FRAME_HEADER_SIZE && frame_parse(frame->bytes, frame->len, UINT32_MAX, &header) != FRAME_E_SHORT &&
               header.program == LOCKD_ADMIN_PROGRAM && header.procedure > LOCKD_ADMIN_RELEASE;
}

static Bytes admin_call(size_t n)
{
        lockd_bytes vm = { 6, (char *)(uintptr_t)"nobody" };
        lockd_list_args list_args = { .vm = n % 2 ? &vm : NULL, .pid = (u_int)n };
        lockd_release_args release_args = {
                .resource = { (u_int)strlen(image), (char *)(uintptr_t)image },
                .owner = vm,
                .how = (lockd_release_how)(n % 3),
        };

        return n % 8 < 2 ? call_frame(LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_LIST, (xdrproc_t)xdr_lockd_list_args, &list_args) :
                           call_frame(LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_RELEASE, (xdrproc_t)xdr_lockd_release_args, &release_args);
}

/* Random changes of valid frames, always the same ones: FUZZ_SEED=... and FUZZ_COUNT=... are for a longer search. */
static void fuzz(bool admin, unsigned long count)
{
        const char *seed_text = getenv("FUZZ_SEED"), *count_text = getenv("FUZZ_COUNT");
        const unsigned long seed = seed_text ? strtoul(seed_text, NULL, 0) : 20240131;
        static uint8_t room[8192];
        const char *lockspace = work_path("spaces/fuzz");
        Vm vm = vm_start_bare("fuzz");
        Conn *conn = NULL;
        unsigned left = 0;

        random_state = seed;
        if (count_text)
                count = strtoul(count_text, NULL, 0);
        protect_host();
        for (unsigned long i = 0; i < count; i++) {
                Bytes valid = admin ? admin_call(pick(24)) : valid_call(pick(VALID_CALLS + 4) % VALID_CALLS, &vm, lockspace);
                Bytes frame = { .bytes = room, .len = valid.len };
                uint32_t big;

                if (conn && (left == 0 || is_closed(conn))) {
                        conn_close(conn);
                        conn = NULL;
                }
                if (!conn) {
                        left = (unsigned)(1 + pick(60));
                        conn = admin ? admin_open(d) : pick(4) ? vm_conn(d, &vm) : conn_open(d);
                }
                left--;
                assert_true(valid.len <= sizeof(room) / 2);
                memcpy(room, valid.bytes, valid.len);
                free(valid.bytes);
                for (size_t n = 1 + pick(3); n > 0; n--)
                        mutate(&frame, sizeof(room));
                if (pick(3) > 0 && frame.len >= FRAME_HEADER_SIZE) { /* a right length: the mutation is deeper inside */
                        big = htobe32((uint32_t)frame.len);
                        memcpy(frame.bytes, &big, sizeof(big));
                }
                if (is_stop(&frame))
                        continue;
                (void)!send(conn_fd(conn), frame.bytes, frame.len, MSG_DONTWAIT | MSG_NOSIGNAL);
                drain(conn);
                if (i % 500 == 499) {
                        if (kill(d->pid, 0) < 0 || waitpid(d->pid, NULL, WNOHANG) != 0)
                                fail_msg("lockd ended at mutation %lu of seed %lu, see %s", i, seed, d->log);
                        check_others();
                }
        }
        conn_close(conn);
        check_others();
        allow_host();
        vm_kill(&vm);
}

static void test_mutations(void **state)
{
        (void)state;
        fuzz(false, 10000);
}

static void test_admin_mutations(void **state)
{
        (void)state;
        fuzz(true, 2000);
        assert_non_null(find_lease(d, "", image));
}

/* ---- memory and time ---- */

static bool is_taken_in(Conn *conn)
{
        int unsent = 0;

        assert_int_equal(ioctl(conn_fd(conn), SIOCOUTQ, &unsent), 0);
        return unsent == 0;
}

/* As many clients as a small host has, each with a message of the largest size that lacks its last byte. */
static void test_memory_of_input(void **state)
{
        const long bound = CROWD * (long)CALL_MAX + 8 * MIB;
        static uint8_t bytes[CALL_MAX];
        FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE);
        Conn *conns[CROWD];
        long before, grown;

        (void)state;
        before = resident_bytes();
        header.length = CALL_MAX;
        frame_write_header(bytes, &header);
        for (int i = 0; i < CROWD; i++) {
                conns[i] = conn_open(d);
                conn_send_bytes(conns[i], bytes, CALL_MAX - 1);
        }
        for (int i = 0; i < CROWD; i++)
                wait_until(is_taken_in(conns[i]));
        check_others();
        grown = resident_bytes() - before;
        print_message("%d half-sent messages of %d bytes: %ld KiB\n", CROWD, (int)CALL_MAX, grown / 1024);
        if (!is_sanitized())
                assert_in_range(grown > 0 ? grown : 0, 0, bound);
        check_idle("with the largest half-sent messages");
        for (int i = 0; i < CROWD; i++)
                conn_close(conns[i]);
        check_others();
}

/* As many clients that send calls as long as they are taken, and never read an answer. What lockd keeps for one of them: a
 * read of 256 KiB, and the answers up to where it stops reading (256 KiB, and one more). */
static void test_memory_of_output(void **state)
{
        const long each = 256 * 1024 + 256 * 1024 + 64 * 1024, bound = CROWD * each + 8 * MIB;
        Vm vm = vm_start_bare("deaf");
        Bytes frame = resource_frame(VIRTLOCK_ACQUIRE_RESOURCE, "", work_path("missing.img"), 0);
        static uint8_t calls[64 * 1024];
        size_t len = 0, sent[CROWD] = { 0 };
        Conn *conns[CROWD];
        long before, grown;

        (void)state;
        for (; len + frame.len <= sizeof(calls); len += frame.len)
                memcpy(calls + len, frame.bytes, frame.len);
        free(frame.bytes);
        before = resident_bytes();
        for (int i = 0; i < CROWD; i++)
                conns[i] = vm_conn(d, &vm);
        /* In rounds, so that each sends all it can: a round in which nobody could send ends it. */
        for (bool any = true; any;) {
                any = false;
                for (int i = 0; i < CROWD; i++) {
                        ssize_t n;

                        while ((n = send(conn_fd(conns[i]), calls + sent[i] % len, len - sent[i] % len,
                                         MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) {
                                sent[i] += (size_t)n;
                                any = true;
                        }
                        if (sent[i] > 4 * MIB)
                                fail_msg("lockd goes on reading from a client that does not take its answers");
                }
                check_others();
        }
        grown = resident_bytes() - before;
        print_message("%d connections that do not read: %ld KiB\n", CROWD, grown / 1024);
        if (!is_sanitized())
                assert_in_range(grown > 0 ? grown : 0, 0, bound);
        check_idle("with answers that nobody reads");
        for (int i = 0; i < CROWD; i++)
                conn_close(conns[i]);
        check_others();
        vm_kill(&vm);
}

/* Connections that are open and do nothing, of every sort, cost no time. */
static void test_idle(void **state)
{
        const char *wanted = make_file("idle.img", "data");
        Vm half_closed = vm_start(d, "half-closed"), own = vm_start(d, "own");
        Conn *taker = vm_conn(d, &half_closed), *deaf = conn_open(d), *silent = conn_open(d), *partial = conn_open(d), *waiting;
        FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_RESTRICT);

        (void)state;
        assert_int_equal(conn_acquire(taker, "", wanted, 0), 0);
        conn_close(taker);
        vm_half_close(&half_closed);
        conn_send_bytes(partial, "\0", 1);
        for (int i = 0; i < 20000; i++) {
                uint8_t frame[FRAME_HEADER_SIZE + 4] = { 0 };

                header.length = sizeof(frame);
                frame_write_header(frame, &header);
                if (send(conn_fd(deaf), frame, sizeof(frame), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                        break;
        }
        /* Told that it sent too much, it does not read that. */
        waiting = conn_open(d);
        header.length = 0xffffffff;
        for (int i = 0; i < 20000; i++) {
                FrameHeader small = call_header(VIRTLOCK_PROGRAM, 99);
                uint8_t frame[FRAME_HEADER_SIZE];

                small.length = sizeof(frame);
                frame_write_header(frame, &small);
                if (send(conn_fd(waiting), frame, sizeof(frame), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                        break;
        }
        check_others();
        check_idle("with half-closed, half-sent and unread connections");
        assert_false(is_lockable(wanted, false));
        vm_kill(&half_closed);
        wait_unlisted(d, "", wanted);
        conn_close(deaf);
        conn_close(silent);
        conn_close(partial);
        conn_close(waiting);
        vm_kill(&own);
        check_others();
        check_idle("after they have gone");
}

/* ---- the own connection of an owner ---- */

typedef enum Deed { DEED_SHORT = 's', DEED_LONG = 'l', DEED_NOISE = 'n', DEED_HALF = 'h' } Deed;
typedef enum Reaction { REACTION_ERROR = 'e', REACTION_EOF = 'c', REACTION_NOTHING = '-' } Reaction;

/* A VM that misbehaves on its own connection when it is told to, and says what came of it. */
static void run_rude_vm(const Vm *vm, int control)
{
        Conn *conn = conn_open_at(d->lock_socket);
        char deed, reaction = 'k';
        uint8_t bytes[4096];

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!conn || conn_register(conn, vm->name, vm->uuid, vm->id, (uint32_t)getpid()) != 0)
                _exit(3);
        if (write(control, &reaction, 1) != 1)
                _exit(4);
        while (read(control, &deed, 1) == 1) {
                FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_RESTRICT);
                struct pollfd p = { .fd = conn_fd(conn), .events = POLLIN };

                switch ((Deed)deed) {
                case DEED_SHORT:
                        conn_send_bytes(conn, "\0\0\0\3junk", 8);
                        break;
                case DEED_LONG:
                        header.length = 0xffffffff;
                        conn_send_frame(conn, header, "junk", 4);
                        break;
                case DEED_NOISE: /* an answer is to be had for each of these */
                        header.procedure = 99;
                        conn_send_frame(conn, header, "junk", 4);
                        break;
                case DEED_HALF:
                        conn_send_bytes(conn, "\0\0\0\40half", 8);
                        break;
                default:
                        _exit(5);
                }
                reaction = REACTION_NOTHING;
                if (deed != DEED_HALF && poll(&p, 1, ANSWER_MSEC) == 1)
                        reaction = recv(p.fd, bytes, sizeof(bytes), 0) > 0 ? REACTION_ERROR : REACTION_EOF;
                if (write(control, &reaction, 1) != 1)
                        _exit(4);
        }
        _exit(0);
}

static Vm start_rude_vm(const char *name)
{
        Vm vm = vm_start_bare(name); /* for its name and uuid */
        int fds[2];
        char byte;

        vm_kill(&vm);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        vm.pid = fork();
        assert_true(vm.pid >= 0);
        if (vm.pid == 0) {
                (void)dup2(fds[1], 3);
                (void)close_range(4, ~0U, 0);
                run_rude_vm(&vm, 3);
        }
        close(fds[1]);
        vm.control = fds[0];
        assert_int_equal(read(vm.control, &byte, 1), 1);
        return vm;
}

static Reaction tell(Vm *vm, Deed deed)
{
        char byte = (char)deed;

        assert_int_equal(write(vm->control, &byte, 1), 1);
        assert_int_equal(read(vm->control, &byte, 1), 1);
        return (Reaction)byte;
}

/* Garbage on an owner's own connection: it gets an error, or the end of what lockd sends; its locks stay, until it dies. */
static void test_own_garbage(void **state)
{
        static const Deed deeds[] = { DEED_SHORT, DEED_LONG, DEED_HALF };

        (void)state;
        for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
                const char *disk = make_file("rude.img", "data");
                Vm vm = start_rude_vm("rude");
                Conn *conn = vm_conn(d, &vm);
                const lockd_record *record;
                Reaction reaction;

                assert_int_equal(conn_acquire(conn, "", disk, 0), 0);
                assert_int_equal(tell(&vm, DEED_NOISE), REACTION_ERROR);
                reaction = tell(&vm, deeds[i]);
                if (deeds[i] == DEED_LONG)
                        assert_int_equal(reaction, REACTION_ERROR);
                else if (deeds[i] == DEED_SHORT && reaction == REACTION_NOTHING)
                        fail_msg("a VM that sends a message too short for its header waits for ever");
                /* Whatever else it sends. */
                (void)tell(&vm, DEED_HALF);
                check_others();
                check_idle("with an own connection that sent garbage");
                assert_true(vm_is_alive(&vm));
                assert_false(is_lockable(disk, false));
                record = find_lease(d, "", disk);
                assert_non_null(record);
                assert_int_equal(record->holds.holds_val[0].owner.connections, 1); /* lockd has not closed it */
                assert_int_equal(conn_release(conn, "", disk), 0);
                assert_int_equal(conn_acquire(conn, "", disk, 0), 0);
                conn_close(conn);
                vm_kill(&vm);
                wait_unlisted(d, "", disk);
                assert_true(is_lockable(disk, false));
        }
        /* One that holds nothing is no exception. */
        {
                Vm vm = start_rude_vm("rude");

                assert_int_equal(tell(&vm, DEED_SHORT), REACTION_EOF);
                vm_kill(&vm);
        }
        check_others();
}

/* ---- strangers, and what is not theirs to give ---- */

/* In a child of another uid: what becomes of a call at that socket? 0: closed without an answer. */
static int call_as_stranger(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        Bytes frame = register_frame(&holder);
        pid_t pid = fork();
        int status;

        assert_true(pid >= 0);
        if (pid == 0) {
                uint8_t answer[256];
                int fd;

                if (setgroups(0, NULL) < 0 || setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
                        _exit(10);
                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
                (void)strcpy(address.sun_path, path);
                if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                        _exit(11);
                (void)!send(fd, frame.bytes, frame.len, MSG_NOSIGNAL);
                _exit(recv(fd, answer, sizeof(answer), 0) > 0 ? 12 : 0);
        }
        free(frame.bytes);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_stranger(void **state)
{
        (void)state;
        assert_int_equal(chmod(d->dir, 0755), 0);
        /* The socket's mode keeps it out in the first place. */
        assert_int_equal(call_as_stranger(d->lock_socket), 11);
        assert_int_equal(call_as_stranger(d->admin_socket), 11);
        assert_int_equal(chmod(d->lock_socket, 0666), 0);
        assert_int_equal(chmod(d->admin_socket, 0666), 0);
        assert_int_equal(call_as_stranger(d->lock_socket), 0);
        assert_int_equal(call_as_stranger(d->admin_socket), 0);
        daemon_expect_log(d, "only root may connect");
        check_others();
}

static void send_with_fds(Conn *conn, const uint8_t *bytes, size_t len, const int *fds, size_t n)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(253 * sizeof(int))];
        } control = { .bytes = { 0 } };
        struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
        struct msghdr message = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.bytes,
                .msg_controllen = CMSG_SPACE(n * sizeof(int)),
        };
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);

        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(head), fds, n * sizeof(int));
        assert_int_equal(sendmsg(conn_fd(conn), &message, MSG_NOSIGNAL), (ssize_t)len);
}

/* Descriptors that come with a message do not stay: a pipe's other end tells. */
static void test_fds(void **state)
{
        static const size_t counts[] = { 1, 32, 253 };
        Vm vm = vm_start_bare("sender");
        Conn *conn = vm_conn(d, &vm), *half = conn_open(d);
        int pipe_fds[2], fds[253];
        unsigned before;

        (void)state;
        ping(half); /* it has been accepted */
        before = count_fds();
        assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
        for (size_t i = 0; i < 253; i++)
                fds[i] = pipe_fds[1];
        for (size_t i = 0; i < 3; i++) {
                FrameHeader header = call_header(VIRTLOCK_PROGRAM, VIRTLOCK_ACQUIRE_RESOURCE);
                Bytes frame = resource_frame(VIRTLOCK_CREATE_RESOURCE, "", image, 0), with_fds;

                /* With a call that may have none ... */
                send_with_fds(conn, frame.bytes, frame.len, fds, counts[i]);
                free(frame.bytes);
                assert_true(receive_error(conn, VIRTLOCK_ERR_RESOURCE_BUSY));
                /* ... with one that says it has some ... */
                header.type = FRAME_CALL_WITH_FDS;
                with_fds = frame_of(header, (const uint8_t *)"\0\0\0\1", 4);
                send_with_fds(conn, with_fds.bytes, with_fds.len, fds, counts[i]);
                free(with_fds.bytes);
                assert_true(receive_error(conn, VIRTLOCK_ERR_RPC));
                /* ... and with a message that stays incomplete. */
                send_with_fds(half, (const uint8_t *)"\0\0\0\44ab" + i, 1, fds, counts[i]);
        }
        wait_until(is_taken_in(half));
        check_others();
        close(pipe_fds[1]);
        {
                struct pollfd p = { .fd = pipe_fds[0], .events = POLLIN };

                assert_int_equal(poll(&p, 1, HARNESS_DEADLINE_MSEC), 1);
                assert_true(p.revents & POLLHUP);
        }
        close(pipe_fds[0]);
        assert_int_equal(count_fds(), before);
        conn_close(conn);
        conn_close(half);
        vm_kill(&vm);
        check_others();
}

#define TEST(test) cmocka_unit_test_setup_teardown((test), start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_lengths),
                TEST(test_headers),
                TEST(test_payload_lengths),
                TEST(test_strings),
                TEST(test_halves),
                TEST(test_byte_by_byte),
                TEST(test_pieces),
                TEST(test_mutations),
                TEST(test_admin_mutations),
                TEST(test_memory_of_input),
                TEST(test_memory_of_output),
                TEST(test_idle),
                TEST(test_own_garbage),
                TEST(test_stranger),
                TEST(test_fds),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
