/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tables of leases, lockspaces and owners when memory runs out. Each operation is done again and again, with its
 * first, second, third ... allocation failing, until it passes without one. After a failure nothing has changed: no lock
 * in the kernel, no half-linked hold, no descriptor and no block left behind; and the operation works when there is
 * memory again.
 *
 * Then the same with the whole daemon, which runs in a child of this process: whatever is refused for want of memory, it
 * lives, its tables and the kernel's agree, and a call is answered or its connection closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "../daemon/daemon.h"
#include "../daemon/fault.h"
#include "../daemon/lockspace.h"
#include "../daemon/owner.h"
#include "../daemon/reaper.h"
#include "../daemon/storage.h"
#include "cleanup.h"
#include "harness.h"
#include "table.h"
#include "wire.h"

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE
#define SITES_MAX 2000

/* ---- an allocator that fails when it is told to ---- */

typedef struct Control {
        long countdown; /* allocations until the one that fails; negative: none fails */
        bool all;       /* from then on all fail */
        bool fired;
        long blocks;    /* allocated and not freed */
} Control;

static Control *control;  /* shared with the daemon's process */
static bool is_subject;   /* only in the process, and at the time, that is under test */

/* Of the C library, or of AddressSanitizer where that is in charge. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void __libc_free(void *p);
void *__interceptor_malloc(size_t size) __attribute__((weak));
void *__interceptor_calloc(size_t n, size_t size) __attribute__((weak));
void *__interceptor_realloc(void *p, size_t size) __attribute__((weak));
void __interceptor_free(void *p) __attribute__((weak));

void __lsan_do_leak_check(void) __attribute__((weak));

/* AddressSanitizer's strdup() and the like come past malloc(): they never fail, and are not counted. It finds leaks itself. */
static bool is_sanitized(void)
{
        return __interceptor_malloc != NULL;
}

static bool fails(void)
{
        if (!is_subject || !control || control->countdown < 0)
                return false;
        if (control->countdown > 0) {
                control->countdown--;
                return false;
        }
        if (!control->all)
                control->countdown = -1;
        control->fired = true;
        errno = ENOMEM;
        return true;
}

static void *count(void *p)
{
        if (p && is_subject && control)
                control->blocks++;
        return p;
}

/* Whoever calls these, in this program or in a library, gets them. */
void *malloc(size_t size)
{
        return fails() ? NULL : count(__interceptor_malloc ? __interceptor_malloc(size) : __libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
        return fails() ? NULL : count(__interceptor_calloc ? __interceptor_calloc(n, size) : __libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
        void *moved;

        if (fails())
                return NULL;
        moved = __interceptor_realloc ? __interceptor_realloc(p, size) : __libc_realloc(p, size);
        return p ? moved : count(moved);
}

void free(void *p)
{
        if (p && is_subject && control)
                control->blocks--;
        if (__interceptor_free)
                __interceptor_free(p);
        else
                __libc_free(p);
}

/* From now on the allocation number n fails, counted from 0. */
static void arm(long n)
{
        control->fired = false;
        control->countdown = n;
}

static void disarm(void)
{
        control->countdown = -1;
        control->all = false;
}

static long blocks_left(void)
{
        return is_sanitized() ? 0 : control->blocks;
}

static unsigned count_fds(pid_t pid)
{
        char path[64];
        unsigned n = 0;

        for (int fd = 0; fd < 1024; fd++) {
                struct stat st;

                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
                n += lstat(path, &st) == 0;
        }
        return n;
}

/* ---- the tables, in this process ---- */

typedef struct World {
        sd_event *loop;
        Storage *storage;
        LockspaceTable *lockspaces;
        OwnerTable *owners;
        Reaper *reaper;
} World;

typedef struct Person {
        const char *name;
        Vm vm;
        Owner *owner;
} Person;

static Person alpha = { .name = "alpha" }, beta = { .name = "beta" };
static const OwnerPeer me_template = { .pidfd = -1 };
static const char *image, *alias, *space;

/* 0 or -errno; whatever it is, end_world() frees what is there. */
static int make_world(World *world)
{
        int r;

        *world = (World){ 0 };
        r = sd_event_new(&world->loop);
        if (r >= 0)
                r = storage_new(&world->storage);
        if (r >= 0)
                r = lockspace_table_new(world->storage, &world->lockspaces);
        if (r >= 0)
                r = owner_table_new(&world->owners);
        if (r >= 0)
                r = reaper_new(world->loop, world->lockspaces, &world->reaper);
        return r < 0 ? r : 0;
}

static void end_world(World *world)
{
        reaper_free(world->reaper);
        lockspace_table_free(world->lockspaces);
        owner_table_free(world->owners);
        storage_free(world->storage);
        sd_event_unref(world->loop);
}

/* As a connection does when it registers. */
static int enter(World *world, Person *person)
{
        OwnerPeer me = me_template;
        bool fresh = false;
        int r;

        me.pid = getpid();
        r = owner_find(world->owners, &me, person->vm.uuid, person->vm.name, person->vm.id, (uint32_t)person->vm.pid, &person->owner,
                       &fresh);
        if (r != 0)
                return r;
        if (fresh) {
                r = reaper_watch(world->reaper, person->owner);
                if (r < 0) {
                        reaper_drop_if_idle(world->reaper, person->owner);
                        return r;
                }
        }
        person->owner->peers++;
        return 0;
}

static void leave(World *world, Person *person)
{
        reaper_peer_closed(world->reaper, person->owner, false);
        person->owner = NULL;
}

static LockspaceRefusal refusal;

static int acquire(World *world, Person *person, const char *lockspace, const char *name, uint32_t flags)
{
        const AcquireRequest request = {
                .lockspace = lockspace,
                .resource = name,
                .owner = person->owner,
                .shared = flags & SHARED,
                .autocreate = flags & AUTOCREATE,
        };

        return lockspace_acquire(world->lockspaces, &request, &refusal);
}

static int release(World *world, Person *person, const char *lockspace, const char *name)
{
        return lockspace_release(world->lockspaces, lockspace, name, person->owner, &refusal);
}

static size_t count_leases(const World *world)
{
        return lease_count(lockspace_leases(world->lockspaces));
}

/* Every hold is in the lists of its lease and of its owner, and every lease is locked. */
static void check_links(const World *world, const Person *const *persons, size_t n_persons)
{
        size_t cursor = 0, n_locked = 0, in_leases = 0, in_owners = 0;

        for (Lease *lease; (lease = lease_next(lockspace_leases(world->lockspaces), &cursor)); cursor++) {
                size_t n = 0;

                assert_false(list_empty(&lease->holds));
                list_for_each(node, &lease->holds) {
                        const Hold *hold = list_entry(node, Hold, in_lease);

                        n++;
                        assert_ptr_equal(hold->resource->lease, lease);
                        assert_true(list_linked(&hold->in_owner));
                        if (lease->file.fd >= 0)
                                assert_ptr_equal(lockspace_find_resource(world->lockspaces, hold->resource->lockspace->path,
                                                                         hold->resource->name),
                                                 hold->resource);
                }
                assert_int_equal(n, lease->n_holds);
                in_leases += n;
                n_locked += lease->file.fd >= 0;
                if (lease->file.fd >= 0) {
                        struct stat st;

                        assert_ptr_equal(lease_find(lockspace_leases(world->lockspaces), &lease->file.id), lease);
                        assert_int_equal(fstat(lease->file.fd, &st), 0);
                        assert_int_equal(st.st_ino, lease->file.id.ino);
                }
        }
        assert_int_equal(n_locked, count_leases(world));
        for (size_t i = 0; i < n_persons; i++) {
                size_t n = 0;

                if (!persons[i]->owner)
                        continue;
                list_for_each(node, &persons[i]->owner->holds) {
                        assert_ptr_equal(list_entry(node, Hold, in_owner)->owner, persons[i]->owner);
                        n++;
                }
                assert_int_equal(n, persons[i]->owner->n_holds);
                in_owners += n;
        }
        assert_int_equal(in_leases, in_owners);
}

/* One operation: prepare, then what may fail, then what must be true after it failed or passed, then the way back. */
typedef struct Operation {
        const char *name;
        int sites; /* at least so many allocations does it make: fewer would mean that none was made to fail */
        void (*prepare)(World *world);
        int (*run)(World *world);
        void (*failed)(World *world);
        void (*passed)(World *world);
        void (*finish)(World *world);
} Operation;

static void check_unlocked(World *world)
{
        assert_int_equal(count_leases(world), 0);
        assert_true(is_lockable(image, false));
}

static void enter_both(World *world)
{
        assert_int_equal(enter(world, &alpha), 0);
        assert_int_equal(enter(world, &beta), 0);
}

static void leave_both(World *world)
{
        leave(world, &alpha);
        leave(world, &beta);
}

static int run_enter(World *world)
{
        return enter(world, &alpha);
}

static void check_not_entered(World *world)
{
        (void)world;
        assert_true(list_empty(owner_table_all(world->owners)));
        alpha.owner = NULL;
}

static void check_entered(World *world)
{
        (void)world;
        assert_non_null(alpha.owner->death);
}

static void finish_enter(World *world)
{
        leave(world, &alpha);
}

static int run_create_lockspace(World *world)
{
        int made, r = lockspace_create(world->lockspaces, space, true, &made);

        /* A directory that cannot be made now does not fail the call: it is made, or missed, later. */
        if (r == 0 && made == -ENOMEM) {
                r = lockspace_create(world->lockspaces, space, false, &made);
                if (r == 0)
                        r = made;
        }
        return r;
}

static void check_no_lockspace(World *world)
{
        assert_int_equal(acquire(world, &alpha, space, "lease", 0), LOCKSPACE_E_UNKNOWN);
}

static void check_lockspace(World *world)
{
        assert_true(file_exists(space));
        assert_int_equal(acquire(world, &alpha, space, "lease", AUTOCREATE), 0);
        assert_int_equal(release(world, &alpha, space, "lease"), 0);
        assert_int_equal(rmdir(space), 0);
}

static int run_require_mount(World *world)
{
        return lockspace_require_mount(world->lockspaces, space, "/nowhere");
}

static int run_require_mount_again(World *world)
{
        return lockspace_require_mount(world->lockspaces, space, space);
}

static void prepare_required(World *world)
{
        enter_both(world);
        assert_int_equal(lockspace_require_mount(world->lockspaces, space, "/run"), 0);
}

/* The old word still counts: /run is mounted. */
static void check_still_required(World *world)
{
        assert_int_equal(acquire(world, &alpha, space, "lease", 0), -ENOENT);
}

static void check_required(World *world)
{
        assert_int_equal(acquire(world, &alpha, space, "lease", 0), LOCKSPACE_E_ABSENT);
}

static int run_acquire(World *world)
{
        return acquire(world, &alpha, "", image, 0);
}

static void check_locked(World *world)
{
        assert_int_equal(count_leases(world), 1);
        assert_false(is_lockable(image, true));
}

static void finish_acquire(World *world)
{
        assert_int_equal(release(world, &alpha, "", image), 0);
        check_unlocked(world);
        leave_both(world);
}

static void prepare_space(World *world)
{
        int made;

        enter_both(world);
        assert_int_equal(lockspace_create(world->lockspaces, space, true, &made), 0);
        assert_int_equal(made, 0);
}

static int run_autocreate(World *world)
{
        return acquire(world, &alpha, space, "lease", AUTOCREATE | SHARED);
}

static const char *lease_file(void)
{
        static char path[256];

        (void)snprintf(path, sizeof(path), "%s/lease", space);
        return path;
}

static void check_not_created(World *world)
{
        assert_int_equal(count_leases(world), 0);
        assert_false(file_exists(lease_file()));
}

static void check_created(World *world)
{
        assert_int_equal(count_leases(world), 1);
        assert_true(is_lockable(lease_file(), true));
        assert_false(is_lockable(lease_file(), false));
}

static void finish_autocreate(World *world)
{
        assert_int_equal(release(world, &alpha, space, "lease"), 0);
        check_not_created(world);
        assert_int_equal(rmdir(space), 0);
        leave_both(world);
}

static void prepare_shared(World *world)
{
        enter_both(world);
        assert_int_equal(acquire(world, &alpha, "", image, SHARED), 0);
}

static int run_join(World *world)
{
        return acquire(world, &beta, "", image, SHARED);
}

static int run_join_by_alias(World *world)
{
        return acquire(world, &beta, "", alias, SHARED);
}

static void check_one_hold(World *world)
{
        assert_int_equal(count_leases(world), 1);
        assert_int_equal(alpha.owner->n_holds, 1);
        assert_int_equal(beta.owner->n_holds, 0);
        assert_null(lockspace_find_resource(world->lockspaces, "", alias));
        assert_true(is_lockable(image, true));
        assert_false(is_lockable(image, false));
}

static void check_two_holds(World *world)
{
        assert_int_equal(count_leases(world), 1);
        assert_int_equal(alpha.owner->n_holds, 1);
        assert_int_equal(beta.owner->n_holds, 1);
        assert_false(is_lockable(image, false));
}

static void finish_join(World *world)
{
        assert_int_equal(release(world, &beta, "", image), 0);
        finish_acquire(world);
}

static void finish_join_by_alias(World *world)
{
        assert_int_equal(release(world, &beta, "", alias), 0);
        finish_acquire(world);
}

static void prepare_held(World *world)
{
        enter_both(world);
        assert_int_equal(acquire(world, &alpha, "", image, 0), 0);
}

static int run_force(World *world)
{
        return lockspace_force_hold(world->lockspaces, list_entry(alpha.owner->holds.next, Hold, in_owner));
}

static void check_not_forced(World *world)
{
        check_locked(world);
        assert_int_equal(alpha.owner->unprotected, 0);
        assert_int_equal(alpha.owner->n_holds, 1);
}

static void check_forced(World *world)
{
        assert_true(is_lockable(image, false));
        assert_int_equal(count_leases(world), 0); /* it is not locked any more */
        assert_int_equal(alpha.owner->unprotected, 1);
        assert_int_equal(alpha.owner->n_holds, 1);
        assert_int_equal(release(world, &alpha, "", image), LOCKSPACE_E_NOT_LOCKED);
}

static void finish_force(World *world)
{
        assert_int_equal(acquire(world, &alpha, "", image, 0), 0);
        assert_int_equal(alpha.owner->unprotected, 0);
        finish_acquire(world);
}

static int run_create_resource(World *world)
{
        return lockspace_create_resource(world->lockspaces, space, "lease", &refusal);
}

static void check_made(World *world)
{
        assert_int_equal(count_leases(world), 0);
        assert_true(is_lockable(lease_file(), false));
}

static void prepare_made(World *world)
{
        prepare_space(world);
        assert_int_equal(run_create_resource(world), 0);
}

static int run_delete_resource(World *world)
{
        return lockspace_delete_resource(world->lockspaces, space, "lease", &refusal);
}

static void finish_space(World *world)
{
        (void)unlink(lease_file());
        assert_int_equal(rmdir(space), 0);
        leave_both(world);
}

static int run_update(World *world)
{
        return storage_update(world->storage);
}

/* The old table of mounts is in force: the work folder is on a local file system. */
static void check_local(World *world)
{
        assert_true(storage_is_local(world->storage, image));
}

/* A lockspace whose mount fstab names and that is missing: not even for want of memory may a lock be taken in its place. */
static int run_absent(World *world)
{
        int r = acquire(world, &alpha, space, "lease", AUTOCREATE);

        if (r == 0)
                fail_msg("a lease was created where a mount is missing");
        assert_false(file_exists(lease_file()));
        return r == LOCKSPACE_E_ABSENT ? 0 : r;
}

static void prepare_absent(World *world)
{
        FILE *f = fopen(work_path("fstab"), "we");
        int made;

        assert_non_null(f);
        fprintf(f, "server:/export %s nfs defaults 0 0\n", space);
        fclose(f);
        (void)mkdir(space, 0700);
        storage_reload_fstab(world->storage);
        assert_int_equal(lockspace_create(world->lockspaces, space, true, &made), 0);
        enter_both(world);
}

static void check_absent(World *world)
{
        assert_int_equal(acquire(world, &alpha, space, "lease", AUTOCREATE), LOCKSPACE_E_ABSENT);
        assert_int_equal(count_leases(world), 0);
}

static void finish_absent(World *world)
{
        assert_int_equal(truncate(work_path("fstab"), 0), 0);
        finish_space(world);
}

static void nothing(World *world)
{
        (void)world;
}

static const Operation operations[] = {
        { "register", 3, nothing, run_enter, check_not_entered, check_entered, finish_enter },
        { "create a lockspace", 1, enter_both, run_create_lockspace, check_no_lockspace, check_lockspace, leave_both },
        { "require a mount", 2, enter_both, run_require_mount, check_no_lockspace, check_required, leave_both },
        { "require another mount", 1, prepare_required, run_require_mount_again, check_still_required, check_required, leave_both },
        { "acquire", 4, enter_both, run_acquire, check_unlocked, check_locked, finish_acquire },
        { "acquire with AUTOCREATE", 4, prepare_space, run_autocreate, check_not_created, check_created, finish_autocreate },
        { "share", 1, prepare_shared, run_join, check_one_hold, check_two_holds, finish_join },
        { "share by another name", 2, prepare_shared, run_join_by_alias, check_one_hold, check_two_holds, finish_join_by_alias },
        { "release by force", 3, prepare_held, run_force, check_not_forced, check_forced, finish_force },
        { "create a resource", 0, prepare_space, run_create_resource, nothing, check_made, finish_space },
        { "delete a resource", 0, prepare_made, run_delete_resource, check_made, check_not_created, finish_space },
        { "read the mounts", 10, nothing, run_update, check_local, check_local, nothing },
        { "find a mount missing", 0, prepare_absent, run_absent, check_absent, check_absent, finish_absent },
};

/* True: allocation n of the operation was made to fail. */
static bool run_with_failure(const Operation *operation, long n)
{
        const Person *const persons[] = { &alpha, &beta };
        unsigned fds = count_fds(getpid());
        World world;
        bool fired;
        int r;

        control->blocks = 0;
        is_subject = true;
        assert_int_equal(make_world(&world), 0);
        operation->prepare(&world);
        arm(n);
        r = operation->run(&world);
        disarm();
        fired = control->fired;
        if (r < 0) {
                if (!fired || (r != -ENOMEM && r != -EIO)) /* libmount's failures have no errno */
                        fail_msg("%s: %s (%s)", operation->name, strerror(-r), fault_trail());
                operation->failed(&world);
                check_links(&world, persons, 2);
                r = operation->run(&world); /* there is memory again */
        }
        if (r != 0)
                fail_msg("%s, again: result %d", operation->name, r);
        operation->passed(&world);
        check_links(&world, persons, 2);
        operation->finish(&world);
        alpha.owner = beta.owner = NULL;
        end_world(&world);
        is_subject = false;
        if (blocks_left() != 0)
                fail_msg("%s, allocation %ld: %ld blocks are left", operation->name, n, blocks_left());
        assert_int_equal(count_fds(getpid()), fds);
        assert_true(is_lockable(image, false));
        return fired;
}

static void test_operations(void **state)
{
        (void)state;
        for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
                long n = 0;

                while (run_with_failure(&operations[i], n)) {
                        n++;
                        assert_true(n < SITES_MAX);
                }
                print_message("%s: %ld allocations\n", operations[i].name, n);
                assert_true(n >= operations[i].sites || is_sanitized());
        }
}

/* The tables themselves. */
static void test_new_tables(void **state)
{
        long n = -1;

        (void)state;
        do {
                World world;
                int r;

                control->blocks = 0;
                is_subject = true;
                arm(++n);
                r = make_world(&world);
                disarm();
                end_world(&world);
                is_subject = false;
                if (r != (control->fired ? -ENOMEM : 0) && !(control->fired && (r == -EIO || r == 0)))
                        fail_msg("allocation %ld: %s", n, strerror(-r));
                assert_int_equal(blocks_left(), 0);
                assert_true(n < SITES_MAX);
        } while (control->fired);
        assert_true(n > 10);
}

/* include/table.h by itself: elements come and go at random, many with one hash, and it grows when there is memory. */
static void test_nodes(void **state)
{
        enum { MANY = 3000, HASHES = 500 };
        typedef struct Element {
                TableNode node;
                bool in;
        } Element;
        static Element elements[MANY];
        Table table = { .buckets = NULL };
        size_t n_in = 0;
        uint64_t seed = 1;

        (void)state;
        assert_null(table_first(&table, 0));
        is_subject = true;
        control->blocks = 0;
        control->all = true;
        arm(0);
        assert_false(table_add(&table, &elements[0].node, 7)); /* not even the first buckets */
        assert_null(table_first(&table, 7));
        disarm();
        for (unsigned step = 0; step < 40000; step++) {
                Element *element;
                uint32_t hash;
                unsigned found = 0;

                seed = seed * 6364136223846793005U + 1442695040888963407U;
                element = &elements[(seed >> 33) % MANY];
                hash = (uint32_t)((size_t)(element - elements) % HASHES) * 0x01000193U;
                /* A third of the time there is no memory to grow with. */
                control->all = true;
                control->countdown = step % 3000 < 1000 && table.buckets ? 0 : -1;
                if (element->in)
                        table_remove(&table, &element->node);
                else
                        assert_true(table_add(&table, &element->node, hash));
                disarm();
                element->in = !element->in;
                n_in = element->in ? n_in + 1 : n_in - 1;
                assert_int_equal(table.count, n_in);
                table_for_each(node, &table, hash)
                        found += table_entry(node, Element, node) == element;
                assert_int_equal(found, element->in);
        }
        assert_true(table.n_buckets > TABLE_BUCKETS_MIN);
        for (size_t i = 0; i < MANY; i++) {
                const uint32_t hash = (uint32_t)(i % HASHES) * 0x01000193U;
                unsigned found = 0, others = 0;

                table_for_each(node, &table, hash) {
                        found += node == &elements[i].node;
                        others += !table_entry(node, Element, node)->in;
                }
                assert_int_equal(found, elements[i].in);
                assert_int_equal(others, 0);
        }
        table_done(&table);
        is_subject = false;
        assert_int_equal(blocks_left(), 0);
}

/* Many: the tables grow, and each growth fails once at each of its allocations. */
static void test_growth(void **state)
{
        enum { MANY = 300 };
        const Person *const persons[] = { &alpha, &beta };
        unsigned fds = count_fds(getpid()), failures = 0;
        char name[32];
        World world;
        int made;

        (void)state;
        control->blocks = 0;
        is_subject = true;
        assert_int_equal(make_world(&world), 0);
        enter_both(&world);
        assert_int_equal(lockspace_create(world.lockspaces, space, true, &made), 0);
        for (int i = 0; i < MANY; i++) {
                int r = -1;

                (void)snprintf(name, sizeof(name), "lease%d", i);
                for (long n = 0; r != 0; n++) {
                        arm(n);
                        r = acquire(&world, i % 3 ? &alpha : &beta, space, name, AUTOCREATE | (i % 2 ? SHARED : 0));
                        disarm();
                        assert_true(r == 0 || (r == -ENOMEM && control->fired));
                        failures += r != 0;
                        assert_int_equal(count_leases(&world), r == 0 ? i + 1 : i);
                }
                if (i % 16 == 0)
                        check_links(&world, persons, 2);
        }
        check_links(&world, persons, 2);
        assert_true(failures >= MANY);

        /* Giving back must not want memory. */
        control->all = true;
        arm(0);
        for (int i = 0; i < MANY; i++) {
                (void)snprintf(name, sizeof(name), "lease%d", i);
                assert_int_equal(release(&world, i % 3 ? &alpha : &beta, space, name), 0);
        }
        leave_both(&world);
        assert_int_equal(count_leases(&world), 0);
        assert_false(control->fired);
        disarm();
        alpha.owner = beta.owner = NULL;
        end_world(&world);
        is_subject = false;
        assert_int_equal(rmdir(space), 0);
        assert_int_equal(blocks_left(), 0);
        assert_int_equal(count_fds(getpid()), fds);
}

/* Many owners come, some fail, all go. */
static void test_many_owners(void **state)
{
        enum { MANY = 200 };
        static Person crowd[MANY];
        unsigned fds = count_fds(getpid());
        World world;

        (void)state;
        control->blocks = 0;
        is_subject = true;
        assert_int_equal(make_world(&world), 0);
        for (unsigned i = 0; i < MANY; i++) {
                int r = -1;

                crowd[i] = (Person){ .vm = alpha.vm };
                crowd[i].vm.uuid[0] = (uint8_t)i;
                crowd[i].vm.uuid[1] = (uint8_t)~i;
                for (long n = 0; r != 0; n++) {
                        arm(n);
                        r = enter(&world, &crowd[i]);
                        disarm();
                        assert_true(r == 0 || (r == -ENOMEM && control->fired));
                }
        }
        control->all = true;
        arm(0);
        for (unsigned i = 0; i < MANY; i++)
                leave(&world, &crowd[i]);
        assert_false(control->fired);
        disarm();
        assert_true(list_empty(owner_table_all(world.owners)));
        end_world(&world);
        is_subject = false;
        assert_int_equal(blocks_left(), 0);
        assert_int_equal(count_fds(getpid()), fds);
}

/* ---- the whole daemon, in a child of this process ---- */

static TestDaemon daemon_under_test;
static TestDaemon *const d = &daemon_under_test;

static void start_daemon(void)
{
        char *argv[] = { (char *)(uintptr_t)"lockd", NULL };
        DaemonOptions options = { .config = d->config, .verbose = true, .argv = argv, .ready_fd = -1 };
        Conn *conn = NULL;
        FILE *f;

        (void)snprintf(d->dir, sizeof(d->dir), "%s/daemon", getenv("WORK"));
        assert_int_equal(mkdir(d->dir, 0700), 0);
        (void)snprintf(d->lock_socket, sizeof(d->lock_socket), "%s/lock", d->dir);
        (void)snprintf(d->admin_socket, sizeof(d->admin_socket), "%s/admin", d->dir);
        (void)snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
        (void)snprintf(d->config, sizeof(d->config), "%s/lockd.conf", d->dir);
        f = fopen(d->config, "we");
        assert_non_null(f);
        fprintf(f, "lock_socket = \"%s\"\nadmin_socket = \"%s\"\n", d->lock_socket, d->admin_socket);
        fclose(f);
        control->blocks = 0;
        d->pid = fork();
        assert_true(d->pid >= 0);
        if (d->pid == 0) {
                int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                sigset_t all;
                int code;

                /* As main() does. */
                (void)sigfillset(&all);
                (void)sigprocmask(SIG_BLOCK, &all, NULL);
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)umask(077);
                (void)dup2(log, STDOUT_FILENO);
                (void)dup2(log, STDERR_FILENO);
                (void)close_range(3, ~0U, 0);
                is_subject = true;
                code = daemon_run(&options);
                is_subject = false;
                if (__lsan_do_leak_check)
                        __lsan_do_leak_check();
                _exit(code);
        }
        wait_until((conn = conn_open_at(d->lock_socket)) != NULL);
        conn_close(conn);
        wait_until((conn = conn_open_at(d->admin_socket)) != NULL);
        conn_close(conn);
}

static bool is_running(void)
{
        return waitpid(d->pid, NULL, WNOHANG) == 0;
}

#define CLOSED (-1)

/* 0, the error's code, or CLOSED: anything else, silence above all, fails the test. */
static int call(Conn *conn, uint32_t program, int32_t procedure, xdrproc_t proc, const void *args)
{
        FrameHeader header = { .program = program, .version = 1, .procedure = procedure, .serial = 7 };
        _cleanup_free_ uint8_t *payload = NULL, *answer = NULL;
        virtlock_error error = { 0 };
        size_t len;

        payload = encode_args(proc, args, &len);
        conn_send_frame(conn, header, payload, len);
        if (!conn_receive(conn, &header, &answer, &len))
                return CLOSED;
        assert_int_equal(header.serial, 7);
        if (header.status == FRAME_OK)
                return 0;
        assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_error, answer, len, &error), 0);
        wire_free((xdrproc_t)xdr_virtlock_error, &error);
        return error.code;
}

static virtlock_string string_of(const char *text)
{
        return (virtlock_string){ (u_int)strlen(text), (char *)(uintptr_t)text };
}

static int call_resource(Conn *conn, int32_t procedure, const char *lockspace, const char *name, uint32_t flags)
{
        virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };

        return call(conn, VIRTLOCK_PROGRAM, procedure, (xdrproc_t)xdr_virtlock_resource, &args);
}

static int call_register(Conn *conn, const Vm *vm)
{
        virtlock_register args = { .name = string_of(vm->name), .id = vm->id, .pid = (u_int)vm->pid };

        memcpy(args.uuid, vm->uuid, sizeof(args.uuid));
        return call(conn, VIRTLOCK_PROGRAM, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &args);
}

/* What happens while an allocation fails, and then the way back to where it began. */
typedef struct Event {
        const char *name;
        void (*prepare)(void);
        void (*happen)(void);
        void (*check)(void);
} Event;

static Conn *conn_a, *conn_b;
static int result;
static const char *disk, *leases;

static void connect_a(void)
{
        conn_a = vm_conn(d, &alpha.vm);
}

static void connect_both(void)
{
        connect_a();
        conn_b = vm_conn(d, &beta.vm);
}

static void happen_connect(void)
{
        conn_a = conn_open(d);
        result = call_register(conn_a, &alpha.vm);
}

/* Registered or not, the connection says the truth about it; and a new one works. */
static void check_registered(void)
{
        if (result != CLOSED)
                assert_int_equal(conn_acquire(conn_a, "", "/nowhere", 0),
                                 result == 0 ? VIRTLOCK_ERR_SYSTEM : VIRTLOCK_ERR_OPERATION_INVALID);
        conn_close(conn_a);
        connect_a();
        conn_close(conn_a);
}

static void happen_acquire(void)
{
        result = call_resource(conn_a, VIRTLOCK_ACQUIRE_RESOURCE, "", disk, 0);
}

static void happen_acquire_lease(void)
{
        result = call_resource(conn_a, VIRTLOCK_ACQUIRE_RESOURCE, leases, "lease", AUTOCREATE);
}

/* Granted and told, or not granted; where the answer could not be made, the connection was closed and the same VM's next
 * acquire is granted. */
static void check_acquired(const char *lockspace, const char *name, const char *file)
{
        if (result == CLOSED) {
                conn_close(conn_a);
                connect_a();
        } else if (result == 0) {
                assert_false(is_lockable(file, false));
                assert_non_null(find_lease(d, lockspace, name));
        } else {
                assert_null(find_lease(d, lockspace, name));
                if (*lockspace)
                        assert_false(file_exists(file));
                else
                        assert_true(is_lockable(file, false));
        }
        if (result != 0)
                assert_int_equal(conn_acquire(conn_a, lockspace, name, *lockspace ? AUTOCREATE : 0), 0);
        assert_int_equal(conn_release(conn_a, lockspace, name), 0);
        assert_null(find_lease(d, lockspace, name));
        if (*lockspace)
                assert_false(file_exists(file));
        else
                assert_true(is_lockable(file, false));
        conn_close(conn_a);
}

static void check_acquire(void)
{
        check_acquired("", disk, disk);
}

static void check_acquire_lease(void)
{
        char path[256];

        (void)snprintf(path, sizeof(path), "%s/lease", leases);
        check_acquired(leases, "lease", path);
}

static void prepare_release(void)
{
        connect_a();
        assert_int_equal(conn_acquire(conn_a, "", disk, 0), 0);
}

static void happen_release(void)
{
        result = call_resource(conn_a, VIRTLOCK_RELEASE_RESOURCE, "", disk, 0);
}

static void check_release(void)
{
        if (result == CLOSED) {
                conn_close(conn_a);
                connect_a();
        }
        if (result != 0 && find_lease(d, "", disk)) {
                assert_false(is_lockable(disk, false));
                assert_int_equal(conn_release(conn_a, "", disk), 0);
        }
        assert_null(find_lease(d, "", disk));
        assert_true(is_lockable(disk, false));
        conn_close(conn_a);
}

static void happen_busy(void)
{
        result = call_resource(conn_a, VIRTLOCK_ACQUIRE_RESOURCE, "", image, SHARED);
}

static void check_busy(void)
{
        assert_true(result == CLOSED || result == VIRTLOCK_ERR_RESOURCE_BUSY || result == VIRTLOCK_ERR_SYSTEM ||
                    result == VIRTLOCK_ERR_RPC);
        conn_close(conn_a);
}

static void prepare_share(void)
{
        connect_both();
        assert_int_equal(conn_acquire(conn_b, "", disk, SHARED), 0);
}

static void happen_share(void)
{
        result = call_resource(conn_a, VIRTLOCK_ACQUIRE_RESOURCE, "", disk, SHARED);
}

static void check_share(void)
{
        unsigned holds = count_holds(d, "", disk);

        if (result == CLOSED) {
                conn_close(conn_a);
                connect_a();
                if (holds == 2) /* granted, and not told: granted again, once */
                        assert_int_equal(conn_acquire(conn_a, "", disk, SHARED), 0);
        } else
                assert_int_equal(holds, result == 0 ? 2 : 1);
        if (holds == 2)
                assert_int_equal(conn_release(conn_a, "", disk), 0);
        assert_int_equal(count_holds(d, "", disk), 1);
        assert_int_equal(conn_release(conn_b, "", disk), 0);
        assert_true(is_lockable(disk, false));
        conn_close(conn_a);
        conn_close(conn_b);
}

static void happen_create(void)
{
        virtlock_create_lockspace args = { .path = string_of(leases) };

        result = call(conn_a, VIRTLOCK_PROGRAM, VIRTLOCK_CREATE_LOCKSPACE, (xdrproc_t)xdr_virtlock_create_lockspace, &args);
        if (result != CLOSED)
                result = call_resource(conn_a, VIRTLOCK_CREATE_RESOURCE, leases, "made", 0);
        if (result != CLOSED)
                result = call_resource(conn_a, VIRTLOCK_DELETE_RESOURCE, leases, "made", 0);
}

static void check_create(void)
{
        conn_close(conn_a);
        connect_a();
        assert_int_equal(conn_delete_resource(conn_a, leases, "made"), 0);
        conn_close(conn_a);
}

/* A message in pieces: what is there so far has to be kept. */
static void happen_pieces(void)
{
        FrameHeader header = { .length = FRAME_HEADER_SIZE + 100000, .program = VIRTLOCK_PROGRAM, .version = 1,
                               .procedure = VIRTLOCK_ACQUIRE_RESOURCE };
        static uint8_t bytes[100000];
        FrameHeader answer;

        conn_send_frame(conn_a, header, bytes, 50000);
        conn_send_bytes(conn_b, "\0\0\0\40", 4);
        conn_send_bytes(conn_a, bytes, 50000);
        result = conn_receive(conn_a, &answer, NULL, NULL) ? 0 : CLOSED;
}

static void check_pieces(void)
{
        conn_close(conn_a);
        conn_close(conn_b);
}

/* Answers that pile up. */
static void happen_pile(void)
{
        FrameHeader header = { .program = VIRTLOCK_PROGRAM, .version = 1, .procedure = 99 }, answer;
        enum { MANY = 300 };
        static uint8_t bytes[MANY * FRAME_HEADER_SIZE];
        int n = 0;

        header.length = FRAME_HEADER_SIZE;
        for (int i = 0; i < MANY; i++)
                frame_write_header(bytes + (size_t)i * FRAME_HEADER_SIZE, &header);
        conn_send_bytes(conn_a, bytes, sizeof(bytes));
        while (n < MANY && conn_receive(conn_a, &answer, NULL, NULL))
                n++;
        result = n == MANY ? 0 : CLOSED;
}

static void check_pile(void)
{
        conn_close(conn_a);
}

static void prepare_admin(void)
{
        conn_a = admin_open(d);
}

static void happen_list(void)
{
        lockd_list_args args = { 0 };

        result = call(conn_a, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_LIST, (xdrproc_t)xdr_lockd_list_args, &args);
}

static void check_list(void)
{
        conn_close(conn_a);
        assert_non_null(find_lease(d, "", image));
}

static void prepare_force_call(void)
{
        conn_b = vm_conn(d, &beta.vm);
        assert_int_equal(conn_acquire(conn_b, "", disk, 0), 0);
        conn_a = admin_open(d);
}

static void happen_force(void)
{
        const char *owner = uuid_text(beta.vm.uuid);
        lockd_release_args args = {
                .resource = { (u_int)strlen(disk), (char *)(uintptr_t)disk },
                .owner = { (u_int)strlen(owner), (char *)(uintptr_t)owner },
                .how = LOCKD_RELEASE_FORCE,
        };

        result = call(conn_a, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_RELEASE, (xdrproc_t)xdr_lockd_release_args, &args);
}

/* Taken away and shown as UNPROTECTED, or nothing at all. */
static void check_force(void)
{
        const lockd_record *record = find_lease(d, "", disk);

        assert_non_null(record);
        if (result == 0)
                assert_int_equal(record->state, LOCKD_STATE_UNPROTECTED);
        else if (result != CLOSED)
                assert_int_equal(record->state, LOCKD_STATE_HELD);
        if (record->state == LOCKD_STATE_UNPROTECTED) {
                assert_true(is_lockable(disk, false));
                assert_int_equal(conn_acquire(conn_b, "", disk, 0), 0);
        }
        assert_false(is_lockable(disk, false));
        assert_int_equal(conn_release(conn_b, "", disk), 0);
        assert_null(find_lease(d, "", disk));
        conn_close(conn_a);
        conn_close(conn_b);
}

static Vm mortal;

static void prepare_death(void)
{
        mortal = vm_start(d, "mortal");
        conn_a = vm_conn(d, &mortal);
        assert_int_equal(conn_acquire(conn_a, "", disk, 0), 0);
        conn_close(conn_a);
}

static void happen_death(void)
{
        vm_kill(&mortal);
        wait_until(is_lockable(disk, false));
}

static void check_death(void)
{
        wait_unlisted(d, "", disk);
}

/* The mount table changes: read anew, or the old one stays in force. */
static void happen_mount(void)
{
        const char *at = work_path("mounted");
        Conn *conn = conn_open(d);

        (void)mkdir(at, 0700);
        assert_int_equal(mount("tmpfs", at, "tmpfs", 0, NULL), 0);
        assert_int_equal(umount(at), 0);
        /* Answered behind the news of the mount. */
        (void)call_resource(conn, VIRTLOCK_ACQUIRE_RESOURCE, "", disk, 0);
        conn_close(conn);
}

static void no_event(void)
{
}

static const Event events[] = {
        { "connect and register", no_event, happen_connect, check_registered },
        { "acquire", connect_a, happen_acquire, check_acquire },
        { "acquire with AUTOCREATE", connect_a, happen_acquire_lease, check_acquire_lease },
        { "acquire what is busy", connect_a, happen_busy, check_busy },
        { "share", prepare_share, happen_share, check_share },
        { "release", prepare_release, happen_release, check_release },
        { "create and delete", connect_a, happen_create, check_create },
        { "a message in pieces", connect_both, happen_pieces, check_pieces },
        { "many answers", connect_a, happen_pile, check_pile },
        { "list", prepare_admin, happen_list, check_list },
        { "release by force", prepare_force_call, happen_force, check_force },
        { "a death", prepare_death, happen_death, check_death },
        { "a change of mounts", no_event, happen_mount, no_event },
};

static bool let_happen(const Event *event, long n)
{
        event->prepare();
        arm(n);
        event->happen();
        disarm();
        if (!is_running())
                fail_msg("%s: lockd ended when allocation %ld failed, see %s", event->name, n, d->log);
        event->check();
        /* The first one is still locked. */
        assert_false(is_lockable(image, false));
        assert_non_null(find_lease(d, "", image));
        return control->fired;
}

static bool is_asleep(pid_t pid)
{
        char path[64], text[512], state = '?';
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        f = fopen(path, "re");
        assert_non_null(f);
        if (fgets(text, sizeof(text), f) && strrchr(text, ')'))
                state = strrchr(text, ')')[2];
        fclose(f);
        return state == 'S';
}

/* What the daemon has allocated, once it has seen the end of all other connections. */
static long quiet_blocks(Conn *conn, unsigned fds)
{
        wait_until(count_fds(d->pid) == fds);
        assert_int_equal(conn_create_lockspace(conn, ""), 0);
        wait_until(is_asleep(d->pid)); /* it frees the answer after that was sent */
        return blocks_left();
}

static void test_daemon(void **state)
{
        Vm holder;
        Conn *conn;
        long blocks, total = 0;
        unsigned fds;

        (void)state;
        start_daemon();
        holder = vm_start(d, "holder");
        conn = vm_conn(d, &holder);
        assert_int_equal(conn_acquire(conn, "", image, 0), 0);
        assert_int_equal(conn_create_lockspace(conn, leases), 0);
        fds = count_fds(d->pid);
        /* Once without a failure: what is allocated once and for all is there then. */
        for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
                (void)let_happen(&events[i], SITES_MAX);
        blocks = quiet_blocks(conn, fds);
        for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
                long n = 0;

                /* Where there are hundreds, not quite each of them. */
                while (let_happen(&events[i], n)) {
                        n += n < 40 ? 1 : n / 8;
                        assert_true(n < SITES_MAX);
                }
                print_message("%s: %ld allocations\n", events[i].name, n);
                total += n;
                if (quiet_blocks(conn, fds) != blocks)
                        fail_msg("%s: %ld blocks, %ld before", events[i].name, blocks_left(), blocks);
        }
        assert_true(total > 100); /* of which most are in reading the mounts */
        conn_close(conn);
        vm_kill(&holder);
        wait_unlisted(d, "", image);
        daemon_stop(d);
        assert_true(is_lockable(image, false));
}

static int calm(void **state)
{
        (void)state;
        disarm();
        is_subject = false;
        return 0;
}

static int set_up(void **state)
{
        (void)state;
        control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(control, MAP_FAILED);
        disarm();
        /* An fstab of our own, at first an empty one. */
        assert_int_equal(mount(make_file("fstab", NULL), "/etc/fstab", NULL, MS_BIND, NULL), 0);
        image = strdup(make_file("image", "data"));
        disk = strdup(make_file("disk", "data"));
        alias = strdup(work_path("alias"));
        space = strdup(work_path("space"));
        leases = strdup(work_path("leases"));
        assert_int_equal(symlink("image", alias), 0);
        alpha.vm = vm_start_bare("alpha");
        beta.vm = vm_start_bare("beta");
        return 0;
}

static int tear_down(void **state)
{
        (void)state;
        vm_kill(&alpha.vm);
        vm_kill(&beta.vm);
        free((char *)(uintptr_t)image);
        free((char *)(uintptr_t)disk);
        free((char *)(uintptr_t)alias);
        free((char *)(uintptr_t)space);
        free((char *)(uintptr_t)leases);
        return 0;
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup(test_new_tables, calm),
                cmocka_unit_test_setup(test_operations, calm),
                cmocka_unit_test_setup(test_nodes, calm),
                cmocka_unit_test_setup(test_growth, calm),
                cmocka_unit_test_setup(test_many_owners, calm),
                cmocka_unit_test_setup(test_daemon, calm),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
