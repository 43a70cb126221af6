package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// healthTimeout is less than the timeout of the image's HEALTHCHECK, so that
// the reason is printed.
const healthTimeout = 3 * time.Second

func healthCommand() *cobra.Command {
	var live bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "health",
		Short: "Ask the proxy on this machine whether it serves; exit 1 if it does not",
		Long: "Asks /readyz on health_listen (or admin_listen) of the configuration. It reads no other setting and " +
			"no secret. It is the HEALTHCHECK of the image, and can be an exec probe.",
		Args: noArguments,
	}
	path := configFlag(c)
	c.Flags().BoolVar(&live, "live", false, "ask /healthz, which also answers while the proxy drains")
	c.Flags().DurationVar(&timeout, "timeout", healthTimeout, "give up after this `TIME`")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if timeout <= 0 {
			return usageError{fmt.Errorf("--timeout is %v, and must be more than 0", timeout)}
		}
		ctx, cancel := context.WithTimeout(c.Context(), timeout)
		defer cancel()
		resource := "/readyz"
		if live {
			resource = "/healthz"
		}
		return askHealth(ctx, *path, resource, c.OutOrStdout())
	}
	return c
}

// askHealth prints the answer of the proxy to a GET of resource. It returns an
// error unless the status is 200.
func askHealth(ctx context.Context, path, resource string, stdout io.Writer) error {
	path, text, err := readConfigText(path)
	if err != nil {
		return err
	}
	//nolint:forbidigo // hands the environment to internal/config
	address, err := config.HealthAddress(path, text, os.LookupEnv)
	if err != nil {
		return err
	}

	url := "http://" + reachable(address) + resource
	answer, err := get(ctx, url)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s did not answer in time: the proxy hangs or is overloaded, or --timeout is too short", url)
	case err != nil:
		return fmt.Errorf("%w (the address is from %s)", err, path)
	}

	_, err = fmt.Fprintln(stdout, answer)
	return err
}

// get returns the text of the answer to a GET. It uses no HTTP proxy and
// follows no redirect, since it asks this machine.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return "", fmt.Errorf("asking %s: %w: is the proxy running, on that port?", url, err)
	}
	defer response.Body.Close()

	text, err := io.ReadAll(io.LimitReader(response.Body, 200)) //nolint:forbidigo // limited
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", url, err)
	}
	answer := strings.TrimSpace(string(text))
	switch response.StatusCode {
	case http.StatusOK:
		return answer, nil
	case http.StatusServiceUnavailable:
		return "", fmt.Errorf("%s answers %s: the proxy takes no new clients; %s", url, response.Status, answer)
	default:
		return "", fmt.Errorf("%s answers %s: is that the health port of cmekproxy?", url, response.Status)
	}
}

// reachable returns the address to connect to for a listener. One on all
// interfaces is also on 127.0.0.1, even if its host is "::".
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
