// Package s3api is the S3 API of the proxy.
//
// # The life of a request
//
//  1. Server.ServeHTTP (serve.go) makes a call (call.go), which has all that is
//     known of one request, and passes it to Server.handle.
//  2. The call finds bucket and key in host and path (request.go).
//  3. The matcher finds the operation's row in the table of routes (routes.go).
//     A request without a row is refused.
//  4. The signature says who the client is, and the client gets one of its slots
//     (authorize.go, slots.go).
//  5. The row says which grant the client needs (authorize.go).
//  6. Query parameters and headers that the row does not name are refused, and
//     the body is opened: its signature and checksums are verified as it is read
//     (request.go, checksums.go).
//  7. The row's handler sends requests to the store (origin.go), whose answers
//     must be what S3 answers to the operation (answers.go).
//  8. The handler writes the answer, or returns an error, which is answered,
//     logged and counted in one place (errors.go, serve.go).
//
// # Where things are
//
//	objects     get.go put.go attributes.go delete.go restore.go
//	copies      copysource.go copyobject.go copyinstore.go copyreseal.go partcopy.go
//	uploads     multipart.go complete.go uploadref.go (ids) uploads.go (data keys)
//	forms       post.go postform.go
//	buckets     bucket.go list.go listsizes.go encryption.go acl.go admin.go cors.go
//	the table   routes.go notes.go (why operations are refused) forward.go
//	headers     headers.go etag.go names.go
//	checksums   checksums.go (of a payload) objectchecksum.go (of a multipart object)
//	XML         xml.go (answers of the store) xmlbody.go (bodies of clients)
//	keys        customerkey.go (SSE-C) audit.go
//	connections connection.go idle.go disconnect.go keepalive.go transfer.go
package s3api
