package kmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// The AWS key states that this server supports.
const (
	stateEnabled         = "Enabled"
	stateDisabled        = "Disabled"
	statePendingDeletion = "PendingDeletion"
)

// store contains the keys and aliases of a server, with their policies and
// grants. Exported fields are saved in the state file.
type store struct {
	account, region, file string
	now                   func() time.Time

	mu       sync.Mutex
	roles    map[string]Role   // by name
	sessions map[string]string // access key id of AssumeRole to name of role
	Keys     map[string]*key   `json:"keys"`    // by key id
	Aliases  map[string]string `json:"aliases"` // "alias/name" to key id
}

type key struct {
	ID       string         `json:"id"`
	Material []byte         `json:"material"`
	State    string         `json:"state"`
	Created  time.Time      `json:"created"`
	Deletion time.Time      `json:"deletion,omitzero"`
	Policy   string         `json:"policy,omitempty"` // "" in files older than policies
	Grants   []*storedGrant `json:"grants,omitempty"`

	Description string   `json:"description,omitempty"`
	Rotation    bool     `json:"rotation,omitempty"`
	Primary     string   `json:"primary,omitempty"`  // the Region of the primary key, of a replica
	Replicas    []string `json:"replicas,omitempty"` // Regions

	rules *keyPolicy // Policy, parsed
}

func openStore(cfg Config) (*store, error) {
	s := &store{
		account: cfg.AccountID, region: cfg.Region, file: cfg.StateFile, now: cfg.Now,
		roles: make(map[string]Role), sessions: make(map[string]string),
		Keys: make(map[string]*key), Aliases: make(map[string]string),
	}
	if s.account == "" {
		s.account = "111122223333"
	}

	if s.region == "" {
		s.region = "us-east-1"
	}
	if s.now == nil {
		s.now = time.Now
	}

	if s.file == "" {
		return s, nil
	}

	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, s)
	}

	for _, k := range s.Keys {
		err = errors.Join(err, s.setPolicy(k, k.Policy))
	}

	if err != nil {
		return nil, fmt.Errorf("kmstest: reading the state: %w", err)
	}
	return s, nil
}

// save replaces the state file atomically.
func (s *store) save() error {
	if s.file == "" {
		return nil
	}

	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file+".new", data, 0o600); err != nil {
		return err
	}

	return os.Rename(s.file+".new", s.file)
}

// multiRegion is the prefix of multi-Region key ids.
const multiRegion = "mrk-"

// add creates a key with a policy; "" means the default policy. prefix
// starts the key id. The caller holds s.mu.
func (s *store) add(policy, prefix string) (*key, error) {
	id := random(16)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // a random UUID, RFC 9562, section 5.4
	h := hex.EncodeToString(id)
	name := prefix + h

	if prefix == "" {
		name = strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	}

	k := &key{
		ID:       name,
		Material: random(32),
		State:    stateEnabled,
		Created:  s.now(),
	}
	if err := s.setPolicy(k, policy); err != nil {
		return nil, err
	}

	s.Keys[k.ID] = k
	return k, s.save()
}

func (s *store) arn(k *key) string {
	return "arn:aws:kms:" + s.region + ":" + s.account + ":key/" + k.ID
}

// find returns a key by id, ARN, alias name or alias ARN. The caller holds
// s.mu.
func (s *store) find(name string) (*key, error) {
	id := name
	if arn, ok := strings.CutPrefix(name, "arn:"); ok {
		resource, ok := strings.CutPrefix(arn, "aws:kms:"+s.region+":"+s.account+":")
		if !ok {
			return nil, refuse("NotFoundException", "Invalid arn %s", s.region)
		}
		id = strings.TrimPrefix(resource, "key/")
	}

	if strings.HasPrefix(id, "alias/") {
		target, ok := s.Aliases[id]
		if !ok {
			return nil, refuse("NotFoundException", "Alias %s is not found.", name)
		}
		id = target
	}

	k := s.Keys[id]
	if k != nil && k.State == statePendingDeletion && !s.now().Before(k.Deletion) {
		delete(s.Keys, id)
		k = nil
	}
	if k == nil {
		return nil, refuse("NotFoundException", "Key '%s' does not exist", name)
	}

	return k, nil
}

// findNoAlias is find for operations that do not accept aliases.
func (s *store) findNoAlias(name string) (*key, error) {
	if strings.Contains(name, "alias/") {
		return nil, refuse("NotFoundException", "Invalid keyId %s", name)
	}
	return s.find(name)
}

// A blob is a fixed header, the key's id, padding, nonce, encrypted data
// and tag. Everything before the nonce is authenticated. The padding makes
// it as long as AWS's blobs: 152 bytes more than the plaintext.
const (
	blobID     = "\x01\x02\x02\x00\x78"
	blobMulti  = "\x01\x02\x02\x00\x79" // for a multi-Region key
	blobFrame  = 152 - len(blobID) - 16 - 12 - 16
	blobHeader = len(blobID) + 16 + blobFrame
)

func (k *key) seal(plaintext []byte, context map[string]string) []byte {
	head, digits := blobID, strings.ReplaceAll(k.ID, "-", "")
	if h, ok := strings.CutPrefix(k.ID, multiRegion); ok {
		head, digits = blobMulti, h
	}

	id, err := hex.DecodeString(digits)
	if err != nil || len(id) != 16 {
		panic("kmstest: a key id that is no UUID")
	}

	blob := append([]byte(head), id...)
	blob = append(blob, random(blobFrame)...)
	return k.aead().Seal(blob, nil, plaintext, associatedData(blob, context))
}

func (k *key) open(blob []byte, context map[string]string) ([]byte, error) {
	return k.aead().Open(nil, nil, blob[blobHeader:], associatedData(blob[:blobHeader], context))
}

// blobKeyID returns the key id in a blob. ok is false if it is not a blob
// of this server.
func blobKeyID(blob []byte) (string, bool) {
	if len(blob) < blobHeader {
		return "", false
	}

	h := hex.EncodeToString(blob[len(blobID) : len(blobID)+16])
	switch string(blob[:len(blobID)]) {
	case blobID:
	case blobMulti:
		return multiRegion + h, true
	default:
		return "", false
	}

	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-"), true
}

func (k *key) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.Material)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func associatedData(header []byte, context map[string]string) []byte {
	aad := slices.Clone(header)
	for _, name := range slices.Sorted(maps.Keys(context)) {
		for _, s := range []string{name, context[name]} {
			aad = binary.BigEndian.AppendUint64(aad, uint64(len(s)))
			aad = append(aad, s...)
		}
	}
	return aad
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
