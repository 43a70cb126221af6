#!/bin/sh
# Runs the test binary of a package for "go test -exec". The packages below wait
# most of the time, so their tests are divided among several processes.
set -eu
binary=$1
shift

# By default, each program sleeps for a second at its end.
export GORACE="atexit_sleep_ms=50 ${GORACE:-}"

case ${binary##*/} in
proxy.test) shards=4 ;;
s3api.test) shards=2 ;;
*) exec "$binary" "$@" ;;
esac

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$binary" -test.list . >"$dir/list"
grep -E '^(Test|Fuzz|Example)' "$dir/list" >"$dir/tests"

# With more threads that run at a time, a process under the race detector costs
# up to twice as much CPU: each page of its shadow memory interrupts the other
# CPUs. Races are found from what orders two accesses, not from their times.
export GOMAXPROCS=1

# Each process writes a file, so that what it prints is not mixed with what the
# others print.
pids=
for shard in $(seq 0 $((shards - 1))); do
	names=$(awk -v n="$shards" -v i="$shard" 'NR % n == i' "$dir/tests" | paste -sd '|' -)
	if [ -z "$names" ]; then continue; fi # more processes than tests
	"$binary" "$@" -test.run "^($names)\$" >"$dir/$shard" 2>&1 &
	pids="$pids $!:$shard"
done

code=0
failed=
for pid in $pids; do
	wait "${pid%:*}" || { code=$? && failed="$failed $dir/${pid#*:}"; }
done
cat "$dir"/[0-9]*

# Tests of servers print long logs. What failed is named again behind them, at
# the end, where people look first.
if [ -n "$failed" ]; then
	echo "shards.sh: failed, in full above:"
	# shellcheck disable=SC2086 # a list of paths without spaces
	grep -hE '^ *(--- FAIL|[a-zA-Z0-9_]+\.go:[0-9]+: )|^(panic|fatal error|exit status|WARNING: DATA RACE)' $failed || tail -n 20 $failed
fi
exit $code
