/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What happens to a daemon of the lock protocol once, and not thousands of times a second:
 *
 *      events connect SOCKET CLIENTS           connects and registers: seconds of the first half, of the second half
 *      events memory SOCKET SPACE PID CLIENTS LOCKS   resident bytes: idle, of a client, of a lock (64-byte name)
 *      events death SOCKET SPACE KIND          ms: worst call of an uninvolved client before, and while VMs die. KIND: killed
 *                                              (ten, at once), zombie (one, not reaped), stubborn (one that lives on and
 *                                              ignores TERM after its connection was lost)
 *      events end SOCKET SPACE LOCKS           ms: until all locks of a VM that was killed are free; worst call meanwhile
 *      events shared SOCKET IMAGE VMS          us of an acquire: first and last tenth; of a release: first and last tenth
 *      events idle SOCKET CLIENTS              connects and registers, says "ready", and goes when stdin ends
 *      events start SOCKET COMMAND...          ms from the execution of a daemon to its first answer
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define VMS 10
#define LOCKS_OF_A_VM 4
#define DEADLINE 60.0

static const struct timespec briefly = { .tv_nsec = 50000 };

static const char *numbered(char buf[96], unsigned number)
{
        (void)snprintf(buf, 96, "%064x", number);
        return buf;
}

static unsigned number_of(const char *text)
{
        return (unsigned)strtoul(text, NULL, 10);
}

static int connects(char **args)
{
        const unsigned n = number_of(args[1]);
        pid_t *owners = calloc(n, sizeof(*owners));
        double start, half = 0, end;

        if (!owners)
                die("calloc");
        for (unsigned i = 0; i < n; i++)
                owners[i] = start_owner();
        start = now();
        for (unsigned i = 0; i < n; i++) {
                if (i == n / 2)
                        half = now();
                (void)connect_for(args[0], i, owners[i]);
        }
        end = now();
        printf("%.4f %.4f\n", half - start, end - half);
        return 0;
}

static int idle(char **args)
{
        const unsigned n = number_of(args[1]);
        char byte;

        for (unsigned i = 0; i < n; i++)
                (void)connect_for(args[0], 1000000 + i, start_owner());
        printf("ready\n");
        (void)fflush(stdout);
        while (read(STDIN_FILENO, &byte, 1) > 0)
                ;
        return 0;
}

static int memory(char **args)
{
        const pid_t daemon = (pid_t)number_of(args[2]);
        const unsigned clients = number_of(args[3]), locks = number_of(args[4]);
        double alone, with_clients, with_locks;
        char name[96];
        int fd = -1;

        alone = resident_bytes(daemon);
        for (unsigned i = 0; i < clients; i++)
                fd = connect_for(args[0], i, start_owner());
        with_clients = resident_bytes(daemon);
        create_lockspace(fd, args[1]);
        for (unsigned i = 0; i < locks; i++)
                call_resource(fd, VIRTLOCK_ACQUIRE_RESOURCE, args[1], numbered(name, i), VIRTLOCK_ACQUIRE_AUTOCREATE);
        with_locks = resident_bytes(daemon);
        printf("%.0f %.1f %.1f\n", alone, (with_clients - alone) / clients, (with_locks - with_clients) / locks);
        return 0;
}

/* A process that is registered on a connection of its own and holds locks; returns when it does. *ret_control: closing it
 * closes that connection. */
static pid_t start_vm(char **args, unsigned number, unsigned locks, bool stubborn, int *ret_control)
{
        char name[96], byte = 0;
        int ready[2], control[2], fd;
        pid_t pid;

        if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(control, O_CLOEXEC) < 0)
                die("pipe");
        pid = fork();
        if (pid < 0)
                die("fork");
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (stubborn)
                        (void)signal(SIGTERM, SIG_IGN);
                close(control[1]);
                fd = connect_for(args[0], number, getpid());
                for (unsigned i = 0; i < locks; i++)
                        call_resource(fd, VIRTLOCK_ACQUIRE_RESOURCE, args[1], numbered(name, number * 100000 + i),
                                      VIRTLOCK_ACQUIRE_AUTOCREATE);
                if (write(ready[1], &byte, 1) != 1)
                        die("write");
                while (read(control[0], &byte, 1) > 0)
                        ;
                close(fd);
                for (;;)
                        (void)pause();
        }
        close(ready[1]);
        close(control[0]);
        if (read(ready[0], &byte, 1) != 1)
                die("a VM could not get its locks");
        close(ready[0]);
        *ret_control = control[1];
        return pid;
}

/* The worst of one ACQUIRE and one RELEASE of somebody who has nothing to do with it all, in seconds. */
static double observe(int fd, const char *space)
{
        double start = now(), middle, end;

        call_resource(fd, VIRTLOCK_ACQUIRE_RESOURCE, space, "observer", VIRTLOCK_ACQUIRE_AUTOCREATE);
        middle = now();
        call_resource(fd, VIRTLOCK_RELEASE_RESOURCE, space, "observer", 0);
        end = now();
        return middle - start > end - middle ? middle - start : end - middle;
}

static double observe_for(int fd, const char *space, double seconds)
{
        double worst = 0, until = now() + seconds;

        while (now() < until) {
                double t = observe(fd, space);

                worst = t > worst ? t : worst;
        }
        return worst;
}

static bool is_free(const char *space, unsigned number)
{
        char path[4096], name[96];

        (void)snprintf(path, sizeof(path), "%s/%s", space, numbered(name, number));
        return access(path, F_OK) < 0;
}

static bool all_free(const char *space, unsigned n)
{
        for (unsigned vm = 0; vm < n; vm++)
                for (unsigned i = 0; i < LOCKS_OF_A_VM; i++)
                        if (!is_free(space, (vm + 1) * 100000 + i))
                                return false;
        return true;
}

static int death(char **args)
{
        const bool stubborn = strcmp(args[2], "stubborn") == 0, zombie = strcmp(args[2], "zombie") == 0;
        const unsigned n = stubborn || zombie ? 1 : VMS;
        int controls[VMS], observer = connect_for(args[0], 0, start_owner());
        double before, worst = 0, start;
        pid_t vms[VMS];

        create_lockspace(observer, args[1]);
        for (unsigned i = 0; i < n; i++)
                vms[i] = start_vm(args, i + 1, LOCKS_OF_A_VM, stubborn, &controls[i]);
        before = observe_for(observer, args[1], 0.3);
        for (unsigned i = 0; i < n; i++) {
                if (stubborn)
                        close(controls[i]);
                else
                        (void)kill(vms[i], SIGKILL);
        }
        for (unsigned i = 0; i < n && !stubborn && !zombie; i++)
                (void)waitpid(vms[i], NULL, 0);
        start = now();
        do {
                double t = observe(observer, args[1]);

                worst = t > worst ? t : worst;
        } while (!all_free(args[1], n) && now() - start < DEADLINE);
        printf("%.3f %.3f %.1f\n", before * 1e3, worst * 1e3, (now() - start) * 1e3);
        return now() - start < DEADLINE ? 0 : 1;
}

static int end(char **args)
{
        const unsigned locks = number_of(args[2]);
        int control, observer = connect_for(args[0], 0, start_owner());
        char space[4096], *vm_args[] = { args[0], space };
        double start, worst = 0;
        pid_t vm;

        (void)snprintf(space, sizeof(space), "%s-vm", args[1]);
        create_lockspace(observer, args[1]);
        create_lockspace(observer, space);
        vm = start_vm(vm_args, 1, locks, false, &control);
        (void)observe_for(observer, args[1], 0.1);
        start = now();
        (void)kill(vm, SIGKILL);
        (void)waitpid(vm, NULL, 0);
        /* A directory that can be removed is empty. */
        while (rmdir(space) < 0 && now() - start < DEADLINE) {
                double t = observe(observer, args[1]);

                worst = t > worst ? t : worst;
        }
        printf("%.1f %.3f\n", (now() - start) * 1e3, worst * 1e3);
        return now() - start < DEADLINE ? 0 : 1;
}

static int shared(char **args)
{
        const unsigned n = number_of(args[2]), tenth = n / 10;
        int *fds = calloc(n, sizeof(*fds));

        if (!fds)
                die("calloc");
        close(open(args[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        for (unsigned i = 0; i < n; i++)
                fds[i] = connect_for(args[0], i, start_owner());
        for (int release = 0; release < 2; release++) {
                double start = now(), first = 0, last = 0;

                for (unsigned i = 0; i < n; i++) {
                        if (i == tenth)
                                first = now() - start;
                        if (i == n - tenth)
                                last = now();
                        call_resource(fds[i], release ? VIRTLOCK_RELEASE_RESOURCE : VIRTLOCK_ACQUIRE_RESOURCE, "", args[1],
                                      release ? 0 : VIRTLOCK_ACQUIRE_SHARED);
                }
                printf("%.1f %.1f%s", first / tenth * 1e6, (now() - last) / tenth * 1e6, release ? "\n" : " ");
        }
        return 0;
}

static int start(char **args)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        pid_t owner = start_owner(), daemon;
        double begin, end_time;
        int fd;

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", args[0]);
        (void)unlink(args[0]);
        begin = now();
        daemon = fork();
        if (daemon == 0) {
                (void)execvp(args[1], args + 1);
                die(args[1]);
        }
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
                if (now() - begin > DEADLINE || waitpid(daemon, NULL, WNOHANG) != 0)
                        die(args[1]);
                (void)nanosleep(&briefly, NULL);
        }
        register_owner(fd, 0, owner);
        end_time = now();
        (void)kill(daemon, SIGTERM);
        (void)waitpid(daemon, NULL, 0);
        printf("%.2f\n", (end_time - begin) * 1e3);
        return 0;
}

int main(int argc, char **argv)
{
        static const struct {
                const char *name;
                int n_args;
                int (*run)(char **args);
        } scenarios[] = {
                { "connect", 2, connects }, { "memory", 5, memory }, { "death", 3, death }, { "end", 3, end },
                { "shared", 3, shared },    { "idle", 2, idle },     { "start", 2, start },
        };

        raise_fd_limit();
        for (size_t i = 0; argc > 1 && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
                if (strcmp(argv[1], scenarios[i].name) == 0 && argc - 2 >= scenarios[i].n_args)
                        return scenarios[i].run(argv + 2);
        fprintf(stderr, "usage: events connect|memory|death|end|shared|idle|start SOCKET ...\n");
        return 64;
}
