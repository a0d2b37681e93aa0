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
} TestDaemon;

/* Starts $LOCKD (default build/lockd) with these lines of configuration (NULL: none) and arguments behind "-f FILE -v"
 * (NULL-terminated list, NULL: none); returns when it answers. */
void daemon_start(TestDaemon *daemon, const char *config, const char *const *arguments);
/* Kills it and waits. */
void daemon_end(TestDaemon *daemon);
/* The exit status once it has ended by itself (waitpid's); fails after the deadline. */
int daemon_wait(TestDaemon *daemon);
/* Does the log contain text? waits for it up to the deadline. */
void daemon_expect_log(const TestDaemon *daemon, const char *text);
bool daemon_log_has(const TestDaemon *daemon, const char *text);

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

/* Raw frames. length 0: the right one. */
void conn_send_frame(Conn *conn, FrameHeader header, const void *payload, size_t len);
void conn_send_bytes(Conn *conn, const void *bytes, size_t len);
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
/* A connection like libvirtd's: registered for the VM, from this process. */
Conn *vm_conn(const TestDaemon *daemon, const Vm *vm);
void vm_close_connection(Vm *vm);  /* its own connection closes, the process goes on */
void vm_ignore_term(Vm *vm);
/* Forks a process in the VM that keeps its connection, then the VM's process ends; the child's pid (it ends when the
 * test closes vm->control, see vm_end_child). */
pid_t vm_daemonize(Vm *vm);
void vm_end_child(Vm *vm);
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
