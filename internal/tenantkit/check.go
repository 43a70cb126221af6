package tenantkit

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Subject is what Check examines.
type Subject struct {
	Tool     string // with its version
	Name     string // of the key in the configuration
	Provider string // as in the configuration
	// Wrapper is the key, as its provider opened it: without retries and
	// other decorators.
	Wrapper kms.Wrapper
	// Bucket and Prefix are those of the tenant's objects. The prefix is ""
	// for the whole bucket.
	Bucket, Prefix string
	// BucketKeys means that new objects are written with dek_reuse.
	BucketKeys bool
	// RoleARN is the role that the proxy assumes, for AWS. Empty means none.
	RoleARN string
	// Address is that of the KMS, if the configuration has one.
	Address string
	// TTL, Probe and Timeout are the proxy's settings on which the
	// revocation window depends. Probe 0 means that there are no probes.
	TTL, Probe, Timeout time.Duration
	Now                 func() time.Time
}

// The names of the objects in Check. None of them needs to exist, and no
// object is read or written.
const (
	checkObject   = "cmekproxy-tenant-check"
	outsideObject = "cmekproxy-tenant-check-outside/object"
	outsideBucket = "cmekproxy-tenant-check-outside"
)

// checker has a report in the making.
type checker struct {
	Subject
	report *Report
	// For the commands that revoke the key.
	policy  string // at Vault, that of the proxy
	keyFile string // of a local key
}

// Check examines a key. It sends the requests with which the proxy uses the
// key, and requests that read what the KMS says about it. It sends none that
// could change anything, even if the proxy were allowed to.
func Check(ctx context.Context, s Subject) *Report {
	c := &checker{Subject: s, report: &Report{
		Tool: s.Tool, Time: s.Now().UTC().Format(time.RFC3339), Name: clean(s.Name), Provider: s.Provider,
		KeyID: clean(s.Wrapper.KeyID()), Objects: clean("s3://" + s.Bucket + "/" + s.Prefix),
		Rows: []Row{}, Facts: []Fact{},
	}}

	if wrapped := c.use(ctx); wrapped != nil {
		c.contexts(ctx, wrapped)
		c.outside(ctx)
	} else {
		c.notChecked("context", "Another object", "the key could not be used")
		c.notChecked("outside", "Objects of others", "the key could not be used")
	}

	c.describe(ctx)
	c.report.Revocation = c.revocation()
	return c.report
}

func (c *checker) row(result Result, check, title, evidence, do string) {
	c.report.add(Row{Check: check, Title: title, Result: result, Evidence: evidence, Do: do})
}

func (c *checker) notChecked(check, title, why string) { c.row(NotChecked, check, title, why, "") }

// context returns the encryption context of the tenant's object.
func (c *checker) context() kms.EncryptionContext {
	if c.BucketKeys {
		return kms.EncryptionContext{"bucket": c.Bucket}
	}
	return kms.EncryptionContext{"bucket": c.Bucket, "key": c.Prefix + checkObject}
}

// use wraps and unwraps data keys as the proxy does. It returns a wrapped one,
// or nil.
func (c *checker) use(ctx context.Context) (wrapped []byte) {
	const fix = "Compare the permissions with docs/key-owner.md, and the configuration with what the key's owner sent."
	ec := c.context()
	of := "with the encryption context " + contextText(ec)

	dek, wrapped, err := kms.Generate(ctx, c.Wrapper, ec)
	defer clear(dek)
	if err != nil {
		c.row(Fail, "generate", "Make a data key", of+": "+err.Error(), fix)
		return nil
	}
	c.row(OK, "generate", "Make a data key", of, "")

	again, err := kms.Unwrap(ctx, c.Wrapper, wrapped, ec)
	defer clear(again)
	switch {
	case err != nil:
		c.row(Fail, "unwrap", "Unwrap it", of+": "+err.Error(), fix)
		return nil
	case subtle.ConstantTimeCompare(dek, again) != 1:
		c.row(Fail, "unwrap", "Unwrap it", "the KMS returned another data key", "Do not use this key.")
		return nil
	}
	c.row(OK, "unwrap", "Unwrap it", of+": the same data key", "")

	if _, ok := c.Wrapper.(kms.Generator); ok { // the others have just wrapped one
		c.wrapRandom(ctx, ec, of, fix)
	}
	return wrapped
}

// wrapRandom wraps a data key that the proxy made, which copies need.
func (c *checker) wrapRandom(ctx context.Context, ec kms.EncryptionContext, of, fix string) {
	const title = "Wrap a given data key, for copies"
	dek := make([]byte, kms.DEKSize)
	defer clear(dek)
	rand.Read(dek) // never fails: it crashes the program instead

	if _, err := kms.Wrap(ctx, c.Wrapper, dek, ec); err != nil {
		c.row(Fail, "wrap", title, of+": "+err.Error(), fix)
		return
	}
	c.row(OK, "wrap", title, of, "")
}

// contexts tries to unwrap under other encryption contexts, which must be
// refused.
func (c *checker) contexts(ctx context.Context, wrapped []byte) {
	right := c.context()
	change := func(name, value string) kms.EncryptionContext {
		other := maps.Clone(right)
		if other[name] = value; value == "" {
			delete(other, name)
		}
		return other
	}

	type trial struct {
		check, title string
		ec           kms.EncryptionContext
	}
	object := c.Prefix + checkObject
	trials := []trial{{"context.bucket", "Unwrap it for another bucket", change("bucket", c.Bucket+"-other")}}
	if c.BucketKeys {
		trials = append(trials, trial{
			"context.added", "Unwrap it with one more name in the context", change("key", object),
		})
	} else {
		trials = append(trials,
			trial{
				"context.key", "Unwrap it for another object of the tenant", change("key", object+"-other"),
			},
			trial{"context.missing", "Unwrap it without the object's key", change("key", "")})
	}
	trials = append(trials, trial{"context.none", "Unwrap it without any context", nil})

	for _, t := range trials {
		dek, err := kms.Unwrap(ctx, c.Wrapper, wrapped, t.ec)
		clear(dek)
		result, evidence := c.refused(err)
		do := ""
		if result == Fail {
			evidence, do = "allowed: a data key opens for another object", "Do not use this key."
		}
		c.row(result, t.check, t.title, evidence, do)
	}
}

// refused judges a call that must be refused. Without an error, it returns
// Fail.
func (c *checker) refused(err error) (Result, string) {
	failure, ok := errors.AsType[*kms.Error](err)
	switch {
	case err == nil:
		return Fail, "allowed"
	case ok && failure.Kind == kms.Denied:
		return OK, "refused by the policy of the key: " + short(err)
	case ok && failure.Kind == kms.InvalidCiphertext:
		return OK, "refused, " + c.enforcer() + ": " + short(err)
	default:
		return NotChecked, "no answer that says yes or no: " + short(err)
	}
}

// enforcer says who has refused another encryption context.
func (c *checker) enforcer() string {
	switch c.Wrapper.(type) {
	case *kms.Azure:
		return "enforced by cmekproxy's envelope, not by the KMS"
	case *kms.Local:
		return "enforced by cmekproxy, which has the key"
	default:
		return "enforced by the KMS"
	}
}

// short returns the kind of an error of a KMS and the KMS's name for it. The
// report names the key and the call anyway.
func short(err error) string {
	failure, ok := errors.AsType[*kms.Error](err)
	switch {
	case !ok:
		return err.Error()
	case failure.Reason == "":
		return failure.Kind.String()
	default:
		return failure.Kind.String() + " (" + failure.Reason + ")"
	}
}

// outside tries to make data keys for objects of others, which the policy of
// the key can forbid at AWS only.
func (c *checker) outside(ctx context.Context) {
	const byPrefix, byBucket = "Make a data key for an object outside the tenant's prefix",
		"Make a data key for another bucket"
	if _, ok := c.Wrapper.(*kms.AWS); !ok {
		why := "permissions at this KMS do not depend on the object. The proxy's rules decide which objects use the key"
		c.notChecked("outside.prefix", byPrefix, why)
		c.notChecked("outside.bucket", byBucket, why)
		return
	}

	other := maps.Clone(c.context())
	switch {
	case c.BucketKeys:
		c.notChecked("outside.prefix", byPrefix, "with dek_reuse, AWS sees the bucket only")
	case c.Prefix == "" || strings.HasPrefix(outsideObject, c.Prefix):
		c.notChecked("outside.prefix", byPrefix, "the tenant has the whole bucket")
	default:
		other["key"] = outsideObject
		c.tryOutside(ctx, "outside.prefix", byPrefix, other)
	}

	other = maps.Clone(c.context())
	other["bucket"] = outsideBucket
	c.tryOutside(ctx, "outside.bucket", byBucket, other)
}

func (c *checker) tryOutside(ctx context.Context, check, title string, ec kms.EncryptionContext) {
	dek, _, err := kms.Generate(ctx, c.Wrapper, ec)
	clear(dek)
	result, evidence := c.refused(err)
	if result == Fail {
		c.row(Warn, check, title, "allowed with "+contextText(ec)+": the policy does not restrict it",
			"Add the conditions on the encryption context of cmekproxy tenant init aws to the key policy.")
		return
	}
	c.row(result, check, title, evidence, "")
}

// contextText returns a context for people.
func contextText(ec kms.EncryptionContext) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(ec)) {
		list = append(list, fmt.Sprintf("%s=%s", name, ec[name]))
	}
	return "{" + strings.Join(list, ", ") + "}"
}
