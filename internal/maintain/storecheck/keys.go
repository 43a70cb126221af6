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

// Keys finds out how the store takes keys that look like odd paths, and whether
// origin.keys says so. None of the keys leads out of a folder of the probe's
// own, whatever the store makes of it.
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
		return "", errors.New("the store took odd keys, and lists none of them")
	}
	literal := slices.Contains(listed, odd[0]) && slices.Contains(listed, odd[1])
	return compareKeys(literal, configured)
}

// compareKeys compares what a store does with what the configuration says.
func compareKeys(literal bool, configured string) (string, error) {
	switch {
	case literal && configured == literalKeys:
		return "taken as they are", nil
	case literal:
		return "taken as they are: origin.keys could be literal, and no key were refused for its dots", nil
	case configured == pathKeys:
		return "taken as paths", nil
	case configured == literalKeys:
		return "", errors.New(
			"the store takes keys as paths, so that a client could reach past its prefix: set origin.keys to path",
		)
	default:
		return "taken as paths: set origin.keys to path, and keys that the store takes for others are refused", nil
	}
}

// listed returns the keys below a prefix, as the store has them.
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
		if strings.HasPrefix(object.Key, prefix) { // nothing else is the probe's
			keys = append(keys, object.Key)
		}
	}
	return keys, nil
}
