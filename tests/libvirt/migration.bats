#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

setup() {
    host_up one
    host_up two
    disk=$(image disk)
}

# migrate GUEST: from host one to host two, live, over sockets in a folder that both see.
migrate() {
    virsh migrate --live --p2p --unsafe "$1" \
        "qemu+unix:///system?socket=$BATS_TEST_TMPDIR/two/run/libvirt/libvirt-sock" \
        --migrateuri "unix://$BATS_TEST_TMPDIR/migration.sock"
}

# check_migration LOCKED-FILE: its lock moves with the guest, and no third guest gets it on either host.
check_migration() {
    local host
    for host in one two; do
        HOST=$host guest rival "$disk"
    done
    guest alpha "$disk"
    virsh start alpha
    assert_held "$1" exclusive alpha
    # The daemon of another host knows no names.
    HOST=two refused '' virsh start rival

    migrate alpha
    HOST=two assert_state alpha running
    HOST=two assert_held "$1" exclusive alpha
    assert_nothing_held
    HOST=two refused alpha virsh start rival
    refused '' virsh start rival

    HOST=two virsh destroy alpha
    virsh start rival
    assert_held "$1" exclusive rival
    HOST=two assert_nothing_held
}

@test "live migration: the lock of an image moves along" {
    check_migration "$disk"
}

@test "live migration: the lock of a lease file moves along" {
    leases=$BATS_TEST_TMPDIR/leases
    for host in one two; do
        HOST=$host use_lockspace "$leases"
    done
    RESOURCE=$(lease_name "$disk")
    check_migration "$leases/$RESOURCE"
}
