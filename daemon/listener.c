/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: only root, or the user that lockd runs as, gets past accept, and no more of them than there is room for. */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "listener"
#include "cleanup.h"
#include "fault.h"
#include "fds.h"
#include "frame.h"
#include "log.h"

#define ACCEPT_MAX 64             /* at one go */
#define REFUSED_MAX 24            /* connections over the limit that may wait for their answer; it is part of FDS_SPARE */
#define PING_TIMEOUT_MSEC 1000
#define RETRY_USEC (100U * 1000U) /* after accept failed for want of resources */

struct Listener {
        sd_event_source *io, *retry;
        PeerSet *peers;
        int guard;
        unsigned limit;
        bool use_spare;
        char no_room[160], no_fds[160]; /* what a connection too many is told */
};

static void describe_limits(Listener *listener, const char *name)
{
        (void)snprintf(listener->no_room, sizeof(listener->no_room), "too many connections: raise %s (%u) in lockd.conf", name,
                       listener->limit);
        (void)snprintf(listener->no_fds, sizeof(listener->no_fds), "no file descriptor is free: raise LimitNOFILE (%u) of lockd",
                       fds_limit());
}

static uint64_t boot_ticks(void)
{
        struct timespec now;

        clock_gettime(CLOCK_BOOTTIME, &now);
        return (uint64_t)now.tv_sec * (uint64_t)sysconf(_SC_CLK_TCK) +
               (uint64_t)now.tv_nsec * (uint64_t)sysconf(_SC_CLK_TCK) / 1000000000U;
}

static void admit(Listener *listener, int fd)
{
        OwnerPeer process = { .pidfd = -1, .accepted = boot_ticks() };
        const char *refusal = NULL;
        struct ucred cred;
        socklen_t len = sizeof(cred);
        size_t refused = peer_set_count_refused(listener->peers), served = peer_set_count(listener->peers) - refused;

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || (cred.uid != 0 && cred.uid != geteuid())) {
                log_warning("a connection of uid %d, pid %d was closed: only root may connect", (int)cred.uid, (int)cred.pid);
                close_fd(fd);
                return;
        }
        process.pid = cred.pid;
        process.uid = cred.uid;
        if (served >= listener->limit)
                refusal = listener->no_room;
        else if (fds_is_spare(fd) && !listener->use_spare)
                refusal = listener->no_fds;
        if (refusal)
                log_warning("connection of pid %d: %s", (int)process.pid, refusal);
        if (refusal && refused >= REFUSED_MAX) {
                close_fd(fd);
                return;
        }
        if (peer_new(listener->peers, fd, &process, refusal) < 0)
                log_error("connection of pid %d: %s (%s)", (int)process.pid, strerror(errno), fault_trail());
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
        Listener *listener = userdata;

        (void)source;
        (void)usec;
        (void)sd_event_source_set_enabled(listener->io, SD_EVENT_ON);
        return 0;
}

/* The queue of connections cannot be shortened now: asking again at once would spin. */
static void pause_listening(Listener *listener, int error)
{
        log_error("cannot accept a connection: %s", strerror(error));
        (void)sd_event_source_set_enabled(listener->io, SD_EVENT_OFF);
        (void)sd_event_source_set_time_relative(listener->retry, RETRY_USEC);
        (void)sd_event_source_set_enabled(listener->retry, SD_EVENT_ONESHOT);
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Listener *listener = userdata;

        (void)source;
        (void)revents;
        for (int i = 0; i < ACCEPT_MAX; i++) {
                int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

                if (peer >= 0)
                        admit(listener, peer);
                else if (errno == EAGAIN)
                        break;
                else if (errno != EINTR && errno != ECONNABORTED) {
                        pause_listening(listener, errno);
                        break;
                }
        }
        return 0;
}

int listener_new(sd_event *loop, int fd, int guard, PeerSet *peers, unsigned limit, const char *limit_name, bool use_spare,
                 Listener **ret)
{
        Listener *listener = calloc(1, sizeof(*listener));
        int r;

        if (!listener)
                return FAULT(-ENOMEM);
        listener->guard = -1;
        listener->peers = peers;
        listener->limit = limit;
        listener->use_spare = use_spare;
        describe_limits(listener, limit_name);
        r = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0 ? -errno : 0;
        if (r == 0)
                r = sd_event_add_io(loop, &listener->io, fd, EPOLLIN, on_connection, listener);
        if (r >= 0)
                r = sd_event_add_time_relative(loop, &listener->retry, CLOCK_MONOTONIC, 0, 0, on_retry, listener);
        if (r < 0) {
                listener_free(listener, NULL);
                return FAULT(r);
        }
        (void)sd_event_source_set_io_fd_own(listener->io, true);
        listener->guard = guard;
        *ret = listener;
        return 0;
}

Listener *listener_free(Listener *listener, const char *path)
{
        struct stat st;

        if (!listener)
                return NULL;
        sd_event_source_disable_unref(listener->io);
        sd_event_source_disable_unref(listener->retry);
        if (path && lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
                (void)unlink(path);
        close_fd(listener->guard);
        free(listener);
        return NULL;
}

int listener_fd(const Listener *listener)
{
        return sd_event_source_get_io_fd(listener->io);
}

int listener_guard_fd(const Listener *listener)
{
        return listener->guard;
}

unsigned listener_limit(const Listener *listener)
{
        return listener->limit;
}

void listener_set_limit(Listener *listener, unsigned limit, const char *limit_name)
{
        listener->limit = limit;
        describe_limits(listener, limit_name);
}

static int make_parents(const char *path)
{
        _cleanup_free_ char *copy = strdup(path);

        if (!copy)
                return FAULT(-ENOMEM);
        for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = '\0';
                if (mkdir(copy, 0755) < 0 && errno != EEXIST)
                        return FAULT(-errno);
                *slash = '/';
        }
        return 0;
}

/* Does whoever listens there also answer? A connect alone proves nothing: a process that only holds the socket takes
 * connections too. */
static bool is_served(const struct sockaddr_un *address)
{
        FrameHeader ping = {
                .length = FRAME_HEADER_SIZE,
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
        };
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        uint8_t bytes[FRAME_HEADER_SIZE];
        struct pollfd p = { .fd = fd, .events = POLLIN };

        if (fd < 0)
                return true;
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
                return errno != ECONNREFUSED && errno != ENOENT;
        frame_write_header(bytes, &ping);
        if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) != (ssize_t)sizeof(bytes))
                return false;
        if (poll(&p, 1, PING_TIMEOUT_MSEC) != 1)
                return false;
        return recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) >= 0; /* to be closed out is an answer, too */
}

/* The lock of PATH.lock: two daemons that start at one time must not both find the old socket dead. */
static int take_guard(const char *path, int *ret)
{
        char guard_path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
        _cleanup_fd_ int guard = -1;

        (void)snprintf(guard_path, sizeof(guard_path), "%s.lock", path);
        guard = open(guard_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (guard < 0)
                return FAULT(-errno);
        if (flock(guard, LOCK_EX | LOCK_NB) < 0)
                return errno == EWOULDBLOCK ? LISTENER_E_TAKEN : FAULT(-errno);
        *ret = TAKE_FD(guard);
        return 0;
}

int listener_guard(int fd, int *ret_guard)
{
        struct sockaddr_un address;
        socklen_t len = sizeof(address);

        *ret_guard = -1;
        memset(&address, 0, sizeof(address));
        if (getsockname(fd, (struct sockaddr *)&address, &len) < 0 || address.sun_path[0] != '/')
                return 0;
        return take_guard(address.sun_path, ret_guard) == LISTENER_E_TAKEN ? LISTENER_E_TAKEN : 0;
}

int listener_bind(const char *path, bool again, int *ret_fd, int *ret_guard)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_fd_ int fd = -1, guard = -1;
        struct stat st;
        int r;

        if (strlen(path) >= sizeof(address.sun_path))
                return FAULT(-ENAMETOOLONG);
        memcpy(address.sun_path, path, strlen(path) + 1);
        /* What is no socket is none of ours, whatever the configuration says. */
        if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
                return FAULT(-ENOTSOCK);
        r = make_parents(path);
        if (r < 0)
                return PASS(r);
        r = take_guard(path, &guard);
        if (r != 0 && !again)
                return PASS(r);
        if (!again && is_served(&address))
                return LISTENER_E_TAKEN;
        if (unlink(path) < 0 && errno != ENOENT)
                return FAULT(-errno);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return FAULT(-errno);
        if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, SOMAXCONN) < 0)
                return FAULT(-errno);
        *ret_fd = TAKE_FD(fd);
        *ret_guard = TAKE_FD(guard);
        return 0;
}
