package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// The bench starts itself with one of these commands, so that each server is
// a process whose CPU time and memory are its own.
const (
	originCommand      = "origin"
	passThroughCommand = "pass-through"
	kmsCommand         = "kms"
)

// serve runs one of the commands until ctx is done.
//
//	origin ADDRESS TLS-ADDRESS DIR
//	pass-through ADDRESS TLS-ADDRESS DIR ORIGIN TLS-ORIGIN
//	kms ADDRESS
//
// DIR has the certificate. The KMS prints the ARN of its key.
func serve(ctx context.Context, args []string) error {
	switch {
	case args[0] == originCommand && len(args) == 4:
		s := newStore()
		return serveBoth(ctx, args[1], args[2], args[3], s, s)
	case args[0] == passThroughCommand && len(args) == 6:
		plain, err := newPassThrough(args[4], "")
		if err != nil {
			return err
		}
		secure, err := newPassThrough(args[5], certFile(args[3]))
		if err != nil {
			return err
		}
		return serveBoth(ctx, args[1], args[2], args[3], plain, secure)
	case args[0] == kmsCommand && len(args) == 2:
		return serveKMS(ctx, args[1])
	default:
		return fmt.Errorf("unknown command or wrong arguments: %q; see -h for the flags", args)
	}
}

// serveBoth serves one handler with plain HTTP, and another with TLS.
func serveBoth(ctx context.Context, addr, tlsAddr, dir string, plain, secure http.Handler) error {
	servers := []*http.Server{
		{Addr: addr, Handler: plain, ReadHeaderTimeout: time.Minute},
		{Addr: tlsAddr, Handler: secure, ReadHeaderTimeout: time.Minute},
	}
	servers[1].Protocols = new(http.Protocols)
	servers[1].Protocols.SetHTTP1(true)

	failed := make(chan error, len(servers))
	for i, server := range servers {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", server.Addr)
		if err != nil {
			return err
		}
		go func() {
			if i == 0 {
				failed <- server.Serve(listener)
			} else {
				failed <- server.ServeTLS(listener, certFile(dir), keyFile(dir))
			}
		}()
	}

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return errors.Join(servers[0].Close(), servers[1].Close())
	}
}

func serveKMS(ctx context.Context, addr string) error {
	server, err := kmstest.Start(kmstest.Config{Listen: addr})
	if err != nil {
		return err
	}

	arn, err := server.CreateKey()
	if err == nil {
		fmt.Println(arn)
		<-ctx.Done()
	}
	return errors.Join(err, server.Close())
}
