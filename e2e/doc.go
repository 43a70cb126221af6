// Package e2e proves the proxy with real clients, each with its default
// settings apart from endpoint, credentials and path style, over plain HTTP
// and TLS: aws-cli, boto3, the Go and JavaScript SDKs of AWS with their
// transfer managers, minio-go, minio-js, mc, rclone and s3cmd; and with what
// is built on S3: backups, mounted buckets, databases.
//
// run.sh installs and builds what is needed and runs the tests, which start a
// store (versitygw) and a KMS (kmsd) as processes of their own, and two
// proxies in front of them. At the end, everything the store has written to
// disk is searched for what the clients had sent.
//
//	stack_test.go     the processes
//	fixture_test.go   the bodies and keys that clients store
//	client_test.go    what a client can be asked to do; one file per client beside it, js/ and py/ for the scripts
//	checks_test.go    what is asked, and what must come of it; copies_test.go of copies, uploads in parts and tags
//	replicas_test.go  uploads in parts through two replicas behind a balancer, of which one is killed
//	layouts_test.go   objects of parts of many sizes
//	decrypt_test.go   live objects by cmekproxy decrypt and by contrib/decrypt
//	registry_test.go  the container registry's S3 driver
//	versions_test.go  versions of objects
//	revocation_test.go  how long after a key has gone the last byte comes; load_test.go is what goes on meanwhile, and
//	                  kmsprocess_test.go the customer who takes the key away, and the network that fails
//	kmserrors_test.go what clients make of the KMS's errors
//	tools_test.go     what is built on S3
//	backups_test.go   restic, duplicity and litestream
//	mounts_test.go    s3fs and rclone mount
//	libraries_test.go Thanos' acceptance tests and Parquet
//	conformance_test.go  public suites, at the store and through the proxy; conformance.txt is what differs, and why
//	scan_test.go      the search for plaintext at rest
//	report_test.go    the table at the end; matrix_test.go writes it into docs/s3-compatibility.md
//
// There is no example: it is tests.
package e2e
