package advisor

// MaxBlobs is the bound of the sample.
const MaxBlobs = maxBlobs

// SetHash replaces the keyed hash, so that tests know the sample.
func (r *Recorder) SetHash(hash func([32]byte) uint64) { r.hash = hash }

// Blobs returns how many blobs are remembered.
func (r *Recorder) Blobs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sample.blobs)
}
