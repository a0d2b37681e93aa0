/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: what world_check() compares was so before the first upgrade; a check changes nothing of it. */
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "wire.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE

#define FULL_CALLS 1500 /* their refusals are more than lockd keeps for a client that does not read */
#define LISTS 200       /* their answers are more than the kernel keeps */
#define SHARED_TIMES 40
#define FULL_SERIAL 100000
#define CUT_SERIAL 5000

typedef enum FileState { EXCLUSIVE, SHARED_LOCK, FREE } FileState;

static const struct {
        const char *name;
        FileState state;
} files[] = {
        { "exclusive", EXCLUSIVE },   { "shared", SHARED_LOCK },       { "unconfirmed", EXCLUSIVE }, { "nobody", EXCLUSIVE },
        { "orphan", EXCLUSIVE },      { "odd\xff\xfe\x01 \"\\", EXCLUSIVE }, { "space/lease", EXCLUSIVE }, { "space/shared", SHARED_LOCK },
        { "unprotected", FREE },      { "mute", EXCLUSIVE },           { "half", EXCLUSIVE },        { "bare", EXCLUSIVE },
};

static const char *path_of(const World *world, const char *name)
{
        char text[256];

        (void)snprintf(text, sizeof(text), "%s/%s", world->dir, name);
        return work_path(text);
}

static const char *make_image(const World *world, const char *name)
{
        char text[256];

        (void)snprintf(text, sizeof(text), "%s/%s", world->dir, name);
        return make_file(text, "data");
}

static Conn *keep(World *world, Conn *conn)
{
        assert_true(world->n_conns < sizeof(world->conns) / sizeof(world->conns[0]));
        world->conns[world->n_conns++] = conn;
        return conn;
}

static void take(Conn *conn, const char *lockspace, const char *name, uint32_t flags)
{
        int r = conn_acquire(conn, lockspace, name, flags);

        if (r != 0)
                fail_msg("acquire of %s: %s", name, conn_message(conn));
}

/* A call as bytes. */
static uint8_t *acquire_bytes(const char *name, uint32_t flags, uint32_t serial, size_t *ret_len)
{
        virtlock_resource args = { .path = { 0, (char[]){ "" } }, .name = { (u_int)strlen(name), (char *)(uintptr_t)name }, .flags = flags };
        FrameHeader header = {
                .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = VIRTLOCK_ACQUIRE_RESOURCE, .serial = serial,
        };
        size_t size = wire_size((xdrproc_t)xdr_virtlock_resource, &args);
        uint8_t *bytes = malloc(size);

        assert_non_null(bytes);
        assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_virtlock_resource, &args, bytes, size), 0);
        *ret_len = header.length;
        return bytes;
}

/* Bytes on a VM's own connection, as if it had sent them. */
static void send_as(const Vm *vm, const void *bytes, size_t len)
{
        int pidfd = pidfd_open(vm->pid, 0), fd = pidfd_getfd(pidfd, 4, 0);

        assert_true(pidfd >= 0 && fd >= 0);
        assert_int_equal(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
        close(fd);
        close(pidfd);
}

/* ---- the beginning ---- */

static void take_plain(World *world)
{
        Conn *a = keep(world, vm_conn(world->daemon, &world->own));

        take(a, "", path_of(world, "exclusive"), 0);
        take(a, "", path_of(world, files[5].name), 0);
        assert_int_equal(conn_create_lockspace(a, path_of(world, "space")), 0);
        take(a, path_of(world, "space"), "lease", AUTOCREATE);
}

/* Three VMs, of which one has it many times, and one under a second name. */
static void take_shared(World *world)
{
        Conn *b = keep(world, vm_conn(world->daemon, &world->shared_b)), *c = keep(world, vm_conn(world->daemon, &world->shared_c));
        const char *image = path_of(world, "shared"), *other = path_of(world, "shared-too");

        assert_int_equal(link(image, other), 0);
        take(world->conns[0], "", image, SHARED);
        take(b, "", image, SHARED);
        for (int i = 0; i < SHARED_TIMES; i++)
                take(c, "", image, SHARED);
        take(b, "", other, SHARED);
        take(b, path_of(world, "space"), "shared", SHARED | AUTOCREATE);
        take(c, path_of(world, "space"), "shared", SHARED | AUTOCREATE);
}

/* libvirtd's connection acquired two disks, was refused the second, and went. */
static void leave_unconfirmed(World *world)
{
        Conn *conn = vm_conn(world->daemon, &world->own);

        take(conn, "", path_of(world, "unconfirmed"), 0);
        assert_int_equal(conn_acquire(conn, "", path_of(world, "exclusive"), 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        conn_close(conn);
        wait_until(find_lease(world->daemon, "", path_of(world, "unconfirmed"))->holds.holds_val[0].unconfirmed);
        world->twice = keep(world, vm_conn(world->daemon, &world->own));
}

static void take_without_process(World *world)
{
        const uint8_t uuid[16] = { 0xab, 0xff, 0 };
        Conn *conn = keep(world, conn_open(world->daemon));

        assert_int_equal(conn_register(conn, "\xc3\x28 no process", uuid, 77, 0), 0);
        take(conn, "", path_of(world, "nobody"), 0);
}

/* The process is gone, a copy of its connection is not. */
static void leave_orphan(World *world)
{
        Conn *conn = keep(world, vm_conn(world->daemon, &world->orphan));

        take(conn, "", path_of(world, "orphan"), 0);
        (void)vm_daemonize(&world->orphan);
        wait_until(find_lease(world->daemon, "", path_of(world, "orphan"))->state == LOCKD_STATE_ORPHANED);
}

static void leave_unprotected(World *world)
{
        Conn *admin = admin_open(world->daemon);

        take(world->conns[0], "", path_of(world, "unprotected"), 0);
        assert_int_equal(admin_release_call(admin, "", path_of(world, "unprotected"), uuid_text(world->own.uuid), LOCKD_RELEASE_FORCE), 0);
        conn_close(admin);
}

/* Own connections that lockd listens to no more, or that have sent their last. */
static void leave_silent(World *world)
{
        const uint8_t nonsense[40] = { 0, 0, 0, 1 };
        Conn *mute = keep(world, vm_conn(world->daemon, &world->mute)), *half = keep(world, vm_conn(world->daemon, &world->half));
        Conn *bare = keep(world, vm_conn(world->daemon, &world->bare));

        take(mute, "", path_of(world, "mute"), 0);
        send_as(&world->mute, nonsense, sizeof(nonsense));
        daemon_expect_log(world->daemon, "its input is ignored from now on");
        take(half, "", path_of(world, "half"), 0);
        vm_half_close(&world->half);
        take(bare, "", path_of(world, "bare"), 0);
}

static bool ping_raw(int fd, uint32_t serial)
{
        FrameHeader frame = {
                .length = FRAME_HEADER_SIZE,
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
                .serial = serial,
        };
        struct pollfd p = { .fd = fd, .events = POLLIN };
        uint8_t bytes[FRAME_HEADER_SIZE];

        frame_write_header(bytes, &frame);
        return send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) == (ssize_t)sizeof(bytes) && poll(&p, 1, HARNESS_DEADLINE_MSEC) == 1 &&
               recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) == (ssize_t)sizeof(bytes) &&
               frame_parse(bytes, sizeof(bytes), sizeof(bytes), &frame) == 0 && frame.serial == serial;
}

/* The process that connected is gone, without a lock; somebody else has its connection. */
static void leave_gone(World *world)
{
        Vm vm = vm_start(world->daemon, "world-gone");
        int pidfd = pidfd_open(vm.pid, 0);

        world->gone = pidfd_getfd(pidfd, 4, 0);
        assert_true(world->gone >= 0);
        assert_int_equal(fcntl(world->gone, F_SETFD, FD_CLOEXEC), 0);
        close(pidfd);
        vm_kill(&vm);
        assert_true(ping_raw(world->gone, 1));
}

static void leave_cut(World *world)
{
        static const size_t cuts[] = { 1, 3, 4, 5, 27, 28, 29, 40, 9999 };

        for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
                char name[32];
                size_t len;
                _cleanup_free_ uint8_t *bytes = NULL;

                (void)snprintf(name, sizeof(name), "cut%zu", i);
                bytes = acquire_bytes(make_image(world, name), 0, (uint32_t)(CUT_SERIAL + i), &len);
                world->cut[i] = vm_conn(world->daemon, &world->shared_b);
                world->cut_at[i] = cuts[i] < len ? cuts[i] : len - 1;
                conn_send_bytes(world->cut[i], bytes, world->cut_at[i]);
                world->n_cut++;
        }
}

static void leave_full(World *world)
{
        _cleanup_free_ uint8_t *all = NULL;
        size_t used = 0;

        world->full = vm_conn(world->daemon, &world->shared_c);
        for (uint32_t i = 0; i < FULL_CALLS; i++) {
                size_t len;
                _cleanup_free_ uint8_t *bytes = acquire_bytes(path_of(world, "exclusive"), 0, FULL_SERIAL + i, &len);

                if (!all)
                        all = malloc(FULL_CALLS * len);
                assert_non_null(all);
                memcpy(all + used, bytes, len);
                used += len;
        }
        conn_send_bytes(world->full, all, used);
}

/* Long answers, and nobody reads them. */
static void leave_listing(World *world)
{
        const lockd_list_args args = { 0 };
        FrameHeader header = { .program = LOCKD_ADMIN_PROGRAM, .version = LOCKD_ADMIN_VERSION, .procedure = LOCKD_ADMIN_LIST };
        size_t size = wire_size((xdrproc_t)xdr_lockd_list_args, &args);
        _cleanup_free_ uint8_t *all = malloc(LISTS * size);

        assert_non_null(all);
        for (header.serial = 0; header.serial < LISTS; header.serial++)
                assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_lockd_list_args, &args, all + header.serial * size, size), 0);
        world->listing = admin_open(world->daemon);
        conn_send_bytes(world->listing, all, LISTS * size);
}

void world_start(World *world, TestDaemon *daemon, const char *folder)
{
        const lockd_list_ret *list;

        *world = (World){ .daemon = daemon };
        (void)snprintf(world->dir, sizeof(world->dir), "%s", folder);
        assert_int_equal(mkdir(work_path(folder), 0700), 0);
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
                if (!strchr(files[i].name, '/'))
                        (void)make_image(world, files[i].name);
        world->own = vm_start(daemon, "world-own");
        world->shared_b = vm_start(daemon, "world-b");
        world->shared_c = vm_start(daemon, "world-c");
        world->mute = vm_start(daemon, "world-mute");
        world->half = vm_start(daemon, "world-half");
        world->orphan = vm_start(daemon, "world-orphan");
        world->bare = vm_start_bare("world-bare");
        take_plain(world);
        take_shared(world);
        leave_unconfirmed(world);
        take_without_process(world);
        leave_orphan(world);
        leave_unprotected(world);
        leave_silent(world);
        (void)keep(world, conn_open(daemon)); /* unregistered */
        leave_gone(world);
        leave_cut(world);
        leave_full(world);
        leave_listing(world);
        list = list_leases(daemon);
        world->n_leases = list->records.records_len;
        world->list = encode_leases(list, &world->list_len);
        world_check(world);
}

/* ---- the checks ---- */

uint8_t *encode_leases(const lockd_list_ret *list, size_t *ret_len)
{
        /* What a newer lockd said beside is no property of the lease. */
        for (u_int i = 0; i < list->records.records_len; i++) {
                lockd_record *record = &list->records.records_val[i];

                record->extra.lockd_bytes_len = 0;
                for (u_int j = 0; j < record->holds.holds_len; j++)
                        record->holds.holds_val[j].extra.lockd_bytes_len = record->holds.holds_val[j].owner.extra.lockd_bytes_len = 0;
        }
        return encode_args((xdrproc_t)xdr_lockd_list_ret, list, ret_len);
}

static bool is_open(Conn *conn)
{
        struct pollfd p = { .fd = conn_fd(conn) };

        return poll(&p, 1, 0) == 0;
}

void world_check_locks(const World *world)
{
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
                const char *path = path_of(world, files[i].name);

                if (is_lockable(path, false) != (files[i].state == FREE) || is_lockable(path, true) != (files[i].state != EXCLUSIVE))
                        fail_msg("%s: %s", path, files[i].state == FREE ? "locked" : "not locked as it was");
        }
}

void world_check_quietly(World *world)
{
        world_check_locks(world);
        for (unsigned i = 0; i < world->n_conns; i++)
                if (!conn_ping(world->conns[i], ++world->serial))
                        fail_msg("connection %u was closed", i);
        for (unsigned i = 0; i < world->n_cut; i++)
                if (!is_open(world->cut[i]))
                        fail_msg("a connection that had sent %zu bytes was closed", world->cut_at[i]);
        if (!ping_raw(world->gone, ++world->serial))
                fail_msg("the connection of a process that is gone was closed");
        assert_true(is_open(world->full) && is_open(world->listing));
        assert_true(vm_ping(&world->own) && vm_ping(&world->shared_b) && vm_ping(&world->shared_c));
}

static const char *text_of(const lockd_bytes *bytes)
{
        static char buffers[8][256];
        static unsigned next;
        char *buf = buffers[next++ % 8];

        (void)snprintf(buf, sizeof(buffers[0]), "%.*s", (int)bytes->lockd_bytes_len, bytes->lockd_bytes_val);
        return buf;
}

/* One line for each lease and each hold. */
static char *describe(const lockd_list_ret *list)
{
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);

        assert_non_null(f);
        for (u_int i = 0; i < list->records.records_len; i++) {
                const lockd_record *r = &list->records.records_val[i];

                fprintf(f, "lease %llu %s '%s' mode %d state %d kind %d fd %d auto %d local %d rel %d since %llu, %u holds\n",
                        (unsigned long long)r->id, text_of(&r->lockspace), text_of(&r->resource), r->mode, r->state, r->kind, r->fd,
                        r->autocreate, r->local, r->releasing, (unsigned long long)r->since, r->holds_total);
                for (u_int j = 0; j < r->holds.holds_len; j++) {
                        const lockd_hold *h = &r->holds.holds_val[j];

                        fprintf(f, "hold %s '%s' owner %llu '%s' id %u pid %u start %llu proved %d conns %u socket %llu state %d "
                                "pidfd %d dead %d kill %d %llu; since %llu unconfirmed %d by %llu\n",
                                text_of(&h->lockspace), text_of(&h->resource), (unsigned long long)h->owner.number,
                                text_of(&h->owner.name), h->owner.id, h->owner.pid, (unsigned long long)h->owner.start_time,
                                h->owner.proved, h->owner.connections, (unsigned long long)h->owner.socket, h->owner.state,
                                h->owner.pidfd, h->owner.dead, h->owner.kill_sent, (unsigned long long)h->owner.kill_left,
                                (unsigned long long)h->since, h->unconfirmed, (unsigned long long)h->taken_by);
                }
        }
        fclose(f);
        return text;
}

/* Lines of a that b has not. */
static void print_missing(const char *what, char *a, const char *b)
{
        char *save = NULL;

        for (char *line = strtok_r(a, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
                if (!strstr(b, line))
                        print_message("%s: %s\n", what, line);
}

static void print_difference(const World *world, const lockd_list_ret *list)
{
        lockd_list_ret before = { 0 };
        _cleanup_free_ char *a = NULL, *b = NULL, *was = NULL;

        assert_int_equal(wire_decode((xdrproc_t)xdr_lockd_list_ret, world->list, world->list_len, &before), 0);
        a = describe(&before);
        b = describe(list);
        was = strdup(a);
        print_missing("before", a, b);
        print_missing("now", b, was);
        wire_free((xdrproc_t)xdr_lockd_list_ret, &before);
}

/* A copy of an fd in a child that lockd executes would be a lock that nobody can find. */
static void check_close_on_exec(const TestDaemon *daemon)
{
        for (int fd = 3; fd < 1024; fd++) {
                char path[64], line[256];
                unsigned flags = O_CLOEXEC;
                FILE *f;

                (void)snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)daemon->pid, fd);
                f = fopen(path, "re");
                if (!f)
                        continue;
                while (fgets(line, sizeof(line), f))
                        (void)sscanf(line, "flags: %o", &flags);
                fclose(f);
                if (!(flags & O_CLOEXEC))
                        fail_msg("fd %d is not close-on-exec", fd);
        }
}

void world_check(World *world)
{
        const lockd_list_ret *list = list_leases(world->daemon);
        size_t len;
        _cleanup_free_ uint8_t *now = encode_leases(list, &len);

        if (len != world->list_len || memcmp(now, world->list, len) != 0) {
                print_difference(world, list);
                fail_msg("the leases are not what they were");
        }
        check_close_on_exec(world->daemon);
        world_check_quietly(world);
}

/* ---- the end ---- */

static void finish_cut(World *world)
{
        for (unsigned i = 0; i < world->n_cut; i++) {
                char name[32];
                size_t len;
                _cleanup_free_ uint8_t *bytes = NULL;
                FrameHeader answer;

                (void)snprintf(name, sizeof(name), "cut%u", i);
                bytes = acquire_bytes(path_of(world, name), 0, CUT_SERIAL + i, &len);
                conn_send_bytes(world->cut[i], bytes + world->cut_at[i], len - world->cut_at[i]);
                if (!conn_receive(world->cut[i], &answer, NULL, NULL))
                        fail_msg("a connection that had sent %zu bytes was closed", world->cut_at[i]);
                assert_int_equal(answer.type, FRAME_REPLY);
                assert_int_equal(answer.serial, CUT_SERIAL + i);
                assert_int_equal(answer.status, FRAME_OK);
                assert_false(is_lockable(path_of(world, name), true));
                assert_true(conn_ping(world->cut[i], ++world->serial));
                conn_close(world->cut[i]);
        }
}

static void finish_full(World *world)
{
        for (uint32_t i = 0; i < FULL_CALLS; i++) {
                FrameHeader answer;

                if (!conn_receive(world->full, &answer, NULL, NULL))
                        fail_msg("closed after %u answers", i);
                assert_int_equal(answer.type, FRAME_REPLY);
                assert_int_equal(answer.serial, FULL_SERIAL + i);
                assert_int_equal(answer.status, FRAME_ERROR);
        }
        assert_true(conn_ping(world->full, ++world->serial));
        conn_close(world->full);
}

static void finish_listing(World *world)
{
        for (uint32_t i = 0; i < LISTS; i++) {
                FrameHeader answer;

                if (!conn_receive(world->listing, &answer, NULL, NULL))
                        fail_msg("closed after %u lists", i);
                assert_int_equal(answer.procedure, LOCKD_ADMIN_LIST);
                assert_int_equal(answer.serial, i);
                assert_int_equal(answer.status, FRAME_OK);
        }
        assert_true(conn_ping(world->listing, ++world->serial));
        conn_close(world->listing);
}

/* Each owner's locks go with it, and with no other. */
static void finish_owners(World *world)
{
        TestDaemon *d = world->daemon;

        vm_kill(&world->mute);
        wait_unlisted(d, "", path_of(world, "mute"));
        vm_kill(&world->half);
        wait_unlisted(d, "", path_of(world, "half"));
        vm_kill(&world->bare);
        wait_unlisted(d, "", path_of(world, "bare"));
        assert_false(is_lockable(path_of(world, "orphan"), true));
        vm_end_child(&world->orphan);
        wait_unlisted(d, "", path_of(world, "orphan"));
        assert_false(is_lockable(path_of(world, "exclusive"), true));
        vm_kill(&world->own);
        wait_unlisted(d, "", path_of(world, "exclusive"));
        wait_unlisted(d, "", path_of(world, "unconfirmed"));
        wait_unlisted(d, "", path_of(world, "unprotected"));
        wait_unlisted(d, path_of(world, "space"), "lease");
        assert_false(file_exists(path_of(world, "space/lease")));
        vm_kill(&world->shared_b);
        wait_until(count_holds(d, "", path_of(world, "shared")) == SHARED_TIMES);
        vm_kill(&world->shared_c);
        wait_unlisted(d, "", path_of(world, "shared"));
        wait_unlisted(d, path_of(world, "space"), "shared");
        assert_false(file_exists(path_of(world, "space/shared")));
}

void world_finish(World *world)
{
        TestDaemon *d = world->daemon;

        world_check(world);
        finish_cut(world);
        finish_full(world);
        finish_listing(world);
        /* The mark is still there: granted, once. */
        assert_int_equal(conn_acquire(world->twice, "", path_of(world, "unconfirmed"), 0), 0);
        assert_int_equal(conn_acquire(world->twice, "", path_of(world, "unconfirmed"), 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        finish_owners(world);
        assert_int_equal(count_holds(d, "", path_of(world, "nobody")), 1);
        assert_int_equal(run_admin(d, NULL, (const char *[]){ "release", path_of(world, "nobody"), "--owner",
                                                              uuid_text((const uint8_t[16]){ 0xab, 0xff, 0 }), NULL }), 0);
        if (world->ends)
                assert_int_equal(daemon_wait(d), 0);
        else
                assert_int_equal(list_leases(d)->records.records_len, 0);
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
                assert_true(strchr(files[i].name, '/') || is_lockable(path_of(world, files[i].name), false));
        for (unsigned i = 0; i < world->n_conns; i++)
                conn_close(world->conns[i]);
        close(world->gone);
        free(TAKE_PTR(world->list));
}

void world_abandon(World *world)
{
        Vm *vms[] = { &world->own, &world->shared_b, &world->shared_c, &world->mute, &world->half, &world->bare };

        for (size_t i = 0; i < sizeof(vms) / sizeof(vms[0]); i++)
                vm_kill(vms[i]);
        vm_end_child(&world->orphan);
        for (unsigned i = 0; i < world->n_conns; i++)
                conn_close(world->conns[i]);
        for (unsigned i = 0; i < world->n_cut; i++)
                conn_close(world->cut[i]);
        conn_close(world->full);
        conn_close(world->listing);
        close(world->gone);
        free(TAKE_PTR(world->list));
}

/* ---- upgrades ---- */

unsigned long long image_of(pid_t pid)
{
        char path[64], text[1024] = "", *p;
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        f = fopen(path, "re");
        assert_non_null(f);
        assert_non_null(fgets(text, sizeof(text), f));
        fclose(f);
        /* Field 28: where the stack begins. */
        p = strrchr(text, ')') + 2;
        for (int field = 3; field < 28; field++)
                p = strchr(p, ' ') + 1;
        return strtoull(p, NULL, 10);
}

/* Lines of the log that say that there was no upgrade, and text. */
static unsigned count_failures(const TestDaemon *daemon, const char *text)
{
        _cleanup_free_ char *line = NULL;
        FILE *f = fopen(daemon->log, "re");
        size_t size = 0;
        unsigned n = 0;

        assert_non_null(f);
        while (getline(&line, &size, f) > 0)
                n += strstr(line, "no upgrade to ") && strstr(line, text);
        fclose(f);
        return n;
}

static const char *const upgrade[] = { "-T", "28", "upgrade", NULL };

void expect_no_upgrade(World *world, const char *text)
{
        TestDaemon *d = world->daemon;
        unsigned before = daemon_log_count(d, "no upgrade to "), with_text = count_failures(d, text);
        _cleanup_free_ char *said = NULL;
        int code = run_admin(d, &said, upgrade);

        if (code != 1 || !strstr(said, text))
                fail_msg("wanted a refusal with \"%s\", got code %d: %s", text, code, said);
        assert_int_equal(daemon_log_count(d, "no upgrade to "), before + 1);
        if (count_failures(d, text) != with_text + 1)
                fail_msg("\"%s\" is not once in the log, but %u times", text, count_failures(d, text) - with_text);
        world_check(world);
}

void expect_upgrade(World *world)
{
        TestDaemon *d = world->daemon;
        unsigned before = daemon_log_count(d, "up after an upgrade");
        _cleanup_free_ char *said = NULL;
        int code = run_admin(d, &said, upgrade);

        if (code != 0)
                fail_msg("no upgrade: code %d: %s", code, said);
        assert_int_equal(daemon_log_count(d, "up after an upgrade"), before + 1);
        world_check(world);
}
