package storecheck

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// leftover is an object, a version of one, or an upload that the probe may
// have made. It is noted before the request that makes it is sent.
type leftover struct {
	path    string // of the object
	version string
	upload  string // the query with the id
}

func (l leftover) request() request {
	q := request{method: http.MethodDelete, path: l.path}
	switch {
	case l.version != "":
		q.path += "?" + url.Values{"versionId": {l.version}}.Encode()
	case l.upload != "":
		q.path += "?" + l.upload
	}
	return q
}

func (p *Probe) made(l leftover) {
	if !slices.Contains(p.created, l) {
		p.created = append(p.created, l)
	}
}

// cleanTimeout limits Clean.
const cleanTimeout = 15 * time.Second

// Clean removes whatever the probe has made, even if ctx was canceled. In a
// bucket with versions, it also removes the versions, as far as the store
// allows it.
func (p *Probe) Clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()

	// In a bucket with versions, removing an object makes another version,
	// which comes to the end of the list.
	var errs []error
	for i := 0; i < len(p.created); i++ {
		l := p.created[i]
		got, err := p.do(ctx, l.request())
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("removing %s: %w", l.path, err))
		case got.status >= 300 && got.status != http.StatusNotFound && l.version == "" && !refusesKey(got):
			errs = append(errs, fmt.Errorf("removing %s: %w", l.path, got.err()))
		}
	}
	p.created = nil
	return errors.Join(errs...)
}

// refusesKey reports whether the store refuses the name of an object. It has
// no such object then.
func refusesKey(got reply) bool { return got.status == http.StatusBadRequest }

// abandoned is the age at which what another probe has made is a leftover. A
// probe takes a minute at most.
const abandoned = 15 * time.Minute

// Sweep removes what earlier probes with this prefix have left because they
// were killed. It returns the number of objects and uploads.
func (p *Probe) Sweep(ctx context.Context) (int, error) {
	found, err := p.abandoned(ctx)
	if err != nil {
		return 0, err
	}
	for i, l := range found {
		got, err := p.do(ctx, l.request())
		if err == nil && got.status >= 300 && got.status != http.StatusNotFound {
			err = got.err()
		}
		if err != nil {
			return i, fmt.Errorf("removing %s: %w", l.path, err)
		}
	}
	return len(found), nil
}

func (p *Probe) abandoned(ctx context.Context) ([]leftover, error) {
	var found []leftover
	for _, prefix := range []string{p.cfg.Prefix + mark, "/" + p.cfg.Prefix + mark} {
		old, err := p.listed(ctx, prefix, "list-type", "2")
		if err != nil {
			return nil, err
		}
		uploads, err := p.listed(ctx, prefix, "uploads", "")
		if err != nil {
			return nil, err
		}
		found = append(append(found, old...), uploads...)
	}
	return found, nil
}

// listed returns the old objects, or uploads, in the first page of a listing.
func (p *Probe) listed(ctx context.Context, prefix, name, value string) ([]leftover, error) {
	query := strings.ReplaceAll(url.Values{name: {value}, "prefix": {prefix}}.Encode(), "+", "%20")
	got, err := p.want(ctx, http.StatusOK, request{method: http.MethodGet, path: "/" + p.cfg.Bucket + "?" + query})
	if err != nil {
		return nil, err
	}
	var doc struct {
		Contents []struct {
			Key          string
			LastModified time.Time
		}
		Upload []struct {
			Key, UploadId string
			Initiated     time.Time
		}
	}
	if err := xml.Unmarshal(got.body, &doc); err != nil {
		return nil, fmt.Errorf("listing %s: %w", prefix, err)
	}

	now := time.Now()
	if date, err := http.ParseTime(got.header.Get("Date")); err == nil {
		now = date // the store's clock, as for the times in the listing
	}

	var found []leftover
	for _, o := range doc.Contents {
		if strings.HasPrefix(o.Key, prefix) && now.Sub(o.LastModified) > abandoned {
			found = append(found, leftover{path: p.path(o.Key)})
		}
	}
	for _, u := range doc.Upload {
		if strings.HasPrefix(u.Key, prefix) && now.Sub(u.Initiated) > abandoned {
			found = append(found, leftover{path: p.path(u.Key), upload: uploadQuery(u.UploadId)})
		}
	}
	return found, nil
}
