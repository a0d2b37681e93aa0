/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * floor SOCKET MOUNTPOINT: what the system calls alone cost. An epoll server that takes the frames of the lock protocol and
 * makes for each the file system calls that lockd makes, in lockd's order, for files below MOUNTPOINT, and nothing else:
 * no table, no XDR, no owner, no second look at anything. A connection may hold one lock at a time, and its calls are
 * taken to be right. tests/bench/run checks with strace that the calls are those of lockd.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "frame.h"
#include "virtlock.h"

#define READ_MAX (256U * 1024)

typedef struct Conn {
        int fd;
        int lock; /* -1: none */
        bool lease;
        uint8_t part[4096]; /* of a frame that has not come whole */
        size_t part_len;
} Conn;

static const char *mountpoint;
static size_t mountpoint_len;
static uint8_t scratch[READ_MAX + 4096], out[READ_MAX];

static void die(const char *what)
{
        perror(what);
        exit(1);
}

static uint32_t word(const uint8_t *p)
{
        uint32_t value;

        memcpy(&value, p, sizeof(value));
        return be32toh(value);
}

/* The next string of the payload, with a NUL behind it; returns what comes after. */
static const uint8_t *string(const uint8_t *p, char *ret)
{
        uint32_t len = word(p);

        memcpy(ret, p + 4, len);
        ret[len] = '\0';
        return p + 4 + (len + 3) / 4 * 4;
}

static int open_at(int dirfd, const char *path, uint64_t flags, uint64_t mode)
{
        struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = RESOLVE_NO_XDEV };

        return (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
}

static void lock(int fd, short type)
{
        struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };

        if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
                die("fcntl");
}

static void acquire(Conn *conn, const char *path, uint32_t flags)
{
        int dirfd = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC), look = -1;
        struct stat st;

        path += mountpoint_len + 1;
        if (flags & VIRTLOCK_ACQUIRE_AUTOCREATE) {
                conn->lock = open_at(dirfd, path, O_RDWR | O_CREAT | O_EXCL | O_NOCTTY | O_NOFOLLOW, 0600);
                if (conn->lock < 0 || fstat(conn->lock, &st) < 0)
                        die(path);
        } else {
                char link[32];

                look = open_at(dirfd, path, O_PATH, 0);
                if (look < 0 || fstat(look, &st) < 0)
                        die(path);
                (void)sprintf(link, "/proc/self/fd/%d", look);
                conn->lock = open(link, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        }
        lock(conn->lock, F_WRLCK);
        if (fstatat(dirfd, path, &st, look < 0 ? AT_SYMLINK_NOFOLLOW : 0) < 0)
                die(path);
        if (look >= 0)
                close(look);
        close(dirfd);
}

static void release(Conn *conn, char *path)
{
        if (conn->lease) {
                int dirfd = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC), folder;
                char *slash = strrchr(path, '/');
                struct stat st;

                *slash = '\0';
                folder = open_at(dirfd, path + mountpoint_len + 1, O_PATH | O_DIRECTORY, 0);
                if (folder < 0 || fstatat(folder, slash + 1, &st, AT_SYMLINK_NOFOLLOW) < 0 || unlinkat(folder, slash + 1, 0) < 0)
                        die(path);
                close(folder);
                close(dirfd);
        }
        lock(conn->lock, F_UNLCK);
        close(conn->lock);
        conn->lock = -1;
}

static void handle(Conn *conn, const uint8_t *frame, int32_t procedure)
{
        char path[8192];
        const uint8_t *p;
        size_t len;

        if (procedure != VIRTLOCK_ACQUIRE_RESOURCE && procedure != VIRTLOCK_RELEASE_RESOURCE)
                return;
        p = string(frame + FRAME_HEADER_SIZE, path);
        len = strlen(path);
        if (len > 0)
                path[len++] = '/';
        p = string(p, path + len);
        if (procedure == VIRTLOCK_ACQUIRE_RESOURCE) {
                conn->lease = len > 0;
                acquire(conn, path, word(p));
        } else
                release(conn, path);
}

static void on_ready(Conn *conn)
{
        size_t len = conn->part_len, used = 0, n_out = 0;
        ssize_t n;

        memcpy(scratch, conn->part, len);
        n = recv(conn->fd, scratch + len, READ_MAX, MSG_DONTWAIT);
        if (n <= 0) {
                close(conn->fd);
                if (conn->lock >= 0)
                        close(conn->lock);
                free(conn);
                return;
        }
        len += (size_t)n;
        while (len - used >= FRAME_HEADER_SIZE && word(scratch + used) <= len - used) {
                uint8_t *frame = scratch + used, *reply = out + n_out;
                const uint32_t length = htobe32(FRAME_HEADER_SIZE), type = htobe32(FRAME_REPLY);

                handle(conn, frame, (int32_t)word(frame + 12));
                memcpy(reply, frame, FRAME_HEADER_SIZE);
                memcpy(reply, &length, sizeof(length));
                memcpy(reply + 16, &type, sizeof(type));
                n_out += FRAME_HEADER_SIZE;
                used += word(frame);
        }
        conn->part_len = len - used;
        memcpy(conn->part, scratch + used, conn->part_len);
        if (n_out > 0 && send(conn->fd, out, n_out, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n_out)
                die("send");
}

int main(int argc, char **argv)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(EPOLL_CLOEXEC);
        struct epoll_event event = { .events = EPOLLIN };
        struct rlimit limit;

        if (argc != 3)
                return 64;
        mountpoint = argv[2];
        mountpoint_len = strlen(mountpoint);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
        if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, SOMAXCONN) < 0)
                die(argv[1]);
        (void)epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
        for (;;) {
                struct epoll_event events[64];
                int n = epoll_wait(epoll, events, 64, -1);

                for (int i = 0; i < n; i++) {
                        Conn *conn = events[i].data.ptr;

                        if (conn) {
                                on_ready(conn);
                                continue;
                        }
                        conn = calloc(1, sizeof(*conn));
                        conn->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                        conn->lock = -1;
                        event = (struct epoll_event){ .events = EPOLLIN, .data.ptr = conn };
                        if (conn->fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, conn->fd, &event) < 0)
                                die("accept");
                }
        }
}
