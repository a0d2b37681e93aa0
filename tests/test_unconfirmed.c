/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Holds of which the taker may never have learnt: libvirt takes a VM's disks one after the other, and on a refusal gives
 * none of them back. Also: clients that go in the middle of a request. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "wire.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static int start(void **state)
{
        (void)state;
        daemon_start(d, NULL, NULL);
        return 0;
}

static int stop(void **state)
{
        (void)state;
        daemon_stop(d);
        return 0;
}

static const lockd_hold *hold_of(const char *name)
{
        const lockd_record *record = find_lease(d, "", name);

        if (!record)
                fail_msg("%s is not held", name);
        return &record->holds.holds_val[0];
}

/* Closes a connection that is not the owner's own, and waits until lockd knows. */
static void close_and_settle(Conn *conn)
{
        Conn *other = conn_open(d);

        conn_close(conn);
        /* Events of one round come in any order: after two round trips it has had its turn. */
        assert_int_equal(conn_create_lockspace(other, ""), 0);
        assert_int_equal(conn_create_lockspace(other, ""), 0);
        conn_close(other);
}

/* libvirtd takes one disk for vm, is refused the second one, which another VM has, and goes. */
static void fail_halfway(const Vm *vm, const char *first, uint32_t flags, const char *busy)
{
        Conn *conn = vm_conn(d, vm);

        assert_int_equal(conn_acquire(conn, "", first, flags), 0);
        assert_int_equal(conn_acquire(conn, "", busy, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        close_and_settle(conn);
}

/* A VM with two disks, one of them busy, whose resume is refused: its first disk stays locked for it. With stock that VM
 * could never be resumed again, since its own lock is in its way. */
static void test_second_resume_works(void **state)
{
        const char *first = make_file("first.img", NULL), *second = make_file("second.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca, *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", second, 0), 0);
        assert_false(hold_of(second)->unconfirmed);
        for (int round = 0; round < 3; round++) {
                fail_halfway(&a, first, 0, second);
                assert_true(hold_of(first)->unconfirmed);
                assert_false(hold_of(second)->unconfirmed);
                assert_false(is_lockable(first, true));
                assert_int_equal(count_holds(d, "", first), 1);
                assert_busy(cb, conn_acquire(cb, "", first, 0), "by VM 'alpha'");
                assert_true(hold_of(first)->unconfirmed);
        }
        assert_int_equal(conn_release(cb, "", second), 0);
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", first, 0), 0);
        assert_false(hold_of(first)->unconfirmed);
        assert_int_equal(conn_acquire(ca, "", second, 0), 0);
        /* Once: from now on it is held like any other. */
        assert_busy(ca, conn_acquire(ca, "", first, 0), "by VM 'alpha'");
        close_and_settle(ca);
        /* That refusal was its last call: both are in doubt again. A pause leaves nothing locked. */
        ca = vm_conn(d, &a);
        assert_int_equal(conn_release(ca, "", first), 0);
        assert_int_equal(conn_release(ca, "", second), 0);
        assert_busy(ca, conn_release(ca, "", first), "is not locked");
        assert_int_equal(list_leases(d)->records.records_len, 0);
        assert_true(is_lockable(first, false));
        close_and_settle(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* The second try wants the disk in another way, or is another VM's: refused, and the doubt stays. */
static void test_only_the_same_again(void **state)
{
        const char *busy = make_file("busy.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca, *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);
        for (uint32_t mode = 0; mode <= SHARED; mode++) {
                const char *first = make_file(mode ? "mode1.img" : "mode0.img", NULL);

                fail_halfway(&a, first, mode, busy);
                ca = vm_conn(d, &a);
                assert_busy(ca, conn_acquire(ca, "", first, mode ^ SHARED), "by VM 'alpha'");
                assert_busy(cb, conn_acquire(cb, "", first, 0), "by VM 'alpha'");
                assert_true(hold_of(first)->unconfirmed);
                assert_int_equal(conn_acquire(ca, "", first, mode), 0);
                assert_int_equal(count_holds(d, "", first), 1);
                assert_false(hold_of(first)->unconfirmed);
                assert_int_equal(conn_release(ca, "", first), 0);
                assert_true(is_lockable(first, false));
                conn_close(ca);
        }
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* Each shared hold in doubt is confirmed once; what comes beyond them is one more. */
static void test_shared_holds_in_doubt(void **state)
{
        const char *image = make_file("base.img", NULL), *busy = make_file("taken.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);
        assert_int_equal(conn_acquire(cb, "", image, SHARED), 0);
        assert_int_equal(conn_acquire(ca, "", image, SHARED), 0);
        assert_int_equal(conn_acquire(ca, "", image, SHARED), 0);
        assert_int_equal(conn_acquire(ca, "", busy, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        close_and_settle(ca);
        assert_int_equal(count_holds(d, "", image), 3);
        ca = vm_conn(d, &a);
        for (unsigned n = 0; n < 4; n++) {
                assert_int_equal(conn_acquire(ca, "", image, SHARED), 0);
                assert_int_equal(count_holds(d, "", image), n < 2 ? 3 : n + 2);
        }
        for (int n = 0; n < 4; n++)
                assert_int_equal(conn_release(ca, "", image), 0);
        assert_int_equal(count_holds(d, "", image), 1);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* Where the end was a good one, nothing is in doubt, and the same disk again is refused as ever. */
static void test_good_ends(void **state)
{
        const char *image = make_file("good.img", NULL), *second = make_file("good2.img", NULL);
        const char *busy = make_file("good3.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *conn, *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);

        /* Granted, read, closed. */
        conn = vm_conn(d, &a);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        close_and_settle(conn);
        assert_false(hold_of(image)->unconfirmed);

        /* Somebody else's bad end later does not matter to it. */
        fail_halfway(&a, second, 0, busy);
        assert_false(hold_of(image)->unconfirmed);
        assert_true(hold_of(second)->unconfirmed);
        conn = vm_conn(d, &a);
        assert_busy(conn, conn_acquire(conn, "", image, 0), "by VM 'alpha'");
        assert_int_equal(conn_release(conn, "", image), 0);
        assert_int_equal(conn_release(conn, "", second), 0);

        /* A client that is refused and then gives back what it wants to: it knows what it has. */
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(conn_acquire(conn, "", second, 0), 0);
        assert_int_equal(conn_acquire(conn, "", busy, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(conn_release(conn, "", second), 0);
        close_and_settle(conn);
        assert_false(hold_of(image)->unconfirmed);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* While the connection is open nothing is in doubt: libvirtd may be about to give back what it got. */
static void test_open_connection(void **state)
{
        const char *image = make_file("open.img", NULL), *busy = make_file("open2.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *first = vm_conn(d, &a), *second = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);
        assert_int_equal(conn_acquire(first, "", image, 0), 0);
        assert_int_equal(conn_acquire(first, "", busy, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_false(hold_of(image)->unconfirmed);
        assert_busy(second, conn_acquire(second, "", image, 0), "by VM 'alpha'");
        close_and_settle(first);
        assert_int_equal(conn_acquire(second, "", image, 0), 0);
        conn_close(second);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* An ACQUIRE that failed for whatever reason is one that failed. */
static void test_other_refusals(void **state)
{
        const char *image = make_file("flags.img", NULL);
        Vm a = vm_start(d, "alpha");
        static char long_name[VIRTLOCK_STRING_MAX + 1];

        (void)state;
        for (int way = 0; way < 4; way++) {
                Conn *conn = vm_conn(d, &a);

                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
                switch (way) {
                case 0:
                        assert_int_equal(conn_acquire(conn, "", work_path("missing.img"), 0), VIRTLOCK_ERR_SYSTEM);
                        break;
                case 1:
                        assert_int_equal(conn_acquire(conn, "/no/such/lockspace", "lease", 0), VIRTLOCK_ERR_INTERNAL);
                        break;
                case 2:
                        assert_int_equal(conn_acquire(conn, "", image, 0x80), VIRTLOCK_ERR_INVALID_ARG);
                        break;
                default:
                        memset(long_name, 'x', sizeof(long_name) - 1);
                        assert_int_not_equal(conn_acquire(conn, "", long_name, 0), 0);
                        break;
                }
                close_and_settle(conn);
                if (!hold_of(image)->unconfirmed)
                        fail_msg("after refusal %d it is not in doubt", way);
                conn = vm_conn(d, &a);
                assert_int_equal(conn_acquire(conn, "", image, 0), 0);
                assert_int_equal(conn_release(conn, "", image), 0);
                conn_close(conn);
        }
        vm_kill(&a);
}

/* libvirtd died before it read that it had the disk. */
static void test_reply_unread(void **state)
{
        const char *image = make_file("unread.img", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        conn_send_acquire(conn, "", image, 0, 4711);
        wait_until(find_lease(d, "", image));
        close_and_settle(conn);
        assert_true(hold_of(image)->unconfirmed);
        assert_false(is_lockable(image, true));
        conn = vm_conn(d, &a);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_busy(conn, conn_acquire(conn, "", image, 0), "by VM 'alpha'");
        conn_close(conn);
        vm_kill(&a);
        wait_unlisted(d, "", image);
}

/* It was gone before lockd came to its request: whatever is made of that, the VM can have its disk at the next try, and
 * nobody else can. */
static void test_gone_before_the_answer(void **state)
{
        const char *image = make_file("gone.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *conn = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        daemon_freeze(d);
        conn_send_acquire(conn, "", image, 0, 4711);
        conn_close(conn);
        daemon_thaw(d);
        assert_int_equal(conn_create_lockspace(cb, ""), 0);
        assert_int_equal(conn_create_lockspace(cb, ""), 0);
        if (find_lease(d, "", image)) {
                assert_true(hold_of(image)->unconfirmed);
                assert_int_equal(conn_acquire(cb, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        }
        conn = vm_conn(d, &a);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_false(hold_of(image)->unconfirmed);
        assert_int_equal(conn_acquire(conn, "", image, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        conn_close(conn);
        conn_close(cb);
        vm_kill(&a);
        vm_kill(&b);
}

/* It died while it wrote its next request: it may not have seen the answer to the one before. */
static void test_gone_in_its_second_request(void **state)
{
        const char *image = make_file("cut.img", NULL);
        const uint8_t half[10] = { 0, 0, 0, 100 };
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        conn_send_bytes(conn, half, sizeof(half));
        close_and_settle(conn);
        assert_true(hold_of(image)->unconfirmed);
        vm_kill(&a);
        wait_unlisted(d, "", image);
}

/* Half a request is none: wherever it is cut, nothing is held, by nobody. */
static void test_half_a_request(void **state)
{
        const char *image = make_file("ghost.img", NULL);
        Vm a = vm_start(d, "alpha");
        virtlock_resource args = {
                .path = { 0, NULL },
                .name = { (u_int)strlen(image), (char *)(uintptr_t)image },
        };
        FrameHeader header = {
                .program = VIRTLOCK_PROGRAM,
                .version = VIRTLOCK_VERSION,
                .procedure = VIRTLOCK_ACQUIRE_RESOURCE,
        };
        size_t size = wire_size((xdrproc_t)xdr_virtlock_resource, &args);
        _cleanup_free_ uint8_t *frame = malloc(size);
        Conn *other = conn_open(d);
        struct pollfd p = { .events = POLLIN };

        (void)state;
        assert_int_equal(wire_encode(&header, (xdrproc_t)xdr_virtlock_resource, &args, frame, size), 0);
        for (size_t cut = 1; cut < header.length; cut++) {
                Conn *conn = vm_conn(d, &a);

                conn_send_bytes(conn, frame, cut);
                /* After a round trip it has been seen, and is no reason for an answer. */
                assert_int_equal(conn_create_lockspace(other, ""), 0);
                p.fd = conn_fd(conn);
                assert_int_equal(poll(&p, 1, 0), 0);
                if (cut % 2)
                        (void)shutdown(conn_fd(conn), SHUT_RDWR);
                close_and_settle(conn);
                assert_int_equal(list_leases(d)->records.records_len, 0);
        }
        assert_true(is_lockable(image, false));
        conn_close(other);
        vm_kill(&a);
}

/* A program that locks for itself knows what it has; nothing that comes over its own connection is in doubt. */
static void test_own_connection(void **state)
{
        const char *image = make_file("own.img", NULL), *busy = make_file("own2.img", NULL);
        const uint8_t uuid[16] = { 1 };
        Vm b = vm_start(d, "beta");
        Conn *own = conn_open(d), *again = conn_open(d), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);
        assert_int_equal(conn_register(own, "own", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_register(again, "own", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_acquire(own, "", image, 0), 0);
        assert_int_equal(conn_acquire(own, "", busy, 0), VIRTLOCK_ERR_RESOURCE_BUSY);
        close_and_settle(own);
        assert_false(hold_of(image)->unconfirmed);
        assert_busy(again, conn_acquire(again, "", image, 0), "by VM 'own'");
        assert_int_equal(conn_release(again, "", image), 0);
        /* With the answer unread. */
        conn_send_acquire(again, "", image, 0, 4711);
        wait_until(find_lease(d, "", image));
        close_and_settle(again);
        assert_false(hold_of(image)->unconfirmed);
        own = conn_open(d);
        assert_int_equal(conn_register(own, "own", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_release(own, "", image), 0);
        conn_close(own);
        conn_close(cb);
        vm_kill(&b);
}

/* A hold in doubt is a hold: it goes with its owner and by hand like any other, and --json shows the doubt. */
static void test_holds_in_doubt_end(void **state)
{
        const char *const arguments[] = { "list", NULL };
        const char *image = make_file("doubt.img", NULL), *busy = make_file("doubt2.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *cb = vm_conn(d, &b), *admin = admin_open(d);
        _cleanup_free_ char *table = NULL;

        (void)state;
        assert_int_equal(conn_acquire(cb, "", busy, 0), 0);
        fail_halfway(&a, image, 0, busy);
        assert_int_equal(run_admin(d, &table, arguments), 0);
        assert_non_null(strstr(table, "unconfirmed"));
        assert_int_equal(admin_release_call(admin, "", image, uuid_text(a.uuid), LOCKD_RELEASE_FORCE), 0);
        assert_true(is_lockable(image, false));
        fail_halfway(&a, image, 0, busy);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        conn_close(cb);
        conn_close(admin);
        vm_kill(&b);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_second_resume_works),
                TEST(test_only_the_same_again),
                TEST(test_shared_holds_in_doubt),
                TEST(test_good_ends),
                TEST(test_open_connection),
                TEST(test_other_refusals),
                TEST(test_reply_unread),
                TEST(test_gone_before_the_answer),
                TEST(test_gone_in_its_second_request),
                TEST(test_half_a_request),
                TEST(test_own_connection),
                TEST(test_holds_in_doubt_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
