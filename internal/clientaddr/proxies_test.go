package clientaddr_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
)

func trusted(networks ...string) (proxies clientaddr.Proxies) {
	for _, network := range networks {
		proxies = append(proxies, netip.MustParsePrefix(network))
	}
	return proxies
}

func TestClient(t *testing.T) {
	const peer = "10.0.0.1:4711"
	proxies := trusted("10.0.0.0/24", "fd00::/64", "fe80::/10")
	for _, row := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"no header", peer, nil, peer},
		{"one address", peer, []string{"203.0.113.7"}, "203.0.113.7"},
		{"what the client sent itself is before it", peer, []string{"127.0.0.1, 198.51.100.1, 203.0.113.7"}, "203.0.113.7"},
		{"several proxies", peer, []string{"203.0.113.7, 10.0.0.3 ,10.0.0.2"}, "203.0.113.7"},
		{"several headers", peer, []string{"198.51.100.1", "203.0.113.7", "10.0.0.2"}, "203.0.113.7"},
		{"only proxies", peer, []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"with a port", peer, []string{"203.0.113.7:5000"}, "203.0.113.7:5000"},
		{"IPv6", peer, []string{"2001:db8::7"}, "2001:db8::7"},
		{"IPv6 in another spelling", peer, []string{"2001:0DB8:0::0:7"}, "2001:db8::7"},
		{"IPv6 in brackets", peer, []string{"[2001:db8::7]"}, "2001:db8::7"},
		{"IPv6 with a port", peer, []string{"[2001:db8::7]:5000"}, "[2001:db8::7]:5000"},
		{"IPv4 as IPv6", peer, []string{"::ffff:203.0.113.7"}, "203.0.113.7"},
		{"a proxy as IPv6", "[::ffff:10.0.0.1]:4711", []string{"203.0.113.7, ::ffff:10.0.0.2"}, "203.0.113.7"},
		{"a peer with a zone", "[fe80::1%eth0]:4711", []string{"203.0.113.7"}, "203.0.113.7"},

		{"from another peer", "10.0.1.1:4711", []string{"203.0.113.7"}, "10.0.1.1:4711"},
		{"not an address", peer, []string{"unknown"}, peer},
		{"not an address behind a proxy", peer, []string{"203.0.113.7, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"empty", peer, []string{""}, peer},
		{"an empty element", peer, []string{"203.0.113.7,,10.0.0.2"}, "10.0.0.2"},
		{"an attack on the log", peer, []string{"203.0.113.7\",\"client\":\"admin"}, peer},
		{"a zone, which can be any text", peer, []string{"fe80::1%any text"}, peer},
		{"a zone behind a proxy", peer, []string{"[fe80::1%eth0]:1, 10.0.0.2"}, "10.0.0.2"},
		{"an open bracket", peer, []string{"[2001:db8::7"}, peer},
		{"a host name", peer, []string{"client.example.com"}, peer},
		{"a network", peer, []string{"203.0.113.0/24"}, peer},
		{"very long", peer, []string{strings.Repeat("10.0.0.2,", 4000) + "x"}, peer},
		{"an address that is not known", "@", []string{"203.0.113.7"}, "@"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := proxies.Client(row.remote, row.forwarded); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
			if got := clientaddr.Proxies(nil).Client(row.remote, row.forwarded); got != row.remote {
				t.Errorf("without trusted proxies: %q", got)
			}
		})
	}
}

// TestClientAllocates: only the text of an address that was found.
func TestClientAllocates(t *testing.T) {
	proxies, forwarded := trusted("10.0.0.0/24", "fd00::/64"), []string{"198.51.100.1, 203.0.113.7, 10.0.0.2"}
	for _, row := range []struct {
		name, remote string
		proxies      clientaddr.Proxies
		forwarded    []string
		want         float64
	}{
		{"off", "10.0.0.1:4711", nil, forwarded, 0},
		{"no header", "10.0.0.1:4711", proxies, nil, 0},
		{"another peer", "192.0.2.1:4711", proxies, forwarded, 0},
		{"on", "10.0.0.1:4711", proxies, forwarded, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, func() { row.proxies.Client(row.remote, row.forwarded) }); n > row.want {
				t.Errorf("%v allocations, want %v", n, row.want)
			}
		})
	}
}

func TestIsLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.1": true, "::1": true, "::ffff:127.0.0.1": true, "10.0.0.1": false, "0.0.0.0": false,
	} {
		if got := clientaddr.IsLoopback(&net.TCPAddr{IP: net.ParseIP(address)}); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if clientaddr.IsLoopback(&net.UnixAddr{Name: "127.0.0.1:1"}) {
		t.Error("a Unix socket is no TCP peer")
	}
}
