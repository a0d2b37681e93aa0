/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What every test of the daemon needs: a daemon of its own, connections that send any call or any bytes, VM stand-ins
 * (real processes with connections of their own), and an outside look at the locks. Failures end the test through cmocka.
 *
 * Tests run under tests/isolate; $WORK is their folder.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include <cmocka.h>

#include "client.h"
#include "frame.h"
#include "lockd_admin.h"
#include "virtlock.h"

#define HARNESS_DEADLINE_MSEC 10000

/* A running daemon. Its sockets are dir/lock and dir/admin, its log is dir/log. */
typedef struct TestDaemon {
        pid_t pid;
        char dir[64];
        char lock_socket[80], admin_socket[80], log[80], config[80];
        char binary[80]; /* of daemon_start_copy() */
} TestDaemon;

/* Starts $LOCKD (default build/lockd) with these lines of configuration (NULL: none) and arguments behind "-f FILE -v"
 * (NULL-terminated list, NULL: none); returns when it answers. */
void daemon_start(TestDaemon *daemon, const char *config, const char *const *arguments);
/* The same through a command that ends with running its arguments: "prlimit --nofile=200", "setpriv --bounding-set=...". */
void daemon_start_under(TestDaemon *daemon, const char *command, const char *config);
/* The same from a copy of the binary, daemon->binary, which a test may replace. */
void daemon_start_copy(TestDaemon *daemon, const char *config, const char *const *arguments);
/* A copy of from becomes to, as an installation does it: by a rename over what is there. */
void install_copy(const char *from, const char *to);
/* Kills it and waits. */
void daemon_end(TestDaemon *daemon);
/* Ends it as an administrator would, whatever is held, so that it takes down all it has built; fails when that goes wrong
 * (a sanitizer, or valgrind in $LOCKD, shows leaks by the exit status). */
void daemon_stop(TestDaemon *daemon);
/* Has it read its configuration again, with these lines in it (NULL: as it is); returns when it has done so. */
void daemon_reload(const TestDaemon *daemon, const char *config);
/* Stops the process until daemon_thaw(): what is done meanwhile finds it all at once, in one round of its loop. */
void daemon_freeze(const TestDaemon *daemon);
void daemon_thaw(const TestDaemon *daemon);
/* The exit status once it has ended by itself (waitpid's); fails after the deadline. */
int daemon_wait(TestDaemon *daemon);
/* Does the log contain text? waits for it up to the deadline. */
void daemon_expect_log(const TestDaemon *daemon, const char *text);
bool daemon_log_has(const TestDaemon *daemon, const char *text);
unsigned daemon_log_count(const TestDaemon *daemon, const char *text);

/* One connection. Each call returns 0 or the error's code; conn_message() is the error's text then. */
typedef struct Conn Conn;
Conn *conn_open(const TestDaemon *daemon);
Conn *conn_open_at(const char *socket); /* NULL: nobody listens */
void conn_close(Conn *conn);
int conn_fd(const Conn *conn);
int conn_register(Conn *conn, const char *name, const uint8_t uuid[16], uint32_t id, uint32_t pid);
int conn_restrict(Conn *conn);
int conn_acquire(Conn *conn, const char *lockspace, const char *name, uint32_t flags);
int conn_release(Conn *conn, const char *lockspace, const char *name);
int conn_new_lockspace(Conn *conn, const char *path);
int conn_create_lockspace(Conn *conn, const char *path);
int conn_create_resource(Conn *conn, const char *lockspace, const char *name);
int conn_delete_resource(Conn *conn, const char *lockspace, const char *name);
/* Any procedure with its virtlock_* arguments. */
int conn_call(Conn *conn, int32_t procedure, xdrproc_t proc, const void *args);
const char *conn_message(const Conn *conn);
const virtlock_error *conn_error(const Conn *conn);

/* The call is refused with this code and domain, and a message that contains text. */
#define assert_refused(conn, call, code_, domain_, text)                                                   \
        do {                                                                                               \
                assert_int_equal((call), (code_));                                                         \
                assert_int_equal(conn_error(conn)->domain, (domain_));                                     \
                if (!strstr(conn_message(conn), (text)))                                                   \
                        fail_msg("no \"%s\" in: %s", (text), conn_message(conn));                          \
        } while (0)
/* The same for what the file system said: errno, as libvirt shows it. */
#define assert_system_error(conn, call, number, text)                                                      \
        do {                                                                                               \
                assert_refused((conn), (call), VIRTLOCK_ERR_SYSTEM, VIRTLOCK_FROM_LOCKSPACE, (text));      \
                assert_int_equal(conn_error(conn)->int1, (number));                                        \
        } while (0)
#define assert_invalid(conn, call, text) assert_refused((conn), (call), VIRTLOCK_ERR_OPERATION_INVALID, VIRTLOCK_FROM_RPC, (text))
#define assert_busy(conn, call, text) assert_refused((conn), (call), VIRTLOCK_ERR_RESOURCE_BUSY, VIRTLOCK_FROM_LOCKSPACE, (text))

/* Raw frames. length 0: the right one. */
void conn_send_frame(Conn *conn, FrameHeader header, const void *payload, size_t len);
void conn_send_bytes(Conn *conn, const void *bytes, size_t len);
/* ACQUIRE_RESOURCE without waiting for its answer. */
void conn_send_acquire(Conn *conn, const char *lockspace, const char *name, uint32_t flags, uint32_t serial);
/* A PING, and its PONG as the very next frame. */
bool conn_ping(Conn *conn, uint32_t serial);
/* The next frame, its payload in *payload (to be freed; NULL: not wanted); false: the connection was closed. Fails after
 * the deadline. */
bool conn_receive(Conn *conn, FrameHeader *ret, uint8_t **payload, size_t *len);
/* Bytes of ACQUIRE_RESOURCE and the like, to be freed. */
uint8_t *encode_args(xdrproc_t proc, const void *args, size_t *ret_len);

/* A VM stand-in: a process of its own, registered on a connection of its own. */
typedef struct Vm {
        pid_t pid;
        int control;
        char name[32];
        uint8_t uuid[16];
        uint32_t id;
} Vm;

/* Makes uuid and id from name. */
Vm vm_start(const TestDaemon *daemon, const char *name);
/* The same without a connection of its own: a process, and nothing else. */
Vm vm_start_bare(const char *name);
/* The same with this pid, which must be free. */
Vm vm_start_bare_as(const char *name, pid_t pid);
/* A VM in a pid namespace of its own, where its pid is 1; that is what it registers. vm.pid is the one seen from here. */
Vm vm_start_nested(const TestDaemon *daemon, const char *name);
/* A connection like libvirtd's: registered for the VM, from this process. */
Conn *vm_conn(const TestDaemon *daemon, const Vm *vm);
void vm_close_connection(Vm *vm);  /* its (newest) own connection closes, the process goes on */
void vm_open_connection(Vm *vm);   /* one more of its own */
void vm_half_close(Vm *vm);        /* shutdown(SHUT_WR) on its newest own connection */
void vm_ignore_term(Vm *vm);
/* It opens that file, and answers no more commands until that has come to an end. */
void vm_open_file(Vm *vm, const char *path);
/* Is a PING on its newest own connection answered? */
bool vm_ping(Vm *vm);
/* Forks a process in the VM that keeps its connection, then the VM's process ends; the child's pid (it ends when the
 * test closes vm->control, see vm_end_child). */
pid_t vm_daemonize(Vm *vm);
void vm_end_child(Vm *vm);
/* Forks a process in the VM that keeps its connections open until it is killed; its pid. */
pid_t vm_fork_helper(Vm *vm);
void vm_kill(Vm *vm);              /* SIGKILL, and waits */
bool vm_is_alive(const Vm *vm);
/* Waits until it has ended by itself. */
void vm_wait(Vm *vm);

/* What lockd-admin list shows, freed by the next call. */
const lockd_list_ret *list_leases(const TestDaemon *daemon);
/* The lease with that name of that list, or NULL. */
const lockd_record *find_lease(const TestDaemon *daemon, const char *lockspace, const char *name);
/* Waits until nothing (of that name) is listed. */
void wait_unlisted(const TestDaemon *daemon, const char *lockspace, const char *name);
/* How many holds that lease has; 0: not listed. */
unsigned count_holds(const TestDaemon *daemon, const char *lockspace, const char *name);
/* Runs $LOCKD_ADMIN (default build/lockd-admin) with these arguments (NULL-terminated list) for that daemon; its exit
 * code, and what it printed on stdout and stderr, to be freed (NULL: not wanted). */
int run_admin(const TestDaemon *daemon, char **ret_output, const char *const *arguments);
/* lockd-admin release; 0 or the error's code, its message in conn_message(admin). */
int admin_release_call(Conn *admin, const char *lockspace, const char *name, const char *owner, lockd_release_how how);
Conn *admin_open(const TestDaemon *daemon);
const char *uuid_text(const uint8_t uuid[16]);

/* Could somebody outside lock that file now? Asks the kernel, takes nothing. */
bool is_lockable(const char *path, bool shared);

/* $WORK/name, in one of a few static buffers. */
const char *work_path(const char *name);
/* Creates an empty file (or with content). */
const char *make_file(const char *name, const char *content);
bool file_exists(const char *path);

/* Monotonic milliseconds. */
int64_t now_msec(void);

/* Evaluates condition until it is true; fails after the deadline. For what no event tells. */
#define wait_until(condition)                                                                              \
        do {                                                                                               \
                int64_t _deadline = now_msec() + HARNESS_DEADLINE_MSEC;                                    \
                while (!(condition)) {                                                                     \
                        if (now_msec() > _deadline)                                                        \
                                fail_msg("waited in vain for: %s", #condition);                            \
                        pause_briefly();                                                                   \
                }                                                                                          \
        } while (0)
void pause_briefly(void);
