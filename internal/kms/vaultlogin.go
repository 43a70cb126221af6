package kms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"
)

// VaultLogin says how to get a token. Exactly one field must be set.
type VaultLogin struct {
	// Token is used as it is, and renewed if Vault allows that.
	Token string
	// TokenFile is a file with a token, such as the sink of a Vault Agent.
	// It is read again when the token no longer works.
	TokenFile string
	// AppRole logs in with the AppRole auth method.
	AppRole *VaultAppRole
	// Kubernetes logs in with the Kubernetes auth method and a service
	// account.
	Kubernetes *VaultKubernetes
}

// VaultAppRole is a login with a role id and a secret id.
type VaultAppRole struct {
	// RoleID is required.
	RoleID string
	// SecretID is the secret id. SecretIDFile is a file with it, which is
	// read at each login. Both may be empty for a role without
	// bind_secret_id.
	SecretID, SecretIDFile string
	// Mount is the path of the auth method below auth/. Empty means
	// "approle".
	Mount string
}

// VaultKubernetes is a login with the token of a Kubernetes service
// account.
type VaultKubernetes struct {
	// Role is the name of a role of the auth method. Required.
	Role string
	// TokenFile is the file with the service account's token. It is read at
	// each login, because Kubernetes replaces it. Empty means the path
	// where Kubernetes mounts it.
	TokenFile string
	// Mount is the path of the auth method below auth/. Empty means
	// "kubernetes".
	Mount string
}

const kubernetesTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// vaultRetry is the time between attempts after a failed renewal or login.
const vaultRetry = 5 * time.Second

// vaultTokens logs in and keeps a valid token.
type vaultTokens struct {
	config    *api.Config
	namespace string
	how       VaultLogin
	logins    logins[*vaultSession] // renewals too
	current   atomic.Pointer[vaultSession]
	retry     atomic.Pointer[time.Time] // no renewal before this time, after a failed one
	uselessAt atomic.Pointer[time.Time]
}

// vaultSession is a token and its lifetime. It is immutable: a renewal
// returns a new vaultSession with the same token.
type vaultSession struct {
	client    *api.Client // uses the token
	renewable bool
	since     time.Time
	ttl       time.Duration // counted from since; 0 if the token does not expire, or this is unknown
	granted   time.Duration // the ttl at the login
}

// works reports whether the session can still be used.
func (s *vaultSession) works(refused *vaultSession) bool {
	return s != nil && s != refused && (s.ttl == 0 || time.Since(s.since) < s.ttl)
}

// due reports whether the session should be renewed: two thirds of its
// lifetime have passed.
func (s *vaultSession) due() bool {
	return s.ttl > 0 && time.Since(s.since) >= s.ttl*2/3
}

func newVaultTokens(cfg VaultConfig, namespace string) (*vaultTokens, error) {
	l := &vaultTokens{namespace: namespace, how: cfg.Login}
	if err := l.how.check(); err != nil {
		return nil, err
	}

	var err error
	if l.config, err = newVaultConfig(cfg); err != nil {
		return nil, err
	}

	_, err = l.client("") // so that a configuration error is reported at startup
	return l, err
}

func (h *VaultLogin) check() error {
	ways := 0
	for _, given := range []bool{h.Token != "", h.TokenFile != "", h.AppRole != nil, h.Kubernetes != nil} {
		if given {
			ways++
		}
	}

	switch {
	case ways != 1:
		return errors.New("set exactly one of token, token file, AppRole and Kubernetes")
	case h.AppRole != nil && h.AppRole.RoleID == "":
		return errors.New("no role id for AppRole")
	case h.AppRole != nil && h.AppRole.SecretID != "" && h.AppRole.SecretIDFile != "":
		return errors.New("both a secret id and a secret id file are set")
	case h.Kubernetes != nil && h.Kubernetes.Role == "":
		return errors.New("no role for Kubernetes")
	}

	return checkVaultPaths(h.mount(), "", "any")
}

// mount returns the path of the auth method, or "" for tokens.
func (h *VaultLogin) mount() string {
	mount, standard := "", ""
	switch {
	case h.AppRole != nil:
		mount, standard = h.AppRole.Mount, "approle"
	case h.Kubernetes != nil:
		mount, standard = h.Kubernetes.Mount, "kubernetes"
	}

	if mount = strings.Trim(mount, "/"); mount == "" {
		return standard
	}
	return mount
}

// client returns a new client for a token. It ignores the token and the
// namespace in the environment.
func (l *vaultTokens) client(token string) (*api.Client, error) {
	config := &api.Config{
		Address:      l.config.Address,
		HttpClient:   l.config.HttpClient,
		MaxRetries:   l.config.MaxRetries,
		MinRetryWait: l.config.MinRetryWait,
		MaxRetryWait: l.config.MaxRetryWait,
	}

	c, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}

	c.SetToken(token)
	c.ClearNamespace()

	if l.namespace != "" {
		c.SetNamespace(l.namespace)
	}
	return c, nil
}

// session returns a session that should work. If the current one does not,
// it logs in and waits for that until ctx ends. If a renewal is due, it
// starts one without waiting. refused is the session that Vault has just
// refused, or nil.
func (l *vaultTokens) session(ctx context.Context, refused *vaultSession) (*vaultSession, error) {
	if s := l.current.Load(); s.works(refused) {
		if l.isDue(s) {
			l.logins.begin("", l.refresher(refused))
		}
		return s, nil
	}

	s, err := l.logins.wait(ctx, "", l.refresher(refused))
	if err == nil && s == refused { // a renewal that had started before the refusal failed
		s, err = l.logins.wait(ctx, "", l.refresher(refused))
	}

	return s, err
}

// renewed is like session, but waits for a renewal that is due.
func (l *vaultTokens) renewed(ctx context.Context) (*vaultSession, error) {
	if s := l.current.Load(); s.works(nil) && !l.isDue(s) {
		return s, nil
	}
	return l.logins.wait(ctx, "", l.refresher(nil))
}

// isDue reports whether s should be renewed now.
func (l *vaultTokens) isDue(s *vaultSession) bool {
	retry := l.retry.Load()
	return s.due() && (retry == nil || !time.Now().Before(*retry))
}

// refresher returns a function that renews the current token or logs in. If
// both fail, the function returns the current session if that still works.
func (l *vaultTokens) refresher(refused *vaultSession) func(ctx context.Context) (*vaultSession, error) {
	return func(ctx context.Context) (*vaultSession, error) {
		s := l.current.Load()
		if s.works(refused) && !l.isDue(s) {
			return s, nil // another call has already renewed it
		}

		next, err := l.next(ctx, s, refused)
		if err == nil {
			l.current.Store(next)
			return next, nil
		}

		if !s.works(refused) {
			return nil, err
		}
		l.retry.Store(new(time.Now().Add(vaultRetry)))
		return s, nil
	}
}

func (l *vaultTokens) next(ctx context.Context, s, refused *vaultSession) (*vaultSession, error) {
	if s.works(refused) && s.renewable {
		// A token can be renewed only up to its max_ttl. Log in again well
		// before that.
		renewed, err := l.renew(ctx, s)
		if err == nil && (renewed.ttl >= s.granted/2 || l.how.mount() == "") {
			return renewed, nil
		}
	}

	return l.logIn(ctx)
}

func (l *vaultTokens) renew(ctx context.Context, s *vaultSession) (*vaultSession, error) {
	start := time.Now()
	secret, err := s.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return nil, err
	}

	renewed, err := newVaultSession(s.client, secret, start)
	if err != nil {
		return nil, err
	}
	if renewed.ttl == 0 { // it is rounded down from less than a second
		return nil, errors.New("the token is about to expire")
	}

	renewed.granted = s.granted
	return renewed, nil
}

func (l *vaultTokens) logIn(ctx context.Context) (*vaultSession, error) {
	params := make(map[string]any)
	switch h := l.how; {
	case h.AppRole != nil:
		secretID, err := fileOr(h.AppRole.SecretIDFile, h.AppRole.SecretID)
		if err != nil {
			return nil, err
		}

		params["role_id"] = h.AppRole.RoleID
		if secretID != "" {
			params["secret_id"] = secretID
		}
	case h.Kubernetes != nil:
		file := h.Kubernetes.TokenFile
		if file == "" {
			file = kubernetesTokenFile
		}

		jwt, err := fileOr(file, "")
		if err != nil {
			return nil, err
		}

		params["role"], params["jwt"] = h.Kubernetes.Role, jwt
	default:
		token, err := fileOr(h.TokenFile, h.Token)
		if err != nil {
			return nil, err
		}
		return l.lookUp(ctx, token)
	}

	c, err := l.client("")
	if err != nil {
		return nil, err
	}

	start := time.Now()
	secret, err := c.Logical().WriteWithContext(ctx, "auth/"+l.how.mount()+"/login", params)
	if err != nil {
		return nil, err
	}
	if secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		return nil, errors.New("the answer to the login contains no token")
	}

	if c, err = l.client(secret.Auth.ClientToken); err != nil {
		return nil, err
	}
	return newVaultSession(c, secret, start)
}

// lookUp asks Vault for the lifetime of a token. If the token may not look
// itself up, it is used until it no longer works.
func (l *vaultTokens) lookUp(ctx context.Context, token string) (*vaultSession, error) {
	c, err := l.client(token)
	if err != nil {
		return nil, err
	}

	start := time.Now()
	secret, err := c.Auth().Token().LookupSelfWithContext(ctx)
	if isVaultForbidden(err) {
		return &vaultSession{client: c, since: start}, nil
	}
	if err != nil {
		return nil, err
	}

	return newVaultSession(c, secret, start)
}

func newVaultSession(c *api.Client, secret *api.Secret, start time.Time) (*vaultSession, error) {
	ttl, err := secret.TokenTTL()
	if err != nil {
		return nil, errors.New("the answer contains no TTL of the token")
	}

	renewable, err := secret.TokenIsRenewable()
	if err != nil {
		return nil, errors.New("the answer does not say whether the token is renewable")
	}

	return &vaultSession{client: c, renewable: renewable, since: start, ttl: ttl, granted: ttl}, nil
}

// fileOr returns the content of the file without surrounding space, or
// value if no file is given.
func fileOr(file, value string) (string, error) {
	if file == "" {
		return value, nil
	}

	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("logging in: %w", err)
	}
	if value = strings.TrimSpace(string(text)); value == "" {
		return "", fmt.Errorf("logging in: %s is empty", file)
	}

	return value, nil
}

// markUseless records that a new token was refused like the old one, so the
// token is not the problem.
func (l *vaultTokens) markUseless() {
	now := time.Now()
	l.uselessAt.Store(&now)
}

// isUseless reports whether markUseless was called within the last
// vaultRetry. Without this check, constant requests for a denied key would
// cause constant logins.
func (l *vaultTokens) isUseless() bool {
	at := l.uselessAt.Load()
	return at != nil && time.Since(*at) < vaultRetry
}

// Run keeps the token alive until ctx ends, even if there are no calls.
// Without Run, a token is renewed only during calls. That is enough for
// auth methods that can log in again, but a configured token would expire.
func (v *Vault) Run(ctx context.Context) { v.login.run(ctx) }

func (l *vaultTokens) run(ctx context.Context) {
	for {
		s, err := l.renewed(ctx)
		wait := vaultRetry

		if err == nil && s.ttl > 0 {
			wait = max(s.ttl*2/3-time.Since(s.since), l.untilRetry(), 100*time.Millisecond)
		} else if err == nil {
			wait = time.Hour
		}

		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// untilRetry returns the time until a failed renewal is retried.
func (l *vaultTokens) untilRetry() time.Duration {
	if retry := l.retry.Load(); retry != nil {
		return time.Until(*retry)
	}
	return 0
}
