/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection to a lock daemon: one call at a time, each with a deadline. No global state, no log, no output. A
 * connection may be used by one thread at a time.
 */
#pragma once

#include <rpc/rpc.h>
#include <stdint.h>

#include "virtlock.h"

typedef struct Client Client;

/* Milliseconds that a call may take when the daemon does not answer. */
#define CLIENT_TIMEOUT_MSEC 30000

enum {
        CLIENT_E_REFUSED = 1, /* the daemon answered with an error: client_error() */
};

/* Connects to the socket at path. timeout_msec is for the connection and for each call. 0 or -errno: -ENOENT and
 * -ECONNREFUSED: no daemon is there; -ETIMEDOUT. */
int client_new(const char *path, unsigned timeout_msec, Client **ret);
Client *client_free(Client *client);

/* One call. args and ret may be NULL for a procedure without them; *ret, zeroed by the caller, is filled by 0 and freed
 * with xdr_free(). CLIENT_E_REFUSED, or -errno: -ETIMEDOUT, -ECONNRESET (the daemon closed the connection), -EBADMSG
 * (its answer makes no sense), -ENOMEM, -EMSGSIZE. After a negative result the connection is of no more use. */
int client_call(Client *client, uint32_t program, uint32_t version, int32_t procedure, xdrproc_t args_proc, const void *args,
                xdrproc_t ret_proc, void *ret);

/* The error that the last call was refused with; good until the next call. */
const virtlock_error *client_error(const Client *client);
/* Its message, never NULL. */
const char *client_error_message(const Client *client);

/* The socket, to be passed on or left open in a VM's process. It stays the client's. */
int client_fd(const Client *client);

/* The admin socket's place for the user that runs this program; to be freed. */
char *client_admin_socket(void);
