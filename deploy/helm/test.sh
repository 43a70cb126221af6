#!/usr/bin/env bash
# Tests the Helm chart: lint, the schema of the values, and the objects that it
# makes from each file in values, validated by kubeconform and compared with the
# configuration in them. helm takes minutes to build, so this is not in check.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/tools.sh

tool helm helm.sh/helm/v3/cmd/helm helm.sh/helm/v3 v3.22.0
schemas
operator=$(module github.com/prometheus-operator/prometheus-operator@v0.85.0)/example/prometheus-operator-crd
go run ./deploy/internal/k8sschema "$work/schemas" \
  "$(module github.com/cert-manager/cert-manager@v1.21.2)/deploy/crds/cert-manager.io_certificates.yaml" \
  "$operator/monitoring.coreos.com_podmonitors.yaml" \
  "$operator/monitoring.coreos.com_servicemonitors.yaml" \
  "$operator/monitoring.coreos.com_prometheusrules.yaml"

chart=deploy/helm/cmekproxy
values=deploy/helm/values
helm() { "$bin/helm" "$@" --kube-version 1.34.1; }
render() { helm template s3 "$chart" --namespace storage --values "$@"; }

conform deploy/kubernetes/sidecar/podmonitor.yaml
rendered=()
for file in "$values"/*.yaml; do
  echo "== $file"
  helm lint --strict --quiet "$chart" --values "$file"
  out=$work/helm-$(basename "$file")
  render "$file" >"$out"
  conform "$out"
  rendered+=("$out")
done
DEPLOY_RENDERED=$(IFS=:; echo "${rendered[*]}") go test -count=1 -run 'TestManifests$' ./deploy

# want FILE KIND... compares the kinds of objects that values make.
want() {
  local got
  got=$(sed -n 's/^kind: //p' "$work/helm-$1.yaml" | sort | tr '\n' ' ')
  [ "$got" = "$2 " ] || { echo "deploy: $1 makes $got, not $2"; exit 1; }
}
want small "ConfigMap Deployment Service Service"
want full "Certificate ConfigMap Deployment HorizontalPodAutoscaler NetworkPolicy PodDisruptionBudget \
PrometheusRule Service Service ServiceAccount ServiceMonitor"
for text in eks.amazonaws.com/role-arn: 'memory: 1800Mi' 'secretName: s3-cmekproxy-tls' 'terminationGracePeriodSeconds: 75'; do
  grep -qF "$text" "$work/helm-full.yaml" || { echo "deploy: full makes no $text"; exit 1; }
done

# Alert rules of the chart, which are those of deploy/prometheus, also in a package;
# and from a file, and from the values.
alerts=deploy/prometheus/alerts.yaml
count() { grep -cE '^ *- alert: ' "$1"; }
"$bin/helm" package --destination "$work" "$chart" >/dev/null
helm template s3 "$work"/cmekproxy-*.tgz --namespace storage --values "$values/full.yaml" >"$work/helm-package.yaml"
for made in full package; do
  [ "$(count "$work/helm-$made.yaml")" = "$(count $alerts)" ] || { echo "deploy: the alerts of $made are not all of $alerts"; exit 1; }
done
sed 's/CmekproxyKeyRevoked/CmekproxyFromFile/' $alerts >"$work/rules.yaml"
rule() { render "$values/full.yaml" --set-file "prometheusRule.file=$1"; }
rule "$work/rules.yaml" >"$work/helm-rules.yaml"
conform "$work/helm-rules.yaml"
grep -qF 'alert: CmekproxyFromFile' "$work/helm-rules.yaml" || { echo "deploy: the file of rules is not used"; exit 1; }
render "$values/full.yaml" --set 'prometheusRule.groups[0].name=mine' >"$work/helm-rules.yaml"
if grep -qF 'alert: ' "$work/helm-rules.yaml" || ! grep -qF 'name: mine' "$work/helm-rules.yaml"; then
  echo "deploy: the groups of the values are not used"
  exit 1
fi
refused "a file without rules" rule LICENSE

refused "no configuration" helm template s3 "$chart"
for wrong in replica=3 config.listen=0.0.0.0:1 config.limits.shutdown_grace=1s tls.certManager.enabled=true \
  prometheusRule.rules=1 memoryMiB=64 service.type=Other networkPolicy.clients=null \
  shutdownDelaySeconds=61; do
  refused "$wrong" render "$values/small.yaml" --set "$wrong"
done
sed 's/seccompProfile/secompProfile/' "$work/helm-full.yaml" >"$work/wrong.yaml"
refused "a misspelt field" conform "$work/wrong.yaml"
sed 's/issuerRef:/issuer:/' "$work/helm-full.yaml" >"$work/wrong.yaml"
refused "a misspelt field of cert-manager" conform "$work/wrong.yaml"
echo "deploy/helm: all valid"
