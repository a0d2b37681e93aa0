#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

# A process that executed anew has the same pid, but its stack elsewhere.
daemon_stack() {
    on one grep -F '[stack]' "/proc/$(cat "$BATS_TEST_TMPDIR/one/run/daemon.test-pid")/maps"
}

daemon_stack_moved() {
    [ "$(daemon_stack)" != "$1" ]
}

daemon_upgrade() {
    local before
    before=$(daemon_stack)
    signal_process daemon USR1
    wait_until 10 daemon_stack_moved "$before"
}

@test "locks stay when the daemon is upgraded under running guests" {
    disk=$(image disk)
    other=$(image other)
    guest alpha "$disk"
    guest beta "$disk"
    guest gamma "$other"
    virsh start alpha
    virsh start gamma

    daemon_upgrade
    assert_held "$disk" exclusive alpha
    assert_held "$other" exclusive gamma
    refused alpha virsh start beta
    virsh suspend alpha
    assert_free "$disk"
    virsh resume alpha
    assert_held "$disk" exclusive alpha

    daemon_upgrade
    virsh destroy alpha
    assert_free "$disk"
    on one kill -KILL "$(pid_of gamma)"
    wait_until 10 assert_free "$other"
    virsh start beta
    assert_held "$disk" exclusive beta
}

@test "no guest starts while no daemon answers" {
    disk=$(image disk)
    guest alpha "$disk"

    signal_process daemon KILL
    wait_until 10 process_gone daemon
    run virsh start alpha
    [ "$status" -ne 0 ]
    [[ $output == *"Failed to connect socket to '"*"/virtlockd-sock'"* ]]
    assert_state alpha "shut off"

    daemon_start
    virsh start alpha
    assert_held "$disk" exclusive alpha
}

@test "a daemon that is told to stop says for whom it goes on holding, and ends when nothing is held" {
    lockd_only "it stops, and every guest is killed"
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    signal_process daemon TERM
    wait_until 10 grep -q alpha "$BATS_TEST_TMPDIR/one/log/daemon.log"
    assert_held "$disk" exclusive alpha
    assert_state alpha running
    refused alpha virsh start beta

    virsh destroy alpha
    wait_until 10 process_gone daemon
    [ "$(kernel_lock "$disk")" = none ]
}

@test "an administrator takes a disk away from a guest: with --kill only, while the guest lives" {
    lockd_only "it has no such command"
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    run lockd_admin release "$disk" --owner "$(uuid_of alpha)"
    [ "$status" -eq 75 ]
    assert_state alpha running
    assert_held "$disk" exclusive alpha

    lockd_admin release "$disk" --owner "$(uuid_of alpha)" --kill
    assert_free "$disk"
    wait_until 10 assert_state alpha "shut off"
    virsh start beta
    assert_held "$disk" exclusive beta
}
