package s3api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Clients build locks and commit protocols on conditions of writes. A store
// that does not know a condition ignores it, and writes or deletes all the
// same. If the proxy knows that, it refuses the request. If it could not find
// out, it sends the condition.

// hasCondition reports whether the client has a condition on the object that
// the request overwrites.
func (c *call) hasCondition() bool {
	return c.Header.Get("If-Match") != "" || c.Header.Get("If-None-Match") != ""
}

// able returns whether the store has a capability.
func (c *call) able(what capability.Capability) capability.Answer {
	return c.server.Capabilities(c.Context(), c.bucket, what)[what]
}

// checkPutConditions checks that the store honors the conditions in the
// headers of a PutObject. Ceph 16 compares with an ETag without quotes.
func (c *call) checkPutConditions(header http.Header) error {
	if header.Get("If-None-Match") != "" && c.able(capability.PutIfNoneMatch) == capability.No {
		return c.errIgnored("If-None-Match")
	}
	match := header.Get("If-Match")
	if match == "" || c.able(capability.PutIfMatch) != capability.No {
		return nil
	}
	if c.able(capability.PutIfMatchBare) != capability.Yes {
		return c.errIgnored("If-Match")
	}
	header.Set("If-Match", strings.ReplaceAll(match, `"`, ""))
	return nil
}

// checkCompletionConditions checks that the store honors the conditions of a
// CompleteMultipartUpload.
func (c *call) checkCompletionConditions() error {
	for name, what := range map[string]capability.Capability{
		"If-Match": capability.CompleteIfMatch, "If-None-Match": capability.CompleteIfNoneMatch,
	} {
		if c.Header.Get(name) != "" && c.able(what) == capability.No {
			return c.errIgnored(name)
		}
	}
	return nil
}

// checkDeleteCondition checks that the store honors If-Match of DeleteObject.
func (c *call) checkDeleteCondition() error {
	if c.able(capability.DeleteIfMatch) == capability.No {
		return c.errIgnored("If-Match")
	}
	return nil
}

// deletionConditions are the conditions of a DELETE that the proxy checks.
type deletionConditions struct {
	size     int64     // -1 for none
	modified time.Time // zero for none
}

func deletionOf(h http.Header) (wanted deletionConditions, err error) {
	wanted.size = -1
	if said := h.Get(sizeCondition); said != "" {
		if wanted.size, err = strconv.ParseInt(said, 10, 64); err != nil || wanted.size < 0 {
			const bad = "The value of " + sizeCondition + " must be a size in bytes."
			return wanted, invalidArgument(bad, sizeCondition, said)
		}
	}
	if said := h.Get(timeCondition); said != "" {
		if wanted.modified, err = http.ParseTime(said); err != nil {
			const bad = "The value of " + timeCondition + " must be an HTTP date."
			return wanted, invalidArgument(bad, timeCondition, said)
		}
	}
	return wanted, nil
}

func (d deletionConditions) isEmpty() bool { return d.size < 0 && d.modified.IsZero() }

func (d deletionConditions) isMet(o *stored.Object) bool {
	if d.size >= 0 && o.Size != d.size {
		return false
	}
	if d.modified.IsZero() {
		return true
	}
	modified, err := http.ParseTime(o.Header.Get("Last-Modified"))
	return err == nil && modified.Equal(d.modified)
}

// errIgnored refuses a request because of a condition.
func (c *call) errIgnored(name string) *Error {
	return &Error{
		Code: "NotImplemented",
		Message: "The store behind the proxy does not honor " + name + " of " + c.op + ", and would do what the " +
			"request asks for in any case. Send it without the condition only if nothing else writes to the " +
			"object meanwhile.",
	}
}
