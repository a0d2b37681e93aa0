/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One client connection: what came in and is not dispatched, what is to go out and is not sent. The boundary where
 * faults of a connection are logged and contained.
 *
 * A PeerSet is the connections of one socket's clients. Their readiness comes through one epoll that is a single source
 * of the loop: a source each would cost 20 times as much with a thousand of them ready.
 */
#pragma once

#include <systemd/sd-event.h>

#include "list.h"
#include "owner.h"
#include "record.h"
#include "rpc.h"

typedef struct Peer Peer;
typedef struct PeerSet PeerSet;

int peer_set_new(sd_event *loop, const RpcProgram *program, const RpcServices *services, PeerSet **ret);
/* Closes all connections. */
PeerSet *peer_set_free(PeerSet *set);
size_t peer_set_count(const PeerSet *set);
/* Of them, those that are only there to be refused. */
size_t peer_set_count_refused(const PeerSet *set);

/* Called when the number of connections has gone down to 0. */
void peer_set_on_empty(PeerSet *set, void (*empty)(void *userdata), void *userdata);

/* Describes a connection. Bytes point into it: good until it changes. */
void peer_record(const Peer *peer, lockd_peer *ret);
/* A connection as it was before a restart, with its owner (NULL: none); takes record->fd over on success. Its owner counts
 * it, its call that waits is resumed by peer_resume(). */
int peer_restore(PeerSet *set, const lockd_peer *record, Owner *owner, Peer **ret);
Caller *peer_caller(Peer *peer);
/* All connections: nodes of this list are found with peer_of(). */
const ListNode *peer_set_all(const PeerSet *set);
Peer *peer_of(const ListNode *node);
uint64_t peer_set_newest(const PeerSet *set);
void peer_set_set_newest(PeerSet *set, uint64_t newest);

/* Takes fd over, also on failure. refusal: NULL, or the static text that answers its first call before the connection is
 * closed. */
int peer_new(PeerSet *set, int fd, const OwnerPeer *process, const char *refusal);
