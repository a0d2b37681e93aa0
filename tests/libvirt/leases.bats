#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

@test "indirect leases: the lease file is locked instead of the image, and gone afterwards" {
    disk=$(image disk)
    leases=$BATS_TEST_TMPDIR/leases
    name=$(lease_name "$disk")
    guest alpha "$disk"
    guest beta "$disk"
    use_lockspace "$leases"

    virsh start alpha
    RESOURCE=$name assert_held "$leases/$name" exclusive alpha
    assert_free "$disk"
    refused alpha virsh start beta

    virsh suspend alpha
    [ ! -e "$leases/$name" ]
    virsh resume alpha
    RESOURCE=$name assert_held "$leases/$name" exclusive alpha

    virsh destroy alpha
    wait_until 10 test ! -e "$leases/$name"
    virsh start beta
    RESOURCE=$name assert_held "$leases/$name" exclusive beta
}

@test "indirect leases can be shared" {
    disk=$(image disk)
    leases=$BATS_TEST_TMPDIR/leases
    name=$(lease_name "$disk")
    guest alpha "$disk,shareable"
    guest beta "$disk,shareable"
    use_lockspace "$leases"

    virsh start alpha
    virsh start beta
    RESOURCE=$name assert_held "$leases/$name" shared alpha beta

    virsh destroy alpha
    RESOURCE=$name assert_held "$leases/$name" shared beta
    virsh destroy beta
    wait_until 10 test ! -e "$leases/$name"
}

@test "<lease> elements: a lease file that somebody made, locked beside the disk" {
    disk=$(image disk)
    other=$(image other)
    mkdir -p "$BATS_TEST_TMPDIR/leases/space"
    touch "$BATS_TEST_TMPDIR/leases/space/license"
    lease=$BATS_TEST_TMPDIR/leases/space/license
    element="<lease><lockspace>space</lockspace><key>license</key><target path='$BATS_TEST_TMPDIR/leases' offset='0'/></lease>"
    guest alpha "$disk" "$element"
    guest beta "$other" "$element"
    use_lockspace "$BATS_TEST_TMPDIR/leases/space"

    virsh start alpha
    RESOURCE=license assert_held "$lease" exclusive alpha
    refused alpha virsh start beta

    virsh destroy alpha
    RESOURCE=license assert_free "$lease"
    [ -e "$lease" ]
    virsh start beta
    RESOURCE=license assert_held "$lease" exclusive beta
}
