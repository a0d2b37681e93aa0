# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Shared by the tests: hosts (namespaces with a libvirtd and a lock daemon of their own), guests, and what is asserted.

declare -gA host_pid host_waiter # -g: bats loads this file inside a function
# The host that commands act on: HOST=two virsh ...
HOST=one

setup() {
    host_up one
}

teardown() {
    local host
    if [ -z "${BATS_TEST_COMPLETED-}" ]; then
        show_logs
    fi
    for host in "${!host_pid[@]}"; do
        host_down "$host"
    done
}

show_logs() {
    local log
    for log in "$BATS_TEST_TMPDIR"/*/{init,log/*}.log; do
        echo "--- ${log#"$BATS_TEST_TMPDIR/"}"
        grep -Ev 'ethtool ioctl|getaddrinfo|is tainted' "$log" | tail -n 20 | cut -c 1-400
    done
}

fail() {
    printf '%s\n' "$@" >&2
    return 1
}

# Says why a test does not apply to stock virtlockd.
lockd_only() {
    [ "$LOCK_DAEMON" = lockd ] || skip "not with $LOCK_DAEMON: $1"
}

# wait_until SECONDS COMMAND...: for conditions that nobody announces.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for: $*" || return
        sleep 0.05
    done
}

# --- hosts

# host_up NAME [LOCK_MANAGER]: a host with its lock daemon and libvirtd running.
host_up() {
    local HOST=$1
    host_boot "$1"
    host_configure "${2:-lockd}"
    daemon_start
    libvirtd_start
}

host_boot() {
    local dir=$BATS_TEST_TMPDIR/$1
    mkdir -p "$dir"
    # fd 3 is bats' own: who keeps it open keeps bats waiting.
    read -r "host_pid[$1]" < <(exec unshare --mount --pid --net --ipc --uts --fork --kill-child \
        "$BATS_TEST_DIRNAME/host.sh" "$dir" "$1" 2>"$dir/init.log" 3>&-)
    host_waiter[$1]=$!
}

# Returns when the last process of the host is gone.
host_down() {
    kill -KILL "${host_pid[$1]}"
    wait "${host_waiter[$1]}" 2>/dev/null || true
    unset "host_pid[$1]" "host_waiter[$1]"
}

host_configure() {
    local etc=$BATS_TEST_TMPDIR/$HOST/etc
    cat >"$etc/qemu.conf" <<EOF
lock_manager = "$1"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
EOF
    cat >"$etc/libvirtd.conf" <<EOF
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
auth_unix_rw = "none"
EOF
}

# on HOST COMMAND...
on() {
    local pid=${host_pid[$1]}
    shift
    nsenter --mount --pid --net --ipc --uts --target "$pid" -- "$@" 3>&-
}

# start_process NAME COMMAND...: in the background of the host; its pid there is in /run/NAME.test-pid.
start_process() {
    local name=$1
    shift
    # shellcheck disable=SC2016 # expanded on the host
    on "$HOST" bash -c 'name=$1; shift; "$@" </dev/null >>"/var/log/libvirt/$name.log" 2>&1 & echo $! >"/run/$name.test-pid"' \
        - "$name" "$@"
}

# signal_process NAME SIGNAL
signal_process() {
    on "$HOST" kill "-$2" "$(cat "$BATS_TEST_TMPDIR/$HOST/run/$1.test-pid")"
}

daemon_start() {
    case $LOCK_DAEMON in
    lockd)
        # A file with defaults only.
        touch "$BATS_TEST_TMPDIR/$HOST/etc/lockd.conf"
        start_process daemon "$BUILD/lockd" -f /etc/libvirt/lockd.conf
        wait_until 10 lockd_admin list ;;
    virtlockd)
        start_process daemon virtlockd -f /etc/libvirt/virtlockd.conf
        wait_until 10 on "$HOST" virt-admin -c virtlockd:///system srv-list ;;
    esac
}

libvirtd_start() {
    start_process libvirtd libvirtd -f /etc/libvirt/libvirtd.conf
    wait_until 20 virsh list
}

# libvirtd_stop SIGNAL
libvirtd_stop() {
    signal_process libvirtd "$1"
    wait_until 10 process_gone libvirtd
}

process_gone() {
    ! signal_process "$1" 0
}

virsh() {
    on "$HOST" timeout 30 virsh -q -c qemu:///system "$@"
}

lockd_admin() {
    on "$HOST" timeout 10 "$BUILD/lockd-admin" "$@"
}

# use_lockspace DIRECTORY: the folder of lease files. libvirt tells the daemon when libvirtd starts.
use_lockspace() {
    # No empty lines: libvirt calls a file with nothing else a syntax error.
    echo "file_lockspace_dir = \"$1\"" >"$BATS_TEST_TMPDIR/$HOST/etc/qemu-lockd.conf"
    libvirtd_stop TERM
    libvirtd_start
}

# The name of an image's lease in such a folder.
lease_name() {
    printf '%s' "$1" | sha256sum | cut -d ' ' -f 1
}

# --- guests

# image NAME [FORMAT]: makes an image that all hosts see, and prints its path.
image() {
    qemu-img create -q -f "${2:-raw}" "$BATS_TEST_TMPDIR/$1.img" 1M
    echo "$BATS_TEST_TMPDIR/$1.img"
}

# disk_xml IMAGE[,FORMAT][,readonly|shareable] TARGET
disk_xml() {
    local path format=raw option='' word bus=virtio
    [[ $2 != sd* ]] || bus=scsi
    IFS=, read -r path word option <<<"$1,"
    case $word in
    raw | qcow2) format=$word ;;
    *) option=$word ;;
    esac
    option=${option%,}
    echo "<disk type='file' device='disk'><driver name='qemu' type='$format'/>"
    echo "<source file='$path'/><target dev='$2' bus='$bus'/><alias name='ua-$2'/>${option:+<$option/>}</disk>"
}

# guest NAME DISK...: defines a guest without an operating system. DISK as for disk_xml, or any XML element.
# QEMU's own image locks are told to let others in (share-rw), so that the lock daemon alone decides.
guest() {
    local name=$1 disk target targets=(vda vdb vdc)
    shift
    {
        echo "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        echo "<name>$name</name><uuid>$(uuid_of "$name")</uuid><memory unit='MiB'>32</memory>"
        echo "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
        echo "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='none'/>"
        echo "<memballoon model='none'/><audio id='1' type='none'/>"
        for disk; do
            if [[ $disk == "<"* ]]; then
                echo "$disk"
                continue
            fi
            disk_xml "$disk" "${targets[0]}"
            targets=("${targets[@]:1}")
        done
        echo "</devices><qemu:override>"
        for target in vda vdb vdc; do
            echo "<qemu:device alias='ua-$target'><qemu:frontend>"
            echo "<qemu:property name='share-rw' type='bool' value='true'/></qemu:frontend></qemu:device>"
        done
        echo "</qemu:override></domain>"
    } >"$BATS_TEST_TMPDIR/$HOST/$name.xml"
    virsh define "$BATS_TEST_TMPDIR/$HOST/$name.xml"
}

# The same on every host, as migration needs it.
uuid_of() {
    local hex
    hex=$(echo "$1" | md5sum)
    echo "${hex:0:8}-${hex:8:4}-4${hex:13:3}-8${hex:17:3}-${hex:20:12}"
}

pid_of() {
    cat "$BATS_TEST_TMPDIR/$HOST/run/libvirt/qemu/$1.pid"
}

# --- assertions

assert_state() { # GUEST STATE
    local state
    state=$(virsh domstate "$1")
    [ "$state" = "$2" ] || fail "$1 is '$state', not '$2'"
}

# What the kernel knows of byte 0, the byte that lock daemons lock: none, shared or exclusive.
kernel_lock() { # FILE
    local major minor inode file kind
    read -r major minor inode < <(stat -c '%Hd %Ld %i' "$1")
    printf -v file '%02x:%02x:%s' "$major" "$minor" "$inode"
    kind=$(awk -v file="$file" '$6 == file && $7 == 0 && $8 == 0 { print $4; exit }' /proc/locks)
    case $kind in
    '') echo none ;;
    READ) echo shared ;;
    WRITE) echo exclusive ;;
    esac
}

# leases [RESOURCE]: what the daemon lists, one JSON object per line.
leases() {
    local list
    list=$(lockd_admin list --json) || fail "lockd-admin list: $list" || return
    jq -c --arg resource "${1-}" '.leases[] | select($resource == "" or .resource == $resource)' <<<"$list"
}

# One line for each hold in the output of leases.
holds() {
    jq -r '. as $lease | .holds[]
        | "\($lease.state) \($lease.mode) \(.owner.name) \(.owner.uuid) \(.owner.pid)"
          + (if .unconfirmed then " unconfirmed" else "" end)' | sort
}

# assert_held FILE MODE GUEST...: locked in that mode by exactly these guests.
# RESOURCE=...: its name, where that is not the file's. MARK=" unconfirmed": the daemon says so of each hold.
assert_held() {
    local file=$1 mode=$2 guest held want
    shift 2
    held=$(kernel_lock "$file")
    [ "$held" = "$mode" ] || fail "$file: the kernel's lock is '$held', not '$mode'" || return
    [ "$LOCK_DAEMON" = lockd ] || return 0

    held=$(leases "${RESOURCE-$file}") || return
    held=$(holds <<<"$held")
    want=$(for guest; do echo "HELD $mode $guest $(uuid_of "$guest") $(pid_of "$guest")${MARK-}"; done | sort)
    [ "$held" = "$want" ] || fail "$file: the daemon lists" "$held" "instead of" "$want"
}

assert_free() { # FILE
    local held
    if [ -e "$1" ]; then
        held=$(kernel_lock "$1")
        [ "$held" = none ] || fail "$1: the kernel's lock is '$held'" || return
    fi
    [ "$LOCK_DAEMON" = lockd ] || return 0

    held=$(leases "${RESOURCE-$1}") || return
    [ -z "$held" ] || fail "$1: the daemon lists $held"
}

# Only the daemon's own view: daemons of other hosts lock the same files.
assert_nothing_held() {
    local held
    [ "$LOCK_DAEMON" = lockd ] || return 0
    held=$(leases) || return
    [ -z "$held" ] || fail "the daemon of $HOST lists $held"
}

# refused HOLDER COMMAND...: the command fails because of a lock, and the error names the holder (stock's does not).
refused() {
    local holder=$1 output reason
    shift
    if output=$("$@" 2>&1); then
        fail "not refused: $*" || return
    fi
    # Only the daemon's line: virsh's own may name the guest that is refused.
    reason=$(grep "resource busy: Lockspace resource '.*' is locked" <<<"$output") || fail "refused for another reason: $output" || return
    [ "$LOCK_DAEMON" = lockd ] || return 0
    [[ $reason == *"$holder"* ]] || fail "the error does not name '$holder': $reason"
}
