package s3api_test

import (
	"bytes"
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
	for _, row := range []struct {
		name, method, query, body string
		header                    http.Header
		needsLock                 bool
	}{
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
