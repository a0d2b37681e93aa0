/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: what state_write() wrote, state_read() reads back equal. The tables below are the format. */
#include "state.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "json_bytes.h"

typedef enum FieldType { FIELD_UNSIGNED, FIELD_HYPER, FIELD_INT, FIELD_BOOL, FIELD_BYTES, FIELD_BUFFER, FIELD_UUID, FIELD_HOLDS, FIELD_EXTRA } FieldType;

typedef struct Field {
        const char *name;
        FieldType type;
        size_t offset;
        int missing; /* FIELD_INT: what a line without it means */
} Field;

#define FIELD(struct_name, member, kind) { .name = #member, .type = (kind), .offset = offsetof(struct_name, member) }
#define FIELD_FD(struct_name, member) { .name = #member, .type = FIELD_INT, .offset = offsetof(struct_name, member), .missing = -1 }
#define FIELD_REST(struct_name) { .name = "extra", .type = FIELD_EXTRA, .offset = offsetof(struct_name, extra) }
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
        FIELD(lockd_record, holds, FIELD_HOLDS),     FIELD_REST(lockd_record),
        FIELD_LAST,
};

static const Field hold_fields[] = {
        { .name = "owner", .type = FIELD_HYPER, .offset = offsetof(lockd_hold, owner.number) },
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

static json_object *to_json(const Field *fields, const void *record);

static json_object *holds_to_json(const void *value)
{
        const lockd_record *lease = (const lockd_record *)((const char *)value - offsetof(lockd_record, holds));
        json_object *array = json_object_new_array_ext((int)lease->holds.holds_len);

        for (u_int i = 0; array && i < lease->holds.holds_len; i++) {
                json_object *hold = to_json(hold_fields, &lease->holds.holds_val[i]);

                if (!hold || json_object_array_add(array, hold) < 0) {
                        json_object_put(hold);
                        json_object_put(array);
                        return NULL;
                }
        }
        return array;
}

static const char digits[] = "0123456789abcdef";

/* Bytes of a connection: hexadecimal, whatever they are. */
static json_object *buffer_to_json(const lockd_bytes *bytes)
{
        char *text = malloc(2 * (size_t)bytes->lockd_bytes_len + 1);
        json_object *string;

        if (!text)
                return NULL;
        for (u_int i = 0; i < bytes->lockd_bytes_len; i++) {
                text[2 * i] = digits[(unsigned char)bytes->lockd_bytes_val[i] >> 4];
                text[2 * i + 1] = digits[(unsigned char)bytes->lockd_bytes_val[i] & 15];
        }
        string = json_object_new_string_len(bytes->lockd_bytes_len ? text : "", (int)(2 * bytes->lockd_bytes_len));
        free(text);
        return string;
}

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

static json_object *value_to_json(const Field *field, const char *value)
{
        char hex[2 * LOCKD_UUID_LEN + 1];
        const lockd_bytes *bytes;

        switch (field->type) {
        case FIELD_UNSIGNED:
                return json_object_new_uint64(*(const u_int *)(const void *)value);
        case FIELD_HYPER:
                return json_object_new_uint64(*(const u_quad_t *)(const void *)value);
        case FIELD_INT:
                return json_object_new_int(*(const int *)(const void *)value);
        case FIELD_BOOL:
                return json_object_new_boolean(*(const bool_t *)(const void *)value);
        case FIELD_BYTES:
                bytes = (const lockd_bytes *)(const void *)value;
                return json_from_bytes(bytes->lockd_bytes_val, bytes->lockd_bytes_len);
        case FIELD_BUFFER:
                return buffer_to_json((const lockd_bytes *)(const void *)value);
        case FIELD_UUID:
                for (int i = 0; i < LOCKD_UUID_LEN; i++)
                        (void)sprintf(hex + 2 * i, "%02x", (unsigned char)value[i]);
                return json_object_new_string(hex);
        case FIELD_HOLDS:
                return holds_to_json(value);
        case FIELD_EXTRA:
        default:
                return NULL;
        }
}

/* Adds the members that are not known here. */
static int extra_to_json(const lockd_bytes *extra, json_object *object)
{
        json_object *rest = extra->lockd_bytes_len > 0 ? json_tokener_parse(extra->lockd_bytes_val) : NULL;
        int r = 0;

        if (rest) {
                json_object_object_foreach(rest, name, value)
                        r |= json_object_object_add(object, name, json_object_get(value));
        }
        json_object_put(rest);
        return r;
}

static json_object *to_json(const Field *fields, const void *record)
{
        json_object *object = json_object_new_object();

        for (const Field *field = fields; object && field->name; field++) {
                json_object *value;

                if (field->type == FIELD_EXTRA) {
                        if (extra_to_json((const lockd_bytes *)(const void *)((const char *)record + field->offset), object) == 0)
                                continue;
                        json_object_put(object);
                        return NULL;
                }
                value = value_to_json(field, (const char *)record + field->offset);

                if (!value || json_object_object_add_ex(object, field->name, value, JSON_C_OBJECT_ADD_CONSTANT_KEY) < 0) {
                        json_object_put(value);
                        json_object_put(object);
                        return NULL;
                }
        }
        return object;
}

int state_write(FILE *file, StateKind kind, const void *record)
{
        json_object *object = to_json(kinds[kind].fields, record);
        const char *text = object ? json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : NULL;
        int r = 0;

        if (!text)
                r = FAULT(-ENOMEM);
        else if (fprintf(file, "{\"%s\":%s}\n", kinds[kind].name, text) < 0)
                r = FAULT(errno ? -errno : -EIO);
        json_object_put(object);
        return r;
}

/* ---- reading ---- */

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
        json_object *object = json_tokener_parse(line), *value;
        int r = json_object_is_type(object, json_type_object) ? STATE_E_UNKNOWN : FAULT(-EBADMSG);

        memset(ret, 0, sizeof(*ret));
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
