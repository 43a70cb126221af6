package kms

import (
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// The environment of the vendors' own clients, which names the files that their
// default credentials read.
const (
	gcpFileVariable   = "GOOGLE_APPLICATION_CREDENTIALS"
	azureFileVariable = "AZURE_CLIENT_CERTIFICATE_PATH"
)

// followLogin makes credentials by load, and makes them again when the file
// changes that a variable of the environment names, or else the one in the home
// directory. The vendors' clients read it once.
func followLogin[T any](load func() (T, error), report Report, variable string, inHome ...string) (
	*livefile.File[T], error,
) {
	path := os.Getenv(variable) //nolint:forbidigo // it is the vendor's, and load goes by it too
	if home, err := os.UserHomeDir(); path == "" && err == nil && len(inHome) > 0 {
		path = filepath.Join(append([]string{home}, inHome...)...)
	}

	var paths []string
	if path != "" {
		paths = []string{path}
	}

	return livefile.Open(livefile.Config[T]{Paths: paths, Load: load, Report: func(err error) {
		if report != nil {
			report("the credentials in "+path, err)
		}
	}})
}
