/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables -> records. lockd_record (protocol/lockd_admin.x) is the one description of a lease. */
#pragma once

#include "lease.h"
#include "lockd_admin.h"

/* Describes a lease. Names point into the tables, so the record is good until they change; only the array of holds is
 * the record's own. At most max_holds holds are described. -ENOMEM. */
int snapshot_lease(const Lease *lease, size_t max_holds, lockd_record *ret);
void snapshot_lease_done(lockd_record *record);

void snapshot_owner(const Owner *owner, lockd_owner *ret);
