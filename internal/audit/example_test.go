package audit_test

import (
	"fmt"
	"os"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/audit"
)

// A record is a line of JSON. What it is about may go on only after Write has
// returned nil.
func ExampleLog_Write() {
	log, err := audit.New(audit.Config{
		Out: os.Stdout,
		Now: func() time.Time { return time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer log.Close()

	err = log.Write(audit.Record{
		Event: "open", Result: audit.OK, KMSKeyName: "main", Source: "kms", Client: "app", Bucket: "photos", Key: "cat.jpg",
	})
	if err != nil {
		fmt.Println("the object is not opened:", err)
	}
	// Output: {"time":"2026-11-29T12:00:00Z","event":"open","result":"ok","kms_key_name":"main","source":"kms","client":"app","bucket":"photos","key":"cat.jpg"}
}
