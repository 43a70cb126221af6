package storecheck

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// The values of the setting origin.keys.
const (
	pathKeys    = "path"
	literalKeys = "literal"
)

// Keys tests how the store treats keys that look like unusual paths, and
// compares it with origin.keys. All keys stay below a folder of the probe,
// whichever way the store treats them.
func (p *Probe) Keys(ctx context.Context, configured string) (string, error) {
	folder := p.name + "-keys/"
	odd := []string{folder + "a/../dots", folder + "b//slashes"}
	refused := 0

	for _, key := range odd {
		got, err := p.do(ctx, http.MethodPut, p.path(key), nil, bytes.NewReader(text), int64(len(text)))
		switch {
		case err != nil:
			return "", err
		case got.status >= 500:
			return "", fmt.Errorf("PUT of the key %s: %s", key, got)
		case got.status >= 300:
			refused++
		}
	}

	listed, err := p.listed(ctx, folder)
	if err != nil {
		return "", err
	}
	for _, key := range listed {
		if _, err := p.do(ctx, http.MethodDelete, p.path(key), nil, nil, 0); err != nil {
			return "", err
		}
	}

	if refused < len(odd) && len(listed) == 0 {
		return "", errors.New("the store accepted unusual keys, but lists none of them")
	}
	literal := slices.Contains(listed, odd[0]) && slices.Contains(listed, odd[1])
	return compareKeys(literal, configured)
}

// compareKeys compares the store's behavior with the configuration.
func compareKeys(literal bool, configured string) (string, error) {
	switch {
	case literal && configured == literalKeys:
		return "taken literally", nil
	case literal:
		return "taken literally: with origin.keys: literal, no key would be refused because of its dots", nil
	case configured == pathKeys:
		return "taken as paths", nil
	case configured == literalKeys:
		return "", errors.New(
			"the store takes keys as paths, so a client could leave its prefix: set origin.keys to path",
		)
	default:
		return "taken as paths: set origin.keys to path to refuse keys that the store takes for other keys", nil
	}
}

// listed returns the store's keys below a prefix.
func (p *Probe) listed(ctx context.Context, prefix string) ([]string, error) {
	query := strings.ReplaceAll(url.Values{"list-type": {"2"}, "prefix": {prefix}}.Encode(), "+", "%20")
	got, err := p.do(ctx, http.MethodGet, "/"+p.bucket+"?"+query, nil, nil, 0)
	if err != nil {
		return nil, err
	}

	var doc struct {
		Contents []struct{ Key string }
	}
	if err := xml.Unmarshal(got.body, &doc); err != nil || got.status != http.StatusOK {
		return nil, fmt.Errorf("listing %s: %s", prefix, got)
	}

	var keys []string
	for _, object := range doc.Contents {
		if strings.HasPrefix(object.Key, prefix) { // other objects are not the probe's
			keys = append(keys, object.Key)
		}
	}
	return keys, nil
}
