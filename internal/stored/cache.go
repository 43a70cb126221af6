package stored

import (
	"crypto/sha256"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Cache remembers how objects are laid out in the store, so that a range costs
// one request. What it says of an object is never taken without asking whether
// the object is still the same; see errChanged. It holds no key and no
// plaintext.
type Cache struct {
	objects *lru.Cache[string, *known]
	parts   *lru.Cache[partID, *crypt.Part]
}

// What a cache holds at most: about 300 bytes for an object whose layout is a
// regular one, and 600 for a part header.
const (
	maxObjects = 8192
	maxParts   = 16_384
)

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{newLRU[string, *known](maxObjects), newLRU[partID, *crypt.Part](maxParts)}
}

func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	return c
}

// known is what is known of an object. It is immutable.
type known struct {
	facts
	layout     crypt.Layout // of a multipart object; nil if not known yet
	verified   bool         // by the record or by every header, and not by the first and the last alone
	record     *crypt.Record
	recordPart *crypt.Part // the part that has the record
	upload     [sha256.Size]byte
}

// partID names a part of an object in a certain state.
type partID struct {
	object, etag string
	stored       int64 // offset
}

func cacheID(q Request) string {
	return q.Object.Bucket + "\x00" + q.Object.Key + "\x00" + q.Version
}

// lookup returns what is known of the object, or nil.
func (c *Cache) lookup(q Request) *known {
	k, _ := c.objects.Get(cacheID(q))
	return k
}

// remember remembers the facts, and keeps the layout if the object is the one
// that it was found out of.
func (c *Cache) remember(q Request, f facts) *known {
	if k := c.lookup(q); k != nil && k.same(f) {
		return k
	}
	f.envelope = nil // it is read again with every answer
	k := &known{facts: f}
	c.objects.Add(cacheID(q), k)
	return k
}

func (c *Cache) put(q Request, k *known) { c.objects.Add(cacheID(q), k) }

func (c *Cache) forget(q Request) { c.objects.Remove(cacheID(q)) }

func (k *known) same(f facts) bool {
	return k.kind == f.kind && k.etag == f.etag && k.size == f.size
}
