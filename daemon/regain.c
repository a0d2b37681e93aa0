/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: what a dead process had is not locked again (nor what was being released: that is not in the journal); each lock that could not be had
 * back is said so, with who has it, and shown UNPROTECTED until its owner is dead or has it again.
 */
#include "regain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define LOG_SOURCE "holder"
#include "caller.h"
#include "cleanup.h"
#include "fault.h"
#include "list.h"
#include "log.h"

#define RETRY_USEC (1000U * 1000U)
#define RETRY_IN_DOUBT 180U /* times, for what may still be ours: then it counts as stolen */

typedef struct Lost {
        ListNode node;
        JournalRecord record;
        uint64_t owner; /* its number */
        unsigned tries;
} Lost;

struct Regain {
        RegainParts parts;
        ListNode lost;
        sd_event_source *retry;
        size_t regained, stolen;
};

/* 0: it is locked; LOCKSPACE_E_*, -errno. */
static int lock_again(const RegainParts *parts, const JournalRecord *record, Owner *owner, LockspaceRefusal *refusal)
{
        const AcquireRequest request = {
                .lockspace = record->lockspace,
                .resource = record->resource,
                .owner = owner,
                .shared = record->shared,
                .autocreate = false, /* a file that is gone is not the one that was locked */
        };
        const FileId id = { .dev = record->dev, .ino = record->ino, .block = record->block };

        return lockspace_regain(parts->lockspaces, &request, &id, record->autocreate, refusal);
}

static void mark_unconfirmed(const RegainParts *parts, const JournalRecord *record, Owner *owner)
{
        const Resource *resource = lockspace_find_resource(parts->lockspaces, record->lockspace, record->resource);
        Hold *hold = resource ? hold_find(resource->lease, owner, resource, false) : NULL;

        if (hold)
                hold->unconfirmed = true;
}

/* A call on a connection of its own has no answer yet: it is handled again, and must not be refused for its own lock. */
static bool is_asking(const Owner *owner)
{
        list_for_each(node, &owner->own_callers) {
                int unread = 0;

                if (ioctl(list_entry(node, Caller, in_owner)->socket, FIONREAD, &unread) == 0 && unread > 0)
                        return true;
        }
        return false;
}

static const char *why(int r, const LockspaceRefusal *refusal)
{
        if (r == LOCKSPACE_E_BUSY && refusal->lease)
                return owner_text(lease_first_hold(refusal->lease)->owner);
        return r == LOCKSPACE_E_BUSY ? "a process outside lockd" : r == LOCKSPACE_E_UNSTABLE ? "nobody: the name is another file's now" :
               r < 0                 ? strerror(-r) :
                                       "nobody: it cannot be locked";
}

static void try_record(const JournalRecord *record, void *userdata)
{
        Owner seed = {
                .key = { .pid = record->pid, .id = record->pid == 0 ? record->id : 0 },
                .id = record->id,
                .name = (char *)(uintptr_t)record->name,
                .start_time = record->start_time,
                .foreign_ns = record->foreign_ns,
                .foreign_pid = record->foreign_pid,
                .proved = record->proved,
        };
        Regain *regain = userdata;
        const RegainParts *parts = &regain->parts;
        LockspaceRefusal refusal = { 0 };
        Owner *owner;
        Lost *lost;
        int r;

        memcpy(seed.key.uuid, record->uuid, sizeof(seed.key.uuid));
        r = owner_revive(parts->owners, &seed, &owner);
        if (r == 0 && !owner->death)
                r = reaper_watch(parts->reaper, owner);
        if (r > 0) {
                journal_forget(parts->journal, record->slot); /* it has ended */
                return;
        }
        if (r == 0)
                r = lockspace_restore(parts->lockspaces, record->lockspace, NULL);
        if (r == 0)
                r = lock_again(parts, record, owner, &refusal);
        if (r == 0) {
                if (record->untold || is_asking(owner))
                        mark_unconfirmed(parts, record, owner);
                regain->regained++;
                log_warning("REGAINED '%s' in lockspace '%s' for %s: it was not locked for at most %llu s, while lockd and its holder were "
                            "gone", log_name(record->resource), log_name(record->lockspace), owner_text(owner),
                            (unsigned long long)journal_age(parts->journal));
                journal_forget(parts->journal, record->slot);
                return;
        }
        lost = r == -ENOMEM ? NULL : calloc(1, sizeof(*lost));
        if (!lost) {
                log_error("'%s' cannot be locked again: %s (%s)", log_name(record->resource), strerror(-r), fault_trail());
                return;
        }
        lost->record = *record;
        lost->owner = owner->number;
        list_append(&regain->lost, &lost->node);
        if (parts->in_doubt) {
                log_error("IN DOUBT: '%s' in lockspace '%s' of %s: a process of the holder that does not answer may have it", log_name(record->resource),
                          log_name(record->lockspace), owner_text(owner));
        } else {
                regain->stolen++;
                log_error("STOLEN: '%s' in lockspace '%s' of %s, while lockd and its holder were gone: it is held by %s", log_name(record->resource),
                          log_name(record->lockspace), owner_text(owner), why(r, &refusal));
                if (lockspace_show_unprotected(parts->lockspaces, record->lockspace, record->resource, owner, record->shared) < 0)
                        log_error("no memory to show it");
        }
}

static Owner *find_owner(const RegainParts *parts, uint64_t number)
{
        list_for_each(node, owner_table_all(parts->owners))
                if (list_entry(node, Owner, in_all)->number == number)
                        return list_entry(node, Owner, in_all);
        return NULL;
}

static void forget_lost(Regain *regain, Lost *lost)
{
        journal_forget(regain->parts.journal, lost->record.slot);
        list_unlink(&lost->node);
        free(lost);
}

/* What has become free is locked after all, so that no third one comes on top. */
static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
        Regain *regain = userdata;

        (void)usec;
        list_for_each_safe(node, &regain->lost) {
                Lost *lost = list_entry(node, Lost, node);
                Owner *owner = find_owner(&regain->parts, lost->owner);
                LockspaceRefusal refusal;

                if (!owner || owner->dead)
                        forget_lost(regain, lost);
                else if (lock_again(&regain->parts, &lost->record, owner, &refusal) == 0) {
                        log_warning("'%s' in lockspace '%s' has become free: locked again for %s", log_name(lost->record.resource),
                                    log_name(lost->record.lockspace), owner_text(owner));
                        forget_lost(regain, lost);
                } else if (regain->parts.in_doubt && ++lost->tries == RETRY_IN_DOUBT) {
                        log_error("STOLEN: '%s' in lockspace '%s' of %s: it could not be had back", log_name(lost->record.resource),
                                  log_name(lost->record.lockspace), owner_text(owner));
                        (void)lockspace_show_unprotected(regain->parts.lockspaces, lost->record.lockspace, lost->record.resource, owner,
                                                         lost->record.shared);
                }
        }
        if (!list_empty(&regain->lost)) {
                (void)sd_event_source_set_time_relative(source, RETRY_USEC);
                (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        }
        return 0;
}

int regain_all(const RegainParts *parts, Regain **ret)
{
        Regain *regain = calloc(1, sizeof(*regain));
        int r = 0;

        *ret = NULL;
        if (!regain)
                return FAULT(-ENOMEM);
        regain->parts = *parts;
        list_init(&regain->lost);
        journal_for_each(parts->journal, try_record, regain);
        if (!list_empty(&regain->lost))
                r = sd_event_add_time_relative(parts->loop, &regain->retry, CLOCK_MONOTONIC, RETRY_USEC, 0, on_retry, regain);
        if (r < 0 || list_empty(&regain->lost)) {
                regain_free(regain);
                return r < 0 ? FAULT(r) : 0;
        }
        *ret = regain;
        return 0;
}

Regain *regain_free(Regain *regain)
{
        if (!regain)
                return NULL;
        list_for_each_safe(node, &regain->lost) {
                list_unlink(node);
                free(list_entry(node, Lost, node));
        }
        sd_event_source_disable_unref(regain->retry);
        free(regain);
        return NULL;
}
