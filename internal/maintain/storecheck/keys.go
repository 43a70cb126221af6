package storecheck

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/capability"
)

// The values of the setting origin.keys.
const (
	pathKeys    = "path"
	literalKeys = "literal"
)

// findKeys stores objects under keys that look like unusual paths. All keys
// stay below the probe's name, whichever way the store treats them.
func (p *Probe) findKeys(ctx context.Context, set *capability.Set) error {
	defer p.madeFolders() // after the objects in them
	for _, row := range []struct {
		capability  capability.Capability
		key, folded string
	}{
		{capability.LiteralSlashes, p.name + "-keys//slashes", p.name + "-keys/slashes"},
		{capability.LiteralLeadingSlash, "/" + p.name + "-leading", p.name + "-leading"},
		{capability.LiteralBackslash, p.name + `-keys\backslash`, p.name + "-keys/backslash"},
		{capability.LiteralDots, p.name + "-keys/a/../dots", p.name + "-keys/dots"},
	} {
		got, err := p.do(ctx, p.putting(row.key, nil, text))
		switch {
		case err != nil:
			return err
		case got.status == http.StatusForbidden, got.status >= 500:
			return fmt.Errorf("PUT of the key %s: %w", row.key, got.err())
		case got.status >= 300:
			set[row.capability] = capability.Yes // it cannot be taken for another key
			continue
		}

		p.made(leftover{path: p.path(row.folded)})
		folded, err := p.exists(ctx, row.folded)
		if err != nil {
			return err
		}
		set[row.capability] = capability.AnswerOf(!folded)
	}
	return nil
}

// madeFolders notes the folders that some stores make for the objects in
// them, and do not remove with the objects.
func (p *Probe) madeFolders() {
	for _, folder := range []string{"-keys/a/", "-keys/"} {
		p.made(leftover{path: p.path(p.name + folder)})
	}
}

// CompareKeys compares how the store treats keys with the setting
// origin.keys.
func CompareKeys(set capability.Set, configured string) (string, error) {
	literal := set.Literal()
	detail := fmt.Sprintf(`// %s, a leading / %s, \ %s, .. %s`,
		capability.LiteralSlashes.Text(set[capability.LiteralSlashes]),
		capability.LiteralLeadingSlash.Text(set[capability.LiteralLeadingSlash]),
		capability.LiteralBackslash.Text(set[capability.LiteralBackslash]),
		capability.LiteralDots.Text(set[capability.LiteralDots]))

	switch {
	case literal == capability.Unknown:
		return "", errors.New("how the store treats unusual keys is unknown: " + detail)
	case literal == capability.Yes && configured == literalKeys:
		return "used unchanged", nil
	case literal == capability.Yes:
		return "used unchanged: with origin.keys: literal, no key would be refused because of its dots", nil
	case configured == pathKeys:
		return detail, nil
	case configured == literalKeys:
		return "", &SettingError{
			fmt.Errorf("the store takes keys as paths (%s), so two keys can be one object and "+
				"a client could leave its prefix", detail),
			"set origin.keys to path, or remove it",
		}
	default:
		return detail + ": the proxy refuses keys that the store would take for other keys", nil
	}
}
