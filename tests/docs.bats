#!/usr/bin/env bats
# SPDX-License-Identifier: LGPL-2.1-or-later
# The documents say what the programs do: options, commands, exit codes, keys, error codes, names, targets, versions.

bats_require_minimum_version 1.5.0

setup() {
    BUILD=${BUILD:-$(readlink -f "$BATS_TEST_DIRNAME/../build")}
    LOCKD=${LOCKD:-$BUILD/lockd}
    LOCKD_ADMIN=${LOCKD_ADMIN:-${LOCKD%/*}/lockd-admin}
    # DOCS_TREE: another tree, to try these tests on.
    cd "${DOCS_TREE:-$BATS_TEST_DIRNAME/..}" || return
}

# same WHAT ONE TWO: both lists are not empty and have the same lines.
same() {
    if [ -z "$2" ] || [ -z "$3" ]; then
        echo "$1: nothing found"
        return 1
    fi
    diff <(sort -u <<<"$2") <(sort -u <<<"$3") || {
        echo "$1: < here only, > there only"
        return 1
    }
}

# Options of a help text: "-f FILE, --config FILE" and the like become "-f" and "--config FILE".
help_options() {
    sed -nE 's/^ +((-[A-Za-z]|--[a-z-]+)(, --[a-z-]+)?( [A-Z]+)?)( .*|$)/\1/p' | sed -E 's/^(-[A-Za-z]), /\1\n/'
}

# Options that a part of a page describes (.It ...), in the same form. The argument's name is set in capitals.
page_options() {
    sed -nE 's/^\.It (Fl .*)/\1/p' | while read -r line; do
        argument=$(sed -nE 's/.* Ar ([a-z]+)$/\1/p' <<<"$line")
        sed -E 's/ Ar [a-z]+$//; s/Fl Fl ([a-z-]+)/--\1/g; s/Fl ([A-Za-z])/-\1/g; s/ , /\n/g; s/ (--)/\n\1/g' <<<"$line" |
            sed -E "/^--/s/\$/${argument:+ ${argument^^}}/"
    done
}

# section PAGE NAME: from .Sh or .Ss NAME to the next one.
section() {
    awk -v name="$2" '/^\.S[hs] /{ on = (substr($0, 5) == name) } on' "$1"
}

# --- options, commands, exit codes, keys

@test "options of lockd: --help and lockd(8)" {
    same "options of lockd" "$("$LOCKD" --help | help_options)" "$(section docs/lockd.8 DESCRIPTION | page_options)"
}

@test "options of lockd-admin: --help and lockd-admin(8)" {
    same "options before the command" "$("$LOCKD_ADMIN" --help | help_options)" \
        "$(section docs/lockd-admin.8 DESCRIPTION | page_options)"
}

admin_commands() {
    "$LOCKD_ADMIN" --help | sed -nE '/^Commands/,/^$/s/^  ([a-z-]+) .*/\1/p'
}

@test "commands of lockd-admin, and the options of each: --help and lockd-admin(8)" {
    same "commands" "$(admin_commands)" "$(sed -nE 's/^\.Ss ([a-z]+)$/\1/p' docs/lockd-admin.8)"
    same "synopsis" "$(admin_commands)" "$(section docs/lockd-admin.8 SYNOPSIS | sed -nE 's/^\.Cm ([a-z]+)$/\1/p')"
    for command in $(admin_commands); do
        help=$("$LOCKD_ADMIN" "$command" --help | help_options | grep -vE '^(-h|--help)$' || true)
        page=$(section docs/lockd-admin.8 "$command" | page_options | grep -vE '^(-h|--help)$' || true)
        if [ -n "$help$page" ]; then
            same "options of $command" "$help" "$page"
        fi
    done
}

@test "exit codes: include/exit_codes.h and lockd-admin(8)" {
    header=$(sed -nE 's|^ +EXIT_[A-Z]+ = ([0-9]+), +/\* (.*) \*/$|\1 \2|p' include/exit_codes.h)
    page=$(sed -nE 's/^\.It ([0-9]+) Ta (.*)/\1 \2/p' docs/lockd-admin.8)
    same "exit codes" "$header"$'\n0 done' "$page"
    # Those that lockd(8) and the help name are among them.
    for code in $(section docs/lockd.8 'EXIT STATUS' | grep -oE '\b[0-9]+\b') \
        $("$LOCKD_ADMIN" --help | sed -n '/^Exit codes/,$p' | grep -oE '\b[0-9]+ [a-z]' | cut -d ' ' -f 1); do
        [ "$code" = 8 ] || grep -qE "^$code " <<<"$page" || { echo "exit code $code is in no table"; return 1; }
    done
}

config_keys() {
    sed -nE 's/^ +\{ "([a-z_]+)", read_[a-z_]+ \},$/\1/p' daemon/config.c
}

@test "keys: daemon/config.c, lockd.conf(5) and etc/lockd.conf" {
    page=$(sed -nE 's/^\.It Ic ([a-z_]+) No = .*/\1/p' docs/lockd.conf.5)
    same "keys in lockd.conf(5)" "$(config_keys)" "$page"
    same "keys in etc/lockd.conf" "$(config_keys)" "$(sed -nE 's/^#([a-z_]+) = .*/\1/p' etc/lockd.conf)"
    of_lockspaces=$(sed -nE 's/.*strcmp\(config_setting_name\(setting\), "([a-z_]+)"\).*/\1/p' daemon/config.c)
    same "keys of a lockspace" "$of_lockspaces" "$(sed -n '/^\.It Ic lockspaces/,$s/^\.It Li //p' docs/lockd.conf.5)"
}

@test "defaults: daemon/config.c, lockd.conf(5) and etc/lockd.conf" {
    for key in log_level max_clients admin_max_clients max_lockspaces max_holds; do
        value=$(sed -nE "s/^ +\.$key = ([0-9]+),\$/\1/p" daemon/config.c)
        [ -n "$value" ]
        [ "$(sed -nE "s/^#$key = //p" etc/lockd.conf)" = "$value" ]
        sed -n "/^\.It Ic $key /,/^\.It/p" docs/lockd.conf.5 | grep -qE "^Default: ${value}[.;]"
    done
    for key in lock_socket admin_socket; do
        value=/run/$(sed -nE "s/^ +\.$key = config_runtime_path\(session, \"(.*)\"\),\$/\1/p" daemon/config.c)
        [ "$(sed -nE "s/^#$key = //p" etc/lockd.conf)" = "\"$value\"" ]
        sed -n "/^\.It Ic $key /,/^\.It/p" docs/lockd.conf.5 | grep -qF "$value"
        grep -qF "$value" docs/lockd.8 docs/protocol.md
    done
}

@test "sources of log lines: daemon/ and lockd.conf(5)" {
    sources=$(grep -rhoE '#define LOG_SOURCE "[a-z]+"' daemon | sed -E 's/.*"(.*)"/\1/')
    page=$(sed -n '/^\.It Ic log_filters/,/^\.It/p' docs/lockd.conf.5 | sed -nE 's/^\.Ql ([a-z]+)( [,.])?$/\1/p')
    same "sources" "$sources" "$page"
}

@test "states and owners' states: the table of lockd-admin and lockd-admin(8)" {
    states=$(sed -nE 's/^ +\[LOCKD_STATE_[A-Z]+\] = "(.*)",$/\1/p' client/admin_list.c)
    same "states" "$states" "$(section docs/lockd-admin.8 list | sed -nE 's/^\.It Li //p')"
    for word in $(sed -nE 's/^ +\[LOCKD_STATE_[A-Z]+\] = "(.*)",$/\1/p' client/admin_list.c); do
        grep -qw "$word" docs/design.md || { echo "design.md does not have $word"; return 1; }
    done
    owners=$(sed -nE 's/^ +\[LOCKD_OWNER_[A-Z]+\] = "(.*)",$/\1/p' client/admin_list.c)
    page=$(section docs/lockd-admin.8 JSON | tr '\n' ' ')
    while read -r state; do
        grep -qE "Ql $state( |\$)" <<<"$page" || { echo "owner state '$state' is not in lockd-admin(8)"; return 1; }
    done <<<"$owners"
}

@test "members of the JSON: lockd-admin and lockd-admin(8)" {
    same "members" "$(grep -oE 'object_add\((object|entry), "[a-z_]+"' client/admin_list.c | grep -oE '"[a-z_]+"' | tr -d '"')" \
        "$({ echo version; echo leases; section docs/lockd-admin.8 JSON |
            sed -nE 's/^(\.It )?\.?Li (.*)$/\2/p; s/^\.It Li (.*)/\1/p' | tr -d ',' | tr ' ' '\n'; } | grep -E '^[a-z_]+$')"
    grep -qE "^#define JSON_VERSION 1$" client/admin_list.c
    section docs/lockd-admin.8 JSON | grep -qE '^is 1;'
}

# --- man pages

pages() {
    ls docs/*.[1-9]
}

@test "man pages: mandoc has no complaint" {
    for page in $(pages); do
        # What is installed on this machine is no business of the page's.
        complaints=$(mandoc -T lint -W style "$page" 2>/dev/null | grep -v 'referenced manual not found' || true)
        [ -z "$complaints" ] || { echo "$complaints"; return 1; }
        [ -n "$(mandoc -T ascii "$page" 2>/dev/null)" ]
    done
}

@test "man pages: each page that another one refers to exists" {
    local known=' fcntl.2 sd_listen_fds.3 sd_notify.3 virtlockd.8 '
    for page in $(pages); do
        while read -r name number; do
            [ -e "docs/$name.$number" ] || [[ $known == *" $name.$number "* ]] || {
                echo "$page refers to $name($number)"
                return 1
            }
        done < <(sed -nE 's/^\.Xr ([^ ]+) ([0-9]).*/\1 \2/p' "$page")
        # Sections that are named exist, too.
        while read -r name; do
            grep -qE "^\.S[hs] $name\$" "$page" || { echo "$page: no section $name"; return 1; }
        done < <(sed -nE 's/^\.Sx (.*[A-Za-z])( [,.])?$/\1/p' "$page")
    done
    # And the programs name pages that exist.
    for reference in $({ "$LOCKD" --help; "$LOCKD_ADMIN" --help; } | grep -oE 'lockd[a-z.-]*\([0-9]\)'); do
        [ -e "docs/${reference%(*}.${reference: -2:1}" ]
    done
}

@test "man pages: all are installed" {
    for page in $(pages); do
        grep -qE "for page in.* $(basename "$page" | sed 's/\./\\./g')( |;)" Makefile || { echo "$page is not installed"; return 1; }
    done
}

# --- the other documents

# Lines of a file that are commands: indented by four or more.
commands_in() {
    sed -nE 's/^ {4,}([a-z].*)/\1/p' "$1"
}

@test "README.md, CONTRIBUTING.md: each make target exists" {
    targets=$(cat README.md CONTRIBUTING.md | grep -oE '(^ +|`)make( [A-Za-z=./-]+)*' | tr ' `' '\n\n' |
        grep -E '^[a-z-]+$' | grep -v '^make$' | sort -u)
    [ -n "$targets" ]
    for target in $targets; do
        grep -qE "^$target:" Makefile || { echo "no target $target"; return 1; }
    done
    for needed in demo check check-libvirt install deps; do
        grep -qx "$needed" <<<"$targets" || { echo "README.md does not say 'make $needed'"; return 1; }
    done
}

@test "README.md: exactly two commands in the quick start" {
    start=$(sed -n '/^## Quick start/,/^## Use/p' README.md | sed -nE 's/^ {4}(.*)/\1/p')
    [ "$start" = $'make demo\nmake check' ]
}

@test "README.md: the packages are the Makefile's" {
    packages=$(commands_in README.md | sed -n 's/^apt-get install //p' | tr ' ' '\n')
    same "packages" "$packages" "$(sed -n 's/^BUILD_DEPS *= *//p' Makefile | tr ' ' '\n')"
}

@test "commands of lockd-admin that documents show exist" {
    for command in $(cat README.md SECURITY.md docs/*.[1-9] docs/*.md | grep -oE '(^|[ `#])lockd-admin [a-z]+' | awk '{ print $NF }' | sort -u); do
        case $command in who) continue ;; esac # design.md: planned
        admin_commands | grep -qx "$command" || [ "$command" = asks ] || { echo "lockd-admin has no command $command"; return 1; }
    done
}

@test "documents: each file that they name or link to exists" {
    for document in README.md SECURITY.md CONTRIBUTING.md NEWS docs/*.md; do
        while read -r path; do
            [ -e "$path" ] || [ -e "docs/$path" ] || { echo "$document names $path"; return 1; }
        done < <({ grep -oE '\]\([^)#:]+\)' "$document" | tr -d '()]' || true
            grep -oE '`(daemon|client|protocol|include|tests|docs|etc|systemd)/[A-Za-z_./-]*[a-z/]`' "$document" | tr -d '`' |
                grep -v 'permitted-skips\|NAME' || true; })
    done
}

# A line "`f`, `g` ... `daemon/x.c`": f and g are functions of one of the files that the line names.
@test "documents: functions that they name are in the files that they name" {
    checked=0
    while IFS= read -r line; do
        files=$(grep -oE '`(daemon|client|protocol)/[a-z_-]+\.c`' <<<"$line" | tr -d '`') || continue
        for function in $(grep -oE '`[a-z]+(_[a-z]+)*`' <<<"$line" | tr -d '`'); do
            checked=$((checked + 1))
            # shellcheck disable=SC2086 # several files
            grep -qE "^[A-Za-z].*[ *]$function\(" $files || { echo "no function $function in $files"; return 1; }
        done
    done < <(sed -n '/^An acquire, in one sitting/,/^## /p' README.md; sed -n '/^### Acquire/,/^###/p' docs/design.md | grep '^| [0-9]')
    [ "$checked" -gt 30 ]
    # Elsewhere in design.md: a module, or a name in the source.
    for function in $(grep -oE '`[a-z]+(_[a-z]+)+`' docs/design.md | tr -d '`' | sort -u); do
        [ -e "daemon/$function.c" ] || grep -qrE "\b$function\b" daemon client || { echo "design.md names $function"; return 1; }
    done
}

@test "design.md: the house is the tree, from the top down" {
    house=$(sed -n '/^## The house/,/^###/p' docs/design.md | sed -nE 's/^\| (`[^|]*`) \|.*/\1/p' | tr -d '`,' | tr ' ' '\n')
    same "modules" "$house" "$(basename -a daemon/*.c | sed 's/\.c$//')"
    # The chain has the same order as the table of the checker.
    order=$(sed -nE "/^house='/,/^'/p" tests/check-layers.sh | sed -E 's/ only .*//; s/=[0-9]+//g' | grep -oE '[a-z_-]+' | grep -vx house)
    last=0
    for module in $(sed -nE '/^    main ->/,/^$/p' docs/design.md | sed 's/rpc_\*/rpc_lock rpc_admin/' | grep -oE '[a-z_]+/?' | grep -v /); do
        line=$(sed -nE "/^house='/,/^'/p" tests/check-layers.sh | grep -nE "(^| )$module(=| |\$)" | head -n 1 | cut -d : -f 1)
        [ -n "$line" ] && [ "$line" -ge "$last" ] || { echo "$module stands elsewhere in check-layers.sh"; return 1; }
        last=$line
    done
    [ -n "$order" ]
}

@test "protocol.md: numbers are those of protocol/ and daemon/" {
    number() { grep -hoE "\b$1 = *[0-9A-Fx]+" protocol/*.x | sed 's/.*= *//'; }
    comma() { sed -E ':a; s/^([0-9]+)([0-9]{3})/\1,\2/; ta' <<<"$(($1))"; }
    has() { grep -qF -- "$1" docs/protocol.md || { echo "protocol.md does not have: $1"; return 1; }; }
    has "program $(number VIRTLOCK_PROGRAM), version $(number VIRTLOCK_VERSION)"
    has "program $(number LOCKD_ADMIN_PROGRAM), version $(number LOCKD_ADMIN_VERSION)"
    has "| a frame on the lock socket | $(comma "$(number VIRTLOCK_MESSAGE_MAX) + 28") bytes |"
    has "| a frame on the admin socket | $(comma "$(number LOCKD_ADMIN_MESSAGE_MAX)") bytes |"
    has "| a reply on the admin socket | $(comma "$(number LOCKD_ADMIN_REPLY_MAX)") bytes |"
    has "| path of an image or of a lockspace | $(comma "$(number VIRTLOCK_PATH_MAX)") bytes |"
    has "| name of a lease | $(comma "$(number VIRTLOCK_NAME_MAX)") bytes |"
    has "| name of an owner | $(comma "$(sed -n 's/^#define OWNER_NAME_MAX //p' daemon/owner.h)") bytes |"
    has "| detail of an error | $(comma "$(sed -n 's/^#define RPC_DETAIL_MAX //p' daemon/rpc.h) - 1") bytes |"
    has "at most $(sed -nE 's/^#define REFUSED_MAX ([0-9]+).*/\1/p' daemon/listener.c) are open at a time"
    has "open files less $(sed -nE 's/^#define FDS_SPARE ([0-9]+)U/\1/p' daemon/fds.h) kept"
    same "procedures of the lock program" "$(grep -oE 'VIRTLOCK_[A-Z_]+ +=[ 0-9]+[,]?' <(sed -n '/^enum virtlock_procedure/,/}/p' protocol/virtlock.x) |
        sed -E 's/VIRTLOCK_([A-Z_]+) += ([0-9]+).*/\2 \1/')" \
        "$(sed -n '/^## Lock/,/^## Admin/p' docs/protocol.md | sed -nE 's/^\| ([0-9]+) \| ([A-Z_]+) \| .*\|.*\|$/\1 \2/p' | grep -vE ' (INTERNAL|INVALID_ARG|OPERATION_DENIED|SYSTEM|RPC|OPERATION_INVALID|RESOURCE_BUSY)$')"
    same "procedures of the admin program" "$(sed -n '/^enum lockd_admin_procedure/,/}/p' protocol/lockd_admin.x | sed -nE 's/^ +LOCKD_ADMIN_([A-Z]+) += ([0-9]+).*/\2 \1/p')" \
        "$(sed -n '/^## Admin/,$p' docs/protocol.md | sed -nE 's/^\| ([0-9]+) \| ([A-Z_]+) \|.*/\1 \2/p')"
    same "error codes" "$(sed -n '/^enum virtlock_error_code/,/}/p' protocol/virtlock.x | sed -nE 's/^ +VIRTLOCK_ERR_([A-Z_]+) += ([0-9]+).*/\2 \1/p')" \
        "$(sed -n '/^### Errors/,/^Domains/p' docs/protocol.md | sed -nE 's/^\| ([0-9]+) \| ([A-Z_]+) \|.*/\1 \2/p')"
}

@test "protocol.md: the texts of errors are the daemon's" {
    # String literals that are continued on the next line become one.
    source=$(cat daemon/*.c | perl -0pe 's/"\s*\n\s*"//g')
    compared=0
    while read -r text; do
        # A single capital letter, "VM ..." and "..." stand for what is filled in, "by" is where messages are put together.
        while read -r words; do
            [ "${#words}" -gt 8 ] || continue
            compared=$((compared + 1))
            grep -qF -- "$words" <<<"$source" || { echo "the daemon does not say: $words"; return 1; }
        done < <(sed -E "s/(0x[A-Z]|'?\b[A-Z]\b'?| VM|\.\.\.| max_clients| virLock[A-Za-z]*| by |, which is not |[0-9]{2,})/\n/g" <<<"$text" | sed -E 's/^[ :]+//; s/[ :]+$//')
    done < <(sed -n '/^| situation/,/^| frames that/p' docs/protocol.md | sed -E 's/^\|[^|]*\|[^|]*\|//' | grep -oE '`[A-Za-z.][^`]*`' | tr -d '`')
    [ "$compared" -ge 30 ]
}

@test "the version is one" {
    version=$(sed -nE 's/^VERSION *= *//p' Makefile)
    [ -n "$version" ]
    grep -qE "^lockd $version( |\$)" NEWS
    # The newest comes first.
    [ "$(grep -m 1 -oE '^lockd [0-9.]+' NEWS)" = "lockd $version" ]
    [ "$("$LOCKD" --version)" = "lockd $version" ]
    [ "$("$LOCKD_ADMIN" --version)" = "lockd-admin $version" ]
}

@test "documents: no marks of unfinished work, no trailing blanks" {
    ! grep -nE 'TODO|FIXME|XXX|[[:blank:]]$' README.md NEWS SECURITY.md CONTRIBUTING.md docs/*.[1-9] docs/*.md
}
