/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * load SOCKET LOCKSPACE [-c CONNECTIONS] [-p PIPELINED] [-i IDLE] [-d DIRECTORY] [-t SECONDS | -n CYCLES] [-P PID]
 *
 * Drives any daemon of the lock protocol: each connection is registered for a process of its own and repeats cycles of
 * ACQUIRE and RELEASE of a resource of its own, PIPELINED calls at a time, for SECONDS. IDLE more connections only
 * register. With -d the resources are existing images in DIRECTORY, locked directly. Prints
 *
 *      cycles/s  CPU-us/cycle (of process PID)  calls refused
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

typedef struct Conn {
        int fd;
        uint8_t acquire[512], release[512];
        size_t acquire_len, release_len;
        unsigned pending;      /* answers to come */
        unsigned sent;         /* calls of the current batch that were sent */
        uint8_t in[65536];
        size_t in_len;
} Conn;

static unsigned long long cycles, refused;

/* PIPELINED calls, ACQUIRE and RELEASE in turn, in one write. */
static void send_batch(Conn *conn, unsigned pipelined)
{
        uint8_t buf[64 * 512];
        size_t len = 0;

        for (unsigned i = 0; i < pipelined; i++) {
                const bool acquire = conn->sent % 2 == 0;
                const uint8_t *frame = acquire ? conn->acquire : conn->release;
                size_t n = acquire ? conn->acquire_len : conn->release_len;

                memcpy(buf + len, frame, n);
                len += n;
                conn->sent++;
        }
        conn->pending = pipelined;
        send_all(conn->fd, buf, len);
}

static void receive(Conn *conn)
{
        ssize_t n = recv(conn->fd, conn->in + conn->in_len, sizeof(conn->in) - conn->in_len, MSG_DONTWAIT);
        size_t used = 0;
        FrameHeader header;

        if (n < 0 && errno == EAGAIN)
                return;
        if (n <= 0)
                die("recv");
        conn->in_len += (size_t)n;
        while (frame_parse(conn->in + used, conn->in_len - used, sizeof(conn->in), &header) == 0) {
                used += header.length;
                conn->pending--;
                refused += header.status != FRAME_OK;
                cycles += header.procedure == VIRTLOCK_RELEASE_RESOURCE;
        }
        conn->in_len -= used;
        memmove(conn->in, conn->in + used, conn->in_len);
}

static void prepare(Conn *conn, unsigned number, const char *lockspace, const char *directory)
{
        char name[256];
        uint32_t flags = directory ? 0 : VIRTLOCK_ACQUIRE_AUTOCREATE;

        if (directory) {
                (void)snprintf(name, sizeof(name), "%s/image-%u", directory, number);
                close(open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
                lockspace = "";
        } else
                (void)snprintf(name, sizeof(name), "%064x", number);
        conn->acquire_len = encode_resource(VIRTLOCK_ACQUIRE_RESOURCE, lockspace, name, flags, conn->acquire, sizeof(conn->acquire));
        conn->release_len = encode_resource(VIRTLOCK_RELEASE_RESOURCE, lockspace, name, 0, conn->release, sizeof(conn->release));
}

static bool is_over(double until, unsigned long long cycles_max)
{
        return cycles_max > 0 ? cycles >= cycles_max : now() >= until;
}

static void run(Conn *conns, unsigned n, unsigned pipelined, double until, unsigned long long cycles_max)
{
        int epoll = epoll_create1(EPOLL_CLOEXEC);

        for (unsigned i = 0; i < n; i++) {
                struct epoll_event event = { .events = EPOLLIN, .data.ptr = &conns[i] };

                if (epoll_ctl(epoll, EPOLL_CTL_ADD, conns[i].fd, &event) < 0)
                        die("epoll_ctl");
                send_batch(&conns[i], pipelined);
        }
        for (unsigned busy = n; busy > 0;) {
                struct epoll_event events[64];
                int ready = epoll_wait(epoll, events, 64, -1);
                bool over = is_over(until, cycles_max);

                for (int i = 0; i < ready; i++) {
                        Conn *conn = events[i].data.ptr;

                        receive(conn);
                        if (conn->pending > 0)
                                continue;
                        /* It ends with a RELEASE: nothing stays behind. */
                        if (over && conn->sent % 2 == 0) {
                                (void)epoll_ctl(epoll, EPOLL_CTL_DEL, conn->fd, NULL);
                                busy--;
                        } else
                                send_batch(conn, over ? 1 : pipelined);
                }
        }
        close(epoll);
}

int main(int argc, char **argv)
{
        unsigned n = 1, pipelined = 1, idle = 0;
        const char *directory = NULL;
        double seconds = 1, start, cpu;
        unsigned long long cycles_max = 0;
        pid_t daemon = 0;
        Conn *conns;
        int c;

        while ((c = getopt(argc, argv, "c:p:i:d:t:n:P:")) != -1) {
                switch (c) {
                case 'c': n = (unsigned)atoi(optarg); break;
                case 'p': pipelined = (unsigned)atoi(optarg); break;
                case 'i': idle = (unsigned)atoi(optarg); break;
                case 'd': directory = optarg; break;
                case 'n': cycles_max = strtoull(optarg, NULL, 10); break;
                case 't': seconds = atof(optarg); break;
                case 'P': daemon = (pid_t)atoi(optarg); break;
                default: return 64;
                }
        }
        if (argc - optind != 2 || pipelined > 64) {
                fprintf(stderr, "usage: load SOCKET LOCKSPACE [-c N] [-p N] [-i N] [-d DIR] [-t SECONDS | -n CYCLES] [-P PID]\n");
                return 64;
        }
        raise_fd_limit();
        conns = calloc(n, sizeof(*conns));
        if (!conns)
                die("calloc");
        for (unsigned i = 0; i < n + idle; i++) {
                pid_t owner = start_owner();
                int fd = connect_for(argv[optind], i, owner);

                if (i >= n)
                        continue;
                if (i == 0)
                        create_lockspace(fd, argv[optind + 1]);
                conns[i].fd = fd;
                prepare(&conns[i], i, argv[optind + 1], directory);
        }
        start = now();
        cpu = cpu_seconds(daemon);
        run(conns, n, pipelined, start + seconds, cycles_max);
        printf("%.0f %.3f %llu\n", (double)cycles / (now() - start),
               cycles ? (cpu_seconds(daemon) - cpu) * 1e6 / (double)cycles : 0, refused);
        return 0;
}
