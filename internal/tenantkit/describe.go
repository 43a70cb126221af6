package tenantkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// describe adds what the KMS says about the key.
func (c *checker) describe(ctx context.Context) {
	switch key := c.Wrapper.(type) {
	case *kms.AWS:
		c.aws(key.Describe(ctx))
	case *kms.GCP:
		c.gcp(key.Describe(ctx))
	case *kms.Azure:
		c.azure(key, key.Describe(ctx))
	case *kms.Vault:
		c.vault(key.Paths(), key.Describe(ctx))
	case *kms.Local:
		c.local(key.Describe(ctx))
	default:
		c.other(ctx)
	}
}

// unread adds a row for a description that could not be read.
func (c *checker) unread(check, title string, err error) {
	failure, ok := errors.AsType[*kms.Error](err)
	if ok && failure.Kind == kms.Denied {
		c.notChecked(check, title, "the proxy may not read it, which is normal under least privilege: "+short(err))
		return
	}
	c.notChecked(check, title, "no answer: "+short(err))
}

// state adds whether the key can be used.
func (c *checker) state(state, usable string) {
	if state == usable {
		c.row(OK, "state", "State of the key", state, "")
		return
	}
	c.row(Fail, "state", "State of the key", state, "The key's owner enables it, or gives another one.")
}

// where adds where the key can be used.
func (c *checker) where(result Result, place, do string) {
	c.row(result, "where", "Where the key can be used", place, do)
}

// rotation adds whether the key is rotated. The interval is for people.
func (c *checker) rotation(interval string) {
	if interval != "" {
		c.row(OK, "rotation", "Rotation", "automatic, every "+interval, "")
		return
	}
	c.row(Warn, "rotation", "Rotation", "not automatic", "Switch on automatic rotation: the proxy needs no change.")
}

// atLeastDays is the shortest time to undo a deletion without a warning.
const atLeastDays = 7

func (c *checker) gcp(d kms.GCPDescription) {
	if d.KeyErr != nil {
		c.unread("state", "State of the key", d.KeyErr)
	} else {
		c.state(d.State, "ENABLED")
		interval := ""
		if d.Rotation > 0 {
			interval = days(d.Rotation)
		}
		c.rotation(interval)

		if d.DestroyAfter < atLeastDays*24*time.Hour {
			c.row(Warn, "deletion", "Time to undo a destruction", days(d.DestroyAfter),
				"Only a new key can have a longer one: use --destroy-scheduled-duration 30d.")
		} else {
			c.row(OK, "deletion", "Time to undo a destruction", days(d.DestroyAfter), "")
		}
		c.report.fact("purpose", d.Purpose)
		c.report.fact("protection level", d.Protection)
		c.report.fact("made", date(d.Created))
		c.labels("label", d.Labels)
	}

	c.gcpPermissions(d)
	c.gcpBindings(d)
	c.where(OK, "location "+strings.Split(c.Wrapper.KeyID(), "/")[3], "")
}

func (c *checker) gcpPermissions(d kms.GCPDescription) {
	const title = "What the proxy may do with the key"
	if d.PermissionsErr != nil {
		c.unread("permissions", title, d.PermissionsErr)
		return
	}

	var too, have []string
	for _, p := range d.Permissions {
		if slices.Contains(kms.GCPChanging, p) {
			too = append(too, p)
		}
		have = append(have, strings.TrimPrefix(p, "cloudkms."))
	}
	if len(too) > 0 {
		c.row(Fail, "permissions", title, "it was given too much: "+strings.Join(too, ", "),
			"Give it roles/cloudkms.cryptoKeyEncrypterDecrypter on this key, "+
				"and no role on the key ring or the project.")
		return
	}
	c.row(OK, "permissions", title, fmt.Sprintf("Google was asked which of %d permissions it has: %s. None of them "+
		"changes the key", len(kms.GCPPermissions()), cmp.Or(strings.Join(have, ", "), "none")), "")
}

func (c *checker) gcpBindings(d kms.GCPDescription) {
	const title = "Who else has roles on the key itself"
	if d.BindingsErr != nil {
		c.unread("others", title, d.BindingsErr)
		return
	}

	var open, list []string
	for _, b := range d.Bindings {
		for _, m := range b.Members {
			if m == "allUsers" || m == "allAuthenticatedUsers" {
				open = append(open, m+" "+b.Role)
			}
			list = append(list, m+" "+b.Role)
		}
	}
	if len(open) > 0 {
		c.row(Fail, "others", title, "everyone: "+strings.Join(open, "; "), "Remove this binding.")
		return
	}
	c.row(OK, "others", title, cmp.Or(strings.Join(list, "; "), "nobody")+
		". Roles on the key ring, the project and above are not shown", "")
}

func (c *checker) azure(key *kms.Azure, d kms.AzureDescription) {
	if d.Err != nil {
		c.unread("state", "State of the key", d.Err)
	} else {
		c.azureAttributes(d)
	}

	switch {
	case key.IsRSA() && len(key.Bound()) == 0:
		c.row(Warn, "binding", "Who can make wrapped data keys", "everyone with the public key: the key is not bound",
			"Bind it: cmekproxy keys bind.")
	case key.IsRSA():
		c.row(OK, "binding", "Who can make wrapped data keys", "only a proxy with the binding", "")
	}
	c.notChecked("permissions", "What the proxy may do with the key", "Azure has no question for that. The key's "+
		"owner sees it: az role assignment list --scope VAULT-ID/keys/KEY --include-inherited")
	c.where(NotChecked, "the vault of "+key.KeyID()+"; Azure does not say in which region it is", "")
}

// azureProtected are the recovery levels of vaults with purge protection
// (https://learn.microsoft.com/en-us/rest/api/keyvault/keys/get-key/get-key).
var azureProtected = []string{
	"Recoverable", "Recoverable+ProtectedSubscription",
	"CustomizedRecoverable", "CustomizedRecoverable+ProtectedSubscription",
}

func (c *checker) azureAttributes(d kms.AzureDescription) {
	state := map[bool]string{true: "enabled", false: "disabled"}[d.Enabled]
	now := c.Now()
	switch {
	case !d.Expires.IsZero() && !now.Before(d.Expires):
		state = "expired on " + date(d.Expires)
	case now.Before(d.NotBefore):
		state = "not valid before " + date(d.NotBefore)
	}
	c.state(state, "enabled")
	if !d.Expires.IsZero() && now.Before(d.Expires) {
		c.row(Warn, "expiry", "Expiry", "on "+date(d.Expires), "Then no object can be written: rotate the key before.")
	}

	if d.Exportable || d.ReleasePolicy {
		c.row(Fail, "export", "Can the key leave Azure", "yes: it is exportable", "Use a key that is not exportable.")
	} else {
		c.row(OK, "export", "Can the key leave Azure", "no: it is not exportable", "")
	}

	if !slices.Contains(azureProtected, d.RecoveryLevel) {
		c.row(Warn, "deletion", "Time to undo a deletion", fmt.Sprintf("none for who may purge (%s)", d.RecoveryLevel),
			"Switch on purge protection: az keyvault update --enable-purge-protection true.")
	} else {
		c.row(OK, "deletion", "Time to undo a deletion",
			fmt.Sprintf("%d days (%s)", d.RecoverableDays, d.RecoveryLevel), "")
	}

	var more []string
	for _, op := range d.Operations {
		if op != "wrapKey" && op != "unwrapKey" {
			more = append(more, op)
		}
	}
	if len(more) > 0 {
		c.row(Warn, "operations", "What the key is for", "also "+strings.Join(more, ", "),
			"Limit it: az keyvault key set-attributes --ops wrapKey unwrapKey.")
	} else {
		c.row(OK, "operations", "What the key is for", strings.Join(d.Operations, ", "), "")
	}

	c.report.fact("type", d.Type)
	c.report.fact("version", d.Version)
	c.report.fact("HSM platform", d.HSMPlatform)
	c.report.fact("made", date(d.Created))
	c.labels("tag", d.Tags)
}

func (c *checker) vault(paths kms.VaultPaths, d kms.VaultDescription) {
	if d.KeyErr != nil {
		c.unread("state", "State of the key", d.KeyErr)
	} else {
		c.vaultKey(d)
	}
	c.vaultCapabilities(paths, d)

	const title = "Policies of the proxy's token"
	switch {
	case d.TokenErr != nil:
		c.unread("policies", title, d.TokenErr)
	case slices.Contains(d.Policies, "root"):
		c.row(Fail, "policies", title, "root: it may do everything", "Use a role with a policy for this key only.")
	default:
		c.row(OK, "policies", title, strings.Join(d.Policies, ", "), "")
		if own := slices.DeleteFunc(d.Policies, func(p string) bool { return p == "default" }); len(own) == 1 {
			c.policy = own[0]
		}
		c.report.fact("type of the token", d.TokenType)
	}
	c.where(NotChecked, cmp.Or(c.Address, "the server")+"; the server does not say where it is", "")
}

func (c *checker) vaultKey(d kms.VaultDescription) {
	c.row(OK, "state", "State of the key",
		fmt.Sprintf("version %d; versions from %d can decrypt", d.Latest, d.MinDecryption), "")
	interval := ""
	if d.AutoRotate > 0 {
		interval = days(time.Duration(d.AutoRotate) * time.Second)
	}
	c.rotation(interval)

	if d.Exportable || d.PlaintextBackup {
		c.row(Fail, "export", "Can the key leave the server",
			fmt.Sprintf("yes: exportable %v, allow_plaintext_backup %v", d.Exportable, d.PlaintextBackup),
			"This cannot be switched off: make a new key.")
	} else {
		c.row(OK, "export", "Can the key leave the server", "no: not exportable, no plaintext backup", "")
	}
	if d.DeletionAllowed {
		c.row(Warn, "deletion", "Time to undo a deletion", "none: deletion_allowed is set",
			"Set deletion_allowed=false, and true only to delete the key.")
	} else {
		c.row(OK, "deletion", "Time to undo a deletion", "the key cannot be deleted: deletion_allowed is not set", "")
	}
	c.report.fact("type", d.Type)
	c.report.fact("derived", fmt.Sprint(d.Derived))
}

func (c *checker) vaultCapabilities(paths kms.VaultPaths, d kms.VaultDescription) {
	const title = "What the proxy may do with the key"
	if d.CapabilitiesErr != nil {
		c.unread("permissions", title, d.CapabilitiesErr)
		return
	}

	var too, have []string
	for _, path := range slices.Sorted(maps.Keys(d.Capabilities)) {
		may := d.Capabilities[path]
		if slices.Contains(paths.Needed, path) {
			have = append(have, strings.Join(may, "+")+" "+path)
		}
		if more := tooMuch(paths, path, may); len(more) > 0 {
			too = append(too, strings.Join(more, "+")+" "+path)
		}
	}
	if len(too) > 0 {
		c.row(Fail, "permissions", title, "it was given too much: "+strings.Join(too, ", "),
			"Use the policy of cmekproxy tenant init vault.")
		return
	}
	c.row(OK, "permissions", title, fmt.Sprintf("the server was asked: %s, and nothing on %d paths that change or "+
		"read the key, or change policies", strings.Join(have, ", "), len(paths.Changing)), "")
}

// tooMuch returns the capabilities that the proxy should not have on a path.
func tooMuch(paths kms.VaultPaths, path string, may []string) (more []string) {
	for _, m := range may {
		switch {
		case m == "deny",
			m == "update" && slices.Contains(paths.Needed, path),
			(m == "read" || m == "list") && slices.Contains(paths.Reading, path):
		default:
			more = append(more, m)
		}
	}
	return more
}

func (c *checker) local(d kms.LocalDescription) {
	c.row(Warn, "owner", "Who has the key", "the vendor, who runs the proxy: it is in a file",
		"Use a KMS of the key's owner.")
	if d.Err != nil {
		c.unread("state", "State of the key", d.Err)
		return
	}

	c.keyFile = d.Path
	if open := d.Mode.Perm() & 0o077; open != 0 {
		c.row(Fail, "permissions", "Who can read the file", fmt.Sprintf("mode %v: others too", d.Mode),
			"chmod 600 the file.")
	} else {
		c.row(OK, "permissions", "Who can read the file",
			fmt.Sprintf("its owner only (mode %v)", d.Mode&fs.ModePerm), "")
	}
	for _, v := range d.Versions {
		c.report.fact(fmt.Sprintf("version %d", v.Number), string(v.State)+" "+date(v.Created))
	}
	if d.Owner >= 0 {
		c.report.fact("user id of the file's owner", fmt.Sprint(d.Owner))
	}
	c.where(OK, "the file "+d.Path, "")
}

// other is for keys in an HSM, whose provider is in some builds only.
func (c *checker) other(ctx context.Context) {
	hsm, ok := c.Wrapper.(interface {
		DescribeToken(ctx context.Context) (facts [][2]string, leaves string, err error)
	})
	if !ok {
		c.notChecked("state", "State of the key", "this provider has no description of keys")
		return
	}

	facts, leaves, err := hsm.DescribeToken(ctx)
	switch {
	case err != nil:
		c.unread("export", "Can the key leave the HSM", err)
	case leaves != "":
		c.row(Fail, "export", "Can the key leave the HSM", "yes: "+leaves,
			"Make a key with CKA_SENSITIVE, and not CKA_EXTRACTABLE.")
	default:
		c.row(OK, "export", "Can the key leave the HSM", "no: it is sensitive, and not extractable", "")
	}
	for _, f := range facts {
		c.report.fact(f[0], f[1])
	}
	c.where(OK, "the HSM with the token above", "")
}

func (c *checker) labels(kind string, labels map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		c.report.fact(kind+" "+name, labels[name])
	}
}

// date returns a day, or "" for the zero time.
func date(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

// days returns a duration in days.
func days(d time.Duration) string {
	if d%(24*time.Hour) != 0 {
		return d.String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}
