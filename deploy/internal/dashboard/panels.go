package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

// rows returns what is in the dashboard. docs/metrics.md describes the metrics.
func rows() []row {
	return []row{
		{"Overview", overview()},
		{"Traffic", traffic()},
		{"Errors", faults()},
		{"Latency", latency()},
		{"Keys and KMS", keys()},
		{"Cache of data keys", cache()},
		{"Revocation", revocation()},
		{"Store", store()},
		{"Saturation", saturation()},
	}
}

func overview() []panel {
	return []panel{
		{
			title: "Proxies", stat: true, unit: units.Short, goodIsOne: true,
			queries: []query{{`count(cmekproxy_build_info{})`, ""}},
		},
		{
			title: "Store", stat: true, unit: units.BoolYesNo, goodIsOne: true,
			description: "Whether the store answers all proxies with their credentials.",
			queries:     []query{{`min(cmekproxy_origin_up{})`, ""}},
		},
		{
			title: "Keys that are not usable", stat: true, unit: units.Short, bad: 1,
			description: "Keys that at least one proxy cannot use, except those that were not used yet.",
			queries:     []query{{`count(min by (key) (cmekproxy_key_usable{}) == 0) or vector(0)`, ""}},
		},
		{
			title: "Failed requests", stat: true, unit: units.PercentUnit, bad: 0.05,
			description: "Share of requests with a status of 500 or more.",
			queries: []query{{
				`(sum(rate(cmekproxy_requests_total{,status=~"5.."}[$__rate_interval])) or vector(0)) ` +
					`/ sum(rate(cmekproxy_requests_total{}[$__rate_interval]))`, "",
			}},
		},
		{
			title: "Longest revocation window", stat: true, unit: units.Seconds,
			queries: []query{{`max(cmekproxy_revocation_window_seconds{})`, ""}},
		},
		{
			title: "Certificates expire in", stat: true, unit: units.Seconds,
			description: "The S3 port's certificate, the CAs of client certificates, and the ca_file of keys.",
			queries: []query{
				{`min(cmekproxy_tls_certificate_expiry_timestamp_seconds{}) - time()`, "S3 port"},
				{`min(cmekproxy_tls_client_ca_expiry_timestamp_seconds{}) - time()`, "client CA"},
				{`min(cmekproxy_kms_ca_expiry_timestamp_seconds{}) - time()`, "KMS CA"},
			},
		},
	}
}

func traffic() []panel {
	return []panel{
		{
			title: "Requests", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (operation) (rate(cmekproxy_requests_total{}[$__rate_interval]))`, "{{operation}}",
			}},
		},
		{
			title: "Body bytes", unit: units.BytesPerSecondIEC,
			queries: []query{{`sum by (direction) (rate(cmekproxy_bytes_total{}[$__rate_interval]))`, "{{direction}}"}},
		},
		{
			title: "Running requests", unit: units.Short,
			queries: []query{{`sum by (instance) (cmekproxy_requests_in_flight{})`, "{{instance}}"}},
		},
		{
			title: "Requests of clients", unit: units.RequestsPerSecond, description: "Needs metrics.clients.",
			queries: []query{{
				`topk(10, sum by (client) (rate(cmekproxy_client_requests_total{}[$__rate_interval])))`, "{{client}}",
			}},
		},
		{
			title: "Requests to buckets", unit: units.RequestsPerSecond, description: "Needs metrics.buckets.",
			queries: []query{{
				`topk(10, sum by (bucket) (rate(cmekproxy_bucket_requests_total{}[$__rate_interval])))`, "{{bucket}}",
			}},
		},
		{
			title: "Body bytes of buckets", unit: units.BytesPerSecondIEC, description: "Needs metrics.buckets.",
			queries: []query{{
				`topk(10, sum by (bucket, direction) (rate(cmekproxy_bucket_bytes_total{}[$__rate_interval])))`,
				"{{bucket}} {{direction}}",
			}},
		},
	}
}

func faults() []panel {
	return []panel{
		{
			title: "Failed requests", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (status, code) (rate(cmekproxy_requests_total{,status=~"4..|5.."}[$__rate_interval])) > 0`,
				"{{status}} {{code}}",
			}},
		},
		{
			title: "Modified or plaintext objects", unit: units.Short, description: "Answers in each hour.",
			queries: []query{{
				`sum by (code) (increase(cmekproxy_requests_total{,code=~"ObjectIntegrityError|PlaintextObject"}[1h]))`,
				"{{code}}",
			}},
		},
		{
			title: "Records that could not be audited", unit: units.Short,
			description: "In each hour. The requests were refused.",
			queries: []query{{
				`sum by (instance) (increase(cmekproxy_audit_failures_total{}[1h]))`, "{{instance}}",
			}},
		},
	}
}

func latency() []panel {
	quantile := func(q, by, metric string) string {
		return `histogram_quantile(` + q + `, sum by (le` + by + `) (rate(` + metric + `_bucket{}[$__rate_interval])))`
	}
	return []panel{
		{
			title: "Requests", unit: units.Seconds, description: "Time to the end of the response.",
			queries: []query{
				{quantile("0.5", "", "cmekproxy_request_duration_seconds"), "p50"},
				{quantile("0.95", "", "cmekproxy_request_duration_seconds"), "p95"},
				{quantile("0.99", "", "cmekproxy_request_duration_seconds"), "p99"},
			},
		},
		{
			title: "Requests by operation, p95", unit: units.Seconds,
			queries: []query{{quantile("0.95", ", operation", "cmekproxy_request_duration_seconds"), "{{operation}}"}},
		},
		{
			title: "Store and KMS, p95", unit: units.Seconds,
			description: "Time to the header of the store's response, and of KMS calls.",
			queries: []query{
				{quantile("0.95", "", "cmekproxy_origin_duration_seconds"), "store"},
				{quantile("0.95", ", operation", "cmekproxy_kms_duration_seconds"), "KMS {{operation}}"},
			},
		},
	}
}

func keys() []panel {
	return []panel{
		{
			title: "KMS calls", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (key, operation) (rate(cmekproxy_kms_duration_seconds_count{}[$__rate_interval]))`,
				"{{key}} {{operation}}",
			}},
		},
		{
			title: "Failed KMS calls", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (key, result) (rate(cmekproxy_kms_duration_seconds_count{,result!="ok"}[$__rate_interval]))`,
				"{{key}} {{result}}",
			}},
		},
		{
			title: "Usable keys", unit: units.BoolYesNo, description: "At all proxies.",
			queries: []query{{`min by (key) (cmekproxy_key_usable{})`, "{{key}}"}},
		},
		{
			title: "Waits for the proxy's own limit", unit: units.RequestsPerSecond,
			queries: []query{{`sum by (key) (rate(cmekproxy_kms_limit_waits_total{}[$__rate_interval]))`, "{{key}}"}},
		},
		{
			title: "Open circuit breakers", unit: units.Short,
			queries: []query{{`sum by (key) (cmekproxy_kms_breaker_open{})`, "{{key}}"}},
		},
		{
			title: "Tenants", unit: units.Short,
			queries: []query{
				{`max(cmekproxy_tenants{})`, "served"},
				{`max(cmekproxy_tenant_file_errors{})`, "files with errors"},
				{`max(cmekproxy_tenants_dir_failed{})`, "directory not readable"},
			},
		},
	}
}

func cache() []panel {
	rate := func(metric string) string { return `sum(rate(` + metric + `{}[$__rate_interval]))` }
	return []panel{
		{
			title: "Found in the cache", unit: units.PercentUnit,
			queries: []query{{
				rate("cmekproxy_dek_cache_hits_total") + ` / (` + rate("cmekproxy_dek_cache_hits_total") + ` + ` +
					rate("cmekproxy_dek_cache_misses_total") + ` + ` + rate("cmekproxy_dek_cache_joins_total") + `)`,
				"data keys",
			}},
		},
		{
			title: "Lookups", unit: units.RequestsPerSecond,
			queries: []query{
				{rate("cmekproxy_dek_cache_hits_total"), "found"},
				{rate("cmekproxy_dek_cache_misses_total"), "asked the KMS"},
				{rate("cmekproxy_dek_cache_joins_total"), "waited for another request"},
				{rate("cmekproxy_dek_cache_negative_hits_total"), "refused without asking"},
				{rate("cmekproxy_dek_cache_evictions_total"), "evicted"},
			},
		},
		{
			title: "Data keys", unit: units.Short,
			queries: []query{{`sum by (key) (cmekproxy_dek_cache_entries{})`, "{{key}}"}},
		},
	}
}

func revocation() []panel {
	return []panel{
		{
			title: "Revocation window", unit: units.Seconds,
			description: "The window in force must not be above the one that the configuration states.",
			queries: []query{
				{`max by (key) (cmekproxy_revocation_window_seconds{})`, "{{key}}"},
				{`max by (key) (cmekproxy_revocation_window_stated_seconds{})`, "{{key}}, stated"},
			},
		},
		{
			title: "Age of the oldest data key", unit: units.Seconds,
			queries: []query{
				{`max by (key) (cmekproxy_dek_cache_oldest_seconds{})`, "{{key}}"},
				{`min(cmekproxy_dek_cache_ttl_seconds{})`, "TTL"},
			},
		},
		{
			title: "Revoked", unit: units.Short,
			queries: []query{
				{`max by (key) (cmekproxy_key_revoked{})`, "{{key}}"},
				{`max by (key) (cmekproxy_key_parts_revoked{})`, "{{key}}, parts"},
			},
		},
		{
			title: "From the refusal to the last byte", unit: units.Seconds,
			queries: []query{{`max by (key) (cmekproxy_revocation_last_byte_seconds{})`, "{{key}}"}},
		},
		{
			title: "Transfers with a data key", unit: units.Short,
			queries: []query{{`sum by (key) (cmekproxy_dek_leases{})`, "{{key}}"}},
		},
		{
			title: "Leases that expired", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (key, event) (rate(cmekproxy_dek_leases_total{}[$__rate_interval]))`, "{{key}} {{event}}",
			}},
		},
	}
}

func store() []panel {
	return []panel{
		{
			title: "Store is up", unit: units.BoolYesNo,
			queries: []query{{`min by (instance) (cmekproxy_origin_up{})`, "{{instance}}"}},
		},
		{
			title: "Faults", unit: units.RequestsPerSecond,
			queries: []query{{`sum by (fault) (rate(cmekproxy_origin_faults_total{}[$__rate_interval]))`, "{{fault}}"}},
		},
		{
			title: "Repeated requests", unit: units.RequestsPerSecond, description: "By the fault before.",
			queries: []query{{
				`sum by (fault) (rate(cmekproxy_origin_retries_total{}[$__rate_interval]))`, "{{fault}}",
			}},
		},
		{
			title: "Requests to the store", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (status) (rate(cmekproxy_origin_duration_seconds_count{}[$__rate_interval]))`, "{{status}}",
			}},
		},
		{
			title: "Latency by operation, p95", unit: units.Seconds,
			queries: []query{{
				`histogram_quantile(0.95, sum by (le, operation) ` +
					`(rate(cmekproxy_origin_duration_seconds_bucket{}[$__rate_interval])))`, "{{operation}}",
			}},
		},
		{
			title: "What the store can do", unit: units.BoolYesNo,
			queries: []query{{`min by (capability) (cmekproxy_store_capability{})`, "{{capability}}"}},
		},
	}
}

func saturation() []panel {
	return []panel{
		{
			title: "Refused requests", unit: units.RequestsPerSecond,
			queries: []query{{
				`sum by (reason) (rate(cmekproxy_requests_refused_total{}[$__rate_interval]))`, "{{reason}}",
			}},
		},
		{
			title: "In use", unit: units.PercentUnit, description: "Of the limits of the proxy that uses most.",
			queries: []query{
				{`max(cmekproxy_young_requests{} / cmekproxy_young_requests_limit{})`, "slots"},
				{`max(cmekproxy_memory_reserved_bytes{} / (cmekproxy_memory_budget_bytes{} > 0))`, "memory"},
				{`max(cmekproxy_connections{} / (cmekproxy_connections_limit{} > 0))`, "connections"},
			},
		},
		{
			title: "Memory that requests may hold", unit: units.BytesIEC,
			queries: []query{
				{`cmekproxy_memory_reserved_bytes{}`, "{{instance}}"},
				{`cmekproxy_memory_budget_bytes{} > 0`, "{{instance}}, budget"},
			},
		},
		{
			title: "CPU", unit: units.Short, description: "Cores in use.",
			queries: []query{{
				`rate(process_cpu_seconds_total{}[$__rate_interval]) and on (job, instance) cmekproxy_build_info{}`,
				"{{instance}}",
			}},
		},
		{
			title: "Resident memory", unit: units.BytesIEC,
			queries: []query{{
				`process_resident_memory_bytes{} and on (job, instance) cmekproxy_build_info{}`, "{{instance}}",
			}},
		},
		{
			title: "Open file descriptors", unit: units.PercentUnit,
			queries: []query{{
				`process_open_fds{} / process_max_fds{} and on (job, instance) cmekproxy_build_info{}`, "{{instance}}",
			}},
		},
	}
}
