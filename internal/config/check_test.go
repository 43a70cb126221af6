package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

func TestMissing(t *testing.T) {
	runErrors(t, []errorCase{
		{"listen", "listen: 127.0.0.1:9000\n", "", []string{`1:1: "listen" is missing in the file`}},
		{"endpoint", "  endpoint: http://127.0.0.1:7070\n", "", []string{`3:3: "endpoint" is missing in origin`}},
		{
			"client's secret", "    secret_key: in-the-clear\n", "",
			[]string{`6:5: "secret_key" is missing in clients[0]`},
		},
		{
			"client's grants", "    allow:\n      - {buckets: [\"*\"], actions: [read]}\n", "",
			[]string{`6:5: "allow" is missing in clients[0]`},
		},
		{"actions", `, actions: [read]`, "", []string{`10:9: "actions" is missing in clients[0].allow[0]`}},
		{"rule's key", "      key: default\n", "", []string{`17:7: "key" is missing in encryption.rules[0]`}},
		{"empty value", "region: us-east-1", `region: ""`, []string{`4:11: origin.region is empty`}},
		{"no clients", "clients:\n  - name: app\n    access_key: AKAPP\n    secret_key: in-the-clear\n    allow:\n" +
			"      - {buckets: [\"*\"], actions: [read]}\n", "clients: []\n", []string{`5:10: clients is empty`}},
		{
			"no keys", "keys:\n  - name: default\n    provider: local\n    key_file: /k\n", "keys: []\n",
			[]string{`11:7: keys is empty`},
		},
		{
			"no rules", "  rules:\n    - buckets: [\"*\"]\n      key: default\n", "  rules: []\n",
			[]string{`16:10: encryption.rules is empty`},
		},
		{
			"no buckets", `    - buckets: ["*"]`, `    - buckets: []`,
			[]string{`17:16: encryption.rules[0].buckets is empty`},
		},
	})
}

func TestListenErrors(t *testing.T) {
	const form = ` must be HOST:PORT, such as 127.0.0.1:9000 or :9000`
	const same = `19:15: admin_listen must be a different address than listen`
	runErrors(t, []errorCase{
		{"without port", "listen: 127.0.0.1:9000", "listen: 127.0.0.1", []string{`1:9: listen` + form}},
		{"empty port", "listen: 127.0.0.1:9000", `listen: "127.0.0.1:"`, []string{`1:9: listen` + form}},
		{"named port", "listen: 127.0.0.1:9000", `listen: 127.0.0.1:http`, []string{`1:9: listen` + form}},
		{"port too large", "listen: 127.0.0.1:9000", `listen: 127.0.0.1:65536`, []string{`1:9: listen` + form}},
		{"port alone", "", "admin_listen: 9001\n", []string{`19:15: admin_listen` + form}},
		{"equal", "", "admin_listen: 127.0.0.1:9000\n", []string{same}},
		{"equal by wildcard", "", "admin_listen: 0.0.0.0:9000\n", []string{same}},
		{"equal by empty host", "", "admin_listen: :9000\n", []string{same}},
		{"equal by localhost", "", "admin_listen: localhost:9000\n", []string{same}},
		{"default of admin_listen", "127.0.0.1:9000", "127.0.0.1:9001", []string{
			`1:1: admin_listen must be a different address than listen`,
		}},
		{
			"certificate without key", "", "tls: {cert_file: /c}\n",
			[]string{`19:18: tls.cert_file needs a tls.key_file`},
		},
		{"key without certificate", "", "tls: {key_file: /c}\n", []string{`19:17: tls.key_file needs a tls.cert_file`}},
		{"client CA alone", "", "tls: {client_ca_file: /c}\n", []string{
			`19:23: tls.client_ca_file needs a tls.cert_file and a tls.key_file`,
		}},
		{"domain with port", "", "domains: [s3.example.com:9000]\n", []string{
			`19:11: a domain must be a host name in lower case, such as s3.example.com, without a port`,
		}},
		{"domain with wildcard", "", "domains: [\"*.example\"]\n", []string{
			`19:11: a domain must be a host name in lower case, such as s3.example.com, without a port`,
		}},
		{"domain is an address", "", "domains: [a, 127.0.0.1]\n", []string{`19:14: a domain must be a name, not an IP address`}},
	})
}

func TestProxyErrors(t *testing.T) {
	const form = "trusted_proxies must have networks such as 10.1.0.0/24; a single address is written as "
	runErrors(t, []errorCase{
		{"a name", "", "trusted_proxies: [lb.example.com]\n", []string{"19:19: " + form + "10.1.0.7/32"}},
		{"an address", "", "trusted_proxies: [10.2.0.9]\n", []string{"19:19: " + form + "10.2.0.9/32"}},
		{"an IPv6 address", "", "trusted_proxies: [\"fd00::9\"]\n", []string{"19:19: " + form + "fd00::9/128"}},
		{"a zone", "", "trusted_proxies: [\"fe80::1%eth0\"]\n", []string{"19:19: " + form + "10.1.0.7/32"}},
		{"bits after the network", "", "trusted_proxies: [10.0.0.0/8, 10.1.2.3/8]\n", []string{
			"19:31: this is not the beginning of a network: write 10.0.0.0/8, or a single address with /32",
		}},
		{"all addresses", "", "trusted_proxies: [0.0.0.0/0]\n", []string{
			"19:19: this network has all addresses: any client could claim to have another address; " +
				"list the networks of the load balancers",
		}},
		{"IPv4 as IPv6", "", "trusted_proxies: [\"::ffff:10.0.0.0/104\"]\n", []string{
			"19:19: a network of IPv4 addresses must be written as such, for example 10.1.0.0/24",
		}},
		{"no one to send the header", "", "proxy_protocol: required\n", []string{
			"19:17: proxy_protocol: required needs trusted_proxies: the networks of the load balancers that send the header",
		}},
		{"one error for one mistake", "", "proxy_protocol: required\ntrusted_proxies: 10.0.0.0/8\n", []string{
			"20:18: trusted_proxies must be a list, not a string",
		}},
		{"another value", "", "proxy_protocol: v2\n", []string{`19:17: proxy_protocol must be one of off, required, not "v2"`}},
	})
}

func TestMemberErrors(t *testing.T) {
	const old = "    key_file: /k\n"
	key := func(settings string) string {
		return old + "  - {name: two, provider: local, key_file: l}\n  - {name: both, " + settings + "}\n"
	}
	runErrors(t, []errorCase{
		{"none", old, key("provider: any-of"), []string{`16:5: provider any-of needs members`}},
		{"one", old, key("provider: any-of, members: [two]"), []string{`16:45: members must be two to four keys`}},
		{"one twice", old, key("provider: any-of, members: [two, two]"), []string{
			`16:51: this key is already a member`,
		}},
		{"unknown", old, key("provider: all-of, members: [two, tree]"), []string{
			`16:51: there is no key with this name that is not itself made of others (valid: default, two)`,
		}},
		{"itself", old, key("provider: all-of, members: [two, both]"), []string{
			`16:51: there is no key with this name that is not itself made of others (valid: default, two)`,
		}},
		{"another's setting", old, key("provider: all-of, members: [default, two], key_id: x"), []string{
			`16:69: provider all-of has no key_id`,
		}},
		{"members of one key", old, key("provider: local, key_file: m, members: [default, two]"), []string{
			`16:57: provider local has no members`,
		}},
		{
			"a private key", old, key("provider: local, key_file: m, recovery_public_key: \"cmekproxy-recovery-private-v1:AA\""),
			[]string{`16:69: recovery_public_key is a private key, which must stay offline`},
		},
		{"no key", old, key("provider: local, key_file: m, recovery_public_key: x"), []string{
			`16:69: recovery_public_key must be a public key from cmekproxy recovery keygen`,
		}},
	})
}

// Wraps that never fit into an object are refused when the configuration is
// loaded.
func TestMembersThatDoNotFit(t *testing.T) {
	const old = "    key_file: /k\n"
	arn := "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890a"
	aws := func(n int, more string) string {
		text, names := old, []string{}
		for i := range n {
			names = append(names, fmt.Sprint("a", i))
			text += fmt.Sprintf("  - {name: a%d, provider: aws-kms, region: eu-central-1, key_id: \"%s%d\"}\n", i, arn, i)
		}
		return text + "  - {name: both, provider: all-of, members: [" + strings.Join(names, ", ") + "]" + more + "}\n"
	}
	const recovery = ", recovery_public_key: \"cmekproxy-recovery-public-v1:RQAf6D+0YBC7AIldXIoxd88pyQYVhYIHTfiY/2FGtVI=\""
	const wants = "bytes or more, and 888 fit into an object: use fewer members, or members of another provider"
	runErrors(t, []errorCase{
		{"four", old, aws(4, ""), []string{"19:45: the wrapped data keys of these members take 1087 " + wants}},
		{"three and a recovery key", old, aws(3, recovery), []string{
			"18:45: the wrapped data keys of these members take 909 " + wants,
		}},
	})
	for _, fits := range []string{aws(2, recovery), aws(3, "")} {
		parse(t, strings.Replace(base, old, fits, 1))
	}
}

func TestFormatErrors(t *testing.T) {
	const old = "    key_file: /k\n"
	const needs = "needs encryption.format_version 2: readers of version 1 cannot read such objects"
	rules := "encryption:\n"
	with := func(settings string) string { return rules + settings }
	for name, row := range map[string]struct{ settings, want string }{
		"version 0":       {"  format_version: 0\n", "format_version must be 1 or 2"},
		"version 3":       {"  format_version: 3\n", "format_version must be 1 or 2"},
		"sealed metadata": {"  format_version: 1\n", "seal_metadata " + needs},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(base, rules, with(row.settings), 1)
			if name == "sealed metadata" {
				text = strings.Replace(text, "      key: default\n", "      key: default\n      seal_metadata: true\n", 1)
			}
			if _, err := config.Parse("f", []byte(text), environment(nil)); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v", err)
			}
		})
	}
	for name, settings := range map[string]string{
		"recovery_public_key": ", recovery_public_key: \"cmekproxy-recovery-public-v1:RQAf6D+0YBC7AIldXIoxd88pyQYVhYIHTfiY/2FGtVI=\"",
		"provider any-of":     "",
	} {
		t.Run(name, func(t *testing.T) {
			more := old + "  - {name: two, provider: local, key_file: l" + settings + "}\n"
			if settings == "" {
				more += "  - {name: both, provider: any-of, members: [default, two]}\n"
			}
			text := strings.Replace(strings.Replace(base, rules, with("  format_version: 1\n"), 1), old, more, 1)
			if _, err := config.Parse("f", []byte(text), environment(nil)); err == nil || !strings.Contains(err.Error(), name+" "+needs) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestEndpointErrors(t *testing.T) {
	const form = `3:13: origin.endpoint must be a URL such as https://s3.example.com or http://127.0.0.1:7070`
	const end = `3:13: origin.endpoint must end after the host and port, without a path or a slash`
	for value, want := range map[string]string{
		"127.0.0.1:7070":           form,
		"s3.example.com":           form,
		"ftp://s3.example.com":     form,
		"https://":                 form,
		"http://:80":               form,
		`"http://h:"`:              form,
		"http://h:99999":           form,
		"http://h:0":               form,
		"http://h:p":               form,
		`"http://a b"`:             form,
		"https://h/":               end,
		"https://h/s3":             end,
		"https://h?a=b":            end,
		"https://h?":               end,
		`"https://h#a"`:            end,
		"https://user:pass@h":      `3:13: origin.endpoint must not contain credentials`,
		"https://user:pass@h/":     `3:13: origin.endpoint must not contain credentials`,
		`"https://user:p:ass@h:p"`: form,
	} {
		t.Run(value, func(t *testing.T) {
			checkErrors(t, replace(t, "http://127.0.0.1:7070", value), []string{want})
		})
	}
}

func TestClientErrors(t *testing.T) {
	second := func(name, accessKey string) string {
		return "  - {name: " + name + ", access_key: " + accessKey +
			", secret_key: another-one, allow: [{buckets: [a], actions: [read]}]}\nkeys:"
	}

	runErrors(t, []errorCase{
		{"one access key twice", "keys:", second("b", "AKAPP"), []string{
			`11:27: there is already a client with this access_key, on line 7`,
		}},
		{
			"one name twice", "keys:", second("app", "AKB"),
			[]string{`11:12: there is already a client with this name, on line 6`},
		},
		{"bad access key", "AKAPP", "AK/APP", []string{
			`7:17: access_key must be 1 to 128 letters, digits, '.', '_' and '-'`,
		}},
		{
			"access key from a file", "AKAPP", "file:/a",
			[]string{`7:17: access_key cannot be read from a file; only secret_key can`},
		},
		{"bad bucket", `buckets: ["*"], a`, `buckets: [logs, "a?"], a`, []string{
			`10:26: not a bucket name or a pattern (* matches any run of characters)`,
		}},
		{"empty bucket", `buckets: ["*"], a`, `buckets: [""], a`, []string{
			`10:20: not a bucket name or a pattern (* matches any run of characters)`,
		}},
		{"no access key", "    access_key: AKAPP\n", "", []string{`6:5: "access_key" is missing in clients[0]`}},
		{"empty access key", "AKAPP", `""`, []string{`7:17: clients[0].access_key is empty`}},
		{"anonymous with credentials", "    allow:", "    anonymous: true\n    allow:", []string{
			`7:17: an anonymous client has no access_key`, `8:17: an anonymous client has no secret_key`,
		}},
		{"anonymous admin", "keys:", "  - {name: all, anonymous: true, allow: [{buckets: [a], actions: [read, " +
			"admin]}]}\nkeys:", []string{
			`11:73: an anonymous client cannot be allowed admin`,
		}},
		{"two anonymous", "keys:", "  - {name: all, anonymous: true, allow: [{buckets: [a], actions: [read]}]}\n" +
			"  - {name: more, anonymous: true, allow: [{buckets: [a], actions: [read]}]}\nkeys:", []string{
			`12:29: there is already an anonymous client, on line 11`,
		}},
		{
			"no prefixes in the list", "actions: [read]", "actions: [read], prefixes: []",
			[]string{`10:53: clients[0].allow[0].prefixes is empty`},
		},
		{"origin without secret", "  region: us-east-1", "  region: us-east-1\n  access_key: AK", []string{
			`5:15: origin.access_key needs an origin.secret_key; omit both to use the AWS SDK's default ` +
				`credential chain`,
		}},
		{"origin without access key", "  region: us-east-1", "  region: us-east-1\n  secret_key: SK", []string{
			`5:15: origin.secret_key needs an origin.access_key; omit both to use the AWS SDK's default ` +
				`credential chain`,
		}},
		{"an unknown encryption of the store", "  region: us-east-1", "  region: us-east-1\n  sse: {algorithm: AES}", []string{
			`5:20: origin.sse.algorithm must be one of none, AES256, aws:kms, aws:kms:dsse, not "AES"`,
		}},
		{"a key of the store for AES256", "  region: us-east-1", "  region: us-east-1\n" +
			"  sse: {algorithm: AES256, key_id: k}", []string{
			`5:36: origin.sse.key_id needs origin.sse.algorithm aws:kms or aws:kms:dsse`,
		}},
		{"a key of the store alone", "  region: us-east-1", "  region: us-east-1\n  sse: {key_id: k}", []string{
			`5:17: origin.sse.key_id needs origin.sse.algorithm aws:kms or aws:kms:dsse`,
		}},
		{"a key of the store with a line feed", "  region: us-east-1", "  region: us-east-1\n" +
			`  sse: {algorithm: "aws:kms", key_id: "k\nX-Amz-Acl: public-read"}`, []string{
			`5:39: origin.sse.key_id must be the id, ARN or alias of a key: at most 2048 ASCII characters, without spaces`,
		}},
		{"a bucket key without aws:kms", "  region: us-east-1", "  region: us-east-1\n" +
			`  sse: {algorithm: "aws:kms:dsse", bucket_key: true}`, []string{
			`5:48: origin.sse.bucket_key needs origin.sse.algorithm aws:kms`,
		}},
	})
}

func TestKeyErrors(t *testing.T) {
	const local = "    provider: local\n    key_file: /k\n"
	runErrors(t, []errorCase{
		{"one name twice", "encryption:", "  - {name: default, provider: local, key_file: /l}\nencryption:", []string{
			`15:12: there is already a key with this name, on line 12`,
		}},
		{"aws-kms without key_id", local, "    provider: aws-kms\n", []string{`12:5: provider aws-kms needs key_id`}},
		{"aws-kms with key_file", local, "    provider: aws-kms\n    key_id: k\n    key_file: /k\n", []string{
			`15:15: provider aws-kms has no key_file`,
		}},
		{"aws-kms with a bad endpoint", local, "    provider: aws-kms\n    key_id: k\n    endpoint: kms\n", []string{
			`15:15: endpoint must be a URL such as https://s3.example.com or http://127.0.0.1:7070`,
		}},
		{"aws-kms with a bad role", local, "    provider: aws-kms\n    key_id: k\n    role_arn: me\n", []string{
			`15:15: role_arn must begin with arn:`,
		}},
		{"external_id without a role", local, "    provider: aws-kms\n    key_id: k\n    external_id: x\n", []string{
			`15:18: external_id needs a role_arn`,
		}},
		{"vault-transit without all it needs", local, "    provider: vault-transit\n", []string{
			`12:5: provider vault-transit needs key_id`,
			`12:5: provider vault-transit needs address`,
			`12:5: provider vault-transit needs login`,
		}},
		{"two logins", local, "    provider: vault-transit\n    key_id: k\n    address: https://v:8200\n" +
			"    login: {token: t, token_file: /f}\n", []string{
			`16:12: login has 2 of token, token_file, approle and kubernetes; set exactly one`,
		}},
		{"approle without a role_id", local, "    provider: vault-transit\n    key_id: k\n" +
			"    address: https://v:8200\n    login: {approle: {secret_id: s}}\n", []string{
			`16:22: login.approle needs a role_id`,
		}},
		{"kubernetes without a role", local, "    provider: vault-transit\n    key_id: k\n" +
			"    address: https://v:8200\n    login: {kubernetes: {mount: m}}\n", []string{
			`16:25: login.kubernetes needs a role`,
		}},
		{
			"gcp-kms with what is AWS's", local,
			"    provider: gcp-kms\n    key_id: k\n    region: r\n    fips: true\n",
			[]string{
				`15:13: provider gcp-kms has no region`, `16:11: provider gcp-kms has no fips`,
			},
		},
		{
			"an algorithm that Azure does not have", local,
			"    provider: azure-keyvault\n    key_id: k\n    algorithm: RSA1_5\n",
			[]string{
				`15:16: keys[0].algorithm must be one of RSA-OAEP-256, A256KW, not "RSA1_5"`,
			},
		},
		{
			"bindings that bind nothing", local,
			"    provider: azure-keyvault\n    key_id: k\n    algorithm: A256KW\n    bindings: [AAAA]\n",
			[]string{
				`16:15: bindings are for RSA keys; A256KW keys do not need them`,
			},
		},
		{
			"a form that nothing makes", local, "    provider: azure-keyvault\n    key_id: k\n    accept_form: 2\n",
			[]string{
				`15:18: accept_form: 2 needs bindings (make one with cmekproxy keys bind)`,
			},
		},
		{"a form that is not read", local, "    provider: azure-keyvault\n    key_id: k\n    accept_form: 2\n" +
			"    write_form: 1\n    bindings: [AAAA]\n", []string{
			`16:17: write_form: 1 creates blobs that accept_form: 2 refuses`,
		}},
		{"unknown accept_form", local, "    provider: azure-keyvault\n    key_id: k\n    accept_form: 3\n" +
			"    bindings: [AAAA]\n", []string{
			`15:18: accept_form must be 1 or 2`,
		}},
		{
			"pkcs11 with an id that is not hexadecimal", local,
			"    provider: pkcs11\n    module: /m\n    token: t\n    key_label: l\n    key_id: xy\n",
			[]string{
				`17:13: key_id of a pkcs11 key must be its CKA_ID in hexadecimal`,
			},
		},
		{"also_known_as", local, "    provider: aws-kms\n    key_id: k\n" +
			"    also_known_as: [alias/x, arn:aws:kms:eu-central-1:111122223333:key/a-1, " +
			"arn:aws:kms:eu-central-1:111122223333:key/a-1]\n", []string{
			`15:21: also_known_as must contain ARNs of keys, such as arn:aws:kms:REGION:ACCOUNT:key/ID`,
			`15:77: there is already this ARN, on line 15`,
		}},
		{
			"also_known_as of another provider", local,
			"    provider: gcp-kms\n    key_id: k\n    also_known_as: [a]\n",
			[]string{
				`15:20: provider gcp-kms has no also_known_as`,
			},
		},
		{"a timeout that is no bound", local, "    provider: gcp-kms\n    key_id: k\n    timeout: 0\n", []string{
			`15:14: timeout must be from 100ms to 30s`,
		}},
		{"a timeout for a file", local, local + "    timeout: 1s\n", []string{`15:14: provider local has no timeout`}},
		{"local without key_file", local, "    provider: local\n", []string{`12:5: provider local needs key_file`}},
		{
			"local with the rest", local, local + "    key_id: a\n    role_arn: b\n    endpoint: c\n    region: d\n",
			[]string{
				`15:13: provider local has no key_id`,
				`16:15: provider local has no role_arn`,
				`17:15: provider local has no endpoint`,
				`18:13: provider local has no region`,
			},
		},
	})
}

func TestRuleErrors(t *testing.T) {
	runErrors(t, []errorCase{
		{
			"unknown key", "key: default", "key: defualt",
			[]string{`18:12: there is no key with this name (did you mean "default"?)`},
		},
		{
			"read_keys of no key", "", "      read_keys: [default, defaul]\n",
			[]string{`19:28: there is no key with this name (did you mean "default"?)`},
		},
		{
			"unknown key, none near", "key: default", "key: hr",
			[]string{`18:12: there is no key with this name (valid: default)`},
		},
		{
			"unknown client", "", "      clients: [app, ap]\n",
			[]string{`19:22: there is no client with this name (did you mean "app"?)`},
		},
		{"bad bucket", `    - buckets: ["*"]`, `    - buckets: ["a/b"]`, []string{
			`17:17: not a bucket name or a pattern (* matches any run of characters)`,
		}},
		{"never reached", "", "    - {buckets: [a], key: default}\n", []string{
			`19:7: this rule is never reached: the one on line 17 matches everything`,
		}},
		{
			"keys that cannot be read make no more errors",
			"  - name: default\n    provider: local\n    key_file: /k\n", "  none\n",
			[]string{
				`12:3: keys must be a list, not a string`,
			},
		},
	})
}

func TestRangeErrors(t *testing.T) {
	const probe = `dek_cache.revocation_probe must be shorter than ttl (5m0s); 0 disables it`
	runErrors(t, []errorCase{
		{"ttl 0", "", "dek_cache: {ttl: 0}\n", []string{`19:18: dek_cache.ttl must be above 0`}},
		{"ttl negative", "", "dek_cache: {ttl: -1s}\n", []string{`19:18: dek_cache.ttl must be above 0`}},
		{"ttl above a day", "", "dek_cache: {ttl: 24h0m1s}\n", []string{`19:18: dek_cache.ttl must be at most 24h`}},
		{"probe negative", "", "dek_cache: {revocation_probe: -1s}\n", []string{
			`19:31: dek_cache.revocation_probe must not be negative; 0 disables it`,
		}},
		{"probe equal to ttl", "", "dek_cache: {revocation_probe: 5m}\n", []string{`19:31: ` + probe}},
		{"probe above ttl", "", "dek_cache: {revocation_probe: 6m, ttl: 5m}\n", []string{`19:31: ` + probe}},
		{
			"probe of a bad ttl", "", "dek_cache: {revocation_probe: 6m, ttl: 0}\n",
			[]string{`19:40: dek_cache.ttl must be above 0`},
		},
		{"outage_wait negative", "", "dek_cache: {outage_wait: -1s}\n", []string{
			`19:26: dek_cache.outage_wait must not be negative; 0 disables it`,
		}},
		{"outage_wait above idle_timeout", "", "dek_cache: {outage_wait: 2m}\n", []string{
			`19:26: dek_cache.outage_wait must be shorter than limits.idle_timeout (2m0s)`,
		}},
		{
			"open keys", "", "kms: {max_open_keys: 0}\n", []string{`19:22: kms.max_open_keys must be from 1 to 100000`},
		},
		{
			"KMS limits", "", "kms: {max_concurrent: 0, max_per_second: 0, price_per_10000: -1, currency: \"\"}\n",
			[]string{
				`19:23: kms.max_concurrent must be from 1 to 10000`,
				`19:42: kms.max_per_second must be from 1 to 100000`,
				`19:62: kms.price_per_10000 must be from 0 to 1000000`,
				`19:76: kms.currency must be 1 to 8 letters or signs, such as USD`,
			},
		},
		{"KMS timeout", "", "kms: {timeout: 31s}\n", []string{`19:16: kms.timeout must be from 100ms to 30s`}},
		{
			"audit log", "", "audit: {file: /a, stdout: true, max_size_mb: -1, max_age_days: 40000, max_files: -1}\n",
			[]string{
				`19:27: audit.stdout and audit.file cannot both be set`,
				`19:46: audit.max_size_mb must be from 0 to 1000000; 0 means no limit`,
				`19:64: audit.max_age_days must be from 0 to 36500; 0 means forever`,
				`19:82: audit.max_files must be from 0 to 100000; 0 means all`,
			},
		},
		{
			"metrics", "", "metrics: {clients: -1, buckets: 10001}\n",
			[]string{
				`19:20: metrics.clients must be from 0 to 10000; 0 means no counters by client`,
				`19:33: metrics.buckets must be from 0 to 10000; 0 means no counters by bucket`,
			},
		},
		{
			"an audit log that is no path", "", "audit: {file: [a]}\n",
			[]string{`19:15: audit.file must be a string, not a list`},
		},
		{
			"price is not a number", "", "kms: {price_per_10000: much}\n",
			[]string{`19:24: kms.price_per_10000 must be a number, not "much"`},
		},
		{"NaN", "", "kms: {price_per_10000: NaN}\n", []string{`19:24: kms.price_per_10000 must be from 0 to 1000000`}},
		{
			"max_entries 0", "", "dek_cache: {max_entries: 0}\n",
			[]string{`19:26: dek_cache.max_entries must be 1 or more`},
		},
		{
			"timeouts of the store too small", "  region: us-east-1\n",
			"  region: us-east-1\n  connect_timeout: 0\n  response_timeout: 999ms\n  idle_timeout: 0\n",
			[]string{
				`5:20: origin.connect_timeout must be from 100ms to 1m0s`,
				`6:21: origin.response_timeout must be from 1s to 1h0m0s`,
				`7:17: origin.idle_timeout must be from 1s to 1h0m0s`,
			},
		},
		{
			"timeouts of the store too large", "  region: us-east-1\n",
			"  region: us-east-1\n  connect_timeout: 61s\n  response_timeout: 61m\n  idle_timeout: 61m\n",
			[]string{
				`5:20: origin.connect_timeout must be from 100ms to 1m0s`,
				`6:21: origin.response_timeout must be from 1s to 1h0m0s`,
				`7:17: origin.idle_timeout must be from 1s to 1h0m0s`,
			},
		},
		{"limits too small", "", "limits:\n  header_timeout: 99ms\n  idle_timeout: 0\n" +
			"  max_concurrent_requests: 0\n  shutdown_grace: -1s\n", []string{
			`20:19: limits.header_timeout must be from 100ms to 10m0s`,
			`21:17: limits.idle_timeout must be from 1s to 24h0m0s`,
			`22:28: limits.max_concurrent_requests must be from 1 to 1000000`,
			`23:19: limits.shutdown_grace must be from 0s to 1h0m0s`,
		}},
		{"shutdown_delay beyond shutdown_grace", "", "limits: {shutdown_grace: 2s, shutdown_delay: 3s}\n", []string{
			`19:46: limits.shutdown_delay must not be longer than shutdown_grace (2s)`,
		}},
		{"negative shutdown_delay", "", "limits: {shutdown_delay: -1s}\n", []string{
			`19:26: limits.shutdown_delay must not be negative; 0 disables it`,
		}},
		{"memory and connections", "", "limits: {memory: 63MiB, max_connections: -1}\n", []string{
			`19:18: limits.memory must be 64MiB or more; 0 means the limit of GOMEMLIMIT or the control group`,
			`19:42: limits.max_connections must be from 0 to 4000000; 0 means four times max_concurrent_requests`,
		}},
		{"memory without a unit", "", "limits: {memory: 512}\n", []string{
			`19:18: limits.memory must be a number of bytes such as 512MiB or 2GiB, not "512"`,
		}},
		{"too much memory", "", "limits: {memory: 9999999999TiB}\n", []string{
			`19:18: limits.memory must be a number of bytes such as 512MiB or 2GiB, not "9999999999TiB"`,
		}},
		{"limits too large", "", "limits:\n  header_timeout: 11m\n  idle_timeout: 25h\n" +
			"  max_concurrent_requests: 1000001\n  shutdown_grace: 61m\n", []string{
			`20:19: limits.header_timeout must be from 100ms to 10m0s`,
			`21:17: limits.idle_timeout must be from 1s to 24h0m0s`,
			`22:28: limits.max_concurrent_requests must be from 1 to 1000000`,
			`23:19: limits.shutdown_grace must be from 0s to 1h0m0s`,
		}},
	})
}

func TestClients(t *testing.T) {
	c := parse(t, replace(t, "keys:", "  - {name: all, anonymous: true, allow: [{buckets: [a], prefixes: "+
		"[\"\", p/], actions: [read]}]}\nsession_credentials_file: /s.json\nkeys:"))
	if len(c.Clients) != 2 || c.Clients[0].Anonymous || !c.Clients[1].Anonymous ||
		c.SessionCredentialsFile != "/s.json" {
		t.Errorf("%+v, %q", c.Clients, c.SessionCredentialsFile)
	}
	if got := c.Clients[1].Allow[0].Prefixes; len(got) != 2 || got[0] != "" || got[1] != "p/" {
		t.Errorf("prefixes %q", got)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	checkErrors(t, `lisen: :9000
origin: {endpoint: x, region: r, regoin: s}
clients:
  - {name: a, access_key: A, secret_key: short, allow: [{buckets: [b], actions: [reed]}]}
keys:
  - {name: k, provider: kms}
encryption: {rules: [{buckets: ["*"], key: kk}]}
dek_cache: {ttl: soon, ttl: 5m}
`, []string{
		`1:1: unknown key "lisen" in the file (did you mean "listen"?)`,
		`1:1: "listen" is missing in the file`,
		`2:20: origin.endpoint must be a URL such as https://s3.example.com or http://127.0.0.1:7070`,
		`2:34: unknown key "regoin" in origin (did you mean "region"?)`,
		`4:42: secret_key has fewer than 8 characters`,
		`4:82: clients[0].allow[0].actions[0] must be one of read, write, delete, list, admin, lock, ` +
			`store_admin, not "reed" (did you mean "read"?)`,
		`6:25: keys[0].provider must be one of aws-kms, vault-transit, gcp-kms, azure-keyvault, pkcs11, local, all-of, any-of,` +
			` not "kms"`,
		`7:44: there is no key with this name (valid: k)`,
		`8:18: dek_cache.ttl must be a duration such as 90s, 5m or 1h30m, not "soon"`,
		`8:24: "ttl" is set twice; the first is on line 8`,
	})
}

func TestListeners(t *testing.T) {
	c := parse(t, base+"health_listen: 0.0.0.0:9002\nmetrics_listen: 0.0.0.0:9002\nadmin_token: sixteen-letters-\n")
	if c.HealthListen != "0.0.0.0:9002" || c.MetricsListen != c.HealthListen || c.AdminToken != "sixteen-letters-" {
		t.Errorf("%+v", c)
	}

	for text, want := range map[string]string{
		"health_listen: 127.0.0.1:9000\n": "health_listen must be a " +
			"different address than listen",
		"health_listen: 0.0.0.0:9001\n": "health_listen must be a " +
			"different address than admin_listen",
		"health_listen: 127.0.0.1:9002\nmetrics_listen: \"0.0.0.0:9002\"\n": "metrics_listen must be a " +
			"different address than health_listen",
		"metrics_listen: here\n":         "metrics_listen must be HOST:PORT",
		"admin_token: fifteen-letters\n": "admin_token has fewer than 16 characters",
	} {
		if _, err := config.Parse("config.yaml", []byte(base+text), environment(nil)); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestInsecureKMS: data keys are not sent unencrypted over a network unless
// the configuration says so.
func TestInsecureKMS(t *testing.T) {
	keys := func(url, more string) string {
		vault := "{name: default, provider: vault-transit, key_id: k, login: {token: t}, address: \"" + url + "\"" +
			more + "}"
		aws := "{name: aws, provider: aws-kms, key_id: alias/k, endpoint: \"" + url + "\"" + more + "}"
		return replace(t, "  - name: default\n    provider: local\n    key_file: /k\n", "  - "+vault+"\n  - "+aws+"\n")
	}

	for _, url := range []string{"http://vault.example.com:8200", "http://10.1.2.3:8200"} {
		_, err := config.Parse("config.yaml", []byte(keys(url, "")), environment(nil))
		if err == nil || !strings.Contains(err.Error(), "address is http://") ||
			!strings.Contains(err.Error(), "endpoint is http://") {
			t.Errorf("%s: %v", url, err)
		}
		parse(t, keys(url, ", insecure: true"))
	}

	for _, url := range []string{
		"http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200",
		"https://vault.example.com",
	} {
		parse(t, keys(url, ""))
	}
}
