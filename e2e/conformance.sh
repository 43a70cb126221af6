#!/usr/bin/env bash
# Runs the store's conformance suite, case by case, and the functional tests
# of minio-go, at the store and through the proxy. A case that passes only at
# the store must be in conformance.txt, below the reason and the page that
# documents it. A case that is in conformance.txt and passes through the proxy
# is an error too.
#
#   STORE=ceph      another store: what passes there only, and is not in
#                   conformance.txt, is reported
#   E2E_CASES=^Put  run only the cases of the store's suite that match
#   E2E_UPDATE=1    remove from conformance.txt what passes, add what fails
#                   (without a reason or a page), and write the section of
#                   docs/s3-compatibility.md

set -euo pipefail
E2E_CONFORMANCE=1 E2E_CLIENTS=none exec "$(dirname "$0")/run.sh" -run '^TestConformance$' -timeout 60m "$@"
