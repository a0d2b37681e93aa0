/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: nothing here waits while lockd serves, and every fd that came from the holder has one owner. A process that
 * ends, or whose messages make no sense, is replaced by a fresh one.
 */
#include "holder_link.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "holder"
#include "cleanup.h"
#include "fault.h"
#include "holder/spawn.h"
#include "log.h"

#define ANSWER_MSEC 1000
#define BUSY_MSEC 3000          /* for how long the lockd before us may take to be gone */
#define RETRY_USEC (500U * 1000U)
#define DROPS_AT_ONCE 1024U
#define DROPS_ALONG 32U         /* with a message that goes anyway */
#define DROPS_USEC 2000U

struct HolderChild {
        HolderLink *link;
        char name[HOLDER_NAME_MAX + 1];
        unsigned index;
        int fd;             /* -1: no process */
        bool ready;
        bool blocked;       /* the last send found no room */
        bool asked;         /* the listener was asked for it */
        bool silent;        /* its dump has not come yet */
        pid_t pid;
        size_t n_fds, fds_max;
        uint64_t *drops;
        size_t n_drops, drops_size;
        sd_event_source *io;
};

struct HolderLink {
        sd_event *loop;
        char *dir, *program;
        HolderEvents events;
        HolderChild *children[HOLDER_CHILDREN_MAX];
        unsigned n_children;
        HolderChild *silent[HOLDER_CHILDREN_MAX];
        unsigned n_silent;
        sd_event_source *retry, *drops;
        bool drops_armed;
        bool failing; /* the listener could not be started: said once */
};

static union {
        HolderHead head;
        unsigned char bytes[HOLDER_MESSAGE_MAX];
} in;

static void forget_process(HolderChild *child)
{
        child->io = sd_event_source_disable_unref(child->io);
        child->fd = close_fd(child->fd);
        child->ready = child->blocked = child->asked = false;
        child->n_drops = child->n_fds = 0;
}

static HolderChild *child_free(HolderChild *child)
{
        if (!child)
                return NULL;
        forget_process(child);
        free(child->drops);
        free(child);
        return NULL;
}

static int child_new(HolderLink *link, const char *name, HolderChild **ret)
{
        HolderChild *child = calloc(1, sizeof(*child));

        if (!child)
                return FAULT(-ENOMEM);
        child->link = link;
        child->fd = -1;
        (void)snprintf(child->name, sizeof(child->name), "%s", name);
        *ret = child;
        return 0;
}

static int add_child(HolderLink *link, const char *name, HolderChild **ret)
{
        int r = child_new(link, name, ret);

        if (r < 0)
                return PASS(r);
        (*ret)->index = link->n_children;
        link->children[link->n_children++] = *ret;
        return 0;
}

/* ---- sending ---- */

static void want_output(HolderChild *child, bool want)
{
        child->blocked = want;
        if (child->io)
                (void)sd_event_source_set_io_events(child->io, EPOLLIN | (want ? EPOLLOUT : 0U));
}

/* A connection that fails is not closed here: its end is an event of its own. */
static int send_now(HolderChild *child, const void *bytes, size_t len, const int *fds, unsigned n_fds)
{
        static union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(HOLDER_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (child->fd < 0)
                return -ENOTCONN;
        if (n_fds > 0) {
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
                control.align = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n_fds * sizeof(int)) };
                memcpy(CMSG_DATA(&control.align), fds, n_fds * sizeof(int));
        }
        if (sendmsg(child->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
                return 0;
        if (errno == EAGAIN || errno == EINTR) {
                want_output(child, true);
                return -EAGAIN;
        }
        if (errno == ETOOMANYREFS || errno == ENOBUFS) /* too many fds are on their way */
                return -EMFILE;
        return errno == EPIPE || errno == ECONNRESET ? -ENOTCONN : FAULT(-errno);
}

static int say(HolderChild *child, uint32_t type, uint64_t value, const char *text)
{
        const uint32_t n = text ? (uint32_t)strlen(text) : 0;
        struct {
                HolderHead head;
                char text[4096];
        } message = { .head = { .type = type, .version = HOLDER_VERSION, .n = n, .value = { value } } };

        if (n > sizeof(message.text))
                return FAULT(-ENAMETOOLONG);
        if (text)
                memcpy(message.text, text, n);
        return send_now(child, &message, sizeof(message.head) + n, NULL, 0);
}

void holder_message_init(HolderMessage *message)
{
        message->len = sizeof(message->head);
        message->n = message->n_fds = 0;
}

bool holder_message_add(HolderMessage *message, const HolderObject *said, const char *record, int fd)
{
        size_t size = sizeof(*said) + holder_padded(said->length);

        if (said->length > HOLDER_RECORD_MAX || message->len + size > sizeof(message->bytes) || message->n_fds == HOLDER_FDS_MAX)
                return false;
        memcpy(message->bytes + message->len, said, sizeof(*said));
        if (record && said->length > 0)
                memcpy(message->bytes + message->len + sizeof(*said), record, said->length);
        message->len += size;
        message->n++;
        if (fd >= 0)
                message->fds[message->n_fds++] = fd;
        return true;
}

int holder_child_put(HolderChild *child, HolderMessage *message)
{
        size_t n_drops = 0;
        int r;

        if (!child->ready)
                return -ENOTCONN;
        if (child->n_fds + message->n_fds > child->fds_max)
                return -EMFILE;
        while (n_drops < child->n_drops && n_drops < DROPS_ALONG &&
               holder_message_add(message, &(HolderObject){ .id = child->drops[n_drops], .flags = HOLDER_GONE }, NULL, -1))
                n_drops++;
        message->head = (HolderHead){ .type = HOLDER_PUT, .version = HOLDER_VERSION, .n = message->n };
        r = send_now(child, message->bytes, message->len, message->fds, message->n_fds);
        if (r == 0) {
                child->n_fds += message->n_fds;
                child->n_drops -= n_drops;
                memmove(child->drops, child->drops + n_drops, child->n_drops * sizeof(*child->drops));
        }
        return r;
}

int holder_child_reserve(HolderChild *child)
{
        uint64_t *larger;
        size_t size;

        /* Everything that it has could have to be dropped at one time: as many again as are waiting is enough, since
         * a full queue is sent. */
        if (child->n_drops + DROPS_AT_ONCE <= child->drops_size)
                return 0;
        size = child->drops_size * 2 + 2U * DROPS_AT_ONCE;
        larger = reallocarray(child->drops, size, sizeof(*larger));
        if (!larger)
                return FAULT(-ENOMEM);
        child->drops = larger;
        child->drops_size = size;
        return 0;
}

/* 0, -EAGAIN, ... */
static int send_drops(HolderChild *child)
{
        static struct {
                HolderHead head;
                uint64_t ids[DROPS_AT_ONCE];
        } message;

        while (child->n_drops > 0) {
                size_t n = child->n_drops < DROPS_AT_ONCE ? child->n_drops : DROPS_AT_ONCE;
                int r;

                message.head = (HolderHead){ .type = HOLDER_DROP, .version = HOLDER_VERSION, .n = (uint32_t)n };
                memcpy(message.ids, child->drops, n * sizeof(*child->drops));
                r = send_now(child, &message, sizeof(message.head) + n * sizeof(*child->drops), NULL, 0);
                if (r < 0)
                        return r;
                child->n_drops -= n;
                memmove(child->drops, child->drops + n, child->n_drops * sizeof(*child->drops));
        }
        return 0;
}

void holder_child_drop(HolderChild *child, uint64_t id, bool had_fd)
{
        HolderLink *link = child->link;

        if (child->fd < 0)
                return; /* nobody has it */
        if (had_fd && child->n_fds > 0)
                child->n_fds--;
        if (child->n_drops == child->drops_size && send_drops(child) < 0 && holder_child_reserve(child) < 0) {
                log_error("no memory to tell the holder that it may forget %llx", (unsigned long long)id);
                return;
        }
        if (child->n_drops == child->drops_size && holder_child_reserve(child) < 0)
                return;
        child->drops[child->n_drops++] = id;
        /* In a moment, or along with the next message: one does for many. */
        if (!link->drops_armed) {
                link->drops_armed = true;
                (void)sd_event_source_set_time_relative(link->drops, DROPS_USEC);
                (void)sd_event_source_set_enabled(link->drops, SD_EVENT_ONESHOT);
        }
}

static int on_drops(sd_event_source *source, uint64_t usec, void *userdata)
{
        HolderLink *link = userdata;

        (void)source;
        (void)usec;
        link->drops_armed = false;
        holder_link_flush(link, false);
        return 0;
}

void holder_link_flush(HolderLink *link, bool wait)
{
        for (unsigned i = 0; i < link->n_children; i++) {
                HolderChild *child = link->children[i];
                struct pollfd p = { .fd = child->fd, .events = POLLOUT };

                if (send_drops(child) == -EAGAIN && wait && poll(&p, 1, ANSWER_MSEC) == 1)
                        (void)send_drops(child);
        }
}

void holder_link_move(HolderLink *link, const char *program)
{
        for (unsigned i = 0; i < link->n_children; i++)
                if (link->children[i]->ready && say(link->children[i], HOLDER_MOVE, 0, program) < 0)
                        log_error("holder process %d is too busy to be moved", (int)link->children[i]->pid);
}

/* ---- receiving ---- */

/* n bytes, 0: it has ended, -EAGAIN, -errno. fds beyond those that the caller takes are its to close. */
static ssize_t receive(int fd, int *fds, unsigned *ret_n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(HOLDER_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = in.bytes, .iov_len = sizeof(in.bytes) };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        *ret_n_fds = 0;
        if (n < 0)
                return -errno;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                        *ret_n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
                        memcpy(fds, CMSG_DATA(c), *ret_n_fds * sizeof(int));
                }
        if (n > 0 && ((message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) || n < (ssize_t)sizeof(in.head))) {
                for (unsigned i = 0; i < *ret_n_fds; i++)
                        close_fd(fds[i]);
                return FAULT(message.msg_flags & MSG_CTRUNC ? -EMFILE : -EBADMSG);
        }
        return n;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata);

static int attach(HolderChild *child, int fd)
{
        int r;

        child->fd = fd;
        r = sd_event_add_io(child->link->loop, &child->io, fd, EPOLLIN, on_io, child);
        if (r < 0) {
                child->fd = close_fd(fd);
                return FAULT(r);
        }
        return 0;
}

static void note_welcome(HolderChild *child)
{
        child->pid = (pid_t)in.head.value[0];
        child->fds_max = in.head.value[1] ? in.head.value[1] : SIZE_MAX;
}

static void become_ready(HolderChild *child)
{
        child->ready = true;
        want_output(child, false);
        log_debug("holder process %d for %s is ready", (int)child->pid, child->name);
        child->link->events.ready(child, child->link->events.userdata);
}

static void retry_later(HolderLink *link)
{
        (void)sd_event_source_set_time_relative(link->retry, RETRY_USEC);
        (void)sd_event_source_set_enabled(link->retry, SD_EVENT_ONESHOT);
}

static void ask_for_children(HolderLink *link)
{
        HolderChild *listener = link->children[0];

        for (unsigned i = 1; listener->ready && i < link->n_children; i++) {
                HolderChild *child = link->children[i];

                if (child->fd >= 0 || child->asked)
                        continue;
                child->asked = say(listener, HOLDER_FORK, 0, child->name) == 0;
                if (!child->asked)
                        retry_later(link);
        }
}

static void take_child(HolderLink *link, ssize_t len, int *fd)
{
        char name[HOLDER_NAME_MAX + 1] = "";

        if (in.head.n <= HOLDER_NAME_MAX && sizeof(in.head) + in.head.n <= (size_t)len)
                memcpy(name, in.bytes + sizeof(in.head), in.head.n);
        for (unsigned i = 1; i < link->n_children && *fd >= 0; i++)
                if (link->children[i]->fd < 0 && strcmp(link->children[i]->name, name) == 0)
                        (void)attach(link->children[i], TAKE_FD(*fd));
        if (in.head.error != 0) {
                log_error("the holder has no process for %s: %s", log_name(name), strerror(in.head.error));
                for (unsigned i = 1; i < link->n_children; i++)
                        link->children[i]->asked = false;
                retry_later(link);
        }
}

static void tell_refused(HolderChild *child, ssize_t len)
{
        const uint64_t *ids = (const uint64_t *)(const void *)(in.bytes + sizeof(in.head));
        const int error = in.head.error;
        const uint32_t n = in.head.n;

        for (uint32_t i = 0; i < n && sizeof(in.head) + (i + 1) * sizeof(*ids) <= (size_t)len; i++)
                child->link->events.refused(child, ids[i], error, child->link->events.userdata);
}

static void start_listener(HolderLink *link);

static void process_gone(HolderChild *child)
{
        HolderLink *link = child->link;

        if (!child->silent)
                log_warning("holder process %d for %s has ended: it is replaced", (int)child->pid, child->name);
        forget_process(child);
        if (child->silent)
                return;
        link->events.gone(child, link->events.userdata);
        if (child->index == 0) {
                for (unsigned i = 1; i < link->n_children; i++)
                        link->children[i]->asked = false;
                start_listener(link);
        } else
                ask_for_children(link);
}

/* One that was silent: its dump is not for us any more, but for the next image of this program. */
static void hear_late(HolderChild *child)
{
        log_warning("holder process %d for %s answers now", (int)child->pid, child->name);
        forget_process(child);
        child->link->events.late(child->link->events.userdata);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        HolderChild *child = userdata;
        int fds[HOLDER_FDS_MAX];
        unsigned n_fds = 0;
        ssize_t n;

        (void)source;
        if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                n = receive(fd, fds, &n_fds);
                if (n <= 0 && n != -EAGAIN && n != -EINTR) {
                        process_gone(child);
                        return 0;
                }
                if (n > 0) {
                        if (child->silent) {
                                hear_late(child);
                                in.head.type = 0;
                        }
                        switch (in.head.type) {
                        case HOLDER_WELCOME:
                                note_welcome(child);
                                break;
                        case HOLDER_END:
                                become_ready(child);
                                if (child->index == 0)
                                        ask_for_children(child->link);
                                break;
                        case HOLDER_CHILD:
                                take_child(child->link, n, n_fds > 0 ? &fds[0] : &(int){ -1 });
                                break;
                        case HOLDER_REFUSED:
                                tell_refused(child, n);
                                break;
                        case HOLDER_MOVED:
                                if (in.head.error != 0)
                                        log_error("holder process %d goes on as it is: %s", (int)child->pid, strerror(in.head.error));
                                else
                                        log_info("holder process %d is a fresh image of its program", (int)child->pid);
                                break;
                        default:
                                break;
                        }
                        for (unsigned i = 0; i < n_fds; i++)
                                close_fd(fds[i]); /* what was taken is -1 */
                }
        }
        if (child->fd >= 0 && (revents & EPOLLOUT) && child->blocked) {
                want_output(child, false);
                if (send_drops(child) == 0 && child->ready)
                        child->link->events.ready(child, child->link->events.userdata);
        }
        return 0;
}

/* ---- the start ---- */

static int connect_to(const char *dir, const char *name, int *ret)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        const HolderHead hello = { .type = HOLDER_HELLO, .version = HOLDER_VERSION, .value = { HOLDER_ROLE_LOCKD } };

        if (fd < 0)
                return FAULT(-errno);
        if (snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", dir, name) >= (int)sizeof(address.sun_path))
                return FAULT(-ENAMETOOLONG);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return FAULT(-errno);
        if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                return FAULT(-errno);
        *ret = TAKE_FD(fd);
        return 0;
}

static int connect_listener(HolderLink *link, int *ret)
{
        int r = connect_to(link->dir, HOLDER_SOCKET, ret);

        if ((r == -ENOENT || r == -ECONNREFUSED) && link->program) {
                r = holder_spawn(link->dir, link->program);
                if (r == 0 || r == -EADDRINUSE)
                        r = connect_to(link->dir, HOLDER_SOCKET, ret);
        }
        return PASS(r);
}

/* While lockd serves: its WELCOME comes as an event. */
static void start_listener(HolderLink *link)
{
        int fd = -1, r;

        if (link->children[0]->fd >= 0)
                return;
        r = connect_listener(link, &fd);
        if (r == 0)
                r = attach(link->children[0], fd);
        if (r < 0) {
                if (!link->failing)
                        log_error("lockd-holder cannot be started: %s (%s); a crash of lockd would lose its locks", strerror(-r), fault_trail());
                link->failing = true;
                retry_later(link);
        } else
                link->failing = false;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
        HolderLink *link = userdata;

        (void)source;
        (void)usec;
        start_listener(link);
        ask_for_children(link);
        return 0;
}

static int add_found(HolderChild *child, const unsigned char *at, const unsigned char *end, int *fds, unsigned n_fds, HolderFound **ret)
{
        unsigned used = 0;

        while ((size_t)(end - at) >= sizeof(HolderObject)) {
                HolderFound *found;
                HolderObject said;

                memcpy(&said, at, sizeof(said));
                if ((size_t)(end - at) - sizeof(said) < holder_padded(said.length) || ((said.flags & HOLDER_HAS_FD) && used == n_fds))
                        return FAULT(-EBADMSG);
                found = malloc(sizeof(*found) + said.length + 1);
                if (!found)
                        return FAULT(-ENOMEM);
                *found = (HolderFound){ .next = *ret, .child = child, .said = said, .fd = -1 };
                memcpy(found->record, at + sizeof(said), said.length);
                found->record[said.length] = '\0';
                if (said.flags & HOLDER_HAS_FD) {
                        found->fd = fds[used];
                        fds[used++] = -1;
                }
                *ret = found;
                child->n_fds += found->fd >= 0;
                at += sizeof(said) + holder_padded(said.length);
        }
        return 0;
}

/* The dump of one process. 0, HOLDER_LINK_E_BUSY with its pid, -ETIMEDOUT: it is silent, or -errno. */
static int take_dump(HolderChild *child, int fd, HolderFound **ret, pid_t *ret_busy)
{
        struct pollfd p = { .fd = fd, .events = POLLIN };
        HolderFound *before = *ret;
        uint32_t expected = 0, n = 0;
        int r = 0;

        for (;;) {
                int fds[HOLDER_FDS_MAX];
                unsigned n_fds = 0;
                ssize_t len;

                if (poll(&p, 1, ANSWER_MSEC) != 1)
                        r = -ETIMEDOUT;
                else {
                        len = receive(fd, fds, &n_fds);
                        if (len <= 0)
                                r = len == 0 ? -ECONNRESET : (int)len;
                        else if (in.head.type == HOLDER_WELCOME) {
                                note_welcome(child);
                                expected = in.head.n;
                        } else if (in.head.type == HOLDER_OBJECTS) {
                                n += in.head.n;
                                r = add_found(child, in.bytes + sizeof(in.head), in.bytes + len, fds, n_fds, ret);
                        } else if (in.head.type == HOLDER_BUSY) {
                                *ret_busy = (pid_t)in.head.value[0];
                                return HOLDER_LINK_E_BUSY;
                        } else if (in.head.type == HOLDER_END && n != expected)
                                r = FAULT(-EBADMSG);
                        for (unsigned i = 0; i < n_fds; i++)
                                close_fd(fds[i]);
                        if (r == 0 && in.head.type == HOLDER_END)
                                return 0;
                }
                if (r < 0)
                        break;
        }
        while (*ret != before) {
                HolderFound *next = (*ret)->next;

                close_fd((*ret)->fd);
                free(*ret);
                *ret = next;
        }
        return r;
}

static int64_t now_msec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The lockd before us may take a moment to be gone, when it was killed. */
static int ask_process(HolderLink *link, HolderChild *child, const char *file, int fd, HolderFound **ret, pid_t *ret_busy)
{
        const int64_t end = now_msec() + BUSY_MSEC;
        int r;

        while ((r = take_dump(child, fd, ret, ret_busy)) == HOLDER_LINK_E_BUSY && now_msec() < end) {
                close_fd(fd);
                (void)poll(NULL, 0, 20);
                r = connect_to(link->dir, file, &fd);
                if (r < 0)
                        return PASS(r);
        }
        if (r == 0) {
                r = attach(child, fd);
                child->ready = r == 0;
                return PASS(r);
        }
        if (r == -ETIMEDOUT && link->n_silent < HOLDER_CHILDREN_MAX) {
                HolderChild *silent = NULL;

                if (child_new(link, child->name, &silent) == 0) {
                        silent->silent = true;
                        silent->pid = child->pid;
                        if (attach(silent, fd) == 0)
                                link->silent[link->n_silent++] = silent;
                        else
                                child_free(silent);
                        return -ETIMEDOUT;
                }
        }
        close_fd(fd);
        return r;
}

/* A file NAME.PID in the folder. */
static int collect_child(HolderLink *link, const char *file, HolderFound **ret, unsigned *silent, pid_t *ret_busy)
{
        char name[HOLDER_NAME_MAX + 1];
        HolderChild *child = NULL;
        const char *dot = strrchr(file, '.');
        int fd, r;

        if (!dot || (size_t)(dot - file) > HOLDER_NAME_MAX)
                return 0;
        (void)snprintf(name, sizeof(name), "%.*s", (int)(dot - file), file);
        r = connect_to(link->dir, file, &fd);
        if (r == -ECONNREFUSED) { /* its process is gone */
                char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];

                (void)snprintf(path, sizeof(path), "%s/%s", link->dir, file);
                (void)unlink(path);
                return 0;
        }
        if (r < 0) {
                log_error("holder socket %s: %s (%s)", log_name(file), strerror(-r), fault_trail());
                (*silent)++;
                return 0;
        }
        /* Two may bear one name: when the first was silent once. */
        for (unsigned i = 1; i < link->n_children; i++)
                if (strcmp(link->children[i]->name, name) == 0 && link->children[i]->fd < 0)
                        child = link->children[i];
        if (!child && link->n_children < HOLDER_CHILDREN_MAX)
                r = add_child(link, name, &child);
        if (!child) {
                close_fd(fd);
                (*silent)++;
                return 0;
        }
        child->pid = atoi(dot + 1);
        r = ask_process(link, child, file, fd, ret, ret_busy);
        if (r == HOLDER_LINK_E_BUSY)
                return r;
        if (r < 0) {
                log_error("holder process %d for %s does not answer (%s): it keeps its locks, and is heard when it does", (int)child->pid,
                          name, strerror(-r));
                (*silent)++;
        }
        return 0;
}

static int make_folder(const char *dir)
{
        _cleanup_free_ char *path = strdup(dir);
        struct stat st;

        if (!path)
                return FAULT(-ENOMEM);
        for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = '\0';
                if (mkdir(path, 0755) < 0 && errno != EEXIST)
                        return FAULT(-errno);
                *slash = '/';
        }
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
                return FAULT(-errno);
        if (lstat(path, &st) < 0)
                return FAULT(-errno);
        return S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 022) ? 0 : FAULT(-EPERM);
}

int holder_link_collect(HolderLink *link, HolderFound **ret, unsigned *ret_silent, pid_t *ret_busy)
{
        struct dirent *entry;
        DIR *dir;
        int fd, r;

        *ret = NULL;
        *ret_silent = 0;
        r = make_folder(link->dir);
        if (r < 0)
                return PASS(r);
        dir = opendir(link->dir);
        if (!dir)
                return FAULT(-errno);
        while (r == 0 && (entry = readdir(dir)))
                if (*entry->d_name != '.' && entry->d_type == DT_SOCK && strcmp(entry->d_name, HOLDER_SOCKET) != 0)
                        r = collect_child(link, entry->d_name, ret, ret_silent, ret_busy);
        closedir(dir);
        if (r == 0) {
                r = connect_listener(link, &fd);
                if (r == 0)
                        r = ask_process(link, link->children[0], HOLDER_SOCKET, fd, ret, ret_busy);
                link->failing = r < 0;
                if (r < 0)
                        retry_later(link);
        }
        return PASS(r);
}

void holder_found_free(HolderFound *found)
{
        while (found) {
                HolderFound *next = found->next;

                close_fd(found->fd);
                free(found);
                found = next;
        }
}

int holder_link_new(sd_event *loop, const char *dir, const char *program, const HolderEvents *events, HolderLink **ret)
{
        HolderLink *link = calloc(1, sizeof(*link));
        HolderChild *listener;
        int r;

        if (!link)
                return FAULT(-ENOMEM);
        link->loop = loop;
        link->events = *events;
        link->dir = strdup(dir);
        link->program = program ? strdup(program) : NULL;
        r = link->dir && (!program || link->program) ? add_child(link, "listener", &listener) : FAULT(-ENOMEM);
        if (r == 0)
                r = sd_event_add_time_relative(loop, &link->retry, CLOCK_MONOTONIC, 0, 0, on_retry, link);
        if (r >= 0)
                r = sd_event_source_set_enabled(link->retry, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_add_time_relative(loop, &link->drops, CLOCK_MONOTONIC, 0, DROPS_USEC, on_drops, link);
        if (r >= 0)
                r = sd_event_source_set_enabled(link->drops, SD_EVENT_OFF);
        if (r < 0) {
                holder_link_free(link);
                return PASS(r);
        }
        *ret = link;
        return 0;
}

HolderLink *holder_link_free(HolderLink *link)
{
        if (!link)
                return NULL;
        sd_event_source_disable_unref(link->retry);
        sd_event_source_disable_unref(link->drops);
        for (unsigned i = 0; i < link->n_children; i++)
                child_free(link->children[i]);
        for (unsigned i = 0; i < link->n_silent; i++)
                child_free(link->silent[i]);
        free(link->dir);
        free(link->program);
        free(link);
        return NULL;
}

/* ---- children ---- */

HolderChild *holder_link_child(HolderLink *link, const char *name)
{
        HolderChild *child = NULL;

        for (unsigned i = 1; !child && i < link->n_children; i++)
                if (strcmp(link->children[i]->name, name) == 0)
                        child = link->children[i];
        if (!child && (link->n_children == HOLDER_CHILDREN_MAX || add_child(link, name, &child) < 0))
                child = link->children[link->n_children - 1];
        if (child->fd < 0)
                ask_for_children(link); /* it is new, or one was silent at the start */
        return child;
}

bool holder_link_failing(const HolderLink *link)
{
        return link->failing;
}

HolderChild *holder_link_listener(HolderLink *link)
{
        return link->children[0];
}

HolderChild *holder_link_next(HolderLink *link, const HolderChild *previous)
{
        unsigned next = previous ? previous->index + 1 : 0;

        return next < link->n_children ? link->children[next] : NULL;
}

bool holder_child_ready(const HolderChild *child)
{
        return child->ready;
}

uint64_t holder_child_bit(const HolderChild *child)
{
        return UINT64_C(1) << child->index;
}

const char *holder_child_name(const HolderChild *child)
{
        return child->name;
}

pid_t holder_child_pid(const HolderChild *child)
{
        return child->pid;
}
