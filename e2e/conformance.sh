#!/usr/bin/env bash
# The conformance suite that the store brings, case by case, and the functional tests that minio-go brings, at the store
# and through the proxy. A case that passes at the store only must be in conformance.txt, under the reason why; one that
# is there and passes is an error too.
#
#   E2E_CASES=^Put  only the cases of the store's suite that match
#   E2E_UPDATE=1    takes from conformance.txt what passes, adds what does not, without a reason, and writes the section of
#                   docs/s3-compatibility.md

set -euo pipefail
E2E_CONFORMANCE=1 E2E_CLIENTS=none exec "$(dirname "$0")/run.sh" -run '^TestConformance$' -timeout 60m "$@"
