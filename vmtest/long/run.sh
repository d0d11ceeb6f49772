#!/bin/bash
# Runs what continuous integration has no time for, each part whatever the
# others say, and prints one line for each as docs/results.md keeps them.
#
#   run.sh [TIME PER FUZZ TARGET [PARTS]]
#
# PARTS is a regular expression for those parts that are wanted: a package, and
# behind it the name of a test or a target. HEARTH_CRASH_SEED repeats a crash
# replay, HEARTH_CRASH_STATES shortens it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fuzztime=${1:-10m}
parts=${2:-.}
export CGO_ENABLED=0
stamp="$(date -u +%F) $(git rev-parse --short=7 HEAD)$(git diff --quiet HEAD || echo +)"
log=${HEARTH_TEST_LOG:-build/test/long.log}
mkdir -p "$(dirname "$log")"
: >"$log"
failed=

# say PART SECONDS TEXT: the line of a part.
say() { echo "$stamp  $1: $3 ($2 s)"; }

# long PACKAGE TEST: what the test leaves out otherwise. What it found it says
# itself; that it ran, or failed, we say.
long() {
	local part="$1 $2" began=$SECONDS verdict=passed
	[[ $part =~ $parts ]] || return 0
	HEARTH_TEST_VM=1 HEARTH_TEST_LONG=1 go test -count=1 -v -timeout 12h "./$1" -run "^$2\$" >"$log.part" 2>&1 ||
		{ verdict="FAILED, see $log" failed=1; }
	grep -q '^ *--- PASS' "$log.part" || [ "$verdict" != passed ] || { verdict="FAILED, nothing ran, see $log" failed=1; }
	cat "$log.part" >>"$log"
	sed -n "s/^.*RESULT /$stamp  /p; s/^ *--- FAIL: \([^ ]*\).*/$stamp  \1: FAILED/p" "$log.part"
	say "$part" $((SECONDS - began)) "$verdict"
	rm -f "$log.part"
}
long vmtest/long TestCrash
long vmtest/long TestKilled
long vmtest/stories TestModules
long vmtest/stories TestSameScript
long vmtest/stories TestCaptures
long vmtest/stories TestChaos
for story in TestSSH TestDoors TestPrograms TestLock TestLinger TestDevices; do long vmtest/stories $story; done
long pamhome/shim/shimtest TestTrueLimits

while read -r package target; do
	part="${package#./} $target"
	[[ $part =~ $parts ]] || continue
	began=$SECONDS
	out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 100x "$package" 2>&1)
	status=$?
	echo "$out" >>"$log"
	inputs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' <<<"$out" | tail -1)
	verdict="${inputs:-0} inputs in $fuzztime: nothing found"
	[ $status = 0 ] || { verdict="${inputs:-0} inputs: FAILED, see $log" failed=1; }
	say "$part" $((SECONDS - began)) "$verdict"
done < <(grep -roE '^func Fuzz[A-Za-z0-9_]+' --include=*_test.go . | sed 's|/[^/]*:func | |' | sort)

test -z "$failed"
