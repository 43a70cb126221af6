package config

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// checkListeners checks the listen addresses for conflicts. Listeners other
// than the S3 port may share an address if the text is identical.
func (d *decoder) checkListeners(c *Config) {
	type listener struct {
		field      *string
		name, host string
		port       uint64
	}

	var before []listener
	for _, l := range []listener{
		{field: &c.Listen, name: "listen"},
		{field: &c.AdminListen, name: "admin_listen"},
		{field: &c.HealthListen, name: "health_listen"},
		{field: &c.MetricsListen, name: "metrics_listen"},
	} {
		if *l.field == "" && (l.name == "health_listen" || l.name == "metrics_listen") {
			continue
		}

		var ok bool
		if l.host, l.port, ok = d.listenAddress(l.field, l.name); !ok {
			continue
		}

		for _, other := range before {
			shared := *l.field == *other.field && other.name != "listen"
			if l.port == other.port && l.port != 0 && overlap(l.host, other.host) && !shared { // port 0: any free port
				d.fail(l.field, "%s must be a different address than %s", l.name, other.name)
			}
		}

		before = append(before, l)
	}
}

func (d *decoder) listenAddress(field *string, name string) (host string, port uint64, ok bool) {
	host, portText, err := net.SplitHostPort(*field)
	if err == nil {
		port, err = strconv.ParseUint(portText, 10, 16)
	}
	if err != nil {
		d.fail(field, "%s must be HOST:PORT, such as 127.0.0.1:9000 or :9000", name)
		return "", 0, false
	}

	return host, port, true
}

// overlap reports whether sockets on the two hosts would conflict.
func overlap(a, b string) bool {
	return a == b || wildcard(a) || wildcard(b) || loopback(a) && loopback(b) && (a == "localhost" || b == "localhost")
}

func wildcard(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || err == nil && addr.IsUnspecified()
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// checkEndpoint checks the URL of a server. The caller must check for an
// empty one.
func (d *decoder) checkEndpoint(field *string, name string) {
	if *field == "" {
		return
	}

	u, err := url.Parse(*field)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", !portOK(u):
		d.fail(field, "%s must be a URL such as https://s3.example.com or http://127.0.0.1:7070", name)
	case u.User != nil:
		d.fail(field, "%s must not contain credentials", name)
	case u.Path != "" || strings.ContainsAny(*field, "?#"):
		d.fail(field, "%s must end after the host and port, without a path or a slash", name)
	}
}

func portOK(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port > 0
}

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (d *decoder) checkDomain(domain *string) {
	_, err := netip.ParseAddr(*domain)
	switch {
	case err == nil:
		d.fail(domain, "a domain must be a name, not an IP address")
	case len(*domain) > 253 || !domainForm.MatchString(*domain):
		d.fail(domain, "a domain must be a host name in lower case, such as s3.example.com, without a port")
	}
}

// checkProxies checks trusted_proxies and proxy_protocol.
func (d *decoder) checkProxies(c *Config) {
	for i := range c.TrustedProxies {
		d.checkNetwork(&c.TrustedProxies[i])
	}
	if c.ProxyProtocol == Required && len(c.TrustedProxies) == 0 && !d.failed[&c.TrustedProxies] {
		d.fail(&c.ProxyProtocol, "proxy_protocol: required needs trusted_proxies: the networks of the load balancers "+
			"that send the header")
	}
}

func (d *decoder) checkNetwork(field *string) {
	network, err := netip.ParsePrefix(*field)
	switch {
	case err != nil:
		const one = "trusted_proxies must have networks such as 10.1.0.0/24; a single address is written as %s"
		if addr, err := netip.ParseAddr(*field); err == nil && addr.Zone() == "" && !addr.Is4In6() {
			d.fail(field, one, netip.PrefixFrom(addr, addr.BitLen()))
		} else {
			d.fail(field, one, "10.1.0.7/32")
		}
	case network.Addr().Is4In6():
		d.fail(field, "a network of IPv4 addresses must be written as such, for example 10.1.0.0/24")
	case network.Bits() == 0:
		d.fail(field, "this network has all addresses: any client could claim to have another address; list the "+
			"networks of the load balancers")
	case network != network.Masked():
		d.fail(field, "this is not the beginning of a network: write %s, or a single address with /%d",
			network.Masked(), network.Addr().BitLen())
	}
}
