#!/usr/bin/env bash
# Builds the whole Dockerfile, and those variants that check.sh has no time for:
# arm64, the FIPS module and PKCS#11. A Debian made by debootstrap, with this
# machine's Go, takes the place of the images of a registry:
#
#   full.sh [plain] [fips] [arm64] [pkcs11]    # all, if none is given
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh
. deploy/image/tools.sh
internal/tools/packages.sh buildah debootstrap curl file qemu-user
version=$(deploy/version.sh) revision=$(git rev-parse HEAD) created=2026-01-02T03:04:05Z
trap clean EXIT
go mod download

echo "== images of Debian and Go"
debian=$work/debian
if [ ! -e "$debian.made" ]; then
  "${root[@]}" rm -rf "$debian"
  "${root[@]}" debootstrap --variant=minbase --include=ca-certificates,tzdata bookworm "$debian" >"$work/debootstrap.log" ||
    { tail "$work/debootstrap.log"; exit 1; }
  touch "$debian.made"
fi
container=$(images from scratch)
images add --quiet "$container" "$debian" / >/dev/null
images commit --quiet "$container" debian-slim >/dev/null
images run --isolation chroot "$container" sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends gcc libc6-dev' >/dev/null 2>&1
images config --env GOPATH=/go --env PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --env GOPROXY=off --env GOTOOLCHAIN=local "$container"
images commit --quiet "$container" golang >/dev/null

# build PLATFORM DOCKERFILE ARGUMENT... builds a variant and opens it. Debian's
# buildah does not set BUILDPLATFORM by itself.
build() {
  assemble "${@:2}" --platform "linux/$1" --build-arg "BUILDPLATFORM=linux/$(go env GOARCH)" \
    --build-arg GO_IMAGE=localhost/golang --build-arg DEBIAN_IMAGE=localhost/debian-slim \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" \
    --volume "$(go env GOROOT):/usr/local/go:ro" --volume "$(go env GOMODCACHE):/go/pkg/mod" \
    --volume "$(go env GOCACHE):/root/.cache/go-build"
  open_image
}

# settings_of prints how the program of the image was built.
settings_of() { go version -m "$tree/cmekproxy"; }

fips() { settings_of | grep -q 'GOFIPS140=v1.0.0'; }

# states TEXT fails unless "cmekproxy version", run by COMMAND..., has it.
states() {
  local line
  line=$("${@:2}" version)
  echo "$line"
  grep -qF "$1" <<<"$line" || fail "the program does not state \"$1\""
}

test_plain() {
  build "$(go env GOARCH)" Dockerfile
  described
  configure "$tree/cmekproxy"
  states "cmekproxy $version (" within /cmekproxy
  serve
  within "${probe[@]}"
  stop
  refused "a program without the FIPS module" fips
}

test_fips() {
  build "$(go env GOARCH)" Dockerfile --build-arg GOFIPS140=v1.0.0
  described
  fips || fail "the program was not built with GOFIPS140=v1.0.0"
  settings_of | grep -q 'DefaultGODEBUG=.*fips140=on' || fail "the FIPS mode is not on by default"
  configure "$tree/cmekproxy"
  states 'FIPS 140 module v1.0.0' within /cmekproxy
  serve
  grep -q '"serving".*"fips140":"v1\.0\.0' "$work/image.log" || fail "the log does not state the FIPS module"
  stop
}

test_arm64() {
  build arm64 Dockerfile
  described
  has "the architecture" arm64 "$(inspect .OCIv1.Architecture)"
  file "$tree/cmekproxy" | grep -q 'ELF 64-bit.*ARM aarch64.*statically linked' || fail "the program is not for arm64"
  states "cmekproxy $version (" qemu-aarch64 "$tree/cmekproxy"
  qemu-aarch64 "$tree/cmekproxy" config validate deploy/examples/aws-kms.yaml
}

test_pkcs11() {
  build "$(go env GOARCH)" deploy/image/pkcs11.Dockerfile
  described ", with PKCS#11"
  "${root[@]}" du --summarize --human-readable "$tree"
  # The user adds the library of the vendor. Here it is SoftHSM.
  "${root[@]}" cp /etc/resolv.conf "$tree/etc/resolv.conf"
  "${root[@]}" chroot "$tree" sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends softhsm2 opensc' \
    >/dev/null 2>&1
  configure "$tree/cmekproxy"
  "${root[@]}" sed -i "s|provider: local, key_file: [^}]*|provider: pkcs11, module: /usr/lib/softhsm/libsofthsm2.so, token: t, key_label: k, pin: '12345678'|" \
    "$settings/config.yaml"
  "${root[@]}" chroot "$tree" sh -c '
    softhsm2-util --init-token --free --label t --so-pin 12345678 --pin 12345678 >/dev/null
    pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --token-label t --login --pin 12345678 \
      --keygen --key-type AES:32 --label k --sensitive >/dev/null 2>&1
    chown -R 65532:65532 /var/lib/softhsm /etc/softhsm'
  serve
  for _ in {1..50}; do
    grep '"this key works".*"pkcs11"' "$work/image.log" && break
    sleep 0.1
  done
  grep -q '"this key works"' "$work/image.log" || { cat "$work/image.log"; fail "the key in the token does not work"; }
  stop
}

(($# > 0)) || set -- plain fips arm64 pkcs11
for variant; do
  echo "== $variant"
  "test_$variant"
done
echo "deploy/image: all variants valid"
