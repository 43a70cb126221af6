// Package shards has the script with which "make test" runs test binaries, and
// the tests of the script.
//
// There is no example: it is not for import.
package shards
