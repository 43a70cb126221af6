#!/usr/bin/env bash
# Builds the last stage of the Dockerfile with this machine's program, and runs
# it from the image's root file system: as its user, and read-only. There is no
# registry and no daemon. full.sh builds the whole Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh
. deploy/image/tools.sh
internal/tools/packages.sh buildah openssl curl ca-certificates tzdata
version=$(deploy/version.sh) revision=$(git rev-parse HEAD) created=2026-01-02T03:04:05Z
trap clean EXIT

echo "== build"
rm -rf "$work/build"
mkdir -p "$work/build/image"
CGO_ENABLED=0 go build -tags nodev -trimpath -ldflags "-s -w -X main.release=$version" \
  -o "$work/build/image/cmekproxy" ./cmd/proxy
deploy/image/rootfs.sh "$work/build/image"
last_stage() { sed -n '/^FROM scratch/,$p' Dockerfile; }
last_stage >"$work/Dockerfile"
build() {
  assemble "$1" --build-context "build=$2" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision" --build-arg "CREATED=$created"
}
build "$work/Dockerfile" "$work/build"

echo "== what the image says"
described
mkdir -p "$work/empty/image"
for line in USER EXPOSE HEALTHCHECK ENTRYPOINT '.*image.licenses='; do
  last_stage | sed "/^ *$line/d" >"$work/Dockerfile.wrong"
  image=wrong build "$work/Dockerfile.wrong" "$work/empty"
  image=wrong refused_for "of the image: want" "an image without $line" described
done

echo "== how it runs"
open_image
configure "$work/build/image/cmekproxy"
refused_for "connection refused" "health before the start" within "${probe[@]}"
serve
within "${probe[@]}"
curl --silent --fail --max-time 5 "http://127.0.0.1:$((port + 2))/healthz" >/dev/null
within /cmekproxy version | grep -qF "cmekproxy $version (" || fail "the program does not state the version $version"
grep -q '"serving".*"fips140":"off"' "$work/image.log" || fail "the log does not state the FIPS mode"
grep -q '"time":"[^"]*+09:00"' "$work/image.log" || fail "the time zone Asia/Tokyo is not in the image"
stop
refused_for "connection refused" "health after the end" within "${probe[@]}"
refused_for "read-only file system" "writing to the image" within /cmekproxy keys new /customer.key

echo "== certificates"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=store -addext subjectAltName=IP:127.0.0.1 \
  -keyout "$work/tls.key" -out "$work/tls.crt" 2>/dev/null
openssl s_server -accept "$((port + 3))" -cert "$work/tls.crt" -key "$work/tls.key" -www >/dev/null 2>&1 &
certificates=$(grep -c BEGIN "$tree/etc/ssl/certs/ca-certificates.crt")
((certificates > 100)) || fail "the image has $certificates certificates"
cat "$tree/etc/ssl/certs/ca-certificates.crt" "$work/tls.crt" >"$work/bundle.crt"
for _ in {1..50}; do
  (exec 3<>"/dev/tcp/127.0.0.1/$((port + 3))") 2>/dev/null && break
  sleep 0.1
done
# trusted fails if the proxy does not accept the certificate of its store.
trusted() {
  local output
  output=$(within /cmekproxy check) && fail "check accepts a server that is no store"
  grep '^FAIL  store' <<<"$output" || fail "check does not ask the store"
  ! grep -q x509 <<<"$output"
}
refused_for "failed to verify certificate" "a store with an unknown certificate" trusted
bundle=$work/bundle.crt trusted || fail "the program does not read the certificates of the image"
echo "deploy/image: all valid"
