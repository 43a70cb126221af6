#!/usr/bin/env bash
# Validates what is here with promtool: the metrics of a proxy that serves, the
# alert rules with their cases, and the expressions of the dashboard, whose form
# Grafana's own types check. promtool must also refuse a mistake.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh

internal/tools/packages.sh curl
root=$PWD promtool=$bin/promtool
mkdir -p "$bin" "$work"
if ! [ -x "$promtool" ]; then
  # Only the program: installing the package would start Prometheus. go install
  # refuses promtool, because its module has replace directives.
  echo "fetching promtool from Debian into .cache/bin"
  fetched=$(mktemp -d)
  chmod 755 "$fetched" # apt downloads as another user
  (
    cd "$fetched"
    if ! apt-get -qq download prometheus 2>/dev/null; then
      "$root/internal/tools/packages.sh" --update
      apt-get -qq download prometheus
    fi
    dpkg-deb --extract prometheus_*.deb files
  )
  mv "$fetched/files/usr/bin/promtool" "$promtool"
  rm -rf "$fetched"
fi
"$promtool" --version | head -n 1

echo "== alert rules"
# A copy, because the cases name their file relative to themselves.
rules=$work/rules
rm -rf "$rules"
mkdir -p "$rules"
cp deploy/prometheus/alerts.yaml deploy/prometheus/alerts_test.yaml "$rules"
"$promtool" check rules --lint=all --lint-fatal "$rules/alerts.yaml"
"$promtool" test rules "$rules/alerts_test.yaml"
change() { sed "$1" deploy/prometheus/alerts.yaml >"$rules/alerts.yaml"; }
change 's/rate(cmekproxy_requests_total\[5m\])/rate(cmekproxy_requests_total)/'
refused "a rate of no range" "$promtool" check rules "$rules/alerts.yaml"
change 's/> 0.05/> 0.5/'
refused "another threshold" "$promtool" test rules "$rules/alerts_test.yaml"
change 's/for: 5m/for: 1m/'
refused "alerts that do not wait" "$promtool" test rules "$rules/alerts_test.yaml"

cp deploy/prometheus/alerts.yaml deploy/compose/prometheus.yaml "$rules"
"$promtool" check config "$rules/prometheus.yaml"

echo "== dashboard"
(cd deploy/internal/dashboard && go mod tidy -diff && go vet . && go test -count=1 . && go run . rules >"$rules/dashboard.yaml")
"$promtool" check rules "$rules/dashboard.yaml"
sed -i '0,/sum by (operation) (/s//sum by (operation (/' "$rules/dashboard.yaml"
refused "a misspelt expression" "$promtool" check rules "$rules/dashboard.yaml"

echo "== metrics of a proxy"
go build -o "$work/cmekproxy-dev" ./cmd/proxy
run=$(mktemp -d) port=$((20000 + RANDOM % 10000))
"$work/cmekproxy-dev" dev --data "$run/data" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 1))" \
  >"$run/log" 2>&1 &
proxy=$!
trap 'kill "$proxy" 2>/dev/null; rm -rf "$run"' EXIT
s3=http://127.0.0.1:$port
for _ in {1..100}; do
  curl -fs "http://127.0.0.1:$((port + 1))/readyz" >/dev/null && break
  sleep 0.1
done
send() { # METHOD PATH [OPTION]...
  curl -fsS -o "$run/body" -H "x-amz-content-sha256: UNSIGNED-PAYLOAD" --aws-sigv4 aws:amz:us-east-1:s3 --user cmekproxydev:cmekproxydevsecret -X "$1" "$s3$2" "${@:3}"
}
send PUT /photos
send PUT /photos/a --data-binary "a picture"
send GET /photos/a
[ "$(cat "$run/body")" = "a picture" ] || { echo "deploy/prometheus: another object came back"; exit 1; }
curl -fsS "http://127.0.0.1:$((port + 1))/metrics" >"$run/metrics"
"$promtool" check metrics <"$run/metrics"
for line in 'cmekproxy_origin_up 1' 'cmekproxy_key_usable{key="dev"} 1' 'cmekproxy_config_last_reload_successful 1'; do
  grep -qxF "$line" "$run/metrics" || { echo "deploy/prometheus: no metric $line"; exit 1; }
done
refused "a counter without its suffix" "$promtool" check metrics < <(sed 's/cmekproxy_bytes_total/cmekproxy_bytes/' "$run/metrics")
echo "deploy/prometheus: all valid"
