package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// What a reload is asked by, in the audit log.
const (
	bySignal  = "SIGHUP"
	byAdmin   = "POST /admin/reload"
	byFile    = "reload_on_change"
	bySecrets = "secret file"
)

// reloaded is the result of a reload.
type reloaded struct {
	// Applied are the names of the settings that have changed and are in
	// force now.
	Applied []string `json:"applied"`
	// NeedsRestart are the names of the settings whose values in the file
	// are not those in force.
	NeedsRestart []string `json:"needs_restart"`
}

// reloadRequest asks for a reload.
type reloadRequest struct {
	by     string
	answer chan<- reloadAnswer
}

type reloadAnswer struct {
	reloaded
	err error
}

// onSignals purges all data keys on SIGUSR1, and reloads the configuration
// on SIGHUP and for requests, until ctx ends. All reloads are made by one
// goroutine.
func (s *server) onSignals(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	go func() {
		defer signal.Stop(signals)
		files := time.NewTicker(filesInterval)
		defer files.Stop()

		for {
			select {
			case <-ctx.Done():
				return
			case signal := <-signals:
				s.obey(ctx, signal)
			case r := <-s.requests:
				changed, err := s.reload(ctx, r.by)
				r.answer <- reloadAnswer{changed, err}
			case <-files.C:
				s.followFiles(ctx)
			}
		}
	}()
}

// filesInterval is the interval at which the files of secrets, and with
// reload_on_change that of the configuration, are checked.
const filesInterval = 5 * time.Second

func (s *server) obey(ctx context.Context, signal os.Signal) {
	switch signal {
	case syscall.SIGUSR1:
		_, _ = s.purge("", false, "SIGUSR1", "") // purge logs its result
	case syscall.SIGHUP:
		defer s.notifyReloading()()
		_, _ = s.reload(ctx, bySignal) // reload logs its result
	}
}

// checkFiles rereads files now instead of at their next use. Errors are
// logged.
func (s *server) checkFiles() {
	if files := s.tls.Load(); files != nil {
		_ = files.Check()
	}
	s.clients.CheckSessions()
}

var (
	errNoFile = errors.New("there is no configuration file to reload")
	errStdin  = errors.New("the configuration came from standard input, and cannot be read again")
)

// reload reads the configuration file again and applies all settings that can
// change while the proxy runs, and reopens the audit log. An invalid
// configuration changes nothing. Only the goroutine of onSignals may call it.
func (s *server) reload(ctx context.Context, by string) (changed reloaded, err error) {
	s.reopenAudit()
	s.checkFiles()
	switch {
	case s.file == nil:
		err = errNoFile
	case s.file.path == config.Stdin:
		err = errStdin
	default:
		var next *configFile
		if next, err = readConfig(s.file.path); err == nil {
			changed, err = s.change(ctx, next, by)
		}
	}

	s.noteReload(err)
	if err != nil {
		s.logNoReload(err, by)
		return reloaded{}, err
	}
	s.logReload(changed, by)
	return changed, nil
}

// noteReload records an attempt for the metrics and the status page.
func (s *server) noteReload(err error) {
	note := &statuspage.Reload{Time: time.Now()}
	if err != nil {
		note.Error = err.Error()
	}
	s.metrics.Reloaded(note.Time, err)
	s.lastReload.Store(note)
}

func (s *server) logReload(changed reloaded, by string) {
	s.log.Info("configuration reloaded", zap.String("by", by), zap.Strings("applied", changed.Applied))
	s.warnOfRestart(changed)
}

func (s *server) logNoReload(err error, by string) {
	s.log.Error("config reload failed; keeping the current configuration", zap.String("by", by), zap.Error(err))
}

func (s *server) warnOfRestart(changed reloaded) {
	if len(changed.NeedsRestart) > 0 {
		s.log.Warn("these changes need a restart", zap.Strings("settings", changed.NeedsRestart))
	}
}

// followFiles applies changes of the files that secrets are read from, and with
// reload_on_change those of the configuration.
func (s *server) followFiles(ctx context.Context) {
	if s.file == nil {
		return
	}
	if s.file.ReloadOnChange && s.file.path != config.Stdin {
		s.followConfig(ctx)
	}
	s.reloadSecrets(ctx)
}

// followConfig reloads the configuration if its text has changed. A failure is
// tried again, because it may be due to another file, and each is logged once.
func (s *server) followConfig(ctx context.Context) {
	next, err := readConfig(s.file.path)
	if err == nil && bytes.Equal(next.text, s.file.text) {
		s.file.unused = ""
		return
	}
	var changed reloaded
	if err == nil {
		changed, err = s.change(ctx, next, byFile)
	}
	s.noteReload(err)

	if err == nil {
		s.logReload(changed, byFile)
	} else if text := err.Error(); text != s.file.unused {
		s.file.unused = text
		s.logNoReload(err, byFile)
	}
}

// reloadSecrets rereads the secrets that the configuration takes from files
// (file:/PATH). It uses the text of the current configuration; later edits
// of the configuration wait for a reload.
func (s *server) reloadSecrets(ctx context.Context) {
	next, err := s.file.again()
	if err == nil && reflect.DeepEqual(next.Config, s.file.Config) {
		if s.file.problem != "" { // and they are what they were before
			s.file.problem = ""
			s.noteReload(nil)
		}
		return
	}
	var changed reloaded
	if err == nil {
		changed, err = s.change(ctx, next, bySecrets)
	}
	s.noteReload(err)

	if err != nil {
		if text := err.Error(); text != s.file.problem {
			s.file.problem = text
			s.log.Error("reading secrets from their files failed; keeping the ones read before", zap.Error(err))
		}
		return
	}

	s.log.Info("secrets read again from their files", zap.Strings("applied", changed.Applied))
	s.warnOfRestart(changed)
}

// next is a configuration that is ready to be used.
type next struct {
	*config.Config
	live     config.Changes // from the one in force
	clients  []access.Client
	sessions *access.Sessions
	tls      *tlsFiles
	login    aws.CredentialsProvider // nil if it is the same
	audit    *audit.Log              // nil for none, and if it is the same
	keys     *keyChange
	keyring  *keyring.Replacement
	level    zapcore.Level
}

// change applies the settings that can change. It first prepares all of them, so
// that an error changes nothing, and then writes the names of those that change
// to the audit log. If that fails, nothing changes.
func (s *server) change(ctx context.Context, file *configFile, by string) (reloaded, error) {
	s.holding.Lock()
	defer s.holding.Unlock()
	if f := s.tenants; f != nil {
		f.changing.Lock()
		defer f.changing.Unlock()
	}

	n := &next{Config: file.Config, live: config.Compare(s.current(), file.Config)}
	restart := config.Compare(s.cfg, file.Config).Restart
	err := s.prepare(ctx, n)
	if err == nil {
		err = s.recordReload(n, restart, by)
	}
	if err != nil {
		n.discard(s.held)
		return reloaded{}, err
	}

	s.commit(ctx, n, by)
	s.file = file
	return reloaded{append([]string{}, n.live.Live...), append([]string{}, restart...)}, nil
}

func (s *server) recordReload(n *next, restart []string, by string) error {
	detail := "applied: " + cmp.Or(strings.Join(n.live.Live, " "), "none")
	if len(restart) > 0 {
		detail += "; needs a restart: " + strings.Join(restart, " ")
	}
	return s.record(audit.Record{Event: "reload", Result: audit.OK, Operation: by, Detail: detail})
}

// prepare makes everything that can fail. The caller holds holding, and that of
// tenants.
func (s *server) prepare(ctx context.Context, n *next) (err error) {
	if n.level, err = zapcore.ParseLevel(n.Log.Level); err != nil {
		return err
	}
	n.clients = accessClients(n.Clients, s.cfg.Origin.Keys)
	if f := s.tenants; f != nil {
		if err := fitTenants(f.state.Load(), n.Config); err != nil {
			return err
		}
		n.clients = s.allClients(n.Clients, f.state.Load())
	}
	if _, err := access.New(n.clients); err != nil {
		return err
	}

	if err := s.prepareFiles(n); err != nil {
		return err
	}
	if err := s.prepareLogin(ctx, n); err != nil {
		return err
	}
	if n.keys, err = s.prepareKeys(ctx, n.Config); err != nil {
		return err
	}
	n.keyring, err = s.keys.Prepare(keyring.Contents{
		Keys: n.keys.keys, Rules: buildRules(n.Encryption.Rules),
		FormatVersion: crypt.Version(n.Encryption.FormatVersion), //nolint:gosec // 1 or 2
	})
	return err
}

// prepareFiles opens the files whose paths have changed.
func (s *server) prepareFiles(n *next) (err error) {
	before := s.current()
	n.sessions = s.clients.CurrentSessions()
	if n.SessionCredentialsFile != before.SessionCredentialsFile {
		if n.sessions, err = openSessions(n.SessionCredentialsFile, s.log); err != nil {
			return err
		}
	}
	n.tls = s.tls.Load()
	if n.TLS != before.TLS {
		if n.tls, err = buildTLS(n.TLS, s.log); err != nil {
			return err
		}
	}
	if n.Audit != before.Audit {
		n.audit, err = s.openAudit(n.Audit)
	}
	return err
}

func (s *server) prepareLogin(ctx context.Context, n *next) (err error) {
	before := s.current().Origin
	if n.Origin.AccessKey == before.AccessKey && n.Origin.SecretKey == before.SecretKey {
		return nil
	}
	of := s.cfg.Origin // what else has changed needs a restart
	of.AccessKey, of.SecretKey = n.Origin.AccessKey, n.Origin.SecretKey
	n.login, err = originCredentials(ctx, of, s.log)
	return err
}

// discard closes what was opened for a configuration that is not used.
func (n *next) discard(inUse map[string]*heldKey) {
	if n.audit != nil {
		_ = n.audit.Close() // nothing was written to it
	}
	if n.keys != nil {
		n.keys.discard(inUse)
	}
}

// commit makes a configuration the one in force. Nothing in it can fail. The
// caller holds the same locks as for prepare.
func (s *server) commit(ctx context.Context, n *next, by string) {
	before := s.current()
	s.commitLogs(n, before)
	s.commitServer(n)

	var purged map[string]int
	var held map[string]*heldKey
	s.inForce.Store(n.Config)
	s.api.Change(s.apiSettings(n.Config), func() {
		held = s.useKeys(n.keys)
		purged = n.keyring.Apply()
		if err := s.clients.Replace(n.clients); err != nil {
			panic(err) // prepare has tried it
		}
	})
	s.commitDataKeys(n.Config)
	s.endKeys(held)
	s.recordPurged(purged, by)
	s.beginChanged(ctx, n.keys, held, before.KMS)
}

func (s *server) commitLogs(n *next, before *config.Config) {
	if n.Audit != before.Audit {
		s.useAudit(n.audit)
	}
	if s.level != nil && n.Log.Level != before.Log.Level { // otherwise that of the admin API remains
		s.level.SetLevel(n.level)
	}
}

// commitServer changes the S3 port and the admin port.
func (s *server) commitServer(n *next) {
	s.adminToken.Store(&n.AdminToken)
	s.open.setLimit(n.Limits.MaxConnections)
	if s.tls.Swap(n.tls) != n.tls {
		s.watchCertificate()
	}
	s.tracer.SetHeader(tracingHeader(n.Tracing.Headers))
	if n.login != nil {
		s.login.current.Store(&n.login)
	}
	s.clients.UseSessions(n.sessions)
	s.configured = n.Clients
	if s.tenants != nil {
		s.tenants.fits.Store(n.Config)
	}
}

func (s *server) commitDataKeys(cfg *config.Config) {
	dek := cfg.DEKCache
	s.cache.SetTTL(dek.TTL)
	s.cache.Resize(dek.MaxEntries)
	s.keys.SetProbe(dek.RevocationProbe)
	s.keys.SetOutageWait(dek.OutageWait)
	s.keys.SetMaxOpen(cfg.KMS.MaxOpenKeys)
	s.advisor.SetTTL(dek.TTL)
	s.advisor.SetPrice(price(cfg.KMS.PricePer10000), cfg.KMS.Currency)
}

// recordPurged logs the keys that were removed or replaced.
func (s *server) recordPurged(purged map[string]int, by string) {
	for name, n := range purged {
		s.log.Warn("key removed or replaced: its data keys are purged", zap.String("kms_key_name", name),
			zap.Int("purged", n))
		_ = s.record(audit.Record{ // which logs its error
			Event: "purge", Result: audit.OK, KMSKeyName: name, Operation: by, Purged: &n,
		})
	}
}

// beginChanged starts the background work of the keys that have changed, without
// waiting for a KMS.
func (s *server) beginChanged(
	ctx context.Context, keys *keyChange, before map[string]*heldKey, limits config.KMS,
) {
	var changed []config.Key
	for _, k := range keys.cfg.Keys {
		now, old := keys.held[k.Name], before[k.Name]
		if now.shared != nil && (old == nil || old.shared != now.shared) {
			changed = append(changed, k)
		}
	}

	templates := s.changedTemplates(before, limits)
	go func() {
		s.beginKeys(ctx, before)
		s.tryKeys(ctx, changed)
		s.reopenTemplates(ctx, templates)
	}()
	for _, k := range keys.late {
		go func() {
			s.openLater(ctx, k)
			if s.wants(k) && ctx.Err() == nil {
				s.tryKey(ctx, k)
			}
		}()
	}
	s.warnOfTwins()
	s.warnOfUnread()
}
