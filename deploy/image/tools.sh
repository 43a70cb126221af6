# shellcheck shell=bash
# Sourced by check.sh and full.sh, after deploy/tools.sh: images without a
# registry, and a proxy that runs from the root file system of one.
storage=$work/images
image=cmekproxy-test

# The file system is copied for each layer, which needs no privileges of the
# kernel and works in containers.
images() { "${root[@]}" buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }

# assemble DOCKERFILE ARGUMENT... builds an image in the current directory.
assemble() {
  images build --isolation chroot --format docker --layers=false --pull-never --quiet \
    --file "$1" --tag "$image" "${@:2}" . >/dev/null
}

# inspect FIELD prints a field of the image.
inspect() { images inspect --type image --format "{{$1}}" "$image"; }

# open_image mounts a container of the image as $tree, and reads how to run it.
open_image() {
  tree=$(images mount "$(images from --pull-never "$image")")
  user=$(inspect .Docker.Config.User)
  mapfile -t entrypoint < <(inspect 'range .Docker.Config.Entrypoint}}{{println .}}{{end')
  mapfile -t command < <(inspect 'range .Docker.Config.Cmd}}{{println .}}{{end')
  mapfile -t health < <(inspect 'with .Docker.Config.Healthcheck}}{{range .Test}}{{println .}}{{end}}{{end')
  probe=("${health[@]:1}") # after CMD
}

# clean ends what runs, and removes all images.
clean() {
  [ ! -e "$work/image.pid" ] || "${root[@]}" kill "$(cat "$work/image.pid")" 2>/dev/null || true
  jobs -p | xargs -r kill 2>/dev/null || true
  images umount --all >/dev/null 2>&1 || true
  "${root[@]}" rm -rf "$storage" "${settings:-$storage}"
}

# fail WHAT ends the test.
fail() {
  echo "deploy: $*" >&2
  exit 1
}

# refused_for REASON WHAT COMMAND... is refused, with a reason that is checked.
refused_for() {
  local reason=$1 output
  shift
  output=$(refused "$@") || { echo "$output" >&2; exit 1; }
  echo "$output"
  grep -qF "$reason" <<<"$output" || fail "the reason is not \"$reason\""
}

# has WHAT WANT GOT compares.
has() { [ "$2" = "$3" ] || fail "$1 of the image: want \"$2\", got \"$3\""; }

# described fails unless the image says what it is, with $version, $revision and
# $created, and how to run it.
described() (
  # shellcheck disable=SC2030,SC2031 # each image is opened in a shell of its own
  open_image
  has "the user" 65532:65532 "$user"
  has "the entry point" "/cmekproxy serve" "${entrypoint[*]} ${command[*]}"
  has "the health check" "CMD /cmekproxy health" "${health[*]}"
  has "the ports" "map[9000/tcp:{} 9002/tcp:{}]" "$(inspect .Docker.Config.ExposedPorts)"
  label() { has "the label $1" "$2" "$(inspect "index .Docker.Config.Labels \"org.opencontainers.image.$1\"")"; }
  label title cmekproxy
  label description "S3 proxy that encrypts objects under the key owner's KMS key${1:-}"
  label source https://github.com/cmekproxy/cmekproxy
  label licenses Apache-2.0
  label version "$version"
  label revision "$revision"
  label created "$created"
  cmp LICENSE "$tree/licenses/LICENSE"
  licensed "$tree/cmekproxy" "$tree/licenses/THIRD_PARTY_LICENSES"
)

# configure writes a configuration, secrets and a key for the proxy in $tree, as
# an orchestrator mounts them. Its store is not there.
configure() {
  port=$((20000 + RANDOM % 10000))
  settings=$(mktemp -d)
  cat >"$settings/config.yaml" <<END
listen: 0.0.0.0:$port
admin_listen: 127.0.0.1:$((port + 1))
health_listen: 0.0.0.0:$((port + 2))
metrics_listen: 0.0.0.0:$((port + 2))
origin: {endpoint: https://127.0.0.1:$((port + 3)), region: us-east-1, access_key: store, secret_key: a-secret-of-the-store}
clients:
  - {name: app, access_key: app, secret_key: a-secret-of-the-client, allow: [{buckets: [photos], actions: [read]}]}
keys: [{name: customer, provider: local, key_file: /etc/cmekproxy/customer.key}]
encryption: {rules: [{buckets: [photos], key: customer}]}
limits: {shutdown_grace: 5s, shutdown_delay: 0s}
END
  "$1" keys new "$settings/customer.key" >/dev/null
  "${root[@]}" chown -R 65532:65532 "$settings"
  "${root[@]}" chmod -R u=rX,go= "$settings"
}

# within COMMAND... runs a command of the image as its user, with a read-only
# root file system, and without the environment of this shell. $bundle replaces
# the certificates, and the id of the process is written to $pid_file, if given.
within() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  "${root[@]}" unshare --mount sh -euc '
    tree=$1 settings=$2 user=$3 bundle=$4 pid_file=$5
    shift 5
    mkdir -p "$tree/etc/cmekproxy"
    mount --bind "$tree" /mnt
    mount --bind "$settings" /mnt/etc/cmekproxy
    [ -z "$bundle" ] || mount --bind "$bundle" /mnt/etc/ssl/certs/ca-certificates.crt
    mount -o remount,bind,ro /mnt
    mount -o remount,bind,ro /mnt/etc/cmekproxy
    [ -z "$pid_file" ] || echo $$ >"$pid_file"
    exec env -i TZ=Asia/Tokyo "$(command -v chroot)" --userspec="$user" /mnt "$@"
  ' sh "$tree" "$settings" "$user" "${bundle:-}" "${pid_file:-}" "$@"
}

# serve starts the image as docker does, and waits until it is healthy.
serve() {
  pid_file=$work/image.pid within "${entrypoint[@]}" "${command[@]}" >"$work/image.log" 2>&1 &
  for _ in {1..100}; do
    if within "${probe[@]}" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  cat "$work/image.log"
  fail "the image does not serve"
}

# stop ends it, and waits.
stop() {
  "${root[@]}" kill -TERM "$(cat "$work/image.pid")"
  wait %% || fail "the proxy ended with $?"
  rm "$work/image.pid"
}
