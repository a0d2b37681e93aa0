#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# First process of one "host" of the tests, in namespaces of its own: host.sh DIRECTORY NAME
# Its /etc/libvirt, /run, /var/lib/libvirt and /var/log/libvirt are folders of DIRECTORY, so that tests can read and change them.
# When it is killed, all processes of the host die: a power cut.
set -euo pipefail
dir=$1 name=$2

# /proc is still the one of the tests, so this is our pid as they see it.
read -r pid _ </proc/self/stat
mount -t proc proc /proc
hostname "$name"
ip link set lo up

mkdir -p "$dir"/{etc,run/lock,run/work,lib,log}
cp -a /etc/libvirt/. "$dir/etc"
# Networks and packet filters would want dnsmasq and iptables.
rm -rf "$dir/etc/qemu/networks" "$dir/etc/nwfilter"
mount --bind "$dir/etc" /etc/libvirt
mount --bind "$dir/lib" /var/lib/libvirt
mount --bind "$dir/log" /var/log/libvirt
# All hosts see the work folder.
mount --bind "$WORK" "$dir/run/work"
mount --rbind "$dir/run" /run

echo "$pid"
exec >&2

# bash, unlike sleep, also reaps the orphans of the namespace: libvirt waits for a QEMU to be gone, not for a zombie.
sleep infinity &
wait
