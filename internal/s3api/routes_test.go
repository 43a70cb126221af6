package s3api

import (
	"net/http"
	"slices"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// Every operation has a scope that fits its path.
func TestEveryOperationHasAScope(t *testing.T) {
	fitting := map[string][]scope{
		service:      {bySigner},
		bucket:       {byBucket, byPrefix, eachKey, anyKey, unsigned},
		object:       {byKey, unsigned},
		objectLambda: {byBucket},
	}

	for _, row := range routes {
		t.Run(row.op, func(t *testing.T) {
			allowed := fitting[row.path]
			if row.flags&signedByForm != 0 {
				allowed = []scope{byKey} // the form has the key
			}
			if !slices.Contains(allowed, row.scope) {
				t.Errorf("%s has the scope %q, want one of %q", row.path, row.scope, allowed)
			}

			if (row.scope == unsigned) != (row.action == anyone) {
				t.Errorf("the scope is %q, and the action %q", row.scope, row.action)
			}

			for name := range row.headerNames.exact {
				if !sigv4.IsAmz(name) {
					t.Errorf("it names the header %s, and only x-amz- ones are checked", name)
				}
			}

			if row.scope == byPrefix && (row.action != access.List || !row.allowsQuery("prefix")) {
				t.Errorf("it is granted by prefix, and does %q with the parameters %q", row.action, row.query)
			}
		})
	}
}

// The scopes that are wider than the path.
func TestScopesGolden(t *testing.T) {
	wide := map[scope][]string{
		byPrefix: {"ListObjectsV2", "ListMultipartUploads", "ListObjectVersions", "ListObjects"},
		eachKey:  {"DeleteObjects"},
		anyKey:   {"HeadBucket", "GetBucketLocation"},
		bySigner: {"ListDirectoryBuckets", "ListBuckets"},
		unsigned: {"OptionsBucket", "OptionsObject"},
	}
	for s, want := range wide {
		t.Run(string(s), func(t *testing.T) {
			var got []string
			for _, row := range routes {
				if row.scope == s {
					got = append(got, row.op)
				}
			}
			slices.Sort(got)
			slices.Sort(want)

			if !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// An operation without a scope is denied, whatever the grants.
func TestNoScopeIsDenied(t *testing.T) {
	all := []access.Action{
		access.Read,
		access.Write,
		access.Delete,
		access.List,
		access.Admin,
		access.StoreAdmin,
		access.Lock,
	}

	clients, err := access.New(
		[]access.Client{
			{
				Name:      "app",
				AccessKey: "A",
				Secret:    "secretsecretsecret",
				Allow:     []access.Grant{{Buckets: []string{"*"}, Actions: all}},
			},
		},
	)
	if err != nil {
		t.Fatal(err)
	}

	client, _ := clients.Now().Client("A")
	for name, s := range map[string]scope{"no scope": "", "an unknown one": "all"} {
		t.Run(name, func(t *testing.T) {
			for _, row := range routes {
				row.scope = s
				c := &call{
					Request: &http.Request{Header: http.Header{}},
					route:   &row,
					client:  client,
					bucket:  "bucket",
					key:     "key",
				}
				if c.authorize() == nil {
					t.Errorf("%s is allowed", row.op)
				}
			}
		})
	}
}
