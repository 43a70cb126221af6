#!/usr/bin/env bash
# Run by boot.sh on the machine that machine.sh boots: the service as an operator
# has it, from the installation of the package to its removal.
set -euo pipefail
trap 'echo "deploy: line $LINENO: $BASH_COMMAND" >&2' ERR
cd /root
store_secret=a-secret-of-the-store
config=/etc/cmekproxy/config.yaml
fail() {
  echo "deploy: $*" >&2
  systemctl status --no-pager --full --lines 0 cmekproxy >&2 || true
  journalctl --no-pager --lines 20 --unit cmekproxy >&2
  exit 1
}

# s3 METHOD OBJECT OPTION... sends a request to the proxy.
s3() {
  curl --silent --show-error --fail-with-body --max-time 30 --aws-sigv4 aws:amz:us-east-1:s3 --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
    --user "app:$(cat /etc/cmekproxy/secrets/app-secret-key)" --request "$1" "http://127.0.0.1:9000/photos/$2" "${@:3}"
}
# property NAME prints one of the service, and errors the messages of its errors.
property() { systemctl show cmekproxy --value --property "$1"; }
errors() { journalctl --unit cmekproxy --priority err --output cat --quiet --no-pager; }

# within SECONDS WHAT COMMAND... waits until a command succeeds.
within() {
  for ((i = 0; i < $1 * 10; i++)); do
    if "${@:3}"; then return; fi
    sleep 0.1
  done
  fail "not within $1 s: $2"
}

echo "== install"
dpkg --install /test/cmekproxy_*.deb >dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
[ "$(systemctl is-active cmekproxy)" = inactive ] || fail "the package starts a service that has no configuration"
install -d -m 0700 /etc/cmekproxy/secrets
install -d -m 0750 -o cmekproxy -g cmekproxy /var/log/cmekproxy
openssl rand -hex 20 | install -m 0600 /dev/stdin /etc/cmekproxy/secrets/app-secret-key
install -m 0600 /dev/stdin /etc/cmekproxy/secrets/origin-secret-key <<<"$store_secret"
cmekproxy keys new key >/dev/null
install -D -m 0640 -g cmekproxy key /etc/cmekproxy/keys/customer.key
install -m 0640 -g cmekproxy /dev/stdin "$config" <<'END'
listen: 127.0.0.1:9000
health_listen: 127.0.0.1:9002
origin:
  endpoint: http://127.0.0.1:7070
  region: us-east-1
  access_key: store
  secret_key: file:${CREDENTIALS_DIRECTORY}/origin-secret-key
clients:
  - name: app
    access_key: app
    secret_key: file:${CREDENTIALS_DIRECTORY}/app-secret-key
    allow: [{buckets: [photos], actions: [read, write]}]
keys: [{name: customer, provider: local, key_file: /etc/cmekproxy/keys/customer.key}]
encryption: {rules: [{buckets: [photos], key: customer}]}
audit: {file: /var/log/cmekproxy/audit.log}
limits: {shutdown_grace: 20s, shutdown_delay: 0s}
END
mkdir -p store/objects/photos store/metadata /etc/systemd/system/cmekproxy.service.d
start_store() {
  systemd-run --quiet --unit store --setenv ROOT_ACCESS_KEY=store --setenv ROOT_SECRET_KEY="$store_secret" \
    /test/versitygw --port 127.0.0.1:7070 posix --sidecar "$PWD/store/metadata" "$PWD/store/objects"
  within 10 "the store" bash -c 'exec 3<>/dev/tcp/127.0.0.1/7070' 2>/dev/null
}
start_store
cat >/etc/systemd/system/cmekproxy.service.d/test.conf <<'END'
[Service]
LoadCredential=origin-secret-key:/etc/cmekproxy/secrets/origin-secret-key
# Shorter than the drain below, for which the proxy asks for more time.
TimeoutStopSec=1
END
systemctl daemon-reload
CREDENTIALS_DIRECTORY=/etc/cmekproxy/secrets cmekproxy check --bucket photos >check.log || { cat check.log; exit 1; }

echo "== start"
systemctl enable --quiet --now cmekproxy || fail "the service does not start"
# With Type=notify, the proxy serves when the command returns.
head -c 40000000 /dev/urandom >object
s3 PUT object --upload-file object
s3 GET object | cmp - object
! grep -qF "$(head -c 64 object | base64 -w 0)" <(base64 -w 0 store/objects/photos/object) || fail "the object is in the store as it is"
[[ "$(property User) $(property StatusText)" == "cmekproxy serving S3 on 127.0.0.1:9000" ]] || fail "the status is wrong"
[ -s /var/log/cmekproxy/audit.log ] || fail "there is no audit log"
[ -z "$(errors)" ] || fail "errors in the journal: $(errors)"
limit=$(awk '/^Max open files/ {print $4}' "/proc/$(property MainPID)/limits")
[ "$limit" = 16384 ] || fail "LimitNOFILE is $limit"
exposure=$(systemd-analyze security --no-pager --threshold=25 cmekproxy | tail -n 1) || fail "$exposure"
echo "$exposure"

echo "== errors"
systemctl stop store
! s3 GET object --output /dev/null 2>/dev/null || fail "an object is read without a store"
message() { grep -q "$1" <<<"$(errors)"; }
within 5 "a failed request is an error in the journal" message '"operation":"GetObject"'
lines=$(errors | wc -l)
start_store

echo "== reload"
sed -i 's/actions: \[read, write\]/actions: [read]/' "$config"
systemctl reload cmekproxy
denied() { ! s3 PUT object --upload-file "$config" >/dev/null 2>&1; }
within 5 "the reload of a permission" denied
[ "$(errors | wc -l)" = "$lines" ] || fail "a reload that succeeds is an error in the journal"
echo 'misspelt: true' >>"$config"
systemctl reload cmekproxy
within 5 "a reload that fails is an error in the journal" message misspelt
s3 GET object | cmp - object
systemctl stop cmekproxy
! systemctl start cmekproxy 2>/dev/null || fail "the service starts with a wrong configuration"
refused() { grep -q '^cmekproxy serve: .*misspelt' <<<"$(errors)"; }
within 5 "a start that fails is an error in the journal" refused
sed -i '/misspelt/d' "$config"
systemctl reset-failed cmekproxy
systemctl start cmekproxy || fail "the service does not start again"

# read_slowly takes about four seconds.
read_slowly() { s3 GET object --limit-rate 10M --output read; }
# stop_during_read stops the service while an object is read, and waits for both.
stop_during_read() {
  rm -f read
  read_slowly &
  within 5 "the read begins" test -s read
  systemctl stop cmekproxy
  wait %%
}

echo "== stop"
stop_during_read || fail "a stop cuts an object that is being read"
cmp read object
[ "$(property Result)" = success ] || fail "the result of the stop is $(property Result)"
# Without the request for more time, systemd kills the proxy after TimeoutStopSec.
printf '[Service]\nType=exec\nNotifyAccess=none\n' >/etc/systemd/system/cmekproxy.service.d/silent.conf
systemctl daemon-reload
systemctl start cmekproxy
within 10 "the proxy serves" cmekproxy health >/dev/null 2>&1
! stop_during_read 2>/dev/null || fail "a service that asks for no time has it"
[ "$(property Result)" = timeout ] || fail "the result of the stop is $(property Result)"
rm /etc/systemd/system/cmekproxy.service.d/silent.conf
systemctl daemon-reload

echo "== crash, update, removal"
systemctl reset-failed cmekproxy
systemctl start cmekproxy
restarted() { [ "$(property MainPID)" != "$process" ] && cmekproxy health >/dev/null 2>&1; }
process=$(property MainPID)
kill -KILL "$process"
within 10 "a restart after a crash" restarted
process=$(property MainPID)
dpkg --install /test/cmekproxy_*.deb >dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
within 10 "a restart after an update" restarted
dpkg --purge cmekproxy >dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
[ "$(systemctl is-active cmekproxy)" = inactive ] || fail "the service runs without its package"
[ -s /etc/cmekproxy/keys/customer.key ] || fail "the package removed a key"
echo "deploy/systemd: all valid"
