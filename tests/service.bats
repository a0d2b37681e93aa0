# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck disable=SC2030,SC2031 # each test is a process of its own
# shellcheck disable=SC2153,SC2154 # variables of lib.bash and of bats
# The daemon as a service: how it starts, where it listens, what it reads and writes, and what ends it.

load lib

# --- start and sockets

@test "a file that is no socket is not taken for one" {
    echo precious >"$WORK/file"
    printf 'lock_socket = "%s"\nadmin_socket = "%s"\n' "$WORK/file" "$WORK/admin" >"$WORK/nosocket.conf"
    run "$LOCKD" -f "$WORK/nosocket.conf"
    [ "$status" -ne 0 ]
    [[ $output == *"$WORK/file"* ]]
    [ "$(cat "$WORK/file")" = precious ]
    [ ! -e "$WORK/file.lock" ]
}

@test "in the foreground, at libvirt's sockets, with the log on stderr" {
    rmdir /run/libvirt 2>/dev/null || true
    lockd_start -v
    contains "$(cat "$T/lockd.log")" " info : daemon: up: locks at $LOCK_SOCKET, administration at $ADMIN_SOCKET"
    equals "$(cat "$T/lockd.out")" ""
    equals "$(stat -c '%F %a' "$LOCK_SOCKET" "$ADMIN_SOCKET")" $'socket 600\nsocket 600'
    # Without -s: the same place.
    lockd_admin list
    vm alpha "$(image disk)"
}

@test "a second daemon does not start, and says so" {
    lockd_start -p "$T/pid"
    vm alpha "$(image disk)"
    before=$(stat -c %i "$LOCK_SOCKET" "$ADMIN_SOCKET")
    run -69 timeout 10 "$LOCKD" -f "$T/lockd.conf" -p "$T/pid"
    contains "$output" "another lock daemon answers at $LOCK_SOCKET"
    equals "$(stat -c %i "$LOCK_SOCKET" "$ADMIN_SOCKET")" "$before"
    equals "$(cat "$T/pid")" "$lockd"
    # The admin socket alone is enough.
    conf "lock_socket = \"$T/other\""
    run -69 timeout 10 "$LOCKD" -f "$T/lockd.conf"
    contains "$output" "another lock daemon answers at $ADMIN_SOCKET"
    refused alpha beta "$T/disk"
}

@test "the socket files of a daemon that was killed are replaced" {
    lockd_start
    kill -KILL "$lockd"
    wait_until is_gone "$lockd"
    [ -S "$LOCK_SOCKET" ] && [ -S "$ADMIN_SOCKET" ]
    lockd_start
    vm alpha "$(image disk)"
}

# Starts four; returns when one is left, which is $lockd. No other exit code than 69.
contest() {
    local i contenders=() left=()
    for i in 1 2 3 4; do
        spawn "lockd$i" "$LOCKD" -f "$T/lockd.conf"
        contenders+=("$spawned")
    done
    one_is_left() {
        left=()
        for i in "${contenders[@]}"; do
            is_gone "$i" || left+=("$i")
        done
        [ "${#left[@]}" -le 1 ]
    }
    wait_until one_is_left || return
    [ "${#left[@]}" = 1 ] || fail "nobody won" || return
    lockd=${left[0]}
    for i in "${contenders[@]}"; do
        [ "$i" = "$lockd" ] || ends_with 69 "$i" || return
    done
    wait_until lockd_answers || return
    # At both sockets.
    vm alpha || return
    kill -KILL "$vm"
}

@test "of several that start at once exactly one wins" {
    for _ in 1 2 3 4 5; do
        contest
        kill -KILL "$lockd" # its dead sockets stay for the next round
        wait_until is_gone "$lockd"
    done
}

@test "also where a dead process's admin socket has to be waited for" {
    mkdir -p /run/libvirt
    for _ in 1 2; do
        rm -f "$ADMIN_SOCKET"
        spawn deaf "$BUILD/tests/sockets" deaf "$ADMIN_SOCKET"
        deaf=$spawned
        wait_until grep -q ready "$T/deaf.out"
        contest
        kill -KILL "$lockd" "$deaf"
        wait_until is_gone "$lockd"
    done
}

@test "a listener that nobody serves is replaced after a second" {
    mkdir -p /run/libvirt
    spawn deaf "$BUILD/tests/sockets" deaf "$LOCK_SOCKET"
    wait_until grep -q ready "$T/deaf.out"
    before=$(milliseconds)
    lockd_start
    elapsed=$(($(milliseconds) - before))
    [ "$elapsed" -ge 950 ] && [ "$elapsed" -lt 5000 ] || fail "after $elapsed ms"
    vm alpha "$(image disk)"
}

@test "stock virtlockd at the sockets: lockd does not start" {
    command -v virtlockd || skip "virtlockd is not installed"
    mkdir -p /run/libvirt
    : >"$T/virtlockd.conf"
    spawn virtlockd virtlockd -f "$T/virtlockd.conf"
    stock=$spawned
    wait_until test -S "$LOCK_SOCKET"
    run -69 timeout 10 "$LOCKD" -f "$T/lockd.conf"
    contains "$output" "another lock daemon answers at $LOCK_SOCKET"
    is_alive "$stock"
    vm alpha "$(image disk)"
}

@test "two daemons side by side on sockets of their own" {
    lockd_start
    first=$lockd
    conf "lock_socket = \"$T/run/lock\"" "admin_socket = \"$T/run/admin\""
    spawn second "$LOCKD" -f "$T/lockd.conf"
    wait_until lockd_answers "$T/run/admin"
    vm alpha "$(image disk)"
    # The kernel tells them apart, though neither daemon knows the other's VMs.
    VM_SOCKET=$T/run/lock vm_try beta "$T/disk"
    ends_with 75 "$vm"
    LOCKD_ADMIN_SOCKET=$T/run/admin run -0 lockd_admin list
    lacks "$output" alpha
    is_alive "$first"
}

# --- command line

@test "--version and --help" {
    run -0 "$LOCKD" -V
    [[ $output == "lockd "[0-9]* ]]
    run -0 "$LOCKD" --version
    run -0 --separate-stderr "$LOCKD" --help
    equals "$stderr" ""
    for option in --daemon --config --timeout --pid-file --verbose --version --help; do
        contains "$output" "$option"
    done
    [ ! -e "$LOCK_SOCKET" ]
}

@test "a wrong command line ends with 64 and a reason on stderr" {
    for arguments in --nonsense -x "-f" "argument" "-t" "-t 0" "-t -1" "-t x" "-t 1x" "-t 99999999999999999999"; do
        # shellcheck disable=SC2086 # words
        run -64 --separate-stderr timeout 5 "$LOCKD" $arguments
        equals "$output" ""
        contains "$stderr" "Try 'lockd --help'"
    done
    [ ! -e "$LOCK_SOCKET" ]
}

@test "-p: the pid file is there while it runs" {
    lockd_start --pid-file "$T/pid"
    equals "$(cat "$T/pid")" "$lockd"
    kill -TERM "$lockd"
    ends_with 0 "$lockd"
    [ ! -e "$T/pid" ]
    run timeout 5 "$LOCKD" -f "$T/lockd.conf" -p "$T/missing/pid"
    [ "$status" != 0 ] && [ "$status" != 124 ]
    contains "$output" "cannot write $T/missing/pid"
    [ ! -e "$LOCK_SOCKET" ]
}

# background ARGUMENT...: sets $status and $output, as run does; that would wait for whoever keeps its pipe open. The daemon
# is $lockd.
background() {
    status=0
    timeout 10 "$LOCKD" -d "$@" </dev/null >"$T/d.out" 2>&1 3>&- || status=$?
    output=$(cat "$T/d.out")
    lockd=$(cat "${pid_file:-$T/pid}" 2>/dev/null) && started+=("$lockd")
    return 0
}

@test "-d: the command returns when the daemon answers" {
    background -p "$T/pid" -f "$T/lockd.conf"
    equals "$status" 0
    equals "$output" ""
    lockd_answers
    equals "$(cat "/proc/$lockd/comm")" lockd
    equals "$(readlink "/proc/$lockd/cwd")" /
    read -r _ _ _ parent _ session _ <"/proc/$lockd/stat"
    equals "$parent $session" "1 $lockd"
    vm alpha "$(image disk)"
}

@test "-d keeps none of the caller's streams open" {
    background -p "$T/pid" -f "$T/lockd.conf"
    for fd in 0 1 2; do
        equals "$(readlink "/proc/$lockd/fd/$fd")" /dev/null
    done
}

@test "-d without -p: the pid file of a system daemon" {
    pid_file=/run/lockd.pid background -f "$T/lockd.conf"
    equals "$status" 0
    lockd_answers
    kill -TERM "$lockd"
    wait_until is_gone "$lockd"
    [ ! -e /run/lockd.pid ]
}

@test "-d takes relative file names, for the next HUP too" {
    cd "$T"
    background -v -f lockd.conf -p pid
    equals "$status $output" "0 "
    conf "log_outputs = \"1:file:$T/hup.log\""
    kill -HUP "$lockd"
    expect_log "read again" "$T/hup.log"
}

@test "-d: what goes wrong is told, and the exit code is the daemon's" {
    conf "nonsense = 1"
    background -p "$T/pid" -f "$T/lockd.conf"
    equals "$status" 78
    contains "$output" "lockd.conf:1: nonsense: unknown key"
    : >"$T/lockd.conf"
    lockd_start
    background -p "$T/pid" -f "$T/lockd.conf"
    equals "$status" 69
    contains "$output" "another lock daemon answers"
}

@test "-t: ends when idle, never while something is held" {
    lockd_start -v -t 1
    spawn process sleep 60
    process=$spawned
    # A hold without a connection, as libvirtd's short one leaves it.
    vm alpha -p "$process" "$(image disk)"
    kill -KILL "$vm"
    sleep 2.2 # two rounds: it must not happen
    is_alive "$lockd"
    equals "$("$LOCKD_ADMIN" list --json | jq -c '[.leases[].holds[].owner | [.name, .connections]]')" '[["alpha",0]]'
    before=$(milliseconds)
    kill -KILL "$process"
    ends_with 0 "$lockd"
    elapsed=$(($(milliseconds) - before))
    [ "$elapsed" -lt 3000 ] || fail "after $elapsed ms"
    contains "$(cat "$T/lockd.log")" "no client and no hold for 1 s: ending"
    [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
}

@test "-t: a client alone keeps it, too" {
    lockd_start -t 1
    vm alpha
    sleep 1.5 # it must not happen
    is_alive "$lockd"
    kill -KILL "$vm"
    ends_with 0 "$lockd"
}

# --- configuration

# wrong TEXT LINE...: not started, with 78 and the place.
wrong() {
    local text=$1
    shift
    conf "$@"
    run -78 --separate-stderr timeout 5 "$LOCKD" -f "$T/lockd.conf"
    contains "$stderr" "lockd: $T/lockd.conf:$text"
    [ ! -e "$LOCK_SOCKET" ]
}

@test "an unknown key, a bad value or a syntax error ends with 78 and file:line" {
    wrong "2: max_client: unknown key" "# comment" "max_client = 7"
    wrong "1: log_level: wants a number from 1 to 4" "log_level = 0"
    wrong "1: log_level: wants a number" "log_level = 5"
    wrong "1: log_level: wants a number" 'log_level = "3"'
    wrong "1: max_clients: wants a number" "max_clients = 0"
    wrong "1: max_clients: wants a number" "max_clients = -1"
    wrong "1: max_clients: wants a number" "max_clients = 1.5"
    wrong "3: admin_max_clients: wants a number" "" "" "admin_max_clients = 99999999999L"
    wrong "1: on_disconnect: wants" 'on_disconnect = "maybe"'
    wrong "1: on_disconnect: wants" 'on_disconnect = 1'
    wrong "1: lock_socket: wants an absolute path" 'lock_socket = "relative"'
    wrong "2: admin_socket: wants an absolute path" "log_level = 3" 'admin_socket = ""'
    wrong "1: lockspaces: wants a list" "lockspaces = 1"
    wrong "2: " "lockspaces = (" '{ require_mount = "/x"; } )'
    wrong "2: nonsense: unknown key of a lockspace" 'lockspaces = ( { path = "/x";' 'nonsense = 1; } )'
    wrong "2: " "log_level = 3" "log_level = 3 3"
    wrong "2: " "log_level = 3" "log_level = 4"
    wrong "2: syntax error" "log_level = " # seen where the file ends
}

@test "bad log settings are told with file and line, too" {
    wrong "2: log_outputs" "" 'log_outputs = "1:nowhere"'
    wrong "1: log_outputs" 'log_outputs = "5:stderr"'
    wrong "1: log_outputs" 'log_outputs = "1:file:relative"'
    wrong "1: log_outputs" 'log_outputs = "1:syslog"'
    wrong "1: log_filters" 'log_filters = "1"'
    wrong "1: log_filters" 'log_filters = "9:peer"'
}

@test "virtlockd's own configuration file, as it is shipped, is taken" {
    for shipped in /etc/libvirt/virtlockd.conf /usr/share/doc/libvirt-daemon*/virtlockd.conf; do
        [ -e "$shipped" ] && break
    done
    [ -e "$shipped" ] || skip "virtlockd is not installed"
    # Every setting of it, switched on.
    sed -n 's/^#\([a-z_]* *=.*\)/\1/p' "$shipped" >"$T/lockd.conf"
    grep -q max_clients "$T/lockd.conf"
    sed -i "s|/var/log/libvirt|$T|" "$T/lockd.conf"
    lockd_start
}

# Sets $default_config, a file that is not there: the machine's is hidden, and what is written does not reach it.
hide_default_config() {
    default_config=$("$LOCKD" --help | sed -n 's/.*instead of \(.*lockd\.conf\)$/\1/p')
    local there=${default_config%/*} cover=$WORK/cover
    until [ -d "$there" ]; do
        there=${there%/*}
    done
    if [ ! -d "$cover" ]; then
        mkdir "$cover" "$cover/upper" "$cover/work"
        mount -t overlay -o "lowerdir=$there,upperdir=$cover/upper,workdir=$cover/work" overlay "$there"
    fi
    mkdir -p "${default_config%/*}"
    rm -f "$default_config"
}

@test "a missing file is an error with -f, and none at the default place" {
    run timeout 5 "$LOCKD" -f "$T/missing.conf"
    [ "$status" != 0 ] && [ "$status" != 124 ]
    contains "$output" "$T/missing.conf: No such file or directory"

    hide_default_config
    spawn lockd "$LOCKD"
    wait_until lockd_answers
    kill -TERM "$spawned"
    ends_with 0 "$spawned"
    echo "nonsense = 1" >"$default_config"
    run -78 timeout 5 "$LOCKD"
    contains "$output" "$default_config:1: nonsense: unknown key"
}

# --- systemd

# activate NAMES PATH...: runs it on sockets that are handed over, with names as systemd has them.
activate() {
    local names=$1 listen=() path
    shift
    for path; do
        listen+=(-l "$path")
    done
    spawn lockd systemd-socket-activate "${listen[@]}" --fdname="$names" "$LOCKD" -f "$T/lockd.conf"
    lockd=$spawned
    wait_until test -S "${!#}"
}

@test "socket activation, with libvirt's names" {
    activate virtlockd.socket:virtlockd-admin.socket "$T/lock" "$T/admin"
    wait_until lockd_answers "$T/admin"
    VM_SOCKET=$T/lock vm alpha "$(image disk)"
    run -0 lockd_admin -s "$T/admin" list
    contains "$output" alpha
    [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
    equals "$(cat "/proc/$lockd/comm")" lockd
    kill -KILL "$vm"
    wait_until lockd_lists_nothing_at "$T/admin"
    kill -TERM "$lockd"
    ends_with 0 "$lockd"
    # They are systemd's.
    [ -S "$T/lock" ] && [ -S "$T/admin" ]
}

lockd_lists_nothing_at() {
    [ "$("$LOCKD_ADMIN" -s "$1" list | wc -l)" = 1 ]
}

@test "socket activation, with lockd's names, in any order" {
    activate lockd-admin.socket:lockd.socket "$T/admin" "$T/lock"
    wait_until lockd_answers "$T/admin"
    VM_SOCKET=$T/lock vm alpha "$(image disk)"
    run -75 lockd_admin -s "$T/admin" stop
    [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
}

@test "socket activation with one socket: lockd opens the other" {
    activate lockd.socket "$T/lock"
    VM_SOCKET=$T/lock vm alpha "$(image disk)"
    lockd_answers
    [ ! -e "$LOCK_SOCKET" ]
}

@test "the sockets that systemd hands over are served by an older lockd: the new one does not start" {
    # As after a stop that lockd did not follow because of its locks.
    # shellcheck disable=SC2016 # expanded there
    spawn twice systemd-socket-activate -l "$T/lock" -l "$T/admin" --fdname=lockd.socket:lockd-admin.socket bash -c '
        (export LISTEN_PID=$BASHPID; exec "$@") &
        echo $! >"$0/first"
        until read -r -t 10 <"$0/go"; do :; done
        export LISTEN_PID=$$; exec "$@"' "$T" "$LOCKD" -f "$T/lockd.conf"
    second=$spawned
    mkfifo "$T/go"
    wait_until test -S "$T/admin"
    wait_until lockd_answers "$T/admin"
    started+=("$(cat "$T/first")")
    VM_SOCKET=$T/lock vm alpha "$(image disk)"
    echo >"$T/go"
    ends_with 69 "$second"
    contains "$(cat "$T/twice.log")" "another lock daemon"
    VM_SOCKET=$T/lock refused alpha beta "$T/disk"
}

@test "Type=notify: READY=1 when it answers" {
    spawn notify "$BUILD/tests/sockets" datagrams "$T/notify"
    wait_until grep -q ready "$T/notify.out"
    NOTIFY_SOCKET=$T/notify spawn lockd "$LOCKD" -f "$T/lockd.conf"
    wait_until grep -qx READY=1 "$T/notify.out"
    lockd_answers
}

# --- signals

@test "HUP reads the configuration again" {
    conf "log_level = 3"
    lockd_start
    lacks "$(cat "$T/lockd.log")" "info :"
    conf "log_level = 2" "max_clients = 1"
    kill -HUP "$lockd"
    expect_log "info : daemon: the configuration was read again from $T/lockd.conf"
    vm alpha "$(image disk)"
    vm_try beta
    ends_with 75 "$vm"
    contains "$(cat "$T/vm.beta.out")" "raise max_clients (1) in lockd.conf"
}

@test "HUP with a broken configuration: it is told, and the old one stays" {
    conf "log_level = 2" "max_clients = 1"
    lockd_start
    for broken in "nonsense = 1" 'log_outputs = "1:nowhere"' "log_outputs = \"1:file:$T/missing/log\"" "max_clients = ;"; do
        : >"$T/lockd.log"
        conf "log_level = 4" "$broken"
        kill -HUP "$lockd"
        expect_log "error : daemon: the configuration stays as it was: $T/lockd.conf:"
    done
    # Gone altogether.
    : >"$T/lockd.log"
    rm "$T/lockd.conf"
    kill -HUP "$lockd"
    expect_log "the configuration stays as it was: $T/lockd.conf: No such file"
    vm alpha
    vm_try beta
    contains "$(cat "$T/vm.beta.out")" "raise max_clients (1)"
    : >"$T/lockd.conf"
    kill -HUP "$lockd"
    wait_until vm_is_let_in
}

vm_is_let_in() {
    "$BUILD/tests/vm" "$LOCK_SOCKET" gamma "$(uuid_of gamma)" </dev/null
}

@test "HUP opens a log file again after rotation" {
    conf "log_outputs = \"1:file:$T/file.log\"" "log_level = 2"
    lockd_start
    expect_log "up: locks at" "$T/file.log"
    mv "$T/file.log" "$T/old.log"
    kill -HUP "$lockd"
    expect_log "read again" "$T/file.log"
    lacks "$(cat "$T/old.log")" "read again"
    equals "$(stat -c %a "$T/file.log")" 600
    # Also when the configuration is broken.
    mv "$T/file.log" "$T/old.log"
    conf "nonsense = 1"
    kill -HUP "$lockd"
    expect_log "stays as it was" "$T/file.log"
    lacks "$(cat "$T/old.log")" "stays as it was"
    equals "$(cat "$T/lockd.log")" ""
}

@test "TERM, INT and QUIT while something is held: it goes on, and logs who holds what" {
    lockd_start
    vm alpha "$(image disk)"
    for signal in TERM INT QUIT; do
        : >"$T/lockd.log"
        kill "-$signal" "$lockd"
        expect_log "'$T/disk' in lockspace '' is held by VM 'alpha' (uuid $(uuid_of alpha)"
        contains "$(cat "$T/lockd.log")" "signal $(kill -l "$signal")" "1 leases are held" "lockd-admin stop --release-all --force"
    done
    is_alive "$lockd"
    is_alive "$vm"
    refused alpha beta "$T/disk"
    lockd_answers
}

@test "after TERM it ends when the last lock goes; after INT it does not" {
    lockd_start
    vm alpha "$(image disk)"
    kill -INT "$lockd"
    kill -KILL "$vm"
    wait_until nothing_listed
    is_alive "$lockd"
    vm beta "$T/disk" "$(image disk2)"
    kill -TERM "$lockd"
    expect_log "is held by VM 'beta'"
    is_alive "$lockd"
    kill -KILL "$vm"
    ends_with 0 "$lockd"
    [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
}

@test "after TERM the call that lets the last lock go is answered" {
    for _ in 1 2 3; do
        lockd_start
        vm alpha "$(image disk)"
        kill -TERM "$lockd"
        expect_log "is held by VM 'alpha'"
        run -0 lockd_admin release "$T/disk" --owner alpha --kill
        equals "$output" "released: 1"
        ends_with 0 "$lockd"
        lockd_start
        vm beta -p 0 "$T/disk"
        kill -TERM "$lockd"
        expect_log "is held by VM 'beta'"
        run -0 lockd_admin release "$T/disk" --owner beta
        equals "$output" "released: 1"
        ends_with 0 "$lockd"
    done
}

@test "TERM, INT and QUIT while nothing is held: it ends with 0 and leaves no socket" {
    for signal in TERM INT QUIT; do
        lockd_start
        vm "alpha$signal"
        kill "-$signal" "$lockd"
        ends_with 0 "$lockd"
        [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
    done
}

@test "no other signal ends it" {
    lockd_start
    vm alpha "$(image disk)"
    for signal in $(compgen -A signal SIG); do
        case $signal in SIGKILL | SIGSTOP | SIGJUNK*) continue ;; esac
        kill "-$signal" "$lockd"
    done
    lockd_answers
    lockd_answers
    is_alive "$lockd"
    refused alpha beta "$T/disk"
}

# --- log

@test "log outputs: a file, beside stderr, each with a level of its own" {
    conf "log_outputs = \"3:stderr 1:file:$T/file.log\"" "log_level = 2"
    lockd_start
    vm alpha "$(image disk)"
    kill -TERM "$lockd"
    expect_log "is held by VM 'alpha'"
    expect_log "is held by VM 'alpha'" "$T/file.log"
    contains "$(cat "$T/file.log")" "info : daemon: up"
    lacks "$(cat "$T/lockd.log")" "info :"
}

@test "log filters give a part its own level" {
    conf 'log_level = 4' 'log_filters = "2:daemon"'
    lockd_start
    expect_log "info : daemon: up"
    kill -HUP "$lockd"
    expect_log "read again"
    conf 'log_level = 2' 'log_filters = "4:daemon"'
    kill -HUP "$lockd"
    vm alpha "$(image disk)"
    refused alpha beta "$T/disk"
    equals "$(grep -c "read again" "$T/lockd.log")" 1
}

@test "log outputs: syslog" {
    mkdir "$T/dev"
    spawn syslog "$BUILD/tests/sockets" datagrams "$T/dev/log"
    wait_until grep -q ready "$T/syslog.out"
    conf 'log_outputs = "1:syslog:lock-test"'
    # A /dev of its own: the machine's is not touched.
    # shellcheck disable=SC2016 # expanded there
    spawn lockd unshare --mount bash -c 'touch "$1/null" && mount --bind /dev/null "$1/null" && mount --rbind "$1" /dev
        shift && exec "$@"' - "$T/dev" "$LOCKD" -v -f "$T/lockd.conf"
    lockd=$spawned
    wait_until grep -qF "lock-test[$lockd]: up: locks at" "$T/syslog.out"
    # daemon.info
    grep -q '^<30>lock-test' "$T/syslog.out"
    # The logger is restarted; lockd is not told.
    vm alpha "$(image disk)"
    kill -KILL "${started[0]}"
    wait_until is_gone "${started[0]}"
    kill -INT "$lockd"
    refused alpha beta "$T/disk"
    rm "$T/dev/log"
    spawn syslog "$BUILD/tests/sockets" datagrams "$T/dev/log"
    wait_until grep -q ready "$T/syslog.out"
    logged_again() { kill -INT "$lockd" && grep -q "is held by VM 'alpha'" "$T/syslog.out"; }
    wait_until logged_again
}

@test "log outputs: the journal" {
    mkdir -p /run/systemd/journal
    spawn journal "$BUILD/tests/sockets" datagrams /run/systemd/journal/socket
    wait_until grep -q ready "$T/journal.out"
    conf 'log_outputs = "1:journald"'
    lockd_start -v
    expect_log "MESSAGE=up: locks at" "$T/journal.out"
    vm alpha "$(image disk)"
    kill -TERM "$lockd"
    expect_log "is held by VM 'alpha'" "$T/journal.out"
    grep -qx PRIORITY=6 "$T/journal.out"
    grep -qx PRIORITY=4 "$T/journal.out"
    grep -qx SYSLOG_IDENTIFIER=lockd "$T/journal.out"
    rm /run/systemd/journal/socket
}

@test "a logger that is not there, or does not read, stops nobody" {
    mkdir -p /run/systemd/journal
    conf 'log_outputs = "1:journald 1:file:/dev/full"' "log_level = 1"
    lockd_start
    vm alpha "$(image disk)"
    spawn journal "$BUILD/tests/sockets" datagrams /run/systemd/journal/socket
    wait_until grep -q ready "$T/journal.out"
    journal=$spawned
    kill -STOP "$journal"
    for _ in {1..30}; do
        refused alpha beta "$T/disk"
    done
    kill -KILL "$journal"
    rm /run/systemd/journal/socket
}

@test "standard streams that are closed: no lock lands there" {
    # shellcheck disable=SC2016 # expanded there
    spawn lockd bash -c 'exec "$0" -v -f "$1" <&- >&- 2>&-' "$LOCKD" "$T/lockd.conf"
    lockd=$spawned
    wait_until lockd_answers
    vm alpha "$(image disk)"
    refused alpha beta "$T/disk"
    for fd in 0 1 2; do
        equals "$(readlink "/proc/$lockd/fd/$fd")" /dev/null
    done
}

# Starts it with a pipe on stderr, which nobody reads; $pipe is the only other end.
lockd_start_on_pipe() {
    mkfifo "$T/pipe"
    exec {pipe}<>"$T/pipe"
    conf "log_level = 1"
    "$LOCKD" -f "$T/lockd.conf" </dev/null 2>"$T/pipe" 3>&- {pipe}<&- &
    lockd=$!
    started+=("$lockd")
    wait_until lockd_answers
}

@test "stderr is a pipe that is full: it does not wait" {
    lockd_start_on_pipe
    "$BUILD/tests/sockets" fill >&"$pipe"
    vm alpha "$(image disk)"
    refused alpha beta "$T/disk"
    kill -INT "$lockd" # logs a lot
    lockd_answers
    refused alpha beta "$T/disk"
}

@test "stderr is a pipe that nobody has open any more: it does not die" {
    lockd_start_on_pipe
    exec {pipe}<&-
    vm alpha "$(image disk)"
    refused alpha beta "$T/disk"
    kill -INT "$lockd"
    kill -HUP "$lockd"
    lockd_answers
    refused alpha beta "$T/disk"
    is_alive "$lockd"
}

# --- without privileges

# as_nobody COMMAND...: with the rights and the environment of a user.
as_nobody() {
    # shellcheck disable=SC2016 # expanded there
    setpriv --reuid=65534 --regid=65534 --clear-groups -- env -u XDG_CONFIG_HOME HOME="$T/home" XDG_RUNTIME_DIR="$T/runtime" \
        bash -c 'cd "$0" && "$@"' "$T/home" "$@" 3>&-
}

@test "a user's daemon: sockets and configuration of the user's own" {
    hide_default_config
    echo "nonsense = 1" >"$default_config" # root's
    mkdir "$T"/{home,runtime,bin}
    # The build folder may be out of that user's reach.
    cp "$LOCKD" "$LOCKD_ADMIN" "$BUILD/tests/vm" "$T/bin"
    chown 65534:65534 "$T/home" "$T/runtime"
    spawn lockd as_nobody "$T/bin/lockd" -v
    wait_until test -S "$T/runtime/libvirt/virtlockd-admin-sock"
    wait_until as_nobody "$T/bin/lockd-admin" list
    [ -S "$T/runtime/libvirt/virtlockd-sock" ]
    [ ! -e "$LOCK_SOCKET" ]
    user_image=$T/home/disk
    as_nobody touch "$user_image"
    spawn vm as_nobody "$T/bin/vm" "$T/runtime/libvirt/virtlockd-sock" alpha "$(uuid_of alpha)" "$user_image"
    wait_until grep -q granted "$T/vm.out"
    run -75 as_nobody "$T/bin/vm" "$T/runtime/libvirt/virtlockd-sock" beta "$(uuid_of beta)" "$user_image"
    contains "$output" "VM 'alpha'"
    run -0 as_nobody "$T/bin/lockd-admin" list
    contains "$output" "$user_image" alpha

    as_nobody mkdir -p "$T/home/.config/lockd"
    echo "max_clients = 0" >"$T/home/.config/lockd/lockd.conf"
    run -78 as_nobody timeout 5 "$T/bin/lockd"
    contains "$output" "$T/home/.config/lockd/lockd.conf:1: max_clients"
}

@test "without CAP_SYS_RESOURCE: the limit of open files is what it can get" {
    spawn lockd setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource \
        prlimit --nofile=100:200 "$LOCKD" -f "$T/lockd.conf"
    lockd=$spawned
    wait_until lockd_answers
    capabilities=$(sed -n 's/^CapEff:\t//p' "/proc/$lockd/status")
    equals $((0x$capabilities >> 24 & 1)) 0
    equals "$(awk '/^Max open files/ { print $4, $5 }' "/proc/$lockd/limits")" "200 200"
    vm alpha "$(image disk)"
    refused alpha beta "$T/disk"
}
