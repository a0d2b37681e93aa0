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

/* binary: where the next image is looked for; NULL: where this one came from. argv is what it gets. failed: an upgrade
 * has failed, and why. */
int upgrade_new(sd_event *loop, const char *binary, char **argv, void (*failed)(const char *why, void *userdata), void *userdata, Upgrade **ret);
Upgrade *upgrade_free(Upgrade *upgrade);

/* What the trial says when it has restored all of this state: exit code 0 alone would prove nothing, /bin/true has it, too. */
#define UPGRADE_PROOF_MAX 160
void upgrade_proof(const lockd_end *restored, char buf[UPGRADE_PROOF_MAX]);

/* Starts one; parts must stay. -EALREADY: one is under way; -errno: it failed at once, upgrade_why() says why. What fails
 * later is told by failed. */
int upgrade_start(Upgrade *upgrade, const RestoreParts *parts);

const char *upgrade_binary(const Upgrade *upgrade);
bool upgrade_is_under_way(const Upgrade *upgrade);

/* Why the last one failed. */
const char *upgrade_why(const Upgrade *upgrade);

/* For an image that cannot serve, for want of something that may come back: waits a second and executes this same binary
 * with the same state (-1: with none, as virtlockd did). Every fd that came with it is still inheritable. Never returns. */
void upgrade_again(int state_fd, char **argv) __attribute__((noreturn));
