/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* list: records as a table or as JSON. Invariant: what is shown can be told back exactly, whatever bytes a name has. */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "cleanup.h"
#include "exit_codes.h"
#include "json_bytes.h"
#include "lockd_admin.h"
#include "orphan.h"
#include "uuid.h"
#include "wire.h"

#define JSON_VERSION 1
#define COLUMNS 8

static const char *const modes[] = { [LOCKD_MODE_EXCLUSIVE] = "exclusive", [LOCKD_MODE_SHARED] = "shared" };
static const char *const kinds[] = {
        [LOCKD_KIND_OFD] = "ofd",
        [LOCKD_KIND_CLASSIC] = "classic",
        [LOCKD_KIND_NONE] = "none",
};
static const char *const states[] = {
        [LOCKD_STATE_HELD] = "HELD",
        [LOCKD_STATE_RELEASING] = "RELEASING",
        [LOCKD_STATE_ORPHANED] = "ORPHANED",
        [LOCKD_STATE_CLASSIC] = "CLASSIC",
        [LOCKD_STATE_UNPROTECTED] = "UNPROTECTED",
        [LOCKD_STATE_CONFLICT] = "CONFLICT",
};
static const char *const owner_states[] = {
        [LOCKD_OWNER_ALIVE] = "alive",
        [LOCKD_OWNER_NONE] = "no process",
        [LOCKD_OWNER_DEAD] = "dead",
        [LOCKD_OWNER_KILLING] = "being killed",
        [LOCKD_OWNER_UNKILLABLE] = "unkillable",
};

/* A newer daemon may know more of them. */
#define NAME_OF(table, value) \
        ((size_t)(value) < sizeof(table) / sizeof((table)[0]) && (table)[value] ? (table)[value] : "unknown")

static json_object *json_bytes(const lockd_bytes *bytes)
{
        return json_from_bytes(bytes->lockd_bytes_val, bytes->lockd_bytes_len);
}

static json_object *json_time(uint64_t usec)
{
        time_t seconds = (time_t)(usec / 1000000);
        char text[64];
        struct tm tm;
        size_t n;

        gmtime_r(&seconds, &tm);
        n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
        (void)snprintf(text + n, sizeof(text) - n, ".%06uZ", (unsigned)(usec % 1000000));
        return json_object_new_string(text);
}

static json_object *json_owner(const lockd_owner *owner)
{
        json_object *object = json_object_new_object();
        char uuid[UUID_TEXT];

        json_object_object_add(object, "name", json_bytes(&owner->name));
        json_object_object_add(object, "uuid", json_object_new_string(uuid_format(owner->uuid, uuid)));
        json_object_object_add(object, "id", json_object_new_int64(owner->id));
        json_object_object_add(object, "pid", json_object_new_int64(owner->pid));
        json_object_object_add(object, "start_time", json_object_new_uint64(owner->start_time));
        json_object_object_add(object, "proved", json_object_new_boolean(owner->proved));
        json_object_object_add(object, "connections", json_object_new_int64(owner->connections));
        json_object_object_add(object, "state", json_object_new_string(NAME_OF(owner_states, owner->state)));
        if (owner->state == LOCKD_OWNER_DEAD && owner->socket != 0) {
                json_object *pids = json_object_new_array();
                pid_t found[ORPHAN_PIDS_MAX];
                size_t n = orphan_find(owner->socket, found);

                for (size_t i = 0; i < n; i++)
                        json_object_array_add(pids, json_object_new_int64(found[i]));
                json_object_object_add(object, "connection_pids", pids);
        }
        return object;
}

static json_object *json_record(const lockd_record *record)
{
        json_object *object = json_object_new_object(), *holds = json_object_new_array();

        json_object_object_add(object, "lockspace", json_bytes(&record->lockspace));
        json_object_object_add(object, "resource", json_bytes(&record->resource));
        json_object_object_add(object, "mode", json_object_new_string(NAME_OF(modes, record->mode)));
        json_object_object_add(object, "state", json_object_new_string(NAME_OF(states, record->state)));
        json_object_object_add(object, "lock", json_object_new_string(NAME_OF(kinds, record->kind)));
        json_object_object_add(object, "autocreate", json_object_new_boolean(record->autocreate));
        json_object_object_add(object, "dev", json_object_new_uint64(record->dev));
        json_object_object_add(object, "ino", json_object_new_uint64(record->ino));
        json_object_object_add(object, "since", json_time(record->since));
        for (u_int i = 0; i < record->holds.holds_len; i++) {
                const lockd_hold *hold = &record->holds.holds_val[i];
                json_object *entry = json_object_new_object();

                json_object_object_add(entry, "owner", json_owner(&hold->owner));
                json_object_object_add(entry, "lockspace", json_bytes(&hold->lockspace));
                json_object_object_add(entry, "resource", json_bytes(&hold->resource));
                json_object_object_add(entry, "since", json_time(hold->since));
                json_object_object_add(entry, "unconfirmed", json_object_new_boolean(hold->unconfirmed));
                json_object_array_add(holds, entry);
        }
        json_object_object_add(object, "holds", holds);
        json_object_object_add(object, "holds_total", json_object_new_int64(record->holds_total));
        return object;
}

/* Rows of the table, collected to know how wide the columns are. */
typedef struct Table {
        char *(*cells)[COLUMNS];
        size_t n, size;
} Table;

/* bytes for a terminal: control characters, backslashes and what is not UTF-8 as \xNN. */
static char *printable(const lockd_bytes *bytes)
{
        const unsigned char *p = (const unsigned char *)bytes->lockd_bytes_val;
        char *text = malloc(bytes->lockd_bytes_len * 4 + 2), *out = text;

        if (!text)
                return NULL;
        if (bytes->lockd_bytes_len == 0)
                *out++ = '-';
        for (size_t i = 0; i < bytes->lockd_bytes_len;) {
                size_t n = utf8_length(p + i, bytes->lockd_bytes_len - i);

                bool control = p[i] < 0x20 || p[i] == 0x7f || (p[i] == 0xc2 && n == 2 && p[i + 1] < 0xa0);

                if (n == 0 || control || p[i] == '\\') {
                        out += sprintf(out, "\\x%02x", p[i++]);
                        continue;
                }
                memcpy(out, p + i, n);
                out += n;
                i += n;
        }
        *out = '\0';
        return text;
}

static char *local_time(uint64_t usec)
{
        time_t seconds = (time_t)(usec / 1000000);
        char text[64];
        struct tm tm;

        localtime_r(&seconds, &tm);
        (void)strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm);
        return strdup(text);
}

static char *state_text(const lockd_record *record, const lockd_hold *hold)
{
        char *text, pids[256] = "";

        if (hold->owner.state == LOCKD_OWNER_DEAD && hold->owner.socket != 0) {
                pid_t found[ORPHAN_PIDS_MAX];
                size_t n = orphan_find(hold->owner.socket, found);

                for (size_t i = 0; i < n; i++)
                        (void)snprintf(pids + strlen(pids), sizeof(pids) - strlen(pids), "%s%d", i ? "," : " connection open in ", (int)found[i]);
        }
        if (asprintf(&text, "%s%s%s%s", NAME_OF(states, record->state), hold->unconfirmed ? " unconfirmed" : "",
                     hold->owner.state == LOCKD_OWNER_KILLING      ? " owner being killed" :
                     hold->owner.state == LOCKD_OWNER_UNKILLABLE ? " owner cannot be killed" :
                                                                    "", pids) < 0)
                return NULL;
        return text;
}

static bool add_rows(Table *table, const lockd_record *record)
{
        for (u_int i = 0; i < record->holds.holds_len; i++) {
                const lockd_hold *hold = &record->holds.holds_val[i];
                char **row, uuid[UUID_TEXT], pid[16];

                if (table->n == table->size) {
                        size_t size = table->size ? table->size * 2 : 64;
                        void *larger = reallocarray(table->cells, size, sizeof(*table->cells));

                        if (!larger)
                                return false;
                        table->cells = larger;
                        table->size = size;
                }
                row = table->cells[table->n++];
                (void)snprintf(pid, sizeof(pid), "%u", hold->owner.pid);
                row[0] = printable(&hold->lockspace);
                row[1] = printable(&hold->resource);
                row[2] = strdup(NAME_OF(modes, record->mode));
                row[3] = printable(&hold->owner.name);
                row[4] = strdup(uuid_format(hold->owner.uuid, uuid));
                row[5] = strdup(hold->owner.pid ? pid : "-");
                row[6] = local_time(hold->since);
                row[7] = state_text(record, hold);
                for (int column = 0; column < COLUMNS; column++)
                        if (!row[column])
                                return false;
        }
        return true;
}

static void print_table(const Table *table)
{
        static const char *const titles[COLUMNS] = { "LOCKSPACE", "RESOURCE", "MODE", "VM", "UUID", "PID", "SINCE", "STATE" };
        int widths[COLUMNS];

        for (int c = 0; c < COLUMNS; c++) {
                widths[c] = (int)strlen(titles[c]);
                for (size_t i = 0; i < table->n; i++)
                        if ((int)strlen(table->cells[i][c]) > widths[c])
                                widths[c] = (int)strlen(table->cells[i][c]);
        }
        for (size_t i = 0; i <= table->n; i++) {
                for (int c = 0; c < COLUMNS - 1; c++)
                        printf("%-*s  ", widths[c], i == 0 ? titles[c] : table->cells[i - 1][c]);
                printf("%s\n", i == 0 ? titles[COLUMNS - 1] : table->cells[i - 1][COLUMNS - 1]);
        }
}

static void table_done(Table *table)
{
        for (size_t i = 0; i < table->n; i++)
                for (int c = 0; c < COLUMNS; c++)
                        free(table->cells[i][c]);
        free(table->cells);
}

static void print_json(json_object *leases)
{
        json_object *object = json_object_new_object();

        json_object_object_add(object, "version", json_object_new_int(JSON_VERSION));
        json_object_object_add(object, "leases", leases);
        printf("%s\n", json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(object);
}

/* Asks page by page; what arrives goes into leases or table. */
static int fetch(Admin *admin, lockd_list_args *args, json_object *leases, Table *table)
{
        int code;

        do {
                lockd_list_ret ret = { 0 };
                bool enough = true;

                code = admin_call(admin, LOCKD_ADMIN_LIST, (xdrproc_t)xdr_lockd_list_args, args, (xdrproc_t)xdr_lockd_list_ret, &ret);
                for (u_int i = 0; code == EXIT_OK && enough && i < ret.records.records_len; i++) {
                        if (leases)
                                json_object_array_add(leases, json_record(&ret.records.records_val[i]));
                        else
                                enough = add_rows(table, &ret.records.records_val[i]);
                }
                args->cursor = ret.cursor;
                args->newest = ret.newest;
                wire_free((xdrproc_t)xdr_lockd_list_ret, &ret);
                if (!enough) {
                        fprintf(stderr, "lockd-admin: out of memory\n");
                        code = EXIT_SOFTWARE;
                }
        } while (code == EXIT_OK && args->cursor != 0);
        return code;
}

static lockd_bytes *filter(lockd_bytes *bytes, const char *text)
{
        *bytes = (lockd_bytes){ .lockd_bytes_len = (u_int)strlen(text), .lockd_bytes_val = (char *)(uintptr_t)text };
        return bytes;
}

static int list(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = {
                { "json", no_argument, NULL, 'j' },           { "vm", required_argument, NULL, 'n' },
                { "pid", required_argument, NULL, 'p' },      { "lockspace", required_argument, NULL, 'l' },
                { "resource", required_argument, NULL, 'r' }, { "help", no_argument, NULL, 'h' },
                { 0 },
        };
        lockd_bytes lockspace, resource, vm;
        lockd_list_args args = { 0 };
        json_object *leases = NULL;
        Table table = { 0 };
        unsigned long pid;
        char *end;
        int c, code;

        while ((c = getopt_long(argc, argv, "jn:p:l:r:h", options, NULL)) != -1) {
                switch (c) {
                case 'j':
                        if (!leases)
                                leases = json_object_new_array();
                        break;
                case 'n':
                        args.vm = filter(&vm, optarg);
                        break;
                case 'p':
                        errno = 0;
                        pid = strtoul(optarg, &end, 10);
                        args.pid = (u_int)pid;
                        if (*end || *optarg < '0' || *optarg > '9' || errno || pid == 0 || pid > INT32_MAX) {
                                json_object_put(leases);
                                return admin_usage(&admin_list, "--pid wants a process id, not '%s'", optarg);
                        }
                        break;
                case 'l':
                        args.lockspace = filter(&lockspace, optarg);
                        break;
                case 'r':
                        args.resource = filter(&resource, optarg);
                        break;
                case 'h':
                        json_object_put(leases);
                        return admin_help(&admin_list);
                default:
                        json_object_put(leases);
                        return admin_usage(&admin_list, "wrong options");
                }
        }
        if (optind < argc) {
                json_object_put(leases);
                return admin_usage(&admin_list, "unexpected argument '%s'", argv[optind]);
        }
        code = fetch(admin, &args, leases, &table);
        if (code != EXIT_OK)
                json_object_put(leases);
        else if (leases)
                print_json(leases);
        else
                print_table(&table);
        table_done(&table);
        return code;
}

const AdminCommand admin_list = {
        .name = "list",
        .help = "[--json] [-n VM] [-p PID] [-l LOCKSPACE] [-r RESOURCE]\n"
                "Shows what is locked, for whom and since when; options narrow it down.\n"
                "\n"
                "  -j, --json             as JSON\n"
                "  -n, --vm VM            locks of this VM, by name or uuid\n"
                "  -p, --pid PID          locks of this process\n"
                "  -l, --lockspace PATH   locks in this lockspace; '' is that of image paths\n"
                "  -r, --resource NAME    locks of this name\n"
                "  -h, --help             show this help and end\n",
        .run = list,
};
