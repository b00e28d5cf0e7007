# The one entry point. `make help` says what there is; `make` alone builds.

.DEFAULT_GOAL := build
.PHONY: help build dist run test check bench model crash fuzz install uninstall clean

help:
	@echo "make build      compile everything into target/bin"
	@echo "make run        build, make a home, start the system there, deliver a first message"
	@echo "make test       everything that can be tried on this machine; installs what it drives"
	@echo "make check      format, lints, manual pages, completeness"
	@echo "make model      check the model of the queue: what must hold, and that each mistake in it is found (needs spin)"
	@echo "make crash      every fault once: each system call, power cuts, kills, full disks (20 minutes; target/crash.json)"
	@echo "make bench      measurements, ours beside its peers (doc/performance.md; BENCH=--quick: a quarter of an hour, not hours)"
	@echo "make install    as root, after make build: a system home (QMAIL_HOME=/var/qmail, DESTDIR=, ME=host name)"
	@echo "make uninstall  as root: take programs and manual pages out again; mail and control files stay"
	@echo "make fuzz       a minute of fuzzing for each parser (needs cargo-fuzz; FUZZ_SECONDS=60)"
	@echo "make dist       build with link-time optimisation: slower to build, smaller programs"
	@echo "make clean      remove what was built"

build:
	@scripts/build

dist:
	@PROFILE=dist scripts/build

run: build
	@scripts/run

test:
	@scripts/test

check: build
	@scripts/check

bench: build
	@python3 -m tests.bench $(BENCH) --json target/bench.json

model:
	@scripts/model

crash: build
	@python3 -m tests.crash --json target/crash.json

fuzz:
	@scripts/fuzz

# Does not build: root's cargo is another one, or none.
install:
	@scripts/mkhome --system "$${QMAIL_HOME:-/var/qmail}" $${ME:+--me "$$ME"} $${QMAIL_BIN:+--bin "$$QMAIL_BIN"}

uninstall:
	@scripts/uninstall "$${QMAIL_HOME:-/var/qmail}"

clean:
	cargo clean
