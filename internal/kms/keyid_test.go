package kms_test

import (
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func TestSameKey(t *testing.T) {
	const mrk = "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
	const single = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	in := func(arn, from, to string) string { return strings.Replace(arn, from, to, 1) }
	for _, c := range []struct {
		name, a, b string
		want       bool
	}{
		{"the same", mrk, mrk, true},
		{"a replica", mrk, in(mrk, "eu-central-1", "us-gov-west-1"), true},
		{"another account", mrk, in(mrk, "1111", "9999"), false},
		{"another account and region", mrk, in(in(mrk, "1111", "9999"), "eu-central-1", "us-east-1"), false},
		{"another partition", mrk, in(mrk, "arn:aws:", "arn:aws-cn:"), false},
		{"another multi-Region key", mrk, in(mrk, "1234abcd", "00000000"), false},
		{"another service", mrk, in(mrk, ":kms:", ":s3:"), false},
		{"an alias of that name", mrk, in(mrk, ":key/", ":alias/"), false},
		{"more behind the id", mrk, mrk + "0", false},
		{"two lines", mrk, "x\n" + in(mrk, "eu-central-1", "us-east-1"), false},
		{"a key of one region, elsewhere", single, in(single, "eu-central-1", "us-east-1"), false},
		{"a key of one region", single, single, true},
		{"no ARN", "vault:transit/hr", "vault:transit/hr", true},
		{"mrk- alone", mrk[strings.LastIndexByte(mrk, '/')+1:], mrk, false},
	} {
		if got := kms.SameKey(c.a, c.b); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if got := kms.SameKey(c.b, c.a); got != c.want {
			t.Errorf("%s, the other way: %v, want %v", c.name, got, c.want)
		}
	}
}
