#!/bin/sh
# Runs the test binary of a package for "go test -exec". The packages below wait
# most of the time, and their tests cannot run in parallel in one process: the
# embedded store is one per process, and changes the working directory. So
# their tests are divided among several processes.
set -eu
binary=$1
shift

case ${binary##*/} in
proxy.test) shards=4 ;;
s3api.test) shards=2 ;;
*) exec "$binary" "$@" ;;
esac

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$binary" -test.list . >"$dir/list"
grep -E '^(Test|Fuzz|Example)' "$dir/list" >"$dir/tests"

# Each process writes a file, so that what it prints is not mixed with what the
# others print.
pids=
for shard in $(seq 0 $((shards - 1))); do
	names=$(awk -v n="$shards" -v i="$shard" 'NR % n == i' "$dir/tests" | paste -sd '|' -)
	"$binary" "$@" -test.run "^($names)\$" >"$dir/$shard" 2>&1 &
	pids="$pids $!"
done

code=0
for pid in $pids; do
	wait "$pid" || code=$?
done
cat "$dir"/[0-9]*
exit $code
