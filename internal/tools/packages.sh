#!/usr/bin/env bash
# Installs Debian packages that are missing, as root or with sudo:
#
#   internal/tools/packages.sh PACKAGE...   nothing happens if all are there
#   internal/tools/packages.sh --update     only fetches the lists of packages
#
# Scripts that run at the same time wait for each other.
set -euo pipefail

missing=()
if [[ $1 != --update ]]; then
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then exit 0; fi
  echo "installing Debian packages: ${missing[*]}" >&2
fi

exec 9>"${TMPDIR:-/tmp}/cmekproxy-packages.lock"
flock 9
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
if (($(id -u) != 0)); then apt=(sudo "${apt[@]}"); fi
"${apt[@]}" update
if ((${#missing[@]} > 0)); then
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
