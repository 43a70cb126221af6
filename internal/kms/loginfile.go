package kms

import (
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// Environment variables of the vendors' own clients. They name files that
// the default credentials read.
const (
	gcpFileVariable   = "GOOGLE_APPLICATION_CREDENTIALS"
	azureFileVariable = "AZURE_CLIENT_CERTIFICATE_PATH"
)

// followLogin creates credentials with load. It creates them again when
// their file changes: the one that the environment variable names, or the
// default one in the home directory. The vendors' clients read the file
// only once.
func followLogin[T any](load func() (T, error), report Report, variable string, inHome ...string) (
	*livefile.File[T], error,
) {
	path := os.Getenv(variable) //nolint:forbidigo // the vendor's variable, which load uses too
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
