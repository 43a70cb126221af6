package s3api

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// allocated returns how many bytes are allocated while f runs.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// kept returns how many bytes are still in use after f.
func kept(f func() any) uint64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	held := f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(held)
	if after.HeapAlloc < before.HeapAlloc {
		return 0
	}
	return after.HeapAlloc - before.HeapAlloc
}

// filled repeats a text up to the longest body that the routes allow.
func filled(before, text, after string) []byte {
	return []byte(before + strings.Repeat(text, (maxList-len(before)-len(after))/len(text)) + after)
}

// A useless document costs less than three times its size in memory.
func TestXMLThatCostsMuch(t *testing.T) {
	for _, list := range []struct {
		root, entry, good string
		parse             func([]byte) error
	}{
		{
			"CompleteMultipartUpload", "Part", "<PartNumber>1</PartNumber><ETag>e</ETag>",
			func(b []byte) error { _, err := parseCompletion(b); return err },
		},
		{"Delete", "Object", "<Key>k</Key>", func(b []byte) error { _, err := parseDeletion(b); return err }},
	} {
		t.Run(list.root, func(t *testing.T) {
			begin, end := "<"+list.root+">", "</"+list.root+">"
			for name, body := range map[string][]byte{
				"empty entries":       filled(begin, "<"+list.entry+"/>", end),
				"good entries":        filled(begin, "<"+list.entry+">"+list.good+"</"+list.entry+">", end),
				"unknown elements":    filled(begin, "<a/>", end),
				"nested elements":     filled(begin, "<"+list.entry+">", end),
				"comments":            filled(begin, "<!---->", end),
				"comments in front":   filled("", "<!---->", begin+end),
				"instructions":        filled(begin, "<?a?>", end),
				"attributes":          filled("<"+list.root, ` a=""`, ">"+end),
				"attributes of many":  filled(begin, "<"+list.entry+` a="" b="" c="" d="" e="" f="" g=""/>`, end),
				"a long text":         filled(begin+"<"+list.entry+"><ETag>", "x", "</ETag></"+list.entry+">"+end),
				"entities":            filled(begin+"<"+list.entry+"><ETag>", "&amp;", "</ETag></"+list.entry+">"+end),
				"pieces of text":      filled(begin+"<"+list.entry+"><ETag>", "<![CDATA[]]>", "</ETag></"+list.entry+">"+end),
				"one element often":   filled(begin+"<"+list.entry+">", "<ETag/>", "</"+list.entry+">"+end),
				"ignorable, often":    filled(begin+"<"+list.entry+">", "<Size/>", "</"+list.entry+">"+end),
				"a long element name": filled(begin+"<", "a", ""),
				"white space":         filled(begin, " ", end),
			} {
				var err error
				cost := allocated(func() { err = list.parse(body) })
				if err == nil || cost > 3*uint64(len(body)) {
					t.Errorf("%s: %d bytes for a document of %d: %v", name, cost, len(body), err)
				}
			}
		})
	}
}

// The longest valid list takes less than three times its size in memory.
func TestXMLOfTheLongestList(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString("<CompleteMultipartUpload>")
	for i := range crypt.MaxPartNumber {
		fmt.Fprintf(
			&doc,
			`<Part><PartNumber>%d</PartNumber><ETag>"%032x-0"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32><Size>5</Size><LastModified>x</LastModified></Part>`,
			i+1,
			i,
		)
	}

	doc.WriteString("</CompleteMultipartUpload>")
	var list *completion
	var err error
	size := kept(func() any {
		list, err = parseCompletion(doc.Bytes())
		return list
	})

	if err != nil || len(list.Parts) != crypt.MaxPartNumber {
		t.Fatal(err)
	}
	if size > 3*uint64(doc.Len()) {
		t.Errorf("%d bytes for a document of %d", size, doc.Len())
	}

	if last := list.Parts[crypt.MaxPartNumber-1]; last.PartNumber != crypt.MaxPartNumber ||
		!strings.HasPrefix(last.ETag, `"`) ||
		len(last.sums) != 1 {
		t.Errorf("%+v", last)
	}
}

// Text that two parsers could understand differently is refused, and so is
// text that could make the request conditional.
func TestAmbiguousXML(t *testing.T) {
	const part = "<PartNumber>1</PartNumber><ETag>e</ETag>"
	for body, code := range map[string]string{
		"<Part>" + part + "</Part>": "",
		"<Part>" + part + "<Size>1</Size><LastModified>t</LastModified></Part>": "",
		"<!-- a remark --><Part>" + part + "</Part>\n":                          "",
		"<Part>" + part + "<ETag>f</ETag></Part>":                               "MalformedXML",
		"<Part>" + part + "<PartNumber>2</PartNumber></Part>":                   "MalformedXML",
		"<Part><PartNumber>1</PartNumber><ETag>e<b/></ETag></Part>":             "MalformedXML",
		"<Part>" + part + "<If>1</If></Part>":                                   "NotImplemented",
		"<Part>" + part + "</Part><If/>":                                        "NotImplemented",
		"<Part>" + part:                                                         "MalformedXML",
		"":                                                                      "MalformedXML",
	} {
		t.Run(body, func(t *testing.T) {
			_, err := parseCompletion([]byte("<CompleteMultipartUpload>" + body + "</CompleteMultipartUpload>"))
			if answer, _ := err.(*Error); code == "" && err != nil || //nolint:errorlint // it is not wrapped
				code != "" && (answer == nil || answer.Code != code) {
				t.Errorf("%v, want %q", err, code)
			}
		})
	}

	for body, code := range map[string]string{
		"<Object><Key>k</Key></Object><Quiet>true</Quiet>":    "",
		"<Object><Key>k</Key><Key>other</Key></Object>":       "MalformedXML",
		"<Object><Key>k<i>j</i></Key></Object>":               "MalformedXML",
		"<Object><Key>k</Key><Size>1</Size></Object>":         "NotImplemented",
		"<Object><Key>k</Key></Object><Quiet/><Quiet/>":       "MalformedXML",
		"<Object><Key>k</Key></Object><Quiet>perhaps</Quiet>": "MalformedXML",
		strings.Repeat("<Object><Key>k</Key></Object>", 1001): "MalformedXML",
		strings.Repeat("<Object><Key>k</Key></Object>", 1000): "",
		"<Object><VersionId>v</VersionId></Object>":           "MalformedXML",
	} {
		t.Run(body, func(t *testing.T) {
			_, err := parseDeletion([]byte("<Delete>" + body + "</Delete>"))
			if answer, _ := err.(*Error); code == "" && err != nil || //nolint:errorlint // it is not wrapped
				code != "" && (answer == nil || answer.Code != code) {
				t.Errorf("%.80s: %v, want %q", body, err, code)
			}
		})
	}
}
