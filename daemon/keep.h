/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What has to be told to whoever keeps copies for the time after a crash. The calls come from where things happen; what
 * they do is set by daemon.c (keeper.c has it), and is nothing until then.
 */
#pragma once

#include <stdbool.h>

struct Caller;
struct Hold;
struct Lease;
struct Lockspace;
struct Owner;

typedef struct KeepCalls {
        void (*hold_changed)(struct Hold *hold);
        void (*hold_gone)(struct Hold *hold);
        bool (*lease_releasing)(struct Lease *lease);
        void (*lease_gone)(struct Lease *lease);
        void (*owner_changed)(struct Owner *owner);
        void (*owner_gone)(struct Owner *owner);
        void (*peer_gone)(struct Caller *caller);
        void (*lockspace_added)(struct Lockspace *lockspace);
        bool (*is_safe)(struct Caller *caller);
        void (*give_up)(void);
        void (*resume)(void);
} KeepCalls;

/* NULL: nobody keeps anything. */
void keep_set(const KeepCalls *calls);

/* It is new, or what its record says has changed. */
void keep_hold_changed(struct Hold *hold);
/* Before it is freed. */
void keep_hold_gone(struct Hold *hold);

/* Before anything of its lock is undone. false: that could not be made known, so that its file has to stay. */
bool keep_lease_releasing(struct Lease *lease);
/* Its lock is gone; before it is freed. */
void keep_lease_gone(struct Lease *lease);

void keep_owner_changed(struct Owner *owner);
void keep_owner_gone(struct Owner *owner);
void keep_peer_gone(struct Caller *caller);
void keep_lockspace_added(struct Lockspace *lockspace);

/* From now on nothing of this is ours: everything is forgotten, so that nobody finds it after somebody else's crash. */
void keep_give_up(void);
/* It is ours all the same. */
void keep_resume(void);

/* Would what was granted last survive a crash, so that its caller may be told? false: caller->answer_later() will be
 * called when it would, or in a second. */
bool keep_is_safe(struct Caller *caller);
