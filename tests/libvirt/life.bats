#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

@test "save gives the disk back, restore takes it again" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    virsh save alpha "$BATS_TEST_TMPDIR/saved"
    assert_free "$disk"

    virsh start beta
    refused beta virsh restore "$BATS_TEST_TMPDIR/saved"
    assert_held "$disk" exclusive beta

    virsh destroy beta
    virsh restore "$BATS_TEST_TMPDIR/saved"
    assert_state alpha running
    assert_held "$disk" exclusive alpha
}

@test "a killed QEMU's disk is free once it is dead" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    on one kill -KILL "$(pid_of alpha)"
    wait_until 10 assert_free "$disk"
    wait_until 10 assert_state alpha "shut off"
    virsh start beta
    assert_held "$disk" exclusive beta
}

@test "locks stay when libvirtd is restarted" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    for signal in TERM KILL; do
        libvirtd_stop "$signal"
        assert_held "$disk" exclusive alpha
        libvirtd_start
        assert_held "$disk" exclusive alpha
        assert_state alpha running
        refused alpha virsh start beta
    done

    virsh destroy alpha
    assert_free "$disk"
    virsh start beta
    assert_held "$disk" exclusive beta
}
