package checksum_test

import (
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
)

func ExampleNamed() {
	crc32 := checksum.Named("CRC32")
	h := crc32.New()
	h.Write([]byte("hello"))
	fmt.Println(crc32.Header(), checksum.Encode(h.Sum(nil)))
	// Output: X-Amz-Checksum-Crc32 NhCmhg==
}
