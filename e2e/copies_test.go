package e2e

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// partsETag matches the ETag of a multipart object.
var partsETag = regexp.MustCompile(`-[1-9][0-9]*"$`)

// checkMultipart copies files that are too large for one request.
func checkMultipart(t *testing.T, s *session) {
	c, ok := s.client.(multiparter)
	if !ok {
		notApplicable(t)
	}

	large := s.Large
	if err := c.putLarge(s.bucket, "large", large.File); err != nil {
		t.Fatal(err)
	}

	a, err := s.judge.head(s.bucket, "large")
	if err != nil || a.size != int64(large.Size) || !partsETag.MatchString(a.etag) {
		t.Errorf("not stored in parts: %+v, %v", a, err)
	}

	back := filepath.Join(t.TempDir(), "large")
	if err := c.getLarge(s.bucket, "large", back); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(back)
	same(t, "large", got, err, large.data)
}

// checkCopy makes the server copy a single-PUT object and a multipart
// object.
func checkCopy(t *testing.T, s *session) {
	c, ok := s.client.(copier)
	if !ok {
		notApplicable(t)
	}

	sources := map[string][]byte{"bodies/random-65497": s.body(t, "random-65497").data}
	if _, ok := s.client.(multiparter); ok {
		sources["large"] = s.Large.data
	}

	for from, want := range sources {
		if err := c.copy(s.bucket, from, "copies/"+filepath.Base(from)); err != nil {
			t.Errorf("copying %s: %v", from, err)
			continue
		}
		got, err := s.judge.get(s.bucket, "copies/"+filepath.Base(from))
		same(t, "the copy of "+from, got, err, want)
	}
	if err := c.move(s.bucket, "copies/random-65497", "moved"); err != nil {
		t.Fatal(err)
	}

	got, err := s.client.get(s.bucket, "moved")
	same(t, "what was moved", got, err, sources["bodies/random-65497"])
	if _, err := s.judge.head(s.bucket, "copies/random-65497"); !refusedAs(err, http.StatusNotFound, "NotFound") {
		t.Errorf("after it was moved: %v", err)
	}
}

func checkTags(t *testing.T, s *session) {
	c, ok := s.client.(tagger)
	if !ok {
		notApplicable(t)
	}
	want := map[string]string{"project": "e2e", "state": "a+b = c/d"}
	if err := c.setTags(s.bucket, "bodies/random-1", want); err != nil {
		t.Fatal(err)
	}
	if got, err := c.tags(s.bucket, "bodies/random-1"); err != nil || !maps.Equal(got, want) {
		t.Errorf("tags: %v, %v", got, err)
	}
	if got, err := s.judge.tags(s.bucket, "bodies/random-1"); err != nil || !maps.Equal(got, want) {
		t.Errorf("tags, as another client reads them: %v, %v", got, err)
	}
}
