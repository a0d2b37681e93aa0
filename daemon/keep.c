/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: with nobody to tell, everything is as if nobody had to be told. */
#include "keep.h"

#include <stddef.h>

static const KeepCalls *calls;

void keep_set(const KeepCalls *set)
{
        calls = set;
}

void keep_hold_changed(struct Hold *hold)
{
        if (calls)
                calls->hold_changed(hold);
}

void keep_hold_gone(struct Hold *hold)
{
        if (calls)
                calls->hold_gone(hold);
}

bool keep_lease_releasing(struct Lease *lease)
{
        return !calls || calls->lease_releasing(lease);
}

void keep_lease_gone(struct Lease *lease)
{
        if (calls)
                calls->lease_gone(lease);
}

void keep_owner_changed(struct Owner *owner)
{
        if (calls)
                calls->owner_changed(owner);
}

void keep_owner_gone(struct Owner *owner)
{
        if (calls)
                calls->owner_gone(owner);
}

void keep_peer_gone(struct Caller *caller)
{
        if (calls)
                calls->peer_gone(caller);
}

void keep_lockspace_added(struct Lockspace *lockspace)
{
        if (calls)
                calls->lockspace_added(lockspace);
}

void keep_give_up(void)
{
        if (calls)
                calls->give_up();
}

void keep_resume(void)
{
        if (calls)
                calls->resume();
}

bool keep_is_safe(struct Caller *caller)
{
        return !calls || calls->is_safe(caller);
}
