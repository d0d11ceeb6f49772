# "make help" lists the targets.

PREFIX ?= /usr/local
GO ?= go
FUZZTIME ?= 30s
OUT := build
RESULTS := $(OUT)/test

export PREFIX DESTDIR FORCE HEARTH_VM_RUNNER

.DEFAULT_GOAL := build
.PHONY: build demo check test test-unit test-root test-vm test-long mutate fuzz bench bench-kdf fixtures man \
	install uninstall clean help deps images

build: ## Build the programs and the PAM module into build/ (PREFIX is compiled into the module)
	@mkdir -p $(OUT)/bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o $(OUT)/bin/ ./cmd/...
	@$(MAKE) --no-print-directory -C pamhome/shim OUT=$(CURDIR)/$(OUT) HELPER=$(PREFIX)/lib/hearth/pamhome
	@echo $(PREFIX) >$(OUT)/prefix

demo: deps build ## Show a home made, opened at login and closed, in a throw-away guest (NONINTERACTIVE=1 ends there)
	@$(GO) run ./vmtest/demo

check: ## gofmt, vet, staticcheck, the rules of the tree, the man pages, the PAM module without a warning
	@bad=$$(gofmt -l .) && if [ -n "$$bad" ]; then echo "$$bad"; echo 'run gofmt -w on these'; exit 1; fi
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck ./...
	$(GO) test ./internal/house
	@$(MAKE) --no-print-directory -C pamhome/shim OUT=$(CURDIR)/$(OUT)/check CFLAGS='-O2 -Wall -Wextra -Werror'
	@if command -v mandoc >/dev/null; then mandoc -T lint -W warning docs/man/*.[1-8]; else echo 'mandoc is missing: man pages not linted'; fi

# Every part runs whatever the others say.
test: deps build ## All tests: unit, root, guest. Ends by saying what was skipped and why
	@rm -rf $(RESULTS); failed=; \
	for part in test-unit test-root test-vm; do $(MAKE) --no-print-directory $$part REPORT= || failed=1; done; \
	$(TESTSUM) report $(RESULTS)/*.json || failed=1; test -z "$$failed"

TESTSUM = CGO_ENABLED=0 $(GO) run ./vmtest/cmd/testsum
RUN = $(TESTSUM) run $(RESULTS)/$@.json
REPORT = ; status=$$?; $(TESTSUM) report $(RESULTS)/$@.json; exit $$status

test-unit: ## Tests that need no root, under the race detector
	@echo '== unit tests'
	@$(RUN) env CGO_ENABLED=1 HEARTH_TEST_ROOT=0 $(GO) test -json -race ./... $(REPORT)

# Each package that mounts takes a mount name space of its own (testenv.Main).
test-root: ## Tests that need root: loop devices, mounts (dm-crypt is in the guests, see test-vm)
	@echo '== root tests'
	@$(RUN) env CGO_ENABLED=0 HEARTH_TEST_ROOT=1 $(GO) test -json -count=1 \
		$$(grep -lE 'testenv\.Need\(t, "root"' --include=*_test.go -r . | xargs -n1 dirname | sort -u) $(REPORT)

# Two guests side by side, one per processor.
test-vm: deps build images ## Tests in guests: real PAM, logind and dm-crypt, beside the real systemd-homed
	@echo '== guest tests'
	@$(RUN) env CGO_ENABLED=0 HEARTH_TEST_VM=1 $(GO) test -json -count=1 -p 1 -parallel 2 -timeout 50m ./vmtest/... $(REPORT)

images: deps
	@CGO_ENABLED=0 $(GO) run ./vmtest/cmd/guestimage

test-long: deps build images ## What takes longer than CI has (hours): every power cut, fuzzing; one line each for docs/results.md
	@vmtest/long/run.sh

mutate: ## Break records and those who act by them in many small ways, count how many the tests notice (minutes)
	CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 3h ./records/mutate -args -mutate

fuzz: ## Fuzz every target for FUZZTIME (30s)
	@grep -roE '^func Fuzz[A-Za-z0-9_]+' --include=*_test.go . | sed 's|/[^/]*:func | |' | while read -r package target; do \
		echo "== $$package $$target"; \
		CGO_ENABLED=0 $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package || exit 1; \
	done

# BENCH: flags of vmtest/bench, such as '-parts verbs -runs 1'.
bench: deps build images ## Compare speed with systemd-homed's in a guest, write docs/performance.md, run the Go benchmarks (25 minutes)
	@CGO_ENABLED=0 $(GO) run ./vmtest/bench $(BENCH); status=$$?; \
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchmem \
		$$(grep -l '^func Benchmark' --include=*_test.go -r . | xargs -n1 dirname | sort -u); exit $$((status | $$?))

bench-kdf: deps ## Time unlocking against cryptsetup, each time a new process (docs/performance.md)
	CGO_ENABLED=0 $(GO) run ./vmtest/cmd/kdftime

fixtures: deps build images ## Have the real systemd-homed 262 make home images as in fixtures/, in build/fixtures
	@rm -rf $(OUT)/fixtures
	CGO_ENABLED=0 HEARTH_TEST_VM=1 HEARTH_FIXTURES=$(CURDIR)/$(OUT)/fixtures $(GO) test -count=1 -v -timeout 30m ./vmtest/stories -run '^TestMakeFixtures$$'

man: ## Show the man pages' lint and render them to build/man
	@mkdir -p $(OUT)/man
	@for m in docs/man/*.[1-8]; do mandoc -T lint -W warning $$m && mandoc -T utf8 $$m >$(OUT)/man/$$(basename $$m).txt || exit 1; done
	@ls $(OUT)/man

install: ## Install what "make build" made (PREFIX, DESTDIR); needs no Go
	@cmd/homed/system/install.sh install

uninstall: ## Remove exactly what install put there (FORCE=1 although homes are active)
	@cmd/homed/system/install.sh uninstall

deps: ## Install the Debian packages that build, demo and tests need
	@vmtest/deps.sh

clean: ## Remove build/ (guest images stay in the cache)
	rm -rf $(OUT)

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r t text; do printf '%-12s %s\n' "$$t" "$$text"; done
