#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What lockd is for, in a few seconds: 'make demo'. Everything happens in a folder of its own; no libvirt is needed, small
# programs stand in for the VMs. Ends with 0 only when each step went as it should.
set -euo pipefail

BUILD=${BUILD:-$(dirname "$(readlink -f "$0")")/../build}
LOCKD=${LOCKD:-$BUILD/lockd}
LOCKD_ADMIN=${LOCKD_ADMIN:-$BUILD/lockd-admin}
dir=$(mktemp -d -t lockd-demo.XXXX)
export LOCKD_ADMIN_SOCKET=$dir/admin
image=$dir/disk.img
children=()

clean_up() {
    local pid
    for pid in "${children[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    wait
    rm -rf "$dir"
}
trap clean_up EXIT

bold='' plain=''
if [ -t 1 ]; then
    bold=$'\033[1m' plain=$'\033[0m'
fi

say() {
    printf '\n%s\n' "$bold$*$plain"
}

die() {
    echo "demo: this is not as it should be: $*" >&2
    sed 's/^/lockd: /' "$dir/log" >&2 || true
    exit 1
}

# wait_for COMMAND...: at most 5 seconds.
wait_for() {
    local end=$((SECONDS + 5))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "waited in vain for: $*"
        sleep 0.01
    done
}

# expect CODE TEXT PROGRAM ARGUMENT...: shows a command, its output and its exit code, which must be these.
expect() {
    local code=0 output wanted=$1 text=$2
    shift 2
    echo "\$ ${1##*/} ${*:2}"
    output=$(timeout 10 "$@" 2>&1 </dev/null) || code=$?
    [ -z "$output" ] || printf '    %s\n' "${output//$'\n'/$'\n'    }"
    [ "$code" = 0 ] || echo "    (exit code $code)"
    [ "$code" = "$wanted" ] || die "exit code $code instead of $wanted"
    [[ $output == *"$text"* ]] || die "'$text' is missing"
}

# start_vm NAME UUID: a VM that wants the image; it runs until it is killed or until its stdin, $dir/NAME, is closed.
start_vm() {
    mkfifo "$dir/$1"
    echo "\$ vm lock $* $image &"
    "$BUILD/tests/vm" "$dir/lock" "$@" "$image" <"$dir/$1" >"$dir/$1.out" 2>&1 {switch}<&- &
    vm=$!
    children+=("$vm")
    exec {switch}>"$dir/$1"
    wait_for test -s "$dir/$1.out"
    sed 's/^/    /' "$dir/$1.out"
    grep -qx granted "$dir/$1.out" || die "'$1' did not get the image"
}

nothing_locked() {
    [ "$("$LOCKD_ADMIN" list | wc -l)" = 1 ]
}

for program in "$LOCKD" "$LOCKD_ADMIN" "$BUILD/tests/vm"; do
    [ -x "$program" ] || { echo "demo: $program is missing: run 'make demo'" >&2; exit 1; }
done
switch=9 # the next one takes its place
exec 9</dev/null

say "lockd starts, with sockets in a folder of its own: $dir"
cat >"$dir/lockd.conf" <<END
lock_socket = "$dir/lock"
admin_socket = "$dir/admin"
END
echo "\$ lockd -f lockd.conf &"
"$LOCKD" -f "$dir/lockd.conf" -v </dev/null >"$dir/log" 2>&1 &
lockd=$!
children+=("$lockd")
wait_for "$LOCKD_ADMIN" list
touch "$image"

say "A VM called 'web' starts with the image disk.img. lockd locks it for the VM's process."
start_vm web 6f6b5a2e-7a0c-4c3e-9d5b-000000000001
web=$vm

say "A second VM, 'copy', wants the same image. It is refused, and told who has it."
expect 75 "is locked by VM 'web' (uuid 6f6b5a2e-7a0c-4c3e-9d5b-000000000001, pid $web)" \
    "$BUILD/tests/vm" "$dir/lock" copy 6f6b5a2e-7a0c-4c3e-9d5b-000000000002 "$image"

say "Who holds what, for the administrator (also as --json):"
expect 0 web "$LOCKD_ADMIN" list

say "Taking the lock away from a VM that lives is refused ..."
expect 75 "is alive" "$LOCKD_ADMIN" release "$image" --owner web
say "... unless the VM is killed first. The image is free when the VM is dead, not before."
expect 0 "released: 1" "$LOCKD_ADMIN" release "$image" --owner web --kill
if wait "$web"; then
    die "'web' was not killed"
fi

say "Now 'copy' gets the image."
start_vm copy 6f6b5a2e-7a0c-4c3e-9d5b-000000000002
expect 0 copy "$LOCKD_ADMIN" list

say "'copy' shuts down. Its lock goes with it; nobody has to release it."
exec {switch}>&-
wait "$vm" || die "'copy' ended with $?"
wait_for nothing_locked
expect 0 "" "$LOCKD_ADMIN" list

say "Nothing is locked, so lockd can end."
expect 0 "" "$LOCKD_ADMIN" stop
wait "$lockd" || die "lockd ended with $?"
[ ! -e "$dir/lock" ] || die "its socket is still there"

say "That is all. README says how to use lockd with libvirt."
