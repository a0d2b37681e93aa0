/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables -> records -> fresh tables. lockd_record (protocol/record.x) is the one description of a lease. */
#pragma once

#include "lease.h"
#include "lockspace.h"
#include "reaper.h"
#include "record.h"

/* Describes a lease. Names point into the tables, so the record is good until they change; only the array of holds is
 * the record's own. At most max_holds holds are described. -ENOMEM. */
int snapshot_lease(const Lease *lease, size_t max_holds, lockd_record *ret);
void snapshot_lease_done(lockd_record *record);

void snapshot_owner(const Owner *owner, lockd_owner *ret);

/* The way back, after a restart. An fd of a record is taken over on success. -EINVAL: the record makes no sense. */
int snapshot_restore_owner(OwnerTable *owners, const lockd_owner *record, Owner **ret);
/* The lease without its holds. */
int snapshot_restore_lease(LockspaceTable *lockspaces, const lockd_record *record, Lease **ret);
/* taken: where the connection that took it keeps its holds, or NULL. */
int snapshot_restore_hold(LockspaceTable *lockspaces, Lease *lease, const lockd_hold *record, Owner *owner, ListNode *taken);
/* Once its connections and holds are back: an owner is watched again, its kill or its death goes on. */
int snapshot_resume_owner(Reaper *reaper, Owner *owner, const lockd_owner *record);
