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

	if p.cut {
		time.Sleep(cutTries * cutPause)
	}
	for _, list := range []listing{uploads, versions} {
		found, err := p.listed(ctx, list, p.name)
		if err != nil {
			continue // what is noted is removed all the same
		}
		for _, l := range found {
			p.made(l.leftover) // nobody heard the answer when it was made
		}
	}

	// In a bucket with versions, removing an object makes another version,
	// which comes to the end of the list.
	var errs []error
	for i := 0; i < len(p.created); i++ {
		errs = append(errs, p.remove(ctx, p.created[i]))
	}
	p.created = nil
	return errors.Join(errs...)
}

// remove removes what the probe has made, or may have made.
func (p *Probe) remove(ctx context.Context, l leftover) error {
	got, err := p.do(ctx, l.request())
	switch {
	case err != nil:
		return fmt.Errorf("removing %s: %w", l.path, err)
	case got.status < 300, got.status == http.StatusNotFound,
		got.status == http.StatusBadRequest, // the store refuses the key, so it has no such object
		l.version != "":                     // the store may keep versions for a time
		return nil
	default:
		return fmt.Errorf("removing %s: %w", l.path, got.err())
	}
}

// abandoned is the age at which what another probe has made is a leftover. A
// probe takes a minute at most.
const abandoned = 15 * time.Minute

// Sweep removes what earlier probes have left because they were killed, as far
// as it is in the first page of a listing. It returns how many objects and
// uploads it has removed.
func (p *Probe) Sweep(ctx context.Context) (int, error) {
	return p.removeListed(ctx, p.cfg.Prefix+mark, abandoned)
}

// ID returns a name that all objects of the probe have in their keys.
func (p *Probe) ID() string { return p.name }

// SweepAfter removes what another probe, whose ID this is, has left because
// it was killed.
func (p *Probe) SweepAfter(ctx context.Context, name string) (int, error) {
	p.name = name
	p.madeFolders()
	n, err := p.removeListed(ctx, name, 0)
	return n, errors.Join(err, p.Clean(ctx))
}

func (p *Probe) removeListed(ctx context.Context, name string, age time.Duration) (n int, err error) {
	for _, prefix := range []string{name, "/" + name} {
		for _, list := range []listing{versions, objects, uploads} {
			found, err := p.listed(ctx, list, prefix)
			if err != nil && !list.optional {
				return n, err
			}
			for _, l := range found {
				if age > 0 && l.age < age {
					continue
				}
				if err := p.remove(ctx, l.leftover); err != nil {
					return n, err
				}
				n++
			}
		}
	}
	return n, nil
}

// listing is a way to list what is in a bucket.
type listing struct {
	query    string
	optional bool // some stores do not have it
}

var (
	objects  = listing{query: "list-type=2"}
	uploads  = listing{query: "uploads="}
	versions = listing{query: "versions=", optional: true}
)

// found is a leftover in a listing.
type found struct {
	leftover
	age time.Duration
}

// listed returns what the first page of a listing has below a prefix.
func (p *Probe) listed(ctx context.Context, list listing, prefix string) ([]found, error) {
	query := strings.ReplaceAll(url.Values{"prefix": {prefix}}.Encode(), "+", "%20")
	got, err := p.want(ctx, http.StatusOK, request{
		method: http.MethodGet, path: "/" + p.cfg.Bucket + "?" + list.query + "&" + query,
	})
	if err != nil {
		return nil, err
	}
	var doc struct {
		Contents, Version, DeleteMarker []struct {
			Key, VersionId string
			LastModified   time.Time
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

	var all []found
	for _, o := range slices.Concat(doc.Contents, doc.Version, doc.DeleteMarker) {
		if o.VersionId == "null" {
			o.VersionId = ""
		}
		all = append(all, found{leftover{path: p.path(o.Key), version: o.VersionId}, now.Sub(o.LastModified)})
	}
	for _, u := range doc.Upload {
		all = append(all, found{leftover{path: p.path(u.Key), upload: uploadQuery(u.UploadId)}, now.Sub(u.Initiated)})
	}
	return slices.DeleteFunc(all, func(f found) bool { // other objects are not the probe's
		return !strings.HasPrefix(f.path, p.path(prefix))
	}), nil
}
