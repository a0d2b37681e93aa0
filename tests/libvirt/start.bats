#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

@test "a running guest holds its disk; a second one is refused until it is gone" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"

    virsh start alpha
    assert_held "$disk" exclusive alpha

    refused alpha virsh start beta
    assert_state beta "shut off"
    assert_state alpha running
    assert_held "$disk" exclusive alpha

    virsh destroy alpha
    assert_free "$disk"
    virsh start beta
    assert_held "$disk" exclusive beta
}

@test "shareable disks are shared, but not with a guest that wants the disk for itself" {
    disk=$(image disk)
    guest alpha "$disk,shareable"
    guest beta "$disk,shareable"
    guest gamma "$disk"

    virsh start alpha
    virsh start beta
    assert_held "$disk" shared alpha beta
    refused alpha virsh start gamma

    virsh destroy alpha
    assert_held "$disk" shared beta
    refused beta virsh start gamma

    virsh destroy beta
    virsh start gamma
    assert_held "$disk" exclusive gamma
    refused gamma virsh start alpha
}

@test "read-only disks are not locked" {
    disk=$(image disk)
    guest alpha "$disk,readonly"
    guest beta "$disk,readonly"

    virsh start alpha
    virsh start beta
    assert_free "$disk"
}

@test "start --paused holds nothing until resume" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"

    virsh start --paused alpha
    assert_free "$disk"
    virsh resume alpha
    assert_held "$disk" exclusive alpha
    refused alpha virsh start beta
}

@test "a start refused at its second disk leaves nothing locked" {
    disk=$(image disk)
    busy=$(image busy)
    guest alpha "$busy"
    guest beta "$disk" "$busy"

    virsh start alpha
    refused alpha virsh start beta
    assert_free "$disk"
    assert_held "$busy" exclusive alpha

    virsh destroy alpha
    virsh start beta
    assert_held "$disk" exclusive beta
    assert_held "$busy" exclusive beta
}

@test "an image under another name is the same image" {
    lockd_only "it locks names, and grants all three"
    disk=$(image disk)
    ln -s "$disk" "$BATS_TEST_TMPDIR/soft.img"
    ln "$disk" "$BATS_TEST_TMPDIR/hard.img"
    guest alpha "$disk"
    guest beta "$BATS_TEST_TMPDIR/soft.img"
    guest gamma "$BATS_TEST_TMPDIR/hard.img"

    virsh start alpha
    refused alpha virsh start beta
    refused alpha virsh start gamma
    assert_held "$disk" exclusive alpha

    virsh destroy alpha
    virsh start gamma
    refused gamma virsh start beta
    RESOURCE=$BATS_TEST_TMPDIR/hard.img assert_held "$disk" exclusive gamma
}
