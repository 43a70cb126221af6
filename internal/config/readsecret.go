package config

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// maxSecretFile limits the size in bytes of a file with a secret.
const maxSecretFile = 4096

// secret decodes a secret from the text, the environment or a file. Errors
// never contain any part of it.
func (d *decoder) secret(n *yaml.Node, s *Secret, path string) {
	if n.Kind != yaml.ScalarNode {
		d.fail(s, "%s must be a string, not %s", path, describe(n))
		return
	}

	text, err := d.expand(n.Value, false)
	if file, ok := strings.CutPrefix(text, "file:"); ok && err == nil && strings.HasPrefix(n.Value, "file:") {
		text, err = readSecret(file)
		d.secrets = append(d.secrets, file)
	}

	var unset *unsetError
	switch {
	case d.isElsewhere(s, err):
		return
	case errors.As(err, &unset) && n.Value != "${"+unset.name+"}":
		// A plaintext secret may contain something like a variable. Then
		// the name is part of the secret.
		err = errors.New("it refers to an environment variable that is unset or empty; write $${ for a literal ${")
	case err == nil && text == "":
		err = errors.New("it is empty")
	case err == nil && strings.TrimSpace(text) != text:
		err = errors.New("it begins or ends with white space")
	}

	if err != nil {
		d.fail(s, "%s: %v", path, err)
		return
	}

	*s = Secret(text)
}

// readSecret reads a secret from a file, without the newline at its end.
func readSecret(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errors.New("file: needs an absolute path")
	}

	f, info, err := livefile.OpenRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()

	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%s has mode %04o: all users can access it (fix: chmod o= FILE)",
			path, info.Mode().Perm())
	}

	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1)) //nolint:forbidigo // limited
	switch {
	case err != nil:
		return "", err
	case len(data) > maxSecretFile:
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxSecretFile)
	}

	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}

	return text, nil
}
