package kmstest

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// operation handles a request. caller is the ARN of its sender.
type operation func(s *store, caller string, body *json.Decoder) (any, error)

// operations are the supported operations. Others get
// UnknownOperationException. Those with opAs need permission by key policy
// or grant; those with op do not, see (*store).authorize.
var operations = map[string]operation{
	"DescribeKey":          opAs((*store).describeKey),
	"GetKeyRotationStatus": opAs((*store).getKeyRotationStatus),
	"EnableKeyRotation":    op((*store).enableKeyRotation),
	"GenerateDataKey":      opAs((*store).generateDataKey),
	"Encrypt":              opAs((*store).encrypt),
	"Decrypt":              opAs((*store).decrypt),
	"ReEncrypt":            opAs((*store).reEncrypt),
	"CreateKey":            op((*store).createKey),
	"CreateAlias":          op((*store).createAlias),
	"UpdateAlias":          op((*store).updateAlias),
	"EnableKey":            op((*store).enableKey),
	"DisableKey":           op((*store).disableKey),
	"ScheduleKeyDeletion":  op((*store).scheduleKeyDeletion),
	"CancelKeyDeletion":    op((*store).cancelKeyDeletion),
	"PutKeyPolicy":         op((*store).putKeyPolicy),
	"GetKeyPolicy":         opAs((*store).getKeyPolicy),
	"CreateGrant":          op((*store).createGrant),
	"ListGrants":           opAs((*store).listGrants),
	"RevokeGrant":          op((*store).revokeGrant),
	"RetireGrant":          op((*store).retireGrant),
}

func op[In any](run func(*store, In) (any, error)) operation {
	return opAs(func(s *store, _ string, in In) (any, error) { return run(s, in) })
}

// opAs decodes the parameters of an operation, and refuses unknown
// parameters.
func opAs[In any](run func(*store, string, In) (any, error)) operation {
	return func(s *store, caller string, decoder *json.Decoder) (any, error) {
		var in In
		if err := decoder.Decode(&in); err != nil {
			if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
				return nil, refuse("ValidationException", "Unknown parameter %s.", name)
			}
			return nil, refuse("SerializationException", "The body is not the JSON of this operation.")
		}

		if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			return nil, refuse("SerializationException", "The body does not end after its object.")
		}

		s.mu.Lock()
		defer s.mu.Unlock()

		return run(s, caller, in)
	}
}

type (
	createKeyIn struct {
		Description, KeySpec, KeyUsage, Origin, Policy string
		MultiRegion, BypassPolicyLockoutSafetyCheck    bool
		Tags                                           []struct{ TagKey, TagValue string }
	}
	keyIn struct {
		KeyID       string `json:"KeyId"`
		GrantTokens []string
	}
	aliasIn struct {
		AliasName   string
		TargetKeyID string `json:"TargetKeyId"`
	}
	generateIn struct {
		KeyID             string `json:"KeyId"`
		KeySpec           string
		NumberOfBytes     int
		EncryptionContext map[string]string
		GrantTokens       []string
	}
	encryptIn struct {
		KeyID               string `json:"KeyId"`
		Plaintext           []byte
		EncryptionContext   map[string]string
		EncryptionAlgorithm string
		GrantTokens         []string
	}
	decryptIn struct {
		KeyID               string `json:"KeyId"`
		CiphertextBlob      []byte
		EncryptionContext   map[string]string
		EncryptionAlgorithm string
		GrantTokens         []string
	}
	reEncryptIn struct {
		CiphertextBlob                                            []byte
		SourceKeyID                                               string `json:"SourceKeyId"`
		DestinationKeyID                                          string `json:"DestinationKeyId"`
		SourceEncryptionContext, DestinationEncryptionContext     map[string]string
		SourceEncryptionAlgorithm, DestinationEncryptionAlgorithm string
		GrantTokens                                               []string
	}
	deleteIn struct {
		KeyID               string `json:"KeyId"`
		PendingWindowInDays int
	}
	object map[string]any
)

const algorithm = "SYMMETRIC_DEFAULT"

func (s *store) createKey(in createKeyIn) (any, error) {
	if in.KeySpec != "" && in.KeySpec != algorithm || in.KeyUsage != "" && in.KeyUsage != "ENCRYPT_DECRYPT" ||
		in.Origin != "" && in.Origin != "AWS_KMS" {
		return nil, refuse("UnsupportedOperationException", "Only symmetric keys.")
	}

	prefix := ""
	if in.MultiRegion {
		prefix = multiRegion
	}

	k, err := s.add(in.Policy, prefix)
	if err != nil {
		return nil, err
	}

	k.Description = in.Description
	if err := s.save(); err != nil {
		return nil, err
	}

	return object{"KeyMetadata": s.metadata(k)}, nil
}

func (s *store) describeKey(caller string, in keyIn) (any, error) {
	k, err := s.find(in.KeyID)
	if err == nil {
		err = s.authorize(k, access{caller, "kms:DescribeKey", nil})
	}
	if err != nil {
		return nil, err
	}
	return object{"KeyMetadata": s.metadata(k)}, nil
}

func (s *store) metadata(k *key) object {
	m := object{
		"AWSAccountId": s.account, "KeyId": k.ID, "Arn": s.arn(k), "KeyState": k.State,
		"Enabled":  k.State == stateEnabled,
		"KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": algorithm, "KeyManager": "CUSTOMER", "Origin": "AWS_KMS",
		"EncryptionAlgorithms": []string{algorithm}, "CreationDate": k.Created.Unix(),
		"MultiRegion": strings.HasPrefix(k.ID, multiRegion), "Description": k.Description,
	}

	if strings.HasPrefix(k.ID, multiRegion) {
		m["MultiRegionConfiguration"] = s.regions(k)
	}

	if k.State == statePendingDeletion {
		m["DeletionDate"] = k.Deletion.Unix()
	}
	return m
}

// regions returns the MultiRegionConfiguration of a multi-Region key.
func (s *store) regions(k *key) object {
	in := func(region string) object {
		return object{"Arn": "arn:aws:kms:" + region + ":" + s.account + ":key/" + k.ID, "Region": region}
	}

	kind, replicas := "REPLICA", []object{}
	if k.Primary == "" {
		kind = "PRIMARY"
	}
	for _, region := range k.Replicas {
		replicas = append(replicas, in(region))
	}
	return object{
		"MultiRegionKeyType": kind, "PrimaryKey": in(cmp.Or(k.Primary, s.region)), "ReplicaKeys": replicas,
	}
}

func (s *store) getKeyRotationStatus(caller string, in keyIn) (any, error) {
	k, err := s.findNoAlias(in.KeyID)
	if err == nil {
		err = s.authorize(k, access{caller, "kms:GetKeyRotationStatus", nil})
	}
	if err != nil {
		return nil, err
	}

	out := object{"KeyId": s.arn(k), "KeyRotationEnabled": k.Rotation}
	if k.Rotation {
		out["RotationPeriodInDays"] = 365
	}
	return out, nil
}

func (s *store) enableKeyRotation(in keyIn) (any, error) {
	k, err := s.findNoAlias(in.KeyID)
	if err != nil {
		return nil, err
	}
	k.Rotation = true
	return nil, s.save()
}

var aliasForm = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]{1,250}$`)

func (s *store) createAlias(in aliasIn) (any, error) {
	if !aliasForm.MatchString(in.AliasName) || strings.HasPrefix(in.AliasName, "alias/aws/") {
		return nil, refuse("InvalidAliasNameException", "%s is not an alias name.", in.AliasName)
	}
	if _, ok := s.Aliases[in.AliasName]; ok {
		return nil, refuse("AlreadyExistsException", "An alias with the name %s already exists", in.AliasName)
	}
	return s.setAlias(in)
}

func (s *store) updateAlias(in aliasIn) (any, error) {
	if _, ok := s.Aliases[in.AliasName]; !ok {
		return nil, refuse("NotFoundException", "Alias %s is not found.", in.AliasName)
	}
	return s.setAlias(in)
}

func (s *store) setAlias(in aliasIn) (any, error) {
	k, err := s.find(in.TargetKeyID)
	if err != nil {
		return nil, err
	}
	if k.State == statePendingDeletion {
		return nil, refuse("KMSInvalidStateException", "%s is pending deletion.", s.arn(k))
	}
	s.Aliases[in.AliasName] = k.ID
	return nil, s.save()
}

func (s *store) generateDataKey(caller string, in generateIn) (any, error) {
	size := in.NumberOfBytes
	switch {
	case (in.KeySpec == "") == (size == 0):
		return nil, refuse("ValidationException", "Please specify either number of bytes or key spec.")
	case in.KeySpec == "AES_256":
		size = 32
	case in.KeySpec == "AES_128":
		size = 16
	case in.KeySpec != "" || size < 1 || size > 1024:
		return nil, refuse("ValidationException", "KeySpec must be AES_256 or AES_128, NumberOfBytes 1 to 1024.")
	}

	k, err := s.usable(access{caller, "kms:GenerateDataKey", in.EncryptionContext}, in.KeyID, "")
	if err != nil {
		return nil, err
	}

	plaintext := random(size)
	return object{
		"KeyId": s.arn(k), "Plaintext": plaintext,
		"CiphertextBlob": k.seal(plaintext, in.EncryptionContext),
	}, nil
}

func (s *store) encrypt(caller string, in encryptIn) (any, error) {
	if n := len(in.Plaintext); n < 1 || n > 4096 {
		return nil, refuse("ValidationException",
			"1 validation error detected: Value at 'plaintext' failed to satisfy "+
				"constraint: Member must have length between 1 and 4096")
	}

	k, err := s.usable(access{caller, "kms:Encrypt", in.EncryptionContext}, in.KeyID, in.EncryptionAlgorithm)
	if err != nil {
		return nil, err
	}

	return object{
		"KeyId": s.arn(k), "CiphertextBlob": k.seal(in.Plaintext, in.EncryptionContext),
		"EncryptionAlgorithm": algorithm,
	}, nil
}

func (s *store) decrypt(caller string, in decryptIn) (any, error) {
	k, plaintext, err := s.open(access{caller, "kms:Decrypt", in.EncryptionContext}, in)
	if err != nil {
		return nil, err
	}
	return object{"KeyId": s.arn(k), "Plaintext": plaintext, "EncryptionAlgorithm": algorithm}, nil
}

func (s *store) reEncrypt(caller string, in reEncryptIn) (any, error) {
	from := access{caller, "kms:ReEncryptFrom", in.SourceEncryptionContext}
	source, plaintext, err := s.open(from, decryptIn{
		KeyID: in.SourceKeyID, CiphertextBlob: in.CiphertextBlob, EncryptionContext: in.SourceEncryptionContext,
		EncryptionAlgorithm: in.SourceEncryptionAlgorithm,
	})
	if err != nil {
		return nil, err
	}

	k, err := s.usable(access{caller, "kms:ReEncryptTo", in.DestinationEncryptionContext}, in.DestinationKeyID,
		in.DestinationEncryptionAlgorithm)
	if err != nil {
		return nil, err
	}

	return object{
		"KeyId": s.arn(k), "SourceKeyId": s.arn(source),
		"CiphertextBlob":            k.seal(plaintext, in.DestinationEncryptionContext),
		"SourceEncryptionAlgorithm": algorithm, "DestinationEncryptionAlgorithm": algorithm,
	}, nil
}

// open decrypts a blob. As in AWS, the key is the one in the blob, and a
// KeyId in the request must name the same key.
func (s *store) open(a access, in decryptIn) (*key, []byte, error) {
	if n := len(in.CiphertextBlob); n < 1 || n > 6144 {
		return nil, nil, refuse("ValidationException",
			"1 validation error detected: Value at 'ciphertextBlob' failed to "+
				"satisfy constraint: Member must have length between 1 and 6144")
	}
	if err := checkParameters(in.EncryptionContext, in.EncryptionAlgorithm); err != nil {
		return nil, nil, err
	}

	id, ok := blobKeyID(in.CiphertextBlob)
	if !ok {
		return nil, nil, refuse("InvalidCiphertextException", "")
	}

	k := s.Keys[id]
	if in.KeyID != "" {
		named, err := s.find(in.KeyID)
		if err == nil {
			err = s.authorize(named, a)
		}
		if err != nil {
			return nil, nil, err
		}

		if named != k {
			return nil, nil, refuse("IncorrectKeyException",
				"The key ID in the request does not identify a CMK that can perform this operation.")
		}
	}

	if k == nil {
		return nil, nil, refuse("AccessDeniedException",
			"The ciphertext refers to a customer master key that does not "+
				"exist, does not exist in this region, or you are not allowed to access.")
	}
	if err := s.authorize(k, a); err != nil {
		return nil, nil, err
	}

	if err := s.checkEnabled(k); err != nil {
		return nil, nil, err
	}

	plaintext, err := k.open(in.CiphertextBlob, in.EncryptionContext)
	if err != nil {
		return nil, nil, refuse("InvalidCiphertextException", "")
	}

	return k, plaintext, nil
}

// usable returns a key for encryption. A caller without permission does not
// learn the key's state.
func (s *store) usable(a access, id, algorithm string) (*key, error) {
	if err := checkParameters(a.context, algorithm); err != nil {
		return nil, err
	}

	k, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if err := s.authorize(k, a); err != nil {
		return nil, err
	}

	return k, s.checkEnabled(k)
}

func (s *store) checkEnabled(k *key) error {
	switch k.State {
	case stateEnabled:
		return nil
	case stateDisabled:
		return refuse("DisabledException", "%s is disabled.", s.arn(k))
	default:
		return refuse("KMSInvalidStateException", "%s is pending deletion.", s.arn(k))
	}
}

// checkParameters limits the context to 8192 bytes. AWS documents no limit,
// but clients should stay well below this.
func checkParameters(context map[string]string, name string) error {
	size := 0
	for k, v := range context {
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return refuse("ValidationException", "The encryption context has an empty name, or is not UTF-8.")
		}
		size += len(k) + len(v)
	}

	if size > 8192 {
		return refuse("ValidationException", "The encryption context is longer than 8192 bytes.")
	}
	if name != "" && name != algorithm {
		return refuse("InvalidKeyUsageException", "The key does not support %s.", name)
	}

	return nil
}

func (s *store) enableKey(in keyIn) (any, error)  { return s.setState(in.KeyID, stateEnabled) }
func (s *store) disableKey(in keyIn) (any, error) { return s.setState(in.KeyID, stateDisabled) }

func (s *store) setState(id, state string) (any, error) {
	k, err := s.findNoAlias(id)
	if err != nil {
		return nil, err
	}
	if k.State == statePendingDeletion {
		return nil, refuse("KMSInvalidStateException", "%s is pending deletion.", s.arn(k))
	}
	k.State = state
	return nil, s.save()
}

func (s *store) scheduleKeyDeletion(in deleteIn) (any, error) {
	days := in.PendingWindowInDays
	if days == 0 {
		days = 30
	}
	if days < 7 || days > 30 {
		return nil, refuse("ValidationException", "PendingWindowInDays must be 7 to 30.")
	}

	k, err := s.findNoAlias(in.KeyID)
	if err != nil {
		return nil, err
	}
	if k.State == statePendingDeletion {
		return nil, refuse("KMSInvalidStateException", "%s is pending deletion.", s.arn(k))
	}

	k.State, k.Deletion = statePendingDeletion, s.now().Add(time.Duration(days)*24*time.Hour)
	return object{
		"KeyId": s.arn(k), "DeletionDate": k.Deletion.Unix(), "KeyState": k.State, "PendingWindowInDays": days,
	}, s.save()
}

func (s *store) cancelKeyDeletion(in keyIn) (any, error) {
	k, err := s.findNoAlias(in.KeyID)
	if err != nil {
		return nil, err
	}
	if k.State != statePendingDeletion {
		return nil, refuse("KMSInvalidStateException", "%s is not pending deletion.", s.arn(k))
	}
	k.State = stateDisabled // enabling it needs EnableKey
	return object{"KeyId": s.arn(k)}, s.save()
}
