/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the load generators share: connections that speak to any daemon of the protocol, processes that own locks, and the
 * figures of the daemon's process. What fails ends the program. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "frame.h"
#include "virtlock.h"
#include "wire.h"

void die(const char *what) __attribute__((noreturn));
/* Monotonic seconds. */
double now(void);
void raise_fd_limit(void);

/* Seconds that a process has run, all its threads, to the nanosecond. */
double cpu_seconds(pid_t pid);
/* Resident bytes. */
double resident_bytes(pid_t pid);

virtlock_string string_of(const char *text);
size_t encode(int32_t procedure, xdrproc_t proc, const void *args, uint8_t *buf, size_t size);
/* ACQUIRE_RESOURCE or RELEASE_RESOURCE. */
size_t encode_resource(int32_t procedure, const char *lockspace, const char *name, uint32_t flags, uint8_t *buf, size_t size);
void send_all(int fd, const uint8_t *bytes, size_t len);

/* One call, while nothing else is under way; its status, FRAME_OK or FRAME_ERROR. */
uint32_t try_call(int fd, int32_t procedure, xdrproc_t proc, const void *args);
/* The same, when it must succeed. */
void call(int fd, int32_t procedure, xdrproc_t proc, const void *args);
void call_resource(int fd, int32_t procedure, const char *lockspace, const char *name, uint32_t flags);
void create_lockspace(int fd, const char *path);

/* A process that does nothing; it ends with this one. */
pid_t start_owner(void);
int connect_to(const char *path);
/* The uuid and the id are made of number. */
void register_owner(int fd, unsigned number, pid_t owner);
int connect_for(const char *path, unsigned number, pid_t owner);
