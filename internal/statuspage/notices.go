package statuspage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

// Severity says how soon somebody has to act.
type Severity string

// The severities.
const (
	Problem Severity = "problem" // requests fail, or a promise is not kept
	Warning Severity = "warning" // that will happen, or may
)

// Notice is something that an operator should know, and what to do about it.
type Notice struct {
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Do       string   `json:"do"`
}

// certificateSoon is how long before its end a certificate is a warning.
const certificateSoon = 14 * 24 * time.Hour

// notices returns what needs attention, problems first.
func (r *Report) notices() []Notice {
	list := []Notice{}
	for _, found := range [][]Notice{
		r.ofKeys(), r.ofWindow(), r.ofStore(), r.ofCertificate(), r.ofAudit(),
		r.ofReload(), r.ofTenants(), r.ofErrors(), r.ofLoad(),
	} {
		list = append(list, found...)
	}
	slices.SortStableFunc(list, func(a, b Notice) int { return cmp.Compare(a.Severity, b.Severity) })
	return list
}

func (r *Report) ofKeys() (list []Notice) {
	named := func(state keyring.State) (names []string) {
		for _, k := range r.Keys {
			if k.State == string(state) {
				names = append(names, k.Name)
			}
		}
		return names
	}

	if names := named(keyring.Revoked); len(names) > 0 {
		list = append(list, Notice{
			Problem, "The KMS refuses " + keysCalled(names) + ". Its objects cannot be read or written.",
			"If that is intended, do nothing. Otherwise restore the key, or the proxy's permission to use it.",
		})
	}
	if names := named(keyring.Unreachable); len(names) > 0 {
		list = append(list, Notice{
			Problem, "The KMS of " + keysCalled(names) + " does not answer. " +
				"Data keys in memory are used until their time is over; other requests fail.",
			"Check the network to the KMS and its state. The error is in the table of keys.",
		})
	}
	if names := named(keyring.Unopened); len(names) > 0 {
		list = append(list, Notice{
			Problem, "The proxy could not open " + keysCalled(names) + " yet. It tries again.",
			"Check the login to the KMS and the id of the key. The error is in the table of keys.",
		})
	}
	return list
}

func keysCalled(names []string) string {
	const most = 3
	if len(names) == 1 {
		return "the key " + names[0]
	}
	if len(names) > most {
		return fmt.Sprintf("%d keys (%s, …)", len(names), strings.Join(names[:most], ", "))
	}
	return "the keys " + strings.Join(names, ", ")
}

func (r *Report) ofWindow() []Notice {
	if r.Window.InForce <= r.Window.Stated {
		return nil
	}
	return []Notice{{
		Problem,
		fmt.Sprintf("A revocation may take %s to have effect, and not %s as stated: probes get no answer, or not all "+
			"parts of a key can be probed.", seconds(r.Window.InForce), seconds(r.Window.Stated)),
		"Restore the connection to the KMS. POST /admin/purge removes all data keys from memory at once.",
	}}
}

// nobodyWaits are faults of the store that do not go away by waiting.
var nobodyWaits = []storefault.Kind{
	storefault.Credentials, storefault.Clock, storefault.Redirect, storefault.Foreign, storefault.TLS,
}

func (r *Report) ofStore() (list []Notice) {
	if r.Store.Up != nil && !*r.Store.Up {
		list = append(list, Notice{
			Problem, "The store does not serve the proxy.",
			"The log lines of failed requests say why and what to check. cmekproxy check tries the store.",
		})
	}
	for _, kind := range nobodyWaits {
		if n := r.Store.Faults[string(kind)]; n > 0 {
			list = append(list, Notice{
				Problem,
				countOf(n, "request", "requests") + " to the store failed in the last minutes: " + string(kind) + ".",
				"Waiting does not help: somebody has to change a setting. The log line of the request says which.",
			})
		}
	}
	return list
}

func (r *Report) ofCertificate() []Notice {
	if r.TLS == nil {
		return nil
	}
	const renew = "Replace the files of the certificate. They are read again by themselves."
	switch left := r.TLS.Ends.Sub(r.Time); {
	case left <= 0:
		return []Notice{{Problem, "The certificate of the S3 port has expired. Clients refuse it.", renew}}
	case r.Time.Before(r.TLS.Begins):
		return []Notice{{
			Problem, "The certificate of the S3 port is not valid yet. Clients refuse it.",
			"Replace it, or correct this machine's clock.",
		}}
	case left < certificateSoon:
		return []Notice{{Warning, "The certificate of the S3 port expires in " + webpage.Duration(left) + ".", renew}}
	default:
		return nil
	}
}

func (r *Report) ofAudit() []Notice {
	if r.Audit == nil || r.Audit.Recent == 0 {
		return nil
	}
	return []Notice{{
		Problem, countOf(r.Audit.Recent, "record", "records") +
			" could not be written to the audit log in the last minutes. The uses were refused.",
		"Check the disk and the permissions of " + r.Audit.Where + ".",
	}}
}

func (r *Report) ofReload() (list []Notice) {
	if last := r.Config.Reload; last != nil && last.Error != "" {
		list = append(list, Notice{
			Problem, "The last reload of the configuration failed: " + last.Error,
			"Correct the file and send SIGHUP. Until then, the configuration before is in force.",
		})
	}
	if settings := r.Config.NeedsRestart; len(settings) > 0 {
		list = append(list, Notice{
			Warning, "Changed settings are not in force: " + strings.Join(settings, ", ") + ".",
			"Restart the proxy.",
		})
	}
	return list
}

func (r *Report) ofTenants() (list []Notice) {
	if r.Tenants == nil {
		return nil
	}
	if r.Tenants.Error != "" {
		list = append(list, Notice{
			Problem, "The directory of the tenants cannot be read: " + r.Tenants.Error,
			"Check the directory and its permissions. Until then, changes of tenants are not seen.",
		})
	}
	if n := r.Tenants.Problems; n > 0 {
		list = append(list, Notice{
			Problem, countOf(n, "file of a tenant has an error", "files of tenants have errors") + ".",
			"GET /admin/tenants tells the errors.",
		})
	}
	return list
}

// seriousCodes are S3 error codes that an operator should look into even if
// only one request got them.
var seriousCodes = map[string]Notice{
	"ObjectIntegrityError": {
		Problem, "Stored data was modified: it is not what the proxy wrote.",
		"Find the objects in the log (code ObjectIntegrityError), and see who else can write to the store.",
	},
	"PlaintextObject": {
		Warning, "Clients asked for objects in the store that are not encrypted.",
		"Find them with cmekproxy inventory. cmekproxy encrypt encrypts them.",
	},
}

func (r *Report) ofErrors() (list []Notice) {
	seen := make(map[string]bool)
	for _, f := range r.Errors {
		notice, serious := seriousCodes[f.Code]
		if serious && !seen[f.Code] {
			list = append(list, notice)
		}
		seen[f.Code] = true
	}
	return list
}

func (r *Report) ofLoad() (list []Notice) {
	refused := 0
	for _, f := range r.Errors {
		if f.Code == "SlowDown" {
			refused += f.Count
		}
	}
	if refused > 0 {
		list = append(list, Notice{
			Warning, countOf(refused, "request was", "requests were") +
				" refused in the last minutes, with 503 SlowDown.",
			"The proxy or the store has more to do than it can, or a limit is too low. See docs/capacity.md.",
		})
	}
	if limit := r.Load.ConnectionsLimit; limit > 0 && r.Load.Connections >= limit {
		list = append(list, Notice{
			Warning, fmt.Sprintf("All %d connections of the S3 port are in use. Others wait.", limit),
			"Add replicas, or raise limits.max_connections.",
		})
	}
	return list
}

func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return webpage.Grouped(int64(n)) + " " + many
}

func seconds(s float64) string {
	return webpage.Duration(time.Duration(s * float64(time.Second)).Round(time.Second / 10))
}
