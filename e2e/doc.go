// Package e2e tests the proxy with real clients over plain HTTP and TLS.
// Endpoint, credentials and path style are set; all other settings are the
// client's defaults. The clients are aws-cli, boto3, the AWS SDKs for Go,
// JavaScript and Ruby with their transfer managers, minio-go, minio-js, mc,
// rclone and s3cmd. Programs that build on S3 are tested too: backups,
// mounted buckets, databases, registries, uploads and readers of ranges.
//
// run.sh installs and builds what is needed and runs the tests. The tests
// start a store, a KMS (kmsd) and two proxies as separate processes. The store
// is versitygw, or MinIO, SeaweedFS or Ceph. The proxies' configuration names
// only its address and credentials. At the end, the tests search everything
// that the store keeps for the data that the clients sent.
//
//	main_test.go          the clients and scripts, and the tests of both
//	stack_test.go         the processes
//	stores_test.go        the stores; ceph.sh starts Ceph
//	copyraces_test.go     copies that race overwrites
//	fixture_test.go       the bodies and keys that clients store
//	client_test.go        the operations of a client; each client has its
//	                      own file, and js/, py/ and rb/ have the scripts
//	checks_test.go        the checks and their expected results
//	copies_test.go        copies, multipart uploads and tags
//	post_test.go          uploads with HTML forms
//	chosenkey_test.go     requests that choose a KMS key
//	customerkey_test.go   customer keys (SSE-C)
//	replicas_test.go      multipart uploads through two replicas behind a
//	                      balancer, while one of them is killed
//	rolling_test.go       restarts of two replicas behind HAProxy, under load:
//	                      no request fails; rollingload_test.go is the load,
//	                      cutoff_test.go takes the network from one of them,
//	                      nodes_test.go makes the network namespaces
//	proxyprotocol_test.go the clients' addresses, behind HAProxy and nginx
//	layouts_test.go       multipart objects with parts of many sizes
//	decrypt_test.go       stored objects read by cmekproxy decrypt and by
//	                      contrib/decrypt
//	statuspage_test.go    the operator's page, in headless Chromium
//	registry_test.go      the container registry's S3 driver
//	versions_test.go      versions of objects
//	revocation_test.go    the time from the revocation of a key to the
//	                      last byte of plaintext
//	revocationparts_test.go  revocation of one key version, for one bucket,
//	                      and during a drain
//	load_test.go          the traffic during a revocation
//	kmsprocess_test.go    the customer who revokes the key, and network
//	                      failures
//	kmserrors_test.go     how clients react to errors of the KMS
//	kit_test.go           what tenant init prints, given to the tools that read it
//	tools_test.go         programs that build on S3
//	backups_test.go       restic, duplicity and litestream
//	databases_test.go     pgBackRest, Barman and vmbackup, with databases
//	mounts_test.go        s3fs, rclone mount and s3backer
//	readers_test.go       GDAL and samtools, which read ranges
//	artifacts_test.go     git-annex, a container registry and aptly
//	awscli2_test.go       what version 2 of aws-cli sends
//	libraries_test.go     the acceptance tests of Thanos, and Parquet
//	conformance_test.go   public suites, at the store and through the
//	                      proxy; conformance.txt explains the differences
//	scan_test.go          the search for plaintext at rest
//	report_test.go        the table of results
//	matrix_test.go        the matrix in docs/s3-compatibility.md
//	docs_test.go          sections of the documentation
//
// There is no example: the package has only tests.
package e2e
