package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// A process that is killed cannot remove its test objects. So check starts a
// second process first, which waits for the end of the first and then removes
// what that has left. If all processes are killed at once, as with a
// container, the next check removes it.

const cleanerName = "clean-after-check"

// cleanerCommand is the second process. It is not for users. Its input is the
// configuration, and ends when check ends.
func cleanerCommand() *cobra.Command {
	c := &cobra.Command{Use: cleanerName + " BUCKET NAME", Hidden: true, Args: cobra.ExactArgs(2)}
	c.RunE = func(c *cobra.Command, args []string) error {
		var text bytes.Buffer
		if _, err := text.ReadFrom(c.InOrStdin()); err != nil {
			return err
		}
		time.Sleep(settling)
		return cleanAfter(c.Context(), text.Bytes(), args[0], args[1])
	}
	return c
}

// settling is the time in which the store finishes what a process has asked
// for that was killed.
const settling = time.Second

func cleanAfter(ctx context.Context, text []byte, bucket, name string) error {
	//nolint:forbidigo // hands the environment to internal/config
	cfg, err := config.ParseOffline(cleanerName, text, os.LookupEnv)
	if err != nil {
		return err
	}
	s, err := openStore(ctx, cfg, "", zap.NewNop(), metrics.New())
	if err != nil {
		return err
	}
	_, err = s.newProbe(bucket, "").SweepAfter(ctx, name)
	return err
}

// startCleaner starts the second process with the configuration. The caller
// must call dismiss when nothing is left to be removed.
func startCleaner(text []byte, bucket, name string) (dismiss func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, cleanerName, bucket, name) //nolint:gosec,noctx // this program; it outlives the context
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's signals go to a session
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}

	dismiss = func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close()
		_ = cmd.Wait() // an error, because it was killed
	}
	if _, err := stdin.Write(text); err != nil {
		dismiss()
		return nil, fmt.Errorf("starting %s: %w", cleanerName, err)
	}
	return dismiss, nil
}
