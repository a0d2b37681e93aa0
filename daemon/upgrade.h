/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockd replaces its own binary while it runs, and keeps every lock and connection.
 *
 *      start     the binary is opened once; a child of it tries the state (--check-state), lockd serves on
 *      execute   the trial was good: the final state goes into a memfd, and that same file is executed
 *      restore   the new image builds its tables from the state, before it serves anyone: restore.h
 *
 * Until the very execution any failure leaves everything as it was.
 */
#pragma once

#include <systemd/sd-event.h>

#include "restore.h"

typedef struct Upgrade Upgrade;

/* Where the binary is, as this process was started; argv is what the new image gets. failed: an upgrade has failed, and
 * why. */
int upgrade_new(sd_event *loop, char **argv, void (*failed)(const char *why, void *userdata), void *userdata, Upgrade **ret);
Upgrade *upgrade_free(Upgrade *upgrade);

/* Starts one; parts must stay. -EALREADY: one is under way; -errno: it failed at once, upgrade_why() says why. What fails
 * later is told by failed. */
int upgrade_start(Upgrade *upgrade, const RestoreParts *parts);

/* Why the last one failed. */
const char *upgrade_why(const Upgrade *upgrade);
