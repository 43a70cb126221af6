#!/usr/bin/env bash
# Builds the Debian package for this machine's architecture:
#
#   build.sh VERSION DIR
#
# Its maintainer is who builds it: DEBFULLNAME and DEBEMAIL, as in Debian's own
# tools, or else the identity of git.
set -euo pipefail
version=$1 out=$(realpath "$2")
cd "$(dirname "$0")/../.."
. deploy/tools.sh
name=${DEBFULLNAME:-$(git config user.name || true)} address=${DEBEMAIL:-$(git config user.email || true)}
if [ -z "$name" ] || [ -z "$address" ]; then
  echo "build.sh: a package names its maintainer: set DEBFULLNAME and DEBEMAIL to your name and address" >&2
  exit 1
fi
tool nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm github.com/goreleaser/nfpm/v2 v2.45.1

root=$work/deb
rm -rf "$root"
mkdir -p "$root"
CGO_ENABLED=0 go build -tags nodev -trimpath -ldflags "-s -w -X main.release=$version" -o "$root/cmekproxy" ./cmd/proxy
go run ./deploy/internal/licenses "$root/cmekproxy" | gzip -9n >"$root/THIRD_PARTY_LICENSES.gz"
deploy/deb/man.sh "$root/cmekproxy" | gzip -9n >"$root/cmekproxy.1.gz"
for shell in bash zsh fish; do "$root/cmekproxy" completion "$shell" >"$root/completion.$shell"; done

# The time of the commit, so that two builds are the same.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
gzip -9n >"$root/changelog.Debian.gz" <<END
cmekproxy ($version-1) unstable; urgency=medium

  * See https://github.com/cmekproxy/cmekproxy/blob/v$version/CHANGELOG.md

 -- $name <$address>  $(date -Rud "@$SOURCE_DATE_EPOCH")
END
ROOT=$root MAINTAINER="$name <$address>" ARCH=$(go env GOARCH) VERSION=$version "$bin/nfpm" package --config deploy/deb/nfpm.yaml --packager deb --target "$out"
