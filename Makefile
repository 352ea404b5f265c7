# The commands of the README. `make help` lists them.

SHELL := bash
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/emberd/emberd/internal/version.Version=$(VERSION)
GOLANGCI_LINT_VERSION := v2.15.0
NFPM_VERSION := v2.43.4

# Where an emberd that is set up keeps its kernels.
DATA_DIR ?= /var/lib/emberd

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## put emberd, emberctl and emberd-init into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/emberd ./cmd/emberctl ./cmd/emberd-init

.PHONY: packages
packages: build ## put a .deb and a .rpm into bin/packages/
	./packaging/build.sh $(NFPM_VERSION) bin $(VERSION) bin/packages

.PHONY: demo
demo: ## set up what is missing and print 42 from a microVM
	./test/demo.sh

.PHONY: test
test: test-unit test-http test-real ## every test, with real microVMs in the machine

.PHONY: test-unit
test-unit: ## the tests that need neither root nor KVM
	./test/unit.sh

.PHONY: test-http
test-http: ## the API against a browser, a fuzzer and slow clients
	./test/http.sh

.PHONY: test-real
test-real: build ## the tests of real microVMs, inside the machine
	./test/real.sh

.PHONY: test-packages
test-packages: build ## install, upgrade and purge the packages on a clean Debian
	./test/packages.sh $(NFPM_VERSION) $(VERSION)

.PHONY: test-long
test-long: build ## floods, bombs, residue, soak, kills, egress and all programs of Node; hours, not in CI
	go test -count=1 -v -timeout 20m ./internal/daemon -run '^TestHistory$$' -history 10m
	./test/real.sh -long -test.timeout 360m -test.run '^(TestFloods|TestBombs|TestEgress.*|TestNetworkBrokenAtEachStep|TestResidueAndSecrets|TestWarmInterpreterIsThePlainOne|TestSoak|TestKilledDaemonIsGoneOnWith|TestKilledDaemonLosesNoByte)$$'

.PHONY: bench
bench: build ## what a sandbox's life costs, inside the machine; BENCH_ARGS=--json
	./test/bench.sh $(BENCH_ARGS)

.PHONY: kernel
kernel: build ## build a smaller, faster kernel for sandboxes; minutes (docs/KERNEL.md)
	sudo=; [[ $$EUID -eq 0 ]] || sudo=sudo; $$sudo bin/emberctl --data-dir $(DATA_DIR) setup --kernel=build

.PHONY: test-kernel
test-kernel: build ## the tests of real microVMs with that kernel; minutes, not in CI
	DATA_DIR=$(DATA_DIR) ./test/kernel.sh

.PHONY: fuzz
fuzz: ## each decoder of foreign bytes, a guest's for a minute each
	./test/fuzz.sh

.PHONY: check
check: ## lint, import direction, tidy modules, generated code
	./test/check.sh $(GOLANGCI_LINT_VERSION)

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin .cache
