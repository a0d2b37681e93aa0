/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: what state_write() wrote, state_read() reads back equal. The tables below are the format.
 *
 * While 19,000 leases go through this file nobody is answered, and json-c's trees take ten times as long as the bytes need.
 * So lines are written straight, and read straight as long as they look as they were written: members in their order, text
 * without escapes. What looks otherwise, an older or a newer lockd's line, goes through json-c.
 */
#include "state.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "json_bytes.h"

typedef enum FieldType {
        FIELD_UNSIGNED,
        FIELD_HYPER,
        FIELD_INT,
        FIELD_BOOL,
        FIELD_BYTES,
        FIELD_BUFFER,
        FIELD_UUID,
        FIELD_FDS,   /* of a lease only; left out when there are none */
        FIELD_HOLDS,
        FIELD_EXTRA,
} FieldType;

typedef struct Field {
        const char *name;
        const char *key; /* "name": */
        size_t key_len;
        FieldType type;
        size_t offset;
        int missing; /* FIELD_INT: what a line without it means */
} Field;

#define FIELD_NAMED(string) .name = string, .key = "\"" string "\":", .key_len = sizeof(string) + 2
#define FIELD(struct_name, member, kind) { FIELD_NAMED(#member), .type = (kind), .offset = offsetof(struct_name, member) }
#define FIELD_FD(struct_name, member) { FIELD_NAMED(#member), .type = FIELD_INT, .offset = offsetof(struct_name, member), .missing = -1 }
#define FIELD_REST(struct_name) { FIELD_NAMED("extra"), .type = FIELD_EXTRA, .offset = offsetof(struct_name, extra) }
#define FIELD_LAST { .name = NULL }

static const Field header_fields[] = {
        FIELD(lockd_header, format, FIELD_UNSIGNED),    FIELD(lockd_header, release, FIELD_BYTES),
        FIELD(lockd_header, lease_newest, FIELD_HYPER), FIELD(lockd_header, peer_newest, FIELD_HYPER),
        FIELD(lockd_header, owner_newest, FIELD_HYPER), FIELD(lockd_header, binary, FIELD_BYTES),
        FIELD(lockd_header, ending, FIELD_BOOL),         FIELD_LAST,
};

static const Field listener_fields[] = {
        FIELD(lockd_listener, server, FIELD_UNSIGNED),
        FIELD_FD(lockd_listener, fd),
        FIELD(lockd_listener, path, FIELD_BYTES),
        FIELD_FD(lockd_listener, guard),
        FIELD_LAST,
};

static const Field lockspace_fields[] = { FIELD(lockd_lockspace, path, FIELD_BYTES), FIELD_REST(lockd_lockspace), FIELD_LAST };

static const Field owner_fields[] = {
        FIELD(lockd_owner, number, FIELD_HYPER),         FIELD(lockd_owner, uuid, FIELD_UUID),
        FIELD(lockd_owner, name, FIELD_BYTES),           FIELD(lockd_owner, id, FIELD_UNSIGNED),
        FIELD(lockd_owner, pid, FIELD_UNSIGNED),         FIELD(lockd_owner, start_time, FIELD_HYPER),
        FIELD(lockd_owner, proved, FIELD_BOOL),          FIELD(lockd_owner, socket, FIELD_HYPER),
        FIELD(lockd_owner, connections, FIELD_UNSIGNED),
        FIELD(lockd_owner, state, FIELD_UNSIGNED),       FIELD_FD(lockd_owner, pidfd),
        FIELD(lockd_owner, dead, FIELD_BOOL),            FIELD(lockd_owner, foreign_ns, FIELD_HYPER),
        FIELD(lockd_owner, foreign_pid, FIELD_UNSIGNED), FIELD(lockd_owner, kill_sent, FIELD_BOOL),
        FIELD(lockd_owner, kill_left, FIELD_HYPER),      FIELD_REST(lockd_owner),
        FIELD_LAST,
};

static const Field peer_fields[] = {
        FIELD(lockd_peer, number, FIELD_HYPER),         FIELD(lockd_peer, server, FIELD_UNSIGNED),
        FIELD_FD(lockd_peer, fd),                       FIELD(lockd_peer, pid, FIELD_UNSIGNED),
        FIELD(lockd_peer, uid, FIELD_UNSIGNED),         FIELD(lockd_peer, accepted, FIELD_HYPER),
        FIELD(lockd_peer, owner, FIELD_HYPER),          FIELD(lockd_peer, claimed_pid, FIELD_UNSIGNED),
        FIELD(lockd_peer, own, FIELD_BOOL),             FIELD(lockd_peer, restricted, FIELD_BOOL),
        FIELD(lockd_peer, last, FIELD_UNSIGNED),        FIELD(lockd_peer, state, FIELD_UNSIGNED),
        FIELD(lockd_peer, half_closed, FIELD_BOOL),     FIELD(lockd_peer, deaf, FIELD_BOOL),
        FIELD(lockd_peer, refusal, FIELD_BYTES),        FIELD(lockd_peer, input, FIELD_BUFFER),
        FIELD(lockd_peer, output, FIELD_BUFFER),         FIELD(lockd_peer, later, FIELD_UNSIGNED),
        FIELD(lockd_peer, waits_for, FIELD_HYPER),      FIELD(lockd_peer, waited_holds, FIELD_HYPER),
        FIELD(lockd_peer, call_version, FIELD_UNSIGNED), FIELD(lockd_peer, call_procedure, FIELD_INT),
        FIELD(lockd_peer, call_serial, FIELD_UNSIGNED), FIELD_REST(lockd_peer),
        FIELD_LAST,
};

static const Field lease_fields[] = {
        FIELD(lockd_record, id, FIELD_HYPER),        FIELD(lockd_record, lockspace, FIELD_BYTES),
        FIELD(lockd_record, resource, FIELD_BYTES),  FIELD(lockd_record, mode, FIELD_UNSIGNED),
        FIELD(lockd_record, state, FIELD_UNSIGNED),  FIELD(lockd_record, kind, FIELD_UNSIGNED),
        FIELD(lockd_record, autocreate, FIELD_BOOL), FIELD(lockd_record, local, FIELD_BOOL),
        FIELD(lockd_record, releasing, FIELD_BOOL),  FIELD_FD(lockd_record, fd),
        FIELD(lockd_record, dev, FIELD_HYPER),       FIELD(lockd_record, ino, FIELD_HYPER),
        FIELD(lockd_record, block, FIELD_BOOL),      FIELD(lockd_record, since, FIELD_HYPER),
        FIELD(lockd_record, others, FIELD_FDS),      FIELD(lockd_record, holds, FIELD_HOLDS),
        FIELD_REST(lockd_record),
        FIELD_LAST,
};

static const Field hold_fields[] = {
        { FIELD_NAMED("owner"), .type = FIELD_HYPER, .offset = offsetof(lockd_hold, owner.number) },
        FIELD(lockd_hold, lockspace, FIELD_BYTES),
        FIELD(lockd_hold, resource, FIELD_BYTES),
        FIELD(lockd_hold, since, FIELD_HYPER),
        FIELD(lockd_hold, unconfirmed, FIELD_BOOL),
        FIELD(lockd_hold, taken_by, FIELD_HYPER),
        FIELD_REST(lockd_hold),
        FIELD_LAST,
};

static const Field stray_fields[] = { FIELD_FD(lockd_stray, fd), FIELD_LAST };

static const Field end_fields[] = {
        FIELD(lockd_end, lockspaces, FIELD_HYPER),
        FIELD(lockd_end, leases, FIELD_HYPER), FIELD(lockd_end, holds, FIELD_HYPER), FIELD(lockd_end, owners, FIELD_HYPER),
        FIELD(lockd_end, peers, FIELD_HYPER),  FIELD(lockd_end, highest_fd, FIELD_UNSIGNED),
        FIELD_LAST,
};

static const struct {
        const char *name;
        const Field *fields;
} kinds[] = {
        [STATE_HEADER] = { "lockd", header_fields },
        [STATE_LISTENER] = { "listener", listener_fields },
        [STATE_LOCKSPACE] = { "lockspace", lockspace_fields },
        [STATE_OWNER] = { "owner", owner_fields },
        [STATE_PEER] = { "peer", peer_fields },
        [STATE_LEASE] = { "lease", lease_fields },
        [STATE_STRAY] = { "stray", stray_fields },
        [STATE_END] = { "end", end_fields },
};

/* ---- writing ---- */

static const char digits[] = "0123456789abcdef";

static void put_number(FILE *file, uint64_t number)
{
        char text[20];
        size_t at = sizeof(text);

        do
                text[--at] = digits[number % 10];
        while ((number /= 10) > 0);
        (void)fwrite_unlocked(text + at, 1, sizeof(text) - at, file);
}

static void put_string(FILE *file, const char *bytes, size_t len)
{
        size_t done = 0;

        (void)putc_unlocked('"', file);
        for (size_t i = 0; i < len; i++) {
                unsigned char c = (unsigned char)bytes[i];

                if (c >= 0x20 && c != '"' && c != '\\')
                        continue;
                (void)fwrite_unlocked(bytes + done, 1, i - done, file);
                done = i + 1;
                if (c < 0x20)
                        (void)fprintf(file, "\\u%04x", c);
                else {
                        (void)putc_unlocked('\\', file);
                        (void)putc_unlocked(c, file);
                }
        }
        (void)fwrite_unlocked(bytes + done, 1, len - done, file);
        (void)putc_unlocked('"', file);
}

/* Names: text, or, when they are not UTF-8, an array of numbers. */
static void put_bytes(FILE *file, const lockd_bytes *bytes)
{
        if (bytes->lockd_bytes_len == 0)
                (void)fputs_unlocked("\"\"", file);
        else if (utf8_is_text(bytes->lockd_bytes_val, bytes->lockd_bytes_len))
                put_string(file, bytes->lockd_bytes_val, bytes->lockd_bytes_len);
        else {
                for (u_int i = 0; i < bytes->lockd_bytes_len; i++) {
                        (void)putc_unlocked(i == 0 ? '[' : ',', file);
                        put_number(file, (unsigned char)bytes->lockd_bytes_val[i]);
                }
                (void)putc_unlocked(']', file);
        }
}

/* Bytes of a connection: hexadecimal, whatever they are. */
static void put_hex(FILE *file, const char *bytes, size_t len)
{
        (void)putc_unlocked('"', file);
        for (size_t i = 0; i < len; i++) {
                (void)putc_unlocked(digits[(unsigned char)bytes[i] >> 4], file);
                (void)putc_unlocked(digits[(unsigned char)bytes[i] & 15], file);
        }
        (void)putc_unlocked('"', file);
}

static void put_record(FILE *file, const Field *fields, const void *record);

static void put_holds(FILE *file, const lockd_record *lease)
{
        (void)putc_unlocked('[', file);
        for (u_int i = 0; i < lease->holds.holds_len; i++) {
                if (i > 0)
                        (void)putc_unlocked(',', file);
                put_record(file, hold_fields, &lease->holds.holds_val[i]);
        }
        (void)putc_unlocked(']', file);
}

static void put_fds(FILE *file, const lockd_record *lease)
{
        for (u_int i = 0; i < lease->others.others_len; i++) {
                (void)putc_unlocked(i == 0 ? '[' : ',', file);
                put_number(file, (uint64_t)lease->others.others_val[i]);
        }
        (void)putc_unlocked(']', file);
}

static void put_value(FILE *file, const Field *field, const void *value, const void *record)
{
        const lockd_bytes *bytes = value;
        int number;

        switch (field->type) {
        case FIELD_UNSIGNED:
                put_number(file, *(const u_int *)value);
                return;
        case FIELD_HYPER:
                put_number(file, *(const u_quad_t *)value);
                return;
        case FIELD_INT:
                number = *(const int *)value;
                if (number < 0)
                        (void)putc_unlocked('-', file);
                put_number(file, number < 0 ? 0 - (uint64_t)number : (uint64_t)number);
                return;
        case FIELD_BOOL:
                (void)fputs_unlocked(*(const bool_t *)value ? "true" : "false", file);
                return;
        case FIELD_BYTES:
                put_bytes(file, bytes);
                return;
        case FIELD_BUFFER:
                put_hex(file, bytes->lockd_bytes_val, bytes->lockd_bytes_len);
                return;
        case FIELD_UUID:
                put_hex(file, value, LOCKD_UUID_LEN);
                return;
        case FIELD_FDS:
                put_fds(file, record);
                return;
        case FIELD_HOLDS:
        case FIELD_EXTRA:
        default:
                put_holds(file, record);
                return;
        }
}

static void put_record(FILE *file, const Field *fields, const void *record)
{
        for (const Field *field = fields; field->name; field++) {
                const void *value = (const char *)record + field->offset;

                if (field->type == FIELD_EXTRA) {
                        const lockd_bytes *extra = value;

                        /* The members of "{...}". */
                        if (extra->lockd_bytes_len > 2) {
                                (void)putc_unlocked(',', file);
                                (void)fwrite_unlocked(extra->lockd_bytes_val + 1, 1, extra->lockd_bytes_len - 2, file);
                        }
                        continue;
                }
                if (field->type == FIELD_FDS && ((const lockd_record *)record)->others.others_len == 0)
                        continue;
                (void)putc_unlocked(field == fields ? '{' : ',', file);
                (void)fwrite_unlocked(field->key, 1, field->key_len, file);
                put_value(file, field, value, record);
        }
        (void)putc_unlocked('}', file);
}

int state_write(FILE *file, StateKind kind, const void *record)
{
        (void)fputs_unlocked("{\"", file);
        (void)fputs_unlocked(kinds[kind].name, file);
        (void)fputs_unlocked("\":", file);
        put_record(file, kinds[kind].fields, record);
        (void)fputs_unlocked("}\n", file);
        return ferror_unlocked(file) ? FAULT(errno ? -errno : -EIO) : 0;
}

/* ---- reading lines as they were written ---- */

/* Not only for speed: json-c does not look whether each of its small allocations succeeds. */

/* Each of these reads from *p on and leaves *p behind what it read; false: it looks otherwise, or there is no memory. */

static bool scan(const char **p, char c)
{
        if (**p != c)
                return false;
        (*p)++;
        return true;
}

static bool scan_number(const char **p, uint64_t max, uint64_t *ret)
{
        uint64_t number = 0;
        const char *begin = *p;

        for (; **p >= '0' && **p <= '9'; (*p)++) {
                unsigned digit = (unsigned)(**p - '0');

                if (number > (max - digit) / 10)
                        return false;
                number = number * 10 + digit;
        }
        *ret = number;
        return *p > begin;
}

static bool scan_bool(const char **p, bool_t *ret)
{
        *ret = **p == 't';
        if (strncmp(*p, *ret ? "true" : "false", *ret ? 4 : 5) != 0)
                return false;
        *p += *ret ? 4 : 5;
        return true;
}

static int hex_value(char c)
{
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool scan_hex(const char **p, char *ret, size_t n)
{
        for (size_t i = 0; i < n; i++, *p += 2) {
                int high = hex_value((*p)[0]), low = high < 0 ? -1 : hex_value((*p)[1]);

                if (low < 0)
                        return false;
                ret[i] = (char)(high << 4 | low);
        }
        return true;
}

/* What put_string() wrote: of escapes only its own. */
static bool scan_text(const char **p, lockd_bytes *ret)
{
        const char *begin = *p + 1, *end = begin;
        char *out;

        if (**p != '"')
                return false;
        while (*end && *end != '"')
                end += *end == '\\' && end[1] ? 2 : 1;
        out = *end == '"' ? malloc((size_t)(end - begin) + 1) : NULL;
        if (!out)
                return false;
        *ret = (lockd_bytes){ .lockd_bytes_val = out };
        for (const char *in = begin; in < end;) {
                char c;

                if (*in != '\\')
                        *out++ = *in++;
                else if (in[1] == '"' || in[1] == '\\') {
                        *out++ = in[1];
                        in += 2;
                } else if (strncmp(in, "\\u00", 4) == 0 && end - in >= 6) {
                        const char *hex = in + 4;

                        if (!scan_hex(&hex, &c, 1) || (unsigned char)c >= 0x20)
                                return false;
                        *out++ = c;
                        in += 6;
                } else
                        return false;
        }
        *out = '\0';
        ret->lockd_bytes_len = (u_int)(out - ret->lockd_bytes_val);
        *p = end + 1;
        return true;
}

/* Bytes that are no text: "[195,40]". */
static bool scan_numbers(const char **p, lockd_bytes *ret)
{
        char *out = malloc(strcspn(*p, "]") / 2 + 1);
        uint64_t number;

        *ret = (lockd_bytes){ .lockd_bytes_val = out };
        if (!out || !scan(p, '['))
                return false;
        do {
                if (!scan_number(p, UINT8_MAX, &number))
                        return false;
                out[ret->lockd_bytes_len++] = (char)number;
        } while (scan(p, ','));
        out[ret->lockd_bytes_len] = '\0';
        return scan(p, ']');
}

static bool scan_buffer(const char **p, lockd_bytes *ret)
{
        size_t n = strspn(*p + (**p == '"'), digits) / 2;
        char *bytes = malloc(n + 1);

        *ret = (lockd_bytes){ .lockd_bytes_len = (u_int)n, .lockd_bytes_val = bytes };
        if (!bytes || !scan(p, '"') || !scan_hex(p, bytes, n))
                return false;
        bytes[n] = '\0';
        return scan(p, '"');
}

static bool scan_record(const char **p, const Field *fields, void *record);

static bool scan_holds(const char **p, lockd_record *lease)
{
        size_t size = 0;

        if (!scan(p, '['))
                return false;
        do {
                lockd_hold *hold;

                if (lease->holds.holds_len == size) {
                        size = size ? size * 2 : 1;
                        hold = reallocarray(lease->holds.holds_val, size, sizeof(*hold));
                        if (!hold)
                                return false;
                        lease->holds.holds_val = hold;
                }
                hold = &lease->holds.holds_val[lease->holds.holds_len++];
                memset(hold, 0, sizeof(*hold));
                if (!scan_record(p, hold_fields, hold))
                        return false;
        } while (scan(p, ','));
        return scan(p, ']');
}

static bool scan_value(const char **p, const Field *field, void *value, void *record)
{
        uint64_t number = 0;
        bool negative;

        switch (field->type) {
        case FIELD_UNSIGNED:
                if (!scan_number(p, UINT32_MAX, &number))
                        return false;
                *(u_int *)value = (u_int)number;
                return true;
        case FIELD_HYPER:
                if (!scan_number(p, UINT64_MAX, &number))
                        return false;
                *(u_quad_t *)value = number;
                return true;
        case FIELD_INT:
                negative = scan(p, '-');
                if (!scan_number(p, INT32_MAX, &number))
                        return false;
                *(int *)value = negative ? -(int)number : (int)number;
                return true;
        case FIELD_BOOL:
                return scan_bool(p, value);
        case FIELD_BYTES:
                return **p == '[' ? scan_numbers(p, value) : scan_text(p, value);
        case FIELD_BUFFER:
                return scan_buffer(p, value);
        case FIELD_UUID:
                return scan(p, '"') && scan_hex(p, value, LOCKD_UUID_LEN) && scan(p, '"');
        case FIELD_HOLDS:
                return scan_holds(p, record);
        case FIELD_FDS:
        case FIELD_EXTRA:
        default:
                return true; /* nothing: a member that is not known stops the scan */
        }
}

static bool scan_record(const char **p, const Field *fields, void *record)
{
        for (const Field *field = fields; field->name; field++) {
                if (field->type == FIELD_EXTRA || field->type == FIELD_FDS)
                        continue; /* a line that has them looks otherwise */
                if (!scan(p, field == fields ? '{' : ',') || strncmp(*p, field->key, field->key_len) != 0)
                        return false;
                *p += field->key_len;
                if (!scan_value(p, field, (char *)record + field->offset, record))
                        return false;
        }
        return scan(p, '}');
}

/* The kind of a line; none: STATE_END + 1. */
static StateKind scan_kind(const char **p)
{
        size_t kind = 0;

        for (; kind <= STATE_END; kind++) {
                size_t len = strlen(kinds[kind].name);

                if (strncmp(*p, "{\"", 2) == 0 && strncmp(*p + 2, kinds[kind].name, len) == 0 && strncmp(*p + 2 + len, "\":", 2) == 0) {
                        *p += len + 4;
                        break;
                }
        }
        return (StateKind)kind;
}

static bool scan_line(const char *line, StateKind *ret_kind, StateRecord *ret)
{
        StateKind kind = scan_kind(&line);

        memset(ret, 0, sizeof(*ret));
        if (kind > STATE_END)
                return false;
        *ret_kind = kind;
        if (scan_record(&line, kinds[kind].fields, ret) && strcmp(line, "}") == 0)
                return true;
        state_done(kind, ret);
        return false;
}

/* ---- reading any line ---- */

static int buffer_from_json(json_object *value, lockd_bytes *ret)
{
        const char *text = json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
        size_t n = text ? (size_t)json_object_get_string_len(value) / 2 : 0;
        char *bytes;

        if (!text || strspn(text, digits) != 2 * n || text[2 * n])
                return FAULT(-EBADMSG);
        bytes = malloc(n + 1);
        if (!bytes)
                return FAULT(-ENOMEM);
        for (size_t i = 0; i < n; i++)
                bytes[i] = (char)((strchr(digits, text[2 * i]) - digits) << 4 | (strchr(digits, text[2 * i + 1]) - digits));
        bytes[n] = '\0';
        *ret = (lockd_bytes){ .lockd_bytes_len = (u_int)n, .lockd_bytes_val = bytes };
        return 0;
}

static int bytes_from_json(json_object *value, lockd_bytes *ret)
{
        size_t n;
        char *copy;

        if (json_object_is_type(value, json_type_string)) {
                n = (size_t)json_object_get_string_len(value);
                copy = malloc(n + 1);
                if (!copy)
                        return FAULT(-ENOMEM);
                memcpy(copy, json_object_get_string(value), n);
        } else if (json_object_is_type(value, json_type_array)) {
                n = json_object_array_length(value);
                copy = malloc(n + 1);
                if (!copy)
                        return FAULT(-ENOMEM);
                for (size_t i = 0; i < n; i++)
                        copy[i] = (char)json_object_get_int(json_object_array_get_idx(value, i));
        } else
                return FAULT(-EBADMSG);
        copy[n] = '\0';
        *ret = (lockd_bytes){ .lockd_bytes_len = (u_int)n, .lockd_bytes_val = copy };
        return 0;
}

static int uuid_from_json(json_object *value, char *ret)
{
        const char *text = json_object_get_string(value);

        if (!text || strlen(text) != 2 * LOCKD_UUID_LEN)
                return FAULT(-EBADMSG);
        for (int i = 0; i < LOCKD_UUID_LEN; i++) {
                unsigned byte;

                if (sscanf(text + 2 * i, "%2x", &byte) != 1)
                        return FAULT(-EBADMSG);
                ret[i] = (char)byte;
        }
        return 0;
}

static int from_json(const Field *fields, json_object *object, void *record);

static int holds_from_json(json_object *value, void *ret)
{
        lockd_record *lease = (lockd_record *)(void *)((char *)ret - offsetof(lockd_record, holds));
        size_t n = json_object_is_type(value, json_type_array) ? json_object_array_length(value) : 0;
        int r = 0;

        lease->holds.holds_val = calloc(n ? n : 1, sizeof(lockd_hold));
        if (!lease->holds.holds_val)
                return FAULT(-ENOMEM);
        lease->holds.holds_len = (u_int)n;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = from_json(hold_fields, json_object_array_get_idx(value, i), &lease->holds.holds_val[i]);
        return PASS(r);
}

static int fds_from_json(json_object *value, void *ret)
{
        lockd_record *lease = (lockd_record *)(void *)((char *)ret - offsetof(lockd_record, others));
        size_t n = json_object_is_type(value, json_type_array) ? json_object_array_length(value) : 0;

        lease->others.others_val = calloc(n ? n : 1, sizeof(int));
        if (!lease->others.others_val)
                return FAULT(-ENOMEM);
        lease->others.others_len = (u_int)n;
        for (size_t i = 0; i < n; i++)
                lease->others.others_val[i] = json_object_get_int(json_object_array_get_idx(value, i));
        return 0;
}

static int value_from_json(const Field *field, json_object *value, char *ret)
{
        switch (field->type) {
        case FIELD_UNSIGNED:
                *(u_int *)(void *)ret = (u_int)json_object_get_uint64(value);
                return 0;
        case FIELD_HYPER:
                *(u_quad_t *)(void *)ret = json_object_get_uint64(value);
                return 0;
        case FIELD_INT:
                *(int *)(void *)ret = json_object_get_int(value);
                return 0;
        case FIELD_BOOL:
                *(bool_t *)(void *)ret = json_object_get_boolean(value);
                return 0;
        case FIELD_BYTES:
                return PASS(bytes_from_json(value, (lockd_bytes *)(void *)ret));
        case FIELD_BUFFER:
                return PASS(buffer_from_json(value, (lockd_bytes *)(void *)ret));
        case FIELD_UUID:
                return PASS(uuid_from_json(value, ret));
        case FIELD_FDS:
                return PASS(fds_from_json(value, ret));
        case FIELD_HOLDS:
                return PASS(holds_from_json(value, ret));
        case FIELD_EXTRA:
        default:
                return FAULT(-EBADMSG);
        }
}

static bool is_known(const Field *fields, const char *name)
{
        for (const Field *field = fields; field->name; field++)
                if (field->type != FIELD_EXTRA && strcmp(field->name, name) == 0)
                        return true;
        return false;
}

/* What of object is not known here, as text; nothing when all of it is. */
static int extra_from_json(const Field *fields, json_object *object, lockd_bytes *ret)
{
        json_object *rest = NULL;
        int r = 0;

        json_object_object_foreach(object, name, value) {
                if (is_known(fields, name))
                        continue;
                if (!rest)
                        rest = json_object_new_object();
                if (!rest || json_object_object_add(rest, name, json_object_get(value)) < 0) {
                        json_object_put(rest);
                        return FAULT(-ENOMEM);
                }
        }
        if (rest) {
                const char *text = json_object_to_json_string_ext(rest, JSON_C_TO_STRING_PLAIN);

                ret->lockd_bytes_val = text ? strdup(text) : NULL;
                ret->lockd_bytes_len = ret->lockd_bytes_val ? (u_int)strlen(text) : 0;
                r = ret->lockd_bytes_val ? 0 : FAULT(-ENOMEM);
        }
        json_object_put(rest);
        return r;
}

static int from_json(const Field *fields, json_object *object, void *record)
{
        if (!json_object_is_type(object, json_type_object))
                return FAULT(-EBADMSG);
        for (const Field *field = fields; field->name; field++) {
                char *place = (char *)record + field->offset;
                json_object *value;
                int r;

                if (field->type == FIELD_EXTRA) {
                        r = extra_from_json(fields, object, (lockd_bytes *)(void *)place);
                        if (r < 0)
                                return PASS(r);
                        continue;
                }
                if (!json_object_object_get_ex(object, field->name, &value)) {
                        if (field->type == FIELD_INT)
                                *(int *)(void *)place = field->missing;
                        continue;
                }
                r = value_from_json(field, value, place);
                if (r < 0)
                        return PASS(r);
        }
        return 0;
}

int state_read(const char *line, StateKind *ret_kind, StateRecord *ret)
{
        json_object *object, *value;
        int r;

        errno = 0;
        if (scan_line(line, ret_kind, ret))
                return 0;
        if (errno == ENOMEM)
                return FAULT(-ENOMEM); /* json-c would get none either, and does not always look */
        object = json_tokener_parse(line);
        r = json_object_is_type(object, json_type_object) ? STATE_E_UNKNOWN : FAULT(-EBADMSG);
        for (size_t kind = 0; r == STATE_E_UNKNOWN && kind < sizeof(kinds) / sizeof(kinds[0]); kind++)
                if (json_object_object_get_ex(object, kinds[kind].name, &value)) {
                        *ret_kind = (StateKind)kind;
                        r = from_json(kinds[kind].fields, value, ret);
                        if (r < 0)
                                state_done((StateKind)kind, ret);
                }
        json_object_put(object);
        return PASS(r);
}

static void free_fields(const Field *fields, void *record)
{
        for (const Field *field = fields; field->name; field++) {
                char *place = (char *)record + field->offset;

                if (field->type == FIELD_BYTES || field->type == FIELD_BUFFER || field->type == FIELD_EXTRA)
                        free(((lockd_bytes *)(void *)place)->lockd_bytes_val);
                else if (field->type == FIELD_FDS)
                        free(((lockd_record *)record)->others.others_val);
                else if (field->type == FIELD_HOLDS) {
                        lockd_record *lease = record;

                        for (u_int i = 0; i < lease->holds.holds_len; i++)
                                free_fields(hold_fields, &lease->holds.holds_val[i]);
                        free(lease->holds.holds_val);
                }
        }
}

void state_done(StateKind kind, StateRecord *record)
{
        free_fields(kinds[kind].fields, record);
        memset(record, 0, sizeof(*record));
}
