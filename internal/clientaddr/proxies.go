// Package clientaddr finds the addresses of clients behind load balancers and
// other proxies.
//
// A proxy says the address in the X-Forwarded-For header of each request
// (proxies.go), or in a PROXY protocol header at the beginning of each
// connection (listener.go). Anyone can send either, so they are used only if
// the peer of the TCP connection is one of the trusted proxies.
//
// An address found so is for logs. Whether a request comes from this machine
// is decided by the peer of the TCP connection: see TCP.
package clientaddr

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Proxies are the networks of the proxies that are trusted to say the address
// of their client. Nil means that there are none.
type Proxies []netip.Prefix

// Trust reports whether addr is one of the proxies.
func (p Proxies) Trust(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(p, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// Client returns the address of the client of a request. remote is the
// request's RemoteAddr, and forwarded the values of its X-Forwarded-For.
//
// Each proxy adds the address of its peer at the end, so the header is read
// backwards while the addresses are those of trusted proxies. The first other
// one is the client. If there is none, it is the address that is farthest
// away. Text that is not an address ends the reading, and is never returned.
//
// The result has a port only if the port is known.
func (p Proxies) Client(remote string, forwarded []string) string {
	if len(p) == 0 || len(forwarded) == 0 {
		return remote
	}
	peer, err := netip.ParseAddrPort(remote)
	if err != nil || !p.Trust(peer.Addr()) {
		return remote
	}

	var client netip.AddrPort // of port 0 if the port is not known
	for _, line := range slices.Backward(forwarded) {
		for more := true; more; {
			var last string
			line, last, more = cutLast(line)
			addr, ok := parseAddress(last)
			if ok {
				client = addr
			}
			if !ok || !p.Trust(addr.Addr()) {
				return textOf(client, remote)
			}
		}
	}
	return textOf(client, remote)
}

// cutLast takes the last element off a list.
func cutLast(list string) (rest, last string, more bool) {
	comma := strings.LastIndexByte(list, ',')
	if comma < 0 {
		return "", list, false
	}
	return list[:comma], list[comma+1:], true
}

// parseAddress parses an element of X-Forwarded-For. Some proxies add the
// port, and some put IPv6 addresses in brackets. A zone means nothing on this
// machine, and can be any text.
func parseAddress(text string) (addr netip.AddrPort, ok bool) {
	text = strings.TrimSpace(text)
	bare := text
	if inside, ok := strings.CutPrefix(text, "["); ok {
		if inside, ok = strings.CutSuffix(inside, "]"); ok {
			bare = inside
		}
	}

	if ip, err := netip.ParseAddr(bare); err == nil { // the most common, so that no error is allocated
		addr = netip.AddrPortFrom(ip, 0)
	} else if addr, err = netip.ParseAddrPort(text); err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), addr.Addr().Zone() == ""
}

func textOf(addr netip.AddrPort, otherwise string) string {
	switch {
	case !addr.IsValid():
		return otherwise
	case addr.Port() == 0:
		return addr.Addr().String()
	default:
		return addr.String()
	}
}

// IsLoopback reports whether addr is a loopback address of this machine.
func IsLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
