package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// goSDK is aws-sdk-go-v2.
type goSDK struct {
	endpoint endpoint
	s3       *s3.Client
}

func newGoSDK(e endpoint) *goSDK {
	return &goSDK{endpoint: e, s3: s3.New(s3.Options{
		BaseEndpoint: aws.String(e.url),
		Region:       region,
		UsePathStyle: true,
		Credentials:  awscredentials.NewStaticCredentialsProvider(e.accessKey, e.secret, ""),
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.TLSClientConfig = trust(e)
			t.Proxy = nil
		}),
	})}
}

// trust returns a TLS configuration that trusts an endpoint's certificate.
func trust(e endpoint) *tls.Config {
	pool := x509.NewCertPool()
	if e.ca != "" {
		if data, err := os.ReadFile(e.ca); err == nil {
			pool.AppendCertsFromPEM(data)
		}
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

func (c *goSDK) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newGoSDK(e)
}

func (c *goSDK) createBucket(bucket string) error {
	_, err := c.s3.CreateBucket(context.Background(), &s3.CreateBucketInput{
		Bucket:                    &bucket,
		CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: region},
	})
	return sdkError(err)
}

func (c *goSDK) put(bucket, key string, data []byte) error {
	_, err := c.s3.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)})
	return sdkError(err)
}

func (c *goSDK) putWith(bucket, key string, data []byte, a attributes) error {
	_, err := c.s3.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data), ContentType: &a.contentType, CacheControl: &a.cacheControl,
		ContentDisposition: &a.disposition, ContentEncoding: &a.contentEncoding, ContentLanguage: &a.contentLanguage,
		Metadata: a.metadata,
	})
	return sdkError(err)
}

func (c *goSDK) putIf(bucket, key string, data []byte, when condition) error {
	_, err := c.s3.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data),
		IfMatch: optional(when.ifMatch), IfNoneMatch: optional(when.ifNoneMatch),
	})
	return sdkError(err)
}

func (c *goSDK) putMD5(bucket, key string, data []byte, md5 string) error {
	_, err := c.s3.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data), ContentMD5: &md5,
	})
	return sdkError(err)
}

func (c *goSDK) algorithms() []string {
	return []string{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"}
}

func (c *goSDK) putChecksum(bucket, key string, data []byte, algorithm, value string) error {
	in := &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data), ChecksumAlgorithm: types.ChecksumAlgorithm(algorithm),
	}
	if value != "" {
		in.ChecksumAlgorithm = ""
		*map[string]**string{
			"CRC32": &in.ChecksumCRC32, "CRC32C": &in.ChecksumCRC32C, "CRC64NVME": &in.ChecksumCRC64NVME,
			"SHA1": &in.ChecksumSHA1, "SHA256": &in.ChecksumSHA256,
		}[algorithm] = &value
	}
	_, err := c.s3.PutObject(context.Background(), in)
	return sdkError(err)
}

func (c *goSDK) get(bucket, key string) ([]byte, error) {
	return c.read(&s3.GetObjectInput{Bucket: &bucket, Key: &key})
}

func (c *goSDK) getRange(bucket, key, spec string) ([]byte, error) {
	return c.read(&s3.GetObjectInput{Bucket: &bucket, Key: &key, Range: aws.String("bytes=" + spec)})
}

func (c *goSDK) getIf(bucket, key string, when condition) ([]byte, error) {
	return c.read(&s3.GetObjectInput{
		Bucket: &bucket, Key: &key, IfMatch: optional(when.ifMatch), IfNoneMatch: optional(when.ifNoneMatch),
	})
}

func (c *goSDK) read(in *s3.GetObjectInput) ([]byte, error) {
	out, err := c.s3.GetObject(context.Background(), in)
	if err != nil {
		return nil, sdkError(err)
	}
	defer out.Body.Close()
	return io.ReadAll(out.Body)
}

func (c *goSDK) getVerified(bucket, key string) ([]byte, map[string]string, error) {
	out, err := c.s3.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, nil, sdkError(err)
	}
	defer out.Body.Close()
	data, err := io.ReadAll(out.Body)
	sums := make(map[string]string)
	for name, value := range map[string]*string{
		"CRC32": out.ChecksumCRC32, "CRC32C": out.ChecksumCRC32C, "CRC64NVME": out.ChecksumCRC64NVME,
		"SHA1": out.ChecksumSHA1, "SHA256": out.ChecksumSHA256,
	} {
		if value != nil {
			sums[name] = *value
		}
	}
	return data, sums, err
}

func (c *goSDK) head(bucket, key string) (attributes, error) {
	out, err := c.s3.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return attributes{}, sdkError(err)
	}
	a := attributes{
		size: aws.ToInt64(out.ContentLength), etag: aws.ToString(out.ETag), contentType: aws.ToString(out.ContentType),
		cacheControl: aws.ToString(out.CacheControl), disposition: aws.ToString(out.ContentDisposition),
		contentEncoding: aws.ToString(out.ContentEncoding), contentLanguage: aws.ToString(out.ContentLanguage),
		metadata: make(map[string]string),
	}
	for name, value := range out.Metadata {
		a.metadata[strings.ToLower(name)] = value
	}
	return a, nil
}

func (c *goSDK) list(bucket, prefix string) (map[string]int64, error) {
	sizes, _, err := c.page(bucket, prefix, "", 1000)
	return sizes, err
}

// page lists twice, with both versions of the operation, and checks that
// they agree.
func (c *goSDK) page(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error) {
	sizes, prefixes := make(map[string]int64), []string(nil)
	pages := s3.NewListObjectsV2Paginator(c.s3, &s3.ListObjectsV2Input{
		Bucket: &bucket, Prefix: &prefix, Delimiter: optional(delimiter), MaxKeys: aws.Int32(int32(pageSize)),
	})

	for pages.HasMorePages() {
		page, err := pages.NextPage(context.Background())
		if err != nil {
			return nil, nil, sdkError(err)
		}
		for _, object := range page.Contents {
			sizes[aws.ToString(object.Key)] = aws.ToInt64(object.Size)
		}
		for _, p := range page.CommonPrefixes {
			prefixes = append(prefixes, aws.ToString(p.Prefix))
		}
	}

	sizes1, prefixes1, err := c.pageV1(bucket, prefix, delimiter, pageSize)
	if err != nil {
		return nil, nil, err
	}

	if fmt.Sprint(sizes) != fmt.Sprint(sizes1) || !slices.Equal(prefixes, prefixes1) {
		return nil, nil, fmt.Errorf("ListObjects gives %v and %v, ListObjectsV2 %v and %v", sizes1, prefixes1, sizes, prefixes)
	}
	return sizes, prefixes, nil
}

func (c *goSDK) pageV1(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error) {
	sizes, prefixes := make(map[string]int64), []string(nil)
	in := &s3.ListObjectsInput{Bucket: &bucket, Prefix: &prefix, Delimiter: optional(delimiter), MaxKeys: aws.Int32(int32(pageSize))}
	for {
		page, err := c.s3.ListObjects(context.Background(), in)
		if err != nil {
			return nil, nil, sdkError(err)
		}
		last := ""
		for _, object := range page.Contents {
			last = aws.ToString(object.Key)
			sizes[last] = aws.ToInt64(object.Size)
		}
		for _, p := range page.CommonPrefixes {
			prefixes = append(prefixes, aws.ToString(p.Prefix))
		}
		if !aws.ToBool(page.IsTruncated) {
			return sizes, prefixes, nil
		}
		if page.NextMarker != nil { // only with a delimiter
			last = *page.NextMarker
		}
		in.Marker = &last
	}
}

// putLarge uses both transfer managers: the current one, and the older one
// that most programs still use.
func (c *goSDK) putLarge(bucket, key, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = manager.NewUploader(c.s3).Upload(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(key + "-before"), Body: f}) //nolint:staticcheck // deprecated on purpose
	if err != nil {
		return sdkError(err)
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = transfermanager.New(c.s3).UploadObject(context.Background(), &transfermanager.UploadObjectInput{Bucket: &bucket, Key: &key, Body: f})
	return sdkError(err)
}

func (c *goSDK) getLarge(bucket, key, file string) error {
	before := manager.NewWriteAtBuffer(nil)
	_, err := manager.NewDownloader(c.s3).Download(context.Background(), before, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String(key + "-before")}) //nolint:staticcheck // deprecated on purpose
	if err != nil {
		return sdkError(err)
	}

	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := transfermanager.New(c.s3).DownloadObject(context.Background(), &transfermanager.DownloadObjectInput{Bucket: &bucket, Key: &key, WriterAt: f}); err != nil {
		return sdkError(err)
	}

	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, before.Bytes()) {
		return fmt.Errorf("the two transfer managers read %d and %d bytes, or others: %w", len(got), len(before.Bytes()), err)
	}
	return nil
}

func (c *goSDK) copy(bucket, from, to string) error {
	_, err := c.s3.CopyObject(context.Background(), &s3.CopyObjectInput{Bucket: &bucket, Key: &to, CopySource: aws.String(bucket + "/" + from)})
	return sdkError(err)
}

func (c *goSDK) move(bucket, from, to string) error {
	if err := c.copy(bucket, from, to); err != nil {
		return err
	}
	return c.remove(bucket, from)
}

func (c *goSDK) setTags(bucket, key string, tags map[string]string) error {
	var set []types.Tag
	for name, value := range tags {
		set = append(set, types.Tag{Key: &name, Value: &value})
	}
	_, err := c.s3.PutObjectTagging(context.Background(), &s3.PutObjectTaggingInput{Bucket: &bucket, Key: &key, Tagging: &types.Tagging{TagSet: set}})
	return sdkError(err)
}

func (c *goSDK) tags(bucket, key string) (map[string]string, error) {
	out, err := c.s3.GetObjectTagging(context.Background(), &s3.GetObjectTaggingInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, sdkError(err)
	}
	tags := make(map[string]string)
	for _, tag := range out.TagSet {
		tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	return tags, nil
}

func (c *goSDK) remove(bucket, key string) error {
	_, err := c.s3.DeleteObject(context.Background(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
	return sdkError(err)
}

func (c *goSDK) removeMany(bucket string, keys []string) error {
	var objects []types.ObjectIdentifier
	for _, key := range keys {
		objects = append(objects, types.ObjectIdentifier{Key: &key})
	}
	out, err := c.s3.DeleteObjects(context.Background(), &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: objects}})
	if err != nil {
		return sdkError(err)
	}
	if len(out.Errors) > 0 || len(out.Deleted) != len(keys) {
		return fmt.Errorf("%d of %d deleted, %d errors", len(out.Deleted), len(keys), len(out.Errors))
	}
	return nil
}

func (c *goSDK) removeBucket(bucket string) error {
	_, err := c.s3.DeleteBucket(context.Background(), &s3.DeleteBucketInput{Bucket: &bucket})
	return sdkError(err)
}

func (c *goSDK) presign(method, bucket, key string, valid time.Duration) (string, error) {
	signer, expires := s3.NewPresignClient(c.s3), s3.WithPresignExpires(valid)
	var r *v4.PresignedHTTPRequest
	var err error
	switch method {
	case http.MethodGet:
		r, err = signer.PresignGetObject(context.Background(), &s3.GetObjectInput{Bucket: &bucket, Key: &key}, expires)
	case http.MethodHead:
		r, err = signer.PresignHeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key}, expires)
	case http.MethodPut:
		r, err = signer.PresignPutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: &key}, expires)
	}
	if err != nil {
		return "", err
	}
	return r.URL, nil
}

// sdkError converts an error of the SDK to an *apiError.
func sdkError(err error) error {
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) {
		return err
	}
	e := &apiError{status: response.HTTPStatusCode(), text: err.Error()}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		e.code = api.ErrorCode()
	}
	return e
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
