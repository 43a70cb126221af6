// Package maintain has no code. The packages below it work on the objects of a
// bucket, with or without running proxies:
//
//	walk        process all objects of a listing: in parallel, in order, resumable
//	inplace     rewrite a stored object under its own name, safely
//	rewrap      move objects to another KMS key
//	encrypt     seal objects that were stored in plaintext
//	verify      read objects to the last byte
//	inventory   list which KMS key protects which object
//	storecheck  test what a store can do
//
// These packages never import the S3 API, and the S3 API never imports them.
//
// There is no example: it has no code.
package maintain
