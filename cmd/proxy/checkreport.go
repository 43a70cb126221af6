package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// The names of the checks, for scripts. Each has its default action in
// actions, and a row in docs/troubleshooting.md.
const (
	checkConfiguration = "configuration"
	checkKMSKey        = "key"
	checkReuse         = "dek_reuse"
	checkTenantFile    = "tenant_file"
	checkTenantsDir    = "tenants_dir"
	checkAuditLog      = "audit"
	checkCertificate   = "certificate"
	checkClientSecret  = "client_secret"
	checkPort          = "port"
	checkServer        = "server"
	checkTracing       = "tracing"
	checkCredentials   = "store_credentials" //nolint:gosec // a name
	checkRule          = "rule"
	checkLeftovers     = "store_leftovers"
	checkPut           = "store_put"
	checkRanges        = "store_ranges"
	checkCapabilities  = "store_capabilities"
	checkBodies        = "store_cut_bodies"
	checkPartCounts    = "store_part_counts"
	checkMultipart     = "store_multipart"
	checkObjectKeys    = "store_keys"
	checkDelete        = "store_delete"
)

// actions says what to do if a check fails and its error does not say it.
var actions = map[string]string{
	checkConfiguration: "fix the file; docs/configuration.md lists all settings",
	checkKMSKey:        "correct the settings of the key, or the proxy's rights to it; see docs/kms.md",
	checkReuse:         "set dek_reuse in the rule",
	checkTenantFile:    "fix the file; see docs/tenants.md",
	checkTenantsDir:    "mount the directory, and let the proxy read it",
	checkAuditLog:      "create the directory of audit.file, and let the proxy write to it",
	checkCertificate:   "correct tls.cert_file, tls.key_file and tls.client_ca_file",
	checkClientSecret:  "choose a longer secret_key",
	checkPort:          "choose another address",
	checkServer:        "correct the setting that the message names",
	checkTracing:       "check tracing.endpoint, and the receiver's log",
	checkCredentials:   "check origin.endpoint, origin.access_key and origin.secret_key",
	checkRule:          "add the bucket to a rule in encryption.rules, or correct --bucket",
	checkLeftovers:     "remove the objects and uploads below .cmekproxy-check- yourself",
	checkPut:           "use another store: the proxy needs 2 KB of metadata",
	checkRanges:        "use another store: the proxy needs ranges",
	checkCapabilities:  "give the proxy's credentials all rights to the objects of the bucket, and run check again",
	checkBodies:        "set origin.checksum_trailer to auto",
	checkPartCounts:    "set origin.etag_part_count to auto",
	checkMultipart:     "use another store: the proxy needs multipart uploads",
	checkObjectKeys:    "run check again; if it stays so, set origin.keys to path",
	checkDelete:        "remove the objects and uploads below .cmekproxy-check- yourself",
}

// finding is a line of the JSON report. Its fields are documented in
// docs/running.md.
type finding struct {
	Type   string `json:"type"` // check
	Check  string `json:"check"`
	Status string `json:"status"` // ok, note, warn, skip or fail
	Text   string `json:"text"`   // what was checked, and what was found
	Error  string `json:"error,omitempty"`
	Action string `json:"action,omitempty"` // what to do, after warn and fail
}

// storeAbility is the line for a capability of the store.
type storeAbility struct {
	Type       string `json:"type"` // capability
	Capability string `json:"capability"`
	Answer     string `json:"answer"` // yes, no or unknown
	Text       string `json:"text"`
}

// checkTotals is the last line.
type checkTotals struct {
	Type   string `json:"type"` // summary
	Checks int    `json:"checks"`
	Failed int    `json:"failed"`
	ending
}

// checker prints results and counts them.
type checker struct {
	out, stderr     io.Writer
	json            bool
	total, failures int
}

// line prints the result of a check.
func (c *checker) line(check string, err error, format string, args ...any) {
	c.total++
	f := finding{Check: check, Status: "ok", Text: fmt.Sprintf(format, args...)}
	if err != nil {
		c.failures++
		f.Status, f.Action = "fail", actionOf(check, err)
		f.Error = oneLine(err)
	}
	c.print(f)
}

// oneLine returns the text of an error that may have joined others.
func oneLine(err error) string {
	const most = 3
	lines := strings.Split(err.Error(), "\n")
	if more := len(lines) - most; more > 0 {
		lines = append(lines[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "; ")
}

// remark prints something other than the result of a check: a note, a
// warning, or a check that was skipped.
func (c *checker) remark(status, check, format string, args ...any) {
	f := finding{Check: check, Status: status, Text: fmt.Sprintf(format, args...)}
	if status == "warn" {
		f.Action = actions[check]
	}
	c.print(f)
}

func (c *checker) print(f finding) {
	f.Type = "check"
	bare := f.Error
	for _, link := range []string{": ", "; "} {
		bare = strings.TrimSuffix(bare, link+f.Action)
	}
	if c.json {
		f.Error = bare
		c.encode(f)
		return
	}

	word := f.Status
	if word == "fail" {
		word = "FAIL"
	}
	line := f.Text
	if f.Error != "" {
		line += ": " + f.Error
	}
	if f.Action != "" && bare == f.Error {
		line += "; " + f.Action
	}
	fmt.Fprintf(c.out, "%-6s%s\n", word, line)
}

// encode writes a line of JSON. A write error is ignored as it is for text:
// the exit code has the result.
func (c *checker) encode(v any) {
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// capability prints what was found out about the store.
func (c *checker) capability(one capability.Capability, answer capability.Answer) {
	if c.json {
		c.encode(storeAbility{"capability", one.String(), answer.String(), one.Text(answer)})
		return
	}
	fmt.Fprintf(c.out, "      %-22s %s\n", one, one.Text(answer))
}

// end prints the summary, and returns the error of the command. A signal is
// the error even if checks have failed before it, as their lines say.
func (c *checker) end(ctx context.Context) error {
	var err error
	if c.failures > 0 {
		err = fmt.Errorf("%d of %d checks failed", c.failures, c.total)
	}
	stopped := earlyCause(ctx, ctx.Err())
	if c.json {
		c.encode(checkTotals{"summary", c.total, c.failures, endingOf(stopped, "")})
	}
	return cmp.Or(stopped, err)
}

// advised is an error with what to do about it.
type advised struct {
	cause  error
	action string
}

func (a advised) Error() string  { return a.cause.Error() + ": " + a.action }
func (a advised) Unwrap() error  { return a.cause }
func (a advised) Advice() string { return a.action }

// actionOf returns what to do about the error of a check.
func actionOf(check string, err error) string {
	var advice interface{ Advice() string }
	if errors.As(err, &advice) {
		return advice.Advice()
	}
	if fault := storefault.Of(err); fault != nil && fault.Hint != "" {
		return fault.Hint
	}

	if refusal, ok := errors.AsType[*inplace.StoreError](err); ok {
		switch {
		case refusal.Code == "NoSuchBucket":
			return "create the bucket, or correct --bucket"
		case refusal.HTTPStatus == http.StatusForbidden:
			return "let origin.access_key do this at the store; docs/stores.md lists the rights"
		case refusal.HTTPStatus >= http.StatusInternalServerError:
			return "look into the store's log, and run check again"
		}
	}

	if failed, ok := errors.AsType[*kms.Error](err); ok {
		if action := keyActions[failed.Kind]; action != "" {
			return action
		}
	}
	return actions[check]
}

// keyActions says what to do about an error of a KMS.
var keyActions = map[kms.Kind]string{
	kms.Disabled:        "enable the key in the KMS",
	kms.Denied:          "let the proxy's identity use the key; docs/kms.md lists the rights",
	kms.PendingDeletion: "cancel the deletion of the key at once, or its objects are lost",
	kms.NotFound:        "correct the key's id in the configuration, or create the key",
	kms.Throttled:       "raise the quota of the KMS, and run check again",
	kms.Unreachable:     "check the network, DNS, and the address of the KMS",
}
