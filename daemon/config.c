/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a configuration is taken whole or not at all, and what is wrong with it is told with file and line. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libconfig.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"

#ifndef LOCKD_SYSCONFDIR
#define LOCKD_SYSCONFDIR "/etc"
#endif

#define CONFIG_FILE_MAX (1024L * 1024)
#define CONFIG_ROOM (100 * 1024) /* below the size from which malloc maps memory of its own */

typedef struct Reader {
        Config *config;
        const char *path;
        char **why;
} Reader;

char *config_runtime_path(bool session, const char *name)
{
        const char *dir = session ? getenv("XDG_RUNTIME_DIR") : "/run";
        char fallback[64], *path;

        if (!dir) {
                (void)snprintf(fallback, sizeof(fallback), "/run/user/%u", (unsigned)geteuid());
                dir = fallback;
        }
        return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

char *config_default_path(bool session)
{
        const char *home = getenv("XDG_CONFIG_HOME");
        char *path;
        int n;

        if (!session)
                return strdup(LOCKD_SYSCONFDIR "/lockd/lockd.conf");
        if (home)
                n = asprintf(&path, "%s/lockd/lockd.conf", home);
        else
                n = asprintf(&path, "%s/.config/lockd/lockd.conf", getenv("HOME") ? getenv("HOME") : "");
        return n < 0 ? NULL : path;
}

static int wrong_at(const Reader *reader, int line, const char *what)
{
        free(*reader->why);
        if ((line > 0 ? asprintf(reader->why, "%s:%d: %s", reader->path, line, what) : asprintf(reader->why, "%s: %s", reader->path, what)) < 0)
                *reader->why = NULL;
        return -EINVAL;
}

static int wrong(const Reader *reader, const config_setting_t *setting, const char *what)
{
        const char *name = config_setting_name(setting);
        _cleanup_free_ char *text = NULL;

        if (asprintf(&text, "%s: %s", name ? name : "a list's element", what) < 0)
                return FAULT(-ENOMEM);
        return wrong_at(reader, (int)config_setting_source_line(setting), text);
}

static int read_unsigned(const Reader *reader, const config_setting_t *setting, unsigned min, unsigned max, unsigned *ret)
{
        char text[64];
        int value;

        (void)snprintf(text, sizeof(text), "wants a number from %u to %u", min, max);
        if (config_setting_type(setting) != CONFIG_TYPE_INT)
                return wrong(reader, setting, text);
        value = config_setting_get_int(setting);
        if (value < 0 || (unsigned)value < min || (unsigned)value > max)
                return wrong(reader, setting, text);
        *ret = (unsigned)value;
        return 0;
}

static int read_string(const Reader *reader, const config_setting_t *setting, char **ret)
{
        const char *value = config_setting_get_string(setting);
        char *copy;

        if (!value)
                return wrong(reader, setting, "wants a string");
        copy = strdup(value);
        if (!copy)
                return FAULT(-ENOMEM);
        free(*ret);
        *ret = copy;
        return 0;
}

static int read_path(const Reader *reader, const config_setting_t *setting, char **ret)
{
        int r = read_string(reader, setting, ret);

        if (r == 0 && (**ret != '/' || strlen(*ret) >= PATH_MAX))
                return wrong(reader, setting, "wants an absolute path of at most 4095 bytes");
        return r;
}

static int read_log_level(const Reader *reader, const config_setting_t *setting)
{
        return read_unsigned(reader, setting, 1, 4, &reader->config->log_level);
}

static int read_log_filters(const Reader *reader, const config_setting_t *setting)
{
        const char *why;
        int r = read_string(reader, setting, &reader->config->log_filters);

        if (r == 0)
                r = log_check(reader->config->log_filters, NULL, &why);
        return r == -EINVAL && !*reader->why ? wrong(reader, setting, why) : r;
}

static int read_log_outputs(const Reader *reader, const config_setting_t *setting)
{
        const char *why;
        int r = read_string(reader, setting, &reader->config->log_outputs);

        if (r == 0)
                r = log_check(NULL, reader->config->log_outputs, &why);
        return r == -EINVAL && !*reader->why ? wrong(reader, setting, why) : r;
}

static int read_max_clients(const Reader *reader, const config_setting_t *setting)
{
        return read_unsigned(reader, setting, 1, 1000000, &reader->config->max_clients);
}

static int read_admin_max_clients(const Reader *reader, const config_setting_t *setting)
{
        return read_unsigned(reader, setting, 1, 1000000, &reader->config->admin_max_clients);
}

static int read_max_lockspaces(const Reader *reader, const config_setting_t *setting)
{
        return read_unsigned(reader, setting, 1, 1000000, &reader->config->max_lockspaces);
}

static int read_max_holds(const Reader *reader, const config_setting_t *setting)
{
        return read_unsigned(reader, setting, 1, 100000000, &reader->config->max_holds);
}

static int read_socket(const Reader *reader, const config_setting_t *setting, char **ret)
{
        int r = read_path(reader, setting, ret);

        if (r == 0 && strlen(*ret) >= sizeof(((struct sockaddr_un *)0)->sun_path))
                return wrong(reader, setting, "wants a path of at most 107 bytes");
        if (r == 0 && strcmp(reader->config->lock_socket, reader->config->admin_socket) == 0)
                return wrong(reader, setting, "is the path of the other socket, too");
        return r;
}

static int read_lock_socket(const Reader *reader, const config_setting_t *setting)
{
        return read_socket(reader, setting, &reader->config->lock_socket);
}

static int read_admin_socket(const Reader *reader, const config_setting_t *setting)
{
        return read_socket(reader, setting, &reader->config->admin_socket);
}

static int read_on_disconnect(const Reader *reader, const config_setting_t *setting)
{
        const char *value = config_setting_get_string(setting);

        if (!value || (strcmp(value, "hold") != 0 && strcmp(value, "kill") != 0))
                return wrong(reader, setting, "wants \"hold\" or \"kill\"");
        reader->config->kill_on_disconnect = strcmp(value, "kill") == 0;
        return 0;
}

static int read_lockspace(const Reader *reader, const config_setting_t *group, ConfigLockspace *ret)
{
        int r = 0;

        if (!config_setting_is_group(group))
                return wrong(reader, group, "wants a list of groups: ( { path = \"/...\"; } )");
        for (int i = 0; r == 0 && i < config_setting_length(group); i++) {
                const config_setting_t *setting = config_setting_get_elem(group, (unsigned)i);

                if (strcmp(config_setting_name(setting), "path") == 0)
                        r = read_path(reader, setting, &ret->path);
                else if (strcmp(config_setting_name(setting), "require_mount") == 0)
                        r = read_path(reader, setting, &ret->require_mount);
                else
                        r = wrong(reader, setting, "unknown key of a lockspace");
        }
        if (r == 0 && !ret->path)
                return wrong_at(reader, (int)config_setting_source_line(group), "a lockspace wants a path");
        return r;
}

static int read_lockspaces(const Reader *reader, const config_setting_t *setting)
{
        Config *config = reader->config;
        int n = config_setting_length(setting), r = 0;

        if (!config_setting_is_list(setting))
                return wrong(reader, setting, "wants a list of groups: ( { path = \"/...\"; } )");
        config->lockspaces = calloc(n > 0 ? (size_t)n : 1, sizeof(*config->lockspaces));
        if (!config->lockspaces)
                return FAULT(-ENOMEM);
        config->n_lockspaces = (size_t)n;
        for (int i = 0; r == 0 && i < n; i++)
                r = read_lockspace(reader, config_setting_get_elem(setting, (unsigned)i), &config->lockspaces[i]);
        return r;
}

static const struct {
        const char *name;
        int (*read)(const Reader *reader, const config_setting_t *setting);
} keys[] = {
        { "log_level", read_log_level },
        { "log_filters", read_log_filters },
        { "log_outputs", read_log_outputs },
        { "max_clients", read_max_clients },
        { "admin_max_clients", read_admin_max_clients },
        { "max_lockspaces", read_max_lockspaces },
        { "max_holds", read_max_holds },
        { "on_disconnect", read_on_disconnect },
        { "lock_socket", read_lock_socket },
        { "admin_socket", read_admin_socket },
        { "lockspaces", read_lockspaces },
};

static int read_setting(const Reader *reader, const config_setting_t *setting)
{
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
                if (strcmp(keys[i].name, config_setting_name(setting)) == 0)
                        return keys[i].read(reader, setting);
        return wrong(reader, setting, "unknown key");
}

/* The file's text, to be freed. libconfig does not read it: its scanner calls exit() when a read fails, which would
 * release every lock, and it would wait on a FIFO. */
static int read_text(const Reader *reader, char **ret)
{
        _cleanup_fd_ int fd = open(reader->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        _cleanup_free_ char *text = NULL;
        struct stat st;
        size_t len = 0;
        ssize_t n;

        if (fd < 0 || fstat(fd, &st) < 0)
                return wrong_at(reader, 0, strerror(errno));
        if (!S_ISREG(st.st_mode) && strcmp(reader->path, "/dev/null") == 0) {
                *ret = strdup("");
                return *ret ? 0 : FAULT(-ENOMEM);
        }
        if (!S_ISREG(st.st_mode) || st.st_size > CONFIG_FILE_MAX)
                return wrong_at(reader, 0, "not a regular file of at most 1 MiB");
        text = malloc(CONFIG_FILE_MAX + 1);
        if (!text)
                return FAULT(-ENOMEM);
        while (len < CONFIG_FILE_MAX && (n = read(fd, text + len, CONFIG_FILE_MAX - len)) != 0) {
                if (n < 0)
                        return wrong_at(reader, 0, strerror(errno));
                len += (size_t)n;
        }
        text[len] = '\0';
        if (strlen(text) != len)
                return wrong_at(reader, 0, "contains a NUL byte");
        *ret = TAKE_PTR(text);
        return 0;
}

/* A file that is included would be read by libconfig after all. */
static int refuse_includes(const Reader *reader, const char *text)
{
        int line = 1;

        for (const char *p = text; *p; line++) {
                const char *word = p + strspn(p, " \t\f\r");

                if (strncmp(word, "@include", 8) == 0)
                        return wrong_at(reader, line, "@include is not supported");
                p += strcspn(p, "\n");
                p += *p == '\n';
        }
        return 0;
}

static int read_file(const Reader *reader)
{
        _cleanup_free_ char *text = NULL, *room = NULL;
        config_t file;
        int r;

        r = read_text(reader, &text);
        if (r == 0)
                r = refuse_includes(reader, text);
        if (r < 0)
                return PASS(r);
        /* libconfig does not look whether its small allocations succeed: they come out of this, which stays in the heap. */
        room = malloc(CONFIG_ROOM);
        if (!room)
                return FAULT(-ENOMEM);
        free(TAKE_PTR(room));
        config_init(&file);
        if (config_read_string(&file, text)) {
                const config_setting_t *root = config_root_setting(&file);

                for (int i = 0; r == 0 && i < config_setting_length(root); i++)
                        r = read_setting(reader, config_setting_get_elem(root, (unsigned)i));
        } else
                r = wrong_at(reader, config_error_line(&file), config_error_text(&file));
        config_destroy(&file);
        return r;
}

int config_load(const char *path, bool required, bool session, Config *ret, char **ret_why)
{
        Config config = {
                .log_level = 3,
                .max_clients = 1024,
                .admin_max_clients = 5000,
                .max_lockspaces = 1024,
                .max_holds = 200000,
                .lock_socket = config_runtime_path(session, "libvirt/virtlockd-sock"),
                .admin_socket = config_runtime_path(session, "libvirt/virtlockd-admin-sock"),
        };
        Reader reader = { .config = &config, .path = path, .why = ret_why };
        int r = 0;

        *ret_why = NULL;
        if (!config.lock_socket || !config.admin_socket)
                r = FAULT(-ENOMEM);
        else if (access(path, F_OK) == 0)
                r = read_file(&reader);
        else if (required) {
                r = -errno;
                if (asprintf(ret_why, "%s: %s", path, strerror(-r)) < 0)
                        *ret_why = NULL;
        }
        if (r < 0) {
                config_done(&config);
                return r;
        }
        *ret = config;
        return 0;
}

void config_done(Config *config)
{
        free(config->log_filters);
        free(config->log_outputs);
        free(config->lock_socket);
        free(config->admin_socket);
        for (size_t i = 0; i < config->n_lockspaces; i++) {
                free(config->lockspaces[i].path);
                free(config->lockspaces[i].require_mount);
        }
        free(config->lockspaces);
        *config = (Config){ 0 };
}
