package s3api_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// own returns a client with these grants for its own buckets, and write for
// those of the logs.
func own(actions ...access.Action) access.Client {
	return access.Client{Name: "own", AccessKey: readerAccess, Secret: readerSecret, Allow: []access.Grant{
		{
			Buckets: []string{"test-*"},
			Actions: actions,
		}, {Buckets: []string{"logs-*"}, Actions: []access.Action{access.Write}},
	}}
}

// accepting answers like a store that accepts everything.
func (p *proxy) accepting() {
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		header := http.Header{"X-Amz-Request-Id": {"1"}}
		return &http.Response{
			StatusCode: http.StatusOK,
			Header:     header,
			Body:       io.NopCloser(bytes.NewReader(nil)),
			Request:    r,
		}, nil
	}, nil)
}

// decides checks that one of two clients may do something and the other may
// not, and that the store gets no request for the latter.
func decides(
	t *testing.T,
	name string,
	allowed bool,
	client access.Client,
	method, query, body string,
	header http.Header,
) {
	t.Helper()
	p := newProxy(t, withClients(client))
	p.accepting()
	p.origin.take()

	r := request{
		method: method,
		path:   "/" + p.bucket + query,
		body:   []byte(strings.ReplaceAll(body, "OWN", p.bucket)),
		header: header,
	}

	got := p.sendAs(readerAccess, readerSecret, r)
	asked := p.origin.take()
	if denied := got.StatusCode == http.StatusForbidden && got.Code == "AccessDenied"; denied == allowed ||
		denied != (len(asked) == 0) {
		t.Errorf("%s: %d %s; the store was asked %q", name, got.StatusCode, got.body, asked)
	}
}

// Objects in COMPLIANCE mode cannot be deleted by anyone. Setting it needs
// more than the grant to write.
func TestComplianceModeNeedsLock(t *testing.T) {
	retention := func(mode string) string {
		return "<Retention><Mode>" + mode + "</Mode><RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate></Retention>"
	}
	byDefault := func(mode string) string {
		return "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>" + mode +
			"</Mode><Years>99</Years></DefaultRetention></Rule></ObjectLockConfiguration>"
	}

	header := func(mode string) http.Header {
		return http.Header{
			"X-Amz-Object-Lock-Mode":              {mode},
			"X-Amz-Object-Lock-Retain-Until-Date": {"2099-01-01T00:00:00Z"},
		}
	}

	copied := header("COMPLIANCE")
	copied.Set("X-Amz-Copy-Source", "test-bucket/k")
	hold := func(name, value string, more ...string) http.Header {
		h := http.Header{"X-Amz-Object-Lock-Event-Hold" + name: {value}}
		if len(more) > 0 {
			h.Set("X-Amz-Object-Lock-Mode", more[0])
		}
		return h
	}
	const byDefaultHeld = "<ObjectLockConfiguration><Rule><DefaultRetention>%s<DefaultEventHold><Years>99</Years>" +
		"</DefaultEventHold></DefaultRetention></Rule></ObjectLockConfiguration>"

	for _, row := range []struct {
		name, method, query, body string
		header                    http.Header
		needsLock                 bool
	}{
		{"event hold", "PUT", "/k?retention", "<Retention><EventHold>ON</EventHold></Retention>", nil, true},
		{
			"event hold, governed", "PUT", "/k?retention",
			"<Retention><Mode>GOVERNANCE</Mode><EventHold>ON</EventHold></Retention>", nil, false,
		},
		{"release", "PUT", "/k?retention", "<Retention><EventHold>OFF</EventHold></Retention>", nil, false},
		{
			"duration of an event hold", "PUT", "/k?retention",
			"<Retention><EventHoldDuration><Years>99</Years></EventHoldDuration></Retention>", nil, true,
		},
		{"event hold of the bucket", "PUT", "?object-lock", fmt.Sprintf(byDefaultHeld, ""), nil, true},
		{
			"event hold of the bucket, governed", "PUT", "?object-lock",
			fmt.Sprintf(byDefaultHeld, "<Mode>GOVERNANCE</Mode>"), nil, false,
		},
		{"PUT with an event hold", "PUT", "/k", "text", hold("", "ON"), true},
		{"PUT with a duration", "PUT", "/k", "text", hold("-Duration-Years", "99"), true},
		{"PUT without an event hold", "PUT", "/k", "text", hold("", "OFF"), false},
		{"PUT with a governed event hold", "PUT", "/k", "text", hold("", "ON", "GOVERNANCE"), false},
		{"PUT with a locked event hold", "PUT", "/k", "text", hold("", "OFF", "COMPLIANCE"), true},
		{"retention", "PUT", "/k?retention", retention("COMPLIANCE"), nil, true},
		{
			"retention in a namespace", "PUT", "/k?retention",
			`<x:Retention xmlns:x="y"><x:Mode> COMPLIANCE</x:Mode></x:Retention>`, nil, true,
		},
		{
			"retention with two modes", "PUT", "/k?retention",
			"<Retention><Mode>COMPLIANCE</Mode><Mode>GOVERNANCE</Mode></Retention>", nil, true,
		},
		{"another mode", "PUT", "/k?retention", retention("GOVERNANCE"), nil, false},
		{"no mode", "PUT", "/k?retention", "<Retention/>", nil, false},
		{"PUT", "PUT", "/k", "text", header("COMPLIANCE"), true},
		{"PUT in small letters", "PUT", "/k", "text", header("compliance"), true},
		{"PUT in another mode", "PUT", "/k", "text", header("GOVERNANCE"), false},
		{"copy", "PUT", "/k", "", copied, true},
		{"create", "POST", "/k?uploads", "", header("COMPLIANCE"), true},
		{"of the bucket", "PUT", "?object-lock", byDefault("COMPLIANCE"), nil, true},
		{"of the bucket, in another mode", "PUT", "?object-lock", byDefault("GOVERNANCE"), nil, false},
	} {
		without := own(access.Read, access.Write, access.Delete, access.List, access.Admin)
		decides(t, row.name, !row.needsLock, without, row.method, row.query, row.body, row.header)
		if row.name != "copy" && row.name != "create" { // these need more answers than this store gives
			with := own(access.Write, access.Admin, access.Lock)
			decides(t, row.name+", with lock", true, with, row.method, row.query, row.body, row.header)
		}
	}
}

// Who may write must not be able to release an event hold.
func TestEventHoldNeedsAdmin(t *testing.T) {
	for name, doc := range map[string]string{
		"release":  "<Retention><EventHold>OFF</EventHold></Retention>",
		"shorten":  "<Retention><EventHoldDuration><Days>1</Days></EventHoldDuration></Retention>",
		"governed": "<Retention><Mode>GOVERNANCE</Mode><EventHold>OFF</EventHold></Retention>",
	} {
		decides(t, name, false, own(access.Write, access.Lock), "PUT", "/k?retention", doc, nil)
		decides(t, name+" by admin", true, own(access.Write, access.Lock, access.Admin), "PUT", "/k?retention", doc, nil)
	}
}

// The headers and the default of an event hold reach the store, from each
// operation that has them.
func TestEventHoldIsForwarded(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	header := http.Header{
		"X-Amz-Object-Lock-Mode":                     {"GOVERNANCE"},
		"X-Amz-Object-Lock-Event-Hold":               {"ON"},
		"X-Amz-Object-Lock-Event-Hold-Duration-Days": {"30"},
	}
	copied := header.Clone()
	copied.Set("X-Amz-Copy-Source", p.bucket+"/k")
	for name, r := range map[string]request{
		"PutObject":             {method: "PUT", path: "/" + p.bucket + "/new", header: header, body: []byte("x")},
		"CopyObject":            {method: "PUT", path: "/" + p.bucket + "/copy", header: copied},
		"CreateMultipartUpload": {method: "POST", path: "/" + p.bucket + "/parts?uploads", header: header},
	} {
		t.Run(name, func(t *testing.T) {
			taken := p.record()
			p.send(r) // versitygw may refuse it: this bucket has no object lock
			for _, sent := range taken() {
				if sent.Method != r.method {
					continue
				}
				for name, values := range header {
					if sent.Header.Get(name) != values[0] {
						t.Errorf("%s %s has %s %q", sent.Method, sent.URL, name, sent.Header.Get(name))
					}
				}
				return
			}
			t.Error("the store was not asked")
		})
	}

	const doc = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>" +
		"<DefaultEventHold><Days>7</Days></DefaultEventHold></DefaultRetention></Rule></ObjectLockConfiguration>"
	var got string
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		got = string(body)
		return &http.Response{
			StatusCode: 200, Header: http.Header{"X-Amz-Request-Id": {"1"}}, Body: http.NoBody, Request: r,
		}, err
	}, nil)
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "?object-lock", body: []byte(doc),
	}); a.StatusCode != 200 || got != doc {
		t.Errorf("%d %s; the store got %s", a.StatusCode, a.body, got)
	}
}

// A namespace for a new bucket reaches the store.
func TestBucketNamespaceIsForwarded(t *testing.T) {
	p := newProxy(t)
	taken := p.record()
	a := p.send(request{
		method: "PUT", path: "/test-111122223333-us-east-1-an",
		header: http.Header{"X-Amz-Bucket-Namespace": {"account-regional"}},
	})
	sent := taken()
	if a.StatusCode != 200 || len(sent) != 1 || sent[0].Header.Get("X-Amz-Bucket-Namespace") != "account-regional" {
		t.Errorf("%d %s; the store got %v", a.StatusCode, a.body, sent)
	}
}

func TestComplianceModeInForms(t *testing.T) {
	p := newProxy(t, withClients(own(access.Write, access.Admin)))
	u := p.form("k", []byte("x"))
	u.access = readerAccess
	u.fields["x-amz-object-lock-mode"], u.fields["x-amz-object-lock-retain-until-date"] = "COMPLIANCE", "2099-01-01T00:00:00Z"
	p.origin.take()
	if resp, answer := u.post(); resp.StatusCode != http.StatusForbidden {
		t.Errorf("%d %s", resp.StatusCode, answer)
	}
	if asked := p.origin.take(); len(asked) > 0 {
		t.Errorf("the store was asked %q", asked)
	}
}

// The store writes to the target of a configuration with the proxy's
// permissions, so the client needs a grant for the target. Opening a bucket
// to others than the proxy needs a separate action.
func TestAdminIsNoConfusedDeputy(t *testing.T) {
	replication := func(bucket, more string) string {
		return "<ReplicationConfiguration><Role>r</Role><Rule><Status>Enabled</Status><Filter><Prefix>Bucket</Prefix></Filter><Destination><Bucket>" +
			bucket + "</Bucket>" + more + "</Destination></Rule></ReplicationConfiguration>"
	}
	logging := func(bucket, more string) string {
		return "<BucketLoggingStatus><LoggingEnabled><TargetBucket>" + bucket + "</TargetBucket><TargetPrefix>p</TargetPrefix>" + more + "</LoggingEnabled></BucketLoggingStatus>"
	}

	inventory := func(bucket string) string {
		return "<InventoryConfiguration><Destination><S3BucketDestination><Bucket>" + bucket + "</Bucket></S3BucketDestination></Destination></InventoryConfiguration>"
	}
	analytics := func(bucket string) string {
		return "<AnalyticsConfiguration><StorageClassAnalysis><DataExport><Destination><S3BucketDestination><Bucket>" + bucket +
			"</Bucket></S3BucketDestination></Destination></DataExport></StorageClassAnalysis></AnalyticsConfiguration>"
	}

	block := func(last string) string {
		return "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>" +
			"<BlockPublicPolicy>true</BlockPublicPolicy>" + last + "</PublicAccessBlockConfiguration>"
	}

	const theirs, ours = "arn:aws:s3:::victim-bucket", "arn:aws:s3:::logs-bucket"
	// To whom it is refused: no one, admin, everyone except store_admin.
	const never, target, store = 0, 1, 2
	for _, row := range []struct {
		name, method, query, body string
		needs                     int
	}{
		{"replication elsewhere", "PUT", "?replication", replication(theirs, ""), target},
		{"replication in another partition", "PUT", "?replication", replication("arn:aws-cn:s3:::victim-bucket", ""), target},
		{
			"replication with a comment", "PUT", "?replication", replication("<!-- -->arn:aws:s3:::victim<!-- -->-bucket", ""),
			target,
		},
		{"replication", "PUT", "?replication", replication(ours, ""), never},
		{
			"replication to another owner", "PUT", "?replication",
			replication(ours, "<AccessControlTranslation><Owner>Destination</Owner></AccessControlTranslation>"), store,
		},
		{
			"replication to an access point", "PUT", "?replication",
			replication("arn:aws:s3:eu-west-1:111122223333:accesspoint/a", ""), store,
		},
		{"logs elsewhere", "PUT", "?logging", logging("victim-bucket", ""), target},
		{"logs", "PUT", "?logging", logging("logs-bucket", ""), never},
		{"logs to itself", "PUT", "?logging", logging("OWN", ""), never},
		{"logs for others", "PUT", "?logging", logging("logs-bucket", "<TargetGrants><Grant/></TargetGrants>"), store},
		{"no logs", "PUT", "?logging", "<BucketLoggingStatus/>", never},
		{"inventory elsewhere", "PUT", "?inventory&id=a", inventory(theirs), target},
		{"inventory", "PUT", "?inventory&id=a", inventory(ours), never},
		{"analytics elsewhere", "PUT", "?analytics&id=a", analytics(theirs), target},
		{"analytics", "PUT", "?analytics&id=a", analytics(ours), never},
		{
			"notifications", "PUT", "?notification",
			"<NotificationConfiguration><TopicConfiguration><Topic>arn:aws:sns:r:a:t</Topic></TopicConfiguration></NotificationConfiguration>",
			store,
		},
		{"no notifications", "PUT", "?notification", "<NotificationConfiguration/>", never},
		{"a policy", "PUT", "?policy", `{"Statement":[]}`, store},
		{"no policy", "DELETE", "?policy", "", store},
		{"a website", "PUT", "?website", "<WebsiteConfiguration/>", store},
		{"access by tags", "PUT", "?abac", "<AbacStatus/>", store},
		{
			"a whole block of public access", "PUT", "?publicAccessBlock",
			block("<RestrictPublicBuckets>true</RestrictPublicBuckets>"), never,
		},
		{
			"half a block of public access", "PUT", "?publicAccessBlock",
			block("<RestrictPublicBuckets>false</RestrictPublicBuckets>"), store,
		},
		{
			"a block that says two things", "PUT", "?publicAccessBlock",
			block("<RestrictPublicBuckets>true</RestrictPublicBuckets><BlockPublicAcls>false</BlockPublicAcls>"), store,
		},
		{"less than a block of public access", "PUT", "?publicAccessBlock", block(""), store},
		{"no block of public access", "DELETE", "?publicAccessBlock", "", store},
	} {
		admin := own(access.Read, access.Write, access.Delete, access.List, access.Admin, access.Lock)
		decides(t, row.name, row.needs == never, admin, row.method, row.query, row.body, nil)
		decides(
			t,
			row.name+", with store_admin",
			row.needs != target,
			own(access.Admin, access.StoreAdmin),
			row.method,
			row.query,
			row.body,
			nil,
		)
	}
}
