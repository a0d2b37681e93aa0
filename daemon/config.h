/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockd.conf: libconfig's syntax, virtlockd.conf's keys and lockd's own. lockd.conf(5) describes each key. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef struct ConfigLockspace {
        char *path;
        char *require_mount; /* NULL: none */
} ConfigLockspace;

typedef struct Config {
        unsigned log_level; /* 1 (debug) to 4 (error) */
        char *log_filters;
        char *log_outputs;
        unsigned max_clients;
        unsigned admin_max_clients;
        unsigned max_lockspaces;
        unsigned max_holds;
        bool kill_on_disconnect;
        char *lock_socket;
        char *admin_socket;
        ConfigLockspace *lockspaces;
        size_t n_lockspaces;
} Config;

/* Reads path; a missing file is an error only if required. session: defaults for a user's daemon. On failure (-EINVAL,
 * -errno) *ret_why is a text with file and line, to be freed. Ends with config_done() on success. */
int config_load(const char *path, bool required, bool session, Config *ret, char **ret_why);
void config_done(Config *config);

/* Where lockd.conf is looked for, to be freed; NULL: out of memory. */
char *config_default_path(bool session);

/* XDG_RUNTIME_DIR/name, or /run/name; to be freed. */
char *config_runtime_path(bool session, const char *name);
