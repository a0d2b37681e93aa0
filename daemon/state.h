/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Records <-> lines of JSON, one object a line: a tree of all of it would cost ten times the memory. The only user of
 * json-c in the daemon.
 *
 *      {"lease": {"id": 7, "fd": 12, ...}}
 *
 * Members that a line does not have are zero; those that this lockd does not know are kept in the record's extra, and
 * whole lines that it does not know by its caller. Bytes that are not UTF-8
 * are an array of numbers instead of a string.
 */
#pragma once

#include <stdio.h>

#include "record.h"

#define STATE_FORMAT 1U

typedef enum StateKind {
        STATE_HEADER,
        STATE_LISTENER,
        STATE_LOCKSPACE,
        STATE_OWNER,
        STATE_PEER,
        STATE_LEASE,
        STATE_STRAY,
        STATE_END,
} StateKind;

typedef union StateRecord {
        lockd_header header;
        lockd_listener listener;
        lockd_lockspace lockspace;
        lockd_owner owner;
        lockd_peer peer;
        lockd_record lease; /* of its holds' owners only the number */
        lockd_stray stray;
        lockd_end end;
} StateRecord;

/* -ENOMEM, or what writing said. */
int state_write(FILE *file, StateKind kind, const void *record);

enum {
        STATE_E_UNKNOWN = 1, /* a line of a kind that is not known here */
};

/* Reads one line. STATE_E_UNKNOWN, or -EBADMSG: not a line of a state. The record is freed with state_done(); its bytes are NUL-terminated. */
int state_read(const char *line, StateKind *ret_kind, StateRecord *ret);
void state_done(StateKind kind, StateRecord *record);
