/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: every process that the harness started ends with the test, and a test never hangs for ever. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "wire.h"

struct Conn {
        Client *client;
};

int64_t now_msec(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_briefly(void)
{
        (void)poll(NULL, 0, 2);
}

const char *work_path(const char *name)
{
        static char buffers[16][4200];
        static unsigned next;
        char *buf = buffers[next++ % 16];
        const char *work = getenv("WORK");

        if (!work)
                fail_msg("WORK is not set: run this under tests/isolate");
        (void)snprintf(buf, sizeof(buffers[0]), "%s/%s", work, name);
        return buf;
}

const char *make_file(const char *name, const char *content)
{
        const char *path = work_path(name);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_true(fd >= 0);
        if (content)
                assert_int_equal(write(fd, content, strlen(content)), (ssize_t)strlen(content));
        close(fd);
        return path;
}

bool file_exists(const char *path)
{
        return access(path, F_OK) == 0;
}

bool is_lockable(const char *path, bool shared)
{
        struct flock lock = { .l_type = shared ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
        int fd = open(path, O_RDWR | O_CLOEXEC);

        assert_true(fd >= 0);
        assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
        close(fd);
        return lock.l_type == F_UNLCK;
}

/* ---- daemon ---- */

static void write_config(const TestDaemon *daemon, const char *config)
{
        FILE *f = fopen(daemon->config, "we");

        assert_non_null(f);
        fprintf(f, "lock_socket = \"%s\"\nadmin_socket = \"%s\"\n%s", daemon->lock_socket, daemon->admin_socket, config ? config : "");
        fclose(f);
}

static bool answers(const char *socket)
{
        Conn *conn = conn_open_at(socket);

        if (conn)
                conn_close(conn);
        return conn != NULL;
}

void install_copy(const char *from, const char *to)
{
        char fresh[4200];
        int in = open(from, O_RDONLY | O_CLOEXEC), out;
        ssize_t n;

        (void)snprintf(fresh, sizeof(fresh), "%s.new", to);
        out = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
        assert_true(in >= 0 && out >= 0);
        while ((n = sendfile(out, in, NULL, 1 << 20)) > 0)
                continue;
        assert_int_equal(n, 0);
        close(in);
        close(out);
        assert_int_equal(rename(fresh, to), 0);
}

static void start(TestDaemon *daemon, bool copy, const char *config, const char *const *arguments)
{
        static int number;
        const char *binary = getenv("LOCKD") ? getenv("LOCKD") : "build/lockd";
        const char *argv[16] = { binary, "-f", daemon->config, "-v" };
        int n = 4, log;

        (void)snprintf(daemon->dir, sizeof(daemon->dir), "%s/d%d.%d", getenv("WORK"), (int)getpid(), number++);
        assert_int_equal(mkdir(daemon->dir, 0700), 0);
        (void)snprintf(daemon->lock_socket, sizeof(daemon->lock_socket), "%s/lock", daemon->dir);
        (void)snprintf(daemon->admin_socket, sizeof(daemon->admin_socket), "%s/admin", daemon->dir);
        (void)snprintf(daemon->log, sizeof(daemon->log), "%s/log", daemon->dir);
        (void)snprintf(daemon->config, sizeof(daemon->config), "%s/lockd.conf", daemon->dir);
        (void)snprintf(daemon->binary, sizeof(daemon->binary), "%s/lockd", daemon->dir);
        if (copy) {
                install_copy(binary, daemon->binary);
                argv[0] = binary = daemon->binary;
        }
        write_config(daemon, config);
        for (; arguments && *arguments; arguments++)
                argv[n++] = *arguments;
        daemon->pid = fork();
        assert_true(daemon->pid >= 0);
        if (daemon->pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                log = open(daemon->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                (void)dup2(log, STDERR_FILENO);
                (void)dup2(log, STDOUT_FILENO);
                (void)close_range(3, ~0U, 0);
                execv(binary, (char **)(uintptr_t)argv);
                _exit(127);
        }
        wait_until(answers(daemon->lock_socket) && answers(daemon->admin_socket));
}

void daemon_start(TestDaemon *daemon, const char *config, const char *const *arguments)
{
        start(daemon, false, config, arguments);
}

void daemon_start_copy(TestDaemon *daemon, const char *config, const char *const *arguments)
{
        start(daemon, true, config, arguments);
}

void daemon_end(TestDaemon *daemon)
{
        if (daemon->pid <= 0)
                return;
        (void)kill(daemon->pid, SIGKILL);
        assert_int_equal(waitpid(daemon->pid, NULL, 0), daemon->pid);
        daemon->pid = 0;
}

void daemon_start_under(TestDaemon *daemon, const char *command, const char *config)
{
        _cleanup_free_ char *binary = strdup(getenv("LOCKD") ? getenv("LOCKD") : "build/lockd");
        const char *script = work_path("lockd-under");
        FILE *f = fopen(script, "we");

        assert_non_null(f);
        fprintf(f, "#!/bin/sh\nexec %s %s \"$@\"\n", command, binary);
        fclose(f);
        assert_int_equal(chmod(script, 0700), 0);
        assert_int_equal(setenv("LOCKD", script, 1), 0);
        daemon_start(daemon, config, NULL);
        assert_int_equal(setenv("LOCKD", binary, 1), 0);
}

/* Its end, to stderr: the file goes with the test. */
static void print_log(const TestDaemon *daemon)
{
        _cleanup_free_ char *content = NULL;
        FILE *f = fopen(daemon->log, "re");
        size_t size = 0;
        ssize_t n = f ? getdelim(&content, &size, '\0', f) : -1;

        if (n > 0)
                fprintf(stderr, "%s\n", content + (n > 8192 ? n - 8192 : 0));
        if (f)
                fclose(f);
}

void daemon_stop(TestDaemon *daemon)
{
        const lockd_stop_args args = { .release_all = TRUE, .force = TRUE };
        int64_t deadline = now_msec() + HARNESS_DEADLINE_MSEC;
        int status, r = -1;
        Conn *admin;

        if (daemon->pid <= 0)
                return;
        /* Again while connections that have just closed still count against a limit. It may be gone before its answer is. */
        while (r != 0 && now_msec() < deadline && (admin = conn_open_at(daemon->admin_socket))) {
                r = client_call(admin->client, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, LOCKD_ADMIN_STOP,
                                (xdrproc_t)xdr_lockd_stop_args, &args, NULL, NULL);
                conn_close(admin);
                pause_briefly();
        }
        status = daemon_wait(daemon);
        if (status != 0) {
                print_log(daemon);
                fail_msg("lockd ended with status %#x", (unsigned)status);
        }
}

void daemon_freeze(const TestDaemon *daemon)
{
        siginfo_t info;

        assert_int_equal(kill(daemon->pid, SIGSTOP), 0);
        assert_int_equal(waitid(P_PID, (id_t)daemon->pid, &info, WSTOPPED), 0);
}

void daemon_thaw(const TestDaemon *daemon)
{
        assert_int_equal(kill(daemon->pid, SIGCONT), 0);
}

int daemon_wait(TestDaemon *daemon)
{
        int status = 0;

        wait_until(waitpid(daemon->pid, &status, WNOHANG) == daemon->pid);
        daemon->pid = 0;
        return status;
}

unsigned daemon_log_count(const TestDaemon *daemon, const char *text)
{
        _cleanup_free_ char *content = NULL;
        size_t size = 0;
        FILE *f = fopen(daemon->log, "re");
        unsigned n = 0;

        assert_non_null(f);
        if (getdelim(&content, &size, '\0', f) > 0)
                for (const char *p = content; (p = strstr(p, text)); p += strlen(text))
                        n++;
        fclose(f);
        return n;
}

bool daemon_log_has(const TestDaemon *daemon, const char *text)
{
        return daemon_log_count(daemon, text) > 0;
}

void daemon_reload(const TestDaemon *daemon, const char *config)
{
        const char *const done = "the configuration was read again";
        unsigned before = daemon_log_count(daemon, done);

        if (config)
                write_config(daemon, config);
        assert_int_equal(kill(daemon->pid, SIGHUP), 0);
        wait_until(daemon_log_count(daemon, done) > before);
}

void daemon_expect_log(const TestDaemon *daemon, const char *text)
{
        wait_until(daemon_log_has(daemon, text));
}

/* ---- connections ---- */

Conn *conn_open_at(const char *socket)
{
        Client *client;
        Conn *conn;

        if (client_new(socket, HARNESS_DEADLINE_MSEC, &client) < 0)
                return NULL;
        conn = calloc(1, sizeof(*conn));
        assert_non_null(conn);
        conn->client = client;
        return conn;
}

Conn *conn_open(const TestDaemon *daemon)
{
        Conn *conn = conn_open_at(daemon->lock_socket);

        assert_non_null(conn);
        return conn;
}

Conn *admin_open(const TestDaemon *daemon)
{
        Conn *conn = conn_open_at(daemon->admin_socket);

        assert_non_null(conn);
        return conn;
}

void conn_close(Conn *conn)
{
        if (conn)
                client_free(conn->client);
        free(conn);
}

int conn_fd(const Conn *conn)
{
        return client_fd(conn->client);
}

static int checked_call(Conn *conn, uint32_t program, uint32_t version, int32_t procedure, xdrproc_t args_proc, const void *args,
                        xdrproc_t ret_proc, void *ret)
{
        int r = client_call(conn->client, program, version, procedure, args_proc, args, ret_proc, ret);

        if (r < 0)
                fail_msg("procedure %d of program %#x: %s", procedure, program, strerror(-r));
        return r == 0 ? 0 : client_error(conn->client)->code;
}

int conn_call(Conn *conn, int32_t procedure, xdrproc_t proc, const void *args)
{
        return checked_call(conn, VIRTLOCK_PROGRAM, VIRTLOCK_VERSION, procedure, proc, args, NULL, NULL);
}

const char *conn_message(const Conn *conn)
{
        return client_error_message(conn->client);
}

const virtlock_error *conn_error(const Conn *conn)
{
        return client_error(conn->client);
}

static virtlock_string string_of(const char *text)
{
        return (virtlock_string){ .virtlock_string_len = (u_int)strlen(text), .virtlock_string_val = (char *)(uintptr_t)text };
}

int conn_register(Conn *conn, const char *name, const uint8_t uuid[16], uint32_t id, uint32_t pid)
{
        virtlock_register args = { .name = string_of(name), .id = id, .pid = pid };

        memcpy(args.uuid, uuid, sizeof(args.uuid));
        return conn_call(conn, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &args);
}

int conn_restrict(Conn *conn)
{
        virtlock_restrict args = { 0 };

        return conn_call(conn, VIRTLOCK_RESTRICT, (xdrproc_t)xdr_virtlock_restrict, &args);
}

static int resource_call(Conn *conn, int32_t procedure, const char *lockspace, const char *name, uint32_t flags)
{
        virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };

        return conn_call(conn, procedure, (xdrproc_t)xdr_virtlock_resource, &args);
}

int conn_acquire(Conn *conn, const char *lockspace, const char *name, uint32_t flags)
{
        return resource_call(conn, VIRTLOCK_ACQUIRE_RESOURCE, lockspace, name, flags);
}

int conn_release(Conn *conn, const char *lockspace, const char *name)
{
        return resource_call(conn, VIRTLOCK_RELEASE_RESOURCE, lockspace, name, 0);
}

int conn_create_resource(Conn *conn, const char *lockspace, const char *name)
{
        return resource_call(conn, VIRTLOCK_CREATE_RESOURCE, lockspace, name, 0);
}

int conn_delete_resource(Conn *conn, const char *lockspace, const char *name)
{
        return resource_call(conn, VIRTLOCK_DELETE_RESOURCE, lockspace, name, 0);
}

int conn_new_lockspace(Conn *conn, const char *path)
{
        virtlock_new args = { .path = string_of(path) };

        return conn_call(conn, VIRTLOCK_NEW, (xdrproc_t)xdr_virtlock_new, &args);
}

int conn_create_lockspace(Conn *conn, const char *path)
{
        virtlock_create_lockspace args = { .path = string_of(path) };

        return conn_call(conn, VIRTLOCK_CREATE_LOCKSPACE, (xdrproc_t)xdr_virtlock_create_lockspace, &args);
}

void conn_send_bytes(Conn *conn, const void *bytes, size_t len)
{
        const uint8_t *p = bytes;

        while (len > 0) {
                ssize_t n = send(conn_fd(conn), p, len, MSG_NOSIGNAL);
                struct pollfd poll_fd = { .fd = conn_fd(conn), .events = POLLOUT };

                if (n < 0 && errno == EAGAIN) {
                        assert_int_equal(poll(&poll_fd, 1, HARNESS_DEADLINE_MSEC), 1);
                        continue;
                }
                if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
                        return; /* the daemon closed: what it thinks is asked by conn_receive() */
                assert_true(n > 0);
                p += n;
                len -= (size_t)n;
        }
}

void conn_send_frame(Conn *conn, FrameHeader header, const void *payload, size_t len)
{
        uint8_t head[FRAME_HEADER_SIZE];

        if (header.length == 0)
                header.length = (uint32_t)(FRAME_HEADER_SIZE + len);
        frame_write_header(head, &header);
        conn_send_bytes(conn, head, sizeof(head));
        conn_send_bytes(conn, payload, len);
}

void conn_send_acquire(Conn *conn, const char *lockspace, const char *name, uint32_t flags, uint32_t serial)
{
        virtlock_resource args = { .path = string_of(lockspace), .name = string_of(name), .flags = flags };
        FrameHeader header = {
                .program = VIRTLOCK_PROGRAM,
                .version = VIRTLOCK_VERSION,
                .procedure = VIRTLOCK_ACQUIRE_RESOURCE,
                .serial = serial,
        };
        size_t len;
        _cleanup_free_ uint8_t *payload = encode_args((xdrproc_t)xdr_virtlock_resource, &args, &len);

        conn_send_frame(conn, header, payload, len);
}

static bool receive_all(Conn *conn, uint8_t *bytes, size_t len)
{
        while (len > 0) {
                struct pollfd p = { .fd = conn_fd(conn), .events = POLLIN };
                ssize_t n;

                if (poll(&p, 1, HARNESS_DEADLINE_MSEC) != 1)
                        fail_msg("no answer");
                n = recv(conn_fd(conn), bytes, len, 0);
                if (n == 0 || (n < 0 && errno == ECONNRESET))
                        return false;
                assert_true(n > 0);
                bytes += n;
                len -= (size_t)n;
        }
        return true;
}

bool conn_receive(Conn *conn, FrameHeader *ret, uint8_t **payload, size_t *len)
{
        uint8_t head[FRAME_HEADER_SIZE], *bytes;
        int r;

        if (!receive_all(conn, head, sizeof(head)))
                return false;
        r = frame_parse(head, sizeof(head), 64U * 1024 * 1024, ret);
        assert_true(r == 0 || r == FRAME_E_PARTIAL);
        bytes = malloc(ret->length);
        assert_non_null(bytes);
        assert_true(receive_all(conn, bytes, ret->length - FRAME_HEADER_SIZE));
        if (len)
                *len = ret->length - FRAME_HEADER_SIZE;
        if (payload)
                *payload = bytes;
        else
                free(bytes);
        return true;
}

bool conn_ping(Conn *conn, uint32_t serial)
{
        const FrameHeader ping = {
                .length = FRAME_HEADER_SIZE,
                .program = FRAME_KEEPALIVE_PROGRAM,
                .version = FRAME_KEEPALIVE_VERSION,
                .procedure = FRAME_KEEPALIVE_PING,
                .type = FRAME_MESSAGE,
                .serial = serial,
        };
        struct pollfd p = { .fd = conn_fd(conn), .events = POLLIN };
        uint8_t bytes[FRAME_HEADER_SIZE];
        FrameHeader pong;

        /* No assertion: VM stand-ins call this, too, and one that fails in them would go on as a second test. */
        frame_write_header(bytes, &ping);
        if (send(p.fd, bytes, sizeof(bytes), MSG_NOSIGNAL) != (ssize_t)sizeof(bytes) || poll(&p, 1, HARNESS_DEADLINE_MSEC) != 1 ||
            recv(p.fd, bytes, sizeof(bytes), MSG_WAITALL) != (ssize_t)sizeof(bytes))
                return false;
        return frame_parse(bytes, sizeof(bytes), sizeof(bytes), &pong) == 0 && pong.program == FRAME_KEEPALIVE_PROGRAM &&
               pong.procedure == FRAME_KEEPALIVE_PONG && pong.serial == serial;
}

uint8_t *encode_args(xdrproc_t proc, const void *args, size_t *ret_len)
{
        size_t size = wire_size(proc, args);
        uint8_t *frame = malloc(size), *payload = malloc(size);
        FrameHeader header = { 0 };

        assert_non_null(frame);
        assert_non_null(payload);
        assert_int_equal(wire_encode(&header, proc, args, frame, size), 0);
        *ret_len = header.length - FRAME_HEADER_SIZE;
        memcpy(payload, frame + FRAME_HEADER_SIZE, *ret_len);
        free(frame);
        return payload;
}

/* ---- VM stand-ins ---- */

static void vm_identity(Vm *vm, const char *name)
{
        static uint32_t next_id = 1;
        uint64_t hash = 1469598103934665603U;

        (void)snprintf(vm->name, sizeof(vm->name), "%s", name);
        for (int i = 0; i < 16; i++) {
                hash = (hash ^ (uint64_t)(unsigned char)name[(size_t)i % strlen(name)] ^ (uint64_t)i) * 1099511628211U;
                vm->uuid[i] = (uint8_t)(hash >> 32);
        }
        vm->id = next_id++;
}

static Conn *open_own(const TestDaemon *daemon, const Vm *vm)
{
        Conn *conn = conn_open_at(daemon->lock_socket);

        if (!conn || conn_register(conn, vm->name, vm->uuid, vm->id, (uint32_t)getpid()) != 0 || conn_restrict(conn) != 0)
                _exit(3);
        return conn;
}

/* The stand-in obeys one-letter commands: c close the newest connection, o open one more, h close half of the newest one,
 * t ignore TERM, k PING, f open the file whose name follows, p fork a helper, d daemonize. It ends at EOF. */
static void vm_run(const TestDaemon *daemon, const Vm *vm, int control)
{
        Conn *conns[8];
        char command, answer = 'k', path[PATH_MAX];
        int32_t child;
        int n = 0;

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)signal(SIGTERM, SIG_DFL);
        if (daemon)
                conns[n++] = open_own(daemon, vm);
        if (write(control, &answer, 1) != 1)
                _exit(4);
        while (read(control, &command, 1) == 1) {
                switch (command) {
                case 'c':
                        conn_close(conns[--n]);
                        break;
                case 'o':
                        conns[n++] = open_own(daemon, vm);
                        break;
                case 'h':
                        (void)shutdown(conn_fd(conns[n - 1]), SHUT_WR);
                        break;
                case 't':
                        (void)signal(SIGTERM, SIG_IGN);
                        break;
                case 'k':
                        answer = conn_ping(conns[n - 1], 1) ? 'k' : 'n';
                        break;
                case 'f':
                        if (recv(control, path, sizeof(path), MSG_WAITALL) == (ssize_t)sizeof(path))
                                (void)open(path, O_RDONLY | O_CLOEXEC);
                        continue;
                case 'd':
                        child = fork();
                        if (child != 0) {
                                if (write(control, &child, sizeof(child)) != (ssize_t)sizeof(child))
                                        _exit(4);
                                _exit(0);
                        }
                        continue;
                case 'p':
                        child = fork();
                        if (child == 0) {
                                (void)close(control);
                                for (;;)
                                        (void)pause();
                        }
                        if (write(control, &child, sizeof(child)) != (ssize_t)sizeof(child))
                                _exit(4);
                        continue;
                default:
                        _exit(5);
                }
                if (write(control, &answer, 1) != 1)
                        _exit(4);
        }
        _exit(0);
}

/* fork() into new namespaces (CLONE_NEW*), or with a pid that is not 0. */
static pid_t fork_as(uint64_t flags, pid_t pid)
{
        uint64_t pids = (uint64_t)(uintptr_t)&pid;
        struct clone_args args = {
                .flags = flags,
                .exit_signal = SIGCHLD,
                .set_tid = pid ? pids : 0,
                .set_tid_size = pid ? 1 : 0,
        };

        return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static Vm vm_fork(const TestDaemon *daemon, const char *name, uint64_t flags, pid_t pid)
{
        Vm vm = { 0 };
        int fds[2];
        char answer;

        vm_identity(&vm, name);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        vm.pid = fork_as(flags, pid);
        if (vm.pid < 0)
                fail_msg("clone3: %s", strerror(errno));
        if (vm.pid == 0) {
                /* Only its own control: a copy of another's would keep that one from its EOF. */
                (void)dup2(fds[1], 3);
                (void)close_range(4, ~0U, 0);
                vm_run(daemon, &vm, 3);
        }
        close(fds[1]);
        vm.control = fds[0];
        if (read(vm.control, &answer, 1) != 1)
                fail_msg("VM stand-in %s did not come up", name);
        return vm;
}

Vm vm_start(const TestDaemon *daemon, const char *name)
{
        return vm_fork(daemon, name, 0, 0);
}

Vm vm_start_bare(const char *name)
{
        return vm_fork(NULL, name, 0, 0);
}

Vm vm_start_bare_as(const char *name, pid_t pid)
{
        return vm_fork(NULL, name, 0, pid);
}

Vm vm_start_nested(const TestDaemon *daemon, const char *name)
{
        return vm_fork(daemon, name, CLONE_NEWPID, 0);
}

Conn *vm_conn(const TestDaemon *daemon, const Vm *vm)
{
        Conn *conn = conn_open(daemon);

        assert_int_equal(conn_register(conn, vm->name, vm->uuid, vm->id, (uint32_t)vm->pid), 0);
        return conn;
}

static void vm_command(Vm *vm, char command)
{
        char answer;

        assert_int_equal(write(vm->control, &command, 1), 1);
        assert_int_equal(read(vm->control, &answer, 1), 1);
}

void vm_close_connection(Vm *vm)
{
        char answer;

        assert_int_equal(write(vm->control, "c", 1), 1);
        /* lockd may have killed it for that before it answers. */
        assert_true(read(vm->control, &answer, 1) >= 0 || errno == ECONNRESET);
}

void vm_open_connection(Vm *vm)
{
        vm_command(vm, 'o');
}

void vm_half_close(Vm *vm)
{
        vm_command(vm, 'h');
}

void vm_ignore_term(Vm *vm)
{
        vm_command(vm, 't');
}

bool vm_ping(Vm *vm)
{
        char answer;

        assert_int_equal(write(vm->control, "k", 1), 1);
        assert_int_equal(read(vm->control, &answer, 1), 1);
        return answer == 'k';
}

void vm_open_file(Vm *vm, const char *path)
{
        char text[PATH_MAX] = "";

        (void)snprintf(text, sizeof(text), "%s", path);
        assert_int_equal(write(vm->control, "f", 1), 1);
        assert_int_equal(write(vm->control, text, sizeof(text)), (ssize_t)sizeof(text));
}

pid_t vm_daemonize(Vm *vm)
{
        int32_t child;

        assert_int_equal(write(vm->control, "d", 1), 1);
        assert_int_equal(recv(vm->control, &child, sizeof(child), MSG_WAITALL), (ssize_t)sizeof(child));
        assert_int_equal(waitpid(vm->pid, NULL, 0), vm->pid);
        return child;
}

pid_t vm_fork_helper(Vm *vm)
{
        int32_t child;

        assert_int_equal(write(vm->control, "p", 1), 1);
        assert_int_equal(recv(vm->control, &child, sizeof(child), MSG_WAITALL), (ssize_t)sizeof(child));
        return child;
}

void vm_end_child(Vm *vm)
{
        close(vm->control);
        vm->control = -1;
}

void vm_kill(Vm *vm)
{
        (void)kill(vm->pid, SIGKILL);
        assert_int_equal(waitpid(vm->pid, NULL, 0), vm->pid);
        close(vm->control);
        vm->control = -1;
}

bool vm_is_alive(const Vm *vm)
{
        siginfo_t info = { 0 };

        return waitid(P_PID, (id_t)vm->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

void vm_wait(Vm *vm)
{
        wait_until(!vm_is_alive(vm));
        assert_int_equal(waitpid(vm->pid, NULL, 0), vm->pid);
        close(vm->control);
        vm->control = -1;
}

/* ---- administration ---- */

const char *uuid_text(const uint8_t uuid[16])
{
        static char buffers[4][37];
        static unsigned next;
        char *buf = buffers[next++ % 4], *p = buf;

        for (int i = 0; i < 16; i++)
                p += sprintf(p, "%02x%s", uuid[i], i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
        return buf;
}

const lockd_list_ret *list_leases(const TestDaemon *daemon)
{
        static lockd_list_ret all;
        Conn *conn = admin_open(daemon);
        lockd_list_args args = { 0 };
        u_int n = 0;

        wire_free((xdrproc_t)xdr_lockd_list_ret, &all);
        memset(&all, 0, sizeof(all));
        do {
                lockd_list_ret page = { 0 };

                assert_int_equal(checked_call(conn, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, LOCKD_ADMIN_LIST,
                                              (xdrproc_t)xdr_lockd_list_args, &args, (xdrproc_t)xdr_lockd_list_ret, &page), 0);
                all.records.records_val = reallocarray(all.records.records_val, n + page.records.records_len + 1, sizeof(lockd_record));
                assert_non_null(all.records.records_val);
                if (page.records.records_len > 0)
                        memcpy(all.records.records_val + n, page.records.records_val, page.records.records_len * sizeof(lockd_record));
                n += page.records.records_len;
                free(page.records.records_val);
                args.cursor = page.cursor;
                args.newest = page.newest;
        } while (args.cursor != 0);
        all.records.records_len = n;
        conn_close(conn);
        return &all;
}

static bool is_text(const lockd_bytes *bytes, const char *text)
{
        size_t len = strlen(text);

        return bytes->lockd_bytes_len == len && (len == 0 || memcmp(bytes->lockd_bytes_val, text, len) == 0);
}

const lockd_record *find_lease(const TestDaemon *daemon, const char *lockspace, const char *name)
{
        const lockd_list_ret *list = list_leases(daemon);

        for (u_int i = 0; i < list->records.records_len; i++) {
                const lockd_record *record = &list->records.records_val[i];

                if (is_text(&record->lockspace, lockspace) && is_text(&record->resource, name))
                        return record;
        }
        return NULL;
}

unsigned count_holds(const TestDaemon *daemon, const char *lockspace, const char *name)
{
        const lockd_record *record = find_lease(daemon, lockspace, name);

        return record ? record->holds_total : 0;
}

void wait_unlisted(const TestDaemon *daemon, const char *lockspace, const char *name)
{
        wait_until(!find_lease(daemon, lockspace, name));
}

int run_admin(const TestDaemon *daemon, char **ret_output, const char *const *arguments)
{
        const char *binary = getenv("LOCKD_ADMIN") ? getenv("LOCKD_ADMIN") : "build/lockd-admin";
        const char *argv[32] = { binary, "--socket", daemon->admin_socket };
        FILE *out = tmpfile();
        int n = 3, status = 0;
        size_t size = 0;
        pid_t pid;

        assert_non_null(out);
        for (; *arguments; arguments++)
                argv[n++] = *arguments;
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)dup2(fileno(out), STDOUT_FILENO);
                (void)dup2(fileno(out), STDERR_FILENO);
                (void)close_range(3, ~0U, 0);
                execv(binary, (char **)(uintptr_t)argv);
                _exit(127);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        rewind(out);
        if (ret_output) {
                *ret_output = NULL;
                if (getdelim(ret_output, &size, '\0', out) < 0) {
                        free(*ret_output);
                        *ret_output = strdup("");
                }
        }
        fclose(out);
        return WEXITSTATUS(status);
}

int admin_release_call(Conn *admin, const char *lockspace, const char *name, const char *owner, lockd_release_how how)
{
        lockd_release_args args = {
                .lockspace = { (u_int)strlen(lockspace), (char *)(uintptr_t)lockspace },
                .resource = { (u_int)strlen(name), (char *)(uintptr_t)name },
                .owner = { (u_int)strlen(owner), (char *)(uintptr_t)owner },
                .how = how,
        };
        lockd_release_ret ret = { 0 };

        return checked_call(admin, LOCKD_ADMIN_PROGRAM, LOCKD_ADMIN_VERSION, LOCKD_ADMIN_RELEASE, (xdrproc_t)xdr_lockd_release_args,
                            &args, (xdrproc_t)xdr_lockd_release_ret, &ret);
}
