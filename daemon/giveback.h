/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way back: lockd writes virtlockd's own state and executes virtlockd under its pid, with listeners, connections and
 * locks. Until the very execution any failure leaves everything as it was.
 *
 *      start     can virtlockd take all of it? Is that file virtlockd? A child asks it for its --help, lockd serves on
 *      give      the question again; the state is written, locks become classic ones, virtlockd is executed
 */
#pragma once

#include <systemd/sd-event.h>

#include "restore.h"

typedef struct Giveback Giveback;

/* argv: what a next lockd would get; virtlockd understands the same options. failed: it has failed, and why. */
int giveback_new(sd_event *loop, char **argv, bool session, void (*failed)(const char *why, void *userdata), void *userdata,
                 Giveback **ret);
Giveback *giveback_free(Giveback *giveback);

/* Starts one; parts must stay. -EALREADY: one is under way; -EBUSY: not now, -errno: not like this, giveback_why() says
 * why. What fails later is told by failed. */
int giveback_start(Giveback *giveback, const char *path, const RestoreParts *parts);
bool giveback_is_under_way(const Giveback *giveback);

/* Why the last one failed. */
const char *giveback_why(const Giveback *giveback);
