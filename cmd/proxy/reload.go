package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
)

// onSignals has all data keys forgotten on SIGUSR1, and the configuration read anew on SIGHUP, from now until ctx ends.
func (a *app) onSignals(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				a.obey(s)
			}
		}
	}()
}

func (a *app) obey(s os.Signal) {
	switch s {
	case syscall.SIGUSR1:
		_, _ = a.purge("", false, "SIGUSR1", "") // the log has it
	case syscall.SIGHUP:
		a.reopenAudit()
		a.reload()
	}
}

// reload applies what may change while the proxy runs: dek_cache, encryption.rules, and clients. Of anything else that has changed
// it says that a restart is needed. A configuration with an error changes nothing.
func (a *app) reload() {
	if a.path == "" {
		a.log.Warn("there is no configuration file to read anew")
		return
	}
	next, err := loadConfig(a.path)
	if err == nil {
		err = a.apply(next)
	}
	if err != nil {
		a.log.Error("the configuration was not read anew, and the old one stays in force", zap.Error(err))
		return
	}
	a.cache.SetTTL(next.DEKCache.TTL)
	a.cache.Resize(next.DEKCache.MaxEntries)
	a.keys.SetProbe(next.DEKCache.RevocationProbe)
	a.keys.SetOutageWait(next.DEKCache.OutageWait)
	a.advisor.SetTTL(next.DEKCache.TTL)
	a.log.Info("configuration read anew", zap.Stringer("dek_cache.ttl", next.DEKCache.TTL),
		zap.Stringer("dek_cache.revocation_probe", next.DEKCache.RevocationProbe), zap.Int("encryption.rules", len(next.Encryption.Rules)),
		zap.Int("clients", len(next.Clients)))
	if rest := needsRestart(a.cfg, next); len(rest) > 0 {
		a.log.Warn("these changes take a restart", zap.Strings("settings", rest))
	}
}

// apply puts rules and clients in force. That a configuration was read anew is in the audit log before it is, with what it
// decides about keys; or it stays as it was.
func (a *app) apply(next *config.Config) error {
	rules, clients := buildRules(next.Encryption.Rules), accessClients(next.Clients)
	if err := a.keys.CheckRules(rules); err != nil {
		return err
	}
	if _, err := access.New(clients); err != nil {
		return err
	}
	dek := next.DEKCache
	err := a.record(audit.Record{
		Event: "reload", Result: audit.OK, Operation: "SIGHUP",
		Detail: fmt.Sprintf("dek_cache.ttl=%v dek_cache.revocation_probe=%v encryption.rules=%d clients=%d", dek.TTL, dek.RevocationProbe, len(rules), len(clients)),
	})
	if err != nil {
		return err
	}
	if err := a.keys.SetRules(rules); err != nil {
		return err
	}
	return a.clients.Replace(clients)
}

// needsRestart names the sections that differ and were not applied.
func needsRestart(old, next *config.Config) (names []string) {
	a, b := *old, *next
	b.DEKCache, b.Encryption.Rules, b.Clients = a.DEKCache, a.Encryption.Rules, a.Clients
	left, right := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range left.NumField() {
		if !reflect.DeepEqual(left.Field(i).Interface(), right.Field(i).Interface()) {
			name, _, _ := strings.Cut(left.Type().Field(i).Tag.Get("yaml"), ",")
			names = append(names, name)
		}
	}
	return names
}
