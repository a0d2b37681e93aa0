/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an administrator asks lockd-holder without a lockd. */
#pragma once

/* Asks every process whose socket is in dir, HOLDER_ROLE_SHOW or _REAP, and prints the answers. Returns an exit code. */
int holder_tool(const char *dir, int role);
