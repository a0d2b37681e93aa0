/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockd, or a process of its holder, is killed at random moments under load. Workers acquire and release images for VMs,
 * and say in shared memory what they believe to hold; an observer asks the kernel all the time whether that is locked.
 * $LOCKD_TEST_KILLS: how many kills (50).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"

#define WORKERS 4
#define IMAGES 6     /* that the workers fight for */
#define LASTING 8    /* that are held from the start to the end */

typedef struct Shared {
        _Atomic uint64_t held[IMAGES]; /* 0: nobody; else a number that is used once, times 256, plus the worker's */
        _Atomic uint64_t numbers;
        _Atomic unsigned granted, lost, twice, strange, observed;
        _Atomic bool stop, gap; /* in a gap nothing is promised: lockd and the holder are both gone */
        char what[256];
} Shared;

static TestDaemon daemon_under_test;
static Shared *shared;

static const char *image_path(int i, bool lasting)
{
        char name[64];

        (void)snprintf(name, sizeof(name), "%s%d.img", lasting ? "lasting" : "image", i);
        return work_path(name);
}

static void note(_Atomic unsigned *counter, const char *image, const char *what)
{
        if ((*counter)++ == 0)
                (void)snprintf(shared->what, sizeof(shared->what), "%s: %s", image, what);
}

/* ---- the observer ---- */

static bool is_free(int fd)
{
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

        return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

static void observe(void)
{
        int fds[IMAGES], lasting[LASTING];

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 0; i < IMAGES; i++)
                fds[i] = open(image_path(i, false), O_RDWR | O_CLOEXEC);
        for (int i = 0; i < LASTING; i++)
                lasting[i] = open(image_path(i, true), O_RDWR | O_CLOEXEC);
        while (!shared->stop) {
                for (int i = 0; i < IMAGES; i++) {
                        bool gap = shared->gap;
                        uint64_t before = shared->held[i];

                        if (before != 0 && is_free(fds[i]) && shared->held[i] == before && !gap && !shared->gap)
                                note(&shared->lost, image_path(i, false), "free while it was held");
                }
                for (int i = 0; i < LASTING; i++) {
                        bool gap = shared->gap;

                        if (is_free(lasting[i]) && !gap && !shared->gap)
                                note(&shared->lost, image_path(i, true), "free");
                }
                shared->observed++;
                (void)poll(NULL, 0, 0);
        }
        _exit(0);
}

/* ---- a worker: what libvirtd does for one VM ---- */

static Client *connect_for(const Vm *vm)
{
        virtlock_register args = { .name = { (u_int)strlen(vm->name), (char *)(uintptr_t)vm->name }, .id = vm->id, .pid = (u_int)vm->pid };
        Client *client;

        memcpy(args.uuid, vm->uuid, sizeof(args.uuid));
        for (;;) {
                if (client_new(daemon_under_test.lock_socket, 5000, &client) == 0) {
                        if (client_call(client, VIRTLOCK_PROGRAM, VIRTLOCK_VERSION, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register,
                                        &args, NULL, NULL) == 0)
                                return client;
                        client_free(client);
                }
                (void)poll(NULL, 0, 1);
        }
}

static int call(Client *client, int32_t procedure, const char *image)
{
        virtlock_resource args = { .path = { 0, (char *)(uintptr_t) "" }, .name = { (u_int)strlen(image), (char *)(uintptr_t)image } };

        return client_call(client, VIRTLOCK_PROGRAM, VIRTLOCK_VERSION, procedure, (xdrproc_t)xdr_virtlock_resource, &args, NULL, NULL);
}

/* Until it is answered. */
static int call_surely(Client **client, const Vm *vm, int32_t procedure, const char *image)
{
        int r;

        while ((r = call(*client, procedure, image)) < 0) {
                client_free(*client);
                *client = connect_for(vm);
        }
        return r;
}

static void work(int worker, const Vm *vm)
{
        Client *client;
        unsigned seed = (unsigned)worker;
        char self[64];

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)snprintf(self, sizeof(self), "VM '%s'", vm->name);
        client = connect_for(vm);
        while (!shared->stop) {
                int i = rand_r(&seed) % IMAGES;
                const char *image = image_path(i, false);
                uint64_t mine = ++shared->numbers << 8 | (unsigned)worker, nobody = 0;
                int r = call_surely(&client, vm, VIRTLOCK_ACQUIRE_RESOURCE, image);

                if (r > 0) {
                        /* It let go of everything before: what it has it has not been told of, and may ask for. */
                        if (strstr(client_error_message(client), self))
                                note(&shared->strange, image, client_error_message(client));
                } else {
                        shared->granted++;
                        if (!atomic_compare_exchange_strong(&shared->held[i], &nobody, mine))
                                note(&shared->twice, image, "granted twice");
                        if (rand_r(&seed) % 4 == 0)
                                (void)poll(NULL, 0, rand_r(&seed) % 3);
                        shared->held[i] = 0;
                        (void)call_surely(&client, vm, VIRTLOCK_RELEASE_RESOURCE, image);
                }
                if (rand_r(&seed) % 8 == 0) {
                        client_free(client);
                        client = connect_for(vm);
                }
        }
        client_free(client);
        _exit(0);
}

/* ---- the test ---- */

static pid_t holder_process(const TestDaemon *d)
{
        char dir[128];
        struct dirent *entry;
        pid_t pid = 0;
        DIR *folder;

        (void)snprintf(dir, sizeof(dir), "%s/lockd-holder", d->dir);
        folder = opendir(dir);
        while (folder && (entry = readdir(folder))) {
                const char *dot = strrchr(entry->d_name, '.');

                if (*entry->d_name != '.' && dot && atoi(dot + 1) > 0 && kill(atoi(dot + 1), 0) == 0)
                        pid = atoi(dot + 1);
        }
        if (folder)
                closedir(folder);
        return pid;
}

static unsigned count_kept(const TestDaemon *d, const char *text)
{
        char command[512], line[4096];
        unsigned n = 0;
        FILE *f;

        (void)snprintf(command, sizeof(command), "%s --dir %s/lockd-holder --dump 2>/dev/null",
                       getenv("LOCKD_HOLDER") ? getenv("LOCKD_HOLDER") : "build/lockd-holder", d->dir);
        f = popen(command, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                n += strstr(line, text) != NULL;
        (void)pclose(f);
        return n;
}

static void relaunch(TestDaemon *d)
{
        Conn *conn;

        daemon_launch(d, NULL);
        wait_until((conn = conn_open_at(d->admin_socket)) != NULL);
        conn_close(conn);
        (void)list_leases(d);
}

static void check(const char *when)
{
        if (shared->lost || shared->twice || shared->strange)
                fail_msg("%s: %u lost, %u granted twice, %u refused to their owner: %s", when, shared->lost, shared->twice, shared->strange,
                         shared->what);
}

typedef enum Victim { VICTIM_LOCKD, VICTIM_HOLDER, VICTIM_TERM, VICTIM_UPGRADE, VICTIM_BOTH } Victim;

static void strike(TestDaemon *d, Victim victim)
{
        pid_t child;

        wait_until((child = holder_process(d)) > 1);
        switch (victim) {
        case VICTIM_LOCKD:
                daemon_end(d);
                relaunch(d);
                break;
        case VICTIM_HOLDER:
                assert_int_equal(kill(child, SIGKILL), 0);
                wait_until(holder_process(d) > 0 && holder_process(d) != child);
                wait_until(count_kept(d, "lasting") >= 2 * LASTING); /* leases and holds */
                break;
        case VICTIM_TERM:
                assert_int_equal(kill(d->pid, SIGTERM), 0);
                (void)daemon_wait(d);
                relaunch(d);
                break;
        case VICTIM_BOTH:
                shared->gap = true;
                assert_int_equal(kill(child, SIGKILL), 0);
                daemon_end(d);
                relaunch(d);
                for (int i = 0; i < LASTING; i++)
                        assert_false(is_lockable(image_path(i, true), false));
                shared->gap = false;
                break;
        case VICTIM_UPGRADE:
        default:
                /* Killed while it may be trying, writing its state, executing or restoring. */
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                (void)poll(NULL, 0, rand() % 20);
                daemon_end(d);
                relaunch(d);
                break;
        }
}

static void run(const Victim *victims, size_t n_victims)
{
        TestDaemon *d = &daemon_under_test;
        int kills = getenv("LOCKD_TEST_KILLS") ? atoi(getenv("LOCKD_TEST_KILLS")) : 50;
        pid_t observer, workers[WORKERS];
        Vm vms[WORKERS];
        char name[32];

        shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(shared != MAP_FAILED);
        daemon_start(d, "holder = \"auto\"\n", NULL);
        for (int i = 0; i < IMAGES; i++)
                close(open(image_path(i, false), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        for (int i = 0; i < LASTING; i++)
                close(open(image_path(i, true), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        for (int i = 0; i < WORKERS; i++) {
                (void)snprintf(name, sizeof(name), "vm%d", i);
                vms[i] = vm_start(d, name);
        }
        for (int i = 0; i < LASTING; i++) {
                Conn *conn = vm_conn(d, &vms[i % WORKERS]);

                assert_int_equal(conn_acquire(conn, "", image_path(i, true), 0), 0);
                conn_close(conn);
        }
        observer = fork();
        if (observer == 0)
                observe();
        for (int i = 0; i < WORKERS; i++) {
                workers[i] = fork();
                if (workers[i] == 0)
                        work(i, &vms[i]);
        }
        srand(1);
        for (int i = 0; i < kills; i++) {
                (void)poll(NULL, 0, rand() % 30);
                strike(d, victims[(size_t)rand() % n_victims]);
                check("under load");
        }
        shared->stop = true;
        for (int i = 0; i < WORKERS; i++)
                assert_int_equal(waitpid(workers[i], NULL, 0), workers[i]);
        assert_int_equal(waitpid(observer, NULL, 0), observer);
        check("at the end");
        print_message("%d kills, %u grants, observed %u times\n", kills, shared->granted, shared->observed);
        assert_true(shared->granted > (unsigned)kills);
        for (int i = 0; i < LASTING; i++)
                assert_non_null(find_lease(d, "", image_path(i, true)));
        for (int i = 0; i < WORKERS; i++)
                vm_kill(&vms[i]);
        wait_until(list_leases(d)->records.records_len == 0);
        for (int i = 0; i < IMAGES; i++)
                assert_true(is_lockable(image_path(i, false), false));
        for (int i = 0; i < LASTING; i++)
                assert_true(is_lockable(image_path(i, true), false));
        wait_until(count_kept(d, ".img") == 0);
        wait_until(count_kept(d, "owner") == 0);
        daemon_stop(d);
}

static void test_lockd_is_killed(void **state)
{
        (void)state;
        run((const Victim[]){ VICTIM_LOCKD }, 1);
}

static void test_holder_is_killed(void **state)
{
        (void)state;
        run((const Victim[]){ VICTIM_HOLDER }, 1);
}

static void test_all_are_ended(void **state)
{
        (void)state;
        run((const Victim[]){ VICTIM_LOCKD, VICTIM_HOLDER, VICTIM_TERM, VICTIM_UPGRADE }, 4);
}

/* Nothing is locked then for a moment, but what was is locked again before anybody else can have it. */
static void test_both_are_killed(void **state)
{
        (void)state;
        run((const Victim[]){ VICTIM_BOTH }, 1);
}

static int clean(void **state)
{
        (void)state;
        daemon_end(&daemon_under_test);
        return 0;
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_lockd_is_killed, clean),
                cmocka_unit_test_teardown(test_holder_is_killed, clean),
                cmocka_unit_test_teardown(test_all_are_ended, clean),
                cmocka_unit_test_teardown(test_both_are_killed, clean),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
