#!/usr/bin/env bash
# Builds what a release consists of, for each platform: an archive with the
# program, its manual page and completions, and the licenses of the modules in
# it; and a bill of materials. And checksums of all. The same commit gives the
# same bytes, with the same version of Go and gzip:
#
#   build.sh VERSION DIR
set -euo pipefail
version=${1#v} out=$(realpath "$2")
cd "$(dirname "$0")/../.."
. deploy/tools.sh
tool cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod v1.10.0
# macOS is for the commands of clients and key owners, such as check and decrypt.
# Windows has no SIGHUP, no SIGUSR1 and no inode numbers, which the proxy needs.
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/arm64}

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CGO_ENABLED=0
stage=$work/release
rm -rf "$stage"
mkdir -p "$stage/common/completions"

# program FILE builds it for $GOOS and $GOARCH. Go records the commit in it.
program() {
  go build -tags nodev -trimpath -buildvcs=true -ldflags "-s -w -X main.release=$version" -o "$1" ./cmd/proxy
}
(unset GOOS GOARCH && program "$stage/native" && go build -o "$stage/licenses" ./deploy/internal/licenses)
deploy/deb/man.sh "$stage/native" >"$stage/common/cmekproxy.1"
for shell in bash zsh fish; do "$stage/native" completion "$shell" >"$stage/common/completions/cmekproxy.$shell"; done
cp LICENSE README.md CHANGELOG.md SECURITY.md config.example.yaml "$stage/common/"

rm -f "$out"/cmekproxy-*.tar.gz "$out"/cmekproxy-*.cdx.json "$out/checksums.txt"
for platform in $platforms; do
  name=cmekproxy-$version-${platform/\//-}
  echo "== $name"
  cp -R "$stage/common" "$stage/$name"
  GOOS=${platform%/*} GOARCH=${platform#*/} program "$stage/$name/cmekproxy"
  "$stage/licenses" "$stage/$name/cmekproxy" >"$stage/$name/THIRD_PARTY_LICENSES"
  find "$stage/$name" -type d -exec chmod 0755 {} + -o -type f -exec chmod 0644 {} +
  chmod 0755 "$stage/$name/cmekproxy"

  tar --create --directory "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --format=ustar "$name" | gzip -9n >"$out/$name.tar.gz"
  # The serial number and the time of a bill would differ for each build.
  "$bin/cyclonedx-gomod" bin -json -std -noserial -notimestamp -version "v$version" \
    -output "$out/$name.cdx.json" "$stage/$name/cmekproxy" 2>"$stage/cyclonedx.log" || { cat "$stage/cyclonedx.log"; exit 1; }
done
(cd "$out" && sha256sum cmekproxy-*.tar.gz cmekproxy-*.cdx.json >checksums.txt)
