/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: what is started has the socket and the standard streams, and nothing else of lockd's. */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "../fault.h"
#include "holder_protocol.h"

/* Two lockds at one time must not each take the other's fresh socket for a dead one. */
static int bind_socket(const char *dir, int *ret)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        _cleanup_fd_ int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        _cleanup_fd_ int guard = -1;

        if (snprintf(address.sun_path, sizeof(address.sun_path), "%s/" HOLDER_SOCKET, dir) + HOLDER_NAME_MAX >= sizeof(address.sun_path))
                return FAULT(-ENAMETOOLONG);
        guard = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (guard < 0 || flock(guard, LOCK_EX) < 0)
                return FAULT(-errno);
        if (connect(probe, (struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN)
                return -EADDRINUSE;
        (void)unlink(address.sun_path);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
                return FAULT(-errno);
        *ret = TAKE_FD(fd);
        return 0;
}

static void run(const char *program, int socket)
{
        char pid[64];
        char *const argv[] = { (char *)(uintptr_t) "lockd-holder", (char *)(uintptr_t) "--detached", NULL };
        char *const env[] = { (char *)(uintptr_t) "LISTEN_FDS=1", pid, NULL };
        sigset_t none;
        int null;

        (void)setsid();
        if (fork() != 0)
                _exit(0);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        null = open("/dev/null", O_RDWR);
        for (int i = 0; i <= STDERR_FILENO; i++)
                (void)dup2(null, i);
        (void)dup2(socket, 3);
        (void)fcntl(3, F_SETFD, 0); /* dup2 to its own number leaves the flag */
        (void)close_range(4, ~0U, 0);
        (void)snprintf(pid, sizeof(pid), "LISTEN_PID=%d", (int)getpid());
        (void)execve(program, argv, env);
        _exit(127);
}

int holder_spawn(const char *dir, const char *program)
{
        _cleanup_fd_ int socket = -1;
        pid_t pid;
        int r;

        if (access(program, X_OK) < 0)
                return FAULT(-errno);
        if (mkdir(dir, 0700) < 0 && errno != EEXIST)
                return FAULT(-errno);
        r = bind_socket(dir, &socket);
        if (r < 0)
                return r;
        pid = fork();
        if (pid == 0)
                run(program, socket);
        if (pid < 0)
                return FAULT(-errno);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        return 0;
}
