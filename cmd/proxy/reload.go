package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
)

// onSignals purges all data keys on SIGUSR1, and reloads the configuration
// on SIGHUP, until ctx ends.
func (s *server) onSignals(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	go func() {
		defer signal.Stop(signals)
		secrets := time.NewTicker(secretsInterval)
		defer secrets.Stop()

		for {
			select {
			case <-ctx.Done():
				return
			case signal := <-signals:
				s.obey(ctx, signal)
			case <-secrets.C:
				s.reloadSecrets(ctx)
			}
		}
	}()
}

// secretsInterval is the interval at which the files of secrets are checked.
const secretsInterval = 5 * time.Second

func (s *server) obey(ctx context.Context, signal os.Signal) {
	switch signal {
	case syscall.SIGUSR1:
		_, _ = s.purge("", false, "SIGUSR1", "") // purge logs its result
	case syscall.SIGHUP:
		s.reopenAudit()
		s.checkFiles()
		s.reload(ctx)
	}
}

// checkFiles rereads files now instead of at their next use. Errors are
// logged.
func (s *server) checkFiles() {
	if s.tls != nil {
		_ = s.tls.Check()
	}
	s.clients.CheckSessions()
}

// reload applies the settings that can change while the proxy runs:
// dek_cache, encryption.rules, clients, admin_token, the credentials for the
// store, and the secrets of keys. It logs which other changes need a
// restart. An invalid configuration changes nothing.
func (s *server) reload(ctx context.Context) {
	if s.file == nil {
		s.log.Warn("SIGHUP: there is no configuration file to reload")
		return
	}

	if s.file.path == config.Stdin {
		s.log.Warn("SIGHUP: the configuration came from standard input, and cannot be read again")
		return
	}

	next, err := readConfig(s.file.path)
	if err == nil {
		err = s.apply(ctx, next.Config, "SIGHUP")
	}
	s.metrics.Reloaded(time.Now(), err)
	if err != nil {
		s.log.Error("config reload failed; keeping the current configuration", zap.Error(err))
		return
	}

	s.file = next
	s.log.Info(
		"configuration reloaded",
		zap.Stringer("dek_cache.ttl", next.DEKCache.TTL),
		zap.Stringer("dek_cache.revocation_probe", next.DEKCache.RevocationProbe),
		zap.Int("encryption.rules", len(next.Encryption.Rules)),
		zap.Int("clients", len(next.Clients)),
	)

	if rest := needsRestart(s.cfg, next.Config); len(rest) > 0 {
		s.log.Warn("these changes need a restart", zap.Strings("settings", rest))
	}
}

// reloadSecrets rereads the secrets that the configuration takes from files
// (file:/PATH). It uses the text of the current configuration; later edits
// of the configuration wait for SIGHUP.
func (s *server) reloadSecrets(ctx context.Context) {
	if s.file == nil {
		return
	}

	next, err := s.file.again()
	if err == nil && reflect.DeepEqual(next.Config, s.file.Config) {
		s.file.problem = ""
		return
	}
	if err == nil {
		err = s.apply(ctx, next.Config, "secret file")
	}

	if err != nil {
		if text := err.Error(); text != s.file.problem {
			s.file.problem = text
			s.log.Error("reading secrets from their files failed; keeping the ones read before", zap.Error(err))
		}
		return
	}

	s.file = next
	s.log.Info("secrets read again from their files")
	if rest := needsRestart(s.cfg, next.Config); len(rest) > 0 {
		s.log.Warn("these changes need a restart", zap.Strings("settings", rest))
	}
}

// apply applies the settings that can change. It writes the change to the
// audit log first. If that fails, nothing changes.
func (s *server) apply(ctx context.Context, next *config.Config, why string) error {
	rules, clients := buildRules(next.Encryption.Rules), accessClients(next.Clients, s.cfg.Origin.Keys)
	if f := s.tenants; f != nil {
		f.changing.Lock()
		defer f.changing.Unlock()
		if err := fitTenants(f.state.Load(), next); err != nil {
			return err
		}
		clients = s.allClients(next.Clients, f.state.Load())
	}
	if err := s.keys.CheckRules(rules); err != nil {
		return err
	}
	if _, err := access.New(clients); err != nil {
		return err
	}

	dek := next.DEKCache
	err := s.record(audit.Record{
		Event: "reload", Result: audit.OK, Operation: why,
		Detail: fmt.Sprintf(
			"dek_cache.ttl=%v dek_cache.revocation_probe=%v encryption.rules=%d clients=%d",
			dek.TTL,
			dek.RevocationProbe,
			len(rules),
			len(next.Clients),
		),
	})
	if err != nil {
		return err
	}

	if err := s.keys.SetRules(rules); err != nil {
		return err
	}
	if err := s.clients.Replace(clients); err != nil {
		return err
	}
	s.configured = next.Clients
	if s.tenants != nil {
		s.tenants.fits.Store(next)
	}
	s.adminToken.Store(&next.AdminToken)

	s.login.set(next.Origin)
	s.reopen(ctx, s.file.Config, next)
	s.cache.SetTTL(dek.TTL)
	s.cache.Resize(dek.MaxEntries)
	s.keys.SetProbe(dek.RevocationProbe)
	s.keys.SetOutageWait(dek.OutageWait)
	s.advisor.SetTTL(dek.TTL)

	return nil
}

func keysWithoutSecrets(keys []config.Key) []config.Key {
	out := make([]config.Key, len(keys))
	for i, k := range keys {
		out[i] = withoutSecrets(k)
	}
	return out
}

// needsRestart returns the names of the sections that differ and were not
// applied.
func needsRestart(old, next *config.Config) (names []string) {
	a, b := *old, *next
	b.DEKCache, b.Encryption.Rules, b.Clients = a.DEKCache, a.Encryption.Rules, a.Clients
	if a.Origin.AccessKey != "" && b.Origin.AccessKey != "" {
		b.Origin.AccessKey, b.Origin.SecretKey = a.Origin.AccessKey, a.Origin.SecretKey
	}
	b.AdminToken = a.AdminToken
	// Rules have taken these two over.
	b.Encryption.PlaintextObjects, b.Encryption.CustomerKeys = a.Encryption.PlaintextObjects, a.Encryption.CustomerKeys
	a.Keys, b.Keys = keysWithoutSecrets(a.Keys), keysWithoutSecrets(b.Keys)

	left, right := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range left.NumField() {
		if !reflect.DeepEqual(left.Field(i).Interface(), right.Field(i).Interface()) {
			name, _, _ := strings.Cut(left.Type().Field(i).Tag.Get("yaml"), ",")
			names = append(names, name)
		}
	}

	return names
}
