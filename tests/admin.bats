# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck disable=SC2030,SC2031 # each test is a process of its own
# shellcheck disable=SC2154 # variables of lib.bash and of bats
# lockd-admin: what it shows, what it takes away and what it refuses, and its exit codes.

load lib

commands() {
    "$LOCKD_ADMIN" --help | sed -n '/^Commands/,/^$/s/^  \([a-z-]*\) .*/\1/p'
}

# --- command line; no daemon is needed for it

@test "help and version, without a daemon" {
    run -0 --separate-stderr lockd_admin --version
    [[ $output == "lockd-admin "[0-9]* ]]
    run -0 --separate-stderr lockd_admin --help
    contains "$output" "Usage: lockd-admin" --socket --timeout "Exit codes"
    equals "$stderr" ""
    for command in list release stop; do
        grep -qx "$command" <(commands)
    done
    for command in $(commands); do
        run -0 --separate-stderr lockd_admin "$command" --help
        contains "$output" "Usage: lockd-admin $command " "--help"
        equals "$stderr" ""
        short=$output
        run -0 lockd_admin "$command" -h
        equals "$output" "$short"
    done
}

# usage ARGUMENT...: ends with 64 and a hint, whether or not a daemon runs.
usage() {
    run -64 --separate-stderr lockd_admin "$@"
    equals "$output" "" && contains "$stderr" "Try 'lockd-admin "
}

@test "a wrong command line ends with 64" {
    usage
    usage nonsense
    usage --nonsense list
    for seconds in 0 -1 x 1x nan inf 1e9 ''; do
        run -64 lockd_admin -T "$seconds" list
    done
    for command in $(commands); do
        usage "$command" --nonsense
    done
    usage list extra
    for pid in 0 x 1x ''; do
        usage list --pid "$pid"
    done
    usage stop extra
    usage stop --release-all
    usage stop --force
    usage release
    usage release /a
    usage release --owner alpha
    usage release /a /b --owner alpha
    usage release /a --owner alpha --kill --force
}

@test "a pid that is none does not filter for another" {
    usage list --pid -1
    usage list --pid 4294967297
    usage list --pid 99999999999999999999
}

@test "no daemon: 69" {
    for command in "list" "release /a --owner alpha" "stop"; do
        # shellcheck disable=SC2086 # words
        run -69 --separate-stderr lockd_admin $command
        equals "$output" ""
        equals "$stderr" "lockd-admin: $ADMIN_SOCKET: no lock daemon listens there"
    done
    # A dead socket file, and one that the environment names.
    lockd_start
    kill -KILL "$lockd"
    wait_until is_gone "$lockd"
    run -69 lockd_admin list
    contains "$output" "no lock daemon listens there"
    LOCKD_ADMIN_SOCKET=$T/other run -69 lockd_admin list
    contains "$output" "$T/other"
    LOCKD_ADMIN_SOCKET=$T/other run -69 lockd_admin -s "$T/option" list
    contains "$output" "$T/option"
    run -69 lockd_admin -s "$(printf '/%0200d' 0)" list
}

@test "a daemon that does not answer: 69, in time" {
    spawn deaf "$BUILD/tests/sockets" deaf "$T/deaf"
    wait_until grep -q ready "$T/deaf.out"
    for command in "list" "release /a --owner alpha" "stop"; do
        before=$(milliseconds)
        # shellcheck disable=SC2086 # words
        run -69 lockd_admin -s "$T/deaf" -T 0.5 $command
        elapsed=$(($(milliseconds) - before))
        [ "$elapsed" -ge 450 ] && [ "$elapsed" -lt 3000 ] || fail "after $elapsed ms"
        contains "$output" "does not answer"
    done
    # One that hangs with a connection accepted is no different.
    lockd_start
    kill -STOP "$lockd"
    run -69 lockd_admin -T 0.3 list
    kill -CONT "$lockd"
    lockd_answers
}

@test "who is not root: 77" {
    lockd_start
    cp "$LOCKD_ADMIN" "$T/lockd-admin"
    run -77 setpriv --reuid=65534 --regid=65534 --clear-groups "$T/lockd-admin" -s "$ADMIN_SOCKET" list
    contains "$output" "Permission denied"
}

# --- list

@test "list: the table" {
    lockd_start
    run -0 --separate-stderr lockd_admin list
    equals "$(tr -s ' ' <<<"$output")" "LOCKSPACE RESOURCE MODE VM UUID PID SINCE STATE"
    mkdir "$T/leases"
    vm alpha "$(image disk)"
    alpha=$vm
    vm beta -s "$(image shared)"
    beta=$vm
    vm gamma -s "$T/shared"
    gamma=$vm
    vm delta -c -l "$T/leases" lease
    delta=$vm
    run -0 --separate-stderr lockd_admin list
    equals "$stderr" ""
    # The time in front of the state is its own test.
    got=$(tail -n +2 <<<"$output" | sed -E 's/ 20[0-9]{2}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9] / TIME /' | tr -s ' ' | sort)
    equals "$got" "$(sort <<END
- $T/disk exclusive alpha $(uuid_of alpha) $alpha TIME HELD
- $T/shared shared beta $(uuid_of beta) $beta TIME HELD
- $T/shared shared gamma $(uuid_of gamma) $gamma TIME HELD
$T/leases lease exclusive delta $(uuid_of delta) $delta TIME HELD
END
)"
    # Columns: every STATE begins below its title.
    equals "$(awk 'NR == 1 { at = index($0, "STATE") } NR > 1 && substr($0, at) != "HELD"' <<<"$output")" ""
}

@test "list: JSON" {
    lockd_start
    equals "$("$LOCKD_ADMIN" list --json | jq -c .)" '{"version":1,"leases":[]}'
    mkdir "$T/leases"
    before=$(date -u +%Y-%m-%dT%H:%M:%S.%6NZ)
    vm alpha -s "$(image disk)"
    alpha=$vm
    vm beta -s "$T/disk"
    beta=$vm
    vm gamma -c -l "$T/leases" lease
    gamma=$vm
    after=$(date -u +%Y-%m-%dT%H:%M:%S.%6NZ)
    json=$("$LOCKD_ADMIN" list --json)
    equals "$(jq -r '.leases[] | select(.resource == "'"$T/disk"'") | "\(.lockspace) \(.mode) \(.state) \(.lock) \(.autocreate) \(.ino)
\(.holds_total)", (.holds[] | "\(.owner.name) \(.owner.uuid) \(.owner.pid) \(.owner.proved) \(.owner.state) \(.unconfirmed) \(.resource)")' \
        <<<"$json" | sort)" "$(sort <<END
 shared HELD ofd false $(stat -c %i "$T/disk")
2
alpha $(uuid_of alpha) $alpha true alive false $T/disk
beta $(uuid_of beta) $beta true alive false $T/disk
END
)"
    equals "$(jq -rc '.leases[] | select(.lockspace != "") | [.lockspace, .resource, .mode, .autocreate, (.holds[].owner | .name, .pid)]' <<<"$json")" \
        "[\"$T/leases\",\"lease\",\"exclusive\",true,\"gamma\",$gamma]"
    equals "$(jq --arg a "$before" --arg b "$after" '[.leases[].since, .leases[].holds[].since | . >= $a and . <= $b] | all' <<<"$json")" true
    # start_time is the kernel's word for the same process.
    equals "$(jq -r ".leases[].holds[].owner | select(.pid == $alpha).start_time" <<<"$json")" "$(sed 's/.*) //' "/proc/$alpha/stat" | cut -d ' ' -f 20)"
}

# shows OPTIONS VM...: exactly the holds of these are listed, as JSON and as a table.
shows() {
    local options=$1 got
    shift
    # shellcheck disable=SC2086 # words
    got=$("$LOCKD_ADMIN" list --json $options | jq -r '.leases[].holds[].owner.name' | sort | xargs)
    equals "$got" "$*" || fail "list --json $options" || return
    # shellcheck disable=SC2086 # words
    got=$("$LOCKD_ADMIN" list $options | awk 'NR > 1 { print $4 }' | sort | xargs)
    equals "$got" "$*" || fail "list $options"
}

@test "list: filters" {
    lockd_start
    mkdir "$T/leases"
    vm alpha "$(image disk1)" "$(image disk2)"
    alpha=$vm
    vm beta "$(image disk3)"
    vm gamma -c -l "$T/leases" lease
    shows "" alpha alpha beta gamma
    shows "--vm alpha" alpha alpha
    shows "-n $(uuid_of beta)" beta
    shows "--vm alph"
    shows "--pid $alpha" alpha alpha
    shows "-p 1"
    shows "--lockspace $T/leases" gamma
    shows "-r $T/disk2" alpha
    shows "--resource lease" gamma
    shows "-r $T/disk1 -n beta"
    shows "-r $T/disk1 -n alpha -p $alpha" alpha
    run -0 lockd_admin list -l '' --json
    equals "$(jq '.leases | length' <<<"$output")" 3
    # The other name of a shared image.
    ln "$(image disk4)" "$T/other"
    vm delta -s "$T/disk4"
    vm epsilon -s "$T/other"
    run -0 lockd_admin list -r "$T/other"
    contains "$output" epsilon
    run -0 lockd_admin list -n delta
    contains "$output" "$T/disk4"
}

@test "list: more than fits into one answer" {
    lockd_start
    mkdir "$T/many"
    touch "$T/many/"{1..2500}
    vm alpha "$T/many/"{1..2500}
    equals "$("$LOCKD_ADMIN" list --json | jq '[.leases[].resource] | unique | length')" 2500
    equals "$("$LOCKD_ADMIN" list | wc -l)" 2501
    shows "-r $T/many/2500" alpha
}

@test "list: odd names are escaped in the table, and exact in JSON" {
    lockd_start
    names=($'new\nline' $'tab\there' $'esc\e[31mred' 'back\slash' $'bad\xffutf8' $'del\x7f' 'space here' 'quote"it' 'häßlich')
    for name in "${names[@]}"; do
        vm "$name" "$(image "$name")"
    done
    table=$("$LOCKD_ADMIN" list)
    equals "$(wc -l <<<"$table")" $((${#names[@]} + 1))
    # Nothing that moves a terminal's cursor.
    equals "$(LC_ALL=C tr -d '\n' <<<"$table" | LC_ALL=C tr -cd '\001-\037\177' | wc -c)" 0
    # shellcheck disable=SC1003 # that is how it is shown
    contains "$table" "$T/new\\x0aline" 'tab\x09here' 'esc\x1b[31mred' 'back\x5cslash' 'bad\xffutf8' 'del\x7f' 'space here' 'quote"it' 'häßlich'
    for name in "${names[@]}"; do
        [[ $name != *$'\xff'* ]] || continue
        equals "$("$LOCKD_ADMIN" list --json -r "$T/$name" | jq -r '.leases[0] | .resource, .holds[0].owner.name')" "$T/$name"$'\n'"$name"
    done
    # Bytes that are no text: a list of numbers.
    equals "$("$LOCKD_ADMIN" list --json -n $'bad\xffutf8' | jq -c '.leases[].holds[].owner.name')" '[98,97,100,255,117,116,102,56]'
}

@test "list: control characters above 0x7f are escaped, too" {
    lockd_start
    vm alpha "$(image $'c1\xc2\x9b31m')"
    contains "$("$LOCKD_ADMIN" list)" 'c1\xc2\x9b31m'
}

# fill_list: alpha holds more than stdio keeps until the end.
fill_list() {
    touch "$T/image"{1..60}
    vm alpha "$(image disk)" "$T/image"{1..60}
}

@test "output that cannot be written: 74" {
    lockd_start
    vm beta "$(image disk2)"
    fill_list
    for command in "list -n beta" "list" "list -n beta --json" "list --json" "list --help" "release $T/disk2 --owner beta --kill"; do
        code=0
        # shellcheck disable=SC2086 # words
        lockd_admin $command >/dev/full 2>"$T/error.log" || code=$?
        equals "$code" 74 || fail "$command"
        contains "$(cat "$T/error.log")" "cannot write"
    done
}

@test "help and version that cannot be written: 74" {
    for option in --help --version; do
        code=0
        lockd_admin "$option" >/dev/full 2>/dev/null || code=$?
        equals "$code" 74
    done
}

@test "a closed stdout: 74, and nothing goes astray" {
    lockd_start
    fill_list
    for command in "list" "list --json"; do
        code=0
        # shellcheck disable=SC2086 # words
        lockd_admin $command >&- || code=$?
        equals "$code" 74
    done
    # Nor a complaint of its own into the connection.
    code=0
    lockd_admin release "$T/disk" --owner alpha 2>&- || code=$?
    equals "$code" 75
    equals "$(cat "$T/lockd.log")" ""
}

# --- release

# kept CODE PIECE -- ARGUMENT...: release is refused with that, and alpha holds the image as before.
kept() {
    local code=$1 piece=$2
    shift 3
    run "-$code" --separate-stderr lockd_admin release "$@"
    equals "$output" "" && contains "$stderr" "$piece" && is_alive "$alpha" && refused alpha rival "$T/disk"
}

@test "release: refused, and nothing changes" {
    lockd_start
    vm alpha "$(image disk)"
    alpha=$vm
    vm beta "$(image other)"
    uuid=$(uuid_of alpha)
    kept 75 "'$T/missing' is not locked" -- "$T/missing" --owner alpha
    kept 75 "'disk' is not locked in lockspace '$T'" -- -l "$T" disk --owner alpha
    for owner in beta "$(uuid_of beta)" "$vm" alph alpha2 0 ''; do
        kept 75 "'$T/disk' is not held by '$owner': it is held by VM 'alpha' (uuid $uuid, pid $alpha)" -- "$T/disk" --owner "$owner"
        kept 75 "is not held by" -- "$T/disk" --owner "$owner" --kill
        kept 75 "is not held by" -- "$T/disk" --owner "$owner" --force
    done
    for owner in alpha "$uuid" "$alpha"; do
        kept 75 "is alive" -- "$T/disk" --owner "$owner"
    done
    for owner in alpha "$alpha"; do
        kept 64 "wants the VM named by its uuid" -- "$T/disk" --owner "$owner" --force
    done
    kept 64 "too long" -- "$T/disk" --owner "$(printf %01025d 0)"
    lacks "$(cat "$T/lockd.log")" audit
}

@test "an argument that is longer than any name can be" {
    lockd_start
    run -64 lockd_admin release /a --owner "$(printf %070000d 0)"
    contains "$output" "too long"
    run -0 lockd_admin list --vm "$(printf %070000d 0)"
}

@test "release --kill: never a process that was not proved" {
    lockd_start
    spawn process sleep 60
    alpha=$spawned
    vm_try alpha -p "$alpha" "$(image disk)"
    kill -KILL "$vm"
    kept 77 "is not killed" -- "$T/disk" --owner alpha --kill
    kept 75 "is alive" -- "$T/disk" --owner alpha
}

@test "release: an owner without a process" {
    lockd_start
    vm alpha -p 0 "$(image disk)" "$(image disk2)"
    kill -KILL "$vm"
    wait_until is_gone "$vm"
    refused alpha beta "$T/disk"
    run -0 --separate-stderr lockd_admin release "$T/disk" --owner "$(uuid_of alpha)"
    equals "$output" "released: 1"
    expect_log "audit: release of '$T/disk' in lockspace '' of VM 'alpha'"
    vm beta "$T/disk"
    # Only that one.
    refused alpha gamma "$T/disk2"
}

@test "release --kill: the VM is dead, and all it held is free" {
    lockd_start
    mkdir "$T/leases"
    vm alpha "$(image disk)" "$(image disk2)"
    alpha=$vm
    vm beta "$(image disk3)"
    beta=$vm
    run -0 --separate-stderr lockd_admin release "$T/disk" --owner alpha --kill
    equals "$output" "released: 2"
    is_gone "$alpha"
    equals "$(grep -c 'audit: release --kill' "$T/lockd.log")" 1
    contains "$(cat "$T/lockd.log")" "audit: release --kill of '$T/disk' in lockspace '': killing VM 'alpha' (uuid $(uuid_of alpha), pid $alpha)"
    vm gamma "$T/disk" "$T/disk2"
    is_alive "$beta"
    # By pid, and in a lockspace.
    vm delta -c -l "$T/leases" lease
    run -0 lockd_admin release lease -l "$T/leases" --owner "$vm" --kill
    is_gone "$vm"
}

# stubborn_vm NAME RESOURCE: ignores TERM; $vm is its pid.
stubborn_vm() {
    # shellcheck disable=SC2016 # expanded there
    spawn "vm.$1" bash -c 'trap "" TERM; exec "$@"' - "$BUILD/tests/vm" "$LOCK_SOCKET" "$1" "$(uuid_of "$1")" "$2"
    vm=$spawned
    wait_until grep -q granted "$T/vm.$1.out"
}

@test "release --kill: the end of the process and of its connection, seen at one time, are one end" {
    lockd_start
    vm keeper "$(image kept)"
    # What waits for the last lock changes the order in which lockd sees the two.
    kill -TERM "$lockd"
    expect_log "is held by VM 'keeper'"
    for i in {1..30}; do
        vm "alpha$i" "$(image "disk$i")"
        run -0 lockd_admin release "$T/disk$i" --owner "alpha$i" --kill
    done
    lacks "$(cat "$T/lockd.log")" "open in another"
}

@test "release --kill: a VM that ignores TERM; others are served meanwhile" {
    lockd_start
    stubborn_vm alpha "$(image disk)"
    alpha=$vm
    before=$(milliseconds)
    spawn release lockd_admin release "$T/disk" --owner alpha --kill
    release=$spawned
    wait_until table_has "owner being killed"
    vm beta "$(image other)"
    refused alpha gamma "$T/disk" # not free before it is dead
    is_alive "$release"
    ends_with 0 "$release"
    elapsed=$(($(milliseconds) - before))
    [ "$elapsed" -ge 1500 ] && [ "$elapsed" -lt 5000 ] || fail "after $elapsed ms"
    is_gone "$alpha"
    vm delta "$T/disk"
}

@test "release --force: the VM lives on and is shown as UNPROTECTED until it is dead" {
    lockd_start
    vm alpha "$(image disk)"
    alpha=$vm
    run -0 --separate-stderr lockd_admin release "$T/disk" --owner "$(uuid_of alpha)" --force
    equals "$output" "released: 1"
    is_alive "$alpha"
    contains "$(cat "$T/lockd.log")" "audit: release --force of '$T/disk' in lockspace '' under VM 'alpha'" "UNPROTECTED"
    run -0 lockd_admin list -n alpha
    contains "$output" "$T/disk" UNPROTECTED
    equals "$("$LOCKD_ADMIN" list --json | jq -rc '.leases[] | [.state, .lock, .holds[].owner.name]')" '["UNPROTECTED","none","alpha"]'
    vm beta "$T/disk"
    equals "$("$LOCKD_ADMIN" list --json | jq -r '.leases[] | "\(.state) \(.holds[].owner.name)"' | sort)" $'HELD beta\nUNPROTECTED alpha'
    refused beta gamma "$T/disk"
    kill -KILL "$alpha"
    wait_until not_listed alpha
    refused beta gamma "$T/disk"
}

table_has() { # TEXT
    "$LOCKD_ADMIN" list | grep -qF -- "$1"
}

not_listed() { # VM
    [ "$("$LOCKD_ADMIN" list -n "$1" | wc -l)" = 1 ]
}

@test "release: the process is dead, but a child has its connection" {
    lockd_start
    vm_try alpha -k "$(image disk)"
    alpha=$vm
    wait_until is_gone "$alpha"
    wait_until table_has ORPHANED
    child=$("$LOCKD_ADMIN" list --json | jq '.leases[].holds[].owner.connection_pids[]')
    started+=("$child")
    equals "$(cat "/proc/$child/comm")" vm
    contains "$("$LOCKD_ADMIN" list)" "ORPHANED connection open in $child"
    run -75 lockd_admin release "$T/disk" --owner alpha
    contains "$output" "has ended, but its connection is still open"
    run -75 lockd_admin release "$T/disk" --owner alpha --kill
    contains "$output" "has ended, but its connection is still open"
    is_alive "$child"
    refused alpha beta "$T/disk"
    run -0 lockd_admin release "$T/disk" --owner "$(uuid_of alpha)" --force
    vm beta "$T/disk"
}

@test "release: a name that two holders have takes nothing away" {
    lockd_start
    image disk
    for i in 1 2; do
        spawn "vm$i" "$BUILD/tests/vm" "$LOCK_SOCKET" twin "$(uuid_of "twin$i")" -s "$T/disk"
        wait_until grep -q granted "$T/vm$i.out"
    done
    run lockd_admin release "$T/disk" --owner twin --kill
    [ "$status" != 0 ]
    for vm in "${started[@]}"; do
        is_alive "$vm"
    done
    run -0 lockd_admin release "$T/disk" --owner "$(uuid_of twin2)" --kill
    is_alive "${started[1]}"
    is_gone "${started[2]}"
}

# --- stop

@test "stop: ends lockd when nothing is held" {
    for _ in 1 2 3; do
        lockd_start
        vm alpha
        run -0 --separate-stderr lockd_admin stop
        equals "$output$stderr" ""
        ends_with 0 "$lockd"
        is_alive "$vm"
        [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
        run -69 lockd_admin stop
    done
}

@test "stop: refused while something is held, unless all is said" {
    lockd_start
    vm alpha "$(image disk)" "$(image disk2)"
    alpha=$vm
    run -75 --separate-stderr lockd_admin stop
    contains "$stderr" "2 leases are held" "lockd-admin list" "stop --release-all --force"
    usage stop --release-all
    usage stop --force
    refused alpha beta "$T/disk"
    run -0 lockd_admin stop --release-all --force
    ends_with 0 "$lockd"
    is_alive "$alpha"
    contains "$(cat "$T/lockd.log")" "audit: stop --release-all --force: 2 leases go"
    lockd_start
    vm beta "$T/disk"
}
