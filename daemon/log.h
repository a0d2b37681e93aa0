/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What lockd has to say, to stderr, a file, syslog or the journal, by libvirt's log_level, log_filters and
 * log_outputs. A line that an output cannot take at once is dropped and counted: nothing here waits.
 *
 * Each source file that logs defines LOG_SOURCE, the name that log_filters match, before it includes this header.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef enum LogLevel {
        LOG_LEVEL_DEBUG = 1, /* the numbers are libvirt's */
        LOG_LEVEL_INFO = 2,
        LOG_LEVEL_WARNING = 3,
        LOG_LEVEL_ERROR = 4,
        LOG_LEVEL_AUDIT = 5, /* ours: never filtered */
} LogLevel;

/* The outputs are opened anew. On failure (-EINVAL: not libvirt's syntax, else what open said) everything stays as it
 * was and *ret_why, a static string, says which part is wrong. NULL or "" means the default: stderr for outputs, no
 * filters. An output without a level of its own takes what level lets through. */
int log_setup(LogLevel level, const char *filters, const char *outputs, const char **ret_why);

/* Are these of the right form? Opens nothing. -EINVAL with *ret_why, -ENOMEM. */
int log_check(const char *filters, const char *outputs, const char **ret_why);

/* Where the default output goes when log_outputs is not set: "stderr", or "syslog" once in the background. */
void log_default_output(const char *output);

/* Opens files again, after rotation. */
void log_reopen(void);

/* Lines dropped since the start. */
unsigned long long log_dropped(void);

/* Would such a line go anywhere? What costs something is not even put into words otherwise. */
bool log_wants(LogLevel level, const char *source);

void log_write(LogLevel level, const char *source, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* buf becomes a printable form of name: bytes under 0x20, 0x7f and '\' as \xNN. Returns buf. */
const char *log_escape(const char *name, char *buf, size_t size);

#define LOG_ESCAPED_MAX 1024
#define log_name(name) log_escape((name), (char[LOG_ESCAPED_MAX]){ 0 }, LOG_ESCAPED_MAX)

/* The deeds of administrators: whatever log_level and log_filters say. */
#define log_audit(...) log_write(LOG_LEVEL_AUDIT, "audit", __VA_ARGS__)

#define log_if_wanted(level, ...) (log_wants((level), LOG_SOURCE) ? log_write((level), LOG_SOURCE, __VA_ARGS__) : (void)0)
#define log_debug(...) log_if_wanted(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...) log_if_wanted(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, LOG_SOURCE, __VA_ARGS__)
#define log_error(...) log_write(LOG_LEVEL_ERROR, LOG_SOURCE, __VA_ARGS__)
