/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Too many connections, too few file descriptors, many calls at once: whoever cannot be served is told so at once and which
 * setting to raise, and those who are served do not notice. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "wire.h"

#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE
#define MANY 400
#define CLOSED (-1)

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static int start(void **state)
{
        (void)state;
        daemon_start(d, NULL, NULL);
        return 0;
}

static int start_with_three(void **state)
{
        (void)state;
        daemon_start(d, "max_clients = 3\nadmin_max_clients = 2\n", NULL);
        return 0;
}

static int start_with_few_fds(void **state)
{
        (void)state;
        daemon_start_under(d, "prlimit --nofile=200:200", NULL);
        return 0;
}

static int start_with_few_holds(void **state)
{
        (void)state;
        daemon_start(d, "max_holds = 3\nmax_lockspaces = 2\n", NULL);
        return 0;
}

static int stop(void **state)
{
        (void)state;
        daemon_stop(d);
        return 0;
}

/* What becomes of a call on a new connection: 0, CLOSED, or the code of a refusal, which names setting. */
static int served(Conn *conn, const char *setting)
{
        static const uint8_t empty_path[4] = { 0 };
        FrameHeader header = {
                .program = VIRTLOCK_PROGRAM,
                .version = VIRTLOCK_VERSION,
                .procedure = VIRTLOCK_CREATE_LOCKSPACE,
        };
        _cleanup_free_ uint8_t *payload = NULL;
        virtlock_error error = { 0 };
        size_t len;
        int code;

        conn_send_frame(conn, header, empty_path, sizeof(empty_path));
        if (!conn_receive(conn, &header, &payload, &len))
                return CLOSED;
        if (header.status == FRAME_OK)
                return 0;
        assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_error, payload, len, &error), 0);
        code = error.code;
        if (!strstr(*error.message, setting))
                fail_msg("no %s in: %s", setting, *error.message);
        wire_free((xdrproc_t)xdr_virtlock_error, &error);
        return code;
}

static bool is_closed(Conn *conn)
{
        FrameHeader answer;

        return !conn_receive(conn, &answer, NULL, NULL);
}

/* A new connection that is served; those that have just closed may still count for a moment. */
static Conn *open_served(const char *setting)
{
        int64_t deadline = now_msec() + HARNESS_DEADLINE_MSEC;

        for (;;) {
                Conn *conn = conn_open(d);

                if (served(conn, setting) == 0)
                        return conn;
                conn_close(conn);
                if (now_msec() > deadline)
                        fail_msg("there is no room");
                pause_briefly();
        }
}

/* The client beyond the limit was connected and never answered. It is answered, with the name of the limit; the others
 * go on, and the next one to come finds the place of one that has left. */
static void test_max_clients(void **state)
{
        Conn *conns[3], *conn;
        int64_t begin;

        (void)state;
        for (int i = 0; i < 3; i++)
                conns[i] = open_served("max_clients");
        for (int i = 0; i < 5; i++) {
                begin = now_msec();
                conn = conn_open(d);
                assert_refused(conn, conn_create_lockspace(conn, ""), VIRTLOCK_ERR_RESOURCE_BUSY, VIRTLOCK_FROM_RPC,
                               "raise max_clients (3) in lockd.conf");
                assert_true(now_msec() - begin < 1000);
                assert_true(is_closed(conn));
                conn_close(conn);
                for (int j = 0; j < 3; j++)
                        assert_int_equal(conn_create_lockspace(conns[j], ""), 0);
        }
        conn_close(conns[0]);
        conns[0] = open_served("max_clients");
        daemon_expect_log(d, "too many connections: raise max_clients (3)");
        for (int i = 0; i < 3; i++)
                conn_close(conns[i]);
}

/* Refused ones that stay connected take nobody's place, and are bounded themselves. */
static void test_refused_clients_that_stay(void **state)
{
        Conn *conns[3], *refused[40];
        int answered = 0;

        (void)state;
        for (int i = 0; i < 3; i++)
                conns[i] = open_served("max_clients");
        for (int i = 0; i < 40; i++)
                refused[i] = conn_open(d);
        assert_int_equal(conn_create_lockspace(conns[0], ""), 0);
        conn_close(conns[0]);
        conns[0] = open_served("max_clients");
        /* Each of them gets an answer or an end, none hangs. */
        for (int i = 0; i < 40; i++) {
                int code = served(refused[i], "max_clients");

                assert_true(code == CLOSED || code == VIRTLOCK_ERR_RESOURCE_BUSY);
                answered += code != CLOSED;
                assert_true(is_closed(refused[i]));
                conn_close(refused[i]);
        }
        assert_true(answered >= 10);
        for (int i = 0; i < 3; i++)
                conn_close(conns[i]);
}

/* The limit counts anew after HUP, and nobody who is there is thrown out. */
static void test_max_clients_changes(void **state)
{
        Conn *conns[5], *conn;

        (void)state;
        for (int i = 0; i < 3; i++)
                conns[i] = open_served("max_clients");
        daemon_reload(d, "max_clients = 5\n");
        for (int i = 3; i < 5; i++)
                conns[i] = open_served("max_clients");
        daemon_reload(d, "max_clients = 2\n");
        conn = conn_open(d);
        assert_refused(conn, conn_create_lockspace(conn, ""), VIRTLOCK_ERR_RESOURCE_BUSY, VIRTLOCK_FROM_RPC,
                       "raise max_clients (2)");
        conn_close(conn);
        for (int i = 0; i < 5; i++) {
                assert_int_equal(conn_create_lockspace(conns[i], ""), 0);
                conn_close(conns[i]);
        }
        conn_close(open_served("max_clients"));
}

/* The administrators' limit is one of its own: clients do not use it up, nor the other way round. */
static void test_admin_max_clients(void **state)
{
        Conn *conns[3], *admins[2], *conn;
        lockd_release_how how = LOCKD_RELEASE_SAFE;

        (void)state;
        for (int i = 0; i < 3; i++)
                conns[i] = open_served("max_clients");
        for (int i = 0; i < 2; i++) {
                int64_t deadline = now_msec() + HARNESS_DEADLINE_MSEC;

                /* "Is not locked" is an answer from behind the limit. */
                for (;;) {
                        admins[i] = admin_open(d);
                        assert_int_equal(admin_release_call(admins[i], "", "/none", "none", how),
                                         VIRTLOCK_ERR_RESOURCE_BUSY);
                        if (strstr(conn_message(admins[i]), "is not locked"))
                                break;
                        assert_non_null(strstr(conn_message(admins[i]), "admin_max_clients"));
                        conn_close(admins[i]);
                        assert_true(now_msec() < deadline);
                        pause_briefly();
                }
        }
        conn = admin_open(d);
        assert_refused(conn, admin_release_call(conn, "", "/none", "none", how), VIRTLOCK_ERR_RESOURCE_BUSY,
                       VIRTLOCK_FROM_RPC, "raise admin_max_clients (2) in lockd.conf");
        conn_close(conn);
        for (int i = 0; i < 3; i++) {
                assert_int_equal(conn_create_lockspace(conns[i], ""), 0);
                conn_close(conns[i]);
        }
        for (int i = 0; i < 2; i++) {
                assert_busy(admins[i], admin_release_call(admins[i], "", "/none", "none", how), "is not locked");
                conn_close(admins[i]);
        }
}

/* lockd is out of file descriptors: the next lock is refused, with the setting to raise, not called "locked". What is held
 * stays held, administrators get through, and as soon as there is room it goes on. */
static void test_no_fds_for_locks(void **state)
{
        const char *space = work_path("many");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);
        const lockd_list_ret *list;
        char name[32], path[4200];
        unsigned held = 0;
        int code = 0;

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        for (; held < MANY; held++) {
                (void)snprintf(name, sizeof(name), "lease-%u", held);
                code = conn_acquire(ca, space, name, AUTOCREATE);
                if (code != 0)
                        break;
        }
        assert_in_range(held, 50, 199);
        assert_system_error(ca, code, EMFILE, "raise LimitNOFILE");
        assert_null(strstr(conn_message(ca), "is locked"));
        /* A refused lease leaves no file behind. */
        (void)snprintf(path, sizeof(path), "%s/%s", space, name);
        assert_false(file_exists(path));
        list = list_leases(d);
        assert_int_equal(list->records.records_len, held);
        for (unsigned i = 0; i < held; i++) {
                (void)snprintf(path, sizeof(path), "%s/lease-%u", space, i);
                assert_false(is_lockable(path, true));
        }
        assert_busy(cb, conn_acquire(cb, space, "lease-0", AUTOCREATE), "by VM 'alpha'");
        assert_system_error(cb, conn_acquire(cb, "", make_file("disk.img", NULL), 0), EMFILE, "raise LimitNOFILE");
        for (int i = 0; i < 20; i++) {
                assert_int_equal(conn_acquire(ca, space, name, AUTOCREATE), VIRTLOCK_ERR_SYSTEM);
                assert_int_equal(list_leases(d)->records.records_len, held);
        }
        assert_int_equal(conn_release(ca, space, "lease-0"), 0);
        assert_int_equal(conn_acquire(cb, space, "lease-0", AUTOCREATE), 0);
        assert_int_equal(conn_acquire(ca, space, name, AUTOCREATE), VIRTLOCK_ERR_SYSTEM);
        /* The end of a VM is seen and dealt with all the same. */
        vm_kill(&a);
        wait_until(list_leases(d)->records.records_len == 1);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&b);
}

/* The same for connections and for owners: each takes a file descriptor, too. */
static void test_no_fds_for_connections(void **state)
{
        const char *image = make_file("held.img", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *ca = vm_conn(d, &a), *conns[MANY];
        unsigned n = 0, refused = 0;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        for (; n < MANY && refused < 10; n++) {
                conns[n] = conn_open(d);
                if (served(conns[n], "LimitNOFILE") != 0)
                        refused++;
        }
        assert_int_equal(refused, 10);
        assert_in_range(n, 60, 210);
        assert_int_equal(list_leases(d)->records.records_len, 1);
        assert_false(is_lockable(image, true));
        assert_int_equal(conn_release(ca, "", image), 0);
        for (unsigned i = 0; i < n; i++)
                conn_close(conns[i]);
        conn_close(open_served("LimitNOFILE"));
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        conn_close(ca);
        vm_kill(&a);
}

static void test_no_fds_for_owners(void **state)
{
        enum { VMS = 80 };
        Vm vms[VMS];
        Conn *conns[VMS];
        int n = 0, code = 0;

        (void)state;
        for (; n < VMS && code == 0; n++) {
                char name[32];

                (void)snprintf(name, sizeof(name), "vm-%d", n);
                vms[n] = vm_start_bare(name);
                conns[n] = conn_open(d);
                code = conn_register(conns[n], vms[n].name, vms[n].uuid, vms[n].id, (uint32_t)vms[n].pid);
        }
        assert_int_not_equal(code, 0);
        assert_non_null(strstr(conn_message(conns[n - 1]), "LimitNOFILE"));
        assert_int_equal(list_leases(d)->records.records_len, 0);
        for (int i = 0; i < n; i++) {
                conn_close(conns[i]);
                vm_kill(&vms[i]);
        }
}

/* A client gone wild cannot make lockd keep holds and lockspaces without end; what is there goes on. */
static void test_max_holds_and_lockspaces(void **state)
{
        const char *first = work_path("space1"), *second = work_path("space2"), *third = work_path("space3");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, first), 0);
        assert_int_equal(conn_create_lockspace(conn, second), 0);
        assert_refused(conn, conn_create_lockspace(conn, third), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                       "raise max_lockspaces");
        assert_false(file_exists(third));
        assert_int_equal(conn_create_lockspace(conn, first), 0);

        assert_int_equal(conn_acquire(conn, first, "lease", AUTOCREATE), 0);
        assert_int_equal(conn_acquire(conn, first, "shared", AUTOCREATE | VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_int_equal(conn_acquire(conn, first, "shared", AUTOCREATE | VIRTLOCK_ACQUIRE_SHARED), 0);
        assert_refused(conn, conn_acquire(conn, first, "shared", AUTOCREATE | VIRTLOCK_ACQUIRE_SHARED),
                       VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE, "raise max_holds");
        assert_refused(conn, conn_acquire(conn, second, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                       "raise max_holds");
        /* A refused lease leaves no file behind. */
        assert_false(file_exists(work_path("space2/lease")));
        assert_int_equal(count_holds(d, first, "shared"), 2);
        assert_int_equal(conn_release(conn, first, "shared"), 0);
        assert_int_equal(conn_acquire(conn, second, "lease", AUTOCREATE), 0);
        assert_int_equal(conn_release(conn, first, "lease"), 0);
        assert_int_equal(conn_release(conn, second, "lease"), 0);

        daemon_reload(d, "max_holds = 1\nmax_lockspaces = 3\n");
        assert_int_equal(conn_create_lockspace(conn, third), 0);
        assert_int_equal(conn_acquire(conn, third, "lease", AUTOCREATE), VIRTLOCK_ERR_INTERNAL);
        assert_int_equal(conn_release(conn, first, "shared"), 0);
        assert_int_equal(conn_acquire(conn, third, "lease", AUTOCREATE), 0);
        conn_close(conn);
        vm_kill(&a);
}

/* ---- many calls at once ---- */

/* A hundred calls in one write are carried out, and answered, in their order. */
static void test_pipelined_calls(void **state)
{
        enum { CALLS = 100 };
        const char *space = work_path("pipelined");
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);
        uint8_t *bytes = NULL;
        size_t len = 0;

        (void)state;
        assert_int_equal(conn_create_lockspace(conn, space), 0);
        for (uint32_t i = 0; i < CALLS; i++) {
                char name[32];
                virtlock_resource args = { .path = { (u_int)strlen(space), (char *)(uintptr_t)space }, .flags = AUTOCREATE };
                FrameHeader header = { .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .serial = 1000 + i };
                size_t size;

                /* Each lease is taken, refused, given back, and refused. */
                static const int procedures[] = {
                        VIRTLOCK_ACQUIRE_RESOURCE,
                        VIRTLOCK_ACQUIRE_RESOURCE,
                        VIRTLOCK_RELEASE_RESOURCE,
                        VIRTLOCK_RELEASE_RESOURCE,
                };

                (void)snprintf(name, sizeof(name), "lease-%u", i / 4);
                args.name.virtlock_string_len = (u_int)strlen(name);
                args.name.virtlock_string_val = name;
                header.procedure = procedures[i % 4];
                args.flags = header.procedure == VIRTLOCK_ACQUIRE_RESOURCE ? AUTOCREATE : 0;
                size = wire_size((xdrproc_t)xdr_virtlock_resource, &args);
                bytes = realloc(bytes, len + size);
                assert_non_null(bytes);
                assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_virtlock_resource, &args, bytes + len, size), 0);
                len += header.length;
        }
        conn_send_bytes(conn, bytes, len);
        free(bytes);
        for (uint32_t i = 0; i < CALLS; i++) {
                FrameHeader answer;

                assert_true(conn_receive(conn, &answer, NULL, NULL));
                assert_int_equal(answer.serial, 1000 + i);
                assert_int_equal(answer.type, FRAME_REPLY);
                assert_int_equal(answer.status, i % 2 == 0 ? FRAME_OK : FRAME_ERROR);
        }
        assert_int_equal(list_leases(d)->records.records_len, 0);
        conn_close(conn);
        vm_kill(&a);
}

/* A client that asks and asks and reads no answer: it gets all of them in the end, in order, and lockd does not keep what it
 * cannot send without bound. */
static void test_answers_that_are_not_read(void **state)
{
        enum { CALLS = 200000 };
        Conn *conn = conn_open(d), *other = conn_open(d);
        FrameHeader header = {
                .program = VIRTLOCK_PROGRAM,
                .version = VIRTLOCK_VERSION,
                .procedure = 4711, /* refused, with a message: the answer is longer than the call */
        };
        uint8_t frame[FRAME_HEADER_SIZE];
        char path[64], line[256];
        unsigned sent = 0, received = 0;
        size_t resident = 0, off = sizeof(frame);
        FILE *f;

        (void)state;
        header.length = sizeof(frame);
        while (sent < CALLS) {
                ssize_t n;

                if (off == sizeof(frame)) {
                        header.serial = sent;
                        frame_write_header(frame, &header);
                        off = 0;
                }
                n = send(conn_fd(conn), frame + off, sizeof(frame) - off, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (n < 0) {
                        struct pollfd p = { .fd = conn_fd(conn), .events = POLLOUT };

                        assert_int_equal(errno, EAGAIN);
                        /* lockd reads no more, until somebody reads its answers. */
                        if (poll(&p, 1, 200) == 0)
                                break;
                        continue;
                }
                off += (size_t)n;
                sent += off == sizeof(frame);
        }
        assert_true(sent > 100);
        assert_true(sent < CALLS);
        /* Others are served meanwhile. */
        assert_int_equal(conn_create_lockspace(other, ""), 0);
        (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                (void)sscanf(line, "RssAnon: %zu", &resident);
        fclose(f);
        print_message("%u calls unread, %zu kB resident\n", sent, resident);
        if (!getenv("LOCKD_INSTRUMENTED"))
                assert_in_range(resident, 1, 16 * 1024);
        for (; received < sent; received++) {
                FrameHeader answer;

                assert_true(conn_receive(conn, &answer, NULL, NULL));
                assert_int_equal(answer.serial, received);
                assert_int_equal(answer.status, FRAME_ERROR);
        }
        conn_close(conn);
        conn_close(other);
}

static void write_ping(uint8_t frame[FRAME_HEADER_SIZE], uint32_t serial)
{
        FrameHeader ping = {
                .length = FRAME_HEADER_SIZE,
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
                .serial = serial,
        };

        frame_write_header(frame, &ping);
}

static void send_ping(Conn *conn, uint32_t serial)
{
        uint8_t frame[FRAME_HEADER_SIZE];

        write_ping(frame, serial);
        conn_send_bytes(conn, frame, sizeof(frame));
}

static bool is_pong(const FrameHeader *header)
{
        return header->program == FRAME_KEEPALIVE_PROGRAM && header->procedure == FRAME_KEEPALIVE_PONG &&
               header->type == FRAME_MESSAGE;
}

static void send_admin(Conn *admin, int procedure, xdrproc_t proc, const void *args, uint32_t serial)
{
        FrameHeader header = {
                .program = LOCKD_ADMIN_PROGRAM,
                .version = LOCKD_ADMIN_VERSION,
                .procedure = procedure,
                .serial = serial,
        };
        size_t len;
        _cleanup_free_ uint8_t *payload = encode_args(proc, args, &len);

        conn_send_frame(admin, header, payload, len);
}

/* While a call waits for a VM's end, its connection is alive: a PING is answered at once, and the calls behind it wait for
 * their turn. */
static void test_ping_while_a_call_waits(void **state)
{
        const char *image = make_file("slow.img", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a), *admin = admin_open(d);
        lockd_release_args release = {
                .resource = { (u_int)strlen(image), (char *)(uintptr_t)image },
                .owner = { 5, (char *)(uintptr_t) "alpha" },
                .how = LOCKD_RELEASE_KILL,
        };
        lockd_list_args list = { 0 };
        uint8_t ping[FRAME_HEADER_SIZE];
        FrameHeader answer;
        int64_t begin = now_msec();

        (void)state;
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        vm_ignore_term(&a);
        send_ping(admin, 1);
        send_admin(admin, LOCKD_ADMIN_RELEASE, (xdrproc_t)xdr_lockd_release_args, &release, 2);
        send_admin(admin, LOCKD_ADMIN_LIST, (xdrproc_t)xdr_lockd_list_args, &list, 3);
        send_ping(admin, 4);
        send_admin(admin, LOCKD_ADMIN_LIST, (xdrproc_t)xdr_lockd_list_args, &list, 5);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_true(is_pong(&answer));
        assert_int_equal(answer.serial, 1);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_true(is_pong(&answer));
        assert_int_equal(answer.serial, 4);
        /* One more, by itself, and cut in two. */
        write_ping(ping, 6);
        conn_send_bytes(admin, ping, 13);
        assert_int_equal(conn_create_lockspace(conn, ""), 0);
        conn_send_bytes(admin, ping + 13, sizeof(ping) - 13);
        assert_true(conn_receive(admin, &answer, NULL, NULL));
        assert_true(is_pong(&answer));
        assert_int_equal(answer.serial, 6);
        assert_true(now_msec() - begin < 1500);
        assert_true(vm_is_alive(&a));
        for (uint32_t serial = 2; serial <= 5; serial++) {
                if (serial == 4)
                        continue;
                assert_true(conn_receive(admin, &answer, NULL, NULL));
                assert_int_equal(answer.type, FRAME_REPLY);
                assert_int_equal(answer.status, FRAME_OK);
                assert_int_equal(answer.serial, serial);
        }
        assert_true(now_msec() - begin >= 1500);
        assert_false(vm_is_alive(&a));
        vm_wait(&a);
        conn_close(conn);
        conn_close(admin);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_max_clients, start_with_three, stop),
                cmocka_unit_test_setup_teardown(test_refused_clients_that_stay, start_with_three, stop),
                cmocka_unit_test_setup_teardown(test_max_clients_changes, start_with_three, stop),
                cmocka_unit_test_setup_teardown(test_admin_max_clients, start_with_three, stop),
                cmocka_unit_test_setup_teardown(test_no_fds_for_locks, start_with_few_fds, stop),
                cmocka_unit_test_setup_teardown(test_no_fds_for_connections, start_with_few_fds, stop),
                cmocka_unit_test_setup_teardown(test_no_fds_for_owners, start_with_few_fds, stop),
                cmocka_unit_test_setup_teardown(test_max_holds_and_lockspaces, start_with_few_holds, stop),
                TEST(test_pipelined_calls),
                TEST(test_answers_that_are_not_read),
                TEST(test_ping_while_a_call_waits),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
