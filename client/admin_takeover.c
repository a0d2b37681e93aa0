/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * takeover --check: looks at a running virtlockd before it is sent SIGUSR1. Invariant: virtlockd is not touched: no
 * connection to it (one that has not registered would end it at that very signal), no file of its opened, no signal.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "admin.h"
#include "cleanup.h"
#include "client.h"
#include "exit_codes.h"
#include "orphan.h"

#define SOCKETS_MAX 65536
#define VERSION_WAIT_MSEC 5000
#define FDS_WANTED 128 /* beside a pidfd for each connection */

/* One end of a connection to virtlockd, and who has the other one. */
typedef struct Link {
        int fd;
        uint32_t peer; /* inode; 0: nobody has it any more */
        pid_t pid;     /* 0: none found */
        unsigned pids;
        char comm[32];
} Link;

typedef struct File {
        int fd;
        dev_t dev;
        ino_t ino;
        int mount;
        bool locked, shared;
        char *path;
} File;

typedef struct Check {
        pid_t pid;
        unsigned problems;
        Link *links;
        size_t n_links;
        File *files;
        size_t n_files;
        unsigned n_fds;
} Check;

static void problem(Check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void problem(Check *check, const char *format, ...)
{
        va_list ap;

        check->problems++;
        fputs("NOT NOW: ", stdout);
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        fputc('\n', stdout);
}

static ssize_t read_proc(pid_t pid, const char *name, char *buf, size_t size)
{
        _cleanup_fd_ int fd = -1;
        size_t len = 0;
        char path[64];

        (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        for (ssize_t n; len + 1 < size && (n = read(fd, buf + len, size - 1 - len)) > 0;)
                len += (size_t)n;
        buf[len] = '\0';
        return (ssize_t)len;
}

static ssize_t read_link(pid_t pid, const char *name, char *buf, size_t size)
{
        char path[64];
        ssize_t n;

        (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
        n = readlink(path, buf, size - 1);
        if (n < 0)
                return -errno;
        buf[n] = '\0';
        return n;
}

/* Calls handle for each number in /proc/dir until it says false. */
static void for_each_number(const char *dir, bool (*handle)(int number, void *userdata), void *userdata)
{
        DIR *d = opendir(dir);
        struct dirent *entry;

        while (d && (entry = readdir(d)))
                if (isdigit((unsigned char)entry->d_name[0]) && !handle(atoi(entry->d_name), userdata))
                        break;
        if (d)
                closedir(d);
}

static void fd_dir(pid_t pid, char buf[32])
{
        (void)snprintf(buf, 32, "/proc/%d/fd", (int)pid);
}

static uint32_t socket_inode(pid_t pid, int fd)
{
        char name[32], target[64];
        unsigned inode;

        (void)snprintf(name, sizeof(name), "fd/%d", fd);
        return read_link(pid, name, target, sizeof(target)) > 0 && sscanf(target, "socket:[%u]", &inode) == 1 ? inode : 0;
}

/* ---- which process ---- */

/* Inodes of sockets with that path, in the network namespace of pid. */
static size_t sockets_at(pid_t pid, const char *wanted, bool listening, uint32_t *ret, size_t max)
{
        _cleanup_free_ char *line = NULL;
        char path[64], name[PATH_MAX];
        size_t size = 0, n = 0;
        FILE *file;

        (void)snprintf(path, sizeof(path), "/proc/%d/net/unix", (int)pid);
        file = fopen(path, "re");
        while (file && n < max && getline(&line, &size, file) > 0) {
                unsigned flags, inode;

                if (sscanf(line, "%*s %*s %*s %x %*s %*s %u %4095s", &flags, &inode, name) == 3 && strcmp(name, wanted) == 0 &&
                    ((flags & 0x10000) != 0) == listening)
                        ret[n++] = inode;
        }
        if (file)
                fclose(file);
        return n;
}

typedef struct Search {
        uint32_t inode;
        pid_t pid, found;
} Search;

static bool search_fd(int fd, void *userdata)
{
        Search *search = userdata;

        if (socket_inode(search->pid, fd) != search->inode)
                return true;
        search->found = search->pid;
        return false;
}

static bool search_process(int pid, void *userdata)
{
        Search *search = userdata;
        char dir[32];

        if (pid == 1) /* systemd has a copy of the socket that it started virtlockd with */
                return true;
        search->pid = pid;
        fd_dir(pid, dir);
        for_each_number(dir, search_fd, search);
        return search->found == 0;
}

/* Where virtlockd listens for libvirt; to be freed. */
static char *lock_socket(void)
{
        char *admin = client_admin_socket(), *path = NULL, *slash = admin ? strrchr(admin, '/') : NULL;

        if (slash && asprintf(&path, "%.*s/virtlockd-sock", (int)(slash - admin), admin) < 0)
                path = NULL;
        free(admin);
        return path;
}

static pid_t find_virtlockd(const char *path)
{
        Search search = { 0 };

        if (sockets_at(getpid(), path, true, &search.inode, 1) == 0)
                return 0;
        for_each_number("/proc", search_process, &search);
        return search.found;
}

/* ---- binaries ---- */

/* The first line that FILE --version prints; false: it cannot be executed, or hangs. */
static bool ask_version(const char *file, char *buf, size_t size)
{
        struct pollfd p;
        int pipes[2], status;
        ssize_t n;
        pid_t pid;

        buf[0] = '\0';
        if (pipe2(pipes, O_CLOEXEC) < 0)
                return false;
        pid = fork();
        if (pid == 0) {
                (void)dup2(pipes[1], STDOUT_FILENO);
                (void)execl(file, file, "--version", (char *)NULL);
                _exit(126);
        }
        close_fd(pipes[1]);
        p = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
        n = pid > 0 && poll(&p, 1, VERSION_WAIT_MSEC) == 1 ? read(pipes[0], buf, size - 1) : -1;
        close_fd(pipes[0]);
        if (pid > 0) {
                if (n <= 0)
                        (void)kill(pid, SIGKILL);
                (void)waitpid(pid, &status, 0);
        }
        buf[n > 0 ? n : 0] = '\0';
        buf[strcspn(buf, "\n")] = '\0';
        return n > 0;
}

static bool is_lockd(const char *version)
{
        return strncmp(version, "lockd ", 6) == 0;
}

static bool executable_in(pid_t pid, const char *dir, size_t len, const char *name, char *buf, size_t size)
{
        struct stat st;

        if ((size_t)snprintf(buf, size, "/proc/%d/root%.*s/%s", (int)pid, (int)len, dir, name) >= size)
                return false;
        return access(buf, X_OK) == 0 && stat(buf, &st) == 0 && S_ISREG(st.st_mode);
}

/* What execvp() will find for argv[0] of that process, as we can reach it. */
static bool find_successor(pid_t pid, const char *name, char *buf, size_t size)
{
        static char environment[131072];
        const char *path = NULL;
        char cwd[PATH_MAX];
        ssize_t n;

        if (*name == '/')
                return executable_in(pid, "", 0, name + 1, buf, size);
        if (strchr(name, '/'))
                return read_link(pid, "cwd", cwd, sizeof(cwd)) > 0 && executable_in(pid, cwd, strlen(cwd), name, buf, size);
        n = read_proc(pid, "environ", environment, sizeof(environment));
        for (const char *p = environment; n > 0 && p < environment + n; p += strlen(p) + 1)
                if (strncmp(p, "PATH=", 5) == 0)
                        path = p + 5;
        for (path = path ? path : "/bin:/usr/bin"; *path; path += *path == ':') {
                size_t len = strcspn(path, ":");

                if (executable_in(pid, path, len, name, buf, size))
                        return true;
                path += len;
        }
        return false;
}

/* false: that is no virtlockd. */
static bool check_binaries(Check *check)
{
        char argv0[PATH_MAX], exe[PATH_MAX], running[64], version[256], next[256], successor[PATH_MAX + 64];
        const char *shown;

        if (read_proc(check->pid, "cmdline", argv0, sizeof(argv0)) <= 0 || read_link(check->pid, "exe", exe, sizeof(exe)) < 0) {
                fprintf(stderr, "lockd-admin: pid %d: no such process, or not permitted\n", (int)check->pid);
                return false;
        }
        (void)snprintf(running, sizeof(running), "/proc/%d/exe", (int)check->pid);
        if (!ask_version(running, version, sizeof(version)))
                (void)snprintf(version, sizeof(version), "does not tell its version");
        if (is_lockd(version)) {
                fprintf(stderr, "lockd-admin: pid %d is lockd already (%s)\n", (int)check->pid, version);
                return false;
        }
        shown = strchr(version, '(');
        printf("running:     pid %d, %s, %s\n", (int)check->pid, exe, shown ? shown : version);
        if (!strstr(version, "(libvirt) 9.0."))
                printf("note:        the take-over is tested with virtlockd of libvirt 9.0\n");
        if (!find_successor(check->pid, argv0, successor, sizeof(successor))) {
                problem(check, "'%s', which virtlockd would execute, is not there or not executable: it would end, and lose every lock", argv0);
                return true;
        }
        shown = strchr(successor + 1, '/') + 1; /* behind /proc/PID/root */
        shown = strchr(strchr(shown, '/') + 1, '/');
        if (!ask_version(successor, next, sizeof(next)))
                problem(check, "'%s', which virtlockd would execute, does not tell its version: it cannot be executed", shown);
        else if (!is_lockd(next))
                problem(check, "%s has not been replaced by lockd: SIGUSR1 would execute %s again", shown,
                        strchr(next, '(') ? strchr(next, '(') : next);
        printf("executes:    %s, %s\n", shown, strchr(next, '(') ? strchr(next, '(') : next);
        return true;
}

/* ---- fds: connections and locks ---- */

typedef struct Collect {
        Check *check;
        const uint32_t *lock_ends;
        size_t n_lock_ends;
        bool failed;
} Collect;

static bool take_link(Collect *collect, int fd, uint32_t inode)
{
        Check *check = collect->check;

        for (size_t i = 0; i < collect->n_lock_ends; i++)
                if (collect->lock_ends[i] == inode) {
                        Link *larger = reallocarray(check->links, check->n_links + 1, sizeof(*larger));

                        if (!larger)
                                return false;
                        check->links = larger;
                        check->links[check->n_links++] = (Link){ .fd = fd, .peer = orphan_peer_inode(inode) };
                        break;
                }
        return true;
}

/* Its classic lock on byte 0, if this fd shows it. */
static void read_lock(const Check *check, const char *fdinfo, File *file)
{
        const char *line = fdinfo;

        while ((line = strstr(line, "\nlock:"))) {
                char type[8] = "", mode[8] = "", end[24] = "";
                unsigned long long start;
                int pid;

                line += sizeof("\nlock:") - 1;
                if (sscanf(line, " %*[^:]: %7s %*s %7s %d %*s %llu %23s", type, mode, &pid, &start, end) == 5 && start == 0 &&
                    strcmp(end, "0") == 0 && (strcmp(type, "OFDLCK") == 0 || pid == check->pid)) {
                        file->locked = true;
                        file->shared = strcmp(mode, "READ") == 0;
                }
        }
}

static bool take_file(Check *check, int fd)
{
        File file = { .fd = fd }, *larger;
        char name[32], info[4096], target[PATH_MAX + 16], *p;
        struct statx st;
        unsigned flags;

        (void)snprintf(name, sizeof(name), "fdinfo/%d", fd);
        if (read_proc(check->pid, name, info, sizeof(info)) <= 0 || !(p = strstr(info, "flags:")) || sscanf(p + 6, "%o", &flags) != 1 ||
            (flags & O_ACCMODE) != O_RDWR)
                return true;
        (void)snprintf(name, sizeof(name), "fd/%d", fd);
        if (read_link(check->pid, name, target, sizeof(target)) <= 0 || *target != '/' ||
            (strlen(target) > 4 && strcmp(target + strlen(target) - 4, ".pid") == 0))
                return true;
        (void)snprintf(name, sizeof(name), "/proc/%d/fd/%d", (int)check->pid, fd);
        /* From the cache: a server that does not answer is no reason to hang here. */
        if (statx(AT_FDCWD, name, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &st) < 0 || (!S_ISREG(st.stx_mode) && !S_ISBLK(st.stx_mode)))
                return true;
        file.dev = S_ISBLK(st.stx_mode) ? makedev(st.stx_rdev_major, st.stx_rdev_minor) : makedev(st.stx_dev_major, st.stx_dev_minor);
        file.ino = S_ISBLK(st.stx_mode) ? 0 : st.stx_ino;
        p = strstr(info, "mnt_id:");
        file.mount = p ? atoi(p + 7) : -1;
        read_lock(check, info, &file);
        larger = reallocarray(check->files, check->n_files + 1, sizeof(*larger));
        file.path = larger ? strdup(target) : NULL;
        if (larger)
                check->files = larger;
        if (!file.path)
                return false;
        check->files[check->n_files++] = file;
        return true;
}

static bool collect_fd(int fd, void *userdata)
{
        Collect *collect = userdata;
        uint32_t inode = socket_inode(collect->check->pid, fd);

        collect->check->n_fds++;
        if (!(inode ? take_link(collect, fd, inode) : take_file(collect->check, fd)))
                collect->failed = true;
        return !collect->failed;
}

/* Who has the other ends. */
typedef struct Owners {
        Check *check;
        pid_t pid;
} Owners;

static int compare_peers(const void *a, const void *b)
{
        const Link *x = a, *y = b;

        return x->peer < y->peer ? -1 : x->peer > y->peer;
}

static bool match_fd(int fd, void *userdata)
{
        Owners *owners = userdata;
        Link key = { .peer = socket_inode(owners->pid, fd) }, *link;

        link = key.peer ? bsearch(&key, owners->check->links, owners->check->n_links, sizeof(key), compare_peers) : NULL;
        if (link && link->pid != owners->pid) {
                link->pids++;
                link->pid = owners->pid;
        }
        return true;
}

static bool match_process(int pid, void *userdata)
{
        Owners *owners = userdata;
        char dir[32];

        owners->pid = pid;
        fd_dir(pid, dir);
        for_each_number(dir, match_fd, owners);
        return true;
}

static bool is_libvirt(const char *comm)
{
        return strcmp(comm, "libvirtd") == 0 || (strncmp(comm, "virt", 4) == 0 && strlen(comm) > 5 && comm[strlen(comm) - 1] == 'd');
}

static void check_connections(Check *check)
{
        Owners owners = { .check = check };
        size_t other = 0;

        if (check->n_links > 1)
                qsort(check->links, check->n_links, sizeof(*check->links), compare_peers);
        if (check->n_links > 0)
                for_each_number("/proc", match_process, &owners);
        printf("connections: %zu\n", check->n_links);
        for (size_t i = 0; i < check->n_links; i++) {
                Link *link = &check->links[i];

                if (link->pid == 0) {
                        problem(check, "nobody seen from here has the other end of virtlockd's fd %d: it is about to notice, or the client "
                                "is in another pid namespace", link->fd);
                        continue;
                }
                if (read_proc(link->pid, "comm", link->comm, sizeof(link->comm)) <= 0)
                        link->comm[0] = '\0';
                link->comm[strcspn(link->comm, "\n")] = '\0';
                printf("             fd %d: pid %d (%s)", link->fd, (int)link->pid, link->comm);
                if (link->pids > 1)
                        printf(" and %u more", link->pids - 1);
                fputc('\n', stdout);
                if (is_libvirt(link->comm))
                        problem(check, "%s (pid %d) has a connection open for a call: wait until that is done. Has it not registered, "
                                "virtlockd ends at SIGUSR1", link->comm, (int)link->pid);
                else
                        other++;
        }
        if (other > 0)
                printf("note:        whether a connection has registered cannot be seen from outside; those of VMs register first of all. If "
                       "one\n             of these is not a VM's, end that process first: virtlockd ends at SIGUSR1 because of it\n");
}

/* ---- locks ---- */

static int compare_files(const void *a, const void *b)
{
        const File *x = a, *y = b;

        if (x->dev != y->dev)
                return x->dev < y->dev ? -1 : 1;
        return x->ino < y->ino ? -1 : x->ino > y->ino;
}

/* The file system of a mount of that process, "?" when it is not known. */
static void mount_type(pid_t pid, int mount, char *ret, size_t size)
{
        _cleanup_free_ char *line = NULL;
        char path[64], type[64];
        size_t len = 0;
        FILE *file;

        (void)snprintf(ret, size, "?");
        (void)snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)pid);
        file = fopen(path, "re");
        while (file && getline(&line, &len, file) > 0) {
                const char *dash = strstr(line, " - ");

                if (atoi(line) == mount && dash && sscanf(dash + 3, "%63s", type) == 1)
                        (void)snprintf(ret, size, "%s", type);
        }
        if (file)
                fclose(file);
}

static bool is_local_type(const char *type)
{
        static const char *const types[] = { "tmpfs", "ramfs", "devtmpfs", "ext2", "ext3", "ext4", "xfs", "btrfs" };

        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
                if (strcmp(types[i], type) == 0)
                        return true;
        return false;
}

static bool is_utf8(const char *text)
{
        for (const unsigned char *p = (const unsigned char *)text; *p;) {
                size_t n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;

                if (n == 0)
                        return false;
                for (size_t i = 1; i < n; i++)
                        if ((p[i] & 0xc0) != 0x80)
                                return false;
                p += n;
        }
        return true;
}

static void print_name(const char *name)
{
        for (const unsigned char *p = (const unsigned char *)name; *p; p++)
                printf(*p < 0x20 || *p >= 0x7f || *p == '\\' ? "\\x%02x" : "%c", *p);
}

static void note_file(const char *what, const File *file, const File *other)
{
        fputs("note:        ", stdout);
        print_name(file->path);
        if (other) {
                fputs(" and ", stdout);
                print_name(other->path);
        }
        printf(": %s\n", what);
}

/* One file: files[0] to files[n - 1]. */
static void check_file(Check *check, const File *files, size_t n, size_t *ret_foreign)
{
        char type[64], text[192];
        bool locked = false, shared = false;

        for (size_t i = 0; i < n; i++) {
                locked = locked || files[i].locked;
                shared = shared || files[i].shared;
                if (!is_utf8(files[i].path)) {
                        problem(check, "the name of a locked file is not UTF-8: virtlockd ends at SIGUSR1 because of it:");
                        note_file("release it first", &files[i], NULL);
                }
        }
        if (!locked)
                note_file("virtlockd has lost its lock on it; lockd will lock it again if it is free", &files[0], NULL);
        if (n > 1)
                note_file(shared ? "one file, shared under two names: will be one lease" :
                                   "one file, granted exclusively under two names: will be one lease, CONFLICT if the holders are two VMs",
                          &files[0], &files[1]);
        mount_type(check->pid, files[0].mount, type, sizeof(type));
        if (is_local_type(type))
                return;
        ++*ret_foreign;
        (void)snprintf(text, sizeof(text), "on %s, which is not known to be local: its lock will stay a classic one (CLASSIC)", type);
        note_file(text, &files[0], NULL);
}

static void check_locks(Check *check)
{
        size_t leases = 0, foreign = 0;

        if (check->n_files > 1)
                qsort(check->files, check->n_files, sizeof(*check->files), compare_files);
        for (size_t i = 0, n; i < check->n_files; i += n) {
                for (n = 1; i + n < check->n_files && compare_files(&check->files[i], &check->files[i + n]) == 0;)
                        n++;
                check_file(check, &check->files[i], n, &foreign);
                leases++;
        }
        printf("locks:       %zu names, %zu files, %zu of them not on a local file system\n", check->n_files, leases, foreign);
}

/* ---- room ---- */

static void check_limits(Check *check)
{
        char text[4096], *line;
        unsigned long long soft = 0, hard = 0, wanted = check->n_fds + check->n_links + FDS_WANTED;

        if (read_proc(check->pid, "limits", text, sizeof(text)) <= 0 || !(line = strstr(text, "Max open files")))
                return;
        if (sscanf(line + 14, "%llu %llu", &soft, &hard) != 2)
                return; /* unlimited */
        printf("open files:  %u of %llu\n", check->n_fds, hard);
        if (wanted > hard)
                problem(check, "lockd wants %llu open files at once, and the limit is %llu: raise it (prlimit --nofile=%llu --pid %d)", wanted,
                        hard, wanted * 2, (int)check->pid);
}

static void check_state_file(Check *check)
{
        uint64_t wanted = 65536 + (uint64_t)check->n_files * 1024 + (uint64_t)check->n_links * 1024;
        const char *dir = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");
        struct statvfs st;
        char path[PATH_MAX];

        (void)snprintf(path, sizeof(path), "/proc/%d/root%s", (int)check->pid, dir ? dir : "/run");
        if (statvfs(path, &st) < 0)
                return;
        if (st.f_flag & ST_RDONLY)
                problem(check, "%s is read-only: virtlockd cannot leave its state there, and would end", dir);
        else if ((uint64_t)st.f_bavail * st.f_frsize < wanted)
                problem(check, "%s has less than %llu bytes free: virtlockd cannot leave its state there, and would end", dir,
                        (unsigned long long)wanted);
}

static void check_done(Check *check)
{
        for (size_t i = 0; i < check->n_files; i++)
                free(check->files[i].path);
        free(check->files);
        free(check->links);
}

static int run_check(pid_t pid)
{
        _cleanup_free_ uint32_t *lock_ends = calloc(SOCKETS_MAX, sizeof(*lock_ends));
        _cleanup_free_ char *path = lock_socket();
        _cleanup_(check_done) Check check = { .pid = pid };
        Collect collect = { .check = &check, .lock_ends = lock_ends };
        char dir[32];

        if (!lock_ends || !path)
                return EXIT_SOFTWARE;
        if (check.pid == 0)
                check.pid = find_virtlockd(path);
        if (check.pid == 0) {
                fprintf(stderr, "lockd-admin: no process listens at %s: no virtlockd runs, or it is not seen from here\n", path);
                return EXIT_UNAVAILABLE;
        }
        if (!check_binaries(&check))
                return EXIT_UNAVAILABLE;
        collect.n_lock_ends = sockets_at(check.pid, path, false, lock_ends, SOCKETS_MAX);
        fd_dir(check.pid, dir);
        for_each_number(dir, collect_fd, &collect);
        if (collect.failed)
                return EXIT_SOFTWARE;
        check_connections(&check);
        check_locks(&check);
        check_limits(&check);
        check_state_file(&check);
        if (check.problems > 0)
                return EXIT_BUSY;
        printf("fine:        kill -USR1 %d has lockd take over\n", (int)check.pid);
        return EXIT_OK;
}

static int takeover(Admin *admin, int argc, char **argv)
{
        static const struct option options[] = {
                { "check", no_argument, NULL, 'c' },
                { "pid", required_argument, NULL, 'p' },
                { "help", no_argument, NULL, 'h' },
                { 0 },
        };
        bool check = false;
        long pid = 0;
        char *end;
        int c;

        (void)admin;
        while ((c = getopt_long(argc, argv, "p:h", options, NULL)) != -1) {
                switch (c) {
                case 'c':
                        check = true;
                        break;
                case 'p':
                        pid = strtol(optarg, &end, 10);
                        if (*end || pid <= 0 || pid > INT_MAX)
                                return admin_usage(&admin_takeover, "'%s' is not a pid", optarg);
                        break;
                case 'h':
                        return admin_help(&admin_takeover);
                default:
                        return admin_usage(&admin_takeover, "wrong options");
                }
        }
        if (optind < argc)
                return admin_usage(&admin_takeover, "unexpected argument '%s'", argv[optind]);
        if (!check)
                return admin_usage(&admin_takeover, "wants --check; the take-over itself is virtlockd's own upgrade: kill -USR1 PID");
        return run_check((pid_t)pid);
}

const AdminCommand admin_takeover = {
        .name = "takeover",
        .help = "--check [--pid PID]\n"
                "Looks at a running virtlockd, without touching it: can lockd take over from it now?\n"
                "\n"
                "Exit status 0: yes, by 'kill -USR1 PID'. 75: not now, for the reasons that are printed.\n"
                "69: no virtlockd runs.\n"
                "\n"
                "      --check            look, do nothing\n"
                "  -p, --pid PID          that process, not the one that listens at virtlockd's socket\n"
                "  -h, --help             show this help and end\n",
        .run = takeover,
};
