/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A listening socket: accepts, checks who comes and whether there is room, and makes the connection a peer. One that
 * cannot be served is told why in the answer to its first call, at once.
 */
#pragma once

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "peer.h"

typedef struct Listener Listener;

enum {
        LISTENER_E_TAKEN = 1, /* another daemon answers there */
};

/* Binds a socket at path (its directory is made if missing), unless another lockd has path's guard or a daemon of this
 * protocol answers a PING there within a second. A dead socket file is replaced. 0 with the socket and the guard (a lock
 * file, to be kept open as long as the socket is served; -1: none), LISTENER_E_TAKEN, or -errno. again: this process served
 * there before, and nobody else is asked. */
int listener_bind(const char *path, bool again, int *ret_fd, int *ret_guard);

/* The guard of a socket that was handed to us, so that no two daemons take connections from it. 0 (with -1 when it has no
 * path or no guard can be made), or LISTENER_E_TAKEN. */
int listener_guard(int fd, int *ret_guard);

/* The socket, and its guard (-1: none). */
int listener_fd(const Listener *listener);
int listener_guard_fd(const Listener *listener);

/* Takes fd and guard over on success. limit: connections at most, named limit_name in the configuration. use_spare: its
 * clients may use the spare fds. */
int listener_new(sd_event *loop, int fd, int guard, PeerSet *peers, unsigned limit, const char *limit_name, bool use_spare,
                 Listener **ret);
/* Closes the socket; path, if not NULL, is removed. */
Listener *listener_free(Listener *listener, const char *path);

unsigned listener_limit(const Listener *listener);
void listener_set_limit(Listener *listener, unsigned limit, const char *limit_name);
