package e2e

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	miniocredentials "github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/tags"
)

// minioGo is minio-go.
type minioGo struct {
	endpoint endpoint
	api      *minio.Client
	trailing *minio.Client // with the option needed for checksums that it computes
}

func newMinioGo(e endpoint) *minioGo {
	return &minioGo{
		endpoint: e,
		api:      newMinioClient(e, minio.Options{}),
		trailing: newMinioClient(e, minio.Options{TrailingHeaders: true}),
	}
}

func newMinioClient(e endpoint, options minio.Options) *minio.Client {
	options.Creds = miniocredentials.NewStaticV4(e.accessKey, e.secret, "")
	options.Secure = e.ca != ""
	transport, err := minio.DefaultTransport(options.Secure)
	if err != nil {
		panic(err)
	}

	transport.Proxy = nil
	if options.Secure {
		transport.TLSClientConfig = trust(e)
	}

	options.Transport = transport
	api, err := minio.New(e.host(), &options)
	if err != nil {
		panic(err) // only if the endpoint is malformed
	}
	return api
}

func (c *minioGo) as(other credentials) client {
	e := c.endpoint
	e.credentials = other
	return newMinioGo(e)
}

func (c *minioGo) createBucket(bucket string) error {
	return minioError(c.api.MakeBucket(context.Background(), bucket, minio.MakeBucketOptions{Region: region}))
}

func (c *minioGo) put(bucket, key string, data []byte) error {
	return c.write(bucket, key, data, minio.PutObjectOptions{})
}

func (c *minioGo) putWith(bucket, key string, data []byte, a attributes) error {
	return c.write(bucket, key, data, minio.PutObjectOptions{
		ContentType: a.contentType, CacheControl: a.cacheControl, ContentDisposition: a.disposition,
		ContentEncoding: a.contentEncoding, ContentLanguage: a.contentLanguage, UserMetadata: a.metadata,
	})
}

func (c *minioGo) putIf(bucket, key string, data []byte, when condition) error {
	var options minio.PutObjectOptions
	if when.ifMatch != "" {
		options.SetMatchETag(strings.Trim(when.ifMatch, `"`))
	}
	if when.ifNoneMatch != "" {
		options.SetMatchETagExcept(when.ifNoneMatch)
	}
	return c.write(bucket, key, data, options)
}

func (c *minioGo) putMD5(bucket, key string, data []byte, sum string) error {
	right := md5.Sum(data)
	if sum == base64.StdEncoding.EncodeToString(right[:]) {
		return c.write(bucket, key, data, minio.PutObjectOptions{SendContentMd5: true})
	}
	// The client cannot be made to send a wrong checksum.
	_, err := minio.Core{Client: c.api}.PutObject(context.Background(), bucket, key, bytes.NewReader(data), int64(len(data)),
		sum, "", minio.PutObjectOptions{})
	return minioError(err)
}

func (c *minioGo) algorithms() []string {
	return []string{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"}
}

func (c *minioGo) putChecksum(bucket, key string, data []byte, algorithm, value string) error {
	types := map[string]minio.ChecksumType{
		"CRC32": minio.ChecksumCRC32, "CRC32C": minio.ChecksumCRC32C, "CRC64NVME": minio.ChecksumCRC64NVME,
		"SHA1": minio.ChecksumSHA1, "SHA256": minio.ChecksumSHA256,
	}
	options := minio.PutObjectOptions{Checksum: types[algorithm]}
	if value != "" {
		options = minio.PutObjectOptions{UserMetadata: map[string]string{"x-amz-checksum-" + strings.ToLower(algorithm): value}}
	}
	_, err := c.trailing.PutObject(context.Background(), bucket, key, bytes.NewReader(data), int64(len(data)), options)
	return minioError(err)
}

func (c *minioGo) write(bucket, key string, data []byte, options minio.PutObjectOptions) error {
	_, err := c.api.PutObject(context.Background(), bucket, key, bytes.NewReader(data), int64(len(data)), options)
	return minioError(err)
}

func (c *minioGo) get(bucket, key string) ([]byte, error) {
	return c.read(bucket, key, minio.GetObjectOptions{})
}

func (c *minioGo) getRange(bucket, key, spec string) ([]byte, error) {
	var options minio.GetObjectOptions
	options.Set("Range", "bytes="+spec)
	if from, to, _ := strings.Cut(spec, "-"); from == "" {
		n, _ := strconv.ParseInt(to, 10, 64)
		if err := options.SetRange(0, -n); err != nil {
			return nil, err
		}
	}
	return c.read(bucket, key, options)
}

func (c *minioGo) getIf(bucket, key string, when condition) ([]byte, error) {
	var options minio.GetObjectOptions
	if when.ifMatch != "" {
		_ = options.SetMatchETag(strings.Trim(when.ifMatch, `"`))
	}
	if when.ifNoneMatch != "" {
		_ = options.SetMatchETagExcept(strings.Trim(when.ifNoneMatch, `"`))
	}
	return c.read(bucket, key, options)
}

// read uses Core.GetObject, which sends exactly one request.
// Client.GetObject may send several.
func (c *minioGo) read(bucket, key string, options minio.GetObjectOptions) ([]byte, error) {
	body, _, _, err := minio.Core{Client: c.api}.GetObject(context.Background(), bucket, key, options)
	if err != nil {
		return nil, minioError(err)
	}
	defer body.Close()
	return io.ReadAll(body)
}

func (c *minioGo) getVerified(bucket, key string) ([]byte, map[string]string, error) {
	object, err := c.api.GetObject(context.Background(), bucket, key, minio.GetObjectOptions{Checksum: true})
	if err != nil {
		return nil, nil, minioError(err)
	}
	defer object.Close()
	data, err := io.ReadAll(object)
	if err != nil {
		return nil, nil, minioError(err)
	}

	info, err := object.Stat()
	sums := make(map[string]string)
	for name, value := range map[string]string{
		"CRC32": info.ChecksumCRC32, "CRC32C": info.ChecksumCRC32C, "CRC64NVME": info.ChecksumCRC64NVME,
		"SHA1": info.ChecksumSHA1, "SHA256": info.ChecksumSHA256,
	} {
		if value != "" {
			sums[name] = value
		}
	}
	return data, sums, minioError(err)
}

func (c *minioGo) head(bucket, key string) (attributes, error) {
	info, err := c.api.StatObject(context.Background(), bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return attributes{}, minioError(err)
	}
	a := attributes{
		size: info.Size, etag: `"` + info.ETag + `"`, contentType: info.ContentType,
		cacheControl: info.Metadata.Get("Cache-Control"), disposition: info.Metadata.Get("Content-Disposition"),
		contentEncoding: info.Metadata.Get("Content-Encoding"), contentLanguage: info.Metadata.Get("Content-Language"),
		metadata: make(map[string]string),
	}
	for name, value := range info.UserMetadata {
		a.metadata[strings.ToLower(name)] = value
	}
	return a, nil
}

func (c *minioGo) list(bucket, prefix string) (map[string]int64, error) {
	sizes := make(map[string]int64)
	for object := range c.api.ListObjects(context.Background(), bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if object.Err != nil {
			return nil, minioError(object.Err)
		}
		sizes[object.Key] = object.Size
	}
	return sizes, nil
}

func (c *minioGo) page(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error) {
	sizes, prefixes := make(map[string]int64), []string(nil)
	for object := range c.api.ListObjects(context.Background(), bucket, minio.ListObjectsOptions{
		Prefix: prefix, Recursive: delimiter == "", MaxKeys: pageSize,
	}) {
		switch {
		case object.Err != nil:
			return nil, nil, minioError(object.Err)
		case object.ETag == "" && strings.HasSuffix(object.Key, "/"):
			prefixes = append(prefixes, object.Key)
		default:
			sizes[object.Key] = object.Size
		}
	}
	return sizes, prefixes, nil
}

func (c *minioGo) putLarge(bucket, key, file string) error {
	_, err := c.api.FPutObject(context.Background(), bucket, key, file, minio.PutObjectOptions{})
	return minioError(err)
}

func (c *minioGo) getLarge(bucket, key, file string) error {
	return minioError(c.api.FGetObject(context.Background(), bucket, key, file, minio.GetObjectOptions{}))
}

// copy uses CopyObject with one source. Composing an object from two sources
// copies parts.
func (c *minioGo) copy(bucket, from, to string) error {
	source := minio.CopySrcOptions{Bucket: bucket, Object: from}
	if _, err := c.api.CopyObject(context.Background(), minio.CopyDestOptions{Bucket: bucket, Object: to}, source); err != nil {
		return minioError(err)
	}
	_, err := c.api.ComposeObject(context.Background(), minio.CopyDestOptions{Bucket: bucket, Object: "composed"},
		minio.CopySrcOptions{Bucket: bucket, Object: "large"}, source)
	return minioError(err)
}

func (c *minioGo) move(bucket, from, to string) error {
	if err := c.copy(bucket, from, to); err != nil {
		return err
	}
	return c.remove(bucket, from)
}

func (c *minioGo) setTags(bucket, key string, values map[string]string) error {
	set, err := tags.NewTags(values, true)
	if err != nil {
		return err
	}
	return minioError(c.api.PutObjectTagging(context.Background(), bucket, key, set, minio.PutObjectTaggingOptions{}))
}

func (c *minioGo) tags(bucket, key string) (map[string]string, error) {
	set, err := c.api.GetObjectTagging(context.Background(), bucket, key, minio.GetObjectTaggingOptions{})
	if err != nil {
		return nil, minioError(err)
	}
	return set.ToMap(), nil
}

func (c *minioGo) remove(bucket, key string) error {
	return minioError(c.api.RemoveObject(context.Background(), bucket, key, minio.RemoveObjectOptions{}))
}

func (c *minioGo) removeMany(bucket string, keys []string) error {
	objects := make(chan minio.ObjectInfo, len(keys))
	for _, key := range keys {
		objects <- minio.ObjectInfo{Key: key}
	}
	close(objects)
	for failure := range c.api.RemoveObjects(context.Background(), bucket, objects, minio.RemoveObjectsOptions{}) {
		return fmt.Errorf("deleting %s: %w", failure.ObjectName, minioError(failure.Err))
	}
	return nil
}

func (c *minioGo) removeBucket(bucket string) error {
	return minioError(c.api.RemoveBucket(context.Background(), bucket))
}

func (c *minioGo) presign(method, bucket, key string, valid time.Duration) (string, error) {
	var u *url.URL
	var err error
	switch method {
	case http.MethodGet:
		u, err = c.api.PresignedGetObject(context.Background(), bucket, key, valid, nil)
	case http.MethodHead:
		u, err = c.api.PresignedHeadObject(context.Background(), bucket, key, valid, nil)
	case http.MethodPut:
		u, err = c.api.PresignedPutObject(context.Background(), bucket, key, valid)
	}
	if err != nil {
		return "", minioError(err)
	}
	return u.String(), nil
}

func minioError(err error) error {
	var response minio.ErrorResponse
	if !errors.As(err, &response) {
		return err
	}
	return &apiError{code: response.Code, status: response.StatusCode, text: err.Error()}
}
