#!/usr/bin/env bash
# End-to-end tests: real clients against the proxy, in front of a store of its own. Runs on Debian with Go; whatever
# else is missing is installed, as root or with sudo. See doc.go for what is tested.
#
#   E2E_CLIENTS="boto3 rclone"   only these clients
#   E2E_TARGET=store             the clients straight at the store, without the proxy: what fails there too is not its doing
#
# Everything built or fetched is kept in .cache, beside the logs of the last run.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache
bin=$cache/e2e/bin
versitygw=v1.8.0

say() { printf 'e2e: %s\n' "$*"; }

wanted() { [[ -z ${E2E_CLIENTS:-} || " $E2E_CLIENTS " == *" $1 "* ]]; }

has() { command -v "$1" >/dev/null 2>&1; }

# Prints a Python that has these modules. Debian's own is asked too, as the first in the path may be another.
python_with() {
  local python
  for python in python3 /usr/bin/python3; do
    if has "$python" && "$python" -c "import $1" >/dev/null 2>&1; then
      echo "$python"
      return 0
    fi
  done
  return 1
}

install_packages() {
  local missing=()
  if wanted aws-cli && ! has aws; then missing+=(awscli); fi
  if wanted boto3 && ! python_with boto3 >/dev/null; then missing+=(python3 python3-boto3); fi
  if wanted rclone && ! has rclone; then missing+=(rclone); fi
  if wanted s3cmd && ! has s3cmd; then missing+=(s3cmd); fi
  if wanted restic && ! has restic; then missing+=(restic); fi
  if wanted js-sdk && ! has node; then missing+=(nodejs); fi
  if wanted js-sdk && ! has npm; then missing+=(npm); fi
  if ! python_with 'boto3, cryptography' >/dev/null; then missing+=(python3 python3-boto3 python3-cryptography); fi
  if ((${#missing[@]} == 0)); then return 0; fi
  say "installing Debian packages: ${missing[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  if (($(id -u) != 0)); then apt=(sudo "${apt[@]}"); fi
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
}

install_node_modules() {
  local lock=$root/e2e/js/package-lock.json
  if ! wanted js-sdk || [[ $root/e2e/js/node_modules/.package-lock.json -nt $lock ]]; then return 0; fi
  say "installing the JavaScript SDK: npm ci in e2e/js"
  npm ci --prefix "$root/e2e/js" --no-audit --no-fund --loglevel=error
  touch "$root/e2e/js/node_modules/.package-lock.json"
}

install_store() {
  if has "$bin/versitygw" && go version -m "$bin/versitygw" | grep -q "github.com/versity/versitygw[[:space:]]$versitygw\b"; then
    return 0
  fi
  say "building the store: versitygw $versitygw (a few minutes)"
  GOBIN=$bin go install "github.com/versity/versitygw/cmd/versitygw@$versitygw"
}

mkdir -p "$bin"
install_packages
install_node_modules
install_store
if [[ ${E2E_TARGET:-proxy} != store ]]; then
  say "building the proxy, without the store of proxy dev, and the KMS"
  (cd "$root" && go build -tags nodev -o "$bin/proxy" ./cmd/proxy && go build -o "$bin/kmsd" ./internal/kms/kmstest/kmsd)
fi

E2E_PYTHON=$(python_with boto3 || echo python3)
E2E_DECRYPT_PYTHON=$(python_with 'boto3, cryptography')
export E2E_PYTHON E2E_DECRYPT_PYTHON
export E2E_BIN=$bin E2E_CACHE=$cache/e2e E2E_LOGS=$cache/e2e/logs
rm -rf "$E2E_LOGS"
cd "$root/e2e"
say "running the clients (a few minutes); logs are in .cache/e2e/logs"
# Without a package, go test prints what the tests print as they go. Four clients at a time: most of them wait a lot.
exec go test -count=1 -parallel 4 -timeout 20m "$@"
