/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A long random conversation, always the same one: VMs come, acquire, release, reconnect and die, on images with several
 * names and on leases that are created and removed. A small model says what each answer must be, and from time to time
 * what is listed and what the kernel says must agree with it. SEED=... and STEPS=... are for a longer search; a failure
 * prints the steps that led to it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE

enum { N_VMS = 5, N_CONNS = 3, N_FILES = 8, N_NAMES = 14, N_HOLDS = 400, N_TOLD = 40 };

/* ---- the model ---- */

typedef struct File {
        bool exists, empty;
        bool locked, shared, autocreate; /* while it is locked: in which mode, and did its first taker say AUTOCREATE */
} File;

typedef struct Name {
        const char *lockspace, *name;
        int file;
        bool link; /* a symbolic link, which is never what is unlinked */
} Name;

typedef struct Hold {
        int vm, name; /* vm -1: free */
} Hold;

static File files[N_FILES];
static Name names[N_NAMES];
static Hold holds[N_HOLDS];

static size_t count_holds_of(int vm, int name, int file)
{
        size_t n = 0;

        for (size_t i = 0; i < N_HOLDS; i++)
                n += holds[i].vm >= 0 && (vm < 0 || holds[i].vm == vm) && (name < 0 || holds[i].name == name) &&
                     (file < 0 || names[holds[i].name].file == file);
        return n;
}

/* Takes one hold of vm under that name away (-1: none there). */
static int end_hold(int vm, int name)
{
        File *file = &files[names[name].file];

        for (size_t i = 0; i < N_HOLDS; i++) {
                if (holds[i].vm != vm || holds[i].name != name)
                        continue;
                holds[i].vm = -1;
                if (count_holds_of(-1, -1, names[name].file) > 0)
                        return 0;
                file->locked = false;
                if (file->autocreate && file->empty && !names[name].link)
                        file->exists = false;
                return 0;
        }
        return -1;
}

/* What the answer must be. */
static int model_acquire(int vm, int name, uint32_t flags)
{
        File *file = &files[names[name].file];
        bool shared = flags & SHARED;

        if (!file->exists && !(flags & AUTOCREATE))
                return VIRTLOCK_ERR_SYSTEM;
        if (file->locked && !(file->shared && shared))
                return VIRTLOCK_ERR_RESOURCE_BUSY;
        for (size_t i = 0; i < N_HOLDS; i++) {
                if (holds[i].vm >= 0)
                        continue;
                holds[i] = (Hold){ .vm = vm, .name = name };
                if (!file->locked) {
                        file->empty = file->empty || !file->exists;
                        file->exists = file->locked = true;
                        file->shared = shared;
                        file->autocreate = flags & AUTOCREATE;
                }
                return 0;
        }
        fail_msg("the model is full");
        return 0;
}

static int model_release(int vm, int name)
{
        if (count_holds_of(-1, name, -1) == 0)
                return VIRTLOCK_ERR_RESOURCE_BUSY;
        return end_hold(vm, name) == 0 ? 0 : VIRTLOCK_ERR_INTERNAL;
}

static void model_death(int vm)
{
        for (size_t i = 0; i < N_HOLDS; i++)
                if (holds[i].vm == vm)
                        assert_int_equal(end_hold(vm, holds[i].name), 0);
}

/* ---- the real thing ---- */

typedef struct Machine {
        Vm vm;
        Conn *conns[N_CONNS];
} Machine;

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;
static Machine machines[N_VMS];
static char told[N_TOLD][160]; /* the last steps */
static unsigned long step, seed;
static uint64_t random_state;

static size_t pick(size_t n)
{
        uint64_t z = random_state += 0x9e3779b97f4a7c15U;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        return (size_t)((z ^ (z >> 31)) % n);
}

#define tell(...) ((void)snprintf(told[step % N_TOLD], sizeof(told[0]), __VA_ARGS__))

static void print_steps(void)
{
        print_error("seed %lu, the last steps:\n", seed);
        for (unsigned long i = step >= N_TOLD ? step - N_TOLD + 1 : 0; i <= step; i++)
                print_error("  %lu: %s\n", i, told[i % N_TOLD]);
}

#define check(condition)                                      \
        do {                                                  \
                if (!(condition)) {                           \
                        print_steps();                        \
                        fail_msg("not so: %s", #condition);   \
                }                                             \
        } while (0)

static const char *keep(const char *text)
{
        const char *copy = strdup(text);

        assert_non_null(copy);
        return copy;
}

static void lay_out(void)
{
        char name[32];
        int n = 0;

        /* Three images, each with more than one name; a folder with five leases, one of them there from the start. */
        for (int i = 0; i < 3; i++) {
                (void)snprintf(name, sizeof(name), "image%d", i);
                names[n++] = (Name){ "", keep(make_file(name, "data")), i, false };
                files[i] = (File){ .exists = true };
        }
        names[n++] = (Name){ "", keep(work_path("hard0")), 0, false };
        assert_int_equal(link(names[0].name, names[n - 1].name), 0);
        names[n++] = (Name){ "", keep(work_path("soft0")), 0, true };
        assert_int_equal(symlink("image0", names[n - 1].name), 0);
        names[n++] = (Name){ "", keep(work_path("/image1")), 1, false };
        names[n++] = (Name){ "", keep(work_path("./image1")), 1, false };
        names[n++] = (Name){ keep(getenv("WORK")), "image2", 2, false };
        for (int i = 3; i < N_FILES; i++) {
                (void)snprintf(name, sizeof(name), "lease%d", i);
                names[n++] = (Name){ keep(work_path("leases")), keep(name), i, false };
        }
        names[n++] = (Name){ "", keep(work_path("leases/lease3")), 3, false };
        assert_int_equal(n, N_NAMES);
        memset(holds, -1, sizeof(holds));
}

static void start_machine(int i)
{
        char name[16];

        (void)snprintf(name, sizeof(name), "vm%d", i);
        /* Some have no connection of their own. */
        machines[i].vm = i % 2 ? vm_start(d, name) : vm_start_bare(name);
        for (int j = 0; j < N_CONNS; j++)
                machines[i].conns[j] = vm_conn(d, &machines[i].vm);
}

/* The last call of a connection that closes is none that was refused: that would leave what it took in doubt. */
static void close_conn(Conn **conn)
{
        assert_int_equal(conn_create_lockspace(*conn, ""), 0);
        conn_close(*conn);
        *conn = NULL;
}

static void end_machine(int i)
{
        vm_kill(&machines[i].vm);
        for (int j = 0; j < N_CONNS; j++)
                conn_close(machines[i].conns[j]);
        model_death(i);
}

/* What is listed, and what the kernel says, is what the model has. */
static bool listing_agrees(void)
{
        const lockd_list_ret *list = list_leases(d);
        size_t n_leases = 0, n_holds = 0;

        for (int i = 0; i < N_FILES; i++)
                n_leases += files[i].locked;
        for (u_int i = 0; i < list->records.records_len; i++)
                n_holds += list->records.records_val[i].holds.holds_len;
        if (list->records.records_len != n_leases || n_holds != count_holds_of(-1, -1, -1))
                return false;
        for (u_int i = 0; i < list->records.records_len; i++) {
                const lockd_record *record = &list->records.records_val[i];

                for (u_int j = 0; j < record->holds.holds_len; j++) {
                        const lockd_hold *hold = &record->holds.holds_val[j];
                        bool found = false;

                        for (int k = 0; k < N_NAMES && !found; k++)
                                for (int vm = 0; vm < N_VMS && !found; vm++)
                                        found = hold->owner.pid == (u_int)machines[vm].vm.pid && count_holds_of(vm, k, -1) > 0 &&
                                                strlen(names[k].name) == hold->resource.lockd_bytes_len &&
                                                memcmp(names[k].name, hold->resource.lockd_bytes_val, hold->resource.lockd_bytes_len) == 0 &&
                                                files[names[k].file].shared == (record->mode == LOCKD_MODE_SHARED);
                        if (!found)
                                return false;
                }
        }
        return true;
}

static void check_all(void)
{
        check(listing_agrees());
        for (int i = 0; i < N_NAMES; i++) {
                const File *file = &files[names[i].file];
                char path[512];

                (void)snprintf(path, sizeof(path), "%s%s%s", names[i].lockspace, *names[i].lockspace ? "/" : "", names[i].name);
                check(file_exists(path) == file->exists);
                if (!file->exists)
                        continue;
                check(is_lockable(path, false) == !file->locked);
                check(is_lockable(path, true) == (!file->locked || file->shared));
        }
}

static void take_step(void)
{
        int vm = (int)pick(N_VMS), conn = (int)pick(N_CONNS), name = (int)pick(N_NAMES), expected, got;
        const Name *n = &names[name];
        uint32_t flags;

        switch (pick(20)) {
        case 0:
                tell("vm%d opens connection %d anew", vm, conn);
                close_conn(&machines[vm].conns[conn]);
                machines[vm].conns[conn] = vm_conn(d, &machines[vm].vm);
                break;
        case 1:
                if (pick(8) > 0)
                        break;
                tell("vm%d dies", vm);
                end_machine(vm);
                start_machine(vm);
                wait_until(listing_agrees());
                break;
        case 2:
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
        case 8:
                tell("vm%d, %d: releases '%s' '%s'", vm, conn, n->lockspace, n->name);
                expected = model_release(vm, name);
                got = conn_release(machines[vm].conns[conn], n->lockspace, n->name);
                if (got != expected) {
                        print_steps();
                        fail_msg("%d, not %d: %s", got, expected, got ? conn_message(machines[vm].conns[conn]) : "");
                }
                break;
        default:
                /* An image is not created; what has several names is not removed. */
                flags = (uint32_t)(pick(3) > 0 ? SHARED : 0) | (n->file > 3 && pick(4) > 0 ? AUTOCREATE : 0);
                tell("vm%d, %d: acquires '%s' '%s' %u", vm, conn, n->lockspace, n->name, flags);
                expected = model_acquire(vm, name, flags);
                got = conn_acquire(machines[vm].conns[conn], n->lockspace, n->name, flags);
                if (got != expected) {
                        print_steps();
                        fail_msg("%d, not %d: %s", got, expected, got ? conn_message(machines[vm].conns[conn]) : "");
                }
        }
}

static void test_conversation(void **state)
{
        const char *seed_text = getenv("SEED"), *steps_text = getenv("STEPS");
        const unsigned long steps = steps_text ? strtoul(steps_text, NULL, 0) : 6000;
        Conn *conn;

        (void)state;
        seed = random_state = seed_text ? strtoul(seed_text, NULL, 0) : 20240131;
        daemon_start(d, NULL, NULL);
        lay_out();
        conn = conn_open(d);
        assert_int_equal(conn_create_lockspace(conn, work_path("leases")), 0);
        assert_int_equal(conn_create_lockspace(conn, getenv("WORK")), 0);
        conn_close(conn);
        (void)make_file("leases/lease3", NULL);
        files[3] = (File){ .exists = true, .empty = true };
        for (int i = 0; i < N_VMS; i++)
                start_machine(i);
        for (step = 0; step < steps; step++) {
                take_step();
                if (step % 50 == 49)
                        check_all();
        }
        for (int i = 0; i < N_VMS; i++)
                end_machine(i);
        wait_until(listing_agrees());
        check_all();
        for (int i = 0; i < N_FILES; i++)
                check(!files[i].locked);
        daemon_stop(d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_conversation),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
