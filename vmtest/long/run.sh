#!/bin/bash
# Runs what continuous integration has no time for, each part whatever the
# others say, and prints one line for each as docs/results.md keeps them.
#
#   run.sh [TIME PER FUZZ TARGET]
#
# HEARTH_CRASH_SEED repeats a crash replay, HEARTH_CRASH_STATES shortens it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fuzztime=${1:-10m}
export CGO_ENABLED=0
stamp="$(date -u +%F) $(git rev-parse --short=7 HEAD)$(git diff --quiet HEAD || echo +)"
log=build/test/long.log
mkdir -p build/test
: >$log
failed=

# long PACKAGE [ARGUMENT...]: its tests with what they leave out otherwise.
long() {
	HEARTH_TEST_VM=1 HEARTH_TEST_LONG=1 go test -count=1 -v -timeout 12h "$@" 2>&1 | tee -a $log |
		sed -n "s/^.*RESULT /$stamp  /p; s/^ *--- FAIL: \([^ ]*\).*/$stamp  \1: FAILED, see ${log//\//\\/}/p" || failed=1
}
long ./vmtest/long
long ./vmtest/stories -run 'TestModules$|TestChaos$'
long ./pamhome/shim/shimtest -run 'TestTrueLimits$'

while read -r package target; do
	out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 100x "$package" 2>&1)
	status=$?
	echo "$out" >>$log
	inputs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' <<<"$out" | tail -1)
	result='nothing found'
	[ $status = 0 ] || { result="FAILED, see $log"; failed=1; }
	echo "$stamp  fuzz, ${package#./} $target: ${inputs:-0} inputs in $fuzztime: $result"
done < <(grep -roE '^func Fuzz[A-Za-z0-9_]+' --include=*_test.go . | sed 's|/[^/]*:func | |' | sort)

test -z "$failed"
