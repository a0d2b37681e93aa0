# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck disable=SC2030,SC2031 # each test is a process of its own
# shellcheck disable=SC2154 # variables of lib.bash and of bats
# What is installed, where, and that systemd can use it.

load lib

here=$BATS_TEST_DIRNAME/..

install_to() { # DESTDIR [VARIABLE=VALUE...]
    local destdir=$1
    shift
    # From a copy of what was built for the tests: other prefixes may need another compilation, and tests run side by side.
    [ -d "$WORK/build" ] || cp -a "$BUILD" "$WORK/build"
    make -s -C "$here" B="$WORK/build" DESTDIR="$destdir" "$@" install
}

@test "make install: every file in its place, readable for all" {
    # A strict mask is the installing user's, not that of those who read the manual.
    (umask 077 && install_to "$T/root" PREFIX=/usr)
    equals "$(cd "$T/root" && find . -type f -printf '%m %p\n' | sort -k 2)" "\
644 ./etc/lockd/lockd.conf
644 ./usr/lib/systemd/system/lockd-admin.socket
644 ./usr/lib/systemd/system/lockd.service
644 ./usr/lib/systemd/system/lockd.socket
755 ./usr/sbin/lockd
755 ./usr/sbin/lockd-admin
644 ./usr/share/man/man5/lockd.conf.5
644 ./usr/share/man/man8/lockd-admin.8
644 ./usr/share/man/man8/lockd.8"
    equals "$(find "$T/root/usr" "$T/root/etc" -type d ! -perm 755)" ""
    "$T/root/usr/sbin/lockd" --version
    "$T/root/usr/sbin/lockd-admin" --version
}

@test "make install: by default below /usr/local" {
    install_to "$T/root"
    for file in sbin/lockd etc/lockd/lockd.conf lib/systemd/system/lockd.service share/man/man8/lockd.8; do
        [ -f "$T/root/usr/local/$file" ]
    done
    grep -qx 'ExecStart=/usr/local/sbin/lockd' "$T/root/usr/local/lib/systemd/system/lockd.service"
    systemctl --root="$T/root" --quiet enable lockd.service
}

@test "make install: lockd reads the configuration that was installed with it" {
    install_to "$T/usr" PREFIX=/usr
    contains "$("$T/usr/usr/sbin/lockd" --help)" "instead of /etc/lockd/lockd.conf"
    install_to "$T/local"
    contains "$("$T/local/usr/local/sbin/lockd" --help)" "instead of /usr/local/etc/lockd/lockd.conf"
}

@test "make install: a configuration that is there is not overwritten" {
    mkdir -p "$T/root/etc/lockd"
    echo "max_clients = 7" >"$T/root/etc/lockd/lockd.conf"
    install_to "$T/root" PREFIX=/usr
    equals "$(cat "$T/root/etc/lockd/lockd.conf")" "max_clients = 7"
}

# --- units

UNITS="lockd.service lockd.socket lockd-admin.socket"

# A root folder with the units of this machine's systemd, stand-ins of libvirt's, and ours.
make_root() {
    local system=/usr/lib/systemd/system unit
    root=$T/root
    units=$root$system
    mkdir -p "$root/etc/systemd/system" "$units" "$root/bin"
    cp -r /lib/systemd/system/. "$units"
    rm -rf "$units"/{lib,}virt*
    install_to "$root" PREFIX=/usr
    cp "$root/usr/sbin/lockd" "$root/bin/kill" # must be there and executable
    cat >"$units/libvirtd.service" <<'END'
[Unit]
Requires=virtlockd.socket
After=local-fs.target remote-fs.target
[Service]
Type=notify
ExecStart=/bin/kill
[Install]
WantedBy=multi-user.target
Also=virtlockd.socket
END
    printf '[Service]\nExecStart=/bin/kill\n[Install]\nAlso=virtlockd.socket\n' >"$units/virtlockd.service"
    printf '[Socket]\nListenStream=/run/libvirt/virtlockd-sock\n[Install]\nWantedBy=sockets.target\n' >"$units/virtlockd.socket"
}

verify() { # UNIT...
    systemd-analyze --root="$root" --man=no verify "$@" 2>&1
}

@test "the units pass systemd-analyze verify, without a word" {
    make_root
    # shellcheck disable=SC2086 # words
    run -0 verify $UNITS
    equals "$output" ""
    # The check can fail.
    sed -i 's/^Type=.*/&\nNonsense=1/' "$units/lockd.service"
    run verify lockd.service
    contains "$output" Nonsense
    rm "$root/usr/sbin/lockd"
    run verify lockd.service
    contains "$output" "/usr/sbin/lockd is not executable"
}

@test "the units' documentation is installed" {
    install_to "$T/root" PREFIX=/usr
    grep -h ^Documentation= "$T/root/usr/lib/systemd/system/"* | grep -o 'man:[^ ]*' | sort -u >"$T/pages"
    [ -s "$T/pages" ]
    while IFS=':()' read -r _ page section; do
        [ -f "$T/root/usr/share/man/man$section/$page.$section" ] || fail "$page($section)"
    done <"$T/pages"
}

setting() { # UNIT KEY
    sed -n "s/^$2=//p" "$units/$1" | xargs
}

@test "the units keep the promises: nothing kills lockd, nothing hides the VMs' files" {
    make_root
    equals "$(setting lockd.service Type)" notify
    equals "$(setting lockd.service KillMode)" process
    equals "$(setting lockd.service SendSIGKILL)" no
    equals "$(setting lockd.service OOMScoreAdjust)" -1000
    [ "$(setting lockd.service LimitNOFILE)" -ge 40960 ]
    # Each of these gives the service a mount namespace or a /dev, /home or /tmp of its own, or stops another service.
    # shellcheck disable=SC2086 # words
    run -1 grep -HE '^(Private|Protect|ReadOnlyPaths|InaccessiblePaths|TemporaryFileSystem|BindPaths|Root|MountFlags|DynamicUser|Conflicts|WatchdogSec|RuntimeMaxSec)' \
        "$units/lockd.service" "$units/lockd.socket" "$units/lockd-admin.socket"
}

@test "the units' order: after the mounts, before libvirt, its guests and pacemaker" {
    make_root
    after=" $(setting lockd.service After) " before=" $(setting lockd.service Before) "
    contains "$after" " local-fs.target " " remote-fs.target " " dlm.service "
    contains "$before" " libvirtd.service " " virtqemud.service " " libvirt-guests.service " " pacemaker.service "
    # No cycle with what is there: it would be told.
    verify_boot() {
        verify multi-user.target libvirtd.service 2>&1 | grep -iE 'cycle|lockd'
    }
    systemctl --root="$root" --quiet enable lockd.service libvirtd.service
    run -1 verify_boot
    # The check can fail.
    sed -i 's/^Before=/&basic.target /' "$units/lockd.service"
    run -0 verify_boot
    contains "$output" cycle
}

@test "the sockets are libvirt's, with names that lockd knows" {
    make_root
    equals "$(setting lockd.socket ListenStream)" "$LOCK_SOCKET"
    equals "$(setting lockd-admin.socket ListenStream)" "$ADMIN_SOCKET"
    for unit in lockd.socket lockd-admin.socket; do
        equals "$(setting "$unit" FileDescriptorName)" "$unit"
        equals "$(setting "$unit" SocketMode)" 0600
    done
    equals "$(setting lockd-admin.socket Service)" lockd.service
    # As systemd would start it: both sockets by these names, and the service says when it is ready.
    spawn notify "$BUILD/tests/sockets" datagrams "$T/notify"
    wait_until grep -q ready "$T/notify.out"
    NOTIFY_SOCKET=$T/notify spawn lockd systemd-socket-activate -E NOTIFY_SOCKET -l "$T/lock" -l "$T/admin" \
        --fdname="$(setting lockd.socket FileDescriptorName):$(setting lockd-admin.socket FileDescriptorName)" \
        "$(setting lockd.service ExecStart | sed "s|^|$root|")" -f "$T/lockd.conf"
    wait_until test -S "$T/admin"
    VM_SOCKET=$T/lock vm alpha "$(image disk)"
    grep -qx READY=1 "$T/notify.out"
    run -0 lockd_admin -s "$T/admin" list
    contains "$output" alpha
    [ ! -e "$LOCK_SOCKET" ] && [ ! -e "$ADMIN_SOCKET" ]
}

@test "enabled, lockd stands in for the units that libvirt requires, and gives them back" {
    make_root
    # Whether it is read can be seen: systemd complains of the key.
    sed -i 's/^ListenStream=/Stock=yes\n&/' "$units/virtlockd.socket"
    systemctl --root="$root" --quiet enable virtlockd.socket
    run verify libvirtd.service
    contains "$output" Stock # as it was before
    systemctl --root="$root" --quiet enable lockd.service
    for unit in virtlockd.socket virtlockd-admin.socket virtlockd.service; do
        equals "$(readlink "$root/etc/systemd/system/$unit")" "/usr/lib/systemd/system/${unit#virt}"
    done
    run -0 verify libvirtd.service
    equals "$output" ""
    for unit in $UNITS; do
        equals "$(systemctl --root="$root" is-enabled "$unit")" enabled
    done
    # Installing or enabling libvirt afterwards changes nothing.
    systemctl --root="$root" --quiet enable libvirtd.service
    run -0 verify libvirtd.service
    equals "$output" ""
    # shellcheck disable=SC2086 # words
    systemctl --root="$root" --quiet disable $UNITS
    run verify libvirtd.service
    contains "$output" Stock
}

# --- the configuration

keys() {
    sed -n '/^} keys\[\] = {/,/^};/s/^ *{ "\([a-z_]*\)".*/\1/p' "$here/daemon/config.c"
}

@test "every key that lockd knows is in etc/lockd.conf and in lockd.conf(5), and no other" {
    [ "$(keys | wc -l)" -ge 9 ]
    equals "$(sed -n 's/^#\([a-z_]*\) = .*/\1/p' "$here/etc/lockd.conf" | sort)" "$(keys | sort)"
    equals "$(sed -n 's/^\.It Ic \([a-z_]*\)\( .*\)*$/\1/p' "$here/docs/lockd.conf.5" | sort -u)" "$(keys | sort)"
    # Each has a comment above it.
    equals "$(awk '/^#[a-z_]+ = / && before !~ /^# / && before !~ /^#[a-z_]+ = /; { before = $0 }' "$here/etc/lockd.conf")" ""
}
