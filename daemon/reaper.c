/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: no hold of an owner with a process ends here before both signs of its death were seen, and no process is
 * signalled that did not prove to be the owner. It refuses to know connections and the wire.
 *
 *      pidfd fires ---------\
 *                            >-- both --> in the queue of the dying --> its holds go, a slice at a time --> freed
 *      last own EOF --------/
 *            \--- (policy kill, still alive) --> TERM --1.6 s--> KILL --2 s--> unkillable: holds on, is shown
 */
#include "reaper.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>

#define LOG_SOURCE "reaper"
#include "cleanup.h"
#include "fault.h"
#include "log.h"

#define USEC_PER_MSEC 1000U
#define REAPER_TERM_USEC (1600U * USEC_PER_MSEC) /* as virtlockd */
#define REAPER_KILL_USEC (2000U * USEC_PER_MSEC)
#define REAPER_ORPHAN_USEC (200U * USEC_PER_MSEC) /* then a dead process's connection is somebody else's */
#define REAPER_ACCURACY_USEC (20U * USEC_PER_MSEC)
#define REAPER_SLICE_NSEC 500000L

struct Reaper {
        sd_event *loop;
        LockspaceTable *lockspaces;
        ReaperPolicy policy;
        int pidfds;             /* an epoll of those that are watched: a source each would take 400 bytes */
        sd_event_source *ended; /* of that */
        sd_event_source *slice; /* a timer, armed while somebody is dying */
        ListNode dying;         /* of Death.in_dying */
};

typedef struct Death {
        Reaper *reaper;
        Owner *owner;
        bool watched;
        sd_event_source *timer, *flush;
        ReaperState state;
        bool killed;         /* KILL has been sent */
        pid_t flusher;       /* 0: none */
        ListNode in_dying;
        ListNode waits;      /* of ReaperWait */
} Death;

ReaperState reaper_state(const Owner *owner)
{
        if (owner->dead)
                return REAPER_DEAD;
        return owner->death ? owner->death->state : REAPER_ALIVE;
}

static void tell_waits(Death *death, int result)
{
        list_for_each_safe(node, &death->waits) {
                ReaperWait *wait = list_entry(node, ReaperWait, node);

                list_unlink(node);
                wait->done(wait, result);
        }
}

static void unwatch(Death *death)
{
        if (death->watched)
                (void)epoll_ctl(death->reaper->pidfds, EPOLL_CTL_DEL, death->owner->pidfd, NULL);
        death->watched = false;
}

static Death *death_free(Death *death)
{
        if (!death)
                return NULL;
        tell_waits(death, 0);
        list_unlink(&death->in_dying);
        unwatch(death);
        sd_event_source_disable_unref(death->timer);
        sd_event_source_disable_unref(death->flush);
        death->owner->death = NULL;
        free(death);
        return NULL;
}

void reaper_drop_if_idle(Reaper *reaper, Owner *owner)
{
        (void)reaper;
        if (owner->peers > 0 || owner->n_holds > 0)
                return;
        death_free(owner->death);
        (void)owner_drop_if_idle(owner);
}

/* A timer, not a deferred source: that one would come first again and again, and nobody else be served meanwhile. */
static void arm_slice(Reaper *reaper)
{
        (void)sd_event_source_set_time_relative(reaper->slice, 0);
        (void)sd_event_source_set_enabled(reaper->slice, SD_EVENT_ONESHOT);
}

static void start_dying(Death *death)
{
        if (!death) {
                log_error("an owner died that could not be watched: its holds stay");
                return;
        }
        if (list_linked(&death->in_dying))
                return;
        list_append(&death->reaper->dying, &death->in_dying);
        arm_slice(death->reaper);
}

static int64_t elapsed_nsec(const struct timespec *since)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (now.tv_sec - since->tv_sec) * 1000000000LL + (now.tv_nsec - since->tv_nsec);
}

static int on_flushed(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Death *death = userdata;

        (void)fd;
        (void)revents;
        (void)waitpid(death->flusher, NULL, WNOHANG);
        sd_event_source_disable_unref(source);
        death->flush = NULL;
        death->flusher = 0;
        start_dying(death);
        return 0;
}

/* Has the dead writer's cached data put on a block device, in a process of its own: fsync may take its time. True: the
 * owner goes on dying when that process has ended. */
static bool flush_first(Death *death, Hold *hold)
{
        int r, pidfd;

        if (!lockspace_wants_flush(hold))
                return false;
        r = lockspace_start_flush(hold, &death->flusher, &pidfd);
        if (r == 0) {
                r = sd_event_add_io(death->reaper->loop, &death->flush, pidfd, EPOLLIN, on_flushed, death);
                if (r >= 0)
                        r = sd_event_source_set_io_fd_own(death->flush, true);
                else
                        close_fd(pidfd);
        }
        if (r < 0)
                log_warning("%s: data that %s wrote may not be on the device yet: %s", log_name(hold->resource->name),
                            owner_text(death->owner), strerror(-r));
        return r >= 0;
}

static int on_slice(sd_event_source *source, uint64_t usec, void *userdata)
{
        Reaper *reaper = userdata;
        struct timespec start;

        (void)source;
        (void)usec;
        clock_gettime(CLOCK_MONOTONIC, &start);
        while (!list_empty(&reaper->dying)) {
                Death *death = list_entry(reaper->dying.next, Death, in_dying);
                Owner *owner = death->owner;

                if (list_empty(&owner->holds)) {
                        list_unlink(&death->in_dying);
                        tell_waits(death, 0);
                        reaper_drop_if_idle(reaper, owner);
                } else {
                        Hold *hold = list_entry(owner->holds.next, Hold, in_owner);

                        if (flush_first(death, hold))
                                list_unlink(&death->in_dying);
                        else
                                lockspace_release_hold(reaper->lockspaces, hold);
                }
                if (elapsed_nsec(&start) > REAPER_SLICE_NSEC) {
                        arm_slice(reaper);
                        return 0;
                }
        }
        return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata);

static int arm(Death *death, uint64_t usec)
{
        int r;

        if (!death->timer)
                return sd_event_add_time_relative(death->reaper->loop, &death->timer, CLOCK_MONOTONIC, usec,
                                                  REAPER_ACCURACY_USEC, on_timer, death);
        r = sd_event_source_set_time_relative(death->timer, usec);
        return r < 0 ? r : sd_event_source_set_enabled(death->timer, SD_EVENT_ONESHOT);
}

/* The process has ended. */
static void process_ended(Reaper *reaper, Owner *owner)
{
        Death *death = owner->death;
        int r;

        owner_mark_dead(owner);
        if (death) {
                unwatch(death);
                if (death->timer)
                        (void)sd_event_source_set_enabled(death->timer, SD_EVENT_OFF);
        }
        if (owner->n_holds == 0) {
                if (death)
                        tell_waits(death, 0);
                reaper_drop_if_idle(reaper, owner);
                return;
        }
        if (owner->own_peers > 0) {
                /* The connection's end usually is the loop's next event. */
                r = death ? arm(death, REAPER_ORPHAN_USEC) : -ENOMEM;
                if (r < 0)
                        log_error("%s: %s", owner_text(owner), strerror(-r));
        } else {
                log_info("%s has ended: its %zu holds go", owner_text(owner), owner->n_holds);
                start_dying(death);
        }
}

/* One at a time: the end of an owner may free others. */
static int on_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        struct epoll_event event;

        (void)source;
        (void)revents;
        if (epoll_wait(fd, &event, 1, 0) == 1)
                process_ended(userdata, ((Death *)event.data.ptr)->owner);
        return 0;
}

int reaper_watch(Reaper *reaper, Owner *owner)
{
        Death *death = calloc(1, sizeof(*death));
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = death };

        if (!death)
                return FAULT(-ENOMEM);
        death->reaper = reaper;
        death->owner = owner;
        owner->death = death;
        list_init(&death->waits);
        if (owner->pidfd < 0 || owner->dead)
                return 0;
        /* On failure the Death stays: an owner that is not watched is one that holds on. */
        if (epoll_ctl(reaper->pidfds, EPOLL_CTL_ADD, owner->pidfd, &event) < 0)
                return FAULT(-errno);
        death->watched = true;
        return 0;
}

static void send_signal(Death *death, int signal)
{
        /* Through the pidfd it cannot reach a stranger. An error means that it has ended, or that the kernel protects it:
         * either way nothing is freed before it is seen dead. */
        if (pidfd_send_signal(death->owner->pidfd, signal, NULL, 0) < 0 && errno != ESRCH)
                log_warning("%s: signal %d: %s", owner_text(death->owner), signal, strerror(errno));
}

static void orphaned(Death *death)
{
        log_warning("%s: its process has ended, but its connection is open in another one: its %zu holds stay until that closes",
                    owner_text(death->owner), death->owner->n_holds);
        tell_waits(death, -EBUSY);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
        Death *death = userdata;

        (void)source;
        (void)usec;
        if (death->owner->dead) {
                if (death->owner->own_peers > 0)
                        orphaned(death);
        } else if (!death->killed) {
                log_warning("%s ignores TERM: sending KILL", owner_text(death->owner));
                death->killed = true;
                send_signal(death, SIGKILL);
                (void)arm(death, REAPER_KILL_USEC);
        } else {
                death->state = REAPER_UNKILLABLE;
                log_error("%s cannot be killed: it keeps its %zu holds until it is dead", owner_text(death->owner),
                          death->owner->n_holds);
                tell_waits(death, -ETIMEDOUT);
        }
        return 0;
}

int reaper_kill(Reaper *reaper, Owner *owner, ReaperWait *wait)
{
        Death *death = owner->death;
        int r;

        (void)reaper;
        if (!owner->proved || owner->pidfd < 0)
                return REAPER_E_NOT_PROVED;
        if (!death)
                return FAULT(-ENOMEM);
        if (owner->dead)
                return REAPER_E_ENDED;
        if (death->state != REAPER_KILLING) {
                r = arm(death, REAPER_TERM_USEC);
                if (r < 0)
                        return FAULT(r);
                death->state = REAPER_KILLING;
                death->killed = false;
                send_signal(death, SIGTERM);
        }
        if (wait)
                list_append(&death->waits, &wait->node);
        return 0;
}

void reaper_wait(Owner *owner, ReaperWait *wait)
{
        if (!owner->death)
                return;
        list_append(&owner->death->waits, &wait->node);
}

bool reaper_progress(const Owner *owner, uint64_t *ret_left)
{
        const Death *death = owner->death;
        uint64_t at = 0, now = 0;

        *ret_left = 0;
        if (!death || death->state != REAPER_KILLING || owner->dead)
                return false;
        (void)sd_event_source_get_time(death->timer, &at);
        (void)sd_event_now(death->reaper->loop, CLOCK_MONOTONIC, &now);
        *ret_left = at > now ? at - now : 0;
        return death->killed;
}

int reaper_resume(Reaper *reaper, Owner *owner, ReaperState state, bool kill_sent, uint64_t left)
{
        Death *death;
        int r;

        r = reaper_watch(reaper, owner);
        if (r < 0)
                return PASS(r);
        death = owner->death;
        if (owner_is_gone(owner))
                start_dying(death);
        else if (owner->dead)
                r = arm(death, REAPER_ORPHAN_USEC);
        else if (state == REAPER_KILLING || state == REAPER_UNKILLABLE) {
                death->state = state;
                death->killed = kill_sent;
                r = state == REAPER_KILLING ? arm(death, left) : 0;
        }
        return r < 0 ? FAULT(r) : 0;
}

static void last_own_closed(Reaper *reaper, Owner *owner)
{
        if (owner->dead) {
                log_info("%s: its connection is closed, too: its %zu holds go", owner_text(owner), owner->n_holds);
                start_dying(owner->death);
        } else if (owner_has_ended(owner))
                process_ended(reaper, owner); /* before the loop gets to its pidfd */
        else if (owner->n_holds > owner->unprotected && reaper->policy == REAPER_KILL) {
                int r;

                log_warning("%s closed its connection and has %zu holds: killing it (on_disconnect)", owner_text(owner),
                            owner->n_holds);
                r = reaper_kill(reaper, owner, NULL);
                if (r < 0)
                        log_error("%s: not killed: %s (%s)", owner_text(owner), strerror(-r), fault_trail());
        }
}

void reaper_peer_closed(Reaper *reaper, Owner *owner, bool own)
{
        owner->peers--;
        if (own && --owner->own_peers == 0 && owner->n_holds > 0)
                last_own_closed(reaper, owner);
        else
                reaper_drop_if_idle(reaper, owner);
}

int reaper_new(sd_event *loop, LockspaceTable *lockspaces, Reaper **ret)
{
        Reaper *reaper = calloc(1, sizeof(*reaper));
        int r;

        if (!reaper)
                return FAULT(-ENOMEM);
        reaper->loop = loop;
        reaper->lockspaces = lockspaces;
        list_init(&reaper->dying);
        reaper->pidfds = epoll_create1(EPOLL_CLOEXEC);
        r = reaper->pidfds < 0 ? -errno : sd_event_add_io(loop, &reaper->ended, reaper->pidfds, EPOLLIN, on_ended, reaper);
        if (r >= 0)
                r = sd_event_add_time_relative(loop, &reaper->slice, CLOCK_MONOTONIC, 0, 1, on_slice, reaper);
        if (r >= 0)
                r = sd_event_source_set_enabled(reaper->slice, SD_EVENT_OFF);
        if (r < 0) {
                reaper_free(reaper);
                return FAULT(r);
        }
        *ret = reaper;
        return 0;
}

Reaper *reaper_free(Reaper *reaper)
{
        if (!reaper)
                return NULL;
        sd_event_source_disable_unref(reaper->ended);
        sd_event_source_disable_unref(reaper->slice);
        close_fd(reaper->pidfds);
        free(reaper);
        return NULL;
}

void reaper_set_policy(Reaper *reaper, ReaperPolicy policy)
{
        reaper->policy = policy;
}

void reaper_release_all(Reaper *reaper)
{
        LeaseTable *leases;
        size_t cursor = 0;

        if (!reaper)
                return;
        leases = lockspace_leases(reaper->lockspaces);
        for (Lease *lease; (lease = lease_next(leases, &cursor));) {
                Hold *hold = lease_first_hold(lease);
                Owner *owner = hold->owner;

                lockspace_release_hold(reaper->lockspaces, hold);
                reaper_drop_if_idle(reaper, owner);
        }
}
