# SPDX-License-Identifier: LGPL-2.1-or-later
# Everything is built into build/ (or B=...). Targets: all, check, check-libvirt, demo, install, deps, clean.

VERSION    = 0.1
PREFIX     = /usr/local
SYSCONFDIR = $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
UNITDIR    = $(PREFIX)/lib/systemd/system
B          = build

CC       = gcc
CFLAGS   = -O2 -g
WARNINGS = -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wwrite-strings -Wundef -Wvla \
           -Wformat=2 -Wswitch-enum
# WERROR=1 (CI): a warning ends the build. SANITIZE=1: AddressSanitizer and UBSan.
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE $(WARNINGS) $(if $(WERROR),-Werror) $(CFLAGS) $(SANITIZERS)
SANITIZERS = $(if $(SANITIZE),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
comma     := ,

PACKAGES := libtirpc libsystemd libconfig mount json-c
ALL_CPPFLAGS = -Iinclude -Iprotocol -Iclient -I$(B)/protocol $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null) \
               -DLOCKD_VERSION='"$(VERSION)"' -DLOCKD_SYSCONFDIR='"$(SYSCONFDIR)"' $(CPPFLAGS)
DAEMON_LIBS := $(shell pkg-config --libs libtirpc libsystemd libconfig mount json-c 2>/dev/null)
ADMIN_LIBS  := $(shell pkg-config --libs libtirpc json-c 2>/dev/null)

DAEMON   = $(patsubst %.c,$(B)/%.o,$(wildcard daemon/*.c))
WIRE     = $(B)/protocol/frame.o $(B)/protocol/wire.o $(B)/protocol/virtlock_xdr.o $(B)/protocol/lockd_admin_xdr.o $(B)/protocol/record_xdr.o
GENERATED = $(B)/protocol/virtlock.h $(B)/protocol/record.h $(B)/protocol/lockd_admin.h

ADMIN    = $(patsubst %.c,$(B)/%.o,$(wildcard client/lockd-admin.c client/admin_*.c) client/orphan.c client/client.c)

# V=1 shows the commands.
run = $(if $(V),,@echo '  $(1) $@';)

all: $(B)/lockd $(B)/lockd-admin

$(B)/lockd: $(DAEMON) $(WIRE)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

$(B)/lockd-admin: $(ADMIN) $(WIRE)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(ADMIN_LIBS)

$(B)/protocol/%.h: protocol/%.x
	@mkdir -p $(@D)
	$(call run,RPCGEN)cd protocol && rpcgen -h $*.x >$(abspath $@).tmp && mv $(abspath $@).tmp $(abspath $@)

$(B)/protocol/%_xdr.c: protocol/%.x $(B)/protocol/%.h
	@mkdir -p $(@D)
	$(call run,RPCGEN)cd protocol && rpcgen -c $*.x >$(abspath $@).tmp && mv $(abspath $@).tmp $(abspath $@)

# rpcgen declares a variable that it does not always use.
$(B)/protocol/%_xdr.o: $(B)/protocol/%_xdr.c $(GENERATED)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -Wno-unused-variable -MMD -MP -c -o $@ $<

# Where lockd.conf is, is built in: a change of PREFIX builds these anew.
$(B)/sysconfdir: FORCE
	@mkdir -p $(@D)
	@echo '$(SYSCONFDIR)' | cmp -s - $@ || echo '$(SYSCONFDIR)' >$@

$(B)/daemon/config.o $(B)/daemon/main.o: $(B)/sysconfdir

FORCE:

$(B)/%.o: %.c $(GENERATED)
	@mkdir -p $(@D)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Each tests/test_*.c is a program of its own; those named test_unit_* also link the daemon's modules.
TESTS      = $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/test_*.c))
HARNESS    = $(patsubst %.c,$(B)/%.o,$(wildcard tests/harness.c tests/world.c)) $(B)/client/client.o $(WIRE)
BENCH      = $(addprefix $(B)/tests/bench/,load events floor)
TEST_LIBS  = -lcmocka $(DAEMON_LIBS) $(ADMIN_LIBS)

$(B)/tests/test_unit_%: $(B)/tests/test_unit_%.o $(filter-out $(B)/daemon/main.o,$(DAEMON)) $(HARNESS)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(TEST_LIBS)

$(B)/tests/test_%: $(B)/tests/test_%.o $(HARNESS)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(TEST_LIBS)

# Preloaded into lockd.
$(B)/tests/%.so: tests/%.c
	@mkdir -p $(@D)
	$(call run,LD)$(CC) -std=gnu11 -D_GNU_SOURCE $(WARNINGS) $(CFLAGS) $(if $(SANITIZE),-DFAULTS_NO_MALLOC) -fPIC -shared -o $@ $<

$(B)/tests/bench_%: $(B)/tests/bench_%.o $(HARNESS)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(TEST_LIBS)

# Small programs that the scripts use.
$(B)/tests/sockets: $(B)/tests/sockets.o
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^

tests: all $(TESTS) $(BENCH) $(B)/tests/vm $(B)/tests/sockets $(patsubst tests/%.c,$(B)/tests/%.so,$(wildcard tests/faults.c tests/valgrind_calls.c))

$(B)/tests/vm: $(B)/tests/vm.o $(B)/client/client.o $(WIRE)
	$(call run,$(if $(filter %.o,$@),CC,LD))$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(ADMIN_LIBS)

# Root only: the tests make namespaces of their own. TESTS_RUN="..." picks some of them.
# The numbers in tests/instructions are those of gcc's code without sanitizers.
SCRIPTS   = $(filter-out $(if $(SANITIZE)$(filter-out gcc,$(CC)),tests/instructions.bats),$(wildcard tests/*.bats))
TESTS_RUN = $(TESTS) $(SCRIPTS)
TEST_ENV  = BUILD=$(abspath $(B)) LOCKD=$(abspath $(B))/lockd LOCKD_ADMIN=$(abspath $(B))/lockd-admin MALLOC_PERTURB_=165

check: deps
	$(MAKE) check-run

check-run: tests
	$(TEST_ENV) tests/run $(B)/logs $(TESTS_RUN)

# Drives stock virtlockd, lockd and a floor that makes the system calls alone; prints a table. Takes a quarter of an hour.
$(B)/tests/bench/load $(B)/tests/bench/events: $(B)/tests/bench/%: $(B)/tests/bench/%.o $(B)/tests/bench/common.o $(WIRE)
	$(call run,LD)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(ADMIN_LIBS)

$(B)/tests/bench/floor: $(B)/tests/bench/floor.o
	$(call run,LD)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^

bench: deps
	@tests/install-packages $(BENCH_DEPS)
	$(MAKE) all $(BENCH)
	$(TEST_ENV) MALLOC_PERTURB_=0 tests/isolate tests/bench/run

bench-upgrade: deps
	$(MAKE) all $(B)/tests/bench_upgrade
	$(TEST_ENV) tests/isolate $(B)/tests/bench_upgrade

demo: deps-build
	$(MAKE) all $(B)/tests/vm
	$(TEST_ENV) tests/demo.sh

check-libvirt: deps deps-libvirt
	$(MAKE) all
	BUILD=$(abspath $(B)) tests/libvirt/run.sh

# By package name, from whatever the machine's apt is set up to use.
BUILD_DEPS   = gcc make pkg-config rpcsvc-proto libtirpc-dev libsystemd-dev libconfig-dev libmount-dev libjson-c-dev uthash-dev
TEST_DEPS    = systemd libcmocka-dev bats clang libclang-rt-14-dev jq mandoc shellcheck python3-minimal iproute2 procps e2fsprogs valgrind libvirt-daemon-system
BENCH_DEPS   = libvirt-daemon-system strace
LIBVIRT_DEPS = libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils

deps-build:
	@tests/install-packages $(BUILD_DEPS)

deps:
	@tests/install-packages $(BUILD_DEPS) $(TEST_DEPS)

deps-libvirt:
	@tests/install-packages $(LIBVIRT_DEPS)

SBINDIR = $(PREFIX)/sbin
MANDIR  = $(PREFIX)/share/man
UNITS   = lockd.service lockd.socket lockd-admin.socket

install: all
	install -D -m 755 $(B)/lockd $(DESTDIR)$(SBINDIR)/lockd
	install -D -m 755 $(B)/lockd-admin $(DESTDIR)$(SBINDIR)/lockd-admin
	[ -e $(DESTDIR)$(SYSCONFDIR)/lockd/lockd.conf ] || install -D -m 644 etc/lockd.conf $(DESTDIR)$(SYSCONFDIR)/lockd/lockd.conf
	for page in lockd.8 lockd-admin.8 lockd.conf.5; do \
		install -D -m 644 docs/$$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$$page; done
	install -d -m 755 $(DESTDIR)$(UNITDIR)
	for unit in $(UNITS); do \
		sed 's|@SBINDIR@|$(SBINDIR)|g' systemd/$$unit.in | install -m 644 /dev/stdin $(DESTDIR)$(UNITDIR)/$$unit; done

clean:
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)

.PHONY: FORCE all tests check check-run check-libvirt bench bench-upgrade demo deps deps-build deps-libvirt install clean
.SECONDARY:
