package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/go-kit/log"
	"github.com/parquet-go/parquet-go"
	"github.com/thanos-io/objstore"
	thanos "github.com/thanos-io/objstore/providers/s3"
)

// thanosAcceptance is the suite that every object store for Thanos, Cortex
// and Mimir must pass.
func thanosAcceptance(t *testing.T, u *use) {
	e := u.c.endpoint
	config := thanos.DefaultConfig
	config.Bucket, config.Endpoint, config.Region = u.bucket, e.host(), region
	config.AccessKey, config.SecretKey, config.Insecure = e.accessKey, e.secret, true
	bucket, err := thanos.NewBucketWithConfig(log.NewNopLogger(), config, "e2e", nil)
	if err != nil {
		t.Fatal(err)
	}

	u.does(t, "round trip", func(t *testing.T) { objstore.AcceptanceTest(t, bucket) })
	for _, row := range []string{"sizes", "ranges", "listing", "delete"} { // the suite covers them all
		u.does(t, row, func(t *testing.T) {
			if table.result("round trip", u.name+" cluster") != "ok" {
				t.Error("the acceptance test has failed")
			}
		})
	}

	u.does(t, "multipart", func(t *testing.T) {
		_, block := randomFile(t, 70*mib) // more than one part of 64 MiB
		if err := bucket.Upload(t.Context(), "block", bytes.NewReader(block)); err != nil {
			t.Fatal(err)
		}
		r, err := bucket.GetRange(t.Context(), "block", 60*mib, 8*mib)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		same(t, "a range across two parts", got, err, block[60*mib:68*mib])
	})
}

// measurement is a row of the table that parquetColumns writes.
type measurement struct {
	Station string `parquet:"station,dict"`
	Number  int64  `parquet:"number,delta"`
	Value   float64
	Comment string `parquet:"comment,zstd"`
}

const measurements = 200_000

func newMeasurement(i int) measurement {
	return measurement{fmt.Sprintf("station %d", i%97), int64(i), float64(i) / 7, fmt.Sprintf("measured as number %d of all", i)}
}

// parquetColumns reads a Parquet file as query engines do: the footer, the
// index, and then one column of one row group.
func parquetColumns(t *testing.T, u *use) {
	var file bytes.Buffer
	w := parquet.NewGenericWriter[measurement](&file, parquet.MaxRowsPerRowGroup(20_000))
	for i := range measurements {
		if _, err := w.Write([]measurement{newMeasurement(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	sdk := newGoSDK(u.c.endpoint)
	u.does(t, "round trip", func(t *testing.T) {
		if err := sdk.put(u.bucket, "table.parquet", file.Bytes()); err != nil {
			t.Fatal(err)
		}
	})

	u.does(t, "ranges", func(t *testing.T) {
		r := &ranges{sdk: sdk, bucket: u.bucket, key: "table.parquet"}
		f, err := parquet.OpenFile(r, int64(file.Len()), parquet.SkipBloomFilters(true))
		if err != nil {
			t.Fatal(err)
		}
		if f.NumRows() != measurements || len(f.RowGroups()) != 10 {
			t.Fatalf("%d rows in %d groups", f.NumRows(), len(f.RowGroups()))
		}
		checkColumn(t, f.RowGroups()[7], 7*20_000)
		if r.bytes > int64(file.Len())/2 {
			t.Errorf("for one column of one row group, %d of %d bytes were read", r.bytes, file.Len())
		}
	})
}

// checkColumn reads the column "number" of a row group. first is the value
// in the group's first row.
func checkColumn(t *testing.T, group parquet.RowGroup, first int64) {
	t.Helper()
	column, ok := group.Schema().Lookup("number")
	if !ok {
		t.Fatal("no column")
	}

	pages := group.ColumnChunks()[column.ColumnIndex].Pages()
	defer pages.Close()
	n := int64(0)
	for {
		page, err := pages.ReadPage()
		if err != nil {
			if !errors.Is(err, io.EOF) || n != 20_000 {
				t.Errorf("after %d values: %v", n, err)
			}
			return
		}
		values := make([]parquet.Value, page.NumValues())
		if read, err := page.Values().ReadValues(values); err != nil && !errors.Is(err, io.EOF) || read != len(values) {
			t.Fatalf("%d of %d values: %v", read, len(values), err)
		}
		for _, value := range values {
			if value.Int64() != first+n {
				t.Fatalf("value %d is %d", first+n, value.Int64())
			}
			n++
		}
	}
}

// ranges is an io.ReaderAt that reads with ranged GETs.
type ranges struct {
	sdk         *goSDK
	bucket, key string
	bytes       int64
}

func (r *ranges) ReadAt(p []byte, at int64) (int, error) {
	out, err := r.sdk.s3.GetObject(context.Background(), &s3.GetObjectInput{
		Bucket: &r.bucket, Key: &r.key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", at, at+int64(len(p))-1)),
	})
	if err != nil {
		return 0, err
	}
	defer out.Body.Close()
	n, err := io.ReadFull(out.Body, p)
	r.bytes += int64(n)
	return n, err
}
