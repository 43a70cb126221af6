// Package s3api is the S3 API of the proxy.
//
// # The life of a request
//
//  1. Server.ServeHTTP (serve.go) creates a call (call.go), which has all that
//     is known about one request, and passes it to Server.handle.
//  2. The call finds bucket and key in host and path (request.go).
//  3. The matcher finds the operation's row in the table of routes (matcher.go,
//     routes.go). A request without a row is refused.
//  4. The signature identifies the client, and the call gets one of the client's
//     slots (authorize.go, slots.go).
//  5. The client must have the grant that the row requires (authorize.go).
//  6. Query parameters and headers that the row does not name are refused. The
//     body is opened: its signature and checksums are verified while it is read
//     (request.go, checksums.go).
//  7. The row's handler sends requests to the store (origin.go), and checks that
//     each answer is one that S3 would send (answers.go).
//  8. The handler sends the response, or returns an error. Errors are converted,
//     sent, logged and counted in one place (errors.go, serve.go).
//
// # Where things are
//
//	objects     get.go put.go attributes.go delete.go restore.go
//	copies      copysource.go copyobject.go copyinstore.go copyconfirm.go copyreseal.go partcopy.go
//	uploads     multipart.go complete.go uploadref.go (ids) uploads.go (data keys)
//	forms       post.go postform.go
//	buckets     bucket.go list.go listsizes.go encryption.go acl.go admin.go cors.go
//	the table   routes.go notes.go (why operations are refused) forward.go
//	headers     headers.go etag.go names.go
//	checksums   checksums.go (of a payload) objectchecksum.go (of a multipart object)
//	XML         xml.go (answers of the store) xmlbody.go (requests of clients)
//	keys        customerkey.go (SSE-C) audit.go
//	connections connection.go idle.go disconnect.go keepalive.go transfer.go
//
// There is no example: it needs a store and a KMS. cmekproxy dev starts all
// of them.
package s3api
