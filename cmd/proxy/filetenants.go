package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/tenant"
)

// tenantFiles are the tenants of tenants_dir.
type tenantFiles struct {
	// changing is held while the tenants, or the clients and rules of the
	// configuration, change. It is not held while files are read, which may
	// take long.
	changing sync.Mutex
	fits     atomic.Pointer[config.Config] // that tenants must fit
	state    atomic.Pointer[tenant.State]

	// Only one goroutine uses the fields below.
	dir      *tenant.Dir
	readFor  *config.Config        // the configuration that the files were read for
	versions map[string]keyVersion // by name of the tenant
	made     int                   // number of versions

	shared sharedKMS
}

// keyVersion is a version of a tenant's key.
type keyVersion struct {
	key    config.Key
	limits config.TenantLimits
	id     string
}

// openTenants reads the tenants for the first time.
func (b *backend) openTenants() error {
	if b.cfg.TenantsDir == "" {
		return nil
	}
	f := &tenantFiles{versions: make(map[string]keyVersion), readFor: b.cfg}
	f.fits.Store(b.cfg)
	f.dir = tenant.Open(b.cfg.TenantsDir, func(path string, data []byte) (*config.Tenant, error) {
		return tenantParser(f.readFor)(path, data)
	})
	b.tenants = f

	first := b.tenants.dir.Next()
	if first.Err != nil {
		return first.Err
	}
	if _, err := b.setTenants(first); err != nil {
		return err
	}
	b.logTenants(&tenant.State{}, first)
	return nil
}

// tenantParser returns what reads tenants' files for a configuration.
func tenantParser(cfg *config.Config) tenant.ParseFunc {
	parse := config.ParseTenant
	if cfg.Listen == "" { // for a command without a server
		parse = config.ParseTenantOffline
	}
	return func(path string, data []byte) (*config.Tenant, error) { return parse(path, data, cfg) }
}

// setTenants makes the keyring use the tenants of a state, which becomes the
// current one. It returns how many data keys of each tenant were purged.
func (b *backend) setTenants(s *tenant.State) (purged map[string]int, err error) {
	f := b.tenants
	list := make([]keyring.FileTenant, 0, len(s.Tenants))
	for _, name := range s.Names() {
		list = append(list, b.keyringTenant(s.Tenants[name]))
	}
	if purged, err = b.keys.SetTenants(list); err != nil {
		return nil, err
	}

	maps.DeleteFunc(f.versions, func(name string, _ keyVersion) bool { return s.Tenants[name] == nil })
	f.dir.Accept(s)
	f.state.Store(s)
	return purged, nil
}

func (b *backend) keyringTenant(t *config.Tenant) keyring.FileTenant {
	version := b.tenants.version(t)
	out := keyring.FileTenant{
		Name: t.Name, ReadKeys: t.ReadKeys, Key: b.fileKey(t.Key, t.Limits, version),
	}
	for i, id := range t.Key.AlsoKnownAs {
		earlier := b.fileKey(earlierKey(t.Key, i), t.Limits, version+"/"+id)
		earlier.ID = id
		out.Earlier = append(out.Earlier, earlier)
	}

	for _, o := range t.Objects {
		for _, bucket := range o.Buckets {
			if len(o.Prefixes) == 0 {
				out.Objects = append(out.Objects, keyring.TenantObjects{Bucket: bucket})
			}
			for _, prefix := range o.Prefixes {
				out.Objects = append(out.Objects, keyring.TenantObjects{Bucket: bucket, Prefix: prefix})
			}
		}
	}
	return out
}

// version returns what identifies the settings of a tenant's key: it changes
// with them. Ids of earlier keys do not count.
func (f *tenantFiles) version(t *config.Tenant) string {
	key, limits := t.Key, t.Limits
	key.AlsoKnownAs, limits.MaxConcurrentRequests = nil, 0
	known, ok := f.versions[t.Name]
	if !ok || known.limits != limits || !reflect.DeepEqual(known.key, key) {
		f.made++
		known = keyVersion{key, limits, strconv.Itoa(f.made)}
		f.versions[t.Name] = known
	}
	return known.id
}

func (b *backend) fileKey(k config.Key, limits config.TenantLimits, version string) keyring.FileKey {
	return keyring.FileKey{
		Version: version, Provider: string(k.Provider),
		Timeout: kms.AttemptsPerCall * k.Timeout, ProbeTimeout: k.Timeout,
		Open: func(ctx context.Context) (keyring.TenantKey, error) { return b.openFileKey(ctx, k, limits) },
	}
}

// openFileKey opens the key of a tenant.
func (b *backend) openFileKey(
	ctx context.Context, k config.Key, limits config.TenantLimits,
) (opened keyring.TenantKey, err error) {
	w, release, err := b.tenants.shared.open(ctx, k, b.reportReread(k))
	if err != nil {
		return opened, err
	}

	of := b.limitsOf(b.current().KMS, k)
	if limits.KMSMaxConcurrent > 0 {
		of.MaxConcurrent = limits.KMSMaxConcurrent
	}
	if limits.KMSMaxPerSecond > 0 && k.Provider != config.Local {
		of.PerSecond, of.Burst = float64(limits.KMSMaxPerSecond), limits.KMSMaxPerSecond
	}

	state := &breakerState{gauge: b.metrics.Breaker(b.observer.labelOf(k.Name)).Add}
	opened.Wrapper, opened.Probe, err = recoverable(k, b.limitedTo(of, w, state.add), w)
	if err != nil {
		release()
		return opened, err
	}
	opened.Close = func() { state.close(); release() }
	return opened, nil
}

// sharedKMS opens keys of tenants. Keys that differ only in their ids share a
// login and connections.
type sharedKMS struct {
	mu     sync.Mutex
	logins []*sharedLogin
}

// sharedLogin is a login with the keys that use it.
type sharedLogin struct {
	settings config.Key // without what distinguishes keys
	open     openFunc
	stop     context.CancelFunc
	users    int
}

// open opens a key. release must be called when it is not used any more.
func (s *sharedKMS) open(
	ctx context.Context, k config.Key, report kms.Report,
) (_ kms.Wrapper, release func(), _ error) {
	switch {
	case k.Provider == config.AWSKMS, k.Provider == config.GCPKMS:
	case k.Provider == config.VaultTransit && k.EnvelopeID == "":
	default:
		return openAlone(ctx, k, report)
	}

	login, err := s.join(ctx, k, report)
	if err != nil {
		return nil, nil, err
	}
	w, err := login.open(ctx, k.KeyID)
	if err != nil {
		s.leave(login)
		return nil, nil, err
	}
	return w, func() { s.leave(login) }, nil
}

// openAlone opens a key that shares nothing with others.
func openAlone(ctx context.Context, k config.Key, report kms.Report) (_ kms.Wrapper, release func(), _ error) {
	w, err := buildWrapper(ctx, k, report)
	if err != nil {
		return nil, nil, err
	}
	return w, runUntilReleased(w), nil
}

// runUntilReleased runs the background work of a provider, and closes its
// connections at the end.
func runUntilReleased(shared any) (release context.CancelFunc) {
	ctx, stop := context.WithCancel(context.Background())
	if t, ok := shared.(interface{ Run(ctx context.Context) }); ok {
		go t.Run(ctx)
	}
	return func() {
		stop()
		if c, ok := shared.(io.Closer); ok {
			_ = c.Close() // nothing depends on it any more
		}
	}
}

// join returns the login for a key.
func (s *sharedKMS) join(ctx context.Context, k config.Key, report kms.Report) (*sharedLogin, error) {
	settings := loginSettings(k)
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, login := range s.logins {
		if reflect.DeepEqual(login.settings, settings) {
			login.users++
			return login, nil
		}
	}

	open, shared, err := buildShared(ctx, k, report)
	if err != nil {
		return nil, err
	}
	login := &sharedLogin{settings, open, runUntilReleased(shared), 1}
	s.logins = append(s.logins, login)
	return login, nil
}

func (s *sharedKMS) leave(login *sharedLogin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if login.users--; login.users == 0 {
		login.stop()
		s.logins = slices.DeleteFunc(s.logins, func(other *sharedLogin) bool { return other == login })
	}
}

// loginSettings returns the settings of a key that a login depends on.
func loginSettings(k config.Key) config.Key {
	region := k.Region
	if parts := strings.Split(k.KeyID, ":"); k.Provider == config.AWSKMS && region == "" && len(parts) > 3 {
		region = parts[3] // of an ARN
	}
	k.Name, k.KeyID, k.Region, k.AlsoKnownAs, k.RecoveryPublicKey = "", "", region, nil, ""
	return k
}

// The time between two searches for changes. Searches that take long are made
// less often.
const (
	leastTenantsPause = time.Second
	mostTenantsPause  = 5 * time.Second
	tenantsPause      = 20 // times as long as the last search
)

// watchTenants follows the changes of tenants until ctx ends.
func (s *server) watchTenants(ctx context.Context) {
	for wait := leastTenantsPause; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}

		start := time.Now()
		s.followTenants()
		wait = min(max(leastTenantsPause, tenantsPause*time.Since(start)), mostTenantsPause)
	}
}

// followTenants applies the changes of tenants, if there are any.
func (s *server) followTenants() {
	f := s.tenants
	if fits := f.fits.Load(); fits != f.readFor {
		f.readFor = fits
		f.dir.Retry()
	}
	before, next := f.dir.Current(), f.dir.Next()

	f.changing.Lock()
	defer f.changing.Unlock()
	if f.fits.Load() != f.readFor {
		return // the configuration has changed meanwhile
	}
	s.applyTenants(before, next)
}

// applyTenants makes next the current state of tenants. The caller holds
// changing.
func (s *server) applyTenants(before, next *tenant.State) {
	f, changes := s.tenants, changesOf(before, next)
	if err := s.recordTenants(changes, nil); err != nil {
		// Access is only removed until the log can be written.
		next = before.Removed(next)
		changes = changesOf(before, next)
	}
	s.logTenants(before, next)
	if len(changes) == 0 {
		f.dir.Accept(next)
		f.state.Store(next)
		return
	}

	var purged map[string]int
	clients := s.allClients(s.configured, next)
	_, err := access.New(clients) // before anything changes
	if err == nil {
		purged, err = s.setTenants(next)
	}
	if err == nil {
		err = s.clients.Replace(clients)
	}
	if err != nil {
		s.log.Error("changing the tenants failed", zap.Error(err))
		return
	}

	_ = s.recordTenants(changes, purged) // its error is logged
	for _, c := range changes {
		s.log.Info("tenant "+c.what, zap.String("tenant", c.name), zap.Int("purged", purged[c.name]))
	}
}

// allClients returns the clients of the configuration and of all tenants.
func (s *server) allClients(configured []config.Client, tenants *tenant.State) []access.Client {
	all := accessClients(configured, s.cfg.Origin.Keys)
	for _, name := range tenants.Names() {
		t := tenants.Tenants[name]
		own := accessClients(t.Clients, s.cfg.Origin.Keys)
		for i := range own {
			own[i].Group, own[i].GroupLimit = t.Key.Name, t.Limits.MaxConcurrentRequests
		}
		all = append(all, own...)
	}
	return all
}

// tenantChange is a change of a tenant.
type tenantChange struct{ name, what string }

// The changes of a tenant.
const (
	tenantAdded   = "added"
	tenantChanged = "changed"
	tenantRemoved = "removed"
)

// changesOf returns how two states differ, by name.
func changesOf(before, next *tenant.State) (changes []tenantChange) {
	for _, name := range next.Names() {
		switch before.Tenants[name] {
		case next.Tenants[name]:
		case nil:
			changes = append(changes, tenantChange{name, tenantAdded})
		default:
			changes = append(changes, tenantChange{name, tenantChanged})
		}
	}
	for _, name := range before.Names() {
		if next.Tenants[name] == nil {
			changes = append(changes, tenantChange{name, tenantRemoved})
		}
	}
	return changes
}

// recordTenants writes changes to the audit log: before they are made, those
// that may give access, and after that, with the number of purged data keys,
// those that only remove it.
func (s *server) recordTenants(changes []tenantChange, purged map[string]int) error {
	for _, c := range changes {
		if (c.what == tenantRemoved) != (purged != nil) {
			continue
		}
		r := audit.Record{
			Event: "tenant", Result: audit.OK, Operation: c.what, Tenant: c.name,
			KMSKeyName: config.TenantKeys + ":" + c.name,
		}
		if n := purged[c.name]; purged != nil {
			r.Purged = &n
		}
		if err := s.record(r); err != nil {
			return err
		}
	}
	return nil
}

// logTenants logs problems that are new.
func (b *backend) logTenants(before, next *tenant.State) {
	if text := fmt.Sprint(next.Err); next.Err != nil && text != fmt.Sprint(before.Err) {
		b.log.Error("reading the directory of tenants failed; keeping the tenants read before", zap.Error(next.Err))
	}
	if next.Err == nil && before.Err != nil {
		b.log.Info("directory of tenants read again", zap.Int("tenants", len(next.Tenants)))
	}

	known := make(map[string]bool)
	for _, p := range before.Problems {
		known[p.Path+p.Err.Error()] = true
	}
	for _, p := range next.Problems {
		if !known[p.Path+p.Err.Error()] {
			b.log.Error("the file of a tenant has an error; no other tenant is affected", zap.String("path", p.Path),
				zap.String("tenant", p.Tenant), zap.Bool("earlier_version_served", p.Served), zap.Error(p.Err))
		}
	}
}

// fitTenants returns an error if tenants do not fit a new configuration.
func fitTenants(s *tenant.State, next *config.Config) error {
	for _, name := range s.Names() {
		if err := s.Tenants[name].Fits(next); err != nil {
			return fmt.Errorf("%w; remove its file first, or change it", err)
		}
	}
	return nil
}

// warnOfTenants prints which files of tenants have errors, for a command.
func (b *backend) warnOfTenants(out io.Writer) {
	if b.tenants == nil || out == nil {
		return
	}
	for _, p := range b.tenants.dir.Current().Problems {
		fmt.Fprintf(out, "warning: the objects of this tenant cannot be read or written: %s: %s\n",
			visible(p.Path), visible(p.Err.Error()))
	}
}
