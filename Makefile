# nfs-fleet: what a developer or an administrator types. `make help` lists the targets.
# Variables that targets take are named in their help line.

GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK ?= golang.org/x/vuln/cmd/govulncheck@v1.1.4

# The version is git's word; a tree without git (a release tarball) takes the changelog's first heading.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || sed -n 's/^## *\[\{0,1\}\([^] ]*\).*/\1/p' CHANGELOG.md 2>/dev/null | head -n 1)
LDFLAGS  = -s -w -X main.version=$(or $(VERSION),unknown)

# Go must not ask git about the tree: a build as another user than the tree's owner would fail.
export GOFLAGS := $(filter-out -buildvcs=%,$(GOFLAGS)) -buildvcs=false

# Flags for every `go test`, e.g. TESTFLAGS=-v.
TESTFLAGS ?=
# Packages with unit tests: all but the end-to-end suite.
UNIT = $$($(GO) list ./... | grep -v '/e2e$$')

# What the end-to-end suite runs, as Debian packages, and the commands that show that they are there.
PACKAGES = user-mode-linux nfs-common kmod iproute2 libnfs-utils rpcbind etcd-client etcd-server rsync netbase iptables autofs bind9-dnsutils systemd procps
NEEDED   = linux.uml showmount modprobe ip nfs-ls rpcinfo etcdctl etcd rsync iptables-legacy automount dig systemctl pgrep

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## write bin/nfs-fleet, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/nfs-fleet ./cmd/nfs-fleet

.PHONY: run
run: build ## start a one-master fleet on a sample tree (SOURCE=/any/dir, DATA=/any/dir) and print the mount command
	@GO='$(GO)' ./.ci/sample-fleet '$(SOURCE)' '$(DATA)'

.PHONY: check
check: fmt vet lint vuln unit ## everything that needs no root: format, vet, staticcheck, import rule, unit tests with -race

.PHONY: fmt
fmt:
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$bad" ]; then echo "not gofmt'ed:"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: lint
lint:
	$(GO) run $(STATICCHECK) ./...

# govulncheck needs its database; a machine that cannot reach it says so and goes on.
.PHONY: vuln
vuln:
	@if curl -fsS -m 5 -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null; then \
		$(GO) run $(GOVULNCHECK) ./...; \
	else echo "govulncheck: skipped, https://vuln.go.dev cannot be reached"; fi

# The race detector allocates: what must not is tested without it, too.
.PHONY: unit
unit:
	$(GO) test -race -timeout 10m $(TESTFLAGS) $(UNIT)
	$(GO) test -count=1 -run 'AllocateNothing|AllocatesNothing|NoAllocations' $(TESTFLAGS) ./exporter/... ./replicator/store

.PHONY: deps
deps: ## install the Debian packages that the end-to-end tests need (root only)
	@missing=; for c in $(NEEDED); do PATH=$$PATH:/usr/sbin:/sbin command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	[ -e /etc/services ] || missing="$$missing /etc/services"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "missing:$$missing; as root on Debian: apt-get install --no-install-recommends $(PACKAGES)"; exit 0; fi; \
	./.ci/apt-install $(PACKAGES)

# -v: what is skipped is named, with the reason.
.PHONY: e2e
e2e: ## real processes, real etcd, real Linux NFS clients (RUN=pattern picks tests)
	$(GO) test -count=1 -timeout 25m -v $(TESTFLAGS) $(if $(RUN),-run '$(RUN)') ./e2e

.PHONY: test
test: deps check e2e ## all there is: installs what the tests need (as root), check, e2e

.PHONY: fuzz
fuzz: ## run every fuzz target for TIME each, as many at once as there are processors (TIME=20s)
	@./.ci/fuzz '$(or $(TIME),20s)'

.PHONY: crashloop
crashloop: ## kill the master at random moments of a publish (ROUNDS=200 SEED=n)
	$(GO) test -count=1 -timeout 0 -v -run '^TestCrashLoop$$' ./e2e -rounds=$(or $(ROUNDS),200) -seed=$(or $(SEED),0)

.PHONY: chaos
chaos: ## faults under traffic against fleets of several masters (ROUNDS=200 SEED=n FIRST=round FLEETS=pattern FAULTS=pattern)
	$(GO) test -count=1 -timeout 0 -v -run '^TestChaos$$' ./e2e -chaos=$(or $(ROUNDS),200) -seed=$(or $(SEED),0) \
		-first=$(or $(FIRST),0) -fleets='$(FLEETS)' -faults='$(FAULTS)'

.PHONY: soak
soak: ## hostile and other clients against a master for TIME, and what the former cost the latter (TIME=10m)
	$(GO) test -count=1 -timeout 0 -v -run '^(TestSoak|TestIdleConnectionsCostLittle|TestHostileClientsCostLittle)$$' ./e2e -soak=$(or $(TIME),10m)

.PHONY: failover
failover: ## what a reader on a slave sees when a master is lost or leaves (REPS=100 EVENTS=pattern VIA=relay|direct ETCD=module|embedded AWAY=60s)
	$(GO) test -count=1 -timeout 0 -v -run '^TestSlavesSurvive$$' ./e2e -reps=$(or $(REPS),100) -events='$(EVENTS)' -via='$(VIA)' \
		-etcd=$(or $(ETCD),module) -etcd-away=$(or $(AWAY),0)

.PHONY: targets
targets: ## measure publishing to three masters at full size, against two copies by rsync (wants a quiet machine)
	$(GO) test -count=1 -timeout 20m -v -run 'Speed$$' ./e2e -targets

# Beside the servers of others, which are measured too.
BENCH_PACKAGES = nfs-ganesha nfs-ganesha-vfs rpcbind netbase

.PHONY: bench
bench: ## measure reading beside NFS-Ganesha and go-nfs, publishing beside rsync, and a million files, and print tables (root; wants a quiet machine; LOAD=another client)
	@PATH=$$PATH:/usr/sbin command -v ganesha.nfsd >/dev/null && command -v rpcbind >/dev/null || ./.ci/apt-install $(BENCH_PACKAGES)
	$(GO) test -count=1 -timeout 40m -v -run '$(or $(RUN),^(TestServersSideBySide|TestFirstPublishAloneSpeed|TestManyFiles)$$)' ./e2e -targets -load='$(LOAD)'

.PHONY: relaybench
relaybench: ## what a slave's relay costs beside a direct connection (ROUNDS=7; LOAD=program like e2e/load/nfsload; wants a quiet machine)
	RELAY_COST=1 RELAY_ROUNDS=$(or $(ROUNDS),7) RELAY_LOAD='$(LOAD)' $(GO) test -count=1 -timeout 10m -v -run '^TestCost$$' ./fleet/slave/relay

# A CoreDNS of the version in fleet/dns/testdata/coredns, with its etcd plugin. Building it takes minutes, once.
COREDNS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nfs-fleet/coredns

.PHONY: coredns
coredns: deps ## compare a stock CoreDNS, fed by etcd, with the masters' own answers (COREDNS=where it is built)
	$(GO) build -C fleet/dns/testdata/coredns -o '$(COREDNS)' .
	$(GO) test -count=1 -v -run '^TestAgainstCoreDNS$$' ./fleet/dns -coredns '$(COREDNS)'

.PHONY: clean
clean: ## remove what the targets above made (not a fleet's data)
	rm -rf bin .sample
	$(GO) clean -testcache
