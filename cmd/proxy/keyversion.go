package main

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// keyVersion names the version of the KMS key that wrapped a data key, "" where the blob does not tell: those of AWS KMS
// and Google Cloud KMS are opaque. The forms are those of docs/format.md and of Vault itself, which puts "vault:vN:" ahead.
func keyVersion(keyID string, wrapped []byte) string {
	const (
		localForm1, localForm2 = 1 + 12 + 32 + 16, 1 + 4 + 12 + 32 + 16 // lengths
		azureName, azureAt     = 16, 2 + 8 + 1                          // of the version's name
	)
	if parsed, err := crypt.ParseWrappedKey(wrapped); err == nil {
		wrapped = parsed.Blob
	}
	switch {
	case strings.HasPrefix(keyID, "local:") && len(wrapped) == localForm1 && wrapped[0] == 1:
		return "1"
	case strings.HasPrefix(keyID, "local:") && len(wrapped) == localForm2 && wrapped[0] == 2:
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(wrapped[1:])), 10)
	case strings.HasPrefix(string(wrapped), "vault:v"):
		number, _, ok := strings.Cut(string(wrapped[len("vault:v"):]), ":")
		if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil {
			return ""
		}
		return number
	case strings.HasPrefix(keyID, "https://") && len(wrapped) > azureAt+azureName && wrapped[0] == 1 && wrapped[azureAt-1] == azureName:
		return hex.EncodeToString(wrapped[azureAt : azureAt+azureName])
	}
	return ""
}
