/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who an owner is, who cannot be one, and by what signs lockd knows that it is dead. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static int start(void **state)
{
        (void)state;
        daemon_start(d, NULL, NULL);
        return 0;
}

static int start_killing(void **state)
{
        (void)state;
        daemon_start(d, "on_disconnect = \"kill\"\n", NULL);
        return 0;
}

static int stop(void **state)
{
        (void)state;
        daemon_stop(d);
        return 0;
}

/* The owner of the first hold of that lease. */
static const lockd_owner *owner_of(const char *name)
{
        const lockd_record *record = find_lease(d, "", name);

        if (!record)
                fail_msg("%s is not listed", name);
        return &record->holds.holds_val[0].owner;
}

static lockd_state state_of(const char *name)
{
        const lockd_record *record = find_lease(d, "", name);

        return record ? record->state : (lockd_state)0;
}

/* ---- who cannot be an owner ---- */

static void *wait_in_thread(void *fds)
{
        pid_t tid = gettid();
        char byte;

        if (write(((int *)fds)[1], &tid, sizeof(tid)) == (ssize_t)sizeof(tid))
                (void)!read(((int *)fds)[2], &byte, 1);
        return NULL;
}

/* A lock for an owner that is already dead stayed for ever: an owner must be a living process, and one that can be a VM. */
static void test_who_cannot_be_an_owner(void **state)
{
        const uint8_t uuid[16] = { 1 };
        Conn *conn = conn_open(d);
        int fds[4];
        pthread_t thread;
        pid_t tid, gone, zombie;
        siginfo_t info;

        (void)state;
        gone = fork();
        assert_true(gone >= 0);
        if (gone == 0)
                _exit(0);
        assert_int_equal(waitpid(gone, NULL, 0), gone);
        zombie = fork();
        assert_true(zombie >= 0);
        if (zombie == 0)
                _exit(0);
        assert_int_equal(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT), 0);
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        assert_int_equal(pipe2(fds + 2, O_CLOEXEC), 0);
        assert_int_equal(pthread_create(&thread, NULL, wait_in_thread, fds), 0);
        assert_int_equal(read(fds[0], &tid, sizeof(tid)), (ssize_t)sizeof(tid));

        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, (uint32_t)gone), "no such process");
        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, (uint32_t)zombie), "has ended");
        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, (uint32_t)tid), "a thread");
        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, 1), "pid 1");
        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, (uint32_t)d->pid), "the lock daemon itself");
        assert_int_equal(conn_register(conn, "vm", uuid, 1, 0x80000000U), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_register(conn, "vm", uuid, 1, UINT32_MAX), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_invalid(conn, conn_register(conn, "vm", uuid, 0, (uint32_t)getpid()),
                       "lock owner details have not been registered");
        /* None of these registered anybody; the next, correct one does. */
        assert_invalid(conn, conn_acquire(conn, "", make_file("disk.img", NULL), 0), "have not been registered");
        assert_int_equal(conn_register(conn, "vm", uuid, 1, (uint32_t)getpid()), 0);

        close(fds[3]);
        assert_int_equal(pthread_join(thread, NULL), 0);
        close(fds[0]), close(fds[1]), close(fds[2]);
        assert_int_equal(waitpid(zombie, NULL, 0), zombie);
        conn_close(conn);
}

/* Who has registered once stays who it is. */
static void test_identity_cannot_change(void **state)
{
        const uint8_t uuid[16] = { 1 }, other[16] = { 2 };
        Vm a = vm_start(d, "alpha");
        Conn *conn = conn_open(d);

        (void)state;
        assert_int_equal(conn_register(conn, "vm", uuid, 1, (uint32_t)a.pid), 0);
        assert_int_equal(conn_register(conn, "vm", uuid, 1, (uint32_t)a.pid), 0);
        assert_invalid(conn, conn_register(conn, "vm", other, 1, (uint32_t)a.pid), "already registered for VM 'vm'");
        assert_int_equal(conn_register(conn, "another", uuid, 1, (uint32_t)a.pid), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_register(conn, "vm", uuid, 2, (uint32_t)a.pid), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_register(conn, "vm", uuid, 1, (uint32_t)getpid()), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_register(conn, "vm", uuid, 1, 0), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_acquire(conn, "", make_file("identity.img", NULL), 0), 0);
        assert_int_equal(owner_of(work_path("identity.img"))->pid, a.pid);
        assert_memory_equal(owner_of(work_path("identity.img"))->uuid, uuid, 16);
        conn_close(conn);
        vm_kill(&a);
}

/* Xen: an owner without a process. Nothing tells of its death, so what it holds stays until it is given back, by the same
 * uuid and id, or by hand. */
static void test_pid_zero(void **state)
{
        const char *image = make_file("xen.img", NULL), *second = make_file("xen2.img", NULL);
        const uint8_t uuid[16] = { 1 }, other[16] = { 2 };
        Conn *conn = conn_open(d), *admin = admin_open(d);

        (void)state;
        assert_int_equal(conn_register(conn, "xen", uuid, 7, 0), 0);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(conn_acquire(conn, "", second, 0), 0);
        conn_close(conn);

        conn = conn_open(d);
        assert_int_equal(conn_register(conn, "xen", uuid, 8, 0), 0);
        assert_busy(conn, conn_acquire(conn, "", image, 0), "by VM 'xen'");
        assert_refused(conn, conn_release(conn, "", image), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE, "does not hold");
        conn_close(conn);
        conn = conn_open(d);
        assert_int_equal(conn_register(conn, "xen", other, 7, 0), 0);
        assert_refused(conn, conn_release(conn, "", image), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE, "does not hold");
        conn_close(conn);
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        assert_int_equal(owner_of(image)->state, LOCKD_OWNER_NONE);
        assert_false(is_lockable(image, true));

        conn = conn_open(d);
        assert_int_equal(conn_register(conn, "xen", uuid, 7, 0), 0);
        assert_int_equal(conn_release(conn, "", image), 0);
        conn_close(conn);
        assert_true(is_lockable(image, false));
        assert_int_equal(admin_release_call(admin, "", second, "xen", LOCKD_RELEASE_KILL), VIRTLOCK_ERR_OPERATION_DENIED);
        assert_int_equal(admin_release_call(admin, "", second, "xen", LOCKD_RELEASE_SAFE), 0);
        assert_true(is_lockable(second, false));
        assert_null(find_lease(d, "", second));
        conn_close(admin);
}

/* ---- death ---- */

/* A VM's end frees all that it has, in every lockspace and mode, over whichever connection it was taken; libvirtd's own
 * connection is still open, and gets nothing more for that VM. */
static void test_death_frees_everything(void **state)
{
        const char *image = make_file("one.img", NULL), *shared = make_file("two.img", NULL), *space = work_path("death");
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_create_lockspace(ca, space), 0);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        assert_int_equal(conn_acquire(ca, "", shared, SHARED), 0);
        assert_int_equal(conn_acquire(ca, "", shared, SHARED), 0);
        assert_int_equal(conn_acquire(cb, "", shared, SHARED), 0);
        assert_int_equal(conn_acquire(ca, space, "lease", VIRTLOCK_ACQUIRE_AUTOCREATE), 0);
        vm_kill(&a);
        wait_until(list_leases(d)->records.records_len == 1);
        assert_int_equal(count_holds(d, "", shared), 1);
        assert_true(is_lockable(image, false));
        assert_false(is_lockable(shared, false));
        assert_invalid(ca, conn_acquire(ca, "", image, 0), "has ended");
        assert_busy(ca, conn_release(ca, "", image), "is not locked");
        assert_true(is_lockable(image, false));
        conn_close(ca);
        conn_close(cb);
        vm_kill(&b);
}

/* A VM without a connection of its own (it was started before lockd): its process alone tells. */
static void test_death_without_own_connection(void **state)
{
        const char *image = make_file("bare.img", NULL);
        Vm a = vm_start_bare("alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_false(owner_of(image)->proved);
        conn_close(conn);
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        vm_kill(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
}

/* libvirtd asks for a VM that has just died: whatever the answer, nothing stays locked. */
static void test_acquire_for_the_dying(void **state)
{
        const char *image = make_file("late.img", NULL);

        (void)state;
        for (int own = 0; own <= 1; own++) {
                Vm a = own ? vm_start(d, "alpha") : vm_start_bare("alpha");
                Conn *conn = vm_conn(d, &a);
                FrameHeader answer;

                daemon_freeze(d);
                conn_send_acquire(conn, "", image, 0, 1);
                vm_kill(&a);
                conn_send_acquire(conn, "", image, SHARED, 2);
                daemon_thaw(d);
                assert_true(conn_receive(conn, &answer, NULL, NULL));
                assert_true(conn_receive(conn, &answer, NULL, NULL));
                wait_unlisted(d, "", image);
                assert_true(is_lockable(image, false));
                conn_close(conn);
        }
}

/* The number of a dead VM is given to a new process, even of the same VM: that is another owner. It neither inherits a
 * hold nor saves one, and the dead one's connection gets nothing for it. */
static void test_pid_reuse(void **state)
{
        const char *image = make_file("reuse.img", NULL), *other = make_file("other.img", NULL);
        Vm old = vm_start(d, "alpha"), fresh;
        Conn *old_conn = vm_conn(d, &old), *fresh_conn;
        const lockd_owner *owner;
        virtlock_register args = { .name = { 5, (char *)(uintptr_t) "alpha" }, .id = 4711, .pid = (u_int)old.pid };
        FrameHeader header = { .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = VIRTLOCK_REGISTER };
        FrameHeader answer;
        uint64_t start_time;
        size_t len;
        _cleanup_free_ uint8_t *payload = NULL;

        (void)state;
        memcpy(args.uuid, old.uuid, sizeof(args.uuid));
        payload = encode_args((xdrproc_t)xdr_virtlock_register, &args, &len);
        assert_int_equal(conn_acquire(old_conn, "", image, 0), 0);
        start_time = owner_of(image)->start_time;
        assert_true(start_time > 0);
        fresh_conn = conn_open(d);
        assert_int_equal(conn_create_lockspace(fresh_conn, ""), 0);
        /* All at once, so that no death is heard of before the number has its new bearer. */
        daemon_freeze(d);
        vm_kill(&old);
        fresh = vm_start_bare_as("alpha", old.pid);
        assert_int_equal(fresh.pid, old.pid);
        assert_memory_equal(fresh.uuid, old.uuid, 16);
        conn_send_frame(fresh_conn, header, payload, len);
        conn_send_acquire(old_conn, "", other, 0, 1);
        daemon_thaw(d);
        assert_true(conn_receive(fresh_conn, &answer, NULL, NULL));
        assert_int_equal(answer.status, FRAME_OK);
        assert_true(conn_receive(old_conn, &answer, NULL, NULL));
        wait_unlisted(d, "", image);
        wait_unlisted(d, "", other);
        assert_true(is_lockable(image, false));
        assert_true(vm_is_alive(&fresh));
        assert_int_equal(conn_acquire(fresh_conn, "", image, 0), 0);
        owner = owner_of(image);
        assert_int_equal(owner->pid, fresh.pid);
        assert_true(owner->start_time >= start_time);
        assert_false(owner->proved);
        assert_invalid(old_conn, conn_acquire(old_conn, "", other, 0), "has ended");
        assert_refused(old_conn, conn_release(old_conn, "", image), VIRTLOCK_ERR_INTERNAL, VIRTLOCK_FROM_LOCKSPACE,
                       "does not hold");
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        conn_close(old_conn);
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        conn_close(fresh_conn);
        vm_kill(&fresh);
        wait_unlisted(d, "", image);
}

/* ---- pid namespaces ---- */

/* Joins the VM's pid namespace and asks, as a libvirtd in that container would, for the process with this number there.
 * The error's code; the image is then acquired when it is 0. */
static int register_inside(const Vm *vm, const uint8_t uuid[16], uint32_t pid, const char *image)
{
        int status;
        pid_t child = fork();

        assert_true(child >= 0);
        if (child == 0) {
                char path[64];
                int fd;

                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)vm->pid);
                fd = open(path, O_RDONLY | O_CLOEXEC);
                if (fd < 0 || setns(fd, CLONE_NEWPID) < 0)
                        _exit(254);
                child = fork();
                if (child == 0) {
                        Conn *conn = conn_open(d);
                        int code = conn_register(conn, vm->name, uuid, vm->id, pid);

                        _exit(code != 0 ? code : conn_acquire(conn, "", image, 0));
                }
                if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
                        _exit(253);
                _exit(WEXITSTATUS(status));
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

/* A VM in a container names itself by the number that it has there. Here another process has that number: lockd means the
 * right one, and nobody can name a process that it cannot show. */
static void test_nested_pid_namespace(void **state)
{
        const char *image = make_file("nested.img", NULL), *second = make_file("nested2.img", NULL);
        const uint8_t stranger[16] = { 9 };
        Vm a = vm_start_nested(d, "alpha"), b = vm_start(d, "beta");
        Conn *outside = vm_conn(d, &a), *cb = vm_conn(d, &b);
        const lockd_owner *owner;

        (void)state;
        assert_true(a.pid > 1);
        /* From outside it is known by its number outside. */
        assert_int_equal(conn_acquire(outside, "", image, 0), 0);
        owner = owner_of(image);
        assert_int_equal(owner->pid, a.pid);
        assert_true(owner->proved);
        assert_int_equal(owner->connections, 1);
        /* From inside by its number there, of the same VM only. */
        assert_int_equal(register_inside(&a, a.uuid, 1, second), 0);
        owner = owner_of(second);
        assert_int_equal(owner->pid, a.pid);
        assert_true(owner->proved);
        assert_int_equal(register_inside(&a, stranger, 1, second), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(register_inside(&a, a.uuid, (uint32_t)a.pid, second), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(register_inside(&a, b.uuid, (uint32_t)b.pid, second), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(register_inside(&a, a.uuid, 4711, second), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_busy(cb, conn_acquire(cb, "", image, 0), "by VM 'alpha'");
        vm_kill(&a);
        wait_unlisted(d, "", image);
        wait_unlisted(d, "", second);
        conn_close(outside);
        conn_close(cb);
        vm_kill(&b);
}

/* lockd itself is in a container, and does not see the process at the other end at all: a number from there could be
 * anybody here. */
static void test_peer_that_cannot_be_seen(void **state)
{
        const char *image = make_file("unseen.img", NULL);
        const uint8_t uuid[16] = { 1 };
        Conn *conn;

        (void)state;
        daemon_start_under(d, "unshare --pid --fork --kill-child --mount-proc", NULL);
        conn = conn_open(d);
        assert_invalid(conn, conn_register(conn, "vm", uuid, 1, (uint32_t)getpid()), "another pid namespace");
        assert_int_equal(conn_register(conn, "vm", uuid, 1, 2), VIRTLOCK_ERR_OPERATION_INVALID);
        assert_int_equal(conn_register(conn, "vm", uuid, 1, 0), 0);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(conn_release(conn, "", image), 0);
        conn_close(conn);
}

/* ---- the owner's own connections ---- */

/* A VM may have several: it is gone when the last of them is. */
static void test_several_own_connections(void **state)
{
        const char *image = make_file("several.img", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a);

        (void)state;
        vm_open_connection(&a);
        vm_open_connection(&a);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        for (unsigned n = 3; n > 1; n--) {
                assert_int_equal(owner_of(image)->connections, n);
                vm_close_connection(&a);
                wait_until(owner_of(image)->connections == n - 1);
                assert_true(vm_is_alive(&a));
        }
        /* The policy is to kill who has lost its connection: only now it has. */
        assert_int_equal(owner_of(image)->state, LOCKD_OWNER_ALIVE);
        vm_close_connection(&a);
        vm_wait(&a);
        wait_unlisted(d, "", image);
        conn_close(conn);
}

static json_object *list_json(void)
{
        const char *const arguments[] = { "list", "--json", NULL };
        _cleanup_free_ char *text = NULL;
        json_object *root;

        assert_int_equal(run_admin(d, &text, arguments), 0);
        root = json_tokener_parse(text);
        assert_non_null(root);
        return root;
}

/* QEMU with -daemonize: the process that registered ends, its child goes on with image and connection. The disk is not free
 * before that ends, too, and whoever looks is told where it is. */
static void test_daemonized(void **state)
{
        const char *image = make_file("daemonized.img", NULL);
        const char *const arguments[] = { "list", NULL };
        _cleanup_free_ char *table = NULL;
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b), *admin = admin_open(d);
        json_object *root, *value;
        char pid_text[16];
        pid_t child;

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        child = vm_daemonize(&a);
        wait_until(state_of(image) == LOCKD_STATE_ORPHANED);
        assert_int_equal(owner_of(image)->state, LOCKD_OWNER_DEAD);
        assert_int_equal(owner_of(image)->connections, 1);
        assert_false(is_lockable(image, true));
        assert_busy(cb, conn_acquire(cb, "", image, 0), "by VM 'alpha'");
        assert_non_null(strstr(conn_message(cb), "whose process has ended"));

        (void)snprintf(pid_text, sizeof(pid_text), "%d", (int)child);
        assert_int_equal(run_admin(d, &table, arguments), 0);
        assert_non_null(strstr(table, "ORPHANED"));
        if (!strstr(table, pid_text))
                fail_msg("no pid %s in: %s", pid_text, table);
        root = list_json();
        value = json_object_array_get_idx(json_object_object_get(root, "leases"), 0);
        value = json_object_object_get(json_object_array_get_idx(json_object_object_get(value, "holds"), 0), "owner");
        value = json_object_object_get(value, "connection_pids");
        assert_int_equal(json_object_array_length(value), 1);
        assert_int_equal(json_object_get_int(json_object_array_get_idx(value, 0)), child);
        json_object_put(root);

        assert_int_equal(admin_release_call(admin, "", image, "alpha", LOCKD_RELEASE_SAFE), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(admin_release_call(admin, "", image, "alpha", LOCKD_RELEASE_KILL), VIRTLOCK_ERR_RESOURCE_BUSY);
        assert_int_equal(state_of(image), LOCKD_STATE_ORPHANED);
        assert_false(is_lockable(image, true));
        vm_end_child(&a);
        wait_unlisted(d, "", image);
        assert_true(is_lockable(image, false));
        conn_close(admin);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&b);
}

/* A disk that is orphaned can be had by force, and nothing is left of it in the list. */
static void test_orphan_by_force(void **state)
{
        const char *image = make_file("forced.img", NULL);
        Vm a = vm_start(d, "alpha");
        Conn *conn = vm_conn(d, &a), *admin = admin_open(d);

        (void)state;
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        (void)vm_daemonize(&a);
        wait_until(state_of(image) == LOCKD_STATE_ORPHANED);
        assert_int_equal(admin_release_call(admin, "", image, uuid_text(a.uuid), LOCKD_RELEASE_FORCE), 0);
        assert_null(find_lease(d, "", image));
        assert_true(is_lockable(image, false));
        vm_end_child(&a);
        conn_close(conn);
        conn_close(admin);
}

/* shutdown(SHUT_WR) reads like an end of file, but the connection is open: neither is the VM killed for it, nor, when its
 * process ends, is the disk free while a child has that connection. */
static void test_half_closed(void **state)
{
        const char *image = make_file("half.img", NULL);
        Vm a = vm_start(d, "alpha"), b = vm_start(d, "beta");
        Conn *ca = vm_conn(d, &a), *cb = vm_conn(d, &b);

        (void)state;
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        vm_half_close(&a);
        /* Two round trips: what it did has been seen. */
        assert_int_equal(conn_create_lockspace(cb, ""), 0);
        assert_int_equal(conn_create_lockspace(cb, ""), 0);
        assert_int_equal(owner_of(image)->connections, 1);
        assert_int_equal(owner_of(image)->state, LOCKD_OWNER_ALIVE);
        assert_true(vm_is_alive(&a));
        (void)vm_daemonize(&a);
        wait_until(state_of(image) == LOCKD_STATE_ORPHANED);
        assert_busy(cb, conn_acquire(cb, "", image, 0), "whose process has ended");
        vm_end_child(&a);
        wait_unlisted(d, "", image);
        conn_close(ca);

        /* Half closed, then closed: that is its end. */
        a = vm_start(d, "gamma");
        ca = vm_conn(d, &a);
        assert_int_equal(conn_acquire(ca, "", image, 0), 0);
        vm_half_close(&a);
        assert_int_equal(conn_create_lockspace(cb, ""), 0);
        vm_close_connection(&a);
        vm_wait(&a);
        wait_unlisted(d, "", image);
        conn_close(ca);
        conn_close(cb);
        vm_kill(&b);
}

/* An own connection says what nobody can understand. lockd does not close it, or it would not learn of the owner's end. */
static void test_garbage_on_an_own_connection(void **state)
{
        static const uint8_t garbage[64] = { 0, 0, 0, 1, 0xff };
        const char *image = make_file("garbage.img", NULL);
        const uint8_t uuid[16] = { 1 };
        Conn *own = conn_open(d), *idle = conn_open(d), *other = conn_open(d);
        FrameHeader answer;
        struct pollfd p;

        (void)state;
        assert_int_equal(conn_register(own, "own", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_acquire(own, "", image, 0), 0);
        conn_send_bytes(own, garbage, sizeof(garbage));
        /* A stranger who does that is closed out. */
        conn_send_bytes(idle, garbage, sizeof(garbage));
        assert_false(conn_receive(idle, &answer, NULL, NULL));
        p = (struct pollfd){ .fd = conn_fd(own) }; /* POLLHUP: both directions are closed */
        assert_int_equal(poll(&p, 1, 0), 0);
        assert_int_equal(owner_of(image)->connections, 1);
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        for (int i = 0; i < 1000; i++)
                conn_send_bytes(own, garbage, sizeof(garbage));
        assert_int_equal(owner_of(image)->connections, 1);
        assert_false(is_lockable(image, true));
        conn_close(own);
        wait_until(owner_of(image)->connections == 0);
        assert_int_equal(state_of(image), LOCKD_STATE_HELD);
        assert_int_equal(conn_register(other, "own", uuid, 1, (uint32_t)getpid()), 0);
        assert_int_equal(conn_release(other, "", image), 0);
        conn_close(idle);
        conn_close(other);
}

/* The same from a client that closes its half as well. With both halves closed the connection looks like one that has
 * ended, and may count as such; but the process lives, and so does its lock. */
static void test_garbage_and_a_half_close(void **state)
{
        static const uint8_t garbage[64] = { 0, 0, 0, 1, 0xff };
        const char *image = make_file("half-garbage.img", NULL);
        const uint8_t uuid[16] = { 1 };
        unsigned given_up = 0;

        (void)state;
        for (int garbage_first = 0; garbage_first <= 1; garbage_first++) {
                Conn *own = conn_open(d), *other = conn_open(d);

                assert_int_equal(conn_register(own, "own", uuid, 1, (uint32_t)getpid()), 0);
                assert_int_equal(conn_acquire(own, "", image, 0), 0);
                conn_send_bytes(own, garbage, sizeof(garbage));
                given_up++;
                if (garbage_first)
                        wait_until(daemon_log_count(d, "its input is ignored from now on") == given_up);
                assert_int_equal(shutdown(conn_fd(own), SHUT_WR), 0);
                wait_until(daemon_log_count(d, "its input is ignored from now on") == given_up);
                assert_int_equal(conn_create_lockspace(other, ""), 0);
                assert_int_equal(conn_create_lockspace(other, ""), 0);
                assert_int_equal(state_of(image), LOCKD_STATE_HELD);
                assert_int_equal(owner_of(image)->state, LOCKD_OWNER_ALIVE);
                assert_false(is_lockable(image, true));
                conn_close(own);
                wait_until(owner_of(image)->connections == 0);
                assert_int_equal(state_of(image), LOCKD_STATE_HELD);
                assert_int_equal(conn_register(other, "own", uuid, 1, (uint32_t)getpid()), 0);
                assert_int_equal(conn_release(other, "", image), 0);
                conn_close(other);
        }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_who_cannot_be_an_owner),
                TEST(test_identity_cannot_change),
                TEST(test_pid_zero),
                TEST(test_death_frees_everything),
                TEST(test_death_without_own_connection),
                TEST(test_acquire_for_the_dying),
                TEST(test_pid_reuse),
                TEST(test_nested_pid_namespace),
                cmocka_unit_test_teardown(test_peer_that_cannot_be_seen, stop),
                cmocka_unit_test_setup_teardown(test_several_own_connections, start_killing, stop),
                TEST(test_daemonized),
                TEST(test_orphan_by_force),
                cmocka_unit_test_setup_teardown(test_half_closed, start_killing, stop),
                TEST(test_garbage_on_an_own_connection),
                TEST(test_garbage_and_a_half_close),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
