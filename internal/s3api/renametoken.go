package s3api

import (
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// renameToken identifies a request by its client and x-amz-client-token.
type renameToken struct {
	id    string // "" for a request without a token
	asked string // what it asks for
}

func (c *call) renameToken(source crypt.Object) (t renameToken, err error) {
	text := c.Header.Get("X-Amz-Client-Token")
	if text == "" {
		return t, nil
	}
	if len(text) > 64 || strings.ContainsFunc(text, func(r rune) bool { return r < 33 || r > 126 }) {
		const bad = "The client token must have at most 64 ASCII characters, without spaces."
		return t, invalidArgument(bad, "x-amz-client-token", text)
	}

	asked := []string{pathOf(source), pathOf(c.object())}
	for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		asked = append(asked, c.Header.Get(name), c.Header.Get(renamePrefix+"-"+name))
	}
	return renameToken{c.client.Name + "\n" + text, strings.Join(asked, "\n")}, nil
}

// renames remembers the tokens of renames that have succeeded, so that a
// repeated request succeeds again. Each replica has its own.
type renames struct {
	done *lru.Cache[string, doneRename]
}

type doneRename struct {
	asked string
	until time.Time
}

// SDKs repeat a request for less than a minute.
const (
	maxRenames = 10_000
	renameTime = 15 * time.Minute
)

func newRenames() renames {
	done, err := lru.New[string, doneRename](maxRenames)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return renames{done}
}

func (r renames) find(t renameToken, now time.Time) (done bool, err error) {
	have, ok := r.done.Get(t.id)
	switch {
	case t.id == "" || !ok || now.After(have.until):
		return false, nil
	case have.asked != t.asked:
		return false, &Error{
			Code: "IdempotencyParameterMismatch",
			Message: "Parameters on this idempotent request are inconsistent with parameters used in previous " +
				"request(s).",
		}
	}
	return true, nil
}

func (r renames) add(t renameToken, now time.Time) {
	if t.id != "" {
		r.done.Add(t.id, doneRename{t.asked, now.Add(renameTime)})
	}
}
