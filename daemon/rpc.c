/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: an error says what happened, to which resource, who holds it, and where to look. */
#include "rpc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "virtlock.h"

int rpc_refuse(RpcError *error, int code, int domain, const char *format, ...)
{
        va_list ap;

        error->code = code;
        error->domain = domain;
        error->int1 = error->int2 = -1;
        error->function = NULL;
        va_start(ap, format);
        (void)vsnprintf(error->detail, sizeof(error->detail), format, ap);
        va_end(ap);
        return RPC_E_REFUSED;
}

int rpc_refuse_errno(RpcError *error, int domain, int number, const char *format, ...)
{
        size_t len;
        va_list ap;

        error->code = VIRTLOCK_ERR_SYSTEM;
        error->domain = domain;
        error->int1 = number;
        error->int2 = -1;
        error->function = NULL;
        va_start(ap, format);
        (void)vsnprintf(error->detail, sizeof(error->detail), format, ap);
        va_end(ap);
        len = strlen(error->detail);
        (void)snprintf(error->detail + len, sizeof(error->detail) - len, ": %s%s", strerror(number), rpc_advice(number));
        return RPC_E_REFUSED;
}

const char *rpc_advice(int number)
{
        switch (number) {
        case EACCES:
        case EPERM:
                return "; nobody holds it: look at the file's owner and mode, at its SELinux or AppArmor label, and at root_squash on "
                       "an NFS server";
        case EMFILE:
        case ENFILE:
                return "; lockd is at its limit of open files: raise LimitNOFILE (ulimit -n) and restart it";
        case ENOLCK:
        case EOPNOTSUPP:
        case ENOSYS:
                return "; this file system has no locks: look at its mount options and, on NFS, at the lock services of client and "
                       "server";
        case EROFS:
                return "; the file system is mounted read-only";
        case ENOSPC:
        case EDQUOT:
                return "; the file system, or a quota, is full";
        case ESTALE:
        case EIO:
                return "; the storage has a problem: look at the kernel's log";
        case EAGAIN:
                return "; another program has a lease on the file and is asked to give it up: try again";
        case ENOTDIR:
                return "; a part of the path is not a directory";
        case ELOOP:
                return "; a symbolic link stands where none may be, or links go in a circle";
        default:
                return "";
        }
}

void rpc_name_holder(RpcError *error, const Lease *lease)
{
        const Hold *hold = lease_first_hold(lease);
        time_t since = (time_t)(hold->since / 1000000);
        size_t len = strlen(error->detail);
        char text[32];
        struct tm tm;

        gmtime_r(&since, &tm);
        (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
        len += (size_t)snprintf(error->detail + len, sizeof(error->detail) - len, " by %s%s since %s", owner_text(hold->owner),
                                hold->owner->dead ? ", whose process has ended," : "", text);
        if (len < sizeof(error->detail) && lease->n_holds > 1)
                (void)snprintf(error->detail + len, sizeof(error->detail) - len, " and %u more", lease->n_holds - 1);
}
