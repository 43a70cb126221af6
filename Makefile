# cmekproxy. `make help` lists the targets; `make check` runs the tests and linters of CI.

GO          ?= go
CACHE       := $(CURDIR)/.cache
BIN         := $(CACHE)/bin
FUZZTIME    ?= 20s
FUZZTIME_SLOW ?= $(FUZZTIME)
FUZZCACHE   ?= $(CACHE)/fuzz
VERSITYGW   := v1.8.0
GOLANGCI    := v2.15.0
GOVULNCHECK := v1.9.0
VERSION     ?= $(shell deploy/version.sh)
DOCKER      ?= docker
IMAGE       ?= cmekproxy
GOFIPS140   ?= off

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## build bin/cmekproxy, with the embedded store of `cmekproxy dev`
	$(GO) build -trimpath -o bin/cmekproxy ./cmd/proxy

# Both times of an image and of a release are that of the commit.
image-args = --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
  --build-arg CREATED=$$(git log -1 --format=%cI) --build-arg GOFIPS140=$(GOFIPS140)

.PHONY: image
image: ## the image for this platform, as IMAGE:VERSION; GOFIPS140=v1.0.0 builds IMAGE:VERSION-fips
	$(DOCKER) build $(image-args) --tag $(IMAGE):$(VERSION)$(if $(filter off,$(GOFIPS140)),,-fips) .

.PHONY: image-pkcs11
image-pkcs11: ## the image with PKCS#11, on Debian, as IMAGE:VERSION-pkcs11
	$(DOCKER) build $(image-args) --file deploy/image/pkcs11.Dockerfile --tag $(IMAGE):$(VERSION)-pkcs11 .

.PHONY: release
release: ## archives, checksums and bills of materials in bin/release; see docs/releasing.md
	@mkdir -p bin/release
	deploy/release/build.sh $(VERSION) bin/release

SLOWEST := ./cmd/proxy ./internal/s3api ./internal/kms # these begin first

# The linter runs vet. Debuggers need what -w leaves out; stack traces do not. The
# store is built first, so that the packages do not all build it at the same time.
.PHONY: test
test: ## all unit and integration tests, with the race detector (fetches Go modules on a fresh machine)
	@echo "go test: the first run downloads modules and compiles everything, a few minutes; later runs take seconds"
	@GOFLAGS= GOFIPS140=off $(GO) tool -n github.com/cmekproxy/cmekproxy/internal/proxytest/store >/dev/null
	$(GO) test -race -shuffle=on -vet=off -ldflags=-w -timeout 20m -p 3 -exec $(CURDIR)/internal/tools/shards/shards.sh $(SLOWEST) ./...

.PHONY: check
check: fmt-check tidy-check test lint vuln ## the tests and linters that CI runs, without e2e and fuzzing

.PHONY: fmt
fmt: $(BIN)/golangci-lint ## format the code
	$(BIN)/golangci-lint fmt

.PHONY: fmt-check
fmt-check: $(BIN)/golangci-lint
	$(BIN)/golangci-lint fmt --diff

.PHONY: tidy-check
tidy-check:
	$(GO) mod tidy -diff

.PHONY: lint
lint: $(BIN)/golangci-lint ## golangci-lint with .golangci.yml, names that differ only by case, and readability
	$(BIN)/golangci-lint run --allow-parallel-runners ./...
	cd e2e && $(BIN)/golangci-lint run --allow-parallel-runners --config ../.golangci.yml ./...
	cd deploy/internal/dashboard && $(BIN)/golangci-lint run --allow-parallel-runners --config ../../../.golangci.yml ./...
	$(GO) run ./internal/tools/identcase
	$(GO) run ./internal/tools/readability

.PHONY: vuln
vuln: $(BIN)/govulncheck ## known vulnerabilities; prints a warning if the database is unreachable
	@$(BIN)/govulncheck ./... || { s=$$?; if [ $$s -eq 3 ]; then exit 3; else \
	  echo "WARNING: govulncheck could not run (is its database reachable?): vulnerabilities were NOT checked"; fi; }

.PHONY: cover
cover: ## test coverage by package
	$(GO) test -shuffle=on -cover ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s by default; 5000x means 5000 inputs)
	@mkdir -p $(CACHE); set -e; \
	for dir in $$(grep -rl '^func Fuzz' --include='*_test.go' cmd internal | xargs -n 1 dirname | sort -u); do \
	  $(GO) test -c -fuzz . -o $(CACHE)/fuzz.test ./$$dir; \
	  for target in $$(cd $$dir && $(CACHE)/fuzz.test -test.list '^Fuzz' | grep '^Fuzz'); do \
	    time=$(FUZZTIME); case $$target in FuzzLyingStore) time=$(FUZZTIME_SLOW);; esac; \
	    echo "== $$dir $$target"; \
	    (cd $$dir && $(CACHE)/fuzz.test -test.run '^$$' -test.fuzz "^$$target\$$" -test.fuzztime $$time \
	      -test.fuzzcachedir $(FUZZCACHE)/$$dir); \
	  done; \
	done

.PHONY: model
model: ## random multipart uploads against a model and a real store, for MODEL_TIME (10m)
	MODEL_TIME=$${MODEL_TIME:-10m} $(GO) test -count=1 -timeout 0 -run TestMultipartModel -v ./internal/s3api

.PHONY: bench
bench: ## CPU, throughput, latency and memory beside nginx and a plain pass-through; says which goals are reached
	bench/run.sh

.PHONY: e2e
e2e: ## real clients against cmekproxy serve and a separate store (installs what it needs); STORE=minio, seaweedfs or ceph
	STORE=$(STORE) e2e/run.sh

.PHONY: e2e-full
e2e-full: ## e2e, plus the clients that take minutes to install; prints OK or FAIL for each client; helm chart, deb, systemd, images and release
	STORE=$(STORE) E2E_FULL=1 e2e/run.sh
	deploy/helm/test.sh
	deploy/deb/test.sh
	deploy/systemd/boot.sh
	deploy/image/full.sh
	deploy/release/test.sh

.PHONY: conformance
conformance: ## the store's conformance suite, at the store and through the proxy; e2e/conformance.txt explains the differences
	STORE=$(STORE) e2e/conformance.sh

.PHONY: proof
proof: ## measure the full revocation window (20 minutes) and print the table of docs/revocation.md
	E2E_PROOF=full e2e/run.sh -run 'TestRevocation|TestStampede' -v -timeout 60m

.PHONY: kms-live
kms-live: ## test the KMS providers with real accounts; internal/kms/live_test.go lists the variables for the keys
	$(GO) test -count=1 -tags live -run TestLive -v ./internal/kms

.PHONY: clean
clean: ## remove everything built or fetched
	rm -rf bin $(CACHE)

$(BIN)/golangci-lint:
	@echo "installing golangci-lint $(GOLANGCI) into .cache/bin"
	GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)

$(BIN)/govulncheck:
	@echo "installing govulncheck $(GOVULNCHECK) into .cache/bin"
	GOBIN=$(BIN) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
