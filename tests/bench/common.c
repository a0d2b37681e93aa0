/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

void die(const char *what)
{
        perror(what);
        exit(1);
}

double now(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void raise_fd_limit(void)
{
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return;
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
}

double cpu_seconds(pid_t pid)
{
        unsigned long long nsec, sum = 0;
        struct dirent *thread;
        char path[320];
        DIR *tasks;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
        tasks = opendir(path);
        while (tasks && (thread = readdir(tasks))) {
                (void)snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid, thread->d_name);
                f = fopen(path, "re");
                if (!f)
                        continue;
                if (fscanf(f, "%llu", &nsec) == 1)
                        sum += nsec;
                (void)fclose(f);
        }
        if (tasks)
                (void)closedir(tasks);
        return (double)sum / 1e9;
}

double resident_bytes(pid_t pid)
{
        char path[64], line[256];
        unsigned long kib = 0;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
        f = fopen(path, "re");
        while (f && fgets(line, sizeof(line), f))
                if (sscanf(line, "VmRSS: %lu", &kib) == 1)
                        break;
        if (f)
                (void)fclose(f);
        return (double)kib * 1024;
}

virtlock_string string_of(const char *text)
{
        return (virtlock_string){ (u_int)strlen(text), (char *)(uintptr_t)text };
}

size_t encode(int32_t procedure, xdrproc_t proc, const void *args, uint8_t *buf, size_t size)
{
        FrameHeader header = { .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = procedure };

        if (wire_encode(&header, proc, args, buf, size) < 0)
                die("encode");
        return header.length;
}

size_t encode_resource(int32_t procedure, const char *lockspace, const char *name, uint32_t flags, uint8_t *buf, size_t size)
{
        const virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };

        return encode(procedure, (xdrproc_t)xdr_virtlock_resource, &args, buf, size);
}

void send_all(int fd, const uint8_t *bytes, size_t len)
{
        while (len > 0) {
                ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

                if (n < 0 && errno != EINTR)
                        die("send");
                bytes += n > 0 ? n : 0;
                len -= n > 0 ? (size_t)n : 0;
        }
}

uint32_t try_call(int fd, int32_t procedure, xdrproc_t proc, const void *args)
{
        uint8_t buf[16384];
        FrameHeader header;
        size_t len = encode(procedure, proc, args, buf, sizeof(buf));

        send_all(fd, buf, len);
        len = 0;
        for (;;) {
                ssize_t n = recv(fd, buf + len, sizeof(buf) - len, 0);

                if (n <= 0)
                        die("recv");
                len += (size_t)n;
                if (frame_parse(buf, len, sizeof(buf), &header) == 0)
                        return header.status;
        }
}

void call(int fd, int32_t procedure, xdrproc_t proc, const void *args)
{
        if (try_call(fd, procedure, proc, args) == FRAME_OK)
                return;
        fprintf(stderr, "procedure %d was refused\n", procedure);
        exit(1);
}

void call_resource(int fd, int32_t procedure, const char *lockspace, const char *name, uint32_t flags)
{
        const virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };

        call(fd, procedure, (xdrproc_t)xdr_virtlock_resource, &args);
}

void create_lockspace(int fd, const char *path)
{
        const virtlock_create_lockspace args = { .path = string_of(path) };

        call(fd, VIRTLOCK_CREATE_LOCKSPACE, (xdrproc_t)xdr_virtlock_create_lockspace, &args);
}

pid_t start_owner(void)
{
        pid_t pid = fork();

        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)close_range(3, ~0U, 0);
                for (;;)
                        (void)pause();
        }
        if (pid < 0)
                die("fork");
        return pid;
}

int connect_to(const char *path)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                die(path);
        return fd;
}

void register_owner(int fd, unsigned number, pid_t owner)
{
        virtlock_register args = { .name = string_of("load"), .id = number + 1, .pid = (u_int)owner };

        memcpy(args.uuid, &number, sizeof(number));
        call(fd, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &args);
}

int connect_for(const char *path, unsigned number, pid_t owner)
{
        int fd = connect_to(path);

        register_owner(fd, number, owner);
        return fd;
}
