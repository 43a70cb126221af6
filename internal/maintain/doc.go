// Package maintain has no code of its own. Below it is what works on the
// objects of a bucket beside running proxies, and without one:
//
//	walk        all objects of a listing, several at a time, in order, resumable
//	inplace     writing a stored object again under its own name, safely
//	rewrap      moving objects to another KMS key
//	encrypt     encrypting objects that were stored in plaintext
//	verify      reading objects to their last byte
//	inventory   which KMS key protects which object
//	storecheck  what a store can do
//
// These packages never import the S3 API, and the S3 API never imports them.
package maintain
