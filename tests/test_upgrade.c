/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Upgrades of a lockd that is at work: what is under way goes on in the new image, and under load nobody gets a lock twice,
 * every call is answered once, nothing leaks.
 *
 * LOCKD_TEST_UPGRADES: how many under load (50). LOCKD_TEST_SEED: of all that is random; it is printed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "wire.h"
#include "world.h"

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static unsigned upgrades(void)
{
        return daemon_log_count(d, "up after an upgrade");
}

static void upgrade(void)
{
        unsigned before = upgrades();

        assert_int_equal(kill(d->pid, SIGUSR1), 0);
        wait_until(upgrades() == before + 1);
}

/* ---- what is under way goes on ---- */

static void send_release_by_kill(Conn *admin, const char *name, const Vm *vm, uint32_t serial)
{
        const char *uuid = uuid_text(vm->uuid);
        lockd_release_args args = {
                .lockspace = { 0, (char[]){ "" } },
                .resource = { (u_int)strlen(name), (char *)(uintptr_t)name },
                .owner = { (u_int)strlen(uuid), (char *)(uintptr_t)uuid },
                .how = LOCKD_RELEASE_KILL,
        };
        FrameHeader header = {
                .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = LOCKD_ADMIN_RELEASE, .serial = serial,
        };
        size_t len;
        _cleanup_free_ uint8_t *payload = encode_args((xdrproc_t)xdr_lockd_release_args, &args, &len);

        conn_send_frame(admin, header, payload, len);
}

static void wait_until_time(int64_t msec)
{
        while (now_msec() < msec)
                pause_briefly();
}

/* Never free while its owner may live. */
static void expect_held_until(const char *image, int64_t msec)
{
        do {
                bool lockable = is_lockable(image, true);

                /* The machine may have been slow between the look and the clock. */
                assert_true(!lockable || now_msec() >= msec);
        } while (now_msec() < msec);
}

/* TERM at begin, KILL 1.6 s later, whatever happened between: sooner would be no chance, later a new start of the clock. */
static void expect_killed_in_time(Vm *vm, int64_t begin)
{
        int64_t took;

        wait_until(!vm_is_alive(vm));
        took = now_msec() - begin;
        if (took < 1500 || took > 2500)
                fail_msg("killed after %lld ms instead of 1600", (long long)took);
        vm_wait(vm);
}

/* release --kill waits for its answer, and calls behind it, over two upgrades. */
static void test_kill_by_administrator(void **state)
{
        const char *image = make_file("killed.img", "x"), *other = make_file("killed-too.img", "x");
        FrameHeader behind = { .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = 99, .serial = 6 }, answer;
        _cleanup_free_ uint8_t *payload = NULL;
        lockd_release_ret ret = { 0 };
        int64_t begin;
        size_t len;
        Conn *admin, *conn;
        Vm vm;

        (void)state;
        daemon_start_copy(d, NULL, NULL);
        vm = vm_start(d, "stubborn");
        conn = vm_conn(d, &vm);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(conn_acquire(conn, "", other, 0), 0);
        vm_ignore_term(&vm);
        admin = admin_open(d);
        begin = now_msec();
        send_release_by_kill(admin, image, &vm, 5);
        conn_send_frame(admin, behind, NULL, 0);
        assert_true(conn_ping(admin, 1));
        upgrade();
        assert_int_equal(find_lease(d, "", image)->holds.holds_val[0].owner.state, LOCKD_OWNER_KILLING);
        assert_true(conn_ping(admin, 2));
        wait_until_time(begin + 1000);
        upgrade();
        expect_held_until(image, begin + 1500);
        expect_killed_in_time(&vm, begin);
        assert_true(conn_receive(admin, &answer, &payload, &len));
        assert_int_equal(answer.serial, 5);
        assert_int_equal(answer.status, FRAME_OK);
        assert_int_equal(wire_decode((xdrproc_t)xdr_lockd_release_ret, payload, len, &ret), 0);
        assert_int_equal(ret.released, 2);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_int_equal(answer.serial, 6);
        assert_int_equal(answer.status, FRAME_ERROR);
        assert_true(conn_ping(admin, 3));
        wait_unlisted(d, "", other);
        assert_true(is_lockable(image, false) && is_lockable(other, false));
        conn_close(admin);
        conn_close(conn);
        daemon_stop(d);
}

/* on_disconnect = "kill": the one that lost its connection is killed at its time, and holds its lock until then. */
static void test_kill_on_disconnect(void **state)
{
        const char *image = make_file("lost.img", "x");
        int64_t begin;
        Conn *conn;
        Vm vm;

        (void)state;
        daemon_start_copy(d, "on_disconnect = \"kill\"\n", NULL);
        vm = vm_start(d, "stubborn");
        conn = vm_conn(d, &vm);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        vm_ignore_term(&vm);
        begin = now_msec();
        vm_close_connection(&vm);
        daemon_expect_log(d, "killing it");
        wait_until_time(begin + 1000);
        upgrade();
        expect_held_until(image, begin + 1500);
        expect_killed_in_time(&vm, begin);
        wait_unlisted(d, "", image);
        assert_int_equal(daemon_log_count(d, "ignores TERM: sending KILL"), 1);
        conn_close(conn);
        daemon_stop(d);
}

/* The owner dies, the last copy of its connection closes, while nobody listens: while the new image starts. */
static void test_death_in_between(void **state)
{
        const char *image = make_file("death.img", "x"), *orphaned = make_file("orphan.img", "x");
        Conn *conn, *other;
        Vm vm, orphan;

        (void)state;
        daemon_start_copy(d, NULL, NULL);
        for (int i = 0; i < 10; i++) {
                vm = vm_start(d, "mortal");
                orphan = vm_start(d, "orphan");
                conn = vm_conn(d, &vm);
                other = vm_conn(d, &orphan);
                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
                assert_int_equal(conn_acquire(other, "", orphaned, 0), 0);
                (void)vm_daemonize(&orphan);
                wait_until(find_lease(d, "", orphaned)->state == LOCKD_STATE_ORPHANED);
                assert_int_equal(kill(d->pid, SIGUSR1), 0);
                for (int pauses = 0; pauses < i; pauses++)
                        pause_briefly();
                vm_kill(&vm);
                vm_end_child(&orphan);
                wait_until(upgrades() == (unsigned)i + 1);
                wait_unlisted(d, "", image);
                wait_unlisted(d, "", orphaned);
                assert_true(is_lockable(image, false) && is_lockable(orphaned, false));
                conn_close(conn);
                conn_close(other);
        }
        daemon_stop(d);
}

/* Counters go on where they were: a lease that is new is no old one. */
static void test_numbers_are_not_used_again(void **state)
{
        const char *image = make_file("numbers.img", "x");
        uint64_t last = 0, last_owner = 0;
        Conn *conn;
        Vm vm;

        (void)state;
        daemon_start_copy(d, NULL, NULL);
        vm = vm_start(d, "counter");
        conn = vm_conn(d, &vm);
        for (int i = 0; i < 3; i++) {
                const lockd_record *lease;

                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
                lease = find_lease(d, "", image);
                assert_true(lease->id > last);
                last = lease->id;
                last_owner = lease->holds.holds_val[0].owner.number;
                assert_int_equal(conn_release(conn, "", image), 0);
                upgrade();
        }
        conn_close(conn);
        vm_kill(&vm);
        upgrade();
        vm = vm_start(d, "another");
        conn = vm_conn(d, &vm);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_true(find_lease(d, "", image)->holds.holds_val[0].owner.number > last_owner);
        conn_close(conn);
        vm_kill(&vm);
        wait_unlisted(d, "", image);
        daemon_stop(d);
}

static pid_t read_pid(const char *path)
{
        FILE *f = fopen(path, "re");
        int pid = 0;

        assert_non_null(f);
        assert_int_equal(fscanf(f, "%d", &pid), 1);
        fclose(f);
        return pid;
}

/* In the background it stays the same process, with the same pid file and log. */
static void test_background(void **state)
{
        const char *image = make_file("background.img", "x"), *pid_file = work_path("pid");
        char config[200];
        int pid, status;
        Conn *conn;
        Vm vm;

        (void)state;
        (void)snprintf(config, sizeof(config), "log_outputs = \"1:file:%s\"\n", work_path("log"));
        daemon_start_copy(d, config, (const char *[]){ "-d", "-p", pid_file, NULL });
        (void)snprintf(d->log, sizeof(d->log), "%.70s", work_path("log"));
        assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
        assert_int_equal(status, 0);
        d->pid = read_pid(pid_file);
        vm = vm_start(d, "vm");
        conn = vm_conn(d, &vm);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        for (int i = 0; i < 3; i++) {
                upgrade();
                pid = read_pid(pid_file);
                assert_int_equal(pid, d->pid);
                assert_int_equal(kill(pid, 0), 0);
                assert_false(is_lockable(image, true));
                assert_int_equal(conn_release(conn, "", image), 0);
                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        }
        vm_kill(&vm);
        conn_close(conn);
        wait_unlisted(d, "", image);
        assert_int_equal(kill(d->pid, SIGTERM), 0);
        wait_until(kill(d->pid, 0) < 0);
        assert_false(file_exists(pid_file));
        d->pid = 0;
}

/* ---- load ---- */

#define OWNERS 32 /* processes that lock for themselves */
#define PAIRS 16  /* of a VM, and who locks for it */
#define FILES 24
#define SLOTS 4

/* What one client knows that it holds: marked after the grant, unmarked before the release. */
typedef struct Worker {
        pid_t pid;
        atomic_bool doomed; /* it may be dead from now on */
        atomic_int held[SLOTS]; /* file + 1; 0: none */
        atomic_bool shared[SLOTS];
        atomic_ullong calls, grants;
} Worker;

typedef struct Shared {
        Worker workers[OWNERS + PAIRS];
        atomic_bool stop;
        atomic_bool failed;
        char why[512];
        atomic_ullong tries, got;
} Shared;

static Shared *load;
static char file_names[FILES][128];

/* In a child: ends it, and the test. */
static void broken(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void broken(const char *format, ...)
{
        bool expected = false;
        va_list ap;

        if (atomic_compare_exchange_strong(&load->failed, &expected, true)) {
                va_start(ap, format);
                (void)vsnprintf(load->why, sizeof(load->why), format, ap);
                va_end(ap);
        }
        _exit(1);
}

static uint32_t next_random(uint64_t *seed)
{
        *seed = *seed * 6364136223846793005U + 1442695040888963407U;
        return (uint32_t)(*seed >> 33);
}

/* Who is known to hold that file; NULL: nobody. A worker that is doomed does not count. */
static const Worker *known_holder(int file, const Worker *but, bool exclusive_only)
{
        for (int i = 0; i < OWNERS + PAIRS; i++)
                for (int slot = 0; slot < SLOTS; slot++) {
                        const Worker *w = &load->workers[i];

                        if (w != but && atomic_load(&w->held[slot]) == file + 1 && !(exclusive_only && atomic_load(&w->shared[slot])) &&
                            !atomic_load(&w->doomed))
                                return w;
                }
        return NULL;
}

/* Tries to lock every file, all the time. */
static void outside(void)
{
        struct flock lock = { .l_whence = SEEK_SET, .l_len = 1 };
        int fds[FILES];

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 0; i < FILES; i++)
                fds[i] = open(file_names[i], O_RDWR | O_CLOEXEC);
        while (!atomic_load(&load->stop)) {
                for (int i = 0; i < FILES; i++) {
                        lock.l_type = F_WRLCK;
                        if (fcntl(fds[i], F_OFD_SETLK, &lock) == 0) {
                                const Worker *holder = known_holder(i, NULL, false);

                                if (holder)
                                        broken("an outside process got the lock of %s, which process %d holds", file_names[i], (int)holder->pid);
                                lock.l_type = F_UNLCK;
                                (void)fcntl(fds[i], F_OFD_SETLK, &lock);
                                atomic_fetch_add(&load->got, 1);
                        } else if (errno != EAGAIN)
                                broken("%s: %s", file_names[i], strerror(errno));
                        atomic_fetch_add(&load->tries, 1);
                }
                (void)poll(NULL, 0, 1);
        }
        _exit(0);
}

typedef struct Line {
        int fd;
        uint32_t serial;
        Worker *worker;
        uint64_t *seed;
} Line;

static void line_open(Line *line)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        struct timeval timeout = { .tv_sec = 20 };

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", d->lock_socket);
        line->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        line->serial = next_random(line->seed);
        (void)setsockopt(line->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
        if (connect(line->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                broken("connect: %s", strerror(errno));
}

static void line_send(Line *line, int32_t procedure, xdrproc_t proc, const void *args, uint32_t serial, size_t cut)
{
        FrameHeader header = { .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = procedure, .serial = serial };
        uint8_t bytes[1024];

        if (wire_encode(&header, proc, args, bytes, sizeof(bytes)) < 0)
                broken("too long");
        if (cut && cut < header.length)
                header.length = (uint32_t)cut;
        if (send(line->fd, bytes, header.length, MSG_NOSIGNAL) != (ssize_t)header.length)
                broken("send: %s", strerror(errno));
}

static void line_read(const Line *line, void *bytes, size_t len)
{
        ssize_t n = len ? recv(line->fd, bytes, len, MSG_WAITALL) : 0;

        if (n != (ssize_t)len)
                broken("no answer: %s", n < 0 ? strerror(errno) : "closed");
}

/* The answer to that call and no other; true: granted. */
static bool line_answer(Line *line, int32_t procedure, uint32_t serial)
{
        uint8_t bytes[8192];
        FrameHeader answer;

        line_read(line, bytes, FRAME_HEADER_SIZE);
        (void)frame_parse(bytes, FRAME_HEADER_SIZE, sizeof(bytes), &answer);
        if (answer.type != FRAME_REPLY || answer.serial != serial || answer.procedure != procedure || answer.length > sizeof(bytes))
                broken("answer of type %u to procedure %d, serial %u, instead of procedure %d, serial %u", answer.type, answer.procedure,
                       answer.serial, procedure, serial);
        line_read(line, bytes, answer.length - FRAME_HEADER_SIZE);
        atomic_fetch_add(&line->worker->calls, 1);
        return answer.status == FRAME_OK;
}

static bool line_call(Line *line, int32_t procedure, xdrproc_t proc, const void *args)
{
        uint32_t serial = line->serial++;

        line_send(line, procedure, proc, args, serial, 0);
        return line_answer(line, procedure, serial);
}

static virtlock_resource resource_of(int file, bool shared)
{
        return (virtlock_resource){
                .path = { 0, (char[]){ "" } },
                .name = { (u_int)strlen(file_names[file]), file_names[file] },
                .flags = shared ? VIRTLOCK_ACQUIRE_SHARED : 0,
        };
}

static void line_register(Line *line, pid_t pid, unsigned id)
{
        virtlock_register args = { .name = { 6, (char[]){ "loaded" } }, .id = id + 1, .pid = (u_int)pid };

        memcpy(args.uuid, &pid, sizeof(pid));
        if (!line_call(line, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &args))
                broken("not registered");
}

static void line_acquire(Line *line, int slot)
{
        int file = (int)(next_random(line->seed) % FILES);
        bool shared = next_random(line->seed) % 3 == 0;
        virtlock_resource args = resource_of(file, shared);
        const Worker *other;

        /* Twice would be one hold, when the first one is unconfirmed. */
        for (int i = 0; i < SLOTS; i++)
                if (atomic_load(&line->worker->held[i]) == file + 1)
                        return;
        if (!line_call(line, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args))
                return;
        atomic_fetch_add(&line->worker->grants, 1);
        other = known_holder(file, line->worker, shared);
        if (other)
                broken("%s was granted to process %d and to process %d", file_names[file], (int)line->worker->pid, (int)other->pid);
        atomic_store(&line->worker->shared[slot], shared);
        atomic_store(&line->worker->held[slot], file + 1);
}

static void line_release(Line *line, int slot)
{
        int file = atomic_load(&line->worker->held[slot]) - 1;
        virtlock_resource args = resource_of(file, false);

        atomic_store(&line->worker->held[slot], 0);
        if (!line_call(line, VIRTLOCK_RELEASE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args))
                broken("the release of %s was refused", file_names[file]);
}

/* Several calls at once, then their answers in order. */
static void line_burst(Line *line)
{
        uint32_t n = 2 + next_random(line->seed) % 20, first = line->serial;

        line->serial += n;
        for (uint32_t i = 0; i < n; i++)
                line_send(line, 99, NULL, NULL, first + i, 0);
        for (uint32_t i = 0; i < n; i++)
                if (line_answer(line, 99, first + i))
                        broken("procedure 99 was answered");
}

static void line_work(Line *line, unsigned rounds)
{
        for (; rounds > 0; rounds--) {
                int slot = (int)(next_random(line->seed) % SLOTS);

                if (next_random(line->seed) % 8 == 0)
                        line_burst(line);
                else if (atomic_load(&line->worker->held[slot]))
                        line_release(line, slot);
                else
                        line_acquire(line, slot);
                if (next_random(line->seed) % 4 == 0)
                        (void)poll(NULL, 0, 1);
        }
}

/* Dies at random, sometimes in the middle of a message. */
static void own_life(Worker *worker, unsigned number, uint64_t seed)
{
        Line line = { .worker = worker, .seed = &seed };

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        line_open(&line);
        line_register(&line, getpid(), number);
        while (!atomic_load(&load->stop)) {
                line_work(&line, 1 + next_random(&seed) % 40);
                if (next_random(&seed) % 4 == 0) {
                        virtlock_resource args = resource_of(0, true);

                        atomic_store(&worker->doomed, true);
                        if (next_random(&seed) % 2)
                                line_send(&line, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &args, 7,
                                          1 + next_random(&seed) % 60);
                        (void)raise(SIGKILL);
                }
        }
        atomic_store(&worker->doomed, true);
        _exit(0);
}

static void vm_life(Line own, unsigned number)
{
        virtlock_restrict args = { 0 };

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        line_open(&own);
        line_register(&own, getpid(), number);
        if (!line_call(&own, VIRTLOCK_RESTRICT, (xdrproc_t)xdr_virtlock_restrict, &args))
                broken("not restricted");
        (void)raise(SIGSTOP); /* it is up */
        for (;;)
                (void)pause();
}

/* libvirtd's way: the VM has its connection, and short ones lock for it. */
static void pair_life(Worker *worker, unsigned number, uint64_t seed)
{
        Line line = { .worker = worker, .seed = &seed };

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (!atomic_load(&load->stop)) {
                pid_t vm = fork();
                int status;

                if (vm == 0)
                        vm_life(line, number);
                if (waitpid(vm, &status, WUNTRACED) != vm || !WIFSTOPPED(status))
                        _exit(1); /* it said why */
                (void)kill(vm, SIGCONT);
                for (uint32_t i = next_random(&seed) % 5; i > 0; i--) {
                        line_open(&line);
                        line_register(&line, vm, number);
                        line_work(&line, 1 + next_random(&seed) % 20);
                        close(line.fd);
                }
                atomic_store(&worker->doomed, true);
                (void)kill(vm, SIGKILL);
                (void)waitpid(vm, NULL, 0);
                for (int slot = 0; slot < SLOTS; slot++)
                        atomic_store(&worker->held[slot], 0);
                atomic_store(&worker->doomed, false);
        }
        _exit(0);
}

static void spawn(int i, uint64_t seed)
{
        Worker *worker = &load->workers[i];
        pid_t pid;

        for (int slot = 0; slot < SLOTS; slot++)
                atomic_store(&worker->held[slot], 0);
        atomic_store(&worker->doomed, false);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)close_range(3, ~0U, 0);
                if (i < OWNERS)
                        own_life(worker, (unsigned)i, seed);
                else
                        pair_life(worker, (unsigned)i, seed);
        }
        worker->pid = pid;
}

/* New ones for those that died. */
static void respawn(uint64_t *seed)
{
        for (int i = 0; i < OWNERS + PAIRS; i++)
                if (load->workers[i].pid > 0 && waitpid(load->workers[i].pid, NULL, WNOHANG) == load->workers[i].pid) {
                        load->workers[i].pid = 0;
                        if (!atomic_load(&load->stop))
                                spawn(i, (uint64_t)next_random(seed) << 20 | (uint64_t)i);
                }
        if (atomic_load(&load->failed))
                fail_msg("%s", load->why);
}

/* At a moment that they do not choose. */
static void kill_some(uint64_t *seed)
{
        for (int n = 0; n < 4; n++) {
                Worker *worker = &load->workers[next_random(seed) % OWNERS];

                atomic_store(&worker->doomed, true);
                if (worker->pid > 0)
                        (void)kill(worker->pid, SIGKILL);
        }
}

static unsigned count_fds(void)
{
        char path[64];
        unsigned n = 0;

        for (int fd = 0; fd < 1024; fd++) {
                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)d->pid, fd);
                n += faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
        }
        return n;
}

static unsigned long resident_kib(void)
{
        char path[64], line[256];
        unsigned long kib = 0;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                (void)sscanf(line, "VmRSS: %lu", &kib);
        fclose(f);
        return kib;
}

/* Children that nobody waits for. */
static bool has_children(void)
{
        char path[64], text[256] = "";
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)d->pid, (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        (void)fgets(text, sizeof(text), f);
        fclose(f);
        return *text != '\0';
}

static void report(unsigned done, int64_t msec)
{
        unsigned long long calls = 0, grants = 0;

        for (int i = 0; i < OWNERS + PAIRS; i++) {
                calls += atomic_load(&load->workers[i].calls);
                grants += atomic_load(&load->workers[i].grants);
        }
        print_message("%u upgrades in %lld ms under %llu calls, %llu grants; outside: %llu tries, %llu locks of what nobody held\n", done,
                      (long long)msec, calls, grants, (unsigned long long)atomic_load(&load->tries),
                      (unsigned long long)atomic_load(&load->got));
        assert_true(calls > done && grants > 0 && atomic_load(&load->tries) > done);
}

static void test_load(void **state)
{
        const unsigned n = getenv("LOCKD_TEST_UPGRADES") ? (unsigned)atoi(getenv("LOCKD_TEST_UPGRADES")) : 50;
        uint64_t seed = getenv("LOCKD_TEST_SEED") ? strtoull(getenv("LOCKD_TEST_SEED"), NULL, 10) : 20260101;
        unsigned fds, done;
        unsigned long resident;
        int64_t begin;
        World world;
        pid_t prober;

        (void)state;
        print_message("seed %llu\n", (unsigned long long)seed);
        load = mmap(NULL, sizeof(*load), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(load != MAP_FAILED);
        for (int i = 0; i < FILES; i++) {
                char name[32];

                (void)snprintf(name, sizeof(name), "load%d.img", i);
                (void)snprintf(file_names[i], sizeof(file_names[i]), "%s", make_file(name, "x"));
        }
        daemon_start_copy(d, "log_filters = \"3:rpc 3:reaper 3:peer\"\n", NULL);
        world_start(&world, d, "loaded");
        upgrade();
        fds = count_fds();
        resident = resident_kib();
        prober = fork();
        if (prober == 0) {
                (void)close_range(3, ~0U, 0);
                outside();
        }
        for (int i = 0; i < OWNERS + PAIRS; i++)
                spawn(i, seed + (uint64_t)i);
        begin = now_msec();
        for (done = 0; done < n; done++) {
                unsigned before = upgrades();

                kill_some(&seed);
                if (done % 2)
                        assert_int_equal(kill(d->pid, SIGUSR1), 0);
                else
                        assert_int_equal(run_admin(d, NULL, (const char *[]){ "upgrade", NULL }), 0);
                wait_until(({
                        respawn(&seed);
                        upgrades() == before + 1;
                }));
                world_check_quietly(&world);
        }
        begin = now_msec() - begin;
        atomic_store(&load->stop, true);
        for (int i = 0; i < OWNERS + PAIRS; i++)
                wait_until((respawn(&seed), load->workers[i].pid == 0));
        assert_int_equal(waitpid(prober, NULL, 0), prober);
        respawn(&seed);
        report(done, begin);
        wait_until(list_leases(d)->records.records_len == world.n_leases);
        world_check(&world);
        for (int i = 0; i < FILES; i++)
                assert_true(is_lockable(file_names[i], false));
        wait_until(count_fds() == fds);
        wait_until(!has_children());
        upgrade();
        print_message("resident: %lu KiB at first, %lu KiB now\n", resident, resident_kib());
        assert_true(resident_kib() < resident + resident / 4 + 512);
        assert_int_equal(daemon_log_count(d, "no upgrade to"), 0);
        assert_int_equal(daemon_log_count(d, "cannot be restored"), 0);
        world_finish(&world);
        daemon_stop(d);
}

int main(int argc, char **argv)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_kill_by_administrator), cmocka_unit_test(test_kill_on_disconnect),
                cmocka_unit_test(test_death_in_between),      cmocka_unit_test(test_numbers_are_not_used_again),
                cmocka_unit_test(test_background),            cmocka_unit_test(test_load),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
