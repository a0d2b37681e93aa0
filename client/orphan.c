/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a pid is reported only when that process has the other end of exactly this connection open. */
#include "orphan.h"

#include <dirent.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"

uint32_t orphan_peer_inode(uint32_t inode)
{
        struct {
                struct nlmsghdr header;
                struct unix_diag_req request;
        } ask = {
                .header = { .nlmsg_len = sizeof(ask), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST },
                .request = {
                        .sdiag_family = AF_UNIX,
                        .udiag_states = ~0U,
                        .udiag_ino = inode,
                        .udiag_show = UDIAG_SHOW_PEER,
                        .udiag_cookie = { ~0U, ~0U },
                },
        };
        _cleanup_fd_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
        union {
                struct nlmsghdr header;
                char bytes[4096];
        } answer;
        const struct unix_diag_msg *message;
        ssize_t n;
        int len;

        if (fd < 0 || send(fd, &ask, sizeof(ask), 0) < 0)
                return 0;
        n = recv(fd, &answer, sizeof(answer), 0);
        if (n < 0 || !NLMSG_OK(&answer.header, (size_t)n) || answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY)
                return 0;
        message = NLMSG_DATA(&answer.header);
        len = (int)(answer.header.nlmsg_len - NLMSG_LENGTH(sizeof(*message)));
        for (const struct rtattr *a = (const struct rtattr *)(message + 1); RTA_OK(a, len); a = RTA_NEXT(a, len))
                if (a->rta_type == UNIX_DIAG_PEER)
                        return *(const uint32_t *)RTA_DATA(a);
        return 0;
}

static int has_socket(const char *pid, const char *wanted)
{
        char path[300], target[64];
        struct dirent *entry;
        int found = 0;
        DIR *dir;

        (void)snprintf(path, sizeof(path), "/proc/%s/fd", pid);
        dir = opendir(path);
        while (dir && !found && (entry = readdir(dir))) {
                ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

                if (n > 0) {
                        target[n] = '\0';
                        found = strcmp(target, wanted) == 0;
                }
        }
        if (dir)
                closedir(dir);
        return found;
}

size_t orphan_find(uint64_t socket, pid_t ret[ORPHAN_PIDS_MAX])
{
        uint32_t peer = orphan_peer_inode((uint32_t)socket);
        struct dirent *entry;
        char wanted[64];
        size_t n = 0;
        DIR *proc;

        if (peer == 0)
                return 0;
        (void)snprintf(wanted, sizeof(wanted), "socket:[%u]", peer);
        proc = opendir("/proc");
        while (proc && n < ORPHAN_PIDS_MAX && (entry = readdir(proc)))
                if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && has_socket(entry->d_name, wanted))
                        ret[n++] = (pid_t)atol(entry->d_name);
        if (proc)
                closedir(proc);
        return n;
}
