/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: who only wants to see changes nothing, and waits for nobody longer than ASK_MSEC. */
#include "holder_tool.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "cleanup.h"
#include "exit_codes.h"
#include "holder_protocol.h"

#define ASK_MSEC 3000

static union {
        HolderHead head;
        unsigned char bytes[HOLDER_MESSAGE_MAX];
} answer;

static const char *kind_name(uint64_t id)
{
        static const char *const names[] = { "?", "listener", "lockspace", "owner", "connection", "lease", "hold" };

        return HOLDER_KIND(id) < sizeof(names) / sizeof(names[0]) ? names[HOLDER_KIND(id)] : names[0];
}

static void print_objects(ssize_t len)
{
        const unsigned char *at = answer.bytes + sizeof(answer.head), *end = answer.bytes + len;

        while ((size_t)(end - at) >= sizeof(HolderObject)) {
                HolderObject said;
                const char *record = (const char *)at + sizeof(said);
                int length;

                memcpy(&said, at, sizeof(said));
                if ((size_t)(end - at) - sizeof(said) < holder_padded(said.length))
                        return;
                length = (int)said.length;
                while (length > 0 && record[length - 1] == '\n')
                        length--;
                printf("  %s %llu%s%s: %.*s\n", kind_name(said.id), (unsigned long long)HOLDER_NUMBER(said.id),
                       said.flags & HOLDER_HAS_FD ? "" : " without fd", said.flags & HOLDER_RELEASING ? " releasing" : "", length, record);
                at += sizeof(said) + holder_padded(said.length);
        }
}

/* EXIT_OK, or what went wrong. */
static int ask(const char *path, const char *name, int role)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        const HolderHead hello = { .type = HOLDER_HELLO, .version = HOLDER_VERSION, .value = { (uint64_t)role } };
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct pollfd p = { .fd = fd, .events = POLLIN };

        if (strlen(path) >= sizeof(address.sun_path))
                return EXIT_USAGE;
        memcpy(address.sun_path, path, strlen(path) + 1);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
                if (errno == ECONNREFUSED)
                        return EXIT_OK; /* what a process left that is gone */
                fprintf(stderr, "%s: %s\n", path, strerror(errno));
                return EXIT_UNAVAILABLE;
        }
        (void)send(fd, &hello, sizeof(hello), MSG_NOSIGNAL);
        for (;;) {
                ssize_t n = poll(&p, 1, ASK_MSEC) == 1 ? recv(fd, answer.bytes, sizeof(answer.bytes), 0) : -1;

                if (n < (ssize_t)sizeof(answer.head)) {
                        fprintf(stderr, "%s: no answer\n", path);
                        return EXIT_UNAVAILABLE;
                }
                switch (answer.head.type) {
                case HOLDER_WELCOME:
                        printf("%s: pid %llu, %u objects\n", name, (unsigned long long)answer.head.value[0], answer.head.n);
                        break;
                case HOLDER_OBJECTS:
                        print_objects(n);
                        break;
                case HOLDER_BUSY:
                        fprintf(stderr, "%s: a lockd (pid %llu) is connected: it decides\n", path, (unsigned long long)answer.head.value[0]);
                        return EXIT_BUSY;
                case HOLDER_END:
                        if (role == HOLDER_ROLE_REAP)
                                printf("%s: %llu leases of dead owners released\n", name, (unsigned long long)answer.head.value[0]);
                        return EXIT_OK;
                default:
                        break;
                }
        }
}

int holder_tool(const char *dir, int role)
{
        DIR *d = opendir(dir);
        struct dirent *entry;
        int code = EXIT_OK;

        if (!d) {
                fprintf(stderr, "%s: %s\n", dir, strerror(errno));
                return EXIT_UNAVAILABLE;
        }
        while ((entry = readdir(d))) {
                char path[512];
                int r;

                if (entry->d_type != DT_SOCK)
                        continue;
                (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
                r = ask(path, entry->d_name, role);
                if (r != EXIT_OK)
                        code = r;
        }
        closedir(d);
        return code;
}
