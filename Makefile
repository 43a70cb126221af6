# cmekproxy. `make help` lists the targets; `make check` is what CI runs.

GO          ?= go
CACHE       := $(CURDIR)/.cache
BIN         := $(CACHE)/bin
FUZZTIME    ?= 20s
FUZZTIME_SLOW ?= $(FUZZTIME)
VERSITYGW   := v1.8.0
GOLANGCI    := v2.15.0
GOVULNCHECK := v1.9.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## build bin/cmekproxy, with the embedded store of `cmekproxy dev`
	$(GO) build -trimpath -o bin/cmekproxy ./cmd/proxy

.PHONY: test
test: ## all unit and integration tests, with the race detector (fetches Go modules on a fresh machine)
	@echo "go test: the first run downloads modules and compiles everything, a few minutes; later runs take seconds"
	$(GO) test -race -shuffle=on ./...

.PHONY: check
check: fmt-check tidy-check test lint vuln ## what CI runs, but for e2e

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
lint: $(BIN)/golangci-lint ## golangci-lint with .golangci.yml, names that differ by case only, and readability
	$(BIN)/golangci-lint run --allow-parallel-runners ./...
	cd e2e && $(BIN)/golangci-lint run --allow-parallel-runners --config ../.golangci.yml ./...
	$(GO) run ./internal/tools/identcase
	$(GO) run ./internal/tools/readability

.PHONY: vuln
vuln: $(BIN)/govulncheck ## known vulnerabilities; without its database a printed warning, not a pass
	@$(BIN)/govulncheck ./... || { s=$$?; if [ $$s -eq 3 ]; then exit 3; else \
	  echo "WARNING: govulncheck could not run (is its database reachable?): vulnerabilities were NOT checked"; fi; }

.PHONY: cover
cover: ## test coverage by package
	$(GO) test -shuffle=on -cover ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s; 5000x is a number of inputs)
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    time=$(FUZZTIME); case $$target in FuzzLyingStore) time=$(FUZZTIME_SLOW);; esac; \
	    echo "== $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $$time $$pkg || exit 1; \
	  done; done

.PHONY: model
model: ## the model of multipart uploads for MODEL_TIME (10m), against a real store
	MODEL_TIME=$${MODEL_TIME:-10m} $(GO) test -count=1 -timeout 0 -run TestMultipartModel -v ./internal/s3api

.PHONY: bench
bench: ## throughput, latency, CPU and memory, side by side with the bare store and a plain reverse proxy
	bench/run.sh

.PHONY: e2e
e2e: ## real clients against cmekproxy serve in front of a separate store (installs what it needs); STORE=minio for MinIO
	STORE=$(STORE) e2e/run.sh

.PHONY: e2e-full
e2e-full: ## e2e, and the clients that take minutes to build: mc and litestream
	STORE=$(STORE) E2E_FULL=1 e2e/run.sh

.PHONY: conformance
conformance: ## the store's own conformance suite, at the store and through the proxy; e2e/conformance.txt has the differences
	e2e/conformance.sh

.PHONY: proof
proof: ## the revocation window at full length (20 minutes); prints the table of docs/revocation.md
	E2E_PROOF=full e2e/run.sh -run 'TestRevocation|TestStampede' -v -timeout 60m

.PHONY: kms-live
kms-live: ## the contract of the KMS providers against real accounts; internal/kms/live_test.go says which variables name keys
	$(GO) test -count=1 -tags live -run TestLive -v ./internal/kms

.PHONY: clean
clean: ## remove what was built and fetched
	rm -rf bin $(CACHE)

$(BIN)/golangci-lint:
	@echo "installing golangci-lint $(GOLANGCI) into .cache/bin"
	GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)

$(BIN)/govulncheck:
	@echo "installing govulncheck $(GOVULNCHECK) into .cache/bin"
	GOBIN=$(BIN) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
