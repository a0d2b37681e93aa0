/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: once it is up, the daemon ends only when nothing is held, or when an administrator said so by name.
 * Nothing but this file knows how the modules are wired together.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#define LOG_SOURCE "daemon"
#include "cleanup.h"
#include "config.h"
#include "exit_codes.h"
#include "fault.h"
#include "fds.h"
#include "giveback.h"
#include "listener.h"
#include "log.h"
#include "peer.h"
#include "reaper.h"
#include "rpc.h"
#include "takeover.h"
#include "upgrade.h"
#include "verify.h"
#include "virtlock.h"

#define HOLDERS_LOGGED_MAX 100
#define LOOP_PAUSE_MSEC 100

typedef enum ServerKind { SERVER_LOCK, SERVER_ADMIN, SERVERS } ServerKind;

typedef struct Server {
        PeerSet *peers;
        Listener *listener;
        char *path;    /* NULL: the socket was handed to us */
        int fd, guard; /* until there is a listener */
} Server;

typedef struct Daemon {
        const DaemonOptions *options;
        char *config_path;
        Config config;
        sd_event *loop;
        Storage *storage;
        LockspaceTable *lockspaces;
        OwnerTable *owners;
        Reaper *reaper;
        RpcServices services;
        Server servers[SERVERS];
        sd_event_source *mounts, *idle, *ending, *quiet;
        sd_event_source *signals[6];
        char *state; /* that this image was executed with; NULL: a fresh start */
        int state_fd;
        Upgrade *upgrade;
        Verify *verify;
        Giveback *giveback;
        RestoreParts parts;
        unsigned long long generation; /* of the storage's table, as last seen */
} Daemon;

static const char *const limit_names[SERVERS] = { "max_clients", "admin_max_clients" };

/* Executed with locks: whatever is wrong, to end now would release every one of them. */
static bool keeps_locks(const Daemon *daemon)
{
        return (daemon->state || daemon->state_fd >= 0 || daemon->options->takeover) && !daemon->options->check_state;
}

static void log_holders(const Daemon *daemon)
{
        LeaseTable *leases = lockspace_leases(daemon->lockspaces);
        size_t cursor = 0, n = 0;

        for (Lease *lease; n < HOLDERS_LOGGED_MAX && (lease = lease_next(leases, &cursor)); cursor++) {
                const Hold *hold = lease_first_hold(lease);

                if (lease->file.fd < 0)
                        continue;
                log_warning("'%s' in lockspace '%s' is held by %s", log_name(hold->resource->name),
                            log_name(hold->resource->lockspace->path), owner_text(hold->owner));
                n++;
        }
        if (lease_count(leases) > n)
                log_warning("and %zu more", lease_count(leases) - n);
}

/* After a TERM that could not be followed: ends with the last lease, once whoever waits for an answer has it. */
static int on_quiet(sd_event_source *source, void *userdata)
{
        Daemon *daemon = userdata;

        (void)source;
        if (lease_count(lockspace_leases(daemon->lockspaces)) > 0)
                return 0;
        log_info("nothing is held any more: ending, as TERM asked");
        (void)sd_event_exit(daemon->loop, EXIT_OK);
        return 0;
}

static int on_dispatched(sd_event_source *source, void *userdata)
{
        Daemon *daemon = userdata;

        (void)source;
        if (lease_count(lockspace_leases(daemon->lockspaces)) == 0)
                (void)sd_event_source_set_enabled(daemon->quiet, SD_EVENT_ONESHOT);
        return 0;
}

static void end_with_last_lease(Daemon *daemon)
{
        int r;

        if (daemon->ending)
                return;
        r = sd_event_add_defer(daemon->loop, &daemon->quiet, on_quiet, daemon);
        if (r >= 0)
                r = sd_event_source_set_priority(daemon->quiet, SD_EVENT_PRIORITY_IDLE);
        if (r >= 0)
                r = sd_event_add_post(daemon->loop, &daemon->ending, on_dispatched, daemon);
        daemon->parts.ending = true; /* also for an upgrade that is under way */
        if (r < 0)
                log_error("the TERM is forgotten: %s", strerror(-r));
}

static int on_stop(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata)
{
        Daemon *daemon = userdata;
        size_t n = lease_count(lockspace_leases(daemon->lockspaces));

        (void)source;
        if (n == 0) {
                log_info("signal %u: nothing is held, ending", info->ssi_signo);
                (void)sd_event_exit(daemon->loop, EXIT_OK);
                return 0;
        }
        log_warning("signal %u from pid %u: %zu leases are held and would be lost, so lockd goes on%s; "
                    "'lockd-admin stop --release-all --force' lets them go", info->ssi_signo, info->ssi_pid, n,
                    info->ssi_signo == SIGTERM ? " until they are gone" : "");
        log_holders(daemon);
        /* What systemd and a shutdown send: followed as soon as it can be. */
        if (info->ssi_signo == SIGTERM)
                end_with_last_lease(daemon);
        return 0;
}

static unsigned log_level(const Daemon *daemon)
{
        return daemon->options->verbose && daemon->config.log_level > LOG_LEVEL_INFO ? LOG_LEVEL_INFO : daemon->config.log_level;
}

/* The settings that can change while lockd runs. */
static int apply_config(Daemon *daemon, char **why)
{
        const Config *config = &daemon->config;
        const char *log_why;
        int r;

        r = log_setup(log_level(daemon), config->log_filters, config->log_outputs, &log_why);
        if (r < 0) {
                if (asprintf(why, "%s: %s: %s", daemon->config_path, log_why, strerror(-r)) < 0)
                        *why = NULL;
                return PASS(r);
        }
        reaper_set_policy(daemon->reaper, config->kill_on_disconnect ? REAPER_KILL : REAPER_HOLD);
        lockspace_set_limits(daemon->lockspaces, config->max_lockspaces, config->max_holds);
        lockspace_forget_mounts(daemon->lockspaces);
        for (size_t i = 0; i < config->n_lockspaces; i++) {
                r = lockspace_require_mount(daemon->lockspaces, config->lockspaces[i].path, config->lockspaces[i].require_mount);
                if (r < 0)
                        return PASS(r);
        }
        return 0;
}

static int on_reload(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata)
{
        Daemon *daemon = userdata;
        _cleanup_free_ char *why = NULL;
        Config fresh, old = daemon->config;
        int r;

        (void)source;
        (void)info;
        log_reopen();
        storage_reload_fstab(daemon->storage);
        r = config_load(daemon->config_path, daemon->options->config != NULL, daemon->options->session, &fresh, &why);
        if (r == 0) {
                daemon->config = fresh;
                r = apply_config(daemon, &why);
                if (r < 0)
                        daemon->config = old;
                config_done(r < 0 ? &fresh : &old);
        }
        if (r < 0) {
                log_error("the configuration stays as it was: %s", why ? why : strerror(-r));
                return 0;
        }
        listener_set_limit(daemon->servers[SERVER_LOCK].listener, daemon->config.max_clients, limit_names[SERVER_LOCK]);
        listener_set_limit(daemon->servers[SERVER_ADMIN].listener, daemon->config.admin_max_clients, limit_names[SERVER_ADMIN]);
        log_info("the configuration was read again from %s", daemon->config_path);
        return 0;
}

static int on_mounts(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Daemon *daemon = userdata;
        int r;

        (void)source;
        (void)fd;
        (void)revents;
        r = storage_update(daemon->storage);
        if (r < 0)
                log_error("the mount table cannot be read: %s (%s)", strerror(-r), fault_trail());
        return 0;
}

/* -t: ends when there was neither a client nor a hold for that long. */
static int on_idle(sd_event_source *source, uint64_t usec, void *userdata)
{
        Daemon *daemon = userdata;

        (void)usec;
        for (int i = 0; i < SERVERS; i++)
                if (peer_set_count(daemon->servers[i].peers) > 0)
                        return 0; /* armed again when they are gone */
        if (lease_count(lockspace_leases(daemon->lockspaces)) > 0) {
                (void)sd_event_source_set_time_relative(source, daemon->options->timeout * 1000000ULL);
                (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
                return 0;
        }
        log_info("no client and no hold for %u s: ending", daemon->options->timeout);
        (void)sd_event_exit(daemon->loop, EXIT_OK);
        return 0;
}

static void on_empty(void *userdata)
{
        Daemon *daemon = userdata;

        (void)sd_event_source_set_time_relative(daemon->idle, daemon->options->timeout * 1000000ULL);
        (void)sd_event_source_set_enabled(daemon->idle, SD_EVENT_ONESHOT);
}

static void stop(void *userdata)
{
        Daemon *daemon = userdata;

        (void)sd_event_exit(daemon->loop, EXIT_OK);
}

/* What the state names, as it is now. */
static void collect_parts(Daemon *daemon)
{
        const RestoreParts old = daemon->parts;

        daemon->parts = (RestoreParts){
                .unknown = old.unknown,
                .strays = old.strays,
                .n_strays = old.n_strays,
                .expected = { daemon->config.lock_socket, daemon->config.admin_socket },
                .lockspaces = daemon->lockspaces,
                .owners = daemon->owners,
                .reaper = daemon->reaper,
                .fds = { -1, -1 },
                .guards = { -1, -1 },
                .ending = daemon->ending != NULL,
                .binary = daemon->upgrade ? (char *)(uintptr_t)upgrade_binary(daemon->upgrade) : NULL,
        };
        for (int i = 0; i < SERVERS; i++) {
                daemon->parts.peers[i] = daemon->servers[i].peers;
                daemon->parts.listeners[i] = daemon->servers[i].listener;
                daemon->parts.paths[i] = daemon->servers[i].path;
        }
}

static int start_upgrade(void *userdata, const char **ret_why)
{
        Daemon *daemon = userdata;
        int r;

        if (giveback_is_under_way(daemon->giveback))
                return -EALREADY;
        collect_parts(daemon);
        r = upgrade_start(daemon->upgrade, &daemon->parts);
        *ret_why = upgrade_why(daemon->upgrade);
        return r;
}

static int on_upgrade(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata)
{
        const char *why;

        (void)source;
        if (start_upgrade(userdata, &why) == -EALREADY)
                log_info("signal %u: an upgrade is under way already", info->ssi_signo);
        return 0;
}

static void upgrade_failed(const char *why, void *userdata)
{
        Daemon *daemon = userdata;
        static RpcError error;

        (void)rpc_refuse(&error, VIRTLOCK_ERR_SYSTEM, VIRTLOCK_FROM_NONE, "no upgrade: %s: %s; lockd goes on with all locks",
                         upgrade_binary(daemon->upgrade), why);
        list_for_each(node, peer_set_all(daemon->servers[SERVER_ADMIN].peers)) {
                Caller *caller = peer_caller(peer_of(node));

                if (caller->later == LOCKD_LATER_UPGRADE)
                        caller->answer_later(caller, &error, NULL);
        }
}

static int give_back(void *userdata, const char *path, const char **ret_why)
{
        Daemon *daemon = userdata;
        int r;

        if (upgrade_is_under_way(daemon->upgrade))
                return -EALREADY;
        collect_parts(daemon);
        r = giveback_start(daemon->giveback, path, &daemon->parts);
        *ret_why = giveback_why(daemon->giveback);
        return r;
}

/* A socket that systemd opened for us, by its name there; -1: none. */
static int activated_fd(char **names, int n, const char *ours, const char *stock)
{
        for (int i = 0; i < n; i++)
                if (names[i] && (strcmp(names[i], ours) == 0 || strcmp(names[i], stock) == 0))
                        return SD_LISTEN_FDS_START + i;
        return -1;
}

static int open_socket(Daemon *daemon, ServerKind kind, char **names, int n_names, char **why)
{
        static const char *const activation[SERVERS][2] = {
                { "lockd.socket", "virtlockd.socket" },
                { "lockd-admin.socket", "virtlockd-admin.socket" },
        };
        const char *path = kind == SERVER_LOCK ? daemon->config.lock_socket : daemon->config.admin_socket;
        Server *server = &daemon->servers[kind];
        int r;

        server->fd = activated_fd(names, n_names, activation[kind][0], activation[kind][1]);
        if (server->fd >= 0)
                r = listener_guard(server->fd, &server->guard);
        else {
                r = listener_bind(path, keeps_locks(daemon), &server->fd, &server->guard);
                if (r == 0 && !(server->path = strdup(path)))
                        r = FAULT(-ENOMEM);
        }
        if (r == LISTENER_E_TAKEN) {
                if (asprintf(why, "another lock daemon answers at %s: stop it first, or choose another lock_socket and admin_socket "
                             "in lockd.conf", path) < 0)
                        *why = NULL;
                return -EADDRINUSE;
        }
        if (r < 0 && asprintf(why, "cannot listen at %s: %s", path, strerror(-r)) < 0)
                *why = NULL;
        return PASS(r);
}

static int add_listener(Daemon *daemon, ServerKind kind)
{
        Server *server = &daemon->servers[kind];
        int r = listener_new(daemon->loop, server->fd, server->guard, server->peers,
                             kind == SERVER_LOCK ? daemon->config.max_clients : daemon->config.admin_max_clients,
                             limit_names[kind], kind == SERVER_ADMIN, &server->listener);

        /* On failure they stay open: another try may want them. */
        if (r == 0)
                server->fd = server->guard = -1;
        return PASS(r);
}

/* The tables, the connections and the listeners of the image before this one. */
static int restore(Daemon *daemon)
{
        int r;

        collect_parts(daemon);
        daemon->parts.state_fd = daemon->state_fd;
        r = restore_tables(&daemon->parts, daemon->state, daemon->options->check_state);
        for (int i = 0; i < SERVERS; i++) {
                daemon->servers[i].fd = daemon->parts.fds[i];
                daemon->servers[i].guard = daemon->parts.guards[i];
                if (daemon->options->takeover && daemon->parts.fds[i] >= 0)
                        (void)listener_guard(daemon->parts.fds[i], &daemon->servers[i].guard);
                daemon->servers[i].path = daemon->parts.paths[i];
        }
        return PASS(r);
}

static int add_servers(Daemon *daemon, char **why)
{
        char **names = NULL;
        int n = sd_listen_fds_with_names(1, &names), r = 0;

        for (int i = 0; r == 0 && i < SERVERS; i++) {
                daemon->servers[i].fd = daemon->servers[i].guard = -1;
                r = peer_set_new(daemon->loop, i == SERVER_LOCK ? &rpc_lock_program : &rpc_admin_program, &daemon->services,
                                 &daemon->servers[i].peers);
        }
        if (r == 0 && daemon->options->takeover)
                r = takeover_translate(daemon->options->takeover, daemon->storage, &daemon->state, &daemon->state_fd);
        if (r == 0 && daemon->state)
                r = restore(daemon);
        for (int i = 0; r == 0 && i < SERVERS; i++)
                if (daemon->servers[i].fd < 0)
                        r = open_socket(daemon, (ServerKind)i, names, n < 0 ? 0 : n, why);
        for (int i = 0; r == 0 && i < SERVERS; i++)
                r = add_listener(daemon, (ServerKind)i);
        for (int i = 0; i < n; i++)
                free(names[i]);
        free(names);
        return PASS(r);
}

static int add_signals(Daemon *daemon)
{
        static const struct {
                int number;
                sd_event_signal_handler_t handler;
        } handlers[] = { { SIGTERM, on_stop }, { SIGINT, on_stop }, { SIGQUIT, on_stop }, { SIGHUP, on_reload }, { SIGUSR1, on_upgrade } };

        for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++) {
                int r = sd_event_add_signal(daemon->loop, &daemon->signals[i], handlers[i].number, handlers[i].handler, daemon);

                /* Before an upgrade: what came before the execution is not for the next image. */
                if (r >= 0)
                        r = sd_event_source_set_priority(daemon->signals[i], SD_EVENT_PRIORITY_IMPORTANT);
                if (r < 0)
                        return FAULT(r);
        }
        return 0;
}

static int add_timeout(Daemon *daemon)
{
        int r;

        if (daemon->options->timeout == 0)
                return 0;
        r = sd_event_add_time_relative(daemon->loop, &daemon->idle, CLOCK_MONOTONIC, daemon->options->timeout * 1000000ULL, 0, on_idle,
                                       daemon);
        if (r < 0)
                return FAULT(r);
        for (int i = 0; i < SERVERS; i++)
                peer_set_on_empty(daemon->servers[i].peers, on_empty, daemon);
        return 0;
}

static int set_up(Daemon *daemon, char **why)
{
        int r;

        r = config_load(daemon->config_path, daemon->options->config != NULL, daemon->options->session, &daemon->config, why);
        if (r < 0 && r != -ENOMEM && keeps_locks(daemon)) {
                log_error("the defaults apply: %s", *why ? *why : strerror(-r));
                r = config_load("", false, daemon->options->session, &daemon->config, why);
        }
        if (r == 0)
                r = sd_event_new(&daemon->loop);
        if (r >= 0)
                r = storage_new(&daemon->storage);
        if (r >= 0)
                r = lockspace_table_new(daemon->storage, &daemon->lockspaces);
        if (r >= 0)
                r = owner_table_new(&daemon->owners);
        if (r >= 0)
                r = reaper_new(daemon->loop, daemon->lockspaces, &daemon->reaper);
        if (r >= 0)
                r = apply_config(daemon, why);
        if (r < 0 && daemon->reaper && keeps_locks(daemon)) {
                log_error("the configuration does not apply: %s", *why ? *why : strerror(-r));
                r = 0;
        }
        daemon->services = (RpcServices){
                .storage = daemon->storage,
                .lockspaces = daemon->lockspaces,
                .owners = daemon->owners,
                .reaper = daemon->reaper,
                .upgrade = start_upgrade,
                .give_back = give_back,
                .stop = stop,
                .userdata = daemon,
        };
        if (r >= 0)
                r = sd_event_add_io(daemon->loop, &daemon->mounts, storage_watch_fd(daemon->storage), EPOLLPRI, on_mounts, daemon);
        /* A request that comes right behind a mount or an unmount is decided by the new table. */
        if (r >= 0)
                r = sd_event_source_set_priority(daemon->mounts, SD_EVENT_PRIORITY_IMPORTANT);
        if (r >= 0)
                r = add_signals(daemon);
        if (r >= 0)
                r = add_servers(daemon, why);
        if (r >= 0)
                r = upgrade_new(daemon->loop, daemon->parts.binary, daemon->options->argv, upgrade_failed, daemon, &daemon->upgrade);
        free(TAKE_PTR(daemon->parts.binary));
        if (r >= 0 && daemon->state)
                r = verify_new(daemon->loop, lockspace_leases(daemon->lockspaces), &daemon->verify);
        if (r >= 0)
                r = giveback_new(daemon->loop, daemon->options->argv, daemon->options->session, upgrade_failed, daemon, &daemon->giveback);
        if (r >= 0 && daemon->parts.ending)
                end_with_last_lease(daemon);
        if (r >= 0)
                r = add_timeout(daemon);
        return PASS(r < 0 ? r : 0);
}

static void tear_down(Daemon *daemon)
{
        /* It is lockd that closes the connections now: no reason to kill anybody. */
        if (daemon->reaper)
                reaper_set_policy(daemon->reaper, REAPER_HOLD);
        for (int i = 0; i < SERVERS; i++) {
                listener_free(daemon->servers[i].listener, daemon->servers[i].path);
                peer_set_free(daemon->servers[i].peers);
                free(daemon->servers[i].path);
        }
        for (size_t i = 0; i < sizeof(daemon->signals) / sizeof(daemon->signals[0]); i++)
                sd_event_source_disable_unref(daemon->signals[i]);
        sd_event_source_disable_unref(daemon->mounts);
        sd_event_source_disable_unref(daemon->idle);
        sd_event_source_disable_unref(daemon->ending);
        sd_event_source_disable_unref(daemon->quiet);
        verify_free(daemon->verify);
        upgrade_free(daemon->upgrade);
        giveback_free(daemon->giveback);
        reaper_release_all(daemon->reaper);
        reaper_free(daemon->reaper);
        lockspace_table_free(daemon->lockspaces);
        owner_table_free(daemon->owners);
        storage_free(daemon->storage);
        sd_event_unref(daemon->loop);
        config_done(&daemon->config);
        free(daemon->config_path);
        free(daemon->state);
        free(daemon->parts.unknown);
        free(daemon->parts.strays);
}

static int write_pid_file(const char *path)
{
        _cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);

        return fd < 0 || fchmod(fd, 0644) < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0 ? -errno : 0;
}

/* In the background nobody reads it; the caller's pipe would never see its end. */
static void leave_stderr(void)
{
        _cleanup_fd_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        if (null >= 0)
                (void)dup2(null, STDERR_FILENO);
}

static void tell_ready(const DaemonOptions *options, int code)
{
        char byte = (char)code;

        if (options->ready_fd >= 0 && write(options->ready_fd, &byte, 1) != 1)
                log_warning("the parent process is gone");
}

/* The trial of this image by the one that runs: everything but serving. The end of the process cleans up. */
static int check_state(Daemon *daemon)
{
        char *why = NULL;
        int r = daemon->state ? restore_stand_in(daemon->state) : -EINVAL;

        daemon->config_path = daemon->options->config ? strdup(daemon->options->config) : config_default_path(daemon->options->session);
        if (r == 0)
                r = daemon->config_path ? set_up(daemon, &why) : -ENOMEM;
        if (r < 0)
                fprintf(stderr, "%s\n", why ? why : strerror(-r));
        else {
                char proof[UPGRADE_PROOF_MAX];

                upgrade_proof(&daemon->parts.seen, proof);
                fprintf(stderr, "%s\n", proof);
        }
        return r < 0 ? EXIT_CONFIG : EXIT_OK;
}

int daemon_run(const DaemonOptions *options)
{
        Daemon daemon = { .options = options };
        _cleanup_free_ char *why = NULL;
        int r, code = EXIT_OK;

        fds_raise_limit();
        r = restore_take_state(&daemon.state, &daemon.state_fd);
        if (options->check_state)
                return check_state(&daemon);
        daemon.config_path = options->config ? strdup(options->config) : config_default_path(options->session);
        if (r == 0)
                r = daemon.config_path ? set_up(&daemon, &why) : -ENOMEM;
        if (r == 0 && options->pid_file) {
                r = write_pid_file(options->pid_file);
                if (r < 0 && keeps_locks(&daemon)) {
                        log_error("cannot write %s: %s", options->pid_file, strerror(-r));
                        r = 0; /* the number in it is right anyway */
                }
                if (r < 0 && asprintf(&why, "cannot write %s: %s", options->pid_file, strerror(-r)) < 0)
                        why = NULL;
        }
        if (r < 0 && keeps_locks(&daemon)) {
                /* To end would release every lock of this host. */
                log_error("lockd cannot serve yet: %s (%s); every lock stays, trying again", why ? why : strerror(-r), fault_trail());
                upgrade_again(daemon.state_fd, options->argv);
        }
        takeover_done(options->takeover);
        if (daemon.state_fd >= 0) {
                (void)unsetenv(RESTORE_TRIES_VARIABLE);
                daemon.state_fd = close_fd(daemon.state_fd);
                (void)close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
        }
        if (r < 0) {
                fprintf(stderr, "lockd: %s\n", why ? why : strerror(-r));
                if (!why)
                        fprintf(stderr, "lockd: %s\n", fault_trail());
                code = r == -EADDRINUSE ? EXIT_UNAVAILABLE : r == -EINVAL ? EXIT_CONFIG : EXIT_FAILED;
                tell_ready(options, code);
        } else {
                log_info("up%s: locks at %s, administration at %s", daemon.state ? " after an upgrade" : "", daemon.config.lock_socket,
                         daemon.config.admin_socket);
                tell_ready(options, EXIT_OK);
                if (options->background)
                        leave_stderr();
                (void)sd_notify(0, "READY=1");
                /* A loop that fails is no reason to let go of locks: it is entered again. */
                free(TAKE_PTR(daemon.state));
                while ((code = sd_event_loop(daemon.loop)) < 0) {
                        log_error("the event loop failed: %s", strerror(-code));
                        (void)poll(NULL, 0, LOOP_PAUSE_MSEC);
                }
                if (options->pid_file)
                        (void)unlink(options->pid_file);
        }
        tear_down(&daemon);
        return code;
}
