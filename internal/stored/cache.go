package stored

import (
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Cache remembers the layout of objects in the store, so that reading a
// range takes one request. Cached values are used only if the object is
// still the same; see errChanged. The cache has no keys and no plaintext.
type Cache struct {
	objects *lru.Cache[string, *known]
	parts   *lru.Cache[partID, *crypt.Part]
}

// The size of a cache: about 300 bytes for each object with a regular
// layout, and 600 for each part header.
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

// known is what is known about an object. It is immutable.
type known struct {
	facts
	layout crypt.Layout // of a multipart object; nil until it is known
	// The layout comes from the record or from every part header, and not
	// from the first and last part only.
	verified   bool
	record     *crypt.Record
	recordPart *crypt.Part // the part that has the record
	upload     crypt.Upload
}

// partID identifies a part of one version of an object.
type partID struct {
	object, etag string
	stored       int64 // offset
}

// cacheID names what the cache knows. What was verified under one name says
// nothing about another one.
func cacheID(q Request) string {
	if q.At != (crypt.Object{}) {
		return fmt.Sprintf("%q %q %q", q.At, q.Object, q.Version)
	}
	return q.Object.Bucket + "\x00" + q.Object.Key + "\x00" + q.Version
}

// lookup returns what is known about the object, or nil.
func (c *Cache) lookup(q Request) *known {
	k, _ := c.objects.Get(cacheID(q))
	return k
}

// remember stores the facts about an object. It keeps the layout if the
// object has not changed.
func (c *Cache) remember(q Request, f facts) *known {
	if k := c.lookup(q); k != nil && k.same(f) {
		return k
	}
	f.envelope = nil // each answer has it again
	if f.mark != nil {
		f.mark = &crypt.Mark{KeyID: f.mark.KeyID}
	}
	k := &known{facts: f}
	c.objects.Add(cacheID(q), k)
	return k
}

func (c *Cache) put(q Request, k *known) { c.objects.Add(cacheID(q), k) }

func (c *Cache) forget(q Request) { c.objects.Remove(cacheID(q)) }

func (k *known) same(f facts) bool {
	return k.kind == f.kind && k.etag == f.etag && k.size == f.size
}
