package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
)

// server tests what serve needs apart from keys and store. Then it builds the
// server as serve does, and prints what is unusual about its keys.
func (c *checker) server(ctx context.Context, cfg *config.Config) {
	if ctx.Err() != nil {
		return
	}
	c.tenants(cfg)
	c.audit(cfg.Audit)
	c.certificate(cfg.TLS)
	for _, name := range shortSecrets(cfg.Clients) {
		c.remark("warn", checkClientSecret, "client %s: secret_key has fewer than %d characters", name, goodSecret)
	}
	c.ports(ctx, cfg)

	s, err := newServer(ctx, cfg, zap.NewNop(), "")
	switch {
	case ctx.Err() != nil:
		if err == nil {
			s.close()
		}
		return
	case err != nil:
		c.line(checkServer, err, "server")
		return
	}
	defer s.close()
	c.tracing(ctx, s.tracer, cfg.Tracing.Endpoint)

	for _, pair := range s.keys.Twins() {
		c.remark("note", checkKMSKey, "keys %s and %s are the same KMS key: objects under it are opened through %s",
			pair[0], pair[1], pair[0])
	}
	for _, name := range s.keys.Unread() {
		c.remark("note", checkKMSKey,
			"key %s: no rule names it (key, allowed_keys, read_keys), so objects under it cannot be read", name)
	}
}

// tenants reads the file of each tenant.
func (c *checker) tenants(cfg *config.Config) {
	if cfg.TenantsDir == "" {
		return
	}
	state := tenant.Open(cfg.TenantsDir, tenantParser(cfg)).Next()
	for _, p := range state.Problems {
		c.line(checkTenantFile, p.Err, "tenant file %q", p.Path)
	}
	c.line(checkTenantsDir, state.Err,
		"tenants_dir %s: %d tenants; their keys are not tried, as they are opened when they are used",
		cfg.TenantsDir, len(state.Tenants))
}

// reuse prints what limits the PUTs of rules without dek_reuse.
func (c *checker) reuse(cfg *config.Config) {
	local := make(map[string]bool)
	for _, key := range cfg.Keys {
		local[key.Name] = key.Provider == config.Local
	}

	var names []string
	for _, r := range cfg.Encryption.Rules {
		name := cmp.Or(r.Key, config.TenantKeys)
		if r.DEKReuse == (config.DEKReuse{}) && !local[name] && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		c.remark("note", checkReuse, "no dek_reuse in a rule for %s: each PUT waits for a call to the KMS, "+
			"and for each key at most %d PUTs a second can start (kms.max_per_second)",
			strings.Join(names, ", "), cfg.KMS.MaxPerSecond)
	}
}

// audit tests whether the audit log can be written, without changing it.
func (c *checker) audit(cfg config.Audit) {
	switch {
	case cfg.Stdout:
		c.line(checkAuditLog, nil, "audit log: standard output")
	case cfg.File == "":
		c.remark("note", checkAuditLog, "audit log: none; set audit.file or audit.stdout to record each use of a key")
	default:
		detail, err := checkAudit(cfg)
		c.line(checkAuditLog, err, "audit log %s%s", cfg.File, detail)
	}
}

// checkAudit opens the file, and writes another one beside it: if the log
// does not exist yet, or if it is renamed when it is full, the proxy creates
// a file there.
func checkAudit(cfg config.Audit) (detail string, err error) {
	dir := filepath.Dir(cfg.File)
	file, err := os.OpenFile(cfg.File, os.O_APPEND|os.O_WRONLY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if target, err := os.Readlink(cfg.File); err == nil { // serve creates the target of a symbolic link
			if !filepath.IsAbs(target) {
				target = filepath.Join(dir, target)
			}
			dir = filepath.Dir(target)
		}
		detail = ", which serve will create"
	case err != nil:
		return "", fmt.Errorf("it cannot be written: %w", err)
	default:
		if err := file.Close(); err != nil || cfg.MaxSizeMB == 0 {
			return "", err
		}
	}

	if err := tryDirectory(dir); err != nil {
		return "", fmt.Errorf("no file can be created beside it: %w", err)
	}
	return detail, nil
}

// tryDirectory writes a file into a directory, and removes it.
func tryDirectory(dir string) error {
	file, err := os.CreateTemp(dir, ".cmekproxy-check-*")
	if err != nil {
		return err
	}
	_, err = file.Write(make([]byte, 4096)) // fails on a full disk
	return errors.Join(err, file.Close(), os.Remove(file.Name()))
}

// soonExpired is the time before its end at which check warns of a
// certificate.
const soonExpired = 14 * 24 * time.Hour

// certificate checks the certificates of the S3 port.
func (c *checker) certificate(cfg config.TLS) {
	server, err := buildTLS(cfg, zap.NewNop())
	if server == nil && err == nil {
		return
	}
	if err != nil {
		c.line(checkCertificate, err, "certificate %s", cfg.CertFile)
		return
	}

	until := server.Certificate().NotAfter
	now := time.Now()
	err = validNow(cfg.CertFile, now)
	c.line(checkCertificate, err, "certificate %s, valid until %s", cfg.CertFile, until.Format(time.RFC3339))
	if err == nil && until.Before(now.Add(soonExpired)) {
		c.print(finding{
			Check: checkCertificate, Status: "warn", Action: "renew it",
			Text: fmt.Sprintf("certificate %s expires in less than 14 days", cfg.CertFile),
		})
	}
	if cfg.ClientCAFile != "" {
		c.line(checkCertificate, validNow(cfg.ClientCAFile, now), "authorities of clients %s", cfg.ClientCAFile)
	}
}

// validNow returns an error if a certificate in a PEM file, which has been
// parsed before, is not valid at a time.
func validNow(path string, now time.Time) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue // a key
		}
		switch {
		case now.After(cert.NotAfter):
			return advised{
				fmt.Errorf("the certificate of %q expired on %s", cert.Subject, cert.NotAfter.Format(time.RFC3339)),
				"renew it",
			}
		case now.Before(cert.NotBefore):
			return advised{
				fmt.Errorf("the certificate of %q is not valid before %s",
					cert.Subject, cert.NotBefore.Format(time.RFC3339)),
				"replace it, or correct the clock of this machine",
			}
		}
	}
	return nil
}

// ports tests whether serve can listen. Ports in use are in order if a proxy
// uses them, because check may run beside it.
func (c *checker) ports(ctx context.Context, cfg *config.Config) {
	var tried []string
	for _, port := range []struct{ setting, address string }{
		{"listen", cfg.Listen},
		{"admin_listen", cfg.AdminListen},
		{"health_listen", cfg.HealthListen},
		{"metrics_listen", cfg.MetricsListen},
	} {
		if port.address == "" || slices.Contains(tried, port.address) {
			continue
		}
		tried = append(tried, port.address)

		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", port.address)
		switch {
		case err == nil:
			_ = listener.Close()
			c.line(checkPort, nil, "%s %s", port.setting, port.address)
		case errors.Is(err, syscall.EADDRINUSE) && isProxy(ctx, cmp.Or(cfg.MetricsListen, cfg.AdminListen)):
			c.remark("note", checkPort, "%s %s is in use by a proxy that runs already", port.setting, port.address)
		default:
			c.line(checkPort, advised{err, portAction(port.setting, err)}, "%s %s", port.setting, port.address)
		}
	}
}

// portAction says what to do about a port that cannot be opened.
func portAction(setting string, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "end the program that uses the port, or change " + setting
	case errors.Is(err, fs.ErrPermission):
		return "change " + setting + " to a port above 1023, or give the proxy CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "change " + setting + " to an address of this machine"
	default:
		return "change " + setting
	}
}

// isProxy reports whether a proxy answers at the address of its metrics.
func isProxy(ctx context.Context, address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}

	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/metrics", nil)
	if err != nil {
		return false
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // not through an HTTP proxy
	resp, err := client.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) //nolint:forbidigo // limited
	return strings.Contains(string(text), "\ncmekproxy_")
}
