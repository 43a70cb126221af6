#!/usr/bin/env bash
# Builds a release twice, from two clones in different directories and without a
# common cache, and compares the checksums. Then it tests what is in it.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh
internal/tools/packages.sh jq file
version=0.1.0 revision=$(git rev-parse HEAD)
trap 'rm -rf "$work/release-1" "$work/another" "$work/release-cache"' EXIT
fail() { echo "deploy: $*" >&2; exit 1; }

# build DIR builds a release of this commit in a clone at DIR.
build() {
  rm -rf "$1"
  git clone --quiet --no-hardlinks . "$1/source"
  mkdir "$1/dist" "$1/source/.cache"
  ln -s "$bin" "$1/source/.cache/bin"
  "$1/source/deploy/release/build.sh" "$version" "$1/dist"
}
dist=$work/release-1/dist other=$work/another/directory/dist
build "$work/release-1"
GOCACHE=$work/release-cache build "$work/another/directory"
cat "$dist/checksums.txt"
cmp "$dist/checksums.txt" "$other/checksums.txt"
(cd "$other" && sha256sum --quiet --check checksums.txt)
[ "$(wc -l <"$dist/checksums.txt")" = 6 ] || fail "checksums.txt does not have 6 files"

# A changed archive must be noticed.
echo >>"$other/cmekproxy-$version-linux-arm64.tar.gz"
checksums() { (cd "$other" && sha256sum --quiet --check checksums.txt); }
refused "a changed archive" checksums

for platform in linux-amd64 linux-arm64 darwin-arm64; do
  name=cmekproxy-$version-$platform
  files=$(tar --list --gzip --file "$dist/$name.tar.gz")
  for file in cmekproxy LICENSE THIRD_PARTY_LICENSES README.md CHANGELOG.md cmekproxy.1 completions/cmekproxy.bash; do
    grep -qx "$name/$file" <<<"$files" || fail "$name has no $file"
  done
  tar --extract --gzip --directory "$work/release-1" --file "$dist/$name.tar.gz"
  program=$work/release-1/$name/cmekproxy
  settings=$(go version -m "$program")
  grep -qF "vcs.revision=$revision" <<<"$settings" || fail "$name does not have the commit"
  ! grep -qF "$work" "$program" || fail "$name has the path of the machine that built it"

  # Every module in the program is in its bill of materials, and the same.
  modules=$(awk '$1 == "dep" {print $2 "@" $3}' <<<"$settings" | sort)
  bill=$(jq -r '.components[] | select(.name != "std") | .name + "@" + .version' "$dist/$name.cdx.json" | sort)
  [ "${modules:-none}" = "$bill" ] || fail "the bill of materials of $name is not that of the program"
  licensed "$program" "$work/release-1/$name/THIRD_PARTY_LICENSES"
  [ "$(jq -r .metadata.component.version "$dist/$name.cdx.json")" = "v$version" ] || fail "the bill of $name has another version"
done
texts=$work/release-1/$name/THIRD_PARTY_LICENSES
sed 's|^github.com/spf13/cobra v|github.com/another/cobra v|' "$texts" >"$work/wrong.texts"
refused "a module without a license" licensed "$program" "$work/wrong.texts"
sed "s|^Go's standard|Another's|" "$texts" >"$work/wrong.texts"
refused "no license of Go's standard library" licensed "$program" "$work/wrong.texts"
file "$work/release-1/cmekproxy-$version-linux-arm64/cmekproxy" | grep -q 'ELF 64-bit.*aarch64.*statically linked'
file "$work/release-1/cmekproxy-$version-darwin-arm64/cmekproxy" | grep -q 'Mach-O 64-bit.*arm64'
line=$("$work/release-1/cmekproxy-$version-linux-$(go env GOARCH)/cmekproxy" version)
[[ $line == "cmekproxy $version ("* ]] || fail "the program says $line"
echo "deploy/release: both builds are equal, and all valid"
