package kmstest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/option"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// GCPServer is A TEST SERVER, NOT GOOGLE'S. It implements Encrypt, Decrypt
// and what describes a key (see gcpdescribe.go) of the gRPC service google.cloud.kms.v1.KeyManagementService
// (https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1)
// with real keys and versions, over unencrypted loopback connections
// without authentication. Errors have Google's codes and details. It is
// stricter than Google so that mistakes of clients are noticed: it refuses
// requests without checksums. It keeps keys in memory, unencrypted.
type GCPServer struct {
	kmspb.UnimplementedKeyManagementServiceServer
	iampb.UnimplementedIAMPolicyServer
	*troubles
	impostorSwitch
	grpc     *grpc.Server
	http     *http.Server // in front of grpc, because impostors do not speak gRPC
	listener *droppingListener

	lock      sync.Mutex
	keys      map[string]*gcpKey // by resource name
	created   int
	damage    GCPDamage
	tokenHook func(token string)
}

// GCPDamage describes damage to messages in transit.
type GCPDamage struct {
	// Unverified leaves the verified flags of a response false, as if the
	// checksums of the request had been lost.
	Unverified bool
	// Request flips a bit of the request, so its checksum does not match.
	Request bool
	// Answer flips a bit of the response, so its checksum does not match.
	Answer bool
	// NoSum removes the checksum from the response.
	NoSum bool
	// OtherKey names another key in the response to Encrypt.
	OtherKey bool
	// Next limits the damage to this number of requests. 0 means no limit.
	Next int
}

type gcpKey struct {
	versions []*gcpVersion // starting with version 1
	primary  int
	access   GCPAccess
}

type gcpVersion struct {
	material []byte
	state    kmspb.CryptoKeyVersion_CryptoKeyVersionState
}

// StartGCP starts a server that runs until the end of the test.
func StartGCP(t testing.TB) *GCPServer {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	s := &GCPServer{
		troubles: newTroubles(), keys: make(map[string]*gcpKey), listener: &droppingListener{Listener: l},
	}
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.countUnknown))

	kmspb.RegisterKeyManagementServiceServer(s.grpc, s)
	iampb.RegisterIAMPolicyServer(s.grpc, s)
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols),
	}

	s.http.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.http.Serve(s.listener) }()
	t.Cleanup(s.Close)
	return s
}

// Close stops the server and closes all connections.
func (s *GCPServer) Close() {
	s.release()
	_ = s.http.Close()
	s.grpc.Stop()
}

func (s *GCPServer) serve(w http.ResponseWriter, r *http.Request) {
	if !s.impersonate(w) {
		s.grpc.ServeHTTP(w, r)
	}
}

// countUnknown counts requests for operations that the server does not have.
func (s *GCPServer) countUnknown(
	ctx context.Context, in any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (any, error) {
	out, err := handle(ctx, in)
	if status.Code(err) == codes.Unimplemented {
		s.count(path.Base(info.FullMethod))
	}
	return out, err
}

// Endpoint returns the address of the server.
func (s *GCPServer) Endpoint() string { return s.listener.Addr().String() }

// OnToken sets a function that is called with the access token of each
// request. The server does not check tokens.
func (s *GCPServer) OnToken(tell func(token string)) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.tokenHook = tell
}

// SetDamage replaces the damage.
func (s *GCPServer) SetDamage(d GCPDamage) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.damage = d
}

// NewKey creates a key and returns it as a Wrapper of the provider gcp-kms.
// change, if not nil, edits the configuration, which has two attempts and a
// timeout of 2 seconds.
func (s *GCPServer) NewKey(t testing.TB, change func(*kms.GCPConfig)) *kms.GCP {
	t.Helper()
	s.lock.Lock()
	s.created++
	name := fmt.Sprintf("projects/test/locations/europe-west3/keyRings/ring/cryptoKeys/key-%d", s.created)
	s.keys[name] = &gcpKey{}
	s.keys[name].rotate()
	s.lock.Unlock()
	return s.OpenKey(t, name, change)
}

// GCPOptions returns options for clients of the server: no encryption and
// no authentication.
func GCPOptions() []option.ClientOption {
	return []option.ClientOption{
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
		option.WithoutAuthentication(),
	}
}

// OpenKey is NewKey without creating the key.
func (s *GCPServer) OpenKey(t testing.TB, name string, change func(*kms.GCPConfig)) *kms.GCP {
	t.Helper()
	cfg := kms.GCPConfig{
		KeyID: name, Endpoint: s.Endpoint(), Timeout: 2 * time.Second, MaxAttempts: 2, Options: GCPOptions(),
	}

	if change != nil {
		change(&cfg)
	}

	w, err := kms.NewGCP(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = w.Close() })
	return w
}

// RotateKey adds a version, which becomes the primary one.
func (s *GCPServer) RotateKey(name string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].rotate()
}

// SetState sets the state of a version. DESTROYED also removes its key
// material.
func (s *GCPServer) SetState(name string, version int, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) {
	s.lock.Lock()
	defer s.lock.Unlock()
	v := s.keys[name].versions[version-1]
	if v.state = state; state == kmspb.CryptoKeyVersion_DESTROYED {
		clear(v.material)
	}
}

func (k *gcpKey) rotate() {
	k.versions = append(k.versions, &gcpVersion{random(32), kmspb.CryptoKeyVersion_ENABLED})
	k.primary = len(k.versions)
}

var gcpName = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`)

var gcpPermissionForm = regexp.MustCompile(`^cloudkms\.(cryptoKeys|cryptoKeyVersions)\.[a-zA-Z]+$`)

// misbehave applies the trouble, and checks the client's routing header.
func (s *GCPServer) misbehave(ctx context.Context, operation, name string) error {
	s.count(operation)
	md, _ := metadata.FromIncomingContext(ctx)
	s.lock.Lock()
	tell := s.tokenHook
	s.lock.Unlock()

	if token := md.Get("authorization"); tell != nil && len(token) == 1 {
		tell(token[0])
	}
	if routing := md.Get("x-goog-request-params"); len(routing) != 1 ||
		!strings.HasPrefix(routing[0], "name=projects%2F") && !strings.HasPrefix(routing[0], "resource=projects%2F") {
		return status.Error(codes.InvalidArgument, "no routing header")
	}

	if s.throttle() {
		return status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Cryptographic requests' and "+
			"limit 'Cryptographic requests per minute' of service 'cloudkms.googleapis.com' "+
			"for consumer 'project_number:1'.")
	}

	trouble := s.next(ctx)
	switch {
	case trouble.Hang:
		return status.Error(codes.Unavailable, "hung up")
	case trouble.Drop:
		s.listener.drop()
		return status.Error(codes.Unavailable, "dropped")
	case trouble.Deny:
		return refuseGCP(codes.PermissionDenied, "Permission 'cloudkms.cryptoKeyVersions.useTo"+operation+
			"' denied on resource '"+name+"' (or it may not exist).",
			gcpInfo("IAM_PERMISSION_DENIED", "cloudkms.googleapis.com"))
	case trouble.Fail != 0:
		var details []protoadapt.MessageV1
		if trouble.FailCode != "" {
			violation := &errdetails.PreconditionFailure_Violation{Type: trouble.FailCode, Subject: name}
			details = append(details, &errdetails.PreconditionFailure{
				Violations: []*errdetails.PreconditionFailure_Violation{violation},
			})
		}

		if trouble.FailReason != "" {
			details = append(details, gcpInfo(trouble.FailReason, "googleapis.com"))
		}
		return refuseGCP(codes.Code(trouble.Fail), trouble.FailText, details...) //nolint:gosec // set by the test
	}

	return nil
}

func gcpInfo(reason, domain string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{
		Reason: reason, Domain: domain, Metadata: map[string]string{"service": "cloudkms.googleapis.com"},
	}
}

// refuseGCP returns an error with details.
func refuseGCP(code codes.Code, text string, details ...protoadapt.MessageV1) error {
	refusal, err := status.New(code, text).WithDetails(details...)
	if err != nil {
		return err
	}
	return refusal.Err()
}

// find returns a key, after checking the checksums of the request. The
// caller holds s.lock.
func (s *GCPServer) find(name string, sums ...[2]string) (*gcpKey, error) {
	if !gcpName.MatchString(name) {
		return nil, status.Errorf(codes.InvalidArgument, "%s is not a valid resource type for this request.", name)
	}

	for _, pair := range sums {
		if pair[0] != pair[1] || s.damage.Request {
			s.spend()
			return nil, status.Error(codes.InvalidArgument, "The checksum in the request did not match the data.")
		}
	}

	k := s.keys[name]
	if k == nil {
		return nil, status.Errorf(codes.NotFound, "CryptoKey %s not found.", name)
	}

	return k, nil
}

// usable returns a version, or Google's error with details if it is not
// enabled.
func (k *gcpKey) usable(name string, version int) (*gcpVersion, error) {
	v := k.versions[version-1]
	if v.state == kmspb.CryptoKeyVersion_ENABLED {
		return v, nil
	}

	subject := fmt.Sprintf("%s/cryptoKeyVersions/%d", name, version)
	refusal, err := status.Newf(codes.FailedPrecondition, "%s is not enabled, current state is: %s.", subject, v.state).
		WithDetails(&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
			{Type: "KEY_" + v.state.String(), Subject: subject},
		}})
	if err != nil {
		return nil, err
	}

	return nil, refusal.Err()
}

// Encrypt implements kmspb.KeyManagementServiceServer.
func (s *GCPServer) Encrypt(ctx context.Context, in *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if err := s.misbehave(ctx, "Encrypt", in.GetName()); err != nil {
		return nil, err
	}

	s.lock.Lock()
	defer s.lock.Unlock()

	aad := in.GetAdditionalAuthenticatedData()
	k, err := s.find(in.GetName(), [2]string{sum(in.GetPlaintext()), checksumText(in.GetPlaintextCrc32C())},
		[2]string{sum(aad), checksumText(in.GetAdditionalAuthenticatedDataCrc32C())})
	if err != nil {
		return nil, err
	}

	if len(in.GetPlaintext()) > 64<<10 || len(in.GetPlaintext())+len(aad) > 8<<10 { // the limit of HSM keys
		return nil, status.Error(codes.InvalidArgument, "The plaintext and additional authenticated data are too long.")
	}

	v, err := k.usable(in.GetName(), k.primary)
	if err != nil {
		return nil, err
	}

	blob := v.seal(in.GetName(), k.primary, in.GetPlaintext(), aad)
	out := &kmspb.EncryptResponse{
		Name: fmt.Sprintf("%s/cryptoKeyVersions/%d", in.GetName(), k.primary), Ciphertext: blob,
		CiphertextCrc32C: number(blob), VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
		ProtectionLevel: kmspb.ProtectionLevel_SOFTWARE,
	}

	d := s.damage
	if d.Unverified {
		out.VerifiedPlaintextCrc32C, out.VerifiedAdditionalAuthenticatedDataCrc32C = false, false
	}
	if d.OtherKey {
		out.Name = strings.Replace(out.GetName(), "/cryptoKeys/", "/cryptoKeys/not-", 1)
	}

	if d.NoSum {
		out.CiphertextCrc32C = nil
	}
	if d.Answer {
		out.Ciphertext[len(blob)-1] ^= 1
	}

	s.spend()
	return out, nil
}

// Decrypt implements kmspb.KeyManagementServiceServer.
func (s *GCPServer) Decrypt(ctx context.Context, in *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := s.misbehave(ctx, "Decrypt", in.GetName()); err != nil {
		return nil, err
	}

	s.lock.Lock()
	defer s.lock.Unlock()

	aad := in.GetAdditionalAuthenticatedData()
	k, err := s.find(in.GetName(), [2]string{sum(in.GetCiphertext()), checksumText(in.GetCiphertextCrc32C())},
		[2]string{sum(aad), checksumText(in.GetAdditionalAuthenticatedDataCrc32C())})
	if err != nil {
		return nil, err
	}

	const wrongKey = "Decryption failed: verify that 'name' refers to the correct CryptoKey."
	version, ok := gcpBlobVersion(in.GetName(), in.GetCiphertext())
	if !ok || version < 1 || version > len(k.versions) {
		return nil, status.Error(codes.InvalidArgument, wrongKey)
	}

	v, err := k.usable(in.GetName(), version)
	if err != nil {
		return nil, err
	}

	plaintext, err := v.open(in.GetCiphertext(), aad)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}

	out := &kmspb.DecryptResponse{
		Plaintext: plaintext, PlaintextCrc32C: number(plaintext), UsedPrimary: version == k.primary,
		ProtectionLevel: kmspb.ProtectionLevel_SOFTWARE,
	}

	if s.damage.NoSum {
		out.PlaintextCrc32C = nil
	}
	if s.damage.Answer {
		out.Plaintext[0] ^= 1
	}

	s.spend()
	return out, nil
}

// spend counts a request toward GCPDamage.Next. The caller holds s.lock.
func (s *GCPServer) spend() {
	if s.damage.Next > 0 {
		if s.damage.Next--; s.damage.Next == 0 {
			s.damage = GCPDamage{}
		}
	}
}

// A blob has the three bytes that start all of Google's blobs, a hash of
// the key's name, the version number, nonce, encrypted data and tag. The
// fields before the nonce are authenticated. Google's blobs are opaque too,
// and have 4 bytes there that depend on the version.
const gcpBlobHeader = 3 + 2 + 2

func gcpHeader(name string, version int) []byte {
	hash := crc32.ChecksumIEEE([]byte(name))
	header := binary.BigEndian.AppendUint16([]byte{0x0a, 0x24, 0x00}, uint16(hash)) //nolint:gosec // half is enough
	return binary.BigEndian.AppendUint16(header, uint16(version))                   //nolint:gosec // few versions
}

func gcpBlobVersion(name string, blob []byte) (int, bool) {
	if len(blob) < gcpBlobHeader+12+16 {
		return 0, false
	}
	version := int(binary.BigEndian.Uint16(blob[5:]))
	return version, bytes.Equal(gcpHeader(name, version), blob[:gcpBlobHeader])
}

func (v *gcpVersion) seal(name string, version int, plaintext, aad []byte) []byte {
	header := gcpHeader(name, version)
	return v.aead().Seal(header, nil, plaintext, append(gcpHeader(name, version), aad...))
}

func (v *gcpVersion) open(blob, aad []byte) ([]byte, error) {
	header := bytes.Clone(blob[:gcpBlobHeader])
	return v.aead().Open(nil, nil, blob[gcpBlobHeader:], append(header, aad...))
}

func (v *gcpVersion) aead() cipher.AEAD {
	block, err := aes.NewCipher(v.material)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func number(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

// sum returns the expected checksum as text, and given the received one. A
// missing checksum matches nothing.
func sum(b []byte) string { return checksumText(number(b)) }

func checksumText(n *wrapperspb.Int64Value) string {
	if n == nil {
		return "none"
	}
	return strconv.FormatInt(n.GetValue(), 10)
}

// droppingListener can close all its connections at once.
type droppingListener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// Accept implements net.Listener.
func (l *droppingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, conn)
		l.mu.Unlock()
	}
	return conn, err
}

func (l *droppingListener) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		_ = conn.Close()
	}
	l.conns = nil
}
