//go:build !nodev

package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// What an operator sees of a proxy that serves, of a reload that fails, and of
// one that is corrected.
func TestMetricsOfAProxy(t *testing.T) {
	store, bucket, key := proxytest.ServeStore(t), "bucket", "k"
	direct := client(strings.TrimPrefix(store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	listen, admin := freePort(t), freePort(t)
	path := writeConfig(t, store, listen, admin, "tls: {ends_on_this_machine: true}", "metrics: {clients: 1, buckets: 1}")
	s := start(t, "serve", "--config", path)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	shows := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			waitMetric(t, "http://"+admin+"/metrics", "\n"+line)
		}
	}
	in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("text")}
	if _, err := client(listen, "appkey", "appsecretappsecret").PutObject(t.Context(), in); err != nil {
		t.Fatal(err)
	}

	resp, err := http.Get("http://" + listen + "/%ff%fe%00/k") // no name that breaks a scrape
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	shows("cmekproxy_origin_up 1\n", `cmekproxy_key_usable{key="main"} 1`, `cmekproxy_kms_breaker_open{key="main"} 0`,
		`cmekproxy_client_requests_total{client="app",status_class="2xx"} 1`,
		`cmekproxy_bucket_bytes_total{bucket="bucket",direction="in"} 4`,
		`cmekproxy_build_info{fips="`, "cmekproxy_dek_cache_ttl_seconds 300\n",
		`cmekproxy_revocation_window_stated_seconds{key="main"} `,
		"cmekproxy_config_last_reload_success_timestamp_seconds ", "cmekproxy_config_last_reload_successful 1\n")

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, reload := range [][2]string{{"0", "a mistake"}, {"1", string(text)}} {
		if err := os.WriteFile(path, []byte(reload[1]), 0o600); err != nil {
			t.Fatal(err)
		}
		signalSelf(t, syscall.SIGHUP)
		shows("cmekproxy_config_last_reload_successful " + reload[0] + "\n")
	}
	s.end(t)
}

// The metrics have the expiry of the authorities in files: those of clients,
// and those of a KMS.
func TestExpiryOfAuthorities(t *testing.T) {
	listen, admin := freePort(t), freePort(t)
	config, cert, _ := tlsConfig(t, pemtest.New(t, "server"), listen, admin)
	authority := pemtest.New(t, "authority")
	file := filepath.Join(filepath.Dir(cert), "ca.crt")
	pemtest.Replace(t, file, authority.Cert)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	kmsAuthority := pemtest.Between(t, "kms", time.Now(), time.Now().Add(time.Hour))
	kmsFile := filepath.Join(filepath.Dir(cert), "kms.crt")
	pemtest.Replace(t, kmsFile, append(bytes.Clone(authority.Cert), kmsAuthority.Cert...))
	changed := strings.NewReplacer(
		"tls: {", "tls: {client_ca_file: "+file+", ",
		"keys: [", "keys: [{name: far, provider: vault-transit, address: 'https://127.0.0.1:1', key_id: k, "+
			"login: {token: t}, ca_file: "+kmsFile+"}, ",
	).Replace(string(text))
	if err := os.WriteFile(config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}

	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	end := authority.TLS(t).Leaf.NotAfter
	waitMetric(t, "http://"+admin+"/metrics",
		fmt.Sprintf("cmekproxy_tls_client_ca_expiry_timestamp_seconds %v", float64(end.Unix())))
	waitMetric(t, "http://"+admin+"/metrics", fmt.Sprintf(
		`cmekproxy_kms_ca_expiry_timestamp_seconds{key="far"} %v`, float64(kmsAuthority.TLS(t).Leaf.NotAfter.Unix())))
	s.end(t)
}

func TestUsableAsNumber(t *testing.T) {
	for state, want := range map[keyring.State]string{
		keyring.Usable: "1 true", keyring.Revoked: "0 true", keyring.Unreachable: "0 true", keyring.Unopened: "0 true",
		keyring.Unused: "0 false", keyring.IsTemplate: "0 false", keyring.AreTenants: "0 false",
	} {
		t.Run(string(state), func(t *testing.T) {
			value, known := usableAsNumber(keyring.Status{State: state})
			if got := fmt.Sprint(value, known); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

// All keys of a template have one value: the lowest, whichever comes first.
func TestKeysOfATemplateHaveOneValue(t *testing.T) {
	o := &keyObserver{}
	o.labels.Store(&map[string]string{"tenant": "tenant", "main": "main"})
	values := labelValues{o, lower, make(map[string]float64)}
	for _, v := range []struct {
		key   string
		value float64
	}{{"tenant:a", 2}, {"main", 5}, {"tenant:b", 1}, {"tenant:c", 3}} {
		values.add(v.key, v.value)
	}

	got := make(map[string]float64)
	values.each(func(label string, value float64) { got[label] = value })
	if want := map[string]float64{"tenant": 1, "main": 5}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
