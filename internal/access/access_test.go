package access_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

const secret = "s3cr3t-of-app"

func client(grants ...access.Grant) access.Client {
	return access.Client{Name: "app", AccessKey: "AKAPP", Secret: secret, Allow: grants}
}

func grant(bucket string, actions ...access.Action) access.Grant {
	return access.Grant{Buckets: []string{bucket}, Actions: actions}
}

var allActions = []access.Action{access.Read, access.Write, access.Delete, access.List, access.Admin}

func TestMay(t *testing.T) {
	two := client(grant("logs", access.Read, access.List), grant("in-*", access.Write))
	several := client(access.Grant{Buckets: []string{"a", "b*"}, Actions: []access.Action{access.Read}})
	nothing, empty := client(), client(access.Grant{})
	tests := []struct {
		name   string
		client access.Client
		action access.Action
		bucket string
		want   bool
	}{
		{"granted", two, access.Read, "logs", true},
		{"second action", two, access.List, "logs", true},
		{"second grant", two, access.Write, "in-box", true},
		{"second pattern", several, access.Read, "bee", true},
		{"action of another grant", two, access.Write, "logs", false},
		{"bucket of another grant", two, access.Read, "in-box", false},
		{"action not granted", two, access.Delete, "logs", false},
		{"admin is not implied", two, access.Admin, "logs", false},
		{"admin implies nothing", client(grant("*", access.Admin)), access.Read, "logs", false},
		{"bucket not granted", two, access.Read, "other", false},
		{"unknown action", client(grant("*", allActions...)), "everything", "logs", false},
		{"no action", client(grant("*", allActions...)), "", "logs", false},
		{"service by *", client(grant("*", access.List)), access.List, "", true},
		{"service by a pattern", client(grant("a*", access.List)), access.List, "", false},
		{"service by a name", two, access.List, "", false},
		{"no grants", nothing, access.Read, "logs", false},
		{"grant of nothing", empty, access.Read, "logs", false},
		{"grant of no buckets", client(access.Grant{Actions: allActions}), access.Read, "logs", false},
		{"grant for a prefix", client(access.Grant{
			Buckets: []string{"logs"}, Prefixes: []string{"a/"},
			Actions: allActions,
		}), access.List, "logs", false},
		{
			"grant for a prefix and for all",
			client(access.Grant{Buckets: []string{"logs"}, Prefixes: []string{"a/", ""}, Actions: allActions}),
			access.List, "logs", true,
		},
		{"grant of no actions", client(access.Grant{Buckets: []string{"*"}}), access.Read, "logs", false},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.client.May(tt.action, tt.bucket); got != tt.want {
				t.Errorf("May(%q, %q) = %v, want %v", tt.action, tt.bucket, got, tt.want)
			}
		})
	}
}

func TestMayObject(t *testing.T) {
	prefixed := client(
		access.Grant{
			Buckets: []string{"logs"}, Prefixes: []string{"a/", "b"},
			Actions: []access.Action{access.Read, access.List},
		},
		access.Grant{Buckets: []string{"logs"}, Prefixes: []string{"up/"}, Actions: []access.Action{access.Write}},
		access.Grant{Buckets: []string{"all"}, Actions: []access.Action{access.Read}},
		access.Grant{Buckets: []string{"every"}, Prefixes: []string{"x", ""}, Actions: []access.Action{access.Read}},
	)

	for _, tt := range []struct {
		name   string
		action access.Action
		bucket string
		key    string
		want   bool
	}{
		{"within", access.Read, "logs", "a/1", true},
		{"the prefix itself", access.Read, "logs", "a/", true},
		{"second prefix, which is no folder", access.Read, "logs", "bee", true},
		{"short of the prefix", access.Read, "logs", "a", false},
		{"outside", access.Read, "logs", "c/1", false},
		{"in the middle", access.Read, "logs", "c/a/1", false},
		{"other case", access.Read, "logs", "A/1", false},
		{"no key", access.Read, "logs", "", false},
		{"another bucket", access.Read, "logs2", "a/1", false},
		{"another action", access.Write, "logs", "a/1", false},
		{"another grant", access.Write, "logs", "up/1", true},
		{"prefix of another grant", access.Read, "logs", "up/1", false},
		{"out by ..", access.Read, "logs", "a/../c", false},
		{".. at the end", access.Read, "logs", "a/..", false},
		{". as a segment", access.Read, "logs", "a/./1", false},
		{"dots in a name", access.Read, "logs", "a/..1/...", true},
		{".. where all keys are granted", access.Read, "all", "a/../c", true},
		{"an empty prefix", access.Read, "every", "a/../c", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := prefixed.MayObject(tt.action, tt.bucket, tt.key); got != tt.want {
				t.Errorf("MayObject(%q, %q, %q) = %v, want %v", tt.action, tt.bucket, tt.key, got, tt.want)
			}
		})
	}

	for prefix, want := range map[string]bool{
		"": false, "a": false, "a/": true, "a/b/": true, "b": true,
		"up/": false, "a/../": false,
	} {
		if got := prefixed.MayList("logs", prefix); got != want {
			t.Errorf("MayList(%q) = %v, want %v", prefix, got, want)
		}
	}

	for bucket, want := range map[string]bool{"logs": true, "all": true, "other": false, "": false} {
		if got := prefixed.Sees(bucket); got != want {
			t.Errorf("Sees(%q) = %v, want %v", bucket, got, want)
		}
	}

	if !prefixed.MaySome(access.Write, "logs") || prefixed.MaySome(access.Delete, "logs") ||
		prefixed.MaySome(access.Write, "all") {
		t.Error("MaySome of an action that is granted in part, not at all, elsewhere")
	}
}

var globs = []struct {
	pattern, bucket string
	want            bool
}{
	{"logs", "logs", true},
	{"logs", "logs2", false},
	{"logs", "log", false},
	{"logs", "xlogs", false},
	{"logs", "Logs", false},
	{"logs", "", false},
	{"*", "logs", true},
	{"**", "logs", true},
	{"hr-*", "hr-", true},
	{"hr-*", "hr-pay", true},
	{"hr-*", "hr", false},
	{"hr-*", "hrx-pay", false},
	{"hr-*", "xhr-pay", false},
	{"hr-*", "shr-hr-", false},
	{"*-archive", "x-archive", true},
	{"*-archive", "-archive", true},
	{"*-archive", "archive", false},
	{"*-archive", "x-archive2", false},
	{"a*c", "ac", true},
	{"a*c", "abc", true},
	{"a*c", "abcb", false},
	{"a*a", "a", false}, // prefix and suffix must not overlap
	{"ab*ba", "aba", false},
	{"ab*ba", "abba", true},
	{"*a*b*", "xaxb", true},
	{"*a*b*", "ab", true},
	{"*a*b*", "ba", false},
	{"a*b*c", "abbc", true},
	{"a*b*c", "acbbc", true},
	{"a*b*c", "acbb", false},
	{"a*bc*bc", "abc", false},
	{"a*bc*bc", "abcbc", true},
	{"a.b", "axb", false},
	{"a.b", "a.b", true},
	{"a?c", "abc", false},
	{"a?c", "a?c", true},
	{"[ab]", "a", false},
	{`\*`, "*", false},
	{"a+", "aa", false},
}

func TestGlob(t *testing.T) {
	for _, tt := range globs {
		t.Run(tt.pattern+" on "+tt.bucket, func(t *testing.T) {
			c := client(grant(tt.pattern, access.Read))
			if got := c.May(access.Read, tt.bucket); got != tt.want {
				t.Errorf("%q matches %q: %v, want %v", tt.pattern, tt.bucket, got, tt.want)
			}
		})
	}
}

// FuzzGlob compares with a regular expression.
func FuzzGlob(f *testing.F) {
	for _, tt := range globs {
		f.Add(tt.pattern, tt.bucket)
	}

	f.Fuzz(func(t *testing.T, pattern, bucket string) {
		if pattern == "" || len(pattern)+len(bucket) > 200 {
			t.Skip()
		}

		re, err := regexp.Compile(`(?s)\A` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + `\z`)
		if err != nil || strings.ContainsRune(bucket+pattern, '\ufffd') {
			t.Skip() // not UTF-8, which regexp handles differently
		}

		c := client(grant(pattern, access.Read))
		if got, want := c.May(access.Read, bucket), re.MatchString(bucket); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, bucket, got, want)
		}
	})
}

func TestDirectory(t *testing.T) {
	given := []access.Client{
		client(grant("logs", access.Read)),
		{Name: "other", AccessKey: "akapp", Secret: "another secret"},
	}

	d, err := access.New(given)
	if err != nil {
		t.Fatal(err)
	}

	given[0].Allow[0].Buckets[0] = "*"
	given[0].Allow[0].Actions[0] = access.Admin
	given[0].Secret = "changed"

	v := d.Now()
	if got, ok := v.Secret("AKAPP"); got != secret || !ok {
		t.Errorf("Secret of a client: %q, %v", got, ok)
	}
	if got, ok := v.Secret("akapp"); got != "another secret" || !ok {
		t.Errorf("Secret of a client in lower case: %q, %v", got, ok)
	}

	for _, unknown := range []string{"", "AKAP", "AKAPPX", "app", "*"} {
		if got, ok := v.Secret(unknown); got != "" || ok {
			t.Errorf("Secret(%q) = %q, %v", unknown, got, ok)
		}
		if got, ok := v.Client(unknown); got != nil || ok {
			t.Errorf("Client(%q) = %v, %v", unknown, got, ok)
		}
	}

	c, ok := v.Client("AKAPP")
	if !ok || c.Name != "app" {
		t.Fatalf("Client: %v, %v", c, ok)
	}
	if !c.May(access.Read, "logs") || c.May(access.Admin, "logs") || c.May(access.Read, "x") {
		t.Error("a grant changed with the caller's slice")
	}
}

func TestNewRefuses(t *testing.T) {
	with := func(change func(*access.Client)) []access.Client {
		c := client(grant("logs", access.Read))
		change(&c)
		return []access.Client{c}
	}

	other := func(name, accessKey string) []access.Client {
		return []access.Client{client(), {Name: name, AccessKey: accessKey, Secret: secret}}
	}

	tests := []struct {
		name    string
		clients []access.Client
		want    string
	}{
		{"no name", with(func(c *access.Client) { c.Name = "" }), `access: client "": no name`},
		{"no access key", with(func(c *access.Client) { c.AccessKey = "" }), `access: client "app": no access key`},
		{"no secret", with(func(c *access.Client) { c.Secret = "" }), `access: client "app": no secret`},
		{
			"empty pattern", with(func(c *access.Client) { c.Allow[0].Buckets[0] = "" }),
			`access: client "app": an empty bucket pattern`,
		},
		{
			"unknown action", with(func(c *access.Client) { c.Allow[0].Actions[0] = "reed" }),
			`access: client "app": unknown action "reed"`,
		},
		{
			"anonymous with a key", with(func(c *access.Client) { c.Anonymous = true }),
			`access: client "app": an anonymous client cannot have an access key or a secret`,
		},
		{
			"anonymous admin",
			[]access.Client{{
				Name: "all", Anonymous: true,
				Allow: []access.Grant{grant("logs", access.Admin)},
			}},
			`access: client "all": an anonymous client cannot have the action admin`,
		},
		{
			"two anonymous",
			[]access.Client{{Name: "all", Anonymous: true}, {Name: "more", Anonymous: true}},
			`access: clients "all" and "more" are both anonymous`,
		},
		{"one name twice", other("app", "AK2"), `access: two clients are named "app"`},
		{"one access key twice", other("app2", "AKAPP"), `access: clients "app" and "app2" have the same access key`},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := access.New(tt.clients)
			if err == nil || err.Error() != tt.want || d != nil {
				t.Errorf("New: %v, %v, want %s", d, err, tt.want)
			}
		})
	}

	if _, err := access.New(nil); err != nil {
		t.Errorf("New without clients: %v", err)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	c := client()
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}

	for _, s := range []string{
		fmt.Sprint(c), fmt.Sprint(&c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%#v", &c),
		fmt.Sprintf("%v", []access.Client{c}), fmt.Sprintf("%q", c), fmt.Sprintf("%x", c), string(asJSON),
	} {
		if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) {
			t.Errorf("the secret is in %s", s)
		}
	}
}

// If the store treats keys literally, dots in them have no meaning.
func TestLiteralKeys(t *testing.T) {
	c := client(access.Grant{
		Buckets: []string{"logs"}, Prefixes: []string{"a/"}, Actions: []access.Action{access.Read, access.List},
	})

	for _, key := range []string{"a/../c", "a/.", `a/..\c`} {
		c.LiteralKeys = false
		if c.MayObject(access.Read, "logs", key) || c.MayList("logs", key+"/") {
			t.Errorf("%s is granted by a prefix", key)
		}

		c.LiteralKeys = true
		if !c.MayObject(access.Read, "logs", key) || !c.MayList("logs", key+"/") {
			t.Errorf("%s is not granted where it is literal", key)
		}
	}

	if c.MayObject(access.Read, "logs", "b/../a/x") {
		t.Error("another prefix is granted")
	}
}
