/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starts lockd-holder where no service manager does. */
#pragma once

/* Binds DIR/socket and starts program behind it, detached: it is nobody's child and in a session of its own. A connection
 * waits for it from then on. 0, or -errno; -EADDRINUSE: somebody listens there already. */
int holder_spawn(const char *dir, const char *program);
