# Entry points for people and CI. Every target is one call: the logic is Rust (`integration/src`).
# What is downloaded or built for the tests is kept in ${LONGSHORE_CACHE:-~/.cache/longshore}, by content hash.
CARGO ?= cargo
# All packages are named, so that dependencies are compiled once for this program and the daemon it tests.
INTEGRATION = $(CARGO) build -q --locked --workspace --bin integration && target/debug/integration

.DEFAULT_GOAL := help
.PHONY: help deps build deb check test test-unit test-netns test-node test-cluster test-vm demo node-shell bench

help: ## this text
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

deps: ## install the Debian packages the tests need (sudo where needed)
	@scripts/install-deps

build: ## build the daemon and command line: target/debug/longshore
	@scripts/install-deps build
	$(CARGO) build -p longshore

deb: ## the Debian package of the release build: target/deb/longshore.deb
	@scripts/install-deps build
	@scripts/make-deb

check: ## format, lints, tidy, licences (and cargo-deny where it is installed)
	@scripts/install-deps build
	@$(INTEGRATION) check

test: ## every tier this machine can run; LONGSHORE_TIERS=all makes a skipped tier a failure
	@scripts/install-deps || echo "make test: going on with the tiers that can run without these"
	@$(INTEGRATION) test

test-unit: ## tiers 0 and 1: pure decisions and the daemon on fakes; needs nothing
	@scripts/install-deps build
	@$(INTEGRATION) test unit

test-netns: ## tier 2: real kernel interfaces in private network namespaces
	@scripts/install-deps build netns
	@$(INTEGRATION) test netns

test-node: ## tier 2b: scenarios on real containerd and crun in private namespaces (root)
	@scripts/install-deps build netns node
	@$(INTEGRATION) test node

test-cluster: ## tier 4: a node joined to a real control plane (root; Go 1.26, or CONTROL_PLANE_ASSETS=FOLDER); CONTROL_PLANE_VERSION=1.34.4 for another release
	@scripts/install-deps build netns node
	@$(INTEGRATION) test cluster

test-vm: ## tiers 3a and 3b: IPVS, cgroup v2, systemd, OOM in QEMU guests
	@scripts/install-deps build node vm
	@$(INTEGRATION) test vm

demo: deps ## boot a throwaway node and show the main job on real containers
	@$(INTEGRATION) demo

node-shell: deps ## boot the same node with the examples running and log in
	@$(INTEGRATION) shell

bench: ## figures of the release build, one JSON line each in target/bench/; ONLY=NAME for one (`integration bench --help`)
	@scripts/install-deps build netns node vm
	@$(INTEGRATION) bench $(ONLY)
