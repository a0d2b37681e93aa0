#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
load lib

# The host starts with stock virtlockd, from a copy that can be replaced.
setup() {
    [ "$LOCK_DAEMON" = lockd ] || return 0
    binary=$BATS_TEST_TMPDIR/virtlockd
    cp "$(command -v virtlockd)" "$binary"
    host_boot one
    host_configure lockd
    start_process daemon "$binary" -f /etc/libvirt/virtlockd.conf
    wait_until 10 on one virt-admin -c virtlockd:///system srv-list
    libvirtd_start
}

# As a package manager would: never written over, always replaced.
replace_binary() {
    cp "$1" "$binary.new"
    mv "$binary.new" "$binary"
}

take_over() {
    replace_binary "$BUILD/lockd"
    signal_process daemon USR1
    wait_until 10 lockd_admin list
}

@test "lockd takes over from virtlockd under running guests, and gives back" {
    lockd_only "it is what takes over"
    disk=$(image disk)
    common=$(image common)
    guest alpha "$disk"
    guest beta "$common,shareable"
    guest gamma "$common,shareable"
    guest delta "$disk"
    virsh start alpha
    virsh start beta
    virsh start gamma
    pid=$(pid_of alpha)

    run lockd_admin takeover --check
    [ "$status" -eq 75 ]
    [[ $output == *"has not been replaced"* ]]
    replace_binary "$BUILD/lockd"
    lockd_admin takeover --check
    take_over
    assert_held "$disk" exclusive alpha
    assert_held "$common" shared beta gamma
    refused alpha virsh start delta
    ln -s "$disk" "$disk.link"
    guest epsilon "$disk.link"
    refused alpha virsh start epsilon

    virsh suspend alpha
    assert_free "$disk"
    virsh resume alpha
    assert_held "$disk" exclusive alpha
    on one kill -KILL "$(pid_of gamma)"
    wait_until 10 assert_held "$common" shared beta

    # libvirt's own new connections, and a new libvirtd.
    libvirtd_stop TERM
    libvirtd_start
    refused alpha virsh start delta

    cp "$(command -v virtlockd)" "$BATS_TEST_TMPDIR/virtlockd.stock"
    lockd_admin upgrade --to-virtlockd "$BATS_TEST_TMPDIR/virtlockd.stock"
    wait_until 10 on one virt-admin -c virtlockd:///system srv-list
    [ "$(kernel_lock "$disk")" = exclusive ]
    [ "$(kernel_lock "$common")" = shared ]
    run virsh start delta
    [ "$status" -ne 0 ]
    [[ $output == *"is locked"* ]]
    [ "$(pid_of alpha)" = "$pid" ]
    virsh destroy alpha
    virsh start delta
    [ "$(kernel_lock "$disk")" = exclusive ]
    virsh destroy beta
    [ "$(kernel_lock "$common")" = none ]
}

@test "lockd takes over indirect leases, and they end with their guest" {
    lockd_only "it is what takes over"
    folder=$BATS_TEST_TMPDIR/leases
    mkdir "$folder"
    disk=$(image disk)
    guest alpha "$disk"
    guest beta "$disk"
    use_lockspace "$folder"
    virsh start alpha
    lease=$(lease_name "$disk")

    take_over
    RESOURCE=$lease assert_held "$folder/$lease" exclusive alpha
    refused alpha virsh start beta
    virsh destroy alpha
    wait_until 10 test ! -e "$folder/$lease"
    virsh start beta
    RESOURCE=$lease assert_held "$folder/$lease" exclusive beta
}
