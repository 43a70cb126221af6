package main

import (
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
	"github.com/cmekproxy/cmekproxy/internal/config"
)

// trustedProxies returns the networks of a valid configuration.
func trustedProxies(networks []string) (proxies clientaddr.Proxies) {
	for _, network := range networks {
		proxies = append(proxies, netip.MustParsePrefix(network))
	}
	return proxies
}

// s3Listener returns a listener for the S3 port. Connections take their place
// before the PROXY protocol header is read, so that clients that do not send
// it are limited too.
func (s *server) s3Listener(l net.Listener) net.Listener {
	l = s.open.limited(l)
	if s.cfg.ProxyProtocol != config.Required {
		return l
	}

	log := s.log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
	}))
	return &clientaddr.Listener{
		Listener: l,
		Trusted:  trustedProxies(s.cfg.TrustedProxies),
		Timeout:  s.cfg.Limits.HeaderTimeout,
		Refused: func(peer net.Addr, reason, details error) {
			log.Warn(
				"proxy_protocol: "+reason.Error()+", and was closed; this is logged once a minute",
				zap.Stringer("peer", peer),
				zap.Error(details),
			)
		},
	}
}
