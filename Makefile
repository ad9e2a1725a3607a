# `make help` lists the targets.

GO       ?= go
N        ?= 500
SEED     ?= 1
FUZZTIME ?= 30s
REPEAT   ?= 1

# The race detector needs a C compiler.
CC_FOUND := $(shell command -v $$($(GO) env CC) 2>/dev/null)
RACE     := $(if $(CC_FOUND),-race)
ifneq ($(RACE),)
export CGO_ENABLED = 1
endif

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT         ?= .tools/golangci-lint-$(GOLANGCI_LINT_VERSION)

VERSION_PACKAGE := github.com/prometheus/common/version
VERSION  = $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)
REVISION = $(or $(shell git rev-parse HEAD 2>/dev/null),unknown)
BRANCH   = $(or $(shell git rev-parse --abbrev-ref HEAD 2>/dev/null),unknown)
# The date of the commit, so that the same commit builds the same binary.
DATE     = $(shell git log -1 --format=%cd --date=format:%Y%m%d-%H:%M:%S 2>/dev/null)
LDFLAGS  = -s -w \
	-X $(VERSION_PACKAGE).Version=$(VERSION:v%=%) \
	-X $(VERSION_PACKAGE).Revision=$(REVISION) \
	-X $(VERSION_PACKAGE).Branch=$(BRANCH) \
	-X $(VERSION_PACKAGE).BuildDate=$(DATE)

.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build ./btrfs-governor
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o btrfs-governor ./cmd/btrfs-governor

.PHONY: test
test: packages axe test-arch ## run all tests (as root: on real pools too)
	$(GO) test $(RACE) -count=1 -timeout 60m ./...

.PHONY: test-arch
test-arch: packages ## run the ABI tests of package btrfs for arm, arm64 and 386
	.ci/test-arch arm arm64 386

.PHONY: test-prometheus3
test-prometheus3: ## read the alerting rules as Prometheus 3 does
	cd alerts/prometheus3 && $(GO) run . ../btrfs.rules.yml

.PHONY: lint
lint: $(GOLANGCI_LINT) ## gofmt, go vet and golangci-lint
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "not formatted with gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GOLANGCI_LINT) run --allow-parallel-runners ./...

.tools/golangci-lint-$(GOLANGCI_LINT_VERSION):
	CGO_ENABLED=0 GOBIN=$(CURDIR)/.tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .tools/golangci-lint $@

.PHONY: bench
bench: packages build ## benchmarks, and CPU per scrape beside node_exporter's (root)
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./internal/benchscrape

.PHONY: bench-scrub
bench-scrub: packages ## what people feel of a scrub on emulated hard disks, REPEAT times (root)
	$(GO) run ./internal/benchscrub -repeat $(REPEAT)

.PHONY: load
load: packages ## send 200 webhooks a second for a minute, garbage among them (root)
	$(GO) test -count=1 -v ./cmd/btrfs-governor -run '^TestLoadOfWebhooks$$' -load.seconds=60

.PHONY: demo
demo: build ## serve a demonstration pool of four mismatched drives until Ctrl-C
	$(GO) build -o bin/demo ./internal/demo
	bin/demo $(if $(VERIFY),-verify) $(if $(STACK),-stack=$(STACK))

.PHONY: run
run: build ## serve this machine's own pools, changing nothing
	./btrfs-governor serve --read-only

.PHONY: oracle
oracle: packages ## compare with the kernel on N random pools from SEED on (root)
	$(GO) test -count=1 ./cmd/btrfs-governor -run '^TestOracle' -oracle.n=$(N) -oracle.seed=$(SEED) -v -timeout 12h

.PHONY: fuzz
fuzz: ## run each fuzz test for FUZZTIME
	.ci/fuzz $(FUZZTIME)

.PHONY: generate
generate: ## write the generated files again, golden files among them
	$(GO) generate ./...

# It compares with the state before, so that it also tells the truth while
# one works on something else.
.PHONY: check-generated
check-generated: ## fail if a generated file is not what `make generate` writes
	@before=$$(git status --porcelain; git diff) && $(MAKE) --no-print-directory generate && \
	after=$$(git status --porcelain; git diff) && test "$$before" = "$$after" || \
	{ git status --short; echo "generated files are out of date: run 'make generate' and commit them"; exit 1; }

.PHONY: check-dashboards
check-dashboards: ## hold the dashboards against the types that Grafana publishes (npm)
	cd dashboards/schema-check && npm ci --ignore-scripts --no-audit --no-fund && npm run --silent check

.PHONY: screenshots
screenshots: packages ## take the pictures of the status page in docs/images again (root)
	$(GO) test -count=1 -timeout 20m ./internal/web/browsertest -run '^TestScreenshots$$' -screenshots=$(CURDIR)/docs/images

.PHONY: packages
packages: # install the Debian packages that tests need, or say which are missing
	@.ci/packages

# What the tests of the status page are told by of those who cannot use it.
AXE := internal/web/browsertest/node_modules/axe-core/axe.min.js
.PHONY: axe
axe: $(AXE)
$(AXE): internal/web/browsertest/package-lock.json | packages
	cd internal/web/browsertest && npm ci --ignore-scripts --no-audit --no-fund --silent || test -z "$$CI"

.PHONY: sweep
sweep: ## remove what killed test runs left behind: mounts, loop devices, files
	$(GO) run ./internal/sweep

.PHONY: clean
clean: ## remove what make built
	rm -rf btrfs-governor bin .tools dashboards/schema-check/node_modules internal/web/browsertest/node_modules
