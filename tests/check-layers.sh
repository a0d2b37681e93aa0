#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# check-layers.sh [TREE]: is the source still cut as docs/design.md says? Says what is wrong with file and line and fails;
# then prints the lines of each module against its ceiling. Comments and the contents of strings do not count as code.
set -euo pipefail
export LC_ALL=C
tree=${1:-$(dirname "$(readlink -f "$0")")/..}
cd "$tree"

# The house. A file includes only modules of a later line than its own; modules on one line do not know each other.
# MODULE is MODULE.c and MODULE.h; a number behind "=" is the ceiling of lines for both together, "only" names the modules
# that may include it where not all earlier ones may. Every file of daemon/, protocol/ and include/ has to be here.
house='
main=150
daemon=280           only main
upgrade giveback     only daemon
verify               only daemon
takeover             only main daemon giveback
restore              only main daemon upgrade giveback takeover
listener=150         only daemon restore
peer=350             only daemon restore listener
dispatch=220         only peer
rpc_lock=220 rpc_admin
rpc
caller               only rpc
snapshot=260         only upgrade restore rpc_admin
reaper=200
lockspace=330
lease                only lockspace snapshot verify
owner=160
storage=300          only lockspace takeover
lockfile=160         only lease storage
config=220           only main daemon giveback
state=260            only upgrade restore takeover
log fds fault
lockd_admin          only rpc_admin
record               only peer caller snapshot state lockd_admin restore
virtlock             only daemon peer dispatch rpc_lock rpc_admin rpc
wire                 only dispatch
frame                only listener peer dispatch rpc_lock rpc_admin wire
json_bytes           only state
utf8 uuid hash table list cleanup exit_codes
'

# Things that have one place in daemon/. PATTERN | FILES where it may be (globs) | why.
# Children may end and be killed: storage.c has one that flushes a device, upgrade.c and giveback.c one that tries a new
# binary. takeover.c reads virtlockd's JSON.
places='
json-c|\bjson_                       | state.c takeover.c                  | json-c is known to state.c and takeover.c only
F_(OFD_)?SETLK(64)?W                 |                                     | nothing waits for a lock
F_(OFD_)?SETLK                       | lockfile.c                          | locks are set in lockfile.c only
pidfd_send_signal|send_child_signal|SYS_(t|tg)?kill|SYS_rt_(tg)?sigqueueinfo | reaper.c | only reaper.c signals owners
\b(t|tg)?kill(pg)?\(|\b(raise|sigqueue|pthread_kill)\( | reaper.c upgrade.c giveback.c | only reaper.c signals owners
\bf?exec(l|v)[a-z]*\(|SYS_execve|\bposix_spawnp?\(|\bsystem\(|\bpopen\( | upgrade.c giveback.c holder/* | only upgrade.c, giveback.c and the holder execute programs
\bxdr[a-z]*_|\bXDR\b|\bwire_|<rpc/   | dispatch.[ch] rpc.[ch] rpc_*.c      | XDR is known to dispatch and rpc_* only
\b(quick_)?exit\(|\babort\(|\bassert\(|\bv?errx?\(|__builtin_(trap|abort) | main.c | below main nothing ends the process: that would release every lock
\b_[eE]xit\(|SYS_exit                | main.c storage.c upgrade.c giveback.c | below main nothing ends the process: that would release every lock
<uthash                              |                                     | uthash ends the process when memory is short: include hash.h
systemd/sd-event\.h|\bsd_event_      | daemon.c upgrade.* giveback.* verify.* listener.* peer.* reaper.* | events are known to daemon, upgrade, giveback, verify, listener, peer and reaper only
'

failures=0
complain() {
    echo "check-layers: $*" >&2
    failures=$((failures + 1))
}

# FILE:LINE:CODE of all sources, without comments; strings are emptied, except in #include.
code() {
    perl -e '
        for my $path (@ARGV) {
            open(my $f, "<", $path) or die "$path: $!\n";
            local $/;
            my $text = <$f>;
            my $keep_lines = sub { (my $lines = shift) =~ tr/\n//cd; $lines };
            $text =~ s{(^%?[ \t]*\#[ \t]*include[^\n/]*)|(/\*.*?\*/|//[^\n]*)|("(?:\\.|[^"\\\n])*")|(\x27(?:\\.|[^\x27\\\n])*\x27)}
                      {defined $1 ? $1 : defined $2 ? " " . $keep_lines->($2) : defined $3 ? "\"\"" : "\x27\x27"}gmse;
            my $n = 0;
            for (split /\n/, $text, -1) { $n++; s/[ \t]+\(/(/g; print "$path:$n:$_\n" if /\S/; }
        }' "$@"
}

declare -A level=() ceiling=() only=()
n=0
while read -r line; do
    [ -n "$line" ] || continue
    n=$((n + 1))
    users=${line#* only }
    [ "$users" != "$line" ] || users=
    for word in ${line%% only *}; do
        module=${word%%=*}
        level[$module]=$n only[$module]=$users
        case $word in *=*) ceiling[$module]=${word#*=} ;; esac
    done
done <<<"$house"

mapfile -t sources < <(find daemon protocol include client -name '*.[chx]' | sort)
stream=$(code "${sources[@]}")

# Every file has a place, and says under which licence it is.
for file in "${sources[@]}"; do
    first=
    read -r first <"$file" || true
    [[ $first == *'SPDX-License-Identifier: LGPL-2.1-or-later'* ]] || complain "$file:1: the SPDX line is missing"
    module=${file##*/} module=${module%.*}
    case $file in
    client/*) ;;
    *) [ -n "${level[$module]-}" ] || complain "$file: has no place in the table of $0" ;;
    esac
done

# Includes point to the right. Clients know nothing of daemon/.
include='^%?[[:space:]]*#[[:space:]]*include[[:space:]]*(["<])([^">]*)'
while IFS=: read -r file number text; do
    [[ $text =~ $include ]] || continue
    quote=${BASH_REMATCH[1]} path=${BASH_REMATCH[2]}
    included=${path##*/} included=${included%.h} module=${file##*/} module=${module%.*}
    # <rpc/rpc.h> is the system's
    if [ "$quote" = '<' ] && { [ "$path" != "${path##*/}" ] || [ -z "${level[$included]-}" ]; }; then
        continue
    elif [[ $file == client/* ]]; then
        [ ! -e "daemon/$included.h" ] || complain "$file:$number: includes the daemon's $included.h"
    elif [ -z "${level[$included]-}" ]; then
        complain "$file:$number: includes what is not in the table: $path"
    elif [ "$included" = "$module" ]; then
        continue
    elif [ "${level[$included]}" -le "${level[$module]:-0}" ]; then
        complain "$file:$number: $module must not know $included"
    elif [ -n "${only[$included]}" ] && [[ " ${only[$included]} " != *" $module "* ]]; then
        complain "$file:$number: $module must not know $included, which is for ${only[$included]}"
    fi
done < <(grep -E '^[^:]*:[0-9]+:%?[[:space:]]*#[[:space:]]*include' <<<"$stream")

# Each thing in its place.
while read -r line; do
    [ -n "$line" ] || continue
    why=${line##*| }
    rest=${line% |*}
    allowed=${rest##*|}
    pattern=${rest%|*}
    pattern=${pattern%"${pattern##*[! ]}"}
    while IFS=: read -r file number text; do
        [ -n "$file" ] || continue
        inside=
        set -f
        for glob in $allowed; do
            # shellcheck disable=SC2053 # a glob is meant
            [[ ${file#daemon/} != $glob ]] || inside=1
        done
        set +f
        [ -n "$inside" ] || complain "$file:$number: $why: ${text#"${text%%[! ]*}"}"
    done < <(grep -E "^daemon/[^:]*:[0-9]+:.*($pattern)" <<<"$stream" || true)
done <<<"$places"

printf '%-14s %6s %8s\n' module lines ceiling
total=0
while read -r line; do
    for word in ${line%% only *}; do
        module=${word%%=*}
        files=()
        for dir in daemon protocol include; do
            for suffix in c h x; do
                [ ! -e "$dir/$module.$suffix" ] || files+=("$dir/$module.$suffix")
            done
        done
        if [ ${#files[@]} = 0 ]; then
            complain "$module: is in the table and has no file"
            continue
        fi
        lines=$(cat "${files[@]}" | wc -l)
        total=$((total + lines))
        over=
        [ "$lines" -le "${ceiling[$module]:-$lines}" ] || over="over by $((lines - ceiling[$module]))"
        printf '%-14s %6d %8s %s\n' "$module" "$lines" "${ceiling[$module]:--}" "$over"
    done
done <<<"$house"
printf '%-14s %6d\n' total "$total"

[ "$failures" = 0 ] || { echo "check-layers: $failures found" >&2; exit 1; }
