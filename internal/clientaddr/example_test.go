package clientaddr_test

import (
	"fmt"
	"net/netip"

	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
)

func ExampleProxies_Client() {
	proxies := clientaddr.Proxies{netip.MustParsePrefix("10.1.0.0/24")}
	forwarded := []string{"198.51.100.1, 203.0.113.7, 10.1.0.5"} // the client wrote the first one

	fmt.Println(proxies.Client("10.1.0.6:4711", forwarded))
	fmt.Println(proxies.Client("192.0.2.1:4711", forwarded)) // not a proxy
	// Output:
	// 203.0.113.7
	// 192.0.2.1:4711
}
