#!/usr/bin/env bash
# End-to-end tests: real clients against the proxy, in front of a separate
# store. Runs on Debian with Go. Anything else that is missing is installed,
# as root or with sudo. See doc.go for what is tested.
#
#   E2E_CLIENTS="boto3 rclone"   run only these clients
#   E2E_TARGET=store             run the clients at the store, without the
#                                proxy: failures there are not caused by it
#   E2E_FULL=1                   also run the clients that take minutes to
#                                install: heavy, below
#   E2E_RESTARTS=10              restarts of each replica in TestRolling
#   E2E_UPDATE=1                 write the matrix of docs/s3-compatibility.md
#                                instead of comparing it
#   STORE=minio                  use MinIO as the store, or seaweedfs: building
#                                them takes about ten minutes; or ceph
#
# .cache keeps everything built or fetched, and the logs of the last run.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache
bin=$cache/e2e/bin
versitygw=v1.8.0
minio=v0.0.0-20260212201848-7aac2a2c5b7c
seaweedfs=v0.0.0-20261109003541-7506e5f91cd6
mc=v0.0.0-20250313080218-cf909e1063a9
litestream=v0.5.18
vmbackup=v1.135.0
heavy=" mc litestream vmbackup pgbackrest barman-cloud gdal samtools git-annex s3backer docker-registry aptly lancedb "

say() { printf 'e2e: %s\n' "$*"; }

wanted() {
  if [[ -n ${E2E_CLIENTS:-} ]]; then
    [[ " $E2E_CLIENTS " == *" $1 "* ]]
  else
    [[ -n ${E2E_FULL:-} || $heavy != *" $1 "* ]]
  fi
}

# any_wanted CLIENT... reports whether one of the clients is to run.
any_wanted() {
  local client
  for client in "$@"; do
    if wanted "$client"; then return 0; fi
  done
  return 1
}

wanted_modules() { any_wanted js-sdk minio-js s3-sync-client multer-s3 tus status-page; }

wanted_node() { wanted_modules || wanted lancedb; }

has() { command -v "$1" >/dev/null 2>&1; }

# python_with MODULES prints a Python that has these modules. It also tries
# Debian's own, because the first Python in PATH may be a different one.
python_with() {
  local python
  for python in python3 /usr/bin/python3; do
    if has "$python" && "$python" -c "import $1" >/dev/null 2>&1; then
      echo "$python"
      return 0
    fi
  done
  return 1
}

# A client, a program that it needs, and the Debian packages that have it.
# The path of a program is a pattern.
programs="
aws-cli          aws                       awscli
rclone           rclone                    rclone
rclone           fusermount                fuse
s3cmd            s3cmd                     s3cmd
ruby-sdk         ruby                      ruby
restic           restic                    restic
duplicity        duplicity                 duplicity
s3fs             s3fs                      s3fs
s3fs             fusermount                fuse
s4cmd            s4cmd                     s4cmd
smart_open       python3                   python3
gdal             gdalinfo                  gdal-bin
samtools         samtools                  samtools
git-annex        git-annex                 git-annex
s3backer         s3backer                  s3backer
s3backer         fusermount                fuse
pgbackrest       pgbackrest                pgbackrest
pgbackrest       /usr/lib/postgresql/*/bin/initdb  postgresql
barman-cloud     barman-cloud-backup       barman-cli-cloud
barman-cloud     /usr/lib/postgresql/*/bin/initdb  postgresql
docker-registry  docker-registry           docker-registry
docker-registry  skopeo                    skopeo
aptly            aptly                     aptly
tenant-kit       shellcheck                shellcheck
status-page      chromium                  chromium
rolling          haproxy                   haproxy
client-addresses haproxy                   haproxy
client-addresses nginx                     nginx-light
client-addresses /usr/lib/nginx/modules/ngx_stream_module.so  libnginx-mod-stream
rolling          ip                        iproute2
rolling          aws                       awscli
"

install_packages() {
  local missing=() client program package
  while read -r client program package; do
    # shellcheck disable=SC2086 # the path may be a pattern
    if [[ -n $client ]] && wanted "$client" && ! has $program; then missing+=("$package"); fi
  done <<<"$programs"
  if any_wanted boto3 rolling && ! python_with boto3 >/dev/null; then missing+=(python3 python3-boto3); fi
  # Debian's own Python runs these.
  if any_wanted duplicity barman-cloud && ! /usr/bin/python3 -c 'import boto3' >/dev/null 2>&1; then missing+=(python3-boto3); fi
  if wanted smart_open && ! /usr/bin/python3 -c 'import smart_open, boto3' >/dev/null 2>&1; then missing+=(python3-smart-open python3-boto3); fi
  if wanted ruby-sdk && ! { has ruby && ruby -e 'require "aws-sdk-s3"' >/dev/null 2>&1; }; then missing+=(ruby-aws-sdk-s3); fi
  if wanted_node && ! has node; then missing+=(nodejs); fi
  if wanted_node && ! has npm; then missing+=(npm); fi
  if [[ ${STORE:-} == ceph ]] && ! { has ceph-mon && has ceph-osd && has radosgw && has ceph; }; then
    missing+=(ceph-mon ceph-osd radosgw ceph-common)
  fi
  if [[ ${STORE:-} == ceph ]] && ! has curl; then missing+=(curl); fi # for ceph.sh
  if ! python_with 'boto3, cryptography' >/dev/null; then missing+=(python3 python3-boto3 python3-cryptography); fi
  if ((${#missing[@]} == 0)); then return 0; fi
  "$root/internal/tools/packages.sh" "${missing[@]}"
}

install_node_modules() {
  if wanted lancedb && [[ ! -d $root/e2e/js/lancedb/node_modules/@lancedb ]]; then
    # It is 180 MB, and a lock file would name its binaries for all platforms,
    # which not every registry has.
    say "installing LanceDB: npm install in e2e/js/lancedb"
    npm install --prefix "$root/e2e/js/lancedb" --no-package-lock --no-audit --no-fund --loglevel=error
  fi
  local lock=$root/e2e/js/package-lock.json
  if ! wanted_modules || [[ $root/e2e/js/node_modules/.package-lock.json -nt $lock ]]; then return 0; fi
  say "installing the JavaScript clients: npm ci in e2e/js"
  npm ci --prefix "$root/e2e/js" --no-audit --no-fund --loglevel=error
  touch "$root/e2e/js/node_modules/.package-lock.json"
}

# install_go PROGRAM MODULE PACKAGE VERSION HOW-LONG builds a program unless
# this version is already there.
install_go() {
  if has "$bin/$1" && go version -m "$bin/$1" | grep -q "[[:space:]]$2[[:space:]]$4\b"; then return 0; fi
  say "building $1 $4 ($5)"
  GOBIN=$bin go install "$3@$4"
}

# SeaweedFS is not a module that go install can build: it needs a replace.
install_seaweedfs() {
  if has "$bin/weed" && go version -m "$bin/weed" | grep -q "[[:space:]]$seaweedfs\b"; then return 0; fi
  say "building SeaweedFS $seaweedfs (about eight minutes)"
  local dir=$cache/e2e/seaweedfs
  mkdir -p "$dir"
  printf 'module build\n\ngo 1.26\n\nrequire github.com/seaweedfs/seaweedfs %s\n\nreplace github.com/tyler-smith/go-bip39 => github.com/cosmos/go-bip39 v1.0.0\n' "$seaweedfs" >"$dir/go.mod"
  (cd "$dir" && go build -mod=mod -o "$bin/weed" github.com/seaweedfs/seaweedfs/weed)
}

mkdir -p "$bin"
install_packages
install_node_modules
case ${STORE:-versitygw} in
  versitygw)
    install_go versitygw github.com/versity/versitygw github.com/versity/versitygw/cmd/versitygw "$versitygw" "a few minutes"
    ;;
  minio) install_go minio github.com/minio/minio github.com/minio/minio "$minio" "about ten minutes" ;;
  seaweedfs) install_seaweedfs ;;
  ceph) ;; # Debian packages
  *)
    say "STORE is $STORE, and must be versitygw, minio, seaweedfs or ceph"
    exit 2
    ;;
esac
if wanted mc; then install_go mc github.com/minio/mc github.com/minio/mc "$mc" "two minutes"; fi
if wanted litestream; then
  install_go litestream github.com/benbjohnson/litestream github.com/benbjohnson/litestream/cmd/litestream "$litestream" "four minutes"
fi
if wanted vmbackup; then
  for program in vmbackup vmrestore victoria-metrics; do
    install_go $program github.com/VictoriaMetrics/VictoriaMetrics "github.com/VictoriaMetrics/VictoriaMetrics/app/$program" "$vmbackup" "a minute"
  done
fi
if [[ -n ${E2E_CONFORMANCE:-} ]]; then
  install_go versitygw github.com/versity/versitygw github.com/versity/versitygw/cmd/versitygw "$versitygw" "a few minutes"
  # The program builds only without the build tag in its file. With the tag,
  # it belongs to the package of the library.
  say "building minio-go's functional tests"
  mkdir -p "$cache/e2e/functional"
  sed '/^\/\/go:build mint$/d' "$(cd "$root/e2e" && go list -m -f '{{.Dir}}' github.com/minio/minio-go/v7)/functional_tests.go" >"$cache/e2e/functional/main.go"
  (cd "$root/e2e" && go build -o "$bin/minio-go-functional" "$cache/e2e/functional/main.go")
fi
if [[ ${E2E_TARGET:-proxy} != store ]]; then
  say "building the proxy, without the store of cmekproxy dev, and the KMS"
  (cd "$root" && go build -tags nodev -o "$bin/cmekproxy" ./cmd/proxy && go build -o "$bin/kmsd" ./internal/kms/kmstest/kmsd)
fi

E2E_PYTHON=$(python_with boto3 || echo python3)
E2E_DECRYPT_PYTHON=$(python_with 'boto3, cryptography')
export E2E_PYTHON E2E_DECRYPT_PYTHON
export E2E_BIN=$bin E2E_CACHE=$cache/e2e E2E_LOGS=$cache/e2e/logs
rm -rf "$E2E_LOGS"
cd "$root/e2e"
say "running the clients (a few minutes); logs are in .cache/e2e/logs"
# Without a package argument, go test prints the output of the tests at
# once. Four clients run at a time, because most of them wait a lot.
exec go test -count=1 -parallel 4 -timeout 20m "$@"
