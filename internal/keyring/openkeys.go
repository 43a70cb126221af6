package keyring

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// The limits on keys of tenants. Clients choose the names of objects, so
// they can name any number of tenants.
const (
	DefaultMaxOpen = 1000             // see Config.MaxOpen
	closeAfter     = 10 * time.Minute // time without a use before a key without DEKs is closed
	closeInterval  = time.Minute      // between searches for such keys
	maxOpening     = 32               // keys that are being opened at the same time
	maxRefused     = 4096             // remembered errors
)

// tenant is what a keyState has in addition if its key is that of a tenant.
type tenant struct {
	family *keyState // the template, or Keyring.fileKeys
	id     string    // see tenantRef
	close  func()

	// The fields below are protected by openKeys.mu.
	usedAt time.Time
	place  *list.Element
	ended  bool               // it is not among the open keys any more
	stop   context.CancelFunc // ends the probes; nil if there are none
}

// openKeys has the open keys of tenants.
//
// A key is in use while it is held or has leases. It is taken under mu, and
// closed under mu if it is not in use, so that a key in use is never closed.
type openKeys struct {
	most    int
	opening singleflight.Group // by refKey
	slots   chan struct{}
	refused *lru.Cache[string, refusedKey] // by refKey

	mu      sync.Mutex
	byName  map[string]*keyState
	byID    map[string]int                     // number of keys with this id
	recent  *list.List                         // of *keyState, the most recently used first
	leaving []*keyState                        // retired keys that may be in use
	probe   func(*keyState) context.CancelFunc // starts the probes of a key; nil unless Run is running
}

// refusedKey is the error of opening a key, which is remembered for a moment.
type refusedKey struct {
	err   error
	until time.Time
}

func newOpenKeys(most int) *openKeys {
	refused, err := lru.New[string, refusedKey](maxRefused)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	return &openKeys{
		most: most, slots: make(chan struct{}, maxOpening), refused: refused,
		byName: make(map[string]*keyState), byID: make(map[string]int), recent: list.New(),
	}
}

// take returns an open key, held, or nil.
func (o *openKeys) take(ref *tenantRef, now time.Time) *keyState {
	o.mu.Lock()
	defer o.mu.Unlock()

	key := o.byName[ref.name]
	if key == nil || !ref.is(key) {
		return nil
	}
	key.tenant.usedAt = now
	o.recent.MoveToFront(key.tenant.place)
	return key.held()
}

// all returns the open keys, the most recently used first.
func (o *openKeys) all() []*keyState {
	o.mu.Lock()
	defer o.mu.Unlock()

	keys := make([]*keyState, 0, o.recent.Len())
	for e := o.recent.Front(); e != nil; e = e.Next() {
		keys = append(keys, e.Value.(*keyState))
	}
	return keys
}

// refKey is unique for a name and an id.
func (r *tenantRef) refKey() string { return r.name + "\x00" + r.id }

// startTenant opens the key of a tenant, once for all who need it. It does not
// end with ctx, because others may wait for it.
func (k *Keyring) startTenant(ctx context.Context, ref tenantRef) error {
	done := k.tenants.opening.DoChan(ref.refKey(), func() (any, error) {
		return nil, k.openAndAdd(context.WithoutCancel(ctx), ref)
	})

	select {
	case result := <-done:
		return result.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (k *Keyring) openAndAdd(ctx context.Context, ref tenantRef) error {
	if last, ok := k.tenants.refused.Get(ref.refKey()); ok && k.now().Before(last.until) {
		return &unopenedError{ref.name, FromCache, last.err}
	}

	settings := ref.settings()
	opened, err := k.openOne(ctx, ref, newKey(settings))
	switch {
	case err == nil:
	case kms.IsRevoked(err):
		err = fmt.Errorf("key %q is not open: %w", ref.name, err)
	default:
		err = fmt.Errorf("%w: key %q: %w", ErrNotOpen, ref.name, err)
	}
	if err != nil {
		if life := RememberFor(err); life > 0 {
			k.tenants.refused.Add(ref.refKey(), refusedKey{err, k.now().Add(life)})
		}
		return &unopenedError{ref.name, FromKMS, err}
	}

	key := newKey(settings)
	key.tenant = &tenant{family: ref.family, id: ref.id, close: opened.Close}
	key.rest.group.KeyID = opened.Wrapper.KeyID()
	key.kms.Store(serviceOf(opened))

	added, err := k.addTenant(key, ref)
	if !added {
		key.tenant.closed()
	}
	return err
}

// settings returns the settings of the key.
func (r *tenantRef) settings() Key {
	if r.file != nil {
		return Key{
			Name: r.name, Provider: r.file.Provider, Timeout: r.file.Timeout, ProbeTimeout: r.file.ProbeTimeout,
		}
	}
	f := r.family
	return Key{
		Name: r.name, Provider: f.Provider,
		Timeout: time.Duration(f.callLimit.Load()), ProbeTimeout: time.Duration(f.probeLimit.Load()),
	}
}

// unopenedError is the error of opening the key of a tenant.
type unopenedError struct {
	name   string
	source Source
	err    error
}

func (e *unopenedError) Error() string { return e.err.Error() }
func (e *unopenedError) Unwrap() error { return e.err }

// errAllInUse is the error if no key can be closed to make room for another.
func errAllInUse(name string) error {
	return fmt.Errorf("%w: key %q: as many keys of tenants as may be open are in use", ErrNotOpen, name)
}

// openOne opens the key in the KMS, for a limited number of keys at the same
// time.
func (k *Keyring) openOne(ctx context.Context, ref tenantRef, key *keyState) (opened TenantKey, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout(key))
	defer cancel()
	select {
	case k.tenants.slots <- struct{}{}:
		defer func() { <-k.tenants.slots }()
	case <-ctx.Done():
		return opened, errors.New("too many keys are being opened")
	}

	start := k.now()
	ctx, span := tracing.StartKMS(ctx, tracing.KMSCall{Key: ref.name, Operation: OpOpen})
	opened, err = ref.open(ctx)
	span.End(failureOf(err), "")
	k.cfg.Observer.KMSCall(ctx, ref.name, OpOpen, k.now().Sub(start), err)
	if err == nil && opened.Wrapper.KeyID() == "" {
		return opened, errors.New("it has no id")
	}
	return opened, err
}

func serviceOf(o TenantKey) *service {
	s := &service{id: o.Wrapper.KeyID(), wrapper: o.Wrapper, probe: o.Probe}
	if s.probe == nil {
		s.probe = s.wrapper
	}
	return s
}

func (t *tenant) closed() {
	if t.close != nil {
		t.close()
	}
}

// addTenant adds an open key, and closes others to make room. It reports
// whether it did: not if all are in use, which is an error, and not if the
// tenant has been changed or the key has been opened meanwhile.
func (k *Keyring) addTenant(key *keyState, ref tenantRef) (added bool, err error) {
	o := k.tenants
	o.mu.Lock()
	defer o.mu.Unlock()
	if ref.family.isRetired() { // Apply retires its keys under mu
		return false, nil
	}
	if ref.file != nil && !k.files.Load().tenantOf(ref.name).has(ref.id) { // SetTenants retires keys under mu
		return false, nil
	}
	if other := o.byName[key.Name]; other != nil {
		if ref.is(other) {
			return false, nil
		}
		k.retire(other) // SetTenants is about to do it
	}

	for e := o.recent.Back(); e != nil && o.recent.Len() >= o.most; {
		oldest := e.Value.(*keyState)
		e = e.Prev()
		if !oldest.inUse() {
			k.closeTenant(oldest)
		}
	}
	if o.recent.Len() >= o.most {
		return false, errAllInUse(key.Name)
	}

	key.tenant.usedAt = k.now()
	key.tenant.place = o.recent.PushFront(key)
	o.byName[key.Name] = key
	o.byID[key.rest.group.KeyID]++
	if o.probe != nil {
		key.tenant.stop = o.probe(key)
	}
	return true, nil
}

// inUse reports whether a stream uses the key, or may be about to.
func (k *keyState) inUse() bool { return k.holds.Load() > 0 || k.leases.Load() > 0 }

// closeTenant closes a key that is not in use, and wipes its DEKs. The caller
// holds openKeys.mu.
func (k *Keyring) closeTenant(key *keyState) {
	k.endTenant(key)
	k.forgetTenant(key)
}

// endTenant ends all KMS calls of a key, and makes it unknown for new uses. The
// caller holds openKeys.mu.
func (k *Keyring) endTenant(key *keyState) {
	k.tenants.recent.Remove(key.tenant.place)
	delete(k.tenants.byName, key.Name)
	key.tenant.ended = true
	if key.tenant.stop != nil {
		key.tenant.stop()
	}
	key.tenant.closed()
}

// forgetTenant wipes the DEKs of a key that is not in use. The caller holds
// openKeys.mu.
func (k *Keyring) forgetTenant(key *keyState) {
	o, id := k.tenants, key.rest.group.KeyID
	if o.byID[id]--; o.byID[id] == 0 {
		delete(o.byID, id)
	}
	k.forgetDEKs(id)
}

// forgetDEKs wipes the DEKs of a key, unless they are those of another key, too.
// The caller holds openKeys.mu.
func (k *Keyring) forgetDEKs(id string) {
	if k.tenants.byID[id] == 0 && k.latest().lookup(id) == nil {
		k.cfg.Cache.Forget(id)
	}
}

// keepTenants probes the open keys of templates, with goroutines in wg, and
// closes those that are idle, until ctx ends.
func (k *Keyring) keepTenants(ctx context.Context, wg *sync.WaitGroup) {
	k.tenants.setProbe(func(key *keyState) context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		wg.Go(func() { k.probeAtIntervals(ctx, key) })
		return cancel
	})
	defer k.tenants.setProbe(nil)

	ticker := time.NewTicker(closeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.closeIdle()
		}
	}
}

// setProbe sets how probes of keys are started. It starts them for the keys
// that are open.
func (o *openKeys) setProbe(start func(*keyState) context.CancelFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()

	o.probe = start
	for e := o.recent.Front(); e != nil; e = e.Next() {
		t := e.Value.(*keyState).tenant
		if t.stop != nil {
			t.stop()
			t.stop = nil
		}
		if start != nil {
			t.stop = start(e.Value.(*keyState))
		}
	}
}

// closeIdle closes the keys that have neither been used for closeAfter nor
// have DEKs in the cache.
func (k *Keyring) closeIdle() {
	o, now := k.tenants, k.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	k.forgetLeaving()

	for e := o.recent.Back(); e != nil; {
		key := e.Value.(*keyState)
		e = e.Prev()
		if now.Sub(key.tenant.usedAt) < closeAfter {
			return // the others were used later
		}
		if !key.inUse() && !k.hasDEKs(key) {
			k.closeTenant(key)
		}
	}
}

// hasDEKs reports whether the cache has DEKs of the key, or is fetching one.
func (k *Keyring) hasDEKs(key *keyState) bool {
	key.mu.Lock()
	defer key.mu.Unlock()

	for _, p := range key.slots {
		if p != nil && !k.idle(p) {
			return true
		}
	}
	return !k.idle(key.rest)
}

// Reopen opens the open keys of a template again, for example because their
// login has changed. A key that cannot be opened, or that has another id now,
// stays as it is. Errors: ErrUnknownKey, and those of Template.Open.
func (k *Keyring) Reopen(ctx context.Context, name string) error {
	family := k.set().byName[name]
	if family == nil || !family.isTemplate() || family == k.fileKeys {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}

	var failures []error
	for _, open := range k.tenants.all() {
		if open.tenant.family != family {
			continue
		}
		if err := k.reopenTenant(ctx, open); err != nil {
			failures = append(failures, fmt.Errorf("key %q: %w", open.Name, err))
		}
	}
	return errors.Join(failures...)
}

func (k *Keyring) reopenTenant(ctx context.Context, open *keyState) error {
	ref := tenantRef{family: open.tenant.family, name: open.Name, id: open.tenant.id}
	key := k.tenants.take(&ref, k.now())
	if key == nil {
		return nil // closed meanwhile
	}
	defer key.letGo()

	opened, err := k.openOne(ctx, ref, key)
	if err != nil {
		return err
	}
	if opened.Wrapper.KeyID() != key.kms.Load().id {
		(&tenant{close: opened.Close}).closed()
		return errors.New("its template gives another key now")
	}

	k.tenants.mu.Lock()
	defer k.tenants.mu.Unlock()
	key.kms.Store(serviceOf(opened))
	key.tenant.closed()
	key.tenant.close = opened.Close
	return nil
}
