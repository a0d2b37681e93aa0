/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockd-holder: keeps what lockd would lose by its end.
 *
 * Invariant: an fd that was taken in is closed only when lockd said so (DROP), or when its owner is dead by both signs (see
 * has_died) and no lockd has been there for a minute. This process does not end while it keeps anything. It never locks and
 * never unlocks; it refuses to know what is in a record. Memory that is not there costs the new object, which lockd is told,
 * never an old one.
 *
 * The listener waits at a socket that everybody knows, and makes children: one for each file system, so that who kills all
 * users of one file system does not reach the locks on another. Every one of them, the listener too, is this one loop: a
 * table of objects, at most one lockd, callers that have not yet said who they are. A lockd that comes finds what the one
 * before it left: its last messages are read to their end before the dump begins.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "exit_codes.h"
#include "hash.h"
#include "holder_protocol.h"
#include "holder_tool.h"

#define CALLERS_MAX 8U
#define IDLE_MSEC 3000       /* nothing kept and nobody connected: it ends */
#define IDLE_LOOK_MSEC 500
#define ALONE_MSEC 60000     /* without a lockd: the dead are let go of */
#define LOOK_MSEC 5000       /* how often, then */
#define NAP_MSEC 1
#define FDS_RESERVED 32U
#define RESUME_MAGIC 0x6c6f636b64686f6cULL

typedef struct Object {
        UT_hash_handle hh;
        HolderObject said;
        int fd;
        bool marked;
        unsigned char *record;
} Object;

static Object *objects;
static size_t n_held; /* of them, those that are a reason to stay: lockspaces are not */
static int listener = -1, lockd = -1, callers[CALLERS_MAX];
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static bool is_child, owns_socket;
static Object *dump_next;      /* while a dump is under way; then nothing else is read */
static bool dumping, draining;
static int64_t alone_since, alone_msec = ALONE_MSEC;
static volatile sig_atomic_t told_to_end;
static union {
        HolderHead head;
        unsigned char bytes[HOLDER_MESSAGE_MAX];
} in, out;

static int64_t now_msec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_BOOTTIME, &now);
        return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static Object *find(uint64_t id)
{
        Object *object;

        HASH_FIND(hh, objects, &id, sizeof(id), object);
        return object;
}

static void forget(Object *object)
{
        HASH_DEL(objects, object);
        n_held -= HOLDER_KIND(object->said.id) != HOLDER_LOCKSPACE;
        close_fd(object->fd);
        free(object->record);
        free(object);
}

/* Waits a second at most: who reads that slowly learns it by the end of the connection. */
static int send_message(int fd, const void *bytes, size_t len, int *fds, unsigned n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(HOLDER_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        struct pollfd p = { .fd = fd, .events = POLLOUT };

        if (n_fds > 0) {
                memset(&control, 0, sizeof(control));
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
                control.align = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n_fds * sizeof(int)) };
                memcpy(CMSG_DATA(&control.align), fds, n_fds * sizeof(int));
        }
        while (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
                if (errno != EAGAIN && errno != EINTR)
                        return -errno;
                if (errno == EAGAIN && poll(&p, 1, 1000) == 0)
                        return -EAGAIN;
        }
        return 0;
}

static int reply(int fd, uint32_t type, int error, uint64_t a, uint64_t b)
{
        const HolderHead head = { .type = type, .version = HOLDER_VERSION, .error = error, .value = { a, b } };

        return send_message(fd, &head, sizeof(head), NULL, 0);
}

/* ---- what is kept ---- */

/* 0, or why not: nothing has changed then. */
static int keep(const HolderObject *said, const unsigned char *record, int fd)
{
        Object *old = find(said->id), *object = old ? old : calloc(1, sizeof(*object));
        unsigned char *copy = NULL;

        if (old && fd >= 0)
                return EEXIST;
        if (!object)
                return ENOMEM;
        if (!(said->flags & HOLDER_SAME)) {
                copy = malloc(said->length ? said->length : 1);
                if (!copy) {
                        if (!old)
                                free(object);
                        return ENOMEM;
                }
                memcpy(copy, record, said->length);
        }
        if (!old) {
                object->said.id = said->id;
                HASH_ADD(hh, objects, said.id, sizeof(object->said.id), object);
                if (!hash_added(object)) {
                        free(copy);
                        free(object);
                        return ENOMEM;
                }
                object->fd = fd;
                n_held += HOLDER_KIND(said->id) != HOLDER_LOCKSPACE;
        }
        object->said.owner = said->owner;
        object->said.lease = said->lease;
        object->said.flags = (object->fd >= 0 ? HOLDER_HAS_FD : 0) | (said->flags & HOLDER_RELEASING);
        if (copy) {
                free(object->record);
                object->record = copy;
                object->said.length = said->length;
        }
        return 0;
}

/* The next object of a message with its record in *ret_record, NULL at the end or when the rest makes no sense. */
static const HolderObject *next_object(const unsigned char **at, const unsigned char *end, const unsigned char **ret_record)
{
        const HolderObject *said = (const HolderObject *)(const void *)*at;

        if ((size_t)(end - *at) < sizeof(*said) || said->length > HOLDER_RECORD_MAX ||
            (size_t)(end - *at) - sizeof(*said) < holder_padded(said->length))
                return NULL;
        *ret_record = *at + sizeof(*said);
        *at += sizeof(*said) + holder_padded(said->length);
        return said;
}

static void tell_refused(const uint64_t *ids, uint32_t n, int error)
{
        out.head = (HolderHead){ .type = HOLDER_REFUSED, .version = HOLDER_VERSION, .n = n, .error = error };
        memcpy(out.bytes + sizeof(out.head), ids, n * sizeof(*ids));
        (void)send_message(lockd, out.bytes, sizeof(out.head) + n * sizeof(*ids), NULL, 0);
}

/* damaged: not all of the message or of its fds came, so that nobody knows which fd is whose. */
static void take_in(size_t len, int *fds, unsigned n_fds, bool damaged)
{
        static uint64_t refused[HOLDER_MESSAGE_MAX / sizeof(HolderObject)];
        const unsigned char *at = in.bytes + sizeof(in.head), *end = in.bytes + len, *record;
        uint32_t n = 0, used = 0, wanted = 0;
        const HolderObject *said;
        int error = 0;

        while ((said = next_object(&at, end, &record)))
                wanted += said->flags & HOLDER_HAS_FD;
        damaged = damaged || wanted != n_fds;
        for (at = in.bytes + sizeof(in.head); (said = next_object(&at, end, &record));) {
                int *fd = !damaged && (said->flags & HOLDER_HAS_FD) ? &fds[used++] : NULL;
                Object *gone = said->flags & HOLDER_GONE ? find(said->id) : NULL;
                int r = said->flags & HOLDER_GONE ? 0 : damaged ? EMFILE : keep(said, record, fd ? *fd : -1);

                if (gone)
                        forget(gone);
                if (r == 0 && fd)
                        *fd = -1;
                if (r != 0) {
                        error = r;
                        refused[n++] = said->id;
                }
        }
        if (n > 0)
                tell_refused(refused, n, error);
}

static void drop(size_t len)
{
        const uint64_t *ids = (const uint64_t *)(const void *)(in.bytes + sizeof(in.head));

        for (uint32_t i = 0; i < in.head.n && (i + 1) * sizeof(*ids) <= len - sizeof(in.head); i++) {
                Object *object = find(ids[i]);

                if (object)
                        forget(object);
        }
}

/* ---- death, when there is no lockd ---- */

static bool polls(int fd, short events)
{
        struct pollfd p = { .fd = fd, .events = events };

        return poll(&p, 1, 0) == 1 && (p.revents & events);
}

/* The process has ended, and all who had a connection of its own have closed it. */
static bool has_died(const Object *owner)
{
        if (owner->fd < 0 || !polls(owner->fd, POLLIN))
                return false;
        for (Object *o = objects; o; o = o->hh.next)
                if (HOLDER_KIND(o->said.id) == HOLDER_PEER && o->said.owner == owner->said.id && o->fd >= 0 && !polls(o->fd, POLLHUP))
                        return false;
        return true;
}

static unsigned let_dead_go(void)
{
        Object *object, *next;
        unsigned n = 0;

        HASH_ITER(hh, objects, object, next)
                object->marked = HOLDER_KIND(object->said.id) == HOLDER_OWNER && has_died(object);
        HASH_ITER(hh, objects, object, next) {
                Object *owner = object->said.owner ? find(object->said.owner) : NULL;

                if (owner && owner->marked) {
                        Object *lease = object->said.lease ? find(object->said.lease) : NULL;

                        if (lease)
                                lease->marked = true; /* it may have been the last */
                        forget(object);
                }
        }
        HASH_ITER(hh, objects, object, next) {
                Object *lease = object->said.lease ? find(object->said.lease) : NULL;

                if (lease)
                        lease->marked = false;
        }
        HASH_ITER(hh, objects, object, next)
                if (object->marked) {
                        n += HOLDER_KIND(object->said.id) == HOLDER_LEASE;
                        forget(object);
                }
        return n;
}

/* ---- children ---- */

static void unlink_own_socket(void)
{
        if (owns_socket)
                (void)unlink(address.sun_path);
        owns_socket = false;
}

static int open_socket(void)
{
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)unlink(address.sun_path);
        if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 16) < 0)
                return -errno;
        owns_socket = true;
        return 0;
}

/* In the child: nothing of what the listener had stays. */
static void become_child(int connection, const char *name)
{
        char *slash = strrchr(address.sun_path, '/');
        Object *object, *next;
        int fd;

        HASH_ITER(hh, objects, object, next) {
                object->fd = -1; /* closed below, with all the rest */
                forget(object);
        }
        fd = fcntl(connection, F_DUPFD_CLOEXEC, 3);
        if (fd > 3)
                (void)close_range(3, (unsigned)fd - 1, 0);
        (void)close_range((unsigned)fd + 1, ~0U, 0);
        lockd = fd;
        memset(callers, -1, sizeof(callers));
        is_child = true;
        owns_socket = dumping = false;
        (void)snprintf(slash + 1, sizeof(address.sun_path) - (size_t)(slash + 1 - address.sun_path), "%s.%d", name, (int)getpid());
        if (open_socket() < 0)
                _exit(EXIT_CANTCREAT);
        (void)reply(lockd, HOLDER_WELCOME, 0, (uint64_t)getpid(), 0);
        (void)reply(lockd, HOLDER_END, 0, 0, 0);
}

static void make_child(size_t len)
{
        char name[HOLDER_NAME_MAX + 1] = "";
        int pair[2];
        pid_t pid;

        if (draining)
                return; /* who asked for it is gone */
        if (is_child || in.head.n > HOLDER_NAME_MAX || in.head.n != len - sizeof(in.head)) {
                (void)reply(lockd, HOLDER_CHILD, EINVAL, 0, 0);
                return;
        }
        memcpy(name, in.bytes + sizeof(in.head), in.head.n);
        if (strchr(name, '/') || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
                (void)reply(lockd, HOLDER_CHILD, EINVAL, 0, 0);
                return;
        }
        pid = fork();
        if (pid == 0) {
                become_child(pair[0], name);
                return;
        }
        out.head = (HolderHead){ .type = HOLDER_CHILD, .version = HOLDER_VERSION, .n = in.head.n, .error = pid < 0 ? errno : 0,
                                 .value = { pid < 0 ? 0 : (uint64_t)pid } };
        memcpy(out.bytes + sizeof(out.head), name, in.head.n);
        (void)send_message(lockd, out.bytes, sizeof(out.head) + in.head.n, &pair[1], pid < 0 ? 0 : 1);
        close_fd(pair[0]);
        close_fd(pair[1]);
}

/* ---- a fresh image of the program ---- */

typedef struct Resume {
        uint64_t magic;
        int32_t listener, lockd;
        uint32_t is_child, owns_socket, n;
        int64_t alone_msec;
        char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
} Resume;

static int write_all(int fd, const void *bytes, size_t len)
{
        for (size_t done = 0; done < len;) {
                ssize_t n = write(fd, (const char *)bytes + done, len - done);

                if (n <= 0)
                        return n < 0 ? -errno : -EIO;
                done += (size_t)n;
        }
        return 0;
}

static int write_state(int fd)
{
        Resume resume = { .magic = RESUME_MAGIC, .listener = listener, .lockd = lockd, .is_child = is_child, .owns_socket = owns_socket,
                          .n = HASH_COUNT(objects), .alone_msec = alone_msec };
        int r;

        memcpy(resume.path, address.sun_path, sizeof(resume.path));
        r = write_all(fd, &resume, sizeof(resume));
        for (Object *o = objects; r == 0 && o; o = o->hh.next) {
                r = write_all(fd, &o->said, sizeof(o->said));
                if (r == 0)
                        r = write_all(fd, &o->fd, sizeof(o->fd));
                if (r == 0)
                        r = write_all(fd, o->record, o->said.length);
        }
        return r == 0 && lseek(fd, 0, SEEK_SET) < 0 ? -errno : r;
}

static bool read_all(int fd, void *bytes, size_t len)
{
        for (size_t done = 0; done < len;) {
                ssize_t n = read(fd, (char *)bytes + done, len - done);

                if (n <= 0)
                        return false;
                done += (size_t)n;
        }
        return true;
}

/* What cannot be read stays open, without a name: it is kept. */
static bool read_state(int fd)
{
        Resume resume;
        HolderObject said;
        int object_fd;

        if (!read_all(fd, &resume, sizeof(resume)) || resume.magic != RESUME_MAGIC)
                return false;
        listener = resume.listener;
        lockd = resume.lockd;
        is_child = resume.is_child;
        owns_socket = resume.owns_socket;
        alone_msec = resume.alone_msec;
        memcpy(address.sun_path, resume.path, sizeof(resume.path));
        while (resume.n-- > 0 && read_all(fd, &said, sizeof(said)) && read_all(fd, &object_fd, sizeof(object_fd)) &&
               said.length <= HOLDER_RECORD_MAX && read_all(fd, in.bytes, said.length))
                (void)keep(&said, in.bytes, object_fd);
        (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
        close_fd(fd);
        return true;
}

/* Can that program read our state? It is asked before it is trusted. */
static int try_program(const char *path)
{
        char *const argv[] = { (char *)(uintptr_t) "lockd-holder", (char *)(uintptr_t) "--can-resume=1", NULL };
        int status = -1, waited = 0;
        pid_t pid;

        (void)signal(SIGCHLD, SIG_DFL);
        pid = fork();
        if (pid == 0) {
                (void)close_range(3, ~0U, 0);
                (void)execv(path, argv);
                _exit(127);
        }
        for (; pid > 0 && waited < 2000 && waitpid(pid, &status, WNOHANG) == 0; waited += 5)
                (void)poll(NULL, 0, 5);
        if (pid > 0 && waited >= 2000) {
                (void)kill(pid, SIGKILL);
                (void)waitpid(pid, &status, 0);
        }
        (void)signal(SIGCHLD, SIG_IGN);
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ENOEXEC;
}

static void move_to(size_t len)
{
        char path[4096] = "", number[32];
        _cleanup_fd_ int fd = -1;
        int r = -EINVAL;

        if (in.head.n < sizeof(path) && in.head.n == len - sizeof(in.head)) {
                memcpy(path, in.bytes + sizeof(in.head), in.head.n);
                r = try_program(path);
        }
        if (r == 0) {
                fd = memfd_create("lockd-holder", 0);
                r = fd < 0 ? -errno : write_state(fd);
        }
        if (r == 0) {
                char *const argv[] = { (char *)(uintptr_t) "lockd-holder", (char *)(uintptr_t) "--resume", number, NULL };

                (void)snprintf(number, sizeof(number), "%d", fd);
                for (Object *o = objects; o; o = o->hh.next)
                        if (o->fd >= 0)
                                (void)fcntl(o->fd, F_SETFD, 0);
                (void)fcntl(listener, F_SETFD, 0);
                (void)fcntl(lockd, F_SETFD, 0);
                (void)execv(path, argv);
                r = -errno;
                (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
        }
        (void)reply(lockd, HOLDER_MOVED, -r, (uint64_t)getpid(), 0);
}

/* ---- the dump ---- */

/* Some objects as one message. Returns where the next one begins. */
static Object *send_some(int fd, Object *from, bool with_fds)
{
        int fds[HOLDER_FDS_MAX];
        size_t len = sizeof(out.head);
        uint32_t n = 0;
        unsigned n_fds = 0;

        for (; from && n_fds < HOLDER_FDS_MAX && len < HOLDER_BATCH && len + sizeof(HolderObject) + holder_padded(from->said.length) <= sizeof(out.bytes);
             from = from->hh.next, n++) {
                memcpy(out.bytes + len, &from->said, sizeof(from->said));
                memcpy(out.bytes + len + sizeof(from->said), from->record, from->said.length);
                len += sizeof(from->said) + holder_padded(from->said.length);
                if (from->fd >= 0 && with_fds)
                        fds[n_fds++] = from->fd;
        }
        out.head = (HolderHead){ .type = HOLDER_OBJECTS, .version = HOLDER_VERSION, .n = n };
        return send_message(fd, out.bytes, len, fds, n_fds) < 0 ? NULL : from;
}

static unsigned fd_room(void)
{
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > INT32_MAX)
                return INT32_MAX;
        return (unsigned)limit.rlim_cur - FDS_RESERVED;
}

static int welcome(int fd)
{
        const HolderHead head = { .type = HOLDER_WELCOME, .version = HOLDER_VERSION, .n = HASH_COUNT(objects),
                                  .value = { (uint64_t)getpid(), fd_room() } };

        return send_message(fd, &head, sizeof(head), NULL, 0);
}

static void go_on_dumping(void)
{
        if (dump_next)
                dump_next = send_some(lockd, dump_next, true);
        if (!dump_next) {
                dumping = false;
                (void)reply(lockd, HOLDER_END, 0, 0, 0);
        }
}

static void show(int fd)
{
        if (welcome(fd) < 0)
                return;
        for (Object *o = objects; o;)
                o = send_some(fd, o, false);
        (void)reply(fd, HOLDER_END, 0, 0, 0);
}

/* ---- messages ---- */

/* Reads one message. false: nothing is there; *ended when nothing will be. */
static bool receive(int fd, size_t *ret_len, int *fds, unsigned *ret_n_fds, bool *ret_damaged, bool *ended)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(HOLDER_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = in.bytes, .iov_len = sizeof(in.bytes) };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        ssize_t n;

        do
                n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        *ended = n == 0 || (n < 0 && errno != EAGAIN);
        *ret_n_fds = 0;
        if (n <= 0)
                return false;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                        *ret_n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
                        memcpy(fds, CMSG_DATA(c), *ret_n_fds * sizeof(int));
                }
        *ret_damaged = message.msg_flags & (MSG_CTRUNC | MSG_TRUNC);
        *ret_len = (size_t)n;
        return true;
}

/* One message of lockd's. false: there is none; then lockd is -1 if it is gone. */
static bool handle_lockd(void)
{
        int fds[HOLDER_FDS_MAX];
        bool damaged, ended;
        unsigned n_fds;
        size_t len;

        if (!receive(lockd, &len, fds, &n_fds, &damaged, &ended)) {
                if (ended) {
                        lockd = close_fd(lockd);
                        dumping = false;
                        alone_since = now_msec();
                }
                return false;
        }
        if (len >= sizeof(in.head)) {
                if (in.head.type == HOLDER_PUT)
                        take_in(len, fds, n_fds, damaged);
                else if (in.head.type == HOLDER_DROP)
                        drop(len);
                else if (in.head.type == HOLDER_FORK)
                        make_child(len);
                else if (in.head.type == HOLDER_MOVE)
                        move_to(len);
        }
        for (unsigned i = 0; i < n_fds; i++)
                close_fd(fds[i]); /* those that were taken in are -1 */
        return true;
}

/* Who calls says HELLO first. Returns the fd, or -1 when that has been dealt with. */
static int handle_caller(int fd)
{
        bool damaged, ended;
        int fds[HOLDER_FDS_MAX];
        unsigned n_fds;
        uint64_t role;
        size_t len;

        if (!receive(fd, &len, fds, &n_fds, &damaged, &ended))
                return ended ? close_fd(fd) : fd;
        for (unsigned i = 0; i < n_fds; i++)
                close_fd(fds[i]);
        if (len < sizeof(in.head) || in.head.type != HOLDER_HELLO)
                return close_fd(fd);
        role = in.head.value[0];
        if (role == HOLDER_ROLE_SHOW) {
                show(fd);
                return close_fd(fd);
        }
        draining = true;
        while (lockd >= 0 && handle_lockd())
                ;
        draining = false;
        if (lockd >= 0) {
                struct ucred cred = { 0 };
                socklen_t size = sizeof(cred);

                (void)getsockopt(lockd, SOL_SOCKET, SO_PEERCRED, &cred, &size);
                (void)reply(fd, HOLDER_BUSY, 0, (uint64_t)cred.pid, 0);
                return close_fd(fd);
        }
        if (role == HOLDER_ROLE_REAP) {
                (void)reply(fd, HOLDER_END, 0, let_dead_go(), 0);
                return close_fd(fd);
        }
        if (welcome(fd) < 0)
                return close_fd(fd);
        lockd = fd;
        dumping = true;
        dump_next = objects;
        return -1;
}

static void admit(void)
{
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct ucred cred;
        socklen_t len = sizeof(cred);

        if (fd < 0)
                return;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || (cred.uid != geteuid() && cred.uid != 0)) {
                close_fd(fd);
                return;
        }
        for (unsigned i = 0; i < CALLERS_MAX; i++)
                if (callers[i] < 0) {
                        callers[i] = fd;
                        return;
                }
        close_fd(callers[0]);
        memmove(callers, callers + 1, sizeof(callers) - sizeof(callers[0]));
        callers[CALLERS_MAX - 1] = fd;
}

static bool is_needed(void)
{
        return n_held > 0 || lockd >= 0 || (!is_child && waitpid(-1, NULL, WNOHANG) == 0);
}

/* -1: for ever. */
static int until_next(void)
{
        if (lockd >= 0)
                return -1;
        if (n_held == 0)
                return IDLE_LOOK_MSEC;
        if (now_msec() - alone_since < alone_msec)
                return (int)(alone_msec - (now_msec() - alone_since)) + 1;
        return LOOK_MSEC;
}

static void serve(void)
{
        struct pollfd polled[2 + CALLERS_MAX];
        sigset_t none;

        (void)sigemptyset(&none);
        for (;;) {
                int timeout = until_next(), n;
                const struct timespec limit = { .tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000L };

                polled[0] = (struct pollfd){ .fd = lockd, .events = dumping ? POLLOUT : POLLIN };
                polled[1] = (struct pollfd){ .fd = listener, .events = POLLIN };
                for (unsigned i = 0; i < CALLERS_MAX; i++)
                        polled[2 + i] = (struct pollfd){ .fd = callers[i], .events = POLLIN };
                n = ppoll(polled, 2 + CALLERS_MAX, timeout < 0 ? NULL : &limit, &none);
                if (n <= 0) {
                        if ((told_to_end || now_msec() - alone_since >= IDLE_MSEC) && !is_needed())
                                return;
                        if (n == 0 && lockd < 0 && n_held > 0 && now_msec() - alone_since >= alone_msec)
                                (void)let_dead_go();
                        continue;
                }
                if (polled[0].revents) {
                        if (dumping && !(polled[0].revents & (POLLHUP | POLLERR)))
                                go_on_dumping();
                        else {
                                while (lockd >= 0 && handle_lockd())
                                        ;
                                /* What is on its way is as safe as what has come: many at a time cost lockd less. */
                                (void)poll(NULL, 0, NAP_MSEC);
                        }
                }
                for (unsigned i = 0; i < CALLERS_MAX; i++)
                        if (polled[2 + i].revents && callers[i] == polled[2 + i].fd && callers[i] >= 0)
                                callers[i] = handle_caller(callers[i]);
                if (polled[1].revents && polled[1].fd == listener)
                        admit();
        }
}

/* ---- start ---- */

static void on_signal(int number)
{
        (void)number;
        told_to_end = 1;
}

static void prepare(void)
{
        static const int signals[] = { SIGTERM, SIGINT, SIGQUIT };
        struct rlimit limit;
        sigset_t all;
        int fd;

        (void)sigfillset(&all);
        (void)sigprocmask(SIG_BLOCK, &all, NULL);
        for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
                (void)sigaction(signals[i], &(struct sigaction){ .sa_handler = on_signal }, NULL);
        (void)signal(SIGHUP, SIG_IGN);
        (void)signal(SIGPIPE, SIG_IGN);
        (void)signal(SIGCHLD, SIG_IGN);
        (void)prctl(PR_SET_NAME, "lockd-holder");
        (void)umask(077);
        (void)chdir("/");
        if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
                limit.rlim_cur = limit.rlim_max;
                (void)setrlimit(RLIMIT_NOFILE, &limit);
        }
        fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0)
                (void)!write(fd, "-1000", 5);
        close_fd(fd);
        memset(callers, -1, sizeof(callers));
        alone_since = now_msec();
}

/* systemd, or lockd, opened the socket. */
static bool take_socket(void)
{
        const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
        socklen_t len = sizeof(address);

        if (!pid || !n || strtol(pid, NULL, 10) != (long)getpid() || strcmp(n, "1") != 0)
                return false;
        listener = 3;
        (void)fcntl(listener, F_SETFD, FD_CLOEXEC);
        (void)fcntl(listener, F_SETFL, O_NONBLOCK);
        if (getsockname(listener, (struct sockaddr *)&address, &len) < 0 || address.sun_path[0] != '/')
                return false;
        (void)close_range(4, ~0U, 0);
        return true;
}

static const char help[] =
        "Usage: lockd-holder [--dir DIR]\n"
        "       lockd-holder [--dir DIR] --dump | --release-dead\n"
        "Keeps the locks of lockd while that is down. lockd, or systemd, starts it.\n"
        "\n"
        "      --dir DIR         the folder of its sockets (default: /run/lockd/holder)\n"
        "      --dump            show what is kept\n"
        "      --release-dead    let go of what dead owners had, when no lockd is connected\n"
        "      --alone SECS      do so by itself after that time without a lockd (default: 60)\n"
        "  -V, --version         show the version and end\n"
        "  -h, --help            show this help and end\n";

int main(int argc, char **argv)
{
        enum { OPTION_DIR = 256, OPTION_DUMP, OPTION_REAP, OPTION_ALONE, OPTION_RESUME, OPTION_CAN_RESUME, OPTION_DETACHED };
        static const struct option options[] = {
                { "dir", required_argument, NULL, OPTION_DIR },       { "dump", no_argument, NULL, OPTION_DUMP },
                { "release-dead", no_argument, NULL, OPTION_REAP },   { "alone", required_argument, NULL, OPTION_ALONE },
                { "resume", required_argument, NULL, OPTION_RESUME }, { "can-resume", required_argument, NULL, OPTION_CAN_RESUME },
                { "detached", no_argument, NULL, OPTION_DETACHED },   { "version", no_argument, NULL, 'V' },
                { "help", no_argument, NULL, 'h' },                   { 0 },
        };
        const char *dir = "/run/lockd/holder";
        int c, role = 0, resume = -1;
        bool detached = false;

        while ((c = getopt_long(argc, argv, "Vh", options, NULL)) != -1)
                switch (c) {
                case OPTION_DIR:
                        dir = optarg;
                        break;
                case OPTION_DUMP:
                        role = HOLDER_ROLE_SHOW;
                        break;
                case OPTION_REAP:
                        role = HOLDER_ROLE_REAP;
                        break;
                case OPTION_ALONE:
                        alone_msec = strtol(optarg, NULL, 10) * 1000;
                        break;
                case OPTION_RESUME:
                        resume = atoi(optarg);
                        break;
                case OPTION_DETACHED: /* lockd opened the socket for us, and nobody opens it again */
                        detached = true;
                        break;
                case OPTION_CAN_RESUME:
                        return strcmp(optarg, "1") == 0 ? EXIT_OK : EXIT_CONFIG;
                case 'V':
                        printf("lockd-holder %s\n", LOCKD_VERSION);
                        return EXIT_OK;
                case 'h':
                        fputs(help, stdout);
                        return EXIT_OK;
                default:
                        return EXIT_USAGE;
                }
        if (role != 0)
                return holder_tool(dir, role);
        prepare();
        if (resume >= 0) {
                if (!read_state(resume))
                        pause(); /* what it was executed with may be locks: they stay */
                if (lockd >= 0)
                        (void)reply(lockd, HOLDER_MOVED, 0, (uint64_t)getpid(), 0);
        } else if (!take_socket()) {
                int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/" HOLDER_SOCKET, dir);

                (void)close_range(3, ~0U, 0);
                if (n >= (int)sizeof(address.sun_path) - (int)HOLDER_NAME_MAX || open_socket() < 0) {
                        fprintf(stderr, "lockd-holder: %s/" HOLDER_SOCKET ": %s\n", dir, strerror(errno));
                        return EXIT_CANTCREAT;
                }
        }
        owns_socket = owns_socket || detached;
        serve();
        unlink_own_socket();
        return EXIT_OK;
}
