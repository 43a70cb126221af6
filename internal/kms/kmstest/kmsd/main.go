// Command kmsd runs the AWS KMS look-alike of package kmstest as a process,
// for demonstrations and end-to-end tests. It prints one line of JSON with its
// endpoint and the keys it created, and serves until it is told to stop.
//
// Who calls is told by the access key id alone: the user of that name, in
// account 111122223333, is its principal in key policies and grants. The
// operations that change a key are for everyone.
//
// It is no KMS to trust: it takes any signature, and keeps keys in clear.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kmsd:", err)
		os.Exit(1) //nolint:gocritic // the signal handler ends with the process
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("kmsd", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address to listen on")
	region := flags.String("region", "us-east-1", "region of the keys")
	state := flags.String("state", "", "file that keeps the keys, in clear, across restarts")
	create := flags.Int("create-key", 0, "number of keys to create")
	if err := flags.Parse(args); err != nil {
		return err
	}

	server, err := kmstest.Start(kmstest.Config{Listen: *listen, Region: *region, StateFile: *state})
	if err != nil {
		return err
	}
	defer server.Close()

	ready := struct {
		Endpoint string   `json:"endpoint"`
		Region   string   `json:"region"`
		Keys     []string `json:"keys"`
	}{server.URL(), *region, []string{}}
	for range *create {
		arn, err := server.CreateKey()
		if err != nil {
			return err
		}
		ready.Keys = append(ready.Keys, arn)
	}

	if err := json.NewEncoder(stdout).Encode(ready); err != nil {
		return err
	}

	<-ctx.Done()
	return nil
}
