package rewrap_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// RGW drops the tags of a copy with new metadata, so an object with tags is
// not moved with a copy there.
func TestTagsThatACopyWouldDrop(t *testing.T) {
	for name, row := range map[string]struct {
		rgw    bool
		count  string
		method rewrap.Method
		copied bool
	}{
		"RGW":                 {rgw: true, count: "2", method: rewrap.Copy},
		"RGW without tags":    {rgw: true, method: rewrap.Copy, copied: true},
		"RGW with 0 tags":     {rgw: true, count: "0", method: rewrap.Copy, copied: true},
		"another store":       {count: "2", method: rewrap.Copy, copied: true},
		"RGW with method put": {rgw: true, count: "2", method: rewrap.Put},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, localKey(t))
			l.cfg.Method = row.method
			copied := false
			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				copied = copied || r.Header.Get("X-Amz-Copy-Source") != ""
				resp, err := send(r)
				if err == nil && r.Method == http.MethodHead {
					if row.rgw {
						resp.Header.Set("X-Rgw-Object-Type", "Normal")
					}
					if row.count != "" {
						resp.Header.Set("X-Amz-Tagging-Count", row.count)
					}
				}
				return resp, err
			}

			got := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key})
			if copied != row.copied {
				t.Errorf("copied: %t", copied)
			}
			if refused := row.method == rewrap.Copy && !row.copied; refused &&
				(got.Outcome != walk.Failed || !strings.Contains(got.Err.Error(), "--method put")) {
				t.Errorf("%+v", got)
			} else if !refused && got.Outcome != walk.Done {
				t.Errorf("%+v", got)
			}
		})
	}
}
