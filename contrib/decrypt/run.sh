#!/usr/bin/env bash
# Tests the independent decryptor with the test vectors of the format, and with
# what each release wrote.
# Installs python3-cryptography if no Python has it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

find_python() {
  for python in python3 /usr/bin/python3; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c 'import cryptography' >/dev/null 2>&1; then
      echo "$python"
      return 0
    fi
  done
  return 1
}

if ! find_python >/dev/null; then
  "$here/../../internal/tools/packages.sh" python3 python3-cryptography
fi
exec "$(find_python)" -m unittest discover -s "$here" -p 'test_*.py' "$@"
