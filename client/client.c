/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: an answer is taken only for the call that waits for it, and no call waits beyond its deadline. */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "frame.h"
#include "wire.h"

#define ANSWER_MAX (64U * 1024 * 1024 + FRAME_HEADER_SIZE)

struct Client {
        int fd;
        unsigned timeout_msec;
        uint32_t serial;
        virtlock_error error;
};

static int64_t now_msec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int wait_for(int fd, short events, int64_t deadline)
{
        for (;;) {
                struct pollfd p = { .fd = fd, .events = events };
                int64_t left = deadline - now_msec();
                int n = poll(&p, 1, left > 0 ? (int)left : 0);

                if (n > 0)
                        return 0;
                if (n == 0)
                        return -ETIMEDOUT;
                if (errno != EINTR)
                        return -errno;
        }
}

int client_new(const char *path, unsigned timeout_msec, Client **ret)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_fd_ int fd = -1;
        Client *client;

        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        memcpy(address.sun_path, path, strlen(path) + 1);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        /* A full queue of connections says EAGAIN: the daemon does not get to accept. */
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return errno == EAGAIN ? -ETIMEDOUT : -errno;
        client = calloc(1, sizeof(*client));
        if (!client)
                return -ENOMEM;
        client->fd = TAKE_FD(fd);
        client->timeout_msec = timeout_msec;
        *ret = client;
        return 0;
}

Client *client_free(Client *client)
{
        if (!client)
                return NULL;
        close_fd(client->fd);
        wire_free((xdrproc_t)xdr_virtlock_error, &client->error);
        free(client);
        return NULL;
}

static int send_all(Client *client, const uint8_t *bytes, size_t len, int64_t deadline)
{
        while (len > 0) {
                ssize_t n = send(client->fd, bytes, len, MSG_NOSIGNAL);
                int r;

                if (n >= 0) {
                        bytes += n;
                        len -= (size_t)n;
                        continue;
                }
                if (errno != EAGAIN)
                        return -errno;
                r = wait_for(client->fd, POLLOUT, deadline);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int receive_all(Client *client, uint8_t *bytes, size_t len, int64_t deadline)
{
        while (len > 0) {
                ssize_t n = recv(client->fd, bytes, len, 0);
                int r;

                if (n > 0) {
                        bytes += n;
                        len -= (size_t)n;
                        continue;
                }
                if (n == 0)
                        return -ECONNRESET;
                if (errno != EAGAIN)
                        return -errno;
                r = wait_for(client->fd, POLLIN, deadline);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int send_call(Client *client, FrameHeader *header, xdrproc_t proc, const void *args, int64_t deadline)
{
        size_t size = wire_size(proc, args);
        _cleanup_free_ uint8_t *frame = malloc(size);
        int r;

        if (!frame)
                return -ENOMEM;
        r = wire_encode(header, proc, args, frame, size);
        return r < 0 ? r : send_all(client, frame, header->length, deadline);
}

/* The next frame; its payload, to be freed. */
static int receive_frame(Client *client, FrameHeader *ret, uint8_t **ret_payload, int64_t deadline)
{
        uint8_t head[FRAME_HEADER_SIZE];
        _cleanup_free_ uint8_t *payload = NULL;
        size_t len;
        int r;

        r = receive_all(client, head, sizeof(head), deadline);
        if (r < 0)
                return r;
        r = frame_parse(head, sizeof(head), ANSWER_MAX, ret);
        if (r != 0 && r != FRAME_E_PARTIAL)
                return -EBADMSG;
        len = ret->length - FRAME_HEADER_SIZE;
        payload = malloc(len ? len : 1);
        if (!payload)
                return -ENOMEM;
        r = receive_all(client, payload, len, deadline);
        if (r < 0)
                return r;
        *ret_payload = TAKE_PTR(payload);
        return 0;
}

int client_call(Client *client, uint32_t program, uint32_t version, int32_t procedure, xdrproc_t args_proc, const void *args,
                xdrproc_t ret_proc, void *ret)
{
        FrameHeader call = { .program = program, .version = version, .procedure = procedure, .serial = client->serial++ }, answer;
        int64_t deadline = now_msec() + client->timeout_msec;
        _cleanup_free_ uint8_t *payload = NULL;
        int r;

        r = send_call(client, &call, args_proc, args, deadline);
        if (r < 0)
                return r;
        do {
                free(TAKE_PTR(payload));
                r = receive_frame(client, &answer, &payload, deadline);
                if (r < 0)
                        return r;
        } while (answer.type != FRAME_REPLY); /* keepalive is no answer */
        if (answer.program != program || answer.procedure != procedure || answer.serial != call.serial)
                return -EBADMSG;
        if (answer.status == FRAME_OK)
                return wire_decode(ret_proc, payload, answer.length - FRAME_HEADER_SIZE, ret);
        wire_free((xdrproc_t)xdr_virtlock_error, &client->error);
        memset(&client->error, 0, sizeof(client->error));
        r = wire_decode((xdrproc_t)xdr_virtlock_error, payload, answer.length - FRAME_HEADER_SIZE, &client->error);
        return r < 0 ? r : CLIENT_E_REFUSED;
}

const virtlock_error *client_error(const Client *client)
{
        return &client->error;
}

const char *client_error_message(const Client *client)
{
        return client->error.message ? *client->error.message : "an error without a message";
}

int client_fd(const Client *client)
{
        return client->fd;
}

char *client_admin_socket(void)
{
        const char *dir = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");
        char fallback[64], *path;

        if (!dir) {
                (void)snprintf(fallback, sizeof(fallback), "/run/user/%u", (unsigned)geteuid());
                dir = fallback;
        }
        return asprintf(&path, "%s/libvirt/virtlockd-admin-sock", dir) < 0 ? NULL : path;
}
