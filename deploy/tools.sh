# shellcheck shell=bash
# Sourced by the scripts of deploy, with the top of the repository as the
# working directory: the vendors' tools, and what several scripts do with them.
bin=$PWD/.cache/bin work=$PWD/.cache/deploy
root=()
if (($(id -u) != 0)); then root=(sudo); fi

# tool NAME PACKAGE MODULE VERSION installs a program, unless that version is there.
tool() {
  if ! go version -m "$bin/$1" 2>/dev/null | grep -qF "$3	$4"; then
    echo "installing $1 $4 into .cache/bin"
    mkdir -p "$bin" "$work/gobin"
    GOBIN=$work/gobin go install "$2@$4"
    mv "$work/gobin/$(basename "${2%/v[0-9]}")" "$bin/$1"
  fi
}

# versitygw installs a store, as make e2e does, and sets its path.
versitygw() {
  versitygw=$PWD/.cache/e2e/bin/versitygw
  if [ ! -x "$versitygw" ]; then
    echo "installing versitygw; this takes minutes"
    GOBIN=$(dirname "$versitygw") go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
  fi
}

# module MODULE@VERSION prints the directory of a module, which it downloads.
module() {
  go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'
}

# schemas makes the schemas of the kinds of Kubernetes from its own description.
schemas() {
  tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform github.com/yannh/kubeconform v0.8.0
  mkdir -p "$work/schemas"
  [ "$work/schemas/service-v1.json" -nt deploy/tools.sh ] ||
    go run ./deploy/internal/k8sschema "$work/schemas" \
      "$(module k8s.io/kubernetes@v1.34.1)/api/openapi-spec/swagger.json"
}

# conform MANIFEST... validates manifests; unknown fields and kinds are errors.
conform() {
  "$bin/kubeconform" -strict -summary \
    -schema-location "$work/schemas/{{.ResourceKind}}{{.KindSuffix}}.json" "$@"
}

# licensed PROGRAM TEXTS fails unless a file has a license of each module in a
# program, and of Go's standard library.
licensed() {
  local modules texts
  modules=$(go version -m "$1" | awk '$1 == "dep" {print $2 " " $3}' | sort)
  texts=$(grep -oE '^[^ ]+ v[0-9][^ ,]*, [^,]*(LICEN[CS]E|COPYING)[^/,]*$' "$2" | sed 's/,.*//' | sort -u)
  if [ -z "$modules" ] || [ "$modules" != "$texts" ] || ! grep -qx "Go's standard library, LICENSE" "$2"; then
    echo "deploy: the licenses in $2 are not those of the modules in $1:"
    diff <(echo "$modules") <(echo "$texts")
    return 1
  fi
}

# refused WHAT COMMAND... fails if the command accepts what is wrong.
refused() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "deploy: accepted, but it is wrong: $what"
    exit 1
  fi
  echo "refused, as it should be: $what: $(
    tr '\n' ' ' <<<"$output" | sed "s/.*failed with [^ ]* - //; s/.*chart(s): //" | cut -c 1-160
  )"
}
