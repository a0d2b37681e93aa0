/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sockets deaf PATH       listens there and accepts nobody, like a process that only holds a copy of a listening socket
 * sockets datagrams PATH  prints each datagram that arrives there, with a newline behind it
 * sockets fill            writes to stdout until it takes no more
 *
 * deaf and datagrams live until they are killed; "ready" on stdout says that the socket is there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "exit_codes.h"

static int fill(void)
{
        static const char zeros[4096];
        int flags = fcntl(STDOUT_FILENO, F_GETFL);
        size_t size = sizeof(zeros);

        /* The flag belongs to the open file: whoever writes there later must find it as it was. */
        (void)fcntl(STDOUT_FILENO, F_SETFL, flags | O_NONBLOCK);
        while (size > 0)
                if (write(STDOUT_FILENO, zeros, size) < 0)
                        size /= 2;
        (void)fcntl(STDOUT_FILENO, F_SETFL, flags);
        return EXIT_OK;
}

int main(int argc, char **argv)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char datagram[65536];
        bool deaf;
        int fd;

        if (argc == 2 && strcmp(argv[1], "fill") == 0)
                return fill();
        if (argc != 3 || strlen(argv[2]) >= sizeof(address.sun_path))
                return EXIT_USAGE;
        deaf = strcmp(argv[1], "deaf") == 0;
        memcpy(address.sun_path, argv[2], strlen(argv[2]) + 1);
        fd = socket(AF_UNIX, deaf ? SOCK_STREAM : SOCK_DGRAM, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || (deaf && listen(fd, 10) < 0)) {
                perror(argv[2]);
                return EXIT_CANTCREAT;
        }
        puts("ready");
        fflush(stdout);
        while (!deaf) {
                ssize_t n = recv(fd, datagram, sizeof(datagram), 0);

                if (n < 0 && errno != EINTR)
                        return EXIT_IOERR;
                if (n > 0)
                        printf("%.*s\n", (int)n, datagram);
                fflush(stdout);
        }
        for (;;)
                (void)pause();
}
