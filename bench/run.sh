#!/usr/bin/env bash
# Measures cmekproxy beside nginx and a plain pass-through. Installs what is
# missing. Flags are passed to the program: bench/run.sh -h
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bench
mkdir -p "$bin"

if ! command -v nginx >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "bench: installing the Debian package nginx-light" >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends nginx-light; } >/dev/null ||
    echo "bench: no nginx; the goals that are compared with it are not measured" >&2
fi
go build -tags nodev -trimpath -o "$bin/cmekproxy" ./cmd/proxy
go build -o "$bin/bench" ./bench
exec "$bin/bench" -proxy "$bin/cmekproxy" "$@"
