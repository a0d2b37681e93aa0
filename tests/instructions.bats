#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
# How many instructions lockd itself spends on a call, kernel and libsystemd apart: fixed scripts of calls under callgrind,
# against the numbers in tests/instructions. These do not depend on the machine's mood, only a little on compiler and libc.
# Who makes lockd faster, or slower for a good reason, writes the new numbers there.

TOLERANCE=4 # per cent

setup_file() {
    export T=$WORK/instructions
    mkdir -p "$T/tmpfs"
    mount -t tmpfs tmpfs "$T/tmpfs"
    mkdir "$T/tmpfs/images"
    printf 'lock_socket = "%s"\nadmin_socket = "%s"\n' "$T/lock" "$T/admin" >"$T/conf"
    # Not what the malloc of tests does, and of libc's variants the one that all machines have.
    unset MALLOC_PERTURB_
    export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-AVX512F,-AVX512VL,-EVEX,-ERMS,-FSRM
}

# count NAME CALLS COMMAND...: instructions of a call while COMMAND runs.
count() {
    local name=$1 calls=$2 pid limit n
    shift 2
    LD_PRELOAD=$BUILD/tests/valgrind_calls.so valgrind --tool=callgrind --callgrind-out-file="$T/out" \
        --toggle-collect=on_events --toggle-collect=on_connection "$LOCKD" -f "$T/conf" 2>"$T/log" &
    pid=$!
    for _ in {1..500}; do
        [ ! -S "$T/lock" ] || break
        sleep 0.02
    done
    "$@"
    kill $pid
    wait $pid
    n=$(awk -v calls="$calls" '/^summary:/ { printf "%.0f", $2 / calls }' "$T/out")
    limit=$(awk -v name="$name" -v tolerance=$TOLERANCE '$1 == name { printf "%.0f", $2 * (100 + tolerance) / 100 }' "$BATS_TEST_DIRNAME/instructions")
    echo "# $name $n (at most $limit)" >&3
    [ "$n" -gt 0 ] && [ "$n" -le "$limit" ]
}

@test "acquire and release of a lease" {
    count lease 400 "$BUILD/tests/bench/load" "$T/lock" "$T/tmpfs/space" -n 400
}

@test "acquire and release of an image" {
    count image 400 "$BUILD/tests/bench/load" "$T/lock" "$T/tmpfs/space" -n 400 -d "$T/tmpfs/images"
}

@test "acquire and release, eight at a time" {
    count pipelined 400 "$BUILD/tests/bench/load" "$T/lock" "$T/tmpfs/space" -n 400 -p 8
}

@test "connect and register" {
    count connect 200 "$BUILD/tests/bench/events" connect "$T/lock" 200
}

@test "an image shared by many: acquire and release" {
    count shared 200 "$BUILD/tests/bench/events" shared "$T/lock" "$T/tmpfs/base" 200
}
