package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy, in front of a store",
		Long:  "Run the proxy, in front of a store, until SIGTERM. config.example.yaml lists all settings.",
		Args:  noArguments,
	}
	path := configFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error { return serve(c.Context(), *path) }
	return c
}

func serve(ctx context.Context, path string) error {
	file, err := readConfig(path)
	if err != nil {
		return err
	}

	log, level, err := newLog(file.Log.Level)
	if err != nil {
		return err
	}

	s, err := newServer(ctx, file.Config, log, "")
	if err != nil {
		return err
	}
	defer s.close()

	defer runtime.KeepAlive(newHeapFloor())
	s.file, s.path, s.level = file, file.path, &level
	for _, name := range shortSecrets(file.Clients) {
		log.Warn(
			"the secret key of a client has fewer than 20 characters: choose a longer one",
			zap.String("client", name),
		)
	}

	return s.serve(ctx, nil)
}

// configFile is a configuration, and the text from which it was parsed.
type configFile struct {
	*config.Config
	path    string
	text    []byte
	problem string // the last error of reloading its secrets
	unused  string // the last error of reload_on_change
}

func readConfig(flag string) (*configFile, error) {
	path, text, err := readConfigText(flag)
	if err != nil {
		return nil, err
	}
	return (&configFile{path: path, text: text}).again()
}

// again parses the same text again. This reloads the secrets that are in
// files.
func (f *configFile) again() (*configFile, error) {
	//nolint:forbidigo // hands the environment to internal/config
	cfg, err := config.Parse(f.path, f.text, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return &configFile{Config: cfg, path: f.path, text: f.text}, nil
}

// serve handles requests until ctx ends, and then drains. ready, if not nil,
// is called with the S3 address once the port is open.
func (s *server) serve(ctx context.Context, ready func(net.Addr)) error {
	log, err := s.openAudit(s.cfg.Audit)
	if err != nil {
		return err
	}
	s.useAudit(log)
	s3, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer s3.Close()

	second, release := secondSignal(ctx)
	defer release()
	health := newHealth()
	side, err := s.listenBeside(ctx, health)
	if err != nil {
		return err
	}
	defer side.close()
	s3Server := s.httpServer(health.leaving(s.s3))

	s3Server.ConnContext, s3Server.ConnState = s3api.ConnContext, s.open.track
	s.watchCertificate()

	// The duties continue after the signal to stop: while a request runs,
	// keys are probed, tokens are renewed, and signals are handled.
	duties, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s.startDuties(duties)
	failed := make(chan error, 1+len(side))
	listener := &tlsListener{s.s3Listener(s3), s}
	go func() { failed <- serveHTTP(s3Server, listener) }()

	side.serve(failed)

	health.serve()
	s.log.Info(
		"serving",
		zap.Stringer("s3", s3.Addr()),
		zap.String("admin", strings.Join(side.addresses(), " ")),
		zap.Bool("tls", s.tls.Load() != nil),
		zap.Stringer("revocation_window", s.keys.Window(s.cache.TTL())),
		zap.String("version", versionString()),
		zap.String("fips140", fipsModule()),
	)
	s.notify("READY=1", "STATUS=serving S3 on "+s3.Addr().String())

	if ready != nil {
		ready(s3.Addr())
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}

	s.end = time.Now().Add(s.current().Limits.ShutdownGrace)
	health.drain(s.end)
	return errors.Join(err, s.drain(context.Cause(ctx), second, s3Server))
}

// beside are the servers of all ports other than S3's. They run until the
// last S3 request has ended.
type beside []besideServer

type besideServer struct {
	server   *http.Server
	listener net.Listener
}

func (s *server) listenBeside(ctx context.Context, h *health) (out beside, err error) {
	for _, port := range s.sidePorts(h) {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", port.address)
		if err != nil {
			out.close()
			return nil, fmt.Errorf("admin_listen, health_listen or metrics_listen: %w", err)
		}
		out = append(out, besideServer{s.httpServer(port.mux), listener})
	}
	return out, nil
}

func (b beside) serve(failed chan<- error) {
	for _, s := range b {
		go func() { failed <- serveHTTP(s.server, s.listener) }()
	}
}

func (b beside) close() {
	for _, s := range b {
		_ = s.listener.Close() // for a listener that was never served
		_ = s.server.Close()
	}
}

func (b beside) addresses() (out []string) {
	for _, s := range b {
		out = append(out, s.listener.Addr().String())
	}
	return out
}

// goodSecret is the shortest length that a client's secret key should have,
// in characters. AWS secret keys have 40.
const goodSecret = 20

// shortSecrets returns the names of the clients with a short secret key. A
// short key can be guessed from one signature.
func shortSecrets(clients []config.Client) (names []string) {
	for _, c := range clients {
		if !c.Anonymous && len(c.SecretKey) < goodSecret {
			names = append(names, c.Name)
		}
	}
	return names
}

// startDuties starts the background work, which ends with ctx.
func (s *server) startDuties(ctx context.Context) {
	go s.keys.Run(ctx)
	go s.history.Run(ctx)
	go returnMemory(ctx, func() int { return s.api.Load().Running })
	s.beginKeys(ctx, nil)
	s.tryKeys(ctx, s.cfg.Keys)
	s.onSignals(ctx)
	if s.tenants != nil {
		go s.watchTenants(ctx)
	}
}

func (s *server) httpServer(handler http.Handler) *http.Server {
	errorLog, err := zap.NewStdLogAt(s.log, zap.WarnLevel)
	if err != nil {
		panic(err) // only for a level that does not exist
	}
	return &http.Server{
		Handler:                      handler,
		ReadHeaderTimeout:            s.cfg.Limits.HeaderTimeout,
		IdleTimeout:                  idleConnection,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     errorLog,
	}
}

func serveHTTP(server *http.Server, listener net.Listener) error {
	err := server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
