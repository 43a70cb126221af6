package e2e

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// racingCopies is how many copies race with overwrites of their source.
const racingCopies = 150

// TestCopiesThatRaceOverwrites copies objects while other clients overwrite
// them. A copy is one of the object before or of the object after: its body
// and its metadata belong together, or it fails and nothing is there. Tags are
// left out: versitygw writes them after the object.
func TestCopiesThatRaceOverwrites(t *testing.T) {
	c := startCluster(t)
	defer progress(t)
	judge := newGoSDK(c.endpoint)
	const bucket = "copy-races"
	if err := judge.createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	t.Run("tags", func(t *testing.T) { checkTagsOfCopies(t, judge, bucket) })
	t.Run("to another name", func(t *testing.T) { checkRacingCopies(t, judge, bucket) })
	t.Run("onto itself", func(t *testing.T) { checkRacingSelfCopies(t, judge, bucket) })
}

// checkTagsOfCopies copies an object with tags, with the source's metadata
// and with new metadata. Some stores drop the tags.
func checkTagsOfCopies(t *testing.T, judge *goSDK, bucket string) {
	if err := putRacing(t, judge, bucket, "tagged", 1); err != nil {
		t.Fatal(err)
	}
	for _, metadata := range []types.MetadataDirective{types.MetadataDirectiveCopy, types.MetadataDirectiveReplace} {
		key := "tagged-" + string(metadata)
		_, err := judge.s3.CopyObject(t.Context(), &s3.CopyObjectInput{
			Bucket: &bucket, Key: &key, CopySource: aws.String(bucket + "/tagged"), MetadataDirective: metadata,
		})
		if err != nil {
			t.Fatal(err)
		}
		if tags, err := judge.tags(bucket, key); err != nil || len(tags) != 1 || tags["n"] != "1" {
			t.Errorf("%s: tags %v, %v", metadata, tags, err)
		}
	}
}

// racingBody returns the body of the nth version of a source. The sizes are
// those of one segment, of two, and of several.
func racingBody(n int) []byte {
	return bytes.Repeat([]byte{byte(n)}, []int{100, 70_000, 300_000}[n%3])
}

func putRacing(t *testing.T, judge *goSDK, bucket, key string, n int) error {
	t.Helper()
	name := strconv.Itoa(n)
	_, err := judge.s3.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(racingBody(n)),
		Metadata: map[string]string{"n": name}, Tagging: aws.String("n=" + name),
	})
	return err
}

// overwrite overwrites a source until stop is called. stop returns the first
// error.
func overwrite(t *testing.T, judge *goSDK, bucket, key string) (stop func() error) {
	t.Helper()
	end, result := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 1; ; n++ {
			select {
			case <-end:
				result <- nil
				return
			default:
			}
			if err := putRacing(t, judge, bucket, key, n); err != nil {
				result <- err
				return
			}
		}
	}()
	return func() error {
		close(end)
		return <-result
	}
}

func checkRacingCopies(t *testing.T, judge *goSDK, bucket string) {
	const source = "source"
	if err := putRacing(t, judge, bucket, source, 0); err != nil {
		t.Fatal(err)
	}
	stop := overwrite(t, judge, bucket, source)

	var group sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	for worker := range 4 {
		group.Go(func() {
			for i := worker; i < racingCopies; i += 4 {
				key := fmt.Sprintf("copy-%d", i)
				_, err := judge.s3.CopyObject(t.Context(), &s3.CopyObjectInput{
					Bucket: &bucket, Key: &key, CopySource: aws.String(bucket + "/" + source),
				})
				if err != nil {
					mu.Lock()
					failed++
					mu.Unlock()
				}
				if why := copied(t, judge, bucket, key); why != nil && (err == nil || code(why) != "NoSuchKey") {
					t.Errorf("%s: copied with %v, then read with %v", key, err, why)
				}
			}
		})
	}
	group.Wait()

	if err := stop(); err != nil {
		t.Error(err)
	}
	if failed > racingCopies/10 {
		t.Errorf("%d of %d copies failed", failed, racingCopies)
	}
	table.note("%d copies raced overwrites: %d were refused, and none was unreadable", racingCopies, failed)
}

// copied checks that body and metadata of an object belong together.
func copied(t *testing.T, judge *goSDK, bucket, key string) error {
	t.Helper()
	got, err := judge.get(bucket, key)
	if err != nil {
		return err
	}
	head, err := judge.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(head.Metadata["n"])
	if err != nil || !bytes.Equal(got, racingBody(n)) {
		return fmt.Errorf("%d bytes with the metadata %v", len(got), head.Metadata)
	}
	return nil
}

// checkRacingSelfCopies changes the metadata of an object while it is
// overwritten. What was overwritten must stay readable at all times.
func checkRacingSelfCopies(t *testing.T, judge *goSDK, bucket string) {
	const key = "itself"
	if err := putRacing(t, judge, bucket, key, 0); err != nil {
		t.Fatal(err)
	}
	stop := overwrite(t, judge, bucket, key)

	for i := range racingCopies / 3 {
		_, err := judge.s3.CopyObject(t.Context(), &s3.CopyObjectInput{
			Bucket: aws.String(bucket), Key: aws.String(key), CopySource: aws.String(bucket + "/" + key),
			MetadataDirective: types.MetadataDirectiveReplace, Metadata: map[string]string{"i": strconv.Itoa(i)},
		})
		if err = sdkError(err); err != nil && code(err) != "ServiceUnavailable" {
			t.Errorf("copy %d: %v", i, err)
		}
		if _, err := judge.get(bucket, key); err != nil {
			t.Errorf("after copy %d: %v", i, err)
		}
	}

	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := judge.get(bucket, key); err != nil {
		t.Error(err)
	}
}
