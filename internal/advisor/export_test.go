package advisor

// MaxBlobs is the limit of the sample.
const MaxBlobs = maxBlobs

// SetHash replaces the keyed hash, so that tests know the sample.
func (r *Recorder) SetHash(hash func([32]byte) uint64) { r.hash = hash }

// Blobs returns the number of blobs in the sample.
func (r *Recorder) Blobs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sample.blobs)
}
