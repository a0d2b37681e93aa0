#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Runs stock libvirtd, virsh and QEMU against the lock daemon: tests/libvirt/run.sh [FILE.bats...]
# LOCK_DAEMON=lockd (default) takes build/lockd (or BUILD), LOCK_DAEMON=virtlockd the stock daemon.
#
# Everything happens in private namespaces: nothing is left on the machine, and every process ends with this script.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
export LOCK_DAEMON=${LOCK_DAEMON:-lockd}
BUILD=$(readlink -f "${BUILD:-$here/../../build}")
export BUILD LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "tests/libvirt: $*" >&2
    exit 1
}

if [ "${1-}" != --inside ]; then
    [ "$(id -u)" = 0 ] || die "must be run as root"
    for tool in bats jq libvirtd virsh virtlockd virt-admin qemu-img qemu-system-x86_64 unshare nsenter ip; do
        command -v "$tool" >/dev/null || die "$tool is missing; 'make deps-libvirt' installs it"
    done
    case $LOCK_DAEMON in
    lockd)
        for tool in lockd lockd-admin; do
            [ -x "$BUILD/$tool" ] || die "$BUILD/$tool is missing; run 'make' first"
        done ;;
    virtlockd) ;;
    *) die "LOCK_DAEMON is lockd or virtlockd, not '$LOCK_DAEMON'" ;;
    esac
    exec "$here/../isolate" "$here/run.sh" --inside "$@"
fi
shift

# No cgroups: without systemd libvirt would create groups in the machine's own hierarchy.
while mountpoint -q /sys/fs/cgroup; do
    umount --recursive /sys/fs/cgroup
done
# QEMU's capabilities, probed once for all tests.
mount -t tmpfs tmpfs /var/cache/libvirt
export TMPDIR=$WORK HOME=$WORK BATS_TEST_TIMEOUT=60

if [ $# -eq 0 ]; then
    set -- "$here"
fi
bats --tap "$@" | awk '
    { print; fflush() }
    /^ok/ { passed++ }
    /^ok.* # skip/ { passed--; skipped++ }
    /^not ok/ { failed++ }
    END { printf "# %d passed, %d failed, %d skipped\n", passed, failed, skipped }'
