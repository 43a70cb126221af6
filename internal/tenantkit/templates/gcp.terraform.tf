# A Cloud KMS key for the tenant {{.name}} of cmekproxy, which the vendor may use.
# You apply this in YOUR project {{.project}}. The key stays yours: your
# administrators administer it, and can take the role away or disable the key at any time.

terraform {
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

provider "google" {
  project = "{{.project}}"
}

# A key ring has no cost, and cannot be deleted.
resource "google_kms_key_ring" "cmekproxy" {
  name     = "{{.key_ring}}"
  location = "{{.location}}"
}

# Rotated every 90 days: cmekproxy needs no change, and old data stays readable. If a version
# is ever destroyed, there are 30 days to change one's mind.
resource "google_kms_crypto_key" "tenant" {
  name                       = "{{.name}}"
  key_ring                   = google_kms_key_ring.cmekproxy.id
  purpose                    = "ENCRYPT_DECRYPT"
  rotation_period            = "7776000s"
  destroy_scheduled_duration = "2592000s"

  # Without the key, all data under it is lost.
  lifecycle {
    prevent_destroy = true
  }
}

# On this key only. Of the permissions in the role, cmekproxy uses two:
# cloudkms.cryptoKeyVersions.useToEncrypt for each new object and each copy, and
# cloudkms.cryptoKeyVersions.useToDecrypt to read one. Google's policies cannot depend on the
# object, but each data key is bound to bucket and key of its object, and Google checks that.
resource "google_kms_crypto_key_iam_member" "cmekproxy" {
  crypto_key_id = google_kms_crypto_key.tenant.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:{{.service_account}}"
}
{{- if .inspect}}

# Reading what the key is and who may use it. "cmekproxy tenant check" proves with it what you
# gave to the vendor, and what not.
resource "google_project_iam_custom_role" "inspector" {
  role_id     = "cmekproxyInspector"
  title       = "cmekproxy: describe a key"
  permissions = ["cloudkms.cryptoKeys.get", "cloudkms.cryptoKeys.getIamPolicy"]
}

resource "google_kms_crypto_key_iam_member" "inspector" {
  crypto_key_id = google_kms_crypto_key.tenant.id
  role          = google_project_iam_custom_role.inspector.id
  member        = "serviceAccount:{{.service_account}}"
}
{{- end}}

output "key_id" {
  description = "For the vendor: key_id"
  value       = google_kms_crypto_key.tenant.id
}
