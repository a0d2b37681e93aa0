/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a slot is empty, or a whole record with its checksum; who is killed in the middle of a write leaves the record
 * of before or none. Nothing here is ever synced: what survives a kill is enough, /run does not survive more.
 */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"

#define JOURNAL_MAGIC UINT64_C(0x316e72756f6a6c6b)
#define SLOTS_AT_ONCE 256U
#define FILES 2U
#define BIG 0x80000000U /* in a slot's number: it is in the second file. Numbers begin with 1 */

typedef struct Head {
        uint64_t magic;
        char boot[40];
} Head;

typedef enum SlotState { SLOT_EMPTY, SLOT_HELD } SlotState;

/* Followed by lockspace, resource and name, each with a NUL. */
typedef struct Slot {
        uint32_t state; /* not part of the sum: it is changed alone */
        uint32_t length;
        uint64_t sum;
        uint64_t number, dev, ino, block, start_time, foreign_ns;
        uint32_t foreign_pid, id, pid;
        uint8_t uuid[OWNER_UUID_LEN];
        uint8_t shared, autocreate, proved, untold;
        char text[];
} Slot;

typedef struct SlotFile {
        int fd;
        size_t size;
        uint32_t n;       /* slots that there are */
        uint32_t *unused; /* their numbers, a stack */
        uint32_t n_unused;
        unsigned char *old; /* what was there at the start */
        uint32_t n_old;
} SlotFile;

typedef struct Claim {
        uint64_t number;
        uint32_t slot;
        bool claimed;
} Claim;

struct Journal {
        SlotFile files[FILES];
        Claim *claims; /* by number: what was there at the start */
        size_t n_claims;
        uint64_t age;
};

static uint64_t checksum(const Slot *slot)
{
        const unsigned char *p = (const unsigned char *)slot + offsetof(Slot, number), *end = (const unsigned char *)slot + slot->length;
        uint64_t sum = UINT64_C(14695981039346656037);

        for (; p < end; p++)
                sum = (sum ^ *p) * UINT64_C(1099511628211);
        return sum;
}

static bool is_whole(const Slot *slot, size_t size)
{
        const char *p = slot->text, *end = (const char *)slot + slot->length;
        int strings = 0;

        if (slot->state != SLOT_HELD || slot->length <= sizeof(*slot) || slot->length > size ||
            slot->sum != checksum(slot))
                return false;
        for (; p < end; p++)
                strings += *p == '\0';
        return strings == 3 && end[-1] == '\0';
}

static off_t offset_of(const SlotFile *file, uint32_t index)
{
        return (off_t)((index + 1) * (uint64_t)file->size); /* the head has the first place */
}

/* New slots, and their numbers. */
static int grow(SlotFile *file)
{
        uint32_t n = file->n + SLOTS_AT_ONCE, *unused = reallocarray(file->unused, n, sizeof(*unused));
        int r;

        if (!unused)
                return FAULT(-ENOMEM);
        file->unused = unused;
        r = posix_fallocate(file->fd, offset_of(file, file->n), (off_t)(SLOTS_AT_ONCE * file->size));
        if (r != 0)
                return FAULT(-r);
        for (uint32_t i = SLOTS_AT_ONCE; i-- > 0;)
                file->unused[file->n_unused++] = file->n + i;
        file->n = n;
        return 0;
}

static int read_boot_id(Head *head)
{
        _cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

        *head = (Head){ .magic = JOURNAL_MAGIC };
        return fd < 0 || read(fd, head->boot, sizeof(head->boot) - 1) <= 0 ? FAULT(-EIO) : 0;
}

static int open_file(SlotFile *file, const char *dir, const char *name, size_t size, uint64_t *age)
{
        char path[PATH_MAX];
        Head ours, theirs = { 0 };
        struct stat st;
        int r;

        (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
        file->size = size;
        file->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (file->fd < 0 || fstat(file->fd, &st) < 0)
                return FAULT(-errno);
        r = read_boot_id(&ours);
        if (r < 0)
                return PASS(r);
        if (pread(file->fd, &theirs, sizeof(theirs), 0) != (ssize_t)sizeof(theirs) || memcmp(&ours, &theirs, sizeof(ours)) != 0) {
                if (ftruncate(file->fd, 0) < 0 || pwrite(file->fd, &ours, sizeof(ours), 0) != (ssize_t)sizeof(ours))
                        return FAULT(-errno);
                return 0;
        }
        if (time(NULL) - st.st_mtime < (time_t)*age)
                *age = (uint64_t)(time(NULL) - st.st_mtime);
        file->n = st.st_size > offset_of(file, 0) ? (uint32_t)((st.st_size - offset_of(file, 0)) / (off_t)size) : 0;
        file->n_old = file->n;
        file->old = malloc(file->n * size + 1);
        file->unused = calloc(file->n + 1, sizeof(*file->unused));
        if (!file->old || !file->unused)
                return FAULT(-ENOMEM);
        return pread(file->fd, file->old, file->n * size, offset_of(file, 0)) == (ssize_t)(file->n * size) ? 0 : FAULT(-EIO);
}

static int by_number(const void *a, const void *b)
{
        const Claim *one = a, *two = b;

        return one->number < two->number ? -1 : one->number > two->number;
}

static const Slot *old_slot(const Journal *journal, uint32_t slot)
{
        const SlotFile *file = &journal->files[slot & BIG ? 1 : 0];
        uint32_t index = (slot & ~BIG) - 1;

        return index < file->n_old ? (const Slot *)(const void *)(file->old + index * file->size) : NULL;
}

/* What is in use, and what is free. */
static int index_old(Journal *journal)
{
        journal->claims = calloc((size_t)journal->files[0].n_old + journal->files[1].n_old + 1, sizeof(*journal->claims));
        if (!journal->claims)
                return FAULT(-ENOMEM);
        for (uint32_t f = 0; f < FILES; f++) {
                SlotFile *file = &journal->files[f];

                for (uint32_t i = file->n_old; i-- > 0;) {
                        uint32_t slot = (i + 1) | (f ? BIG : 0);

                        if (is_whole(old_slot(journal, slot), file->size))
                                journal->claims[journal->n_claims++] = (Claim){ .number = old_slot(journal, slot)->number, .slot = slot };
                        else
                                file->unused[file->n_unused++] = i;
                }
        }
        qsort(journal->claims, journal->n_claims, sizeof(*journal->claims), by_number);
        return 0;
}

int journal_open(const char *dir, Journal **ret)
{
        static const struct {
                const char *name;
                size_t size;
        } files[FILES] = { { "journal", 512 }, { "journal.long", 16384 } };
        Journal *journal = calloc(1, sizeof(*journal));
        int r = 0;

        if (!journal)
                return FAULT(-ENOMEM);
        journal->age = UINT32_MAX;
        for (size_t i = 0; i < FILES; i++)
                journal->files[i].fd = -1;
        for (size_t i = 0; r == 0 && i < FILES; i++)
                r = open_file(&journal->files[i], dir, files[i].name, files[i].size, &journal->age);
        if (r == 0)
                r = index_old(journal);
        if (r < 0) {
                journal_close(journal);
                return PASS(r);
        }
        *ret = journal;
        return 0;
}

Journal *journal_close(Journal *journal)
{
        if (!journal)
                return NULL;
        for (size_t i = 0; i < FILES; i++) {
                close_fd(journal->files[i].fd);
                free(journal->files[i].unused);
                free(journal->files[i].old);
        }
        free(journal->claims);
        free(journal);
        return NULL;
}

uint64_t journal_newest(const Journal *journal)
{
        return journal->n_claims > 0 ? journal->claims[journal->n_claims - 1].number : 0;
}

uint64_t journal_age(const Journal *journal)
{
        return journal->age;
}

void journal_for_each(Journal *journal, void (*each)(const JournalRecord *record, void *userdata), void *userdata)
{
        static JournalRecord record;

        for (size_t i = 0; i < journal->n_claims; i++) {
                const Slot *slot = old_slot(journal, journal->claims[i].slot);
                const char *resource = slot->text + strlen(slot->text) + 1, *name = resource + strlen(resource) + 1;

                if (journal->claims[i].claimed)
                        continue;
                record = (JournalRecord){
                        .number = slot->number,
                        .dev = slot->dev,
                        .ino = slot->ino,
                        .block = slot->block,
                        .start_time = slot->start_time,
                        .foreign_ns = slot->foreign_ns,
                        .foreign_pid = slot->foreign_pid,
                        .id = slot->id,
                        .pid = slot->pid,
                        .shared = slot->shared,
                        .autocreate = slot->autocreate,
                        .proved = slot->proved,
                        .untold = slot->untold,
                        .slot = journal->claims[i].slot,
                };
                memcpy(record.uuid, slot->uuid, sizeof(record.uuid));
                (void)snprintf(record.lockspace, sizeof(record.lockspace), "%s", slot->text);
                (void)snprintf(record.resource, sizeof(record.resource), "%s", resource);
                (void)snprintf(record.name, sizeof(record.name), "%s", name);
                each(&record, userdata);
        }
}

int journal_put(Journal *journal, Hold *hold)
{
        static union {
                Slot slot;
                char bytes[16384];
        } buf;
        const Lease *lease = hold->resource->lease;
        const Owner *owner = hold->owner;
        const char *const texts[] = { hold->resource->lockspace->path, hold->resource->name, owner->name };
        char *p = buf.slot.text;
        SlotFile *file;
        size_t room;
        int r;

        buf.slot = (Slot){
                .state = SLOT_HELD,
                .number = hold->number,
                .dev = lease->file.id.dev,
                .ino = lease->file.id.ino,
                .block = lease->file.id.block,
                .start_time = owner->start_time,
                .foreign_ns = owner->foreign_ns,
                .foreign_pid = owner->foreign_pid,
                .id = owner->id,
                .pid = owner->key.pid,
                .shared = lease->file.shared,
                .autocreate = lease->autocreate,
                .proved = owner->proved,
                .untold = hold->unconfirmed || list_linked(&hold->in_taken),
        };
        memcpy(buf.slot.uuid, owner->key.uuid, sizeof(buf.slot.uuid));
        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
                p = stpcpy(p, texts[i]) + 1; /* 4095 + 4095 + 1024 at most */
        buf.slot.length = (uint32_t)(p - buf.bytes);
        buf.slot.sum = checksum(&buf.slot);
        file = &journal->files[buf.slot.length > journal->files[0].size ? 1 : 0];
        if (hold->journal == 0) {
                r = file->n_unused > 0 ? 0 : grow(file);
                if (r < 0)
                        return PASS(r);
                hold->journal = (file->unused[--file->n_unused] + 1) | (file == &journal->files[1] ? BIG : 0);
        }
        file = &journal->files[hold->journal & BIG ? 1 : 0];
        room = buf.slot.length;
        if (pwrite(file->fd, buf.bytes, room, offset_of(file, (hold->journal & ~BIG) - 1)) != (ssize_t)room)
                return FAULT(errno ? -errno : -EIO);
        return 0;
}

bool journal_claim(Journal *journal, Hold *hold)
{
        Claim key = { .number = hold->number }, *claim = NULL;

        if (journal->n_claims > 0)
                claim = bsearch(&key, journal->claims, journal->n_claims, sizeof(*journal->claims), by_number);
        if (!claim || claim->claimed)
                return false;
        claim->claimed = true;
        hold->journal = claim->slot;
        return true;
}

static void set_state(Journal *journal, uint32_t slot, uint32_t state)
{
        SlotFile *file = &journal->files[slot & BIG ? 1 : 0];

        (void)!pwrite(file->fd, &state, sizeof(state), offset_of(file, (slot & ~BIG) - 1));
}

void journal_forget(Journal *journal, uint32_t slot)
{
        SlotFile *file = &journal->files[slot & BIG ? 1 : 0];

        set_state(journal, slot, SLOT_EMPTY);
        file->unused[file->n_unused++] = (slot & ~BIG) - 1; /* there is room: it came from there */
}

void journal_drop(Journal *journal, Hold *hold)
{
        if (hold->journal != 0)
                journal_forget(journal, hold->journal);
        hold->journal = 0;
}
