/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: no lock is let go of here, whatever fails. The trial sees copies of the state, never an fd of a lock.
 */
#include "upgrade.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "upgrade"
#include "cleanup.h"
#include "fault.h"
#include "log.h"
#include "snapshot.h"
#include "state.h"

#define UPGRADE_AGAIN_MSEC 50     /* and as much longer with each try, ... */
#define UPGRADE_AGAIN_MAX_MSEC 1000 /* ... up to this */
#define TRIAL_USEC (20U * 1000U * 1000U)

struct Upgrade {
        sd_event *loop;
        char **argv; /* for the new image */
        char *binary;
        void (*failed)(const char *why, void *userdata);
        void *userdata;
        const RestoreParts *parts;
        int binary_fd; /* of the file that is tried and then executed; -1: no upgrade is under way */
        int output;    /* what the trial says on stderr */
        pid_t trial;
        sd_event_source *ended, *deadline;
        char proof[UPGRADE_PROOF_MAX]; /* that the trial has to give */
        char why[2048]; /* the last attempt failed */
};

/* Where this image came from. */
static char *own_binary(void)
{
        char path[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

        path[n > 0 ? n : 0] = '\0';
        /* A binary that was replaced while we started is called "... (deleted)". */
        if (n > 10 && strcmp(path + n - 10, " (deleted)") == 0)
                path[n - 10] = '\0';
        return strdup(path);
}

int upgrade_new(sd_event *loop, const char *binary, char **argv, void (*failed)(const char *why, void *userdata), void *userdata, Upgrade **ret)
{
        Upgrade *upgrade = calloc(1, sizeof(*upgrade));

        if (!upgrade)
                return FAULT(-ENOMEM);
        *upgrade = (Upgrade){
                .loop = loop,
                .argv = argv,
                .binary = binary && *binary ? strdup(binary) : own_binary(),
                .failed = failed,
                .userdata = userdata,
                .binary_fd = -1,
                .output = -1,
        };
        if (!upgrade->binary) {
                free(upgrade);
                return FAULT(-ENOMEM);
        }
        *ret = upgrade;
        return 0;
}

static void end_attempt(Upgrade *upgrade)
{
        upgrade->ended = sd_event_source_disable_unref(upgrade->ended);
        upgrade->deadline = sd_event_source_disable_unref(upgrade->deadline);
        upgrade->binary_fd = close_fd(upgrade->binary_fd);
        upgrade->output = close_fd(upgrade->output);
}

Upgrade *upgrade_free(Upgrade *upgrade)
{
        if (!upgrade)
                return NULL;
        end_attempt(upgrade);
        free(upgrade->binary);
        free(upgrade);
        return NULL;
}

static void note_failure(Upgrade *upgrade, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note_failure(Upgrade *upgrade, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        (void)vsnprintf(upgrade->why, sizeof(upgrade->why), format, ap);
        va_end(ap);
        end_attempt(upgrade);
        log_error("no upgrade to %s: %s; this lockd goes on, nothing is lost", upgrade->binary, upgrade->why);
}

#define give_up(upgrade, ...)                                             \
        do {                                                              \
                note_failure((upgrade), __VA_ARGS__);                     \
                (upgrade)->failed((upgrade)->why, (upgrade)->userdata);   \
        } while (0)

const char *upgrade_binary(const Upgrade *upgrade)
{
        return upgrade->binary;
}

bool upgrade_is_under_way(const Upgrade *upgrade)
{
        return upgrade->binary_fd >= 0;
}

const char *upgrade_why(const Upgrade *upgrade)
{
        return upgrade->why;
}

/* ---- tables -> state ---- */

/* The fds that the new image needs. */
typedef struct FdList {
        int *fds;
        size_t n, size;
} FdList;

static int keep(FdList *list, int fd)
{
        if (fd < 0)
                return 0;
        if (list->n == list->size) {
                size_t size = list->size ? list->size * 2 : 256;
                int *fds = reallocarray(list->fds, size, sizeof(*fds));

                if (!fds)
                        return FAULT(-ENOMEM);
                list->fds = fds;
                list->size = size;
        }
        list->fds[list->n++] = fd;
        return 0;
}

static lockd_bytes borrow(const char *text)
{
        return (lockd_bytes){ text ? (u_int)strlen(text) : 0, (char *)(uintptr_t)text };
}

static int write_listeners(const RestoreParts *parts, FILE *file, FdList *fds)
{
        int r = 0;

        for (int i = 0; r == 0 && i < RESTORE_SERVERS; i++) {
                lockd_listener record = {
                        .server = (lockd_server)i,
                        .fd = listener_fd(parts->listeners[i]),
                        .path = borrow(parts->paths[i]),
                        .guard = listener_guard_fd(parts->listeners[i]),
                };

                r = state_write(file, STATE_LISTENER, &record);
                if (r == 0)
                        r = keep(fds, record.fd);
                if (r == 0)
                        r = keep(fds, record.guard);
        }
        return PASS(r);
}

static int write_owners(const RestoreParts *parts, FILE *file, FdList *fds, lockd_end *end)
{
        list_for_each(node, owner_table_all(parts->owners)) {
                lockd_owner record;
                int r;

                snapshot_owner(list_entry(node, Owner, in_all), &record);
                r = state_write(file, STATE_OWNER, &record);
                if (r == 0)
                        r = keep(fds, record.pidfd);
                if (r < 0)
                        return PASS(r);
                end->owners++;
        }
        return 0;
}

static int write_peers(const RestoreParts *parts, FILE *file, FdList *fds, lockd_end *end)
{
        for (int i = 0; i < RESTORE_SERVERS; i++)
                list_for_each(node, peer_set_all(parts->peers[i])) {
                        lockd_peer record;
                        int r;

                        peer_record(peer_of(node), &record);
                        record.server = (lockd_server)i;
                        r = state_write(file, STATE_PEER, &record);
                        if (r == 0)
                                r = keep(fds, record.fd);
                        if (r < 0)
                                return PASS(r);
                        end->peers++;
                }
        return 0;
}

static int write_leases(const RestoreParts *parts, FILE *file, FdList *fds, lockd_end *end)
{
        LeaseTable *leases = lockspace_leases(parts->lockspaces);
        size_t cursor = 0;

        for (Lease *lease; (lease = lease_next(leases, &cursor)); cursor++) {
                lockd_record record;
                int r;

                r = snapshot_lease(lease, SIZE_MAX, &record);
                if (r < 0)
                        return PASS(r);
                r = state_write(file, STATE_LEASE, &record);
                if (r == 0)
                        r = keep(fds, record.fd);
                for (u_int i = 0; r == 0 && i < record.others.others_len; i++)
                        r = keep(fds, record.others.others_val[i]);
                end->leases++;
                end->holds += record.holds.holds_len;
                snapshot_lease_done(&record);
                if (r < 0)
                        return PASS(r);
        }
        return 0;
}

static int write_tables(const RestoreParts *parts, FILE *file, FdList *fds, lockd_end *ret_end)
{
        lockd_header header = {
                .format = STATE_FORMAT,
                .release = borrow(LOCKD_VERSION),
                .binary = borrow(parts->binary),
                .ending = parts->ending,
                .lease_newest = lease_newest(lockspace_leases(parts->lockspaces)),
                .peer_newest = peer_set_newest(parts->peers[RESTORE_LOCK]),
                .owner_newest = owner_table_newest(parts->owners),
        };
        lockd_end end = { 0 };
        int r = state_write(file, STATE_HEADER, &header);

        if (r == 0)
                r = write_listeners(parts, file, fds);
        for (const Lockspace *l = lockspace_next(parts->lockspaces, NULL); r == 0 && l; l = lockspace_next(parts->lockspaces, l)) {
                r = state_write(file, STATE_LOCKSPACE, &(lockd_lockspace){ .path = borrow(l->path), .extra = borrow(l->extra) });
                end.lockspaces++;
        }
        if (r == 0)
                r = write_owners(parts, file, fds, &end);
        if (r == 0)
                r = write_peers(parts, file, fds, &end);
        if (r == 0)
                r = write_leases(parts, file, fds, &end);
        for (size_t i = 0; r == 0 && i < parts->n_strays; i++) {
                r = state_write(file, STATE_STRAY, &(lockd_stray){ .fd = parts->strays[i] });
                if (r == 0)
                        r = keep(fds, parts->strays[i]);
        }
        if (r == 0 && parts->unknown && fputs(parts->unknown, file) < 0)
                r = FAULT(-errno);
        for (size_t i = 0; i < fds->n; i++)
                if ((u_int)fds->fds[i] > end.highest_fd)
                        end.highest_fd = (u_int)fds->fds[i];
        if (r == 0)
                r = state_write(file, STATE_END, &end);
        *ret_end = end;
        return PASS(r);
}

void upgrade_proof(const lockd_end *restored, char buf[UPGRADE_PROOF_MAX])
{
        (void)snprintf(buf, UPGRADE_PROOF_MAX, "restored: %llu lockspaces, %llu leases, %llu holds, %llu owners, %llu connections",
                       (unsigned long long)restored->lockspaces, (unsigned long long)restored->leases,
                       (unsigned long long)restored->holds, (unsigned long long)restored->owners,
                       (unsigned long long)restored->peers);
}

/* The state in a memfd, or -errno; fds may be NULL. */
static int write_state(const RestoreParts *parts, FdList *fds, lockd_end *ret_end)
{
        _cleanup_fd_ int fd = memfd_create("lockd-state", MFD_CLOEXEC);
        _cleanup_fd_ int copy = -1;
        FdList dropped = { 0 };
        FILE *file;
        int r;

        if (fd < 0 || (copy = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0 || !(file = fdopen(copy, "w")))
                return FAULT(-errno);
        TAKE_FD(copy);
        r = write_tables(parts, file, fds ? fds : &dropped, ret_end);
        free(dropped.fds);
        if (fclose(file) != 0 && r == 0)
                r = FAULT(-errno);
        if (r == 0 && lseek(fd, 0, SEEK_SET) < 0)
                r = FAULT(-errno);
        return r < 0 ? PASS(r) : TAKE_FD(fd);
}

/* ---- the trial ---- */

static char **arguments(const Upgrade *upgrade, const char *last)
{
        size_t n = 0;
        char **argv;

        while (upgrade->argv[n])
                n++;
        argv = calloc(n + 2, sizeof(*argv));
        for (size_t i = 0; argv && i < n; i++)
                argv[i] = upgrade->argv[i];
        if (argv && last)
                argv[n] = (char *)(uintptr_t)last;
        return argv;
}

/* The environment with the state's fd in it; only the array and its last string are new. */
static char **environment(int state_fd)
{
        size_t n = 0, kept = 0;
        char **env;

        while (environ[n])
                n++;
        env = calloc(n + 2, sizeof(*env));
        if (!env)
                return NULL;
        for (size_t i = 0; i < n; i++)
                if (strncmp(environ[i], RESTORE_VARIABLE "=", sizeof(RESTORE_VARIABLE)) != 0)
                        env[kept++] = environ[i];
        if (asprintf(&env[kept], RESTORE_VARIABLE "=%d", state_fd) < 0) {
                free(env);
                return NULL;
        }
        return env;
}

/* In the child: everything but the standard streams, the state and the binary is closed before anything else runs. */
static void run_trial(int binary, int state, int output, char **argv, char **env)
{
        int null = open("/dev/null", O_RDWR);

        (void)dup2(output, STDERR_FILENO);
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(null, STDOUT_FILENO);
        /* To numbers above all three, then down: none may overwrite another. */
        binary = fcntl(binary, F_DUPFD, 10);
        state = fcntl(state, F_DUPFD, 10);
        (void)dup2(state, 3);
        (void)dup2(binary, 4);
        (void)fcntl(4, F_SETFD, FD_CLOEXEC);
        (void)close_range(5, ~0U, 0);
        (void)execveat(4, "", argv, env, AT_EMPTY_PATH);
        dprintf(STDERR_FILENO, "cannot be executed: %s\n", errno == ENOENT ? "not a binary" : strerror(errno));
        _exit(126);
}

static void execute(Upgrade *upgrade);

static void read_output(const Upgrade *upgrade, char *buf, size_t size)
{
        ssize_t n = read(upgrade->output, buf, size - 1);

        buf[n > 0 ? n : 0] = '\0';
        for (char *p = buf; *p; p++)
                if (*p == '\n')
                        *p = p[1] ? ' ' : '\0';
}

static int on_trial_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Upgrade *upgrade = userdata;
        siginfo_t info = { 0 };
        char said[1024];

        (void)revents;
        (void)waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG);
        if (source != upgrade->ended) {
                /* One that was given up long ago, and has only now died. The loop's reference, which this takes away, is the
                 * last one. */
                (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
                (void)sd_event_source_set_floating(source, false);
                return 0;
        }
        read_output(upgrade, said, sizeof(said));
        if (info.si_code != CLD_EXITED)
                give_up(upgrade, "its trial was ended by signal %d", info.si_status);
        else if (info.si_status != 0)
                give_up(upgrade, "its trial ended with code %d%s%s", info.si_status, *said ? ": " : "", said);
        else if (!strstr(said, upgrade->proof))
                give_up(upgrade, "its trial did not restore the state%s%s", *said ? ": " : "", said);
        else
                execute(upgrade);
        return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
        Upgrade *upgrade = userdata;

        (void)source;
        (void)usec;
        (void)kill(upgrade->trial, SIGKILL); /* our own child, not yet waited for */
        /* It may take for ever to die (its file on a dead mount): the loop reaps it when it does. */
        (void)sd_event_source_set_floating(upgrade->ended, true);
        upgrade->ended = sd_event_source_unref(upgrade->ended);
        give_up(upgrade, "its trial did not end within %u s", TRIAL_USEC / 1000000U);
        return 0;
}

static int start_trial(Upgrade *upgrade, int state)
{
        _cleanup_free_ char **argv = arguments(upgrade, "--check-state"), **env = environment(3);
        _cleanup_fd_ int output = -1, pidfd = -1;
        int pipes[2], r;

        if (!argv || !env)
                return FAULT(-ENOMEM);
        if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK) < 0)
                return FAULT(-errno);
        upgrade->output = pipes[0];
        output = pipes[1];
        upgrade->trial = fork();
        if (upgrade->trial == 0)
                run_trial(upgrade->binary_fd, state, output, argv, env);
        if (upgrade->trial < 0)
                return FAULT(-errno);
        for (char **p = env; *p; p++)
                if (!p[1])
                        free(*p);
        pidfd = pidfd_open(upgrade->trial, 0);
        r = pidfd < 0 ? -errno : sd_event_add_io(upgrade->loop, &upgrade->ended, pidfd, EPOLLIN, on_trial_ended, upgrade);
        if (r >= 0) {
                (void)sd_event_source_set_io_fd_own(upgrade->ended, true);
                TAKE_FD(pidfd);
                r = sd_event_add_time_relative(upgrade->loop, &upgrade->deadline, CLOCK_MONOTONIC, TRIAL_USEC, 0, on_deadline, upgrade);
        }
        if (r < 0) {
                (void)kill(upgrade->trial, SIGKILL);
                (void)waitpid(upgrade->trial, NULL, 0);
                return FAULT(r);
        }
        return 0;
}

int upgrade_start(Upgrade *upgrade, const RestoreParts *parts)
{
        _cleanup_fd_ int state = -1;
        lockd_end end = { 0 };
        struct stat st;
        int r;

        if (upgrade->binary_fd >= 0)
                return -EALREADY;
        upgrade->parts = parts;
        upgrade->binary_fd = open(upgrade->binary, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (upgrade->binary_fd >= 0 && (fstat(upgrade->binary_fd, &st) < 0 || !S_ISREG(st.st_mode))) {
                note_failure(upgrade, "it is not a regular file");
                return -EINVAL;
        }
        if (upgrade->binary_fd < 0) {
                r = -errno;
                note_failure(upgrade, "cannot be opened: %s", strerror(-r));
                return r;
        }
        state = write_state(parts, NULL, &end);
        upgrade_proof(&end, upgrade->proof);
        r = state < 0 ? state : start_trial(upgrade, state);
        if (r < 0)
                note_failure(upgrade, "its trial cannot be started: %s (%s)", strerror(-r), fault_trail());
        return r;
}

/* ---- the execution ---- */

static void execute(Upgrade *upgrade)
{
        _cleanup_free_ char **argv = arguments(upgrade, NULL), **env = NULL;
        _cleanup_fd_ int state = -1;
        FdList fds = { 0 };
        lockd_end end;
        int r = 0;

        /* From here to the execution nothing is dispatched: the state is the last word. */
        state = write_state(upgrade->parts, &fds, &end);
        env = state < 0 ? NULL : environment(state);
        if (state < 0 || !argv || !env)
                r = state < 0 ? state : -ENOMEM;
        if (r == 0)
                r = keep(&fds, state);
        for (size_t i = 0; r == 0 && i < fds.n; i++)
                if (fcntl(fds.fds[i], F_SETFD, 0) < 0)
                        r = FAULT(-errno);
        if (r == 0) {
                log_info("executing %s", upgrade->binary);
                (void)execveat(upgrade->binary_fd, "", argv, env, AT_EMPTY_PATH);
                r = FAULT(-errno);
        }
        /* Still here: a copy of an fd in some child would be a lock that nobody can find. */
        (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
        free(fds.fds);
        give_up(upgrade, "it cannot be executed: %s (%s)", strerror(-r), fault_trail());
}

void upgrade_again(int state_fd, char **argv)
{
        const char *before = getenv(RESTORE_TRIES_VARIABLE);
        int tries = before ? atoi(before) : 0;
        char count[16];

        (void)snprintf(count, sizeof(count), "%d", ++tries);
        (void)setenv(RESTORE_TRIES_VARIABLE, count, 1);
        for (;;) {
                char **env;

                (void)poll(NULL, 0, tries < UPGRADE_AGAIN_MAX_MSEC / UPGRADE_AGAIN_MSEC ? tries * UPGRADE_AGAIN_MSEC :
                                                                                           UPGRADE_AGAIN_MAX_MSEC);
                env = state_fd >= 0 ? environment(state_fd) : environ;
                if (env)
                        (void)execve("/proc/self/exe", argv, env);
                log_error("cannot execute this lockd again: %s", strerror(env ? errno : ENOMEM));
        }
}
