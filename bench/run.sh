#!/usr/bin/env bash
# Compares the bare store, a plain reverse proxy (nginx) and cmekproxy, in
# one run on loopback. Installs what is missing. Flags are passed to the
# program: bench/run.sh -h
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin
versitygw=v1.8.0
mkdir -p "$bin"

if ! command -v nginx >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "bench: installing the Debian package nginx-light" >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends nginx-light; } >/dev/null ||
    echo "bench: no nginx; a Go reverse proxy stands in" >&2
fi
if ! [ -x "$bin/versitygw" ]; then
  echo "bench: building the store: versitygw $versitygw (a few minutes)" >&2
  GOBIN=$bin go install "github.com/versity/versitygw/cmd/versitygw@$versitygw"
fi
go build -tags nodev -trimpath -o "$bin/cmekproxy" ./cmd/proxy
go build -o "$bin/bench" ./bench
exec "$bin/bench" -bin "$bin" "$@"
