/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* After lockd and its holder were both gone: what the journal says was held, and nobody keeps any more, is locked again. */
#pragma once

#include <systemd/sd-event.h>

#include "journal.h"
#include "lockspace.h"
#include "reaper.h"

typedef struct Regain Regain;

typedef struct RegainParts {
        sd_event *loop;
        Journal *journal;
        LockspaceTable *lockspaces;
        OwnerTable *owners;
        Reaper *reaper;
        bool in_doubt; /* something may still be locked where it cannot be seen */
} RegainParts;

/* All that is in the journal and in no table: locked again if its owner lives. What somebody else has by now is tried again
 * every second while its owner lives (*ret, or NULL when there is nothing of the kind). */
int regain_all(const RegainParts *parts, Regain **ret);
Regain *regain_free(Regain *regain);
