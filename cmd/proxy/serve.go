package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func serve(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	path := flags.String("config", "", "path of the configuration `FILE`, see config.example.yaml")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return err
	}
	log, err := newLog(cfg.Log.Level)
	if err != nil {
		return err
	}
	a, err := build(ctx, cfg, log, "")
	if err != nil {
		return err
	}
	defer a.close()
	a.path = *path
	return a.serve(ctx, nil)
}

func loadConfig(path string) (*config.Config, error) {
	if path == "" {
		return nil, usageError{errors.New("--config FILE is missing")}
	}
	return config.Load(path, os.LookupEnv) //nolint:forbidigo // the one place that hands the environment to internal/config
}

// serve answers requests until ctx ends, then lets running ones finish for limits.shutdown_grace. ready, if not nil, is
// called with the S3 address once it listens.
func (a *app) serve(ctx context.Context, ready func(net.Addr)) error {
	if err := a.openAudit(a.cfg.Audit); err != nil {
		return err
	}
	s3, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer s3.Close()
	adminListener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.AdminListen)
	if err != nil {
		return fmt.Errorf("admin_listen: %w", err)
	}
	health := &health{}
	s3Server := a.server(a.s3)
	s3Server.ConnContext = s3api.ConnContext
	s3Server.TLSConfig = a.tls
	adminServer := a.server(a.admin(health))

	running, stop := context.WithCancel(ctx)
	defer stop()
	go a.keys.Run(running)
	a.tryKeys(running)
	a.onSignals(running)
	failed := make(chan error, 2)
	go func() { failed <- serveHTTP(s3Server, s3) }()
	go func() { failed <- serveHTTP(adminServer, adminListener) }()

	health.ready.Store(true)
	a.log.Info("serving", zap.Stringer("s3", s3.Addr()), zap.Stringer("admin", adminListener.Addr()), zap.Bool("tls", a.tls != nil),
		zap.Stringer("revocation_window", a.keys.Window(a.cache.TTL())), zap.String("version", versionString()))
	if ready != nil {
		ready(s3.Addr())
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	health.ready.Store(false)
	return errors.Join(err, a.drain(s3Server), adminServer.Close())
}

// drain stops accepting and waits for running requests, for the grace time at most.
func (a *app) drain(server *http.Server) error {
	grace, cancel := context.WithTimeout(context.Background(), a.cfg.Limits.ShutdownGrace)
	defer cancel()
	a.log.Info("draining", zap.Stringer("at_most", a.cfg.Limits.ShutdownGrace))
	if err := server.Shutdown(grace); err != nil {
		a.log.Warn("requests were still running and are cut off", zap.Error(err))
		return server.Close()
	}
	a.log.Info("drained")
	return nil
}

func (a *app) server(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:                      handler,
		ReadHeaderTimeout:            a.cfg.Limits.HeaderTimeout,
		IdleTimeout:                  idleConnection,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     zap.NewStdLog(a.log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))),
	}
}

func serveHTTP(server *http.Server, listener net.Listener) error {
	var err error
	if server.TLSConfig != nil {
		err = server.ServeTLS(listener, "", "")
	} else {
		err = server.Serve(listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
