#!/bin/sh
# Prints the version of this source as it is in the names of images and
# packages: 0.1.0 at the tag v0.1.0, else the last tag, the commits since and
# the commit, such as 0.1.0-12-g33dce7c. Uncommitted changes add "-dirty".
set -eu
cd "$(dirname "$0")/.."
version=$(git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null) ||
  version=v0.0.0-$(git rev-list --count HEAD)-g$(git describe --always --match - --dirty)
echo "${version#v}"
