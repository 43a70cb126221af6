#!/bin/sh
# A Cloud KMS key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this in YOUR project {{.project}}. The key stays yours: your
# administrators administer it, and can take the role away or disable the key at any time.
set -eu

project='{{.project}}'
location='{{.location}}'
ring='{{.key_ring}}'
key='{{.name}}'
vendor='serviceAccount:{{.service_account}}'

gcloud services enable cloudkms.googleapis.com --project "$project"

# A key ring has no cost, and cannot be deleted.
if ! gcloud kms keyrings describe "$ring" --project "$project" --location "$location" >/dev/null 2>&1; then
  gcloud kms keyrings create "$ring" --project "$project" --location "$location"
fi

# Rotated every 90 days, first in 90 days: cmekproxy needs no change, and old data stays
# readable. If a version is ever destroyed, there are 30 days to change one's mind.
first_rotation=$(date -u -d '+90 days' +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -v+90d +%Y-%m-%dT%H:%M:%SZ)
gcloud kms keys create "$key" --project "$project" --location "$location" --keyring "$ring" \
  --purpose encryption --rotation-period 90d --next-rotation-time "$first_rotation" \
  --destroy-scheduled-duration 30d

# On this key only. Of the permissions in the role, cmekproxy uses two:
# cloudkms.cryptoKeyVersions.useToEncrypt for each new object and each copy, and
# cloudkms.cryptoKeyVersions.useToDecrypt to read one. Google's policies cannot depend on the
# object, but each data key is bound to bucket and key of its object, and Google checks that.
gcloud kms keys add-iam-policy-binding "$key" --project "$project" --location "$location" --keyring "$ring" \
  --member "$vendor" --role roles/cloudkms.cryptoKeyEncrypterDecrypter
{{- if .inspect}}

# Reading what the key is and who may use it. "cmekproxy tenant check" proves with it what you
# gave to the vendor, and what not.
if ! gcloud iam roles describe cmekproxyInspector --project "$project" >/dev/null 2>&1; then
  gcloud iam roles create cmekproxyInspector --project "$project" --title "cmekproxy: describe a key" \
    --permissions cloudkms.cryptoKeys.get,cloudkms.cryptoKeys.getIamPolicy
fi
gcloud kms keys add-iam-policy-binding "$key" --project "$project" --location "$location" --keyring "$ring" \
  --member "$vendor" --role "projects/$project/roles/cmekproxyInspector"
{{- end}}

echo "For the vendor: projects/$project/locations/$location/keyRings/$ring/cryptoKeys/$key"
