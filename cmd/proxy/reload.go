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

// onSignals purges all data keys on SIGUSR1, and reloads what can change while
// the proxy runs on SIGHUP, from now until ctx ends.
func (a *app) onSignals(ctx context.Context) {
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
			case s := <-signals:
				a.obey(ctx, s)
			case <-secrets.C:
				a.reloadSecrets(ctx)
			}
		}
	}()
}

// secretsInterval is how often the files that secrets are read from are looked
// at.
const secretsInterval = 5 * time.Second

func (a *app) obey(ctx context.Context, s os.Signal) {
	switch s {
	case syscall.SIGUSR1:
		_, _ = a.purge("", false, "SIGUSR1", "") // the log has it
	case syscall.SIGHUP:
		a.reopenAudit()
		a.checkFiles()
		a.reload(ctx)
	}
}

// checkFiles reads the files that are followed now, and not at their next use.
// The log has what is wrong with them.
func (a *app) checkFiles() {
	if a.tls != nil {
		_ = a.tls.Check()
	}
	a.clients.CheckSessions()
}

// reload applies what may change while the proxy runs: dek_cache,
// encryption.rules, clients, admin_token, the credentials for the store, and
// the secrets of keys. It names the other changes, which need a restart. A configuration with an error changes
// nothing.
func (a *app) reload(ctx context.Context) {
	if a.file == nil {
		a.log.Warn("SIGHUP: there is no configuration file to reload")
		return
	}
	next, err := readConfig(a.file.path)
	if err == nil {
		err = a.apply(ctx, next.Config, "SIGHUP")
	}
	if err != nil {
		a.log.Error("config reload failed; keeping the current configuration", zap.Error(err))
		return
	}

	a.file = next
	a.log.Info("configuration reloaded", zap.Stringer("dek_cache.ttl", next.DEKCache.TTL),
		zap.Stringer("dek_cache.revocation_probe", next.DEKCache.RevocationProbe), zap.Int("encryption.rules", len(next.Encryption.Rules)),
		zap.Int("clients", len(next.Clients)))
	if rest := needsRestart(a.cfg, next.Config); len(rest) > 0 {
		a.log.Warn("these changes need a restart", zap.Strings("settings", rest))
	}
}

// reloadSecrets reads the secrets again that the configuration takes from files
// (file:/PATH). The text of the configuration is the one in force: what was
// edited in it since waits for SIGHUP.
func (a *app) reloadSecrets(ctx context.Context) {
	if a.file == nil {
		return
	}
	next, err := a.file.again()
	if err == nil && reflect.DeepEqual(next.Config, a.file.Config) {
		a.file.problem = ""
		return
	}
	if err == nil {
		err = a.apply(ctx, next.Config, "secret file")
	}
	if err != nil {
		if text := err.Error(); text != a.file.problem {
			a.file.problem = text
			a.log.Error("reading secrets from their files failed; keeping the ones read before", zap.Error(err))
		}
		return
	}

	a.file = next
	a.log.Info("secrets read again from their files")
	if rest := needsRestart(a.cfg, next.Config); len(rest) > 0 {
		a.log.Warn("these changes need a restart", zap.Strings("settings", rest))
	}
}

// apply puts in force what may change. The audit log has it before it is in
// force; if it cannot be written there, nothing changes.
func (a *app) apply(ctx context.Context, next *config.Config, why string) error {
	rules, clients := buildRules(next.Encryption.Rules), accessClients(next.Clients, a.cfg.Origin.Keys)
	if err := a.keys.CheckRules(rules); err != nil {
		return err
	}
	if _, err := access.New(clients); err != nil {
		return err
	}
	dek := next.DEKCache
	err := a.record(audit.Record{
		Event: "reload", Result: audit.OK, Operation: why,
		Detail: fmt.Sprintf("dek_cache.ttl=%v dek_cache.revocation_probe=%v encryption.rules=%d clients=%d", dek.TTL, dek.RevocationProbe, len(rules), len(clients)),
	})
	if err != nil {
		return err
	}

	if err := a.keys.SetRules(rules); err != nil {
		return err
	}
	if err := a.clients.Replace(clients); err != nil {
		return err
	}
	a.adminToken.Store(&next.AdminToken)
	a.storeLogin.set(next.Origin)
	a.reopen(ctx, a.file.Config, next)
	a.cache.SetTTL(dek.TTL)
	a.cache.Resize(dek.MaxEntries)
	a.keys.SetProbe(dek.RevocationProbe)
	a.keys.SetOutageWait(dek.OutageWait)
	a.advisor.SetTTL(dek.TTL)
	return nil
}

func keysWithoutSecrets(keys []config.Key) []config.Key {
	out := make([]config.Key, len(keys))
	for i, k := range keys {
		out[i] = withoutSecrets(k)
	}
	return out
}

// needsRestart names the sections that differ and were not applied.
func needsRestart(old, next *config.Config) (names []string) {
	a, b := *old, *next
	b.DEKCache, b.Encryption.Rules, b.Clients = a.DEKCache, a.Encryption.Rules, a.Clients
	if a.Origin.AccessKey != "" && b.Origin.AccessKey != "" {
		b.Origin.AccessKey, b.Origin.SecretKey = a.Origin.AccessKey, a.Origin.SecretKey
	}
	b.AdminToken = a.AdminToken
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
