#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Checks the checkers: each must fail when what it looks for is not so.
load lib

setup() {
    :
}

# fails WITH-MESSAGE COMMAND...
fails() {
    local message=$1
    shift
    run "$@"
    if [ "$status" -eq 0 ] || [[ $output != *"$message"* ]]; then
        fail "expected '$message' from: $*" "got: $output"
    fi
}

@test "the suite notices when nobody locks" {
    host_up one nop
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    fails "the kernel's lock is 'none'" assert_held "$disk" exclusive alpha
    fails "not refused" refused alpha virsh start beta
}

@test "the suite notices a lock that should be gone, of the wrong kind or for another reason" {
    host_up one
    disk=$(image disk)
    guest alpha "$disk"
    virsh start alpha

    fails "the kernel's lock is 'exclusive'" assert_free "$disk"
    fails "not 'shared'" assert_held "$disk" shared alpha
    fails "refused for another reason" refused alpha virsh start alpha
}

@test "the suite notices a wrong holder and a daemon that does not answer" {
    lockd_only "nothing says who holds a lock"
    host_up one
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha
    cp "$BATS_TEST_TMPDIR"/one/run/libvirt/qemu/{alpha,beta}.pid

    fails "the daemon lists" assert_held "$disk" exclusive beta
    fails "does not name 'gamma'" refused gamma virsh start beta
    fails "lists" assert_nothing_held

    # No answer is not the answer "nothing".
    virsh destroy alpha
    assert_free "$disk"
    signal_process daemon KILL
    fails "lockd-admin list" assert_free "$disk"
    fails "lockd-admin list" assert_nothing_held
}
