/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: the identity that a connection registered never changes, and its own owner counts it exactly once. */
#include "caller.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "fault.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

void caller_init(Caller *caller, int socket, const OwnerPeer *process)
{
        *caller = (Caller){ .socket = socket, .process = *process };
        caller->process.pidfd = -1;
        list_init(&caller->taken);
}

/* Is it the owner's own connection? A process that is gone has no pidfd: then the answer is no, whatever its number says.
 * Without the means to ask there is no answer. */
static int ask_own(const Caller *caller, const Owner *owner, bool *ret)
{
        OwnerPeer process = caller->process;
        _cleanup_fd_ int pidfd = -1;
        socklen_t len = sizeof(pidfd);

        *ret = false;
        if ((uint32_t)process.pid != owner->key.pid || owner->key.pid == 0)
                return 0;
        if (getsockopt(caller->socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0) {
                pidfd = -1;
                if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
                        return FAULT(-errno);
                if (errno != ENOPROTOOPT)
                        return 0;
        }
        process.pidfd = pidfd;
        *ret = owner_is_peer(owner, &process);
        return 0;
}

static bool same_identity(const Caller *caller, const uint8_t uuid[OWNER_UUID_LEN], const char *name, uint32_t id, uint32_t pid)
{
        const Owner *owner = caller->owner;

        return memcmp(owner->key.uuid, uuid, OWNER_UUID_LEN) == 0 && owner->id == id && caller->claimed_pid == pid &&
               strcmp(owner->name, name) == 0;
}

int caller_register(Caller *caller, OwnerTable *owners, Reaper *reaper, const uint8_t uuid[OWNER_UUID_LEN], const char *name,
                    uint32_t id, uint32_t pid)
{
        Owner *owner;
        bool fresh, own = false;
        int r;

        if (caller->owner)
                return same_identity(caller, uuid, name, id, pid) ? 0 : CALLER_E_IDENTITY;
        r = owner_find(owners, &caller->process, uuid, name, id, pid, &owner, &fresh);
        if (r != 0)
                return PASS(r);
        r = fresh ? reaper_watch(reaper, owner) : 0;
        if (r == 0)
                r = ask_own(caller, owner, &own);
        if (r < 0) {
                reaper_drop_if_idle(reaper, owner);
                return PASS(r);
        }
        caller->owner = owner;
        caller->claimed_pid = pid;
        caller->own = own;
        owner->peers++;
        if (caller->own) {
                struct stat st;

                if (fstat(caller->socket, &st) == 0)
                        owner->own_socket = st.st_ino;
                owner->own_peers++;
                owner->proved = true;
        }
        return 0;
}

void caller_end(Caller *caller, Reaper *reaper, bool unanswered)
{
        bool doubt = caller->last == CALLER_LAST_REFUSED || (caller->last == CALLER_LAST_GRANTED && unanswered);

        list_unlink(&caller->wait.node);
        list_for_each_safe(node, &caller->taken) {
                Hold *hold = list_entry(node, Hold, in_taken);

                hold->unconfirmed = doubt;
                list_unlink(node);
        }
        if (caller->owner)
                reaper_peer_closed(reaper, caller->owner, caller->own);
        caller->owner = NULL;
}
