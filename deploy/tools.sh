# Sourced by check.sh and helm/test.sh, with the top of the repository as the
# working directory: the vendors' tools, and what both scripts do with them.
bin=$PWD/.cache/bin work=$PWD/.cache/deploy
kubernetes=v1.34.1

# tool NAME PACKAGE MODULE VERSION installs a program, unless that version is there.
tool() {
  if ! go version -m "$bin/$1" 2>/dev/null | grep -qF "$3	$4"; then
    echo "installing $1 $4 into .cache/bin"
    mkdir -p "$work/gobin"
    GOBIN=$work/gobin go install "$2@$4"
    mv "$work/gobin/$(basename "${2%/v[0-9]}")" "$bin/$1"
  fi
}

# schemas makes the schemas of the kinds of Kubernetes from its own description.
schemas() {
  tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform github.com/yannh/kubeconform v0.8.0
  if [ ! -d "$work/schemas-$kubernetes" ]; then
    local module
    module=$(go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    mkdir -p "$work/schemas.new"
    go run ./deploy/internal/k8sschema "$module/api/openapi-spec/swagger.json" "$work/schemas.new"
    mv "$work/schemas.new" "$work/schemas-$kubernetes"
  fi
}

# conform MANIFEST... validates manifests; unknown fields and kinds are errors.
conform() {
  "$bin/kubeconform" -strict -summary \
    -schema-location "$work/schemas-$kubernetes/{{.ResourceKind}}{{.KindSuffix}}.json" "$@"
}

# refused WHAT COMMAND... fails if the command accepts what is wrong.
refused() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "deploy: accepted, but it is wrong: $what"
    exit 1
  fi
  echo "refused, as it should be: $what: $(head -n 1 <<<"$output" | sed 's/.*failed with .*#. - //' | cut -c 1-160)"
}
