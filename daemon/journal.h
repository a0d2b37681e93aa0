/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is left when lockd and its holder are both gone: a file in /run with a slot for each hold, written before its
 * owner is told, emptied before its lock is undone. One pwrite for each change.
 *
 * Short names have slots of 512 bytes, long ones of 16 KiB in a file of their own.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lockspace.h"

typedef struct Journal Journal;

#define JOURNAL_NAME_MAX 4096U

/* A hold, as it was written. */
typedef struct JournalRecord {
        uint64_t number; /* of the hold */
        uint64_t dev, ino, block;
        uint64_t start_time;
        uint64_t foreign_ns;
        uint32_t foreign_pid;
        uint32_t id, pid;
        uint8_t uuid[OWNER_UUID_LEN];
        uint8_t shared, autocreate, proved;
        uint8_t untold; /* it may be that nobody has heard that it was granted */
        uint32_t slot;
        char lockspace[JOURNAL_NAME_MAX], resource[JOURNAL_NAME_MAX], name[OWNER_NAME_MAX + 1];
} JournalRecord;

/* dir: where the files are, or are made. A journal of another boot is emptied. */
int journal_open(const char *dir, Journal **ret);
Journal *journal_close(Journal *journal);

/* The highest number of a hold in it. */
uint64_t journal_newest(const Journal *journal);

/* Seconds since the last change before this one was opened. */
uint64_t journal_age(const Journal *journal);

/* Calls each for every record that was there at the start and that no hold has claimed since. */
void journal_for_each(Journal *journal, void (*each)(const JournalRecord *record, void *userdata), void *userdata);

/* Writes what hold is; it gets a slot if it has none. -errno: it is not in the journal. */
int journal_put(Journal *journal, Hold *hold);
/* The record with that number is hold's: nothing is written. false: there is none. */
bool journal_claim(Journal *journal, Hold *hold);
/* Before its lock is given up: what is not in the journal is never locked again. */
void journal_drop(Journal *journal, Hold *hold);
/* The same for a record. */
void journal_forget(Journal *journal, uint32_t slot);
