#!/usr/bin/env bash
# Builds the Debian package twice and tests it: both are equal, lintian has no
# complaint, the unit and the manual page in it are valid, and the program runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh

internal/tools/packages.sh lintian systemd man-db

export DEBFULLNAME='A Maintainer' DEBEMAIL=maintainer@packages.test
refused "a package without a maintainer" env -u DEBFULLNAME -u DEBEMAIL GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
  GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0= GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1= \
  deploy/deb/build.sh 0.1.0 "$work"
for build in 1 2; do
  rm -rf "$work/deb-$build"
  mkdir -p "$work/deb-$build"
  deploy/deb/build.sh 0.1.0 "$work/deb-$build"
done
cmp "$work"/deb-[12]/*.deb
deb=$(echo "$work"/deb-1/*.deb)
check() { lintian --allow-root --fail-on error,warning,info --tag-display-limit 0 "$1"; }
check "$deb"
[ "$(dpkg-deb --field "$deb" Maintainer)" = 'A Maintainer <maintainer@packages.test>' ]
rm -rf "$work/deb-wrong"
dpkg-deb --raw-extract "$deb" "$work/deb-wrong"
rm "$work/deb-wrong/usr/share/doc/cmekproxy/copyright"
dpkg-deb --build -Znone "$work/deb-wrong" "$work/wrong.deb" >/dev/null
refused "a package without a copyright" check "$work/wrong.deb"

root=$work/deb-root
rm -rf "$root"
dpkg-deb --extract "$deb" "$root"
zcat "$root/usr/share/doc/cmekproxy/THIRD_PARTY_LICENSES.gz" >"$work/licenses"
licensed "$root/usr/bin/cmekproxy" "$work/licenses"
for script in postinst prerm postrm; do sh -n "deploy/deb/$script"; done
version=$("$root/usr/bin/cmekproxy" version)
[[ $version == *0.1.0* ]] || { echo "deploy: the program in the package says $version"; exit 1; }
unit=$root/usr/lib/systemd/system/cmekproxy.service
sed "s|^ExecStart=/usr|ExecStart=$root/usr|" "$unit" >"$work/cmekproxy.service"
problems=$(systemd-analyze verify "$work/cmekproxy.service" 2>&1)
[ -z "$problems" ] || { echo "$problems"; exit 1; }

page=$(MANWIDTH=80 man --warnings --local-file "$root/usr/share/man/man1/cmekproxy.1.gz" 2>&1)
if grep -i warning <<<"$page"; then exit 1; fi
for command in serve 'keys rotate' decrypt; do
  grep -q "^ *$command\$" <<<"$page" || {
    echo "deploy: the manual page has no $command"
    exit 1
  }
done
echo "deploy/deb: all valid"
