#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
# check-layers.sh: the tree passes, and each kind of violation, planted in a copy, is found where it is.

setup() {
    here=$BATS_TEST_DIRNAME
    copy=$BATS_TEST_TMPDIR/tree
    mkdir "$copy"
    cp -r "$here/../daemon" "$here/../protocol" "$here/../include" "$here/../client" "$copy"
}

# FILE LINE...: appends lines to a file of the copy.
plant() {
    local file=$copy/$1
    shift
    printf '%s\n' "$@" >>"$file"
}

# FILE TEXT: the check fails, and exactly one complaint names this file and says this.
found() {
    run "$here/check-layers.sh" "$copy"
    echo "$output"
    [ "$status" -eq 1 ]
    [ "$(grep -c '^check-layers: ' <<<"$output")" -eq 2 ] # the one and the sum
    grep -q "^check-layers: $1:.*$2" <<<"$output"
}

# What looks like a violation and is none.
innocent() {
    run "$here/check-layers.sh" "$copy"
    echo "$output"
    [ "$status" -eq 0 ]
}

@test "the tree passes" {
    run "$here/check-layers.sh"
    echo "$output"
    [ "$status" -eq 0 ]
    grep -qE '^lockspace +[0-9]+ +[0-9]+' <<<"$output"
    innocent
}

@test "json-c outside state.c" {
    plant daemon/snapshot.c '#include <json-c/json.h>'
    found daemon/snapshot.c 'json-c is known'
}

@test "a json-c call outside state.c" {
    plant daemon/log.c 'void *planted(void) { return json_object_new_object(); }'
    found daemon/log.c 'json-c is known'
}

@test "F_OFD_SETLK outside lockfile.c" {
    plant daemon/storage.c 'int planted(int fd, void *l) { return fcntl(fd, F_OFD_SETLK, l); }'
    found daemon/storage.c 'locks are set in lockfile.c only'
}

@test "F_SETLK outside lockfile.c" {
    plant daemon/daemon.c 'int planted(int fd, void *l) { return fcntl(fd, F_SETLK, l); }'
    found daemon/daemon.c 'locks are set in lockfile.c only'
}

@test "a lock that is waited for, even in lockfile.c" {
    plant daemon/lockfile.c 'int planted(int fd, void *l) { return fcntl(fd, F_OFD_SETLKW, l); }'
    found daemon/lockfile.c 'nothing waits for a lock'
}

@test "pidfd_send_signal outside reaper.c" {
    plant daemon/owner.c 'void planted(int fd) { pidfd_send_signal(fd, 9, NULL, 0); }'
    found daemon/owner.c 'only reaper.c signals owners'
}

@test "kill outside reaper.c" {
    plant daemon/rpc_admin.c 'void planted(int pid) { kill(pid, 9); }'
    found daemon/rpc_admin.c 'only reaper.c signals owners'
}

@test "pidfd_send_signal in upgrade.c, which may kill its child only" {
    plant daemon/upgrade.c 'void planted(int fd) { pidfd_send_signal(fd, 9, NULL, 0); }'
    found daemon/upgrade.c 'only reaper.c signals owners'
}

@test "exec outside upgrade.c and the holder" {
    plant daemon/daemon.c 'void planted(char **v) { execv("/bin/true", v); }'
    found daemon/daemon.c 'only upgrade.c, giveback.c and the holder execute'
}

@test "execveat and system count as exec" {
    plant daemon/main.c 'void planted(char **v) { execveat(3, "", v, v, 0); }'
    found daemon/main.c 'only upgrade.c, giveback.c and the holder execute'
    cp "$here/../daemon/main.c" "$copy/daemon/main.c"
    plant daemon/main.c 'int planted(void) { return system ("true"); }'
    found daemon/main.c 'only upgrade.c, giveback.c and the holder execute'
}

@test "XDR outside dispatch and rpc_*" {
    plant daemon/snapshot.c 'unsigned long planted(void *r) { return xdr_sizeof((void *)0, r); }'
    found daemon/snapshot.c 'XDR is known'
}

@test "rpc/rpc.h outside dispatch and rpc_*" {
    plant daemon/lockspace.h '#include <rpc/rpc.h>'
    found daemon/lockspace.h 'XDR is known'
}

@test "wire_ outside dispatch and rpc_*" {
    plant daemon/peer.c 'void planted(void *v) { wire_free((void *)0, v); }'
    found daemon/peer.c 'XDR is known'
}

@test "an include that points the wrong way" {
    plant daemon/lockspace.c '#include "reaper.h"'
    found daemon/lockspace.c 'lockspace must not know reaper'
}

@test "an include of a neighbour" {
    plant daemon/fds.c '#include "log.h"'
    found daemon/fds.c 'fds must not know log'
}

@test "an include of what is for others only" {
    plant daemon/peer.c '#include "storage.h"'
    found daemon/peer.c 'peer must not know storage, which is for lockspace'
}

@test "an include with a path or in angle brackets is seen, too" {
    plant daemon/owner.h '#include "../daemon/lease.h"'
    found daemon/owner.h 'owner must not know lease'
    cp "$here/../daemon/owner.h" "$copy/daemon/owner.h"
    plant daemon/owner.h ' #  include <lease.h>'
    found daemon/owner.h 'owner must not know lease'
}

@test "an include of nobody knows what" {
    plant daemon/owner.c '#include "magic.h"'
    found daemon/owner.c 'not in the table: magic.h'
}

@test "shared code that knows the daemon" {
    plant protocol/frame.c '#include "log.h"'
    found protocol/frame.c 'frame must not know log'
}

@test "a client that knows the daemon" {
    plant client/client.c '#include "lockspace.h"'
    found client/client.c "includes the daemon's lockspace.h"
}

@test "exit, abort and assert below main" {
    for call in 'exit(1)' 'abort()' 'assert(0)' '_exit(1)' 'err(1, "x")'; do
        cp "$here/../daemon/lease.c" "$copy/daemon/lease.c"
        plant daemon/lease.c "void planted(void) { $call; }"
        found daemon/lease.c 'nothing ends the process'
    done
}

@test "uthash without its leash" {
    plant daemon/lease.h '#include <uthash.h>'
    found daemon/lease.h 'include hash.h'
}

@test "events where they are not known" {
    plant daemon/lockspace.c 'void planted(void *s) { sd_event_source_unref(s); }'
    found daemon/lockspace.c 'events are known'
}

@test "a file without the SPDX line" {
    sed -i 1d "$copy/daemon/fds.c"
    found daemon/fds.c 'the SPDX line is missing'
}

@test "a file without a place in the table" {
    echo '/* SPDX-License-Identifier: LGPL-2.1-or-later */' >"$copy/daemon/extra.c"
    found daemon/extra.c 'has no place in the table'
}

@test "a place in the table without a file" {
    rm "$copy/daemon/fault.c" "$copy/daemon/fault.h"
    run "$here/check-layers.sh" "$copy"
    [ "$status" -eq 1 ]
    grep -q 'fault: is in the table and has no file' <<<"$output"
}

@test "comments, strings and longer names are no violations" {
    plant daemon/lease.c '/* exit(1), kill(2), F_OFD_SETLK,' '   json_object_put(), xdr_free() */' \
        '// abort() execv() "' 'const char *planted = "assert(0) \" wire_free() kill(1)"; char quote = '\''"'\'';' \
        'void reaper_kill(void); void sd_exit(void); void on_exit_x(void);'
    innocent
}

@test "a ceiling that is passed is shown and is no failure" {
    for i in $(seq 400); do plant daemon/config.c "/* $i */"; done
    innocent
    grep -qE '^config +[0-9]+ +220 over by [0-9]+' <<<"$output"
}
