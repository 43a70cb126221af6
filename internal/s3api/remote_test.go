package s3api_test

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// everyone is no valid setting, but tests need proxies with many addresses.
var everyone = clientaddr.Proxies{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/2")}

// proxyHeader is a PROXY protocol header.
const proxyHeader = "PROXY TCP4 203.0.113.7 10.0.0.1 5000 443\r\n"

func withProxyProtocol(l net.Listener) net.Listener {
	return &clientaddr.Listener{
		Listener: l, Trusted: clientaddr.Proxies{netip.MustParsePrefix("127.0.0.1/32")}, Timeout: time.Minute,
		Refused: func(net.Addr, error, error) {},
	}
}

// TestRemote: the client's address in the log and in the audit log is from
// X-Forwarded-For only if a trusted proxy sent it. The store never gets it.
func TestRemote(t *testing.T) {
	loopback := clientaddr.Proxies{netip.MustParsePrefix("127.0.0.1/32")}
	for _, row := range []struct {
		name      string
		trusted   clientaddr.Proxies
		forwarded []string
		want      string // "" for the TCP peer
	}{
		{"from a trusted proxy", loopback, []string{"198.51.100.1, 203.0.113.7"}, "203.0.113.7"},
		{"from a trusted proxy, in several headers", loopback, []string{"198.51.100.1", "203.0.113.7, 127.0.0.1"}, "203.0.113.7"},
		{"malformed", loopback, []string{"203.0.113.7 injected"}, ""},
		{"from someone else", clientaddr.Proxies{netip.MustParsePrefix("10.0.0.0/8")}, []string{"203.0.113.7"}, ""},
		{"no proxies are trusted", nil, []string{"203.0.113.7"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			records := newAuditLog(t)
			p := newProxy(t, records.option, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
				cfg.TrustedProxies = row.trusted
			})
			var sent http.Header
			p.origin.fault = func(r *http.Request) (*http.Response, error) {
				sent = r.Header.Clone()
				return nil, nil
			}

			header := http.Header{
				"X-Forwarded-For": row.forwarded, "Forwarded": {"for=198.51.100.9"}, "X-Real-Ip": {"198.51.100.9"},
				"X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"elsewhere"},
			}
			a := p.send(request{method: "PUT", path: "/" + p.bucket + "/k", header: header, body: []byte("x")})
			if a.StatusCode != http.StatusOK {
				t.Fatal(a.StatusCode, string(a.body))
			}
			for name := range sent {
				if strings.Contains(name, "Forwarded") || name == "X-Real-Ip" {
					t.Errorf("the store gets %s: %s", name, sent.Get(name))
				}
			}

			p.waitForLog(`"operation":"PutObject"`, func() bool { return true })
			want := `"remote":"127.0.0.1:`
			if row.want != "" {
				want = `"remote":"` + row.want + `"`
			}
			for name, text := range map[string]string{"log": p.log.String(), "audit log": records.text()} {
				if !strings.Contains(text, want) || strings.Contains(text, "198.51.100") || strings.Contains(text, "injected") {
					t.Errorf("the %s has not %s, or what the client sent: %s", name, want, text)
				}
			}
		})
	}
}
