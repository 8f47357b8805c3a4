# Everything one does with this project, from a clean Debian 12 that has Rust, Go and make. `make help`
# lists it.
#
# Builds go one after the other, not side by side: cargo and go keep all cores busy by themselves.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help check test soak skew conformance nightly mutations fuzz older-linux older-kubernetes arm64 dockerfile azure-cli bench-scale bench-node bench-wire bench-peers plots pictures book release release-programs check-dependencies demo demo-down manifests images images-root build cluster-build setup \
	check-format check-clippy check-docs check-plugin-alone check-one-build check-go check-chart \
	test-go test-units test-conduct test-conduct-short test-others test-clusters build-tests test-nightly
MAKEFLAGS += --no-print-directory

# `dev` for tests; `release` for images that are to be used (the Dockerfile does).
PROFILE ?= dev
# What is built is for this machine, or with ARCH=arm64 for that one (tests/arm64).
HERE := $(shell dpkg --print-architecture)
ARCH := $(HERE)
ifeq ($(ARCH),$(HERE))
SETUP := tests/setup.sh cargo
CARGO := cargo
TRIPLE = $(shell rustc --version --verbose | sed -n 's/^host: //p')
IMAGES := target/images
# The Debian whose programs the images hold. How a program in a root file system is run, and what tells which
# libraries it loads.
DEBIAN := /
CHROOT := chroot
LDD := ldd
NFT := /usr/sbin/nft --version
else ifeq ($(ARCH),arm64)
SETUP := tests/arm64/setup.sh
CARGO := cargo --config tests/arm64/cargo.toml
TRIPLE := aarch64-unknown-linux-gnu
IMAGES := target/images-arm64
DEBIAN := $(CURDIR)/target/arm64/debian
CHROOT := $(CURDIR)/tests/arm64/chroot
LDD := $(CHROOT) $(DEBIAN) /lib/ld-linux-aarch64.so.1 --list
# The emulator knows nothing of netlink, without which nft ends: its libraries are there.
NFT := /lib/ld-linux-aarch64.so.1 --list /usr/sbin/nft
else
$(error there is no way yet to build for $(ARCH) on another machine)
endif
TARGET = target/$(TRIPLE)
OUT = $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
TOOLS := target/cluster/bin
# The flags with which `cluster build` compiled Kubernetes: with others, vet and test would compile it again.
GO := GOFLAGS="-trimpath -buildvcs=false" go
# The parts of `tests/cluster` to build: all of it, or only these. The demo, and an API server with the chart,
# need less.
PARTS ?=
DEMO_PARTS := kube helm probe cluster
# Helm built from its module doesn't know which Kubernetes it is for.
HELM_LINT := $(TOOLS)/helm lint --strict --kube-version 1.36.3 charts/vnetpool

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

check: setup ## format, lints, units, the model, and the operator before a real API server: minutes
	@tests/run-all.sh check

test: setup ## every check and every test that gates a landing; the last line is the total
	@tests/run-all.sh test

# Chaos on a cluster: MINUTES of it, by what SEED draws.
soak: build images build-tests ## MINUTES=10 SEED=7 MODE=Prefix WIRING=Bridge: all that can end is ended while pods come and go
	@$(MAKE) test-clusters RUN=soak

# The later release is built by the test itself, beside these images.
skew: build images build-tests ## this release beside a later one, a step ahead in each format: each mixture, upgrade and rollback under traffic
	@$(MAKE) test-clusters RUN=skew

# Kubernetes' own suite is built for this alone. With NIGHTLY all combinations come one after the other.
conformance: PARTS = kube helm coredns probe cluster conformance agnhost
conformance: build images build-tests ## PROXY_MODE=nftables MODE=Prefix WIRING=Bridge: Kubernetes' own specs of the network
	@$(MAKE) test-clusters RUN=sig-network

nightly: setup ## the same and what is too long for that
	@tests/run-all.sh nightly

# Those of one rule: cargo test --workspace --test mutations -- RULE
mutations: setup ## each rule of safety left out of a copy of the product: do the tests notice?
	cargo test --workspace --test mutations

# LLVM's own library, and C++'s, in which it is written.
fuzz: PACKAGES = g++ libclang-rt-dev
fuzz: setup ## MINUTES=10 READER=nic: libFuzzer makes bytes for each of our readers, for so long each
	@tests/fuzz/run.sh $(or $(MINUTES),10) $(READER)

# The kernel isn't installed: an emulator boots it.
older-linux: setup ## the tests of the kernel that plugin and agent have, on Linux 6.1
	@tests/older-linux/setup.sh
	cargo test --workspace --test older-linux

# The emulator starts no further program for arm64 and knows no netlink. Whoever starts a program in it goes
# on before that one runs.
NOT_EMULATED := agent:: cleanup:: without_inotify a_process_that_can_not_come_back a_plugin_that_runs_is_replaced
arm64: ## the images for arm64, and the unit tests of plugin and agent under an emulator
	@$(MAKE) images-root ARCH=arm64
	cargo --config tests/arm64/cargo.toml test --no-fail-fast --package vnetpool-plugin --package vnetpool-node-agent --lib -- \
		$(addprefix --skip ,$(NOT_EMULATED))

# What asks an API server about the kinds, the policies and the chart.
older-kubernetes: PARTS = kube kube-older helm monitors probe cluster
older-kubernetes: PACKAGES = prometheus
older-kubernetes: build cluster-build ## the tests of CRDs, policies and chart on the oldest Kubernetes that the chart takes
	KUBERNETES=older cargo test --workspace --no-fail-fast --test admission

dockerfile: PACKAGES = debootstrap podman
dockerfile: images-root ## the images by podman from the Dockerfile, on a base by debootstrap
	@tests/dockerfile.sh

# From its registry, with all that it needs.
AZURE_CLI := 2.91.0
azure-cli: PACKAGES = python3-venv
azure-cli: setup ## the documents' commands of az, typed to the real one on simulated Azure
	@[ "$$(cat target/azure-cli/version 2> /dev/null)" = $(AZURE_CLI) ] || { \
		rm -rf target/azure-cli; \
		python3 -m venv target/azure-cli; \
		target/azure-cli/bin/pip install --quiet --disable-pip-version-check azure-cli==$(AZURE_CLI); \
		echo $(AZURE_CLI) > target/azure-cli/version; }
	cargo test --workspace --test azure-cli

# The API server has one core or two instead of dozens, and half of its time would go into collecting garbage.
# Without a limit it takes 20 GB at 5,000 nodes, as it may collect when its memory has grown fivefold.
# Of a release build: SCENARIO is all, or some of join,idle,churn,edit,strangers,outage,takeover,relist.
SCENARIO ?= all
NODES ?= 1000
SUBSCRIPTIONS ?= 1
EACH ?= 12
# Two thirds of EACH, if it isn't given.
PODS ?=
bench-scale: PARTS = kube helm cluster
bench-scale: setup cluster-build ## what a cluster of NODES costs, to target/bench/scale.json
	GOGC=400 GOMEMLIMIT=8GiB cargo bench --workspace --bench scale -- $(SCENARIO) $(NODES) $(SUBSCRIPTIONS) $(EACH) $(PODS)

# With the reference plugins and a floor as peers. The harness is built as tests are; only the
# plugins' own builds count.
bench-node: setup bench-peers ## what ADD and DEL cost beside other plugins, to target/bench/node.json
	cargo build --profile plugin --package vnetpool-plugin
	gcc -O2 -static -o target/bench/floor node-agent/plugin/benches/floor.c
	cargo bench --profile dev --workspace --bench add_del
	cargo bench --profile dev --workspace --bench waiting

bench-wire: setup bench-peers ## what pods of two nodes get through the wire beside others, to target/bench/wire.json
	cargo bench --profile dev --workspace --bench wire

bench-peers:
	@tests/setup.sh go
	mkdir -p target/bench
	cd tests/cluster/plugins && CGO_ENABLED=0 $(GO) build -ldflags "-s -w" -o $(CURDIR)/target/bench/ tool

# The programs come first and the simulator and the planner are shown by themselves, while Kubernetes is still
# to be built.
demo: PARTS = $(DEMO_PARTS)
demo: build ## simulated Azure, a three-node cluster, and the main job shown on it
	@$(OUT)/demo glimpse
	@$(MAKE) images PARTS="$(DEMO_PARTS)"
	@$(OUT)/demo

plots: build ## what the benchmarks have measured, drawn for docs/evidence
	$(OUT)/plots

pictures: build images ## the demo beside a Prometheus: its transcript and the dashboards' pictures, for docs/evidence
	$(OUT)/demo pictured | tee target/demo.txt
	$(OUT)/plots

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
RELEASE := target/release-$(VERSION)
CLI = kubectl-vnetpool-$(VERSION)-linux-$(ARCH).tar.gz
CHART := vnetpool-$(VERSION).tgz
# The same source gives the same archives.
PACK := tar --create --sort=name --owner=0 --group=0 --mode=u=rwX,go=rX --mtime=@0
CYCLONEDX := 0.5.9
DENY := 0.20.2

# The architectures of a release.
ARCHITECTURES := amd64 arm64
release: PARTS = helm cluster
release: PROFILE = release
release: cluster-build ## what a release consists of, in target/release-VERSION; nothing is published
	rm -rf $(RELEASE)
	mkdir -p $(RELEASE)
	for arch in $(ARCHITECTURES); do $(MAKE) release-programs ARCH=$$arch PROFILE=$(PROFILE); done
	$(TOOLS)/cluster release --tag $(VERSION) --architectures $$(tr ' ' , <<< '$(ARCHITECTURES)') --out $(RELEASE)
	$(TOOLS)/helm package charts/vnetpool --destination target
	tar --extract --touch --file target/$(CHART) --one-top-level=$(RELEASE).chart
	$(PACK) --directory $(RELEASE).chart vnetpool | gzip -n > $(RELEASE)/$(CHART)
	rm -r $(RELEASE).chart target/$(CHART)
	cat crds/manifests/*.yaml > $(RELEASE)/vnetpool-crds-$(VERSION).yaml
	sed 's/$$VERSION/$(VERSION)/g' operator/kubectl/krew.yaml > $(RELEASE)/krew-vnetpool.yaml
	for arch in $(ARCHITECTURES); do \
		sum=$$(sha256sum < $(RELEASE)/kubectl-vnetpool-$(VERSION)-linux-$$arch.tar.gz | cut -c 1-64); \
		sed -i "s/\$$SHA256_$$arch/$$sum/" $(RELEASE)/krew-vnetpool.yaml; \
	done
	cargo install --quiet --locked --root target/cyclonedx --version $(CYCLONEDX) cargo-cyclonedx
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) target/cyclonedx/bin/cargo-cyclonedx cyclonedx --format json --describe binaries --target $(TRIPLE)
	mv operator/vnetpool-operator_bin.cdx.json operator/kubectl/kubectl-vnetpool_bin.cdx.json \
		node-agent/vnetpool-node-agent_bin.cdx.json node-agent/plugin/vnetpool_bin.cdx.json $(RELEASE)
	find . -name '*.cdx.json' -not -path './target/*' -delete
	cd $(RELEASE) && sha256sum * > SHA256SUMS
	@cat $(RELEASE)/SHA256SUMS

# What a release has for each architecture. The records are dpkg's, of the Debian whose programs the images
# hold.
release-programs: images-root
	$(CARGO) build --profile $(PROFILE) --package vnetpool-kubectl
	$(PACK) LICENSE --directory $(OUT) kubectl-vnetpool | gzip -n > $(RELEASE)/$(CLI)
	DPKG_ADMINDIR=$(DEBIAN)/var/lib/dpkg tests/sbom.sh $(IMAGES)/node-agent vnetpool-node-agent $(VERSION) \
		> $(RELEASE)/vnetpool-node-agent-$(ARCH)_debian.cdx.json

check-dependencies: setup ## licences, sources and bans of all that is linked in
	cargo install --quiet --locked --root target/deny --version $(DENY) cargo-deny
	target/deny/bin/cargo-deny --locked check bans licenses sources

demo-down: ## take the demo's cluster down, also after a crash
	@if [ -x $(TOOLS)/cluster ]; then $(TOOLS)/cluster down --dir target/cluster/demo; fi

manifests: build ## write the CRDs and the pages of docs/reference anew, after a change of what they are made from
	$(OUT)/vnetpool-crds crds/manifests docs/reference
	cp crds/manifests/*.yaml charts/vnetpool/crds/
	$(OUT)/reference

MDBOOK := 0.5.4
# The documents, and the files that they link to.
SITE := docs README.md CHANGELOG.md LICENSE examples charts/vnetpool/values.yaml charts/vnetpool/monitoring/alerts.yaml tests/cluster/cluster/packages.go

book: build ## the documents as a site, in the folder book; the first time it compiles mdBook, for minutes
	cargo install --quiet --locked --root target/mdbook --version $(MDBOOK) --no-default-features --features search mdbook
	rm -rf target/site
	mkdir -p target/site
	cp --parents --recursive $(SITE) target/site
	sed -e 's|](|](docs/|' -e 's|](docs/\.\./|](|' docs/SUMMARY.md > target/site/SUMMARY.md
	rm target/site/docs/SUMMARY.md
	target/mdbook/bin/mdbook build
	$(OUT)/links book

images: images-root cluster-build ## the images of operator and node agent, as archives the test cluster loads
	$(TOOLS)/cluster images

setup:
	@PACKAGES="$(PACKAGES)" $(SETUP)

build: setup
	cargo build --workspace --bins

cluster-build:
	@tests/setup.sh go
	cd tests/cluster && go run -trimpath -buildvcs=false ./cluster build $(PARTS)

# The most that the plugin may have: every pod waits for its pages. A program that only prints a line
# has 1,091,064.
PLUGIN_BYTES := 1500000
# The images' root file systems. They start from scratch: our programs are static. Of Debian there is only
# nft, whose language for rules is the one stable interface to nftables, and the older iptables, whose tables
# nft doesn't see; with the libraries they load.
images-root: setup
	$(CARGO) build --profile $(PROFILE) $(if $(filter dev-$(HERE),$(PROFILE)-$(ARCH)),--workspace --bins,--package vnetpool-operator --package vnetpool-node-agent)
	$(CARGO) build --profile plugin --package vnetpool-plugin
	@size=$$(stat -c %s $(TARGET)/plugin/vnetpool); (( size <= $(PLUGIN_BYTES) )) || { \
		echo "the plugin has $$size bytes, and $(PLUGIN_BYTES) are enough"; exit 1; }
	rm -rf $(IMAGES).new
	install -D -t $(IMAGES).new/operator $(OUT)/vnetpool-operator
	install -D -t $(IMAGES).new/node-agent $(OUT)/vnetpool-node-agent $(TARGET)/plugin/vnetpool
	cd $(DEBIAN) && cp --parents --dereference --recursive --target-directory $(CURDIR)/$(IMAGES).new/node-agent \
		usr/sbin/{nft,iptables-legacy} usr/lib/$(subst -unknown,,$(TRIPLE))/xtables \
		$$(for program in nft iptables-legacy; do $(LDD) /usr/sbin/$$program; done | sed -En 's|^\s*([^/ ]+ => )?/([^ ]*) .*|\2|p' | sort -u)
	$(CHROOT) $(IMAGES).new/operator /vnetpool-operator --version
	$(CHROOT) $(IMAGES).new/node-agent /vnetpool-node-agent --version
	$(CHROOT) $(IMAGES).new/node-agent $(NFT)
	$(CHROOT) $(IMAGES).new/node-agent /usr/sbin/iptables-legacy --version
	rm -rf $(IMAGES)
	mv $(IMAGES).new $(IMAGES)

check-format:
	cargo fmt --all --check
	@unformatted=$$(gofmt -l tests/cluster); if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi

check-clippy:
	cargo clippy --workspace --all-targets -- -D warnings

# The documentation of the code, private items included: a link that leads nowhere fails.
check-docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# A pod's wait stays short: no Kubernetes client and no async runtime in the plugin.
check-plugin-alone:
	@tree=$$(cargo tree --package vnetpool-plugin --edges normal); \
	if grep -E '\b(kube|tokio|vnetpool-crds)\b' <<< "$$tree"; then exit 1; fi

# Programs and tests share their build: no crate has other features when the tests are built with it.
check-one-build:
	@crates() { cargo tree --workspace --edges "$$1" --prefix none --format '{p} {f}' | sed 's/ (\*)$$//'; }; \
	programs=$$(crates no-dev); all=$$(crates all); \
	twice=$$(comm -23 <(sort -u <<< "$$programs") <(sort -u <<< "$$all") | grep -v ' (/' || true); \
	if [ -n "$$twice" ]; then echo "compiled again for the tests, with more features (see tests/Cargo.toml):"; echo "$$twice"; exit 1; fi

check-go:
	cd tests/cluster && $(GO) vet ./...

check-chart:
	$(HELM_LINT)
	$(HELM_LINT) --values tests/cluster/values.yaml

test-go:
	cd tests/cluster && $(GO) test -v ./cluster/... ./probe/...

# Tests without root and Kubernetes. Some do nearly nothing but wait, so many of them run at once.
UNITS := conformance manifests docs model commands
WAITING := azure behaviour
test-units:
	@programs=$$(cargo metadata --no-deps --format-version 1 \
		| jq -r '.packages[].targets[] | select(.kind == ["bin"] and .test) | "--bin", .name'); \
	ended=0; \
	cargo test --workspace --no-fail-fast --lib $$programs $(addprefix --test ,$(UNITS)) || ended=$$?; \
	cargo test --workspace --no-fail-fast $(addprefix --test ,$(WAITING)) -- --test-threads 12 || ended=$$?; \
	cargo test --workspace --no-fail-fast --doc || ended=$$?; \
	exit $$ended

# Tests with an API server and no node.
test-conduct:
	cargo test --workspace --no-fail-fast --test conduct

# Without those that take longest, for a check before a review. `make test` has them, too.
test-conduct-short: export CONDUCT := short
test-conduct-short: test-conduct

# Tests with a cluster with nodes. Each run has namespaces of its own, so that others can run beside it, and
# so can a demo.
CLUSTERS := story modes services paths standalone new-vnet soak
RUN ?= $(CLUSTERS)
test-clusters:
	$(TOOLS)/cluster apart cargo test --workspace --no-fail-fast $(addprefix --test ,$(RUN))

# All the other test programs there are, but for what is only run nightly.
ONLY_NIGHTLY := azure-cli mutations older-linux sig-network skew
test-others:
	@programs=$$(cargo metadata --no-deps --format-version 1 \
		| jq -r '[.packages[].targets[] | select(.kind == ["test"]).name] | unique - ($$ARGS.positional) | .[]' --args $(UNITS) $(WAITING) $(CLUSTERS) $(ONLY_NIGHTLY)); \
	cargo test --workspace --no-fail-fast $$(printf -- '--test %s ' $$programs)

build-tests:
	cargo test --workspace --no-run

# Many more cases for every property, the model in ten million states, a plugin killed in more situations,
# more seeds of hostile answers, of garbage and of the model's traces, watches that are silent for minutes,
# the chapters on clusters in the opposite order, with those that keep a machine busy for minutes, and this
# release beside a later one.
test-nightly:
	PROPTEST_CASES=10000 cargo test --workspace --no-fail-fast --lib
	NIGHTLY=yes cargo test --workspace --no-fail-fast --test model -- trouble_of_every_kind
	NIGHTLY=yes cargo test --workspace --no-fail-fast --test kernel -- crashes::
	HOSTILE_SEEDS="$$(seq -s ' ' 3 22)" cargo test --workspace --no-fail-fast --test conduct -- ::seed_
	NIGHTLY=yes cargo test --workspace --no-fail-fast --test conduct -- silent::
	NIGHTLY=yes cargo test --workspace --no-fail-fast --test conduct -- pruned::kinds
	NIGHTLY=yes CHAPTERS=backwards $(TOOLS)/cluster apart cargo test --workspace --no-fail-fast --test paths --test services --test modes --test story
	NIGHTLY=yes $(TOOLS)/cluster apart cargo test --workspace --no-fail-fast --test standalone -- an_idle_agent_sleeps
	@$(MAKE) images
	$(TOOLS)/cluster apart cargo test --workspace --no-fail-fast --test skew
