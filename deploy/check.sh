#!/usr/bin/env bash
# Validates what is in deploy with the tools that will read it: kustomize and
# kubeconform, systemd-analyze, and the reference parser of compose files. Each
# must also refuse a mistake. Tools and schemas are fetched once into .cache.
# The Helm chart has its own helm/test.sh, because helm takes minutes to build.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/tools.sh

tool kustomize sigs.k8s.io/kustomize/kustomize/v5 sigs.k8s.io/kustomize/kustomize/v5 v5.8.1
tool compose-spec github.com/compose-spec/compose-go/v2/cmd github.com/compose-spec/compose-go/v2 v2.16.2
internal/tools/packages.sh systemd
schemas

echo "== kubernetes"
for name in base sidecar; do
  "$bin/kustomize" build "deploy/kubernetes/$name" >"$work/$name.yaml"
done
conform "$work/base.yaml" "$work/sidecar.yaml"
DEPLOY_RENDERED=$work/base.yaml:$work/sidecar.yaml go test -count=1 -run 'TestManifests$' ./deploy
# The overlay of README.md, with a configuration of its own.
mkdir -p "$work/overlay"
# shellcheck disable=SC2016 # these are the fences of a block of code
sed -n '/^```yaml/,/^```/p' deploy/README.md | sed '/^```/d' | sed "s|\.\./base|../../../deploy/kubernetes/base|" \
  >"$work/overlay/kustomization.yaml"
sed 's/photos/reports/' deploy/kubernetes/base/config.yaml >"$work/overlay/config.yaml"
"$bin/kustomize" build "$work/overlay" >"$work/overlay.yaml"
conform "$work/overlay.yaml"
for text in 'image: YOUR-REGISTRY/cmekproxy:0.1.0' 'namespace: storage' 'buckets: [reports]'; do
  grep -qF "$text" "$work/overlay.yaml" || { echo "deploy: the overlay of README.md makes no $text"; exit 1; }
done
sed 's/readinessProbe:/readynessProbe:/' "$work/base.yaml" >"$work/wrong.yaml"
refused "a misspelt field" conform "$work/wrong.yaml"
sed 's/kind: PodDisruptionBudget/kind: PodDisruptionsBudget/' "$work/base.yaml" >"$work/wrong.yaml"
refused "an unknown kind" conform "$work/wrong.yaml"
sed 's/minReplicas: 2/minReplicas: two/' "$work/base.yaml" >"$work/wrong.yaml"
refused "a text for a number" conform "$work/wrong.yaml"

echo "== systemd"
# verify reports mistakes, but exits with 0 for most. The program is not here.
verify() {
  local output
  output=$(sed 's|^ExecStart=/usr/bin/cmekproxy|ExecStart=/bin/true|' "$1" >"$work/cmekproxy.service" &&
    systemd-analyze verify "$work/cmekproxy.service" 2>&1)
  [ -z "$output" ] || { echo "$output" >&2; return 1; }
}
# exposure fails from 2.5 on, of 10.
exposure() {
  local output status=0
  output=$(systemd-analyze security --offline=true --threshold=25 --no-pager "$1") || status=$?
  tail -n 1 <<<"$output"
  return "$status"
}
unit=deploy/systemd/cmekproxy.service
verify "$unit"
exposure "$unit"
systemd-sysusers --dry-run "$PWD/deploy/systemd/cmekproxy.sysusers" >/dev/null 2>&1
sed 's/^ProtectHome=/ProtectHomes=/' "$unit" >"$work/wrong.service"
refused "a misspelt setting" verify "$work/wrong.service"
sed '/^CapabilityBoundingSet=/d; /^SystemCallFilter=/d' "$unit" >"$work/wrong.service"
refused "capabilities and all system calls" exposure "$work/wrong.service"

echo "== compose"
# The parser's own program does not see the environment; ./deploy tests it.
compose() { (cd deploy/compose && "$bin/compose-spec" -no-interpolation "$1"); }
compose compose.yaml >/dev/null
sed 's/stop_grace_period/stop_grace_time/' deploy/compose/compose.yaml >"$work/wrong.yaml"
refused "a misspelt setting" compose "$work/wrong.yaml"
sed 's/stop_grace_period: 40s/stop_grace_period: [40s]/' deploy/compose/compose.yaml >"$work/wrong.yaml"
refused "a list for a duration" compose "$work/wrong.yaml"
echo "== cmekproxy check, with the store of compose.yaml"
versitygw
CGO_ENABLED=0 go build -tags nodev -trimpath -o "$work/cmekproxy" ./cmd/proxy
run=$(mktemp -d) port=$((20000 + RANDOM % 10000))
mkdir -p "$run/objects/photos"
export ORIGIN_SECRET_KEY=a-secret-of-the-store APP_SECRET_KEY=a-secret-of-the-client
ROOT_ACCESS_KEY=store ROOT_SECRET_KEY=$ORIGIN_SECRET_KEY "$versitygw" --port "127.0.0.1:$port" --quiet \
  posix "$run/objects" >"$run/store.log" 2>&1 &
store=$!
trap 'kill "$store"; rm -rf "$run"' EXIT
sed "s|http://store:7070|http://127.0.0.1:$port|; s|/keys/|$run/|" deploy/compose/config.yaml >"$run/config.yaml"
sed -i "s|0.0.0.0:9000|127.0.0.1:$((port + 1))|; s|0.0.0.0:9002|127.0.0.1:$((port + 2))|" "$run/config.yaml"
echo "admin_listen: 127.0.0.1:$((port + 3))" >>"$run/config.yaml"
"$work/cmekproxy" keys new "$run/customer.key" >/dev/null
for _ in {1..100}; do
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  sleep 0.1
done
"$work/cmekproxy" check --config "$run/config.yaml" --bucket photos
echo "== the commands of README.md that try a configuration"
mkdir -p "$run/bin" "$run/try"
ln -s "$work/cmekproxy" "$run/bin/cmekproxy"
sed "s|https://s3.eu.*|http://127.0.0.1:$port|; s|region: eu.*|region: us-east-1\n  access_key: store\n  secret_key: \${ORIGIN_SECRET_KEY}|; \
  s|provider: aws-kms|provider: local|; s|key_id:.*|key_file: $run/customer.key|" deploy/kubernetes/sidecar/config.yaml >"$run/try/config.yaml"
# shellcheck disable=SC2016 # these are the fences of a block of code
sed -n '/^mkdir -p try/,/^```/p' deploy/README.md | sed '/^```/d' >"$run/try.sh"
(cd "$run/try" && PATH="$run/bin:$PATH" bash -euo pipefail "$run/try.sh" >"$run/try.log") || { cat "$run/try.log"; exit 1; }
grep -q '^ok    store: delete' "$run/try.log" || { echo "deploy: the commands of README.md do not check the store"; exit 1; }
refused "a wrong secret" env ORIGIN_SECRET_KEY=another "$work/cmekproxy" check --config "$run/config.yaml"
echo "deploy: all valid"
