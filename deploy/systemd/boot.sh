#!/usr/bin/env bash
# Installs the Debian package on a machine that systemd has booted, as README.md
# says, and operates it: boot.sh builds, machine.sh boots, inside.sh tests.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh
internal/tools/packages.sh systemd dpkg curl openssl iproute2 util-linux procps
versitygw

dir=$work/boot
rm -rf "$dir"
mkdir -p "$dir"
DEBFULLNAME='A Maintainer' DEBEMAIL=maintainer@packages.test deploy/deb/build.sh 0.1.0 "$dir"
cp "$versitygw" deploy/systemd/inside.sh "$dir/"
"${root[@]}" deploy/systemd/machine.sh "$dir" /test/inside.sh
