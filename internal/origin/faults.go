package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"syscall"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// describe wraps the error of a request in a storefault.Error with the
// address and with what to check. It returns err unchanged if the request
// was canceled, or if the error may be that of the request's body.
func describe(r *http.Request, err error) error {
	kind, hint := explainConnection(err)
	switch {
	case r.Context().Err() != nil:
		return err
	case kind == "" && (r.Body == nil || r.Body == http.NoBody):
		kind = storefault.Broken
	case kind == "":
		return err
	}

	return &storefault.Error{
		Kind: kind,
		What: r.URL.Scheme + "://" + r.URL.Host + ": " + err.Error(),
		Hint: hint,
		// A certificate stays wrong until somebody changes it.
		Temporary: kind != storefault.TLS,
		// No request was sent without a connection.
		NotDone: kind == storefault.Unreachable || kind == storefault.TLS,
		Cause:   err,
	}
}

// KindOf returns the kind of an error of a connection, such as one while a
// response is read; "" if it need not be one.
func KindOf(err error) storefault.Kind {
	kind, _ := explainConnection(err)
	return kind
}

// explainConnection returns the kind of an error, and what to check. The
// kind is "" if the error need not be one of the connection to the store.
func explainConnection(err error) (storefault.Kind, string) {
	switch {
	case errors.Is(err, ErrConnect):
		return storefault.Timeout, "check origin.endpoint, and firewalls"
	case errors.Is(err, ErrResponse), errors.Is(err, ErrIdle):
		return storefault.Timeout, "the store is overloaded or hangs"
	case errors.Is(err, ErrBroken), errors.Is(err, ErrExpectation):
		return storefault.Broken, ""
	}

	if hint := explainTLS(err); hint != "" {
		return storefault.TLS, hint
	}
	return explainDial(err)
}

// explainTLS returns what to check after a failed TLS handshake; "" for
// other errors.
func explainTLS(err error) string {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var verification *tls.CertificateVerificationError

	switch {
	case errors.As(err, &authority):
		return "if the store's certificate is from an authority of your own, name its file in origin.ca_file"
	case errors.As(err, &name):
		return "the certificate is for other names: check the host in origin.endpoint; " +
			"with origin.path_style false it needs a name for each bucket"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the store's certificate, or set the clock of the proxy's machine"
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return "the server speaks HTTP without TLS: use http:// in origin.endpoint"
	case errors.As(err, &record):
		return "the server does not speak TLS: check the scheme and port in origin.endpoint"
	case errors.As(err, &invalid), errors.As(err, &alert), errors.As(err, &verification):
		return "the TLS handshake with the store failed: check its certificate and origin.endpoint"
	default:
		return ""
	}
}

// explainDial returns the kind of an error before there was a connection,
// and what to check.
func explainDial(err error) (storefault.Kind, string) {
	var dial *net.OpError
	var host *net.DNSError
	switch {
	case errors.As(err, &host):
		return storefault.Unreachable, "check the host in origin.endpoint and the DNS; " +
			"with origin.path_style false each bucket needs a name there"
	case !errors.As(err, &dial):
		return "", ""
	case dial.Op == "proxyconnect":
		return storefault.Unreachable, "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
	case dial.Op != "dial":
		return "", ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return storefault.Unreachable, "nothing listens there: check origin.endpoint, and whether the store runs"
	case errors.Is(err, context.DeadlineExceeded), dial.Timeout():
		return storefault.Timeout, "check origin.endpoint, and firewalls"
	default:
		return storefault.Unreachable, "check origin.endpoint and the network"
	}
}
