package keytemplate

import (
	"fmt"
	"strings"
)

// Object is the opposite of Expand. It returns the bucket and the prefix of
// objects for which Expand gives these values, which are separated by "/".
// Bucket is "" if the text does not depend on it. Segments on which the text
// does not depend are "any" in the prefix.
func (t *Template) Object(values string) (bucket, prefix string, err error) {
	list, segments := strings.Split(values, "/"), make([]string, maxSegment+1)
	most, used := 0, 0
	for _, p := range t.pieces {
		switch {
		case !p.isVar:
			continue
		case used == len(list):
			return "", "", fmt.Errorf("%q has too few values for the variables", values)
		case !valueForm.MatchString(list[used]):
			return "", "", &Error{Variable: p.text}
		}

		value := list[used]
		used++
		known := &bucket
		if p.segment > 0 {
			known, most = &segments[p.segment], max(most, p.segment)
		}
		if *known != "" && *known != value {
			return "", "", fmt.Errorf("%q has two values for %s", values, p.text)
		}
		*known = value
	}
	if used < len(list) {
		return "", "", fmt.Errorf("%q has too many values for the variables", values)
	}

	for _, segment := range segments[1 : most+1] {
		if segment == "" {
			segment = "any"
		}
		prefix += segment + "/"
	}
	return bucket, prefix, nil
}
