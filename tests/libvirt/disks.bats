#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

# attach GUEST IMAGE TARGET: a SCSI disk, because it can be unplugged without the help of a guest's system.
attach() {
    disk_xml "$2" "$3" >"$BATS_TEST_TMPDIR/$1-$3.xml"
    virsh attach-device "$1" "$BATS_TEST_TMPDIR/$1-$3.xml"
}

detach() { # GUEST TARGET
    virsh detach-device "$1" "$BATS_TEST_TMPDIR/$1-$2.xml"
}

@test "a disk is locked when it is plugged in and free when it is unplugged" {
    disk=$(image disk)
    extra=$(image extra)
    guest alpha "$disk"
    guest beta
    virsh start alpha
    virsh start beta

    attach alpha "$extra" sda
    assert_held "$extra" exclusive alpha
    assert_held "$disk" exclusive alpha
    refused alpha attach beta "$extra" sda

    detach alpha sda
    assert_free "$extra"
    assert_held "$disk" exclusive alpha
    attach beta "$extra" sda
    assert_held "$extra" exclusive beta
}

@test "a disk of another guest cannot be plugged in" {
    disk=$(image disk)
    extra=$(image extra)
    guest alpha "$disk"
    guest beta "$extra"
    virsh start alpha
    virsh start beta

    refused beta attach alpha "$extra" sda
    assert_held "$extra" exclusive beta
    assert_state alpha running
}

@test "plugging the same disk in twice is refused and does not unlock it" {
    disk=$(image disk)
    extra=$(image extra)
    guest alpha "$disk"
    virsh start alpha

    attach alpha "$extra" sda
    refused alpha attach alpha "$extra" sdb
    assert_held "$extra" exclusive alpha
    assert_held "$disk" exclusive alpha
}

@test "locks follow an external snapshot and its commit" {
    disk=$(image disk qcow2)
    overlay=$BATS_TEST_TMPDIR/overlay.img
    guest alpha "$disk,qcow2"
    guest beta
    virsh start alpha
    virsh start beta

    virsh snapshot-create-as alpha --disk-only --no-metadata --diskspec "vda,file=$overlay"
    assert_held "$overlay" exclusive alpha
    assert_free "$disk"

    virsh blockcommit alpha vda --active --wait --pivot
    assert_held "$disk" exclusive alpha
    assert_free "$overlay"
    refused alpha attach beta "$disk,qcow2" sda
}
