/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: frames of a connection are dispatched in the order in which they came (keepalive apart), its replies leave
 * in that order, and what it can make us keep is bounded. It refuses to know what a procedure does.
 *
 * A connection that sends what cannot be a frame gets an error and is closed. The own connection of an owner with holds
 * is the exception: lockd never closes it, because only an EOF that the owner caused tells of its death. Its input is
 * discarded from then on (MUTE), and its end is the hang-up that comes when the last copy of it is closed.
 */
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOG_SOURCE "peer"
#include "cleanup.h"
#include "dispatch.h"
#include "fault.h"
#include "list.h"
#include "log.h"
#include "virtlock.h"

#define PEER_READ_MAX (256U * 1024)   /* at one go, for all connections */
#define PEER_UNSENT_MAX (256U * 1024) /* replies that wait for the client; beyond it no more calls are read */
#define PEER_CALLS_MAX 32             /* of one connection at a time: then it is the others' turn */
#define PEER_EVENTS_MAX 64
#define PEER_REPLIES_SIZE 4096U /* memory for replies that are under way */

typedef struct Buffer {
        uint8_t *bytes;
        size_t len, size;
} Buffer;

struct PeerSet {
        const RpcProgram *program;
        const RpcServices *services;
        int epoll;
        sd_event_source *source;
        size_t count, refused;
        uint64_t newest; /* the last number given */
        ListNode peers;
        ListNode ended; /* freed when no event can refer to them any more */
        void (*empty)(void *userdata);
        void *userdata;
        uint8_t *scratch;
        Buffer spare; /* goes from one whose replies are all sent to the next who gets some */
};

typedef enum PeerState {
        PEER_OPEN,
        PEER_CLOSING, /* closed once its replies are out */
        PEER_MUTE,    /* never closed by us: input is discarded until it hangs up */
} PeerState;

struct Peer {
        Caller caller;
        PeerSet *set;
        int fd;
        PeerState state;
        const char *refusal;
        uint32_t interest; /* epoll events asked for */
        bool later;        /* a call waits for its answer: the calls behind it stay in `in` */
        bool resume;       /* there are calls in `in` that can be handled: when the loop comes round */
        bool half_closed;  /* it sends no more, but is open */
        bool deaf;         /* the client does not take replies any more */
        FrameHeader call;  /* the one that waits */
        Buffer in, out;
        char *extra;       /* what a newer lockd's state said beside; NULL: nothing */
        ListNode in_set;
};

static void buffer_done(Buffer *buffer)
{
        free(buffer->bytes);
        *buffer = (Buffer){ 0 };
}

static int buffer_append(Buffer *buffer, const uint8_t *bytes, size_t len)
{
        if (buffer->len + len > buffer->size) {
                size_t size = buffer->len + len;
                uint8_t *larger = realloc(buffer->bytes, size);

                if (!larger)
                        return FAULT(-ENOMEM);
                buffer->bytes = larger;
                buffer->size = size;
        }
        if (len > 0)
                memcpy(buffer->bytes + buffer->len, bytes, len);
        buffer->len += len;
        return 0;
}

static void buffer_consume(Buffer *buffer, size_t len)
{
        buffer->len -= len;
        if (buffer->len == 0)
                buffer_done(buffer);
        else if (len > 0)
                memmove(buffer->bytes, buffer->bytes + len, buffer->len);
}

/* The connection is over: its caller learns it now, its memory stays until no event of this round can name it. */
static void peer_end(Peer *peer, bool unanswered)
{
        PeerSet *set = peer->set;

        if (peer->fd < 0)
                return;
        unanswered = unanswered || peer->deaf || peer->out.len > 0 || peer->in.len > 0;
        caller_end(&peer->caller, set->services->reaper, unanswered);
        /* The close alone would not do it while a child that was just forked has a copy. */
        (void)epoll_ctl(set->epoll, EPOLL_CTL_DEL, peer->fd, NULL);
        peer->fd = close_fd(peer->fd);
        list_unlink(&peer->in_set);
        list_append(&set->ended, &peer->in_set);
        set->refused -= peer->refusal ? 1 : 0;
        if (--set->count == 0 && set->empty)
                set->empty(set->userdata);
}

static void peer_free(Peer *peer)
{
        list_unlink(&peer->in_set);
        buffer_done(&peer->in);
        buffer_done(&peer->out);
        free(peer->extra);
        free(peer);
}

static void free_ended(PeerSet *set)
{
        list_for_each_safe(node, &set->ended)
                peer_free(list_entry(node, Peer, in_set));
}

static size_t input_max(const Peer *peer)
{
        return peer->set->program->message_max + 65536;
}

static void update_interest(Peer *peer)
{
        struct epoll_event event = { .data.ptr = peer };

        if (peer->fd < 0)
                return;
        if (peer->out.len > 0 || peer->resume)
                event.events |= EPOLLOUT;
        if (peer->state != PEER_CLOSING && !peer->half_closed && !peer->resume && peer->out.len < PEER_UNSENT_MAX &&
            !(peer->later && peer->in.len >= input_max(peer)))
                event.events |= EPOLLIN;
        if (event.events == peer->interest)
                return;
        if (epoll_ctl(peer->set->epoll, EPOLL_CTL_MOD, peer->fd, &event) == 0)
                peer->interest = event.events;
        else
                log_error("connection of pid %d: %s", (int)peer->caller.process.pid, strerror(errno));
}

static bool is_own_with_holds(const Peer *peer)
{
        return peer->caller.own && peer->caller.owner->n_holds > 0;
}

/* Nothing that comes after this in the stream can be understood. */
static void give_up_input(Peer *peer, const char *why)
{
        peer->state = is_own_with_holds(peer) ? PEER_MUTE : PEER_CLOSING;
        log_warning("connection of pid %d: %s; %s", (int)peer->caller.process.pid, why,
                    peer->state == PEER_MUTE ? "its input is ignored from now on, its locks stay" : "closing it");
}

static void take_spare(Peer *peer)
{
        Buffer *spare = &peer->set->spare;

        if (!spare->bytes && (spare->bytes = malloc(PEER_REPLIES_SIZE)))
                spare->size = PEER_REPLIES_SIZE;
        peer->out = *spare;
        *spare = (Buffer){ 0 };
}

static void put_spare(Peer *peer)
{
        Buffer *spare = &peer->set->spare;

        if (spare->bytes || peer->out.size != PEER_REPLIES_SIZE)
                buffer_done(&peer->out);
        else
                *spare = (Buffer){ .bytes = peer->out.bytes, .size = peer->out.size };
        peer->out = (Buffer){ 0 };
}

static void flush(Peer *peer)
{
        while (peer->out.len > 0) {
                ssize_t n = send(peer->fd, peer->out.bytes, peer->out.len, MSG_DONTWAIT | MSG_NOSIGNAL);

                if (n < 0 && errno == EAGAIN)
                        return;
                if (n < 0) {
                        /* When it hung up, what it had sent before is still read. */
                        if (errno != EPIPE && errno != ECONNRESET)
                                give_up_input(peer, strerror(errno));
                        peer->deaf = true;
                        buffer_done(&peer->out);
                        return;
                }
                if ((size_t)n == peer->out.len)
                        put_spare(peer);
                else
                        buffer_consume(&peer->out, (size_t)n);
        }
}

static void queue_reply(Peer *peer, const DispatchReply *reply)
{
        if (peer->deaf)
                return;
        if (!peer->out.bytes)
                take_spare(peer);
        if (buffer_append(&peer->out, reply->bytes, reply->len) < 0) {
                /* A call without its answer would hang the client: rather end the connection. */
                peer->deaf = true;
                give_up_input(peer, "no memory for a reply");
        }
}

static void refuse_frame(Peer *peer, const FrameHeader *header, int code, const char *why)
{
        DispatchReply reply;

        if (dispatch_refuse(header, code, why, &reply) == 0)
                queue_reply(peer, &reply);
}

static void handle_frame(Peer *peer, const FrameHeader *header, const uint8_t *frame)
{
        PeerSet *set = peer->set;
        DispatchReply reply;
        int r;

        if (peer->refusal && !dispatch_is_keepalive(header)) {
                refuse_frame(peer, header, VIRTLOCK_ERR_RESOURCE_BUSY, peer->refusal);
                peer->state = PEER_CLOSING;
                return;
        }
        r = dispatch_frame(set->program, set->services, &peer->caller, header, frame + FRAME_HEADER_SIZE, &reply);
        if (r == 0)
                queue_reply(peer, &reply);
        else if (r == DISPATCH_E_LATER) {
                peer->later = true;
                peer->call = *header;
        } else if (r < 0) {
                peer->deaf = true;
                give_up_input(peer, "no memory for a reply");
        }
}

/* While a call waits for its answer, those behind it wait too; but a PING does not. */
static void answer_pings(Peer *peer)
{
        size_t at = 0;
        FrameHeader header;

        while (frame_parse(peer->in.bytes + at, peer->in.len - at, peer->set->program->message_max, &header) == 0) {
                DispatchReply reply;

                if (!dispatch_is_keepalive(&header)) {
                        at += header.length;
                        continue;
                }
                if (dispatch_frame(peer->set->program, peer->set->services, &peer->caller, &header, NULL, &reply) == 0)
                        queue_reply(peer, &reply);
                memmove(peer->in.bytes + at, peer->in.bytes + at + header.length, peer->in.len - at - header.length);
                peer->in.len -= header.length;
        }
}

/* Dispatches the whole frames in bytes, or as many as it is this connection's turn for; returns how many bytes that was. */
static size_t handle_input(Peer *peer, const uint8_t *bytes, size_t len)
{
        size_t used = 0, calls = 0;
        FrameHeader header;
        int r = 0;

        while (peer->state == PEER_OPEN && !peer->later) {
                r = frame_parse(bytes + used, len - used, peer->set->program->message_max, &header);
                if (r != 0)
                        break;
                if (calls++ == PEER_CALLS_MAX || peer->out.len >= PEER_UNSENT_MAX) {
                        peer->resume = true;
                        break;
                }
                handle_frame(peer, &header, bytes + used);
                used += header.length;
        }
        if (peer->state != PEER_OPEN)
                return len;
        if (r == FRAME_E_LONG && header.length > 0)
                refuse_frame(peer, &header, VIRTLOCK_ERR_RPC, "message is too long for this program");
        if (r == FRAME_E_SHORT || (r == FRAME_E_LONG && header.length > 0)) {
                give_up_input(peer, r == FRAME_E_SHORT ? "it sent a message shorter than its header" : "it sent a message that is too long");
                return len;
        }
        return used;
}

static void handle_bytes(Peer *peer, const uint8_t *bytes, size_t len)
{
        size_t used = 0;
        int r = 0;

        if (peer->state != PEER_OPEN)
                return;
        if (peer->in.len == 0 && len > 0)
                used = handle_input(peer, bytes, len);
        if (used < len)
                r = buffer_append(&peer->in, bytes + used, len - used);
        if (r == 0 && used == 0 && peer->in.len > 0) {
                used = handle_input(peer, peer->in.bytes, peer->in.len);
                buffer_consume(&peer->in, used);
        }
        if (peer->later && peer->in.len > 0)
                answer_pings(peer);
        if (r < 0)
                give_up_input(peer, "no memory for its input");
}

/* Nothing more can be read. An own connection that was only half closed is still open somewhere: its end is the hang-up. */
static void handle_eof(Peer *peer, uint32_t events)
{
        struct pollfd p = { .fd = peer->fd };

        if (!peer->caller.own || (events & EPOLLHUP) || (poll(&p, 1, 0) == 1 && (p.revents & POLLHUP)))
                peer_end(peer, false);
        else
                peer->half_closed = true;
}

static void on_ready(Peer *peer, uint32_t events)
{
        ssize_t n;

        if (peer->resume) {
                peer->resume = false;
                handle_bytes(peer, NULL, 0);
        }
        if (!peer->resume && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
                n = recv(peer->fd, peer->set->scratch, PEER_READ_MAX, MSG_DONTWAIT);
                if (n > 0)
                        handle_bytes(peer, peer->set->scratch, (size_t)n);
                else if (n == 0)
                        handle_eof(peer, events);
                else if (errno != EAGAIN && errno != EINTR)
                        peer_end(peer, true); /* it closed with replies unread */
        }
        if (peer->fd < 0)
                return;
        flush(peer);
        if (peer->state == PEER_CLOSING && peer->out.len == 0)
                peer_end(peer, true);
        /* The client must not wait for what never comes. Its own end is the hang-up when its last copy closes, or when it
         * shuts its sending side down for all copies: also that is its deed. */
        if (peer->state == PEER_MUTE && peer->out.len == 0 && !peer->later && !peer->deaf) {
                peer->deaf = true;
                (void)shutdown(peer->fd, SHUT_WR);
        }
        update_interest(peer);
}

static int on_events(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        struct epoll_event events[PEER_EVENTS_MAX];
        PeerSet *set = userdata;
        int n;

        (void)source;
        (void)revents;
        n = epoll_wait(fd, events, PEER_EVENTS_MAX, 0);
        for (int i = 0; i < n; i++) {
                Peer *peer = events[i].data.ptr;

                if (peer->fd >= 0)
                        on_ready(peer, events[i].events);
        }
        free_ended(set);
        return 0;
}

/* The late answer. The calls behind it are handled when the loop comes round: this runs in the middle of others' work. */
static void answer_later(Caller *caller, const struct RpcError *error, const void *value)
{
        Peer *peer = (Peer *)(void *)((char *)caller - offsetof(Peer, caller));
        DispatchReply reply;

        caller->later = LOCKD_LATER_NO;
        if (dispatch_answer(peer->set->program, &peer->call, error, value, &reply) == 0)
                queue_reply(peer, &reply);
        else
                give_up_input(peer, "no memory for a reply");
        peer->later = false;
        peer->resume = true;
        update_interest(peer);
}

int peer_new(PeerSet *set, int fd, const OwnerPeer *process, const char *refusal)
{
        Peer *peer = calloc(1, sizeof(*peer));
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = peer };

        if (!peer) {
                close_fd(fd);
                return FAULT(-ENOMEM);
        }
        if (epoll_ctl(set->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
                int r = -errno;

                close_fd(fd);
                free(peer);
                return FAULT(r);
        }
        peer->set = set;
        peer->fd = fd;
        peer->interest = event.events;
        peer->refusal = refusal;
        caller_init(&peer->caller, fd, process);
        peer->caller.number = ++set->newest;
        peer->caller.answer_later = answer_later;
        list_append(&set->peers, &peer->in_set);
        set->count++;
        set->refused += refusal ? 1 : 0;
        return 0;
}

void peer_record(const Peer *peer, lockd_peer *ret)
{
        const Caller *caller = &peer->caller;

        *ret = (lockd_peer){
                .number = caller->number,
                .fd = peer->fd,
                .pid = (u_int)caller->process.pid,
                .uid = caller->process.uid,
                .accepted = caller->process.accepted,
                .owner = caller->owner ? caller->owner->number : 0,
                .claimed_pid = caller->claimed_pid,
                .own = caller->own,
                .restricted = caller->restricted,
                .last = caller->last,
                .state = peer->state,
                .half_closed = peer->half_closed,
                .deaf = peer->deaf,
                .refusal = { peer->refusal ? (u_int)strlen(peer->refusal) : 0, (char *)(uintptr_t)peer->refusal },
                .input = { (u_int)peer->in.len, (char *)peer->in.bytes },
                .output = { (u_int)peer->out.len, (char *)peer->out.bytes },
                .later = peer->later ? caller->later : LOCKD_LATER_NO,
                .waits_for = caller->waits_for,
                .waited_holds = caller->waited_holds,
                .call_version = peer->call.version,
                .call_procedure = peer->call.procedure,
                .call_serial = peer->call.serial,
                .extra = { peer->extra ? (u_int)strlen(peer->extra) : 0, peer->extra },
        };
}

int peer_restore(PeerSet *set, const lockd_peer *record, Owner *owner, Peer **ret)
{
        const OwnerPeer process = { .pid = (pid_t)record->pid, .uid = record->uid, .pidfd = -1, .accepted = record->accepted };
        Peer *peer = calloc(1, sizeof(*peer));
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = peer };
        int r;

        if (!peer)
                return FAULT(-ENOMEM);
        r = buffer_append(&peer->in, (const uint8_t *)record->input.lockd_bytes_val, record->input.lockd_bytes_len);
        if (r == 0)
                r = buffer_append(&peer->out, (const uint8_t *)record->output.lockd_bytes_val, record->output.lockd_bytes_len);
        if (r == 0 && epoll_ctl(set->epoll, EPOLL_CTL_ADD, record->fd, &event) < 0)
                r = FAULT(-errno);
        if (r < 0) {
                buffer_done(&peer->in);
                buffer_done(&peer->out);
                free(peer);
                return PASS(r);
        }
        peer->set = set;
        peer->fd = record->fd;
        peer->interest = event.events;
        peer->extra = record->extra.lockd_bytes_len > 0 ? strdup(record->extra.lockd_bytes_val) : NULL;
        peer->state = record->state <= PEER_MUTE ? (PeerState)record->state : PEER_OPEN;
        peer->refusal = record->refusal.lockd_bytes_len > 0 ? "too many connections: raise the limit in lockd.conf" : NULL;
        peer->half_closed = record->half_closed;
        peer->deaf = record->deaf;
        peer->later = record->later != LOCKD_LATER_NO;
        peer->resume = !peer->later && (peer->in.len > 0 || peer->state == PEER_CLOSING);
        peer->call = (FrameHeader){
                .program = set->program->number,
                .version = record->call_version,
                .procedure = record->call_procedure,
                .serial = record->call_serial,
        };
        caller_init(&peer->caller, peer->fd, &process);
        peer->caller.number = record->number;
        peer->caller.answer_later = answer_later;
        peer->caller.owner = owner;
        peer->caller.own = record->own;
        peer->caller.restricted = record->restricted;
        peer->caller.claimed_pid = record->claimed_pid;
        peer->caller.last = record->last <= CALLER_LAST_REFUSED ? (CallerLast)record->last : CALLER_LAST_OTHER;
        peer->caller.later = (lockd_later)record->later;
        peer->caller.waits_for = record->waits_for;
        peer->caller.waited_holds = record->waited_holds;
        if (owner) {
                owner->peers++;
                owner->own_peers += record->own ? 1 : 0;
        }
        list_append(&set->peers, &peer->in_set);
        set->count++;
        set->refused += peer->refusal ? 1 : 0;
        if (record->number > set->newest)
                set->newest = record->number;
        update_interest(peer);
        *ret = peer;
        return 0;
}

Caller *peer_caller(Peer *peer)
{
        return &peer->caller;
}

const ListNode *peer_set_all(const PeerSet *set)
{
        return &set->peers;
}

Peer *peer_of(const ListNode *node)
{
        return list_entry(node, Peer, in_set);
}

uint64_t peer_set_newest(const PeerSet *set)
{
        return set->newest;
}

void peer_set_set_newest(PeerSet *set, uint64_t newest)
{
        if (newest > set->newest)
                set->newest = newest;
}

size_t peer_set_count(const PeerSet *set)
{
        return set->count;
}

size_t peer_set_count_refused(const PeerSet *set)
{
        return set->refused;
}

void peer_set_on_empty(PeerSet *set, void (*empty)(void *userdata), void *userdata)
{
        set->empty = empty;
        set->userdata = userdata;
}

int peer_set_new(sd_event *loop, const RpcProgram *program, const RpcServices *services, PeerSet **ret)
{
        PeerSet *set = calloc(1, sizeof(*set));
        int r = 0;

        if (!set)
                return FAULT(-ENOMEM);
        set->program = program;
        set->services = services;
        list_init(&set->peers);
        list_init(&set->ended);
        set->scratch = malloc(PEER_READ_MAX);
        set->epoll = epoll_create1(EPOLL_CLOEXEC);
        if (!set->scratch || set->epoll < 0)
                r = set->epoll < 0 ? -errno : -ENOMEM;
        else
                r = sd_event_add_io(loop, &set->source, set->epoll, EPOLLIN, on_events, set);
        if (r < 0) {
                peer_set_free(set);
                return FAULT(r);
        }
        *ret = set;
        return 0;
}

PeerSet *peer_set_free(PeerSet *set)
{
        if (!set)
                return NULL;
        set->empty = NULL;
        list_for_each_safe(node, &set->peers)
                peer_end(list_entry(node, Peer, in_set), false);
        free_ended(set);
        sd_event_source_disable_unref(set->source);
        close_fd(set->epoll);
        buffer_done(&set->spare);
        free(set->scratch);
        free(set);
        return NULL;
}
