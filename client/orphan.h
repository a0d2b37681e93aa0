/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which processes have a copy of a connection whose owner is dead. Asks the kernel (sock_diag, /proc), not the daemon. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ORPHAN_PIDS_MAX 16

/* The inode of the other end of a unix socket; 0: not found. */
uint32_t orphan_peer_inode(uint32_t inode);

/* socket: inode of the daemon's end. Returns how many pids were found (at most ORPHAN_PIDS_MAX); 0 also when the kernel
 * does not tell, for lack of permission. */
size_t orphan_find(uint64_t socket, pid_t ret[ORPHAN_PIDS_MAX]);
