/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: no call in this file waits for whoever reads the log. It refuses to know what it logs. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

#define LOG_OUTPUTS_MAX 8
#define LOG_FILTERS_MAX 32
#define LOG_LINE_MAX 8192

typedef enum OutputKind { OUTPUT_STDERR, OUTPUT_FILE, OUTPUT_SYSLOG, OUTPUT_JOURNALD } OutputKind;

typedef struct Output {
        OutputKind kind;
        LogLevel level;
        int fd; /* -1: not open at the moment, the line is dropped */
        char argument[PATH_MAX]; /* path of the file, identity of syslog */
} Output;

typedef struct Filter {
        char match[64];
        LogLevel level;
} Filter;

typedef struct Setup {
        LogLevel level;
        size_t n_outputs, n_filters;
        Output outputs[LOG_OUTPUTS_MAX];
        Filter filters[LOG_FILTERS_MAX];
} Setup;

static Setup current = {
        .level = LOG_LEVEL_WARNING,
        .n_outputs = 1,
        .outputs = { { .kind = OUTPUT_STDERR, .level = LOG_LEVEL_DEBUG, .fd = STDERR_FILENO } },
};
static const char *default_output = "1:stderr";
static unsigned long long dropped;

static int connect_datagram(const char *path)
{
        _cleanup_fd_ int fd = -1;
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        memcpy(address.sun_path, path, strlen(path) + 1);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

static int output_open(Output *output)
{
        switch (output->kind) {
        case OUTPUT_STDERR:
                output->fd = STDERR_FILENO;
                return 0;
        case OUTPUT_FILE:
                output->fd = open(output->argument, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
                return output->fd < 0 ? -errno : 0;
        case OUTPUT_SYSLOG:
                output->fd = connect_datagram("/dev/log");
                return 0; /* not there yet: lines are dropped and counted until it is */
        case OUTPUT_JOURNALD:
                output->fd = connect_datagram("/run/systemd/journal/socket");
                return 0;
        default:
                return -EINVAL;
        }
}

static void output_close(Output *output)
{
        if (output->kind != OUTPUT_STDERR)
                close_fd(output->fd);
        output->fd = -1;
}

static bool parse_level(const char **text, LogLevel *ret)
{
        if (**text < '1' || **text > '4' || (*text)[1] != ':')
                return false;
        *ret = (LogLevel)(**text - '0');
        *text += 2;
        return true;
}

/* "LEVEL:KIND[:ARGUMENT]" */
static int parse_output(const char *text, Output *ret)
{
        static const struct {
                const char *name;
                OutputKind kind;
                bool argument;
        } kinds[] = {
                { "stderr", OUTPUT_STDERR, false },
                { "file", OUTPUT_FILE, true },
                { "syslog", OUTPUT_SYSLOG, true },
                { "journald", OUTPUT_JOURNALD, false },
        };
        const char *argument;
        size_t len;

        *ret = (Output){ .fd = -1 };
        if (!parse_level(&text, &ret->level))
                return -EINVAL;
        len = strcspn(text, ":");
        argument = text[len] ? text + len + 1 : "";
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
                if (strlen(kinds[i].name) != len || strncmp(kinds[i].name, text, len) != 0)
                        continue;
                if (kinds[i].argument != (*argument != '\0') || strlen(argument) >= sizeof(ret->argument))
                        return -EINVAL;
                if (kinds[i].kind == OUTPUT_FILE && *argument != '/')
                        return -EINVAL;
                ret->kind = kinds[i].kind;
                memcpy(ret->argument, argument, strlen(argument) + 1);
                return 0;
        }
        return -EINVAL;
}

/* "LEVEL:MATCH"; libvirt also takes "LEVEL:+MATCH", which asks for a stack trace: the plus is ignored. */
static int parse_filter(const char *text, Filter *ret)
{
        if (!parse_level(&text, &ret->level))
                return -EINVAL;
        if (*text == '+')
                text++;
        if (!*text || strlen(text) + 2 >= sizeof(ret->match))
                return -EINVAL;
        /* As in libvirt: shell wildcards, and "name" means "*name*". */
        (void)snprintf(ret->match, sizeof(ret->match), "*%s*", text);
        return 0;
}

/* Reads both settings into setup; nothing is opened. */
static int parse_setup(const char *filters, const char *outputs, Setup *setup, const char **ret_why)
{
        _cleanup_free_ char *f = strdup(filters ? filters : "");
        _cleanup_free_ char *o = strdup(outputs && *outputs ? outputs : default_output);
        char *save = NULL;

        *ret_why = "out of memory";
        if (!f || !o)
                return -ENOMEM;
        *ret_why = "log_filters wants LEVEL:NAME, LEVEL from 1 (debug) to 4 (error)";
        for (char *word = strtok_r(f, " ", &save); word; word = strtok_r(NULL, " ", &save))
                if (setup->n_filters == LOG_FILTERS_MAX || parse_filter(word, &setup->filters[setup->n_filters++]) < 0)
                        return -EINVAL;
        *ret_why = "log_outputs wants LEVEL:stderr, LEVEL:journald, LEVEL:syslog:NAME or LEVEL:file:/PATH";
        for (char *word = strtok_r(o, " ", &save); word; word = strtok_r(NULL, " ", &save))
                if (setup->n_outputs == LOG_OUTPUTS_MAX || parse_output(word, &setup->outputs[setup->n_outputs++]) < 0)
                        return -EINVAL;
        *ret_why = NULL;
        return 0;
}

int log_check(const char *filters, const char *outputs, const char **ret_why)
{
        _cleanup_free_ Setup *setup = calloc(1, sizeof(*setup));

        *ret_why = "out of memory";
        return setup ? parse_setup(filters, outputs, setup, ret_why) : -ENOMEM;
}

int log_setup(LogLevel level, const char *filters, const char *outputs, const char **ret_why)
{
        _cleanup_free_ Setup *next = calloc(1, sizeof(*next));
        size_t opened = 0;
        int r;

        *ret_why = "out of memory";
        if (!next)
                return -ENOMEM;
        next->level = level;
        r = parse_setup(filters, outputs, next, ret_why);
        while (r == 0 && opened < next->n_outputs) {
                *ret_why = "a file in log_outputs cannot be opened";
                r = output_open(&next->outputs[opened]);
                opened += r == 0;
        }
        if (r < 0) {
                while (opened > 0)
                        output_close(&next->outputs[--opened]);
                return r;
        }
        for (size_t i = 0; i < current.n_outputs; i++)
                output_close(&current.outputs[i]);
        current = *next;
        *ret_why = NULL;
        return 0;
}

void log_default_output(const char *output)
{
        default_output = output;
}

void log_reopen(void)
{
        for (size_t i = 0; i < current.n_outputs; i++) {
                Output fresh = current.outputs[i];

                if (output_open(&fresh) < 0)
                        continue; /* the old file is better than none */
                output_close(&current.outputs[i]);
                current.outputs[i] = fresh;
        }
}

unsigned long long log_dropped(void)
{
        return dropped;
}

const char *log_escape(const char *name, char *buf, size_t size)
{
        size_t n = 0;

        for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
                bool plain = *p >= 0x20 && *p != 0x7f && *p != '\\';

                if (n + 8 > size) {
                        memcpy(buf + n, "...", 4);
                        return buf;
                }
                if (plain)
                        buf[n++] = (char)*p;
                else
                        n += (size_t)sprintf(buf + n, "\\x%02x", *p);
        }
        buf[n] = '\0';
        return buf;
}

static LogLevel threshold(const char *source)
{
        for (size_t i = 0; i < current.n_filters; i++)
                if (fnmatch(current.filters[i].match, source, 0) == 0)
                        return current.filters[i].level;
        return current.level;
}

/* Pipes and terminals: written only when poll says that a line fits (for pipes POLLOUT means PIPE_BUF bytes). */
static bool write_stream(int fd, const char *line, size_t len)
{
        struct pollfd p = { .fd = fd, .events = POLLOUT };
        struct iovec iov[] = {
                { .iov_base = (void *)(uintptr_t)line, .iov_len = len < PIPE_BUF ? len : PIPE_BUF - 1 },
                { .iov_base = (char[]){ '\n' }, .iov_len = 1 },
        };

        if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
                return false;
        return writev(fd, iov, 2) > 0;
}

static bool write_output(Output *output, LogLevel level, const char *source, const char *message)
{
        static const int priorities[] = { 7, 7, 6, 4, 3, 5 }; /* syslog's, by LogLevel */
        static const char *const names[] = { "", "debug", "info", "warning", "error", "notice" };
        char line[LOG_LINE_MAX + 256];
        struct timespec now;
        struct tm tm;
        int n;

        if (output->fd < 0 && output->kind != OUTPUT_FILE)
                (void)output_open(output);
        if (output->fd < 0)
                return false;
        switch (output->kind) {
        case OUTPUT_SYSLOG:
                n = snprintf(line, sizeof(line), "<%d>%s[%d]: %s", (3 << 3) | priorities[level], output->argument,
                             (int)getpid(), message);
                break;
        case OUTPUT_JOURNALD:
                n = snprintf(line, sizeof(line), "MESSAGE=%s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=lockd\nLIBVIRT_SOURCE=%s\n",
                             message, priorities[level], source);
                break;
        case OUTPUT_STDERR:
        case OUTPUT_FILE:
        default:
                clock_gettime(CLOCK_REALTIME, &now);
                gmtime_r(&now.tv_sec, &tm);
                n = snprintf(line, sizeof(line), "%04d-%02d-%02d %02d:%02d:%02d.%03ld+0000: %d: %s : %s: %s",
                             tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                             now.tv_nsec / 1000000, (int)getpid(), names[level], source, message);
                break;
        }
        if (n < 0)
                return false;
        if ((size_t)n >= sizeof(line))
                n = sizeof(line) - 1;
        if (output->kind == OUTPUT_STDERR || output->kind == OUTPUT_FILE)
                return write_stream(output->fd, line, (size_t)n);
        if (send(output->fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
                return true;
        if (errno == ECONNREFUSED || errno == ENOTCONN || errno == ECONNRESET)
                output_close(output); /* the logger was restarted: connect again for the next line */
        return false;
}

bool log_wants(LogLevel level, const char *source)
{
        return level >= LOG_LEVEL_AUDIT || level >= threshold(source);
}

void log_write(LogLevel level, const char *source, const char *format, ...)
{
        char message[LOG_LINE_MAX];
        int saved = errno;
        va_list ap;

        if (!log_wants(level, source))
                return;
        va_start(ap, format);
        (void)vsnprintf(message, sizeof(message), format, ap);
        va_end(ap);
        /* One event is one line, whatever a name contains. */
        for (char *p = message; *p; p++)
                if (*p == '\n')
                        *p = ' ';
        for (size_t i = 0; i < current.n_outputs; i++)
                if (level >= current.outputs[i].level && !write_output(&current.outputs[i], level, source, message))
                        dropped++;
        errno = saved;
}
