/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lockfile_convert(): a lock changes its kind, to and fro, while rivals try to get in. An exclusive one never may; a shared
 * one can, for a moment, and then the kind must be as it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "../daemon/lockfile.h"

#define ROUNDS 20000

typedef volatile struct {
        unsigned long tries, got_in;
        bool stop;
} Score;

static Score *score;

static int lock(int fd, int command, short type)
{
        struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_len = 1 };

        return fcntl(fd, command, &lock);
}

static pid_t start_rival(const char *path, short type)
{
        pid_t pid;
        int fd;

        score = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(score != MAP_FAILED);
        pid = fork();
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                fd = open(path, O_RDWR | O_CLOEXEC);
                for (int i = 0; fd >= 0 && !score->stop; i++) {
                        int command = i & 1 ? F_OFD_SETLK : F_SETLK;

                        if (lock(fd, command, type) == 0) {
                                score->got_in++;
                                (void)lock(fd, command, F_UNLCK);
                        }
                        score->tries++;
                }
                _exit(fd < 0);
        }
        wait_until(score->tries > 0);
        return pid;
}

static void end_rival(pid_t pid)
{
        int status;

        score->stop = true;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

static Lockfile take(const char *path, bool shared)
{
        Lockfile file = { .kind = LOCK_CLASSIC };
        int mount;

        file.fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(file.fd >= 0);
        assert_int_equal(lockfile_adopt(file.fd, &file, &mount), LOCKFILE_E_STALE);
        assert_int_equal(lock(file.fd, F_SETLK, shared ? F_RDLCK : F_WRLCK), 0);
        assert_int_equal(lockfile_adopt(file.fd, &file, &mount), 0);
        assert_int_equal(file.kind, LOCK_CLASSIC);
        assert_int_equal(file.shared, shared);
        return file;
}

static void expect_kind(const Lockfile *file, LockKind kind)
{
        Lockfile seen;
        int mount;

        assert_int_equal(file->kind, kind);
        assert_int_equal(lockfile_adopt(file->fd, &seen, &mount), 0);
        assert_int_equal(seen.kind, kind);
        assert_int_equal(seen.shared, file->shared);
        assert_int_equal(seen.id.ino, file->id.ino);
        assert_int_equal(seen.id.dev, file->id.dev);
        assert_int_equal(lockfile_verify(file), 0);
}

static void test_no_exclusive_rival_gets_in(void **state)
{
        const char *path = make_file("file", NULL);

        (void)state;
        for (int shared = 0; shared < 2; shared++) {
                Lockfile file = take(path, shared);
                pid_t rival = start_rival(path, F_WRLCK);

                for (int i = 0; i < ROUNDS; i++) {
                        assert_int_equal(lockfile_convert(&file, LOCK_OFD), 0);
                        assert_int_equal(lockfile_convert(&file, LOCK_CLASSIC), 0);
                }
                expect_kind(&file, LOCK_CLASSIC);
                assert_int_equal(lockfile_convert(&file, LOCK_OFD), 0);
                expect_kind(&file, LOCK_OFD);
                assert_int_equal(lockfile_convert(&file, LOCK_OFD), 0);
                end_rival(rival);
                assert_int_equal(score->got_in, 0);
                lockfile_release(&file);
                assert_true(is_lockable(path, false));
        }
}

static void test_shared_rival(void **state)
{
        const char *path = make_file("file", NULL);
        Lockfile file = take(path, false);
        pid_t rival = start_rival(path, F_RDLCK);
        LockKind kind = LOCK_CLASSIC;

        (void)state;
        for (int i = 0; i < ROUNDS; i++) {
                LockKind next = kind == LOCK_CLASSIC ? LOCK_OFD : LOCK_CLASSIC;
                int r = lockfile_convert(&file, next);

                assert_true(r == 0 || r == LOCKFILE_E_BUSY);
                kind = r == 0 ? next : kind;
                assert_int_equal(file.kind, kind);
        }
        end_rival(rival);
        assert_int_equal(lockfile_verify(&file), 0);
        assert_false(is_lockable(path, false));
        lockfile_release(&file);
        assert_true(is_lockable(path, false));
}

/* A lock that was lost while somebody else took it cannot be converted; one that is free is taken again. */
static void test_lost_lock(void **state)
{
        const char *path = make_file("file", NULL);
        Lockfile file = take(path, false);
        int other = open(path, O_RDWR | O_CLOEXEC);

        (void)state;
        assert_int_equal(lock(file.fd, F_SETLK, F_UNLCK), 0);
        assert_int_equal(lock(other, F_OFD_SETLK, F_WRLCK), 0);
        assert_int_equal(lockfile_convert(&file, LOCK_OFD), LOCKFILE_E_BUSY);
        assert_int_equal(file.kind, LOCK_CLASSIC);
        assert_int_equal(lockfile_verify(&file), LOCKFILE_E_STALE);
        assert_int_equal(lock(other, F_OFD_SETLK, F_UNLCK), 0);
        assert_int_equal(lockfile_convert(&file, LOCK_OFD), 0);
        expect_kind(&file, LOCK_OFD);
        close(other);
        expect_kind(&file, LOCK_OFD);
        lockfile_release(&file);
}

/* Closing any fd of its file drops a classic lock: the further ones go with it, not before. */
static void test_others_go_with_the_lock(void **state)
{
        const char *path = make_file("file", NULL);
        Lockfile file = take(path, true);
        int other = open(path, O_RDWR | O_CLOEXEC), fd = file.fd;

        (void)state;
        file.others = malloc(sizeof(*file.others));
        assert_non_null(file.others);
        file.others[0] = other;
        file.n_others = 1;
        close(open(path, O_PATH | O_CLOEXEC)); /* a look is none */
        assert_int_equal(lockfile_verify(&file), 0);
        assert_false(is_lockable(path, false));
        lockfile_release(&file);
        assert_int_equal(fcntl(fd, F_GETFD), -1);
        assert_int_equal(fcntl(other, F_GETFD), -1);
        assert_null(file.others);
        assert_true(is_lockable(path, false));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_no_exclusive_rival_gets_in),
                cmocka_unit_test(test_shared_rival),
                cmocka_unit_test(test_lost_lock),
                cmocka_unit_test(test_others_go_with_the_lock),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
