package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// witness is a store that records requests, and answers as configured. It
// accepts only requests that are signed with the store's credentials.
type witness struct {
	mu     sync.Mutex
	asked  []recorded
	answer func(http.ResponseWriter, *http.Request)
}

type recorded struct {
	*http.Request
	body []byte
}

func (s *witness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verifier := &sigv4.Verifier{
		Now:    time.Now,
		Secret: func(accessKey string) (string, bool) { return storeSecret, accessKey == storeAccess },
	}

	auth, err := verifier.Verify(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}

	body, err := io.ReadAll(auth.Body(r.Body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.asked = append(s.asked, recorded{r, body})

	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
	}
}

// take returns the requests since the last call.
func (s *witness) take() []recorded {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.asked
	s.asked = nil
	return out
}

func (s *witness) set(answer func(http.ResponseWriter, *http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// newRecorded starts a proxy in front of a witness.
func newRecorded(t *testing.T) (*proxy, *witness) {
	t.Helper()
	store := &witness{}
	server := httptest.NewServer(store)
	t.Cleanup(server.Close)

	endpoint, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}

	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
		store := proxytest.OriginConfig(server.Client().Transport)
		store.Endpoint = endpoint
		cfg.Origin = origin.New(store)
	})
	store.take()
	return p, store
}

// forwarded are requests that the proxy forwards. Those for the bucket only
// have a query.
var forwarded = []struct {
	method, query, body string
	headers             []string // further x-amz- headers that are forwarded too
}{
	{"GET", "?abac", "", nil},
	{"PUT", "?abac", "<AbacStatus><Status>Enabled</Status></AbacStatus>", nil},
	{"GET", "?accelerate", "", nil},
	{"PUT", "?accelerate", "<AccelerateConfiguration><Status>Enabled</Status></AccelerateConfiguration>", nil},
	{"GET", "?acl", "", nil},
	{"PUT", "?acl", "", []string{"X-Amz-Acl: private"}},
	{"GET", "?analytics&id=a", "", nil},
	{"GET", "?analytics", "", nil},
	{"GET", "?analytics&continuation-token=t", "", nil},
	{"PUT", "?analytics&id=a", "<AnalyticsConfiguration/>", nil},
	{"DELETE", "?analytics&id=a", "", nil},
	{"GET", "?cors", "", nil},
	{"PUT", "?cors", "<CORSConfiguration/>", nil},
	{"DELETE", "?cors", "", nil},
	{"GET", "?id=a&intelligent-tiering", "", nil},
	{"GET", "?intelligent-tiering", "", nil},
	{"PUT", "?id=a&intelligent-tiering", "<IntelligentTieringConfiguration/>", nil},
	{"DELETE", "?id=a&intelligent-tiering", "", nil},
	{"GET", "?id=a&inventory", "", nil},
	{"GET", "?inventory", "", nil},
	{"PUT", "?id=a&inventory", "<InventoryConfiguration/>", nil},
	{"DELETE", "?id=a&inventory", "", nil},
	{"GET", "?lifecycle", "", nil},
	{
		"PUT",
		"?lifecycle",
		"<LifecycleConfiguration/>",
		[]string{"X-Amz-Transition-Default-Minimum-Object-Size: varies_by_storage_class"},
	},
	{"DELETE", "?lifecycle", "", nil},
	{"GET", "?location", "", nil},
	{"GET", "?logging", "", nil},
	{"PUT", "?logging", "<BucketLoggingStatus/>", nil},
	{"GET", "?id=a&metrics", "", nil},
	{"GET", "?metrics", "", nil},
	{"PUT", "?id=a&metrics", "<MetricsConfiguration/>", nil},
	{"DELETE", "?id=a&metrics", "", nil},
	{"GET", "?notification", "", nil},
	{"PUT", "?notification", "<NotificationConfiguration/>", []string{"X-Amz-Skip-Destination-Validation: true"}},
	{"GET", "?object-lock", "", nil},
	{"PUT", "?object-lock", "<ObjectLockConfiguration/>", []string{"X-Amz-Bucket-Object-Lock-Token: t"}},
	{"GET", "?ownershipControls", "", nil},
	{"PUT", "?ownershipControls", "<OwnershipControls/>", nil},
	{"DELETE", "?ownershipControls", "", nil},
	{"GET", "?policy", "", nil},
	{"PUT", "?policy", "{}", []string{"X-Amz-Confirm-Remove-Self-Bucket-Access: true"}},
	{"DELETE", "?policy", "", nil},
	{"GET", "?policyStatus", "", nil},
	{"GET", "?publicAccessBlock", "", nil},
	{"PUT", "?publicAccessBlock", "<PublicAccessBlockConfiguration/>", nil},
	{"DELETE", "?publicAccessBlock", "", nil},
	{"GET", "?replication", "", nil},
	{"PUT", "?replication", "<ReplicationConfiguration/>", []string{"X-Amz-Bucket-Object-Lock-Token: t"}},
	{"DELETE", "?replication", "", nil},
	{"GET", "?requestPayment", "", nil},
	{"PUT", "?requestPayment", "<RequestPaymentConfiguration/>", nil},
	{"GET", "?tagging", "", nil},
	{"PUT", "?tagging", "<Tagging/>", nil},
	{"DELETE", "?tagging", "", nil},
	{"GET", "?versioning", "", nil},
	{"PUT", "?versioning", "<VersioningConfiguration/>", []string{"X-Amz-Mfa: serial 123456"}},
	{"GET", "?website", "", nil},
	{"PUT", "?website", "<WebsiteConfiguration/>", nil},
	{"DELETE", "?website", "", nil},

	{"GET", "/a%20b/%C3%BC?acl&versionId=v", "", nil},
	{"PUT", "/a%20b/%C3%BC?acl&versionId=v", "", []string{"X-Amz-Acl: bucket-owner-full-control"}},
	{"GET", "/a%20b/%C3%BC?legal-hold&versionId=v", "", nil},
	{"PUT", "/a%20b/%C3%BC?legal-hold&versionId=v", "<LegalHold><Status>ON</Status></LegalHold>", nil},
	{"GET", "/a%20b/%C3%BC?retention&versionId=v", "", nil},
	{"PUT", "/a%20b/%C3%BC?retention&versionId=v", "<Retention/>", []string{"X-Amz-Bypass-Governance-Retention: true"}},
	{"GET", "/a%20b/%C3%BC?tagging&versionId=v", "", nil},
	{"PUT", "/a%20b/%C3%BC?tagging&versionId=v", "<Tagging/>", []string{"X-Amz-Expected-Bucket-Owner: 111122223333"}},
	{"DELETE", "/a%20b/%C3%BC?tagging&versionId=v", "", []string{"X-Amz-Request-Payer: requester"}},
	{
		"POST",
		"/a%20b/%C3%BC?restore&versionId=v",
		"<RestoreRequest><Days>1</Days><GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters></RestoreRequest>",
		nil,
	},
	{"POST", "/k?restore", "", nil},
}

func TestForwarded(t *testing.T) {
	p, store := newRecorded(t)
	const said = "<Answer><ETag>as it is</ETag></Answer>"
	saidTo := func(method, query string) string {
		switch {
		case method != http.MethodGet:
			return ""
		case query == "?policy":
			return ` {"Statement": "as it is"}`
		default:
			return said
		}
	}

	store.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Version-Id", "v1")
		w.Header().Set("X-Amz-Request-Charged", "requester")
		w.Header().Set("Server", "Store")
		io.WriteString(w, saidTo(r.Method, strings.TrimSuffix("?"+r.URL.RawQuery, "=")))
	})

	for _, row := range forwarded {
		t.Run(row.method+" "+row.query, func(t *testing.T) {
			path := "/" + p.bucket + row.query
			header := http.Header{}
			for _, h := range row.headers {
				name, value, _ := strings.Cut(h, ": ")
				header.Set(name, value)
			}

			a := p.send(request{method: row.method, path: path, header: header, body: bodyOf(row.body)})
			if a.StatusCode != http.StatusOK || string(a.body) != saidTo(row.method, row.query) ||
				a.Header.Get("X-Amz-Version-Id") != "v1" ||
				a.Header.Get("X-Amz-Request-Charged") != "requester" ||
				a.Header.Get("Server") != "" {
				t.Errorf("answered %d %v %s", a.StatusCode, a.Header, a.body)
			}

			asked := store.take()
			if len(asked) != 1 {
				t.Fatalf("the store was asked %d times", len(asked))
			}
			wantForwarded(t, asked[0], row.method, path, row.body, row.headers)
		})
	}
}

// bodyOf returns nil for "", because an empty body would have no length.
func bodyOf(text string) []byte {
	if text == "" {
		return nil
	}
	return []byte(text)
}

func wantForwarded(t *testing.T, got recorded, method, path, body string, headers []string) {
	t.Helper()
	if uri := strings.ReplaceAll(got.RequestURI, "=&", "&"); got.Method != method ||
		strings.TrimSuffix(uri, "=") != path {
		t.Errorf("%s %s", got.Method, got.RequestURI)
	}

	if string(got.body) != body {
		t.Errorf("body %q", got.body)
	}
	if sum := md5.Sum(got.body); body != "" &&
		got.Header.Get("Content-Md5") != base64.StdEncoding.EncodeToString(sum[:]) {
		t.Errorf("Content-MD5 %q", got.Header.Get("Content-Md5"))
	}

	var further []string
	for name, values := range got.Header {
		if strings.HasPrefix(name, "X-Amz-") && name != "X-Amz-Date" && name != "X-Amz-Content-Sha256" {
			further = append(further, name+": "+strings.Join(values, ","))
		}
	}
	slices.Sort(further)

	if !slices.Equal(further, headers) {
		t.Errorf("headers %q, want %q", further, headers)
	}
}

// The store's errors are returned with their code and status.
func TestForwardedErrors(t *testing.T) {
	p, store := newRecorded(t)
	for _, row := range []struct {
		status int
		code   string
	}{
		{501, "NotImplemented"},
		{404, "NoSuchTagSet"},
		{404, "NoSuchLifecycleConfiguration"},
		{400, "MalformedXML"},
		{405, "MethodNotAllowed"},
		{409, "OperationAborted"},
		{403, "AccessDenied"},
	} {
		t.Run(fmt.Sprint(row.status, row.code), func(t *testing.T) {
			store.set(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(row.status)
				io.WriteString(
					w,
					"<Error><Code>"+row.code+"</Code><Message>in its own words</Message><Method>GET</Method><HostId>h</HostId></Error>",
				)
			})

			a := p.send(request{method: "GET", path: "/" + p.bucket + "?lifecycle"})
			if a.StatusCode != row.status || a.Code != row.code ||
				!bytes.Contains(a.body, []byte("in its own words")) ||
				!bytes.Contains(a.body, []byte("<Method>GET</Method>")) ||
				bytes.Contains(a.body, []byte("HostId")) {
				t.Errorf("%d %s: %d %s", row.status, row.code, a.StatusCode, a.body)
			}
		})
	}
}

// The limits of bodies are those of S3, and the store never gets a longer
// one.
func TestForwardedLimits(t *testing.T) {
	p, store := newRecorded(t)
	for query, limit := range map[string]int{
		"?policy": 20 << 10, "?cors": 64 << 10, "?website": 128 << 10, "?tagging": 128 << 10, "?lifecycle": 2 << 20,
		"?replication": 2 << 20, "/k?tagging": 128 << 10, "/k?retention": 64 << 10,
	} {
		t.Run(query, func(t *testing.T) {
			body := bytes.Repeat([]byte(" "), limit)
			if a := p.send(request{method: "PUT", path: "/" + p.bucket + query, body: body}); a.StatusCode != http.StatusOK ||
				len(store.take()) != 1 {
				t.Errorf("of %d bytes: %d %s", limit, a.StatusCode, a.Code)
			}
			if a := p.send(request{
				method: "PUT", path: "/" + p.bucket + query, body: append(body, ' '),
			}); a.Code != "MaxMessageLengthExceeded" ||
				len(store.take()) != 0 {
				t.Errorf("of %d bytes: %d %s", limit+1, a.StatusCode, a.Code)
			}

			if a := p.send(request{
				method: "PUT", path: "/" + p.bucket + query, body: body, hash: strings.Repeat("0", 64),
			}); a.Code != "XAmzContentSHA256Mismatch" ||
				len(store.take()) != 0 {
				t.Errorf("whose hash is another's: %d %s", a.StatusCode, a.Code)
			}
		})
	}
}

func TestACLs(t *testing.T) {
	p, store := newRecorded(t)
	const group = "http://acs.amazonaws.com/groups/global/AllUsers"
	policy := func(grants ...string) string {
		return `<AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>owner</ID></Owner><AccessControlList>` + strings.Join(
			grants,
			"",
		) + `</AccessControlList></AccessControlPolicy>`
	}

	typed := func(kind, grantee, permission string) string {
		return `<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="` + kind + `">` + grantee + `</Grantee><Permission>` + permission + `</Permission></Grant>`
	}

	grant := func(grantee, permission string) string { return typed("CanonicalUser", grantee, permission) }
	own := grant("<ID>owner</ID><DisplayName>me</DisplayName>", "FULL_CONTROL")
	for _, row := range []struct {
		name, header, body, code string
	}{
		{"canned private", "X-Amz-Acl: private", "", ""},
		{"the owner alone", "", policy(own), ""},
		{"the owner twice", "", policy(own, own), ""},
		{"canned and body", "X-Amz-Acl: private", policy(own), "UnexpectedContent"},
		{"neither", "", "", "MissingSecurityHeader"},
		{"canned public", "X-Amz-Acl: public-read", "", "NotImplemented"},
		{"granted in a header", "X-Amz-Grant-Read: uri=" + group, "", "NotImplemented"},
		{"no XML", "", "private", "MalformedACLError"},
		{"another document", "", "<Tagging/>", "MalformedACLError"},
		{"canned by no name", "X-Amz-Acl: invalid_acl", "", "InvalidArgument"},
		{"canned by no name, and body", "X-Amz-Acl: invalid_acl", policy(own), "InvalidArgument"},
		{"canned and granted", "X-Amz-Acl: private, X-Amz-Grant-Read: id=other", "", "InvalidRequest"},
		{"canned public and granted", "X-Amz-Acl: public-read, X-Amz-Grant-Read: id=other", "", "InvalidRequest"},
		{"granted and body", "X-Amz-Grant-Full-Control: id=owner", policy(own), "UnexpectedContent"},
		{"canned public and body", "X-Amz-Acl: public-read", policy(own), "UnexpectedContent"},
		{"granted to nobody", "X-Amz-Grant-Write: ", "", "NotImplemented"},
		{"no grantee", "", policy(own, grant("", "READ")), "MalformedACLError"},
		{"a grantee of no type", "", policy(own, typed("invalid_type", "<ID>other</ID>", "READ")), "MalformedACLError"},
		{"no permission", "", policy(own, grant("<ID>other</ID>", "")), "MalformedACLError"},
		{"a permission of no name", "", policy(own, grant("<ID>other</ID>", "invalid_permission")), "MalformedACLError"},
		{"a group with the owner's ID", "", policy(typed("Group", "<ID>owner</ID>", "FULL_CONTROL")), "NotImplemented"},
		{"nobody", "", policy(), "NotImplemented"},
		{"no owner", "", strings.Replace(policy(own), "<ID>owner</ID>", "", 1), "MalformedACLError"},
		{"no owner and no grantee, as MinIO has it", "", strings.Replace(
			policy(grant("<Type>CanonicalUser</Type>", "FULL_CONTROL")), "<ID>owner</ID>", "<ID />", 1,
		), ""},
		{"no owner, and a grantee by its address", "", strings.Replace(
			policy(grant("<EmailAddress>a@b</EmailAddress>", "FULL_CONTROL")), "<ID>owner</ID>", "", 1,
		), "MalformedACLError"},
		{"no owner, and everybody", "", strings.Replace(
			policy(typed("Group", "<URI>"+group+"</URI>", "FULL_CONTROL")), "<ID>owner</ID>", "", 1,
		), "MalformedACLError"},
		{"somebody else", "", policy(own, grant("<ID>other</ID>", "READ")), "NotImplemented"},
		{"everybody", "", policy(own, typed("Group", "<URI>"+group+"</URI>", "READ")), "NotImplemented"},
		{
			"everybody, with the owner's ID", "", policy(grant("<ID>owner</ID><URI>"+group+"</URI>", "FULL_CONTROL")),
			"NotImplemented",
		},
		{
			"somebody by mail", "", policy(own, typed("AmazonCustomerByEmail", "<EmailAddress>a@b</EmailAddress>", "READ")),
			"NotImplemented",
		},
		{"the owner, who may only read", "", policy(grant("<ID>owner</ID>", "READ")), "NotImplemented"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, path := range []string{"?acl", "/k?acl"} {
				header := http.Header{}
				for one := range strings.SplitSeq(row.header, ", ") {
					if name, value, ok := strings.Cut(one, ": "); ok {
						header.Set(name, value)
					}
				}

				a := p.send(request{method: "PUT", path: "/" + p.bucket + path, header: header, body: bodyOf(row.body)})
				asked := store.take()
				if a.Code != row.code {
					t.Errorf("%s: %d %s, want %s", path, a.StatusCode, a.Code, row.code)
				}

				switch {
				case row.code != "" && (len(
					asked,
				) != 1 || asked[0].Method != http.MethodGet || asked[0].URL.RawQuery != "ownershipControls="):
					t.Errorf("%s: the store was asked otherwise than for the bucket's ownership", path)
				case row.code == "" && (len(
					asked,
				) != 1 || asked[0].Header.Get("X-Amz-Acl") != "private" || len(asked[0].body) != 0):
					t.Errorf("%s: the store was not asked for a private ACL", path)
				}
			}
		})
	}
}

// An invalid ACL gets the error that S3 returns first: that the bucket does
// not exist, or that it has no ACLs.
func TestACLsOfTheBucket(t *testing.T) {
	p, store := newRecorded(t)
	enforced := `<OwnershipControls xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>`
	for _, row := range []struct {
		status             int
		answer, code, none string // the code for a public ACL, and for none
	}{
		{200, enforced, "AccessControlListNotSupported", "AccessControlListNotSupported"},
		{200, strings.Replace(enforced, "Enforced", "Preferred", 1), "NotImplemented", "MissingSecurityHeader"},
		{200, "nonsense", "NotImplemented", "MissingSecurityHeader"},
		{404, "<Error><Code>NoSuchBucket</Code></Error>", "NoSuchBucket", "NoSuchBucket"},
		{404, "<Error><Code>OwnershipControlsNotFoundError</Code></Error>", "NotImplemented", "MissingSecurityHeader"},
		{403, "<Error><Code>AccessDenied</Code></Error>", "NotImplemented", "MissingSecurityHeader"},
	} {
		t.Run(fmt.Sprint(row.status, row.code, row.none), func(t *testing.T) {
			store.set(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(row.status)
				io.WriteString(w, row.answer)
			})

			public := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "?acl",
					header: http.Header{"X-Amz-Acl": {"public-read"}},
				},
			)

			none := p.send(request{method: "PUT", path: "/" + p.bucket + "?acl"})
			if public.Code != row.code || none.Code != row.none {
				t.Errorf(
					"%d %s: %s and %s, want %s and %s",
					row.status,
					row.answer,
					public.Code,
					none.Code,
					row.code,
					row.none,
				)
			}

			for _, asked := range store.take() {
				if asked.Method != http.MethodGet {
					t.Errorf("the store was asked to %s", asked.Method)
				}
			}
		})
	}
}

func TestACLsOfNewBuckets(t *testing.T) {
	p, store := newRecorded(t)
	for _, row := range []struct {
		acl, ownership, code string
	}{
		{"private", "BucketOwnerEnforced", ""},
		{"invalid_acl", "", "InvalidArgument"},
		{"invalid_acl", "BucketOwnerEnforced", "InvalidArgument"},
		{"public-read", "BucketOwnerEnforced", "InvalidBucketAclWithObjectOwnership"},
		{"public-read", "BucketOwnerPreferred", "NotImplemented"},
		{"authenticated-read", "", "NotImplemented"},
	} {
		t.Run(row.acl+" "+row.ownership, func(t *testing.T) {
			header := http.Header{"X-Amz-Acl": {row.acl}}
			if row.ownership != "" {
				header.Set("X-Amz-Object-Ownership", row.ownership)
			}

			a := p.send(request{method: "PUT", path: "/new-bucket", header: header})
			if asked := store.take(); a.Code != row.code || len(asked) != 0 && row.code != "" {
				t.Errorf(
					"%s, %s: %d %s, want %s; the store was asked %d times",
					row.acl,
					row.ownership,
					a.StatusCode,
					a.Code,
					row.code,
					len(asked),
				)
			}
		})
	}
}

// S3 requires a digest of some bodies, even of an empty one. It then returns
// the error for the missing document, not for the digest.
func TestDigestOfAnEmptyBody(t *testing.T) {
	p, store := newRecorded(t)
	for name, row := range map[string]struct {
		header http.Header
		want   string
	}{
		"none":     {nil, ""},
		"MD5":      {http.Header{"Content-Md5": {"1B2M2Y8AsgTpgAmY7PhCfg=="}}, "1B2M2Y8AsgTpgAmY7PhCfg=="},
		"checksum": {http.Header{"X-Amz-Checksum-Crc32": {"AAAAAA=="}}, "1B2M2Y8AsgTpgAmY7PhCfg=="},
	} {
		t.Run(name, func(t *testing.T) {
			a := p.send(request{method: "PUT", path: "/" + p.bucket + "/k?legal-hold", header: row.header})
			if asked := store.take(); a.StatusCode != 200 || len(asked) != 1 ||
				asked[0].Header.Get("Content-Md5") != row.want {
				t.Errorf("%d %s, %v", a.StatusCode, a.Code, asked)
			}
		})
	}
}

// An argument in the store's error is returned if the client sent it, and
// not if the proxy did.
func TestArgumentsOfErrors(t *testing.T) {
	p, store := newRecorded(t)
	for name, row := range map[string]struct {
		argument, value string
		shown           bool
	}{
		"of a header":        {"x-amz-object-lock-retain-until-date", "invalid_date", true},
		"of a parameter":     {"versionId", "v", true},
		"another value":      {"x-amz-object-lock-retain-until-date", "other", false},
		"the proxy's header": {"x-amz-meta-cmek-v", "1", false},
		"nothing":            {"x-amz-acl", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			store.set(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprintf(
					w,
					"<Error><Code>InvalidArgument</Code><Message>m</Message><ArgumentName>%s</ArgumentName><ArgumentValue>%s</ArgumentValue></Error>",
					row.argument,
					row.value,
				)
			})

			header := http.Header{
				"X-Amz-Object-Lock-Retain-Until-Date": {"invalid_date"},
				"X-Amz-Object-Lock-Mode":              {"GOVERNANCE"},
			}

			r := request{method: "PUT", path: "/" + p.bucket + "/k", header: header}
			if row.argument == "versionId" {
				r = request{method: "GET", path: "/" + p.bucket + "/k?tagging&versionId=v"}
			}

			a := p.send(r)
			said := "<ArgumentName>" + row.argument + "</ArgumentName><ArgumentValue>" + row.value + "</ArgumentValue>"
			if a.Code != "InvalidArgument" || strings.Contains(string(a.body), said) != row.shown ||
				!row.shown && strings.Contains(string(a.body), "<ArgumentName>") {
				t.Errorf("%s", a.body)
			}
		})
	}
}

func TestRestoreObject(t *testing.T) {
	p, store := newRecorded(t)
	store.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	for _, row := range []struct {
		body, code string
		status     int
	}{
		{"<RestoreRequest><Days>2</Days></RestoreRequest>", "", 202},
		{"<RestoreRequest><Type>SELECT</Type></RestoreRequest>", "NotImplemented", 501},
		{"<RestoreRequest><Days>2</Days><SelectParameters/></RestoreRequest>", "NotImplemented", 501},
		{"<RestoreRequest><OutputLocation/></RestoreRequest>", "NotImplemented", 501},
		{"<RestoreRequest><NewThing/></RestoreRequest>", "NotImplemented", 501},
		{"<Restore/>", "MalformedXML", 400},
		{"nonsense", "MalformedXML", 400},
	} {
		t.Run(row.body, func(t *testing.T) {
			a := p.send(request{method: "POST", path: "/" + p.bucket + "/k?restore", body: []byte(row.body)})
			if asked := len(store.take()); a.StatusCode != row.status || a.Code != row.code ||
				(asked == 1) != (row.code == "") {
				t.Errorf("%d %s, asked %d times", a.StatusCode, a.Code, asked)
			}
		})
	}
}
