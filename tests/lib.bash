# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2120 # variables and functions for the files that load this one
#
# Shared by the .bats files: a daemon of the test's own, VM stand-ins, and what is asserted. Run them under tests/isolate:
# /run, and with it the sockets' default places, is the test file's own. $T is the folder of one test.

bats_require_minimum_version 1.5.0

BUILD=${BUILD:-$(readlink -f "$BATS_TEST_DIRNAME/../build")}
LOCKD=${LOCKD:-$BUILD/lockd}
LOCKD_ADMIN=${LOCKD_ADMIN:-${LOCKD%/*}/lockd-admin}
export BATS_TEST_TIMEOUT=30 LC_ALL=C

LOCK_SOCKET=/run/libvirt/virtlockd-sock
ADMIN_SOCKET=/run/libvirt/virtlockd-admin-sock

setup() {
    T=${WORK:?is not set: run this under tests/isolate}/$BATS_TEST_NUMBER
    mkdir "$T"
    started=()
    : >"$T/lockd.conf"
    mkfifo "$T/open"
    # A stdin that never ends, for stand-ins that end by a signal.
    exec {open_stdin}<>"$T/open"
}

teardown() {
    local pid log
    for pid in "${started[@]}"; do
        # In its own time, and with it what it started.
        kill -KILL "$pid" 2>/dev/null || true
    done
    for pid in "${started[@]}"; do
        wait_until is_gone "$pid"
    done
    if [ -z "${BATS_TEST_COMPLETED-}" ]; then
        for log in "$T"/*log "$T"/*.out; do
            [ -s "$log" ] && sed "s|^|${log##*/}: |" "$log" | tail -n 20
        done
    fi
    rm -rf /run/libvirt "$T"
}

# --- helpers

fail() {
    printf '%s\n' "$@" >&2
    return 1
}

# wait_until COMMAND...: for what no event tells; fails after 10 seconds.
wait_until() {
    local end=$((SECONDS + 10))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain for: $*" || return
        sleep 0.01
    done
}

# A zombie is gone, too.
is_gone() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    [[ ${stat##*) } == [ZX]* ]]
}

is_alive() {
    ! is_gone "$1"
}

contains() { # TEXT PIECE...
    local text=$1 piece
    shift
    for piece; do
        [[ $text == *"$piece"* ]] || fail "'$piece' is not in:" "$text" || return
    done
}

lacks() { # TEXT PIECE...
    local text=$1 piece
    shift
    for piece; do
        [[ $text != *"$piece"* ]] || fail "'$piece' is in:" "$text" || return
    done
}

equals() { # TEXT EXPECTED
    [ "$1" = "$2" ] || fail "expected: $2" "     got: $1"
}

milliseconds() {
    echo $((${EPOCHREALTIME/./} / 1000))
}

# conf LINE...: the configuration that lockd_start uses.
conf() {
    printf '%s\n' "$@" >"$T/lockd.conf"
}

# --- processes

# spawn NAME COMMAND...: in the background, stdout in $T/NAME.out, stderr in $T/NAME.log, pid in $spawned. It lives until
# the end of the test.
spawn() {
    local name=$1
    shift
    # Here, not by the child: what an earlier one of that name said must not be taken for its words.
    : >"$T/$name.out"
    : >"$T/$name.log"
    # fd 3 is bats' own: who keeps it open keeps bats waiting.
    "$@" <&"$open_stdin" >"$T/$name.out" 2>"$T/$name.log" 3>&- &
    spawned=$!
    started+=("$spawned")
}

# ends_with CODE PID: a child ends by itself, with that exit code.
ends_with() {
    local code=0
    wait_until is_gone "$2" || return
    wait "$2" || code=$?
    [ "$code" = "$1" ] || fail "ended with $code, not with $1"
}

# --- the daemon

# lockd_start [ARGUMENT...]: $lockd is its pid, its log $T/lockd.log. Returns when it answers.
lockd_start() {
    spawn lockd "$LOCKD" -f "$T/lockd.conf" "$@"
    lockd=$spawned
    wait_until lockd_answers
}

lockd_answers() { # [ADMIN-SOCKET]
    "$LOCKD_ADMIN" -T 2 -s "${1:-$ADMIN_SOCKET}" list
}

lockd_admin() {
    timeout 15 "$LOCKD_ADMIN" "$@" 3>&-
}

expect_log() { # TEXT [FILE]
    wait_until grep -qF -- "$1" "${2:-$T/lockd.log}"
}

# --- VM stand-ins

uuid_of() { # NAME
    local hex
    hex=$(printf %s "$1" | md5sum)
    echo "${hex:0:8}-${hex:8:4}-4${hex:13:3}-8${hex:17:3}-${hex:20:12}"
}

# vm NAME [OPTION...] RESOURCE...: must be granted; $vm is its pid.
vm() {
    vm_try "$@"
    grep -qx granted "$T/vm.$1.out" || fail "$1: $(cat "$T/vm.$1".{out,log})"
}

# The same, granted or not: what it said is in $T/vm.NAME.out.
vm_try() {
    local name=$1
    shift
    spawn "vm.$name" "$BUILD/tests/vm" "${VM_SOCKET:-$LOCK_SOCKET}" "$name" "$(uuid_of "$name")" "$@"
    vm=$spawned
    wait_until vm_has_answer "$name" "$vm"
}

vm_has_answer() { # NAME PID
    [ -s "$T/vm.$1.out" ] || is_gone "$2"
}

# refused HOLDER VM-ARGUMENT...: the stand-in is refused, and the answer names the holder.
refused() {
    local holder=$1
    shift
    vm_try "$@"
    ends_with 75 "$vm" || return
    contains "$(cat "$T/vm.$1.out")" "is locked" "VM '$holder'" "$(uuid_of "$holder")"
}

# image NAME: makes one and prints its path.
image() {
    echo data >"$T/$1"
    echo "$T/$1"
}

nothing_listed() {
    [ "$("$LOCKD_ADMIN" list | wc -l)" = 1 ]
}
