/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* protocol/frame and protocol/wire: every length, no byte read or written beyond what is there, and one form on the wire. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "wire.h"

#define ROOM 8192U

/* len bytes that end where readable memory ends: one byte too far is a fault. */
static uint8_t *at_the_edge(const void *bytes, size_t len)
{
        static uint8_t *room;

        if (!room) {
                room = mmap(NULL, 2 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                assert_ptr_not_equal(room, MAP_FAILED);
                assert_int_equal(mprotect(room + ROOM, ROOM, PROT_NONE), 0);
        }
        assert_true(len <= ROOM);
        if (len > 0)
                memcpy(room + ROOM - len, bytes, len);
        return room + ROOM - len;
}

static const uint8_t known_bytes[] = {
        0x00, 0x00, 0x00, 0x20, 0x0e, 0xa7, 0xbe, 0xef, 0x00, 0x00, 0x00, 0x01, 0xff, 0xff, 0xff, 0xfe,
        0x00, 0x00, 0x00, 0x04, 0x01, 0x02, 0x03, 0x04, 0x80, 0x00, 0x00, 0x00, 'd',  'a',  't',  'a',
};
static const FrameHeader known_header = {
        .length = 32,
        .program = VIRTLOCK_PROGRAM,
        .version = 1,
        .procedure = -2,
        .type = FRAME_CALL_WITH_FDS,
        .serial = 0x01020304,
        .status = 0x80000000,
};

static void assert_same_header(const FrameHeader *a, const FrameHeader *b)
{
        assert_int_equal(a->length, b->length);
        assert_int_equal(a->program, b->program);
        assert_int_equal(a->version, b->version);
        assert_int_equal(a->procedure, b->procedure);
        assert_int_equal(a->type, b->type);
        assert_int_equal(a->serial, b->serial);
        assert_int_equal(a->status, b->status);
}

static void test_bytes_on_the_wire(void **state)
{
        uint8_t written[FRAME_HEADER_SIZE + 1];
        FrameHeader header;

        (void)state;
        memset(written, 0x5a, sizeof(written));
        frame_write_header(written, &known_header);
        assert_memory_equal(written, known_bytes, FRAME_HEADER_SIZE);
        assert_int_equal(written[FRAME_HEADER_SIZE], 0x5a);
        assert_int_equal(frame_parse(known_bytes, sizeof(known_bytes), 32, &header), 0);
        assert_same_header(&header, &known_header);
}

/* A frame that arrives byte by byte, at any address, with more behind it. */
static void test_every_prefix(void **state)
{
        uint8_t more[sizeof(known_bytes) + 9];
        FrameHeader header;

        (void)state;
        for (size_t len = 0; len < sizeof(known_bytes); len++)
                assert_int_equal(frame_parse(at_the_edge(known_bytes, len), len, 32, &header), FRAME_E_PARTIAL);
        assert_int_equal(frame_parse(at_the_edge(known_bytes, sizeof(known_bytes)), sizeof(known_bytes), 32, &header), 0);
        memset(more, 0xff, sizeof(more));
        for (size_t offset = 0; offset < 8; offset++) {
                memcpy(more + offset, known_bytes, sizeof(known_bytes));
                assert_int_equal(frame_parse(more + offset, sizeof(more) - offset, 4096, &header), 0);
                assert_same_header(&header, &known_header);
        }
}

static void test_lengths(void **state)
{
        uint8_t bytes[64];
        FrameHeader header = known_header;

        (void)state;
        memset(bytes, 0, sizeof(bytes));
        for (uint32_t length = 0; length < FRAME_HEADER_SIZE; length++) {
                header.length = length;
                frame_write_header(bytes, &header);
                for (size_t len = 0; len <= sizeof(bytes); len++)
                        assert_int_equal(frame_parse(at_the_edge(bytes, len), len, 4096, &(FrameHeader){ 0 }),
                                         len < FRAME_LENGTH_SIZE ? FRAME_E_PARTIAL : FRAME_E_SHORT);
        }
        /* The limit itself is allowed, and one more is not: told as soon as the length is there, with the header when that is. */
        for (uint64_t length = 33; length <= UINT32_MAX; length = length < 40 ? length + 1 : length * 2) {
                FrameHeader got = { .length = 77 };

                header.length = (uint32_t)length;
                frame_write_header(bytes, &header);
                assert_int_equal(frame_parse(bytes, FRAME_LENGTH_SIZE - 1, 32, &got), FRAME_E_PARTIAL);
                for (size_t len = FRAME_LENGTH_SIZE; len < FRAME_HEADER_SIZE; len++) {
                        assert_int_equal(frame_parse(at_the_edge(bytes, len), len, 32, &got), FRAME_E_LONG);
                        assert_int_equal(got.length, 0);
                }
                assert_int_equal(frame_parse(bytes, FRAME_HEADER_SIZE, 32, &got), FRAME_E_LONG);
                assert_same_header(&got, &header);
                assert_int_equal(frame_parse(bytes, FRAME_HEADER_SIZE, (size_t)length, &got), FRAME_E_PARTIAL);
        }
        header.length = FRAME_HEADER_SIZE;
        frame_write_header(bytes, &header);
        assert_int_equal(frame_parse(bytes, FRAME_HEADER_SIZE, FRAME_HEADER_SIZE, &header), 0);
        header.length = 0xffffffff;
        frame_write_header(bytes, &header);
        assert_int_equal(frame_parse(bytes, FRAME_HEADER_SIZE, FRAME_HEADER_SIZE, &header), FRAME_E_LONG);
        assert_int_equal(header.length, 0xffffffff);
}

/* ---- values ---- */

typedef struct Type {
        const char *name;
        xdrproc_t proc;
        size_t size;
        void *example;
} Type;

#define TEXT(text) { sizeof(text) - 1, (char *)(uintptr_t)(text) }

static char *message = (char *)(uintptr_t) "resource busy: x", *format = (char *)(uintptr_t) "resource busy: %s";
static virtlock_error_dom error_dom = { .name = (char *)(uintptr_t) "dom", .uuid = "0123456789abcde", .id = -1 };
static virtlock_error_net error_net = { .name = (char *)(uintptr_t) "net", .uuid = "fedcba987654321" };
static lockd_bytes filter = TEXT("with a NUL: \0 and \xff");
static lockd_hold holds[2] = {
        { .owner = { .uuid = "0123456789abcde", .name = TEXT("vm"), .pid = 7, .start_time = 0x123456789abcdef0, .proved = TRUE,
                     .state = LOCKD_OWNER_UNKILLABLE },
          .resource = TEXT("/a"), .lockspace = TEXT(""), .since = UINT64_MAX, .unconfirmed = TRUE },
        { .owner = { .state = LOCKD_OWNER_NONE }, .resource = TEXT("/b"), .lockspace = TEXT("/x") },
};
static lockd_record records[2] = {
        { .id = 1, .lockspace = TEXT("/x"), .resource = TEXT("\n"), .mode = LOCKD_MODE_SHARED, .state = LOCKD_STATE_HELD,
          .kind = LOCKD_KIND_OFD, .holds = { 2, holds }, .holds_total = 2 },
        { .id = 2, .mode = LOCKD_MODE_EXCLUSIVE, .state = LOCKD_STATE_UNPROTECTED, .kind = LOCKD_KIND_NONE },
};

/* Not const: xdr_pointer() writes a NULL where there is one. */
static virtlock_register register_example = { .uuid = "0123456789abcde", .name = TEXT("vm\0hidden"), .id = 1, .pid = 0xffffffff };
static virtlock_restrict restrict_example = { .flags = 0x80000000 };
static virtlock_new new_example = { .path = TEXT("/a b"), .flags = 3 };
static virtlock_resource resource_example = { .path = TEXT(""), .name = TEXT("/images/disk.img"), .flags = 3 };
static virtlock_create_lockspace lockspace_example = { .path = TEXT("x") };
static virtlock_error error_example = {
        .code = 87, .domain = 51, .message = &message, .level = 2, .dom = &error_dom, .str1 = &format, .int1 = -1, .net = &error_net,
};
static lockd_list_args list_args_example = { .cursor = 5, .newest = UINT64_MAX, .resource = &filter, .pid = 9 };
static lockd_list_ret list_ret_example = { .cursor = 6, .records = { 2, records } };
static lockd_release_args release_args_example = { .resource = TEXT("/a"), .owner = TEXT("vm"), .how = LOCKD_RELEASE_FORCE };
static lockd_release_ret release_ret_example = { .released = 3 };
static lockd_stop_args stop_args_example = { .force = TRUE };

#define TYPE(type, value) { #type, (xdrproc_t)xdr_##type, sizeof(type), &(value) }

static const Type types[] = {
        TYPE(virtlock_register, register_example),
        TYPE(virtlock_restrict, restrict_example),
        TYPE(virtlock_new, new_example),
        TYPE(virtlock_resource, resource_example),
        TYPE(virtlock_create_lockspace, lockspace_example),
        TYPE(virtlock_error, error_example),
        TYPE(lockd_list_args, list_args_example),
        TYPE(lockd_list_ret, list_ret_example),
        TYPE(lockd_release_args, release_args_example),
        TYPE(lockd_release_ret, release_ret_example),
        TYPE(lockd_stop_args, stop_args_example),
};
#define N_TYPES (sizeof(types) / sizeof(types[0]))

/* Decodes from the edge of memory; the result, and the same bytes again when it is a value. */
static int decode_and_encode(const Type *type, const uint8_t *bytes, size_t len, uint8_t *again, size_t size, size_t *ret_len)
{
        FrameHeader header = { 0 };
        void *value = calloc(1, type->size);
        int r;

        assert_non_null(value);
        r = wire_decode(type->proc, at_the_edge(bytes, len), len, value);
        if (r == 0) {
                assert_int_equal(wire_encode(&header, type->proc, value, again, size), 0);
                *ret_len = header.length - FRAME_HEADER_SIZE;
                memmove(again, again + FRAME_HEADER_SIZE, *ret_len);
        }
        wire_free(type->proc, value);
        free(value);
        return r;
}

static void test_values(void **state)
{
        (void)state;
        for (size_t i = 0; i < N_TYPES; i++) {
                const Type *type = &types[i];
                const size_t size = wire_size(type->proc, type->example);
                FrameHeader header = known_header;
                uint8_t frame[4096], again[4096];
                size_t len;

                assert_true(size + 16 <= sizeof(frame) && size >= FRAME_HEADER_SIZE);
                /* Encoding fills exactly what wire_size() said, and fails in anything smaller, without a byte too far. */
                for (size_t room = 0; room < size; room++) {
                        memset(frame, 0x5a, sizeof(frame));
                        assert_int_equal(wire_encode(&header, type->proc, type->example, frame, room), -EMSGSIZE);
                        for (size_t j = room; j < sizeof(frame); j++)
                                assert_int_equal(frame[j], 0x5a);
                }
                assert_int_equal(wire_encode(&header, type->proc, type->example, frame, size), 0);
                assert_int_equal(header.length, size);
                for (size_t j = size; j < sizeof(frame); j++)
                        assert_int_equal(frame[j], 0x5a);
                assert_int_equal(frame_parse(frame, size, size, &header), 0);
                assert_int_equal(header.serial, known_header.serial);
                /* Decoding wants exactly these bytes. */
                for (size_t n = 0; n <= size - FRAME_HEADER_SIZE + 16; n++) {
                        int r = decode_and_encode(type, frame + FRAME_HEADER_SIZE, n, again, sizeof(again), &len);

                        if (n != size - FRAME_HEADER_SIZE) {
                                if (r != -EBADMSG)
                                        fail_msg("%s decodes from %zu bytes of %zu", type->name, n, size - FRAME_HEADER_SIZE);
                                continue;
                        }
                        assert_int_equal(r, 0);
                        assert_int_equal(len, n);
                        assert_memory_equal(again, frame + FRAME_HEADER_SIZE, n);
                }
        }
}

static void test_no_value(void **state)
{
        FrameHeader header = known_header;
        uint8_t frame[FRAME_HEADER_SIZE];

        (void)state;
        for (size_t room = 0; room < FRAME_HEADER_SIZE; room++)
                assert_int_equal(wire_encode(&header, NULL, NULL, frame, room), -EMSGSIZE);
        assert_int_equal(wire_encode(&header, NULL, NULL, frame, sizeof(frame)), 0);
        assert_int_equal(header.length, FRAME_HEADER_SIZE);
        assert_int_equal(wire_size(NULL, NULL), FRAME_HEADER_SIZE);
        assert_int_equal(wire_decode(NULL, NULL, 0, NULL), 0);
        assert_int_equal(wire_decode(NULL, frame, 1, NULL), -EBADMSG);
        assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_new, frame, (size_t)UINT32_MAX + 1, NULL), -EBADMSG);
        wire_free(NULL, NULL);
}

/* Any byte but NUL and NUL, too, keeps its place in a string. */
static void test_names_keep_their_bytes(void **state)
{
        static char name[VIRTLOCK_STRING_MAX + 1];
        virtlock_new value = { .path = { 0, name } }, got = { 0 };
        static uint8_t frame[VIRTLOCK_STRING_MAX + 64];
        FrameHeader header = { 0 };

        (void)state;
        for (size_t i = 0; i < sizeof(name); i++)
                name[i] = (char)i;
        for (u_int len = 0; len <= VIRTLOCK_STRING_MAX; len += len < 10 ? 1 : 8191) {
                value.path.virtlock_string_len = len;
                assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_virtlock_new, &value, frame, sizeof(frame)), 0);
                memset(&got, 0, sizeof(got));
                assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_new, frame + FRAME_HEADER_SIZE,
                                             header.length - FRAME_HEADER_SIZE, &got), 0);
                assert_int_equal(got.path.virtlock_string_len, len);
                if (len > 0)
                        assert_memory_equal(got.path.virtlock_string_val, name, len);
                wire_free((xdrproc_t)xdr_virtlock_new, &got);
        }
        value.path.virtlock_string_len = VIRTLOCK_STRING_MAX + 1;
        assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_virtlock_new, &value, frame, sizeof(frame)), -EMSGSIZE);
}

/* Random payloads: refused, or a value that has one form on the wire (but for the bytes that fill up a string). */
static void test_random_payloads(void **state)
{
        static uint8_t payload[512], again[ROOM], third[ROOM];
        uint64_t seed = 20240131;

        (void)state;
        for (unsigned i = 0; i < 20000; i++) {
                const Type *type = &types[i % N_TYPES];
                FrameHeader header = { 0 };
                size_t len, again_len, third_len;

                /* Half of them are noise, half are examples with a word changed. */
                seed = seed * 6364136223846793005U + 1442695040888963407U;
                len = (seed >> 33) % sizeof(payload);
                for (size_t j = 0; j < sizeof(payload); j++) {
                        seed = seed * 6364136223846793005U + 1442695040888963407U;
                        payload[j] = j % 4 == 3 || (seed >> 60) == 0 ? (uint8_t)(seed >> 40) & 0x1f : 0;
                }
                if (i & 1024) {
                        assert_int_equal(wire_encode(&header, type->proc, type->example, again, sizeof(again)), 0);
                        len = header.length - FRAME_HEADER_SIZE;
                        if (len > sizeof(payload))
                                len = sizeof(payload);
                        seed = seed * 6364136223846793005U + 1442695040888963407U;
                        memcpy(again + FRAME_HEADER_SIZE + (seed >> 33) % len / 4 * 4, payload, 4);
                        memcpy(payload, again + FRAME_HEADER_SIZE, len);
                }
                if (decode_and_encode(type, payload, len, again, sizeof(again), &again_len) != 0)
                        continue;
                if (type->proc != (xdrproc_t)xdr_virtlock_error) /* its strings are C strings: cut at a NUL */
                        assert_int_equal(again_len, len);
                assert_int_equal(decode_and_encode(type, again, again_len, third, sizeof(third), &third_len), 0);
                assert_int_equal(third_len, again_len);
                assert_memory_equal(third, again, again_len);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_bytes_on_the_wire),
                cmocka_unit_test(test_every_prefix),
                cmocka_unit_test(test_lengths),
                cmocka_unit_test(test_values),
                cmocka_unit_test(test_no_value),
                cmocka_unit_test(test_names_keep_their_bytes),
                cmocka_unit_test(test_random_payloads),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
