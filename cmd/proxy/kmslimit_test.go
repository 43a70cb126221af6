package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// The limit of KMS calls is shown beside the time that calls waited for it.
func TestLimitIsMeasured(t *testing.T) {
	k := newAWSKey(t)
	b, _ := buildRing(t, k.Key)
	b.limitsOf(b.cfg.KMS, k.Key).OnWait(3 * time.Second)
	b.limitsOf(b.cfg.KMS, k.Key).OnWait(time.Second)

	w := httptest.NewRecorder()
	b.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		"cmekproxy_kms_max_per_second 1000\n",
		"cmekproxy_kms_limit_waits_total{key=\"app\"} 2\n",
		"cmekproxy_kms_limit_wait_seconds_total{key=\"app\"} 4\n",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestCheckTellsWhatLimitsPUTs(t *testing.T) {
	reuse := config.DEKReuse{MaxAge: time.Hour, MaxObjects: 1, MaxBytes: 1}
	for _, row := range []struct {
		name  string
		rules []config.Rule
		want  string
	}{
		{"no reuse", []config.Rule{{Key: "far"}, {Key: "far"}}, "note  no dek_reuse in a rule for far: "},
		{"reuse in one rule", []config.Rule{{Key: "far", DEKReuse: reuse}, {Key: "far"}}, "for far: "},
		{"tenants", []config.Rule{{Tenants: true}, {Key: "far"}}, "for tenant, far: "},
		{"at most the limit", []config.Rule{{Key: "far"}}, "at most 700 PUTs a second can start (kms.max_per_second)\n"},
		{"reuse", []config.Rule{{Key: "far", DEKReuse: reuse}}, ""},
		{"a local key", []config.Rule{{Key: "near"}}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			(&checker{out: &out}).reuse(&config.Config{
				Keys:       []config.Key{{Name: "far", Provider: config.AWSKMS}, {Name: "near", Provider: config.Local}},
				KMS:        config.KMS{MaxPerSecond: 700},
				Encryption: config.Encryption{Rules: row.rules},
			})
			if got := out.String(); !strings.Contains(got, row.want) || row.want == "" && got != "" {
				t.Errorf("%q, want %q in it", got, row.want)
			}
		})
	}
}
