#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

@test "suspend gives the disk back, resume takes it again" {
    disk=$(image disk)
    guest alpha "$disk"
    virsh start alpha

    virsh suspend alpha
    assert_free "$disk"
    virsh resume alpha
    assert_held "$disk" exclusive alpha
}

@test "resume is refused while another guest has the disk" {
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    virsh start alpha

    virsh suspend alpha
    virsh start beta
    assert_held "$disk" exclusive beta
    refused beta virsh resume alpha
    assert_state alpha paused
    assert_held "$disk" exclusive beta

    virsh destroy beta
    virsh resume alpha
    assert_held "$disk" exclusive alpha
}

# Stock libvirt does not give the first disk back when the second one is refused, and virtlockd then refuses the first.
@test "a resume that was refused half-way works once the other guest is gone" {
    lockd_only "the first disk stays locked, resume fails for ever"
    disk=$(image disk)
    busy=$(image busy)
    guest alpha "$disk" "$busy"
    guest beta "$busy"
    virsh start alpha

    virsh suspend alpha
    virsh start beta
    refused beta virsh resume alpha
    assert_state alpha paused
    MARK=" unconfirmed" assert_held "$disk" exclusive alpha
    assert_held "$busy" exclusive beta
    refused beta virsh resume alpha

    virsh destroy beta
    virsh resume alpha
    assert_state alpha running
    assert_held "$disk" exclusive alpha
    assert_held "$busy" exclusive alpha

    virsh suspend alpha
    assert_free "$disk"
    assert_free "$busy"
}
