#!/bin/sh
# Makes the root file system of the image, around the program in DIR:
#
#   rootfs.sh DIR
#
# The Dockerfile runs it where the program is built, because the image has no
# shell. Certificates and time zones are those of this Debian system, and the
# licenses those of the modules in the program.
set -eu
dir=$(realpath "$1")
cd "$(dirname "$0")/../.."
[ -x "$dir/cmekproxy" ] || { echo "rootfs.sh: $dir/cmekproxy is not a program" >&2; exit 1; }

mkdir -p "$dir/etc/ssl/certs" "$dir/usr/share"
cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/"
cp -R /usr/share/zoneinfo "$dir/usr/share/"
# The same zones again with leap seconds, and the zone of this machine.
rm -rf "$dir/usr/share/zoneinfo/right" "$dir/usr/share/zoneinfo/posix" "$dir/usr/share/zoneinfo/localtime"

mkdir -p "$dir/licenses"
cp LICENSE "$dir/licenses/"
go run ./deploy/internal/licenses "$dir/cmekproxy" >"$dir/licenses/THIRD_PARTY_LICENSES"

echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$dir/etc/passwd"
echo 'nonroot:x:65532:' >"$dir/etc/group"
find "$dir" -type d -exec chmod 0755 {} +
