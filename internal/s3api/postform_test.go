package s3api

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"mime"
	mimeform "mime/multipart"
	"strings"
	"testing"
)

const formType = "multipart/form-data; boundary=XX"

// counted counts the bytes that are read of a body.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// FuzzForm parses arbitrary bytes as a form. The file must be in these
// bytes, after a header and before a boundary. Before authentication, little
// is read.
func FuzzForm(f *testing.F) {
	const field, file, end = "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n", "--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n", "--XX--\r\n"
	for _, body := range []string{
		field + "1\r\n" + file + "text\r\n" + end,
		field + "\r\n" + file + "\r\n" + field + "behind\r\n--XX--",
		field + file + end,
		field + file + "\r\n-XX\r\n--X\r\n--XXY\r\n" + end,
		field + "1\r\n" + field + "2\r\n" + file + "text\r\n" + end,
		field + "1\r\n" + file + "text\r\n" + file + "another\r\n" + end,
		"--XX\nContent-Disposition: form-data; name=file\n\r\n\r\n" + end,
		"--XX \t\r\nContent-Disposition: form-data; name=\"FILE\"; filename=\"f\"\r\nContent-Transfer-Encoding: binary\r\n\r\n\r\n" + end,
		field + "--XX--", "--XX--\r\n", "--XX\r\n\r\n", "",
	} {
		for more := range int16(3) {
			f.Add(formType, []byte(body), more-1)
		}
	}

	for _, long := range []string{"a long line", "\r\n"} {
		f.Add(formType, []byte(field+strings.Repeat(long, 2*maxFields)+"\r\n"+file+"text\r\n"+end), int16(0))
	}

	f.Add(
		"multipart/form-data; boundary="+strings.Repeat("X", 71),
		[]byte("--"+strings.Repeat("X", 71)+"\r\n"),
		int16(0),
	)
	f.Add(`multipart/form-data; boundary="X X"`, []byte("--X X\r\n"), int16(0))
	f.Add("multipart/form-data", []byte("--\r\n"), int16(0))

	f.Fuzz(func(t *testing.T, contentType string, body []byte, more int16) {
		length := max(int64(len(body))+int64(more), 0) // the Content-Length of the request
		src := &counted{Reader: io.LimitReader(bytes.NewReader(body), length)}
		form, err := readForm(src, contentType, length)
		if src.n > 2*maxFields {
			t.Fatalf("%d bytes are read ahead of the file", src.n)
		}

		if err != nil {
			wantFormError(t, err)
			return
		}
		ahead := length - form.left

		if err := form.openFile(make(chan struct{}, 1)); err != nil {
			wantFormError(t, err)
			return
		}

		text, err := io.ReadAll(form.file)
		if err != nil || int64(len(text)) != form.size || !bytes.HasPrefix(body[ahead:], text) ||
			!bytes.HasPrefix(
				body[ahead+form.size:],
				[]byte("\r\n"+form.boundary),
			) || bytes.Contains(text, []byte("\r\n"+form.boundary)) {
			t.Fatalf("%q of %d bytes at %d, %v", text, form.size, ahead, err)
		}
	})
}

// wantFormError checks that the client gets an error about the form, or that
// the connection broke.
func wantFormError(t *testing.T, err error) {
	t.Helper()
	if answer := (*Error)(nil); !errors.As(err, &answer) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%T %v", err, err)
	}
}

// FuzzFormRoundTrip parses forms that the standard library has written.
// Short and long files come out unchanged; a truncated form gives no file.
func FuzzFormRoundTrip(f *testing.F) {
	f.Add("key", "a/b", "photo.jpg", []byte("text"), 0, uint8(0))
	f.Add("x-amz-meta-a", "with\r\nlines\r\n", `C:\"dir"\photo.jpg`, []byte("\r\n--X\r\n-XX\r\n--\r\n"), 0, uint8(1))
	f.Add("Content-Type", "", "é", []byte("\r\n--X"), maxPeek, uint8(0))
	f.Add("key", "k", "", []byte(""), maxPeek+7, uint8(4))
	f.Add("key", "k", "", []byte("\r"), 65_000, uint8(200))
	f.Add("\xf2\x11\"0;;", "\n\nR\n\r", "\x01=\xcb;\"", []byte("\xff\x00"), 0, uint8(0))

	f.Fuzz(func(t *testing.T, name, value, filename string, text []byte, repeat int, cut uint8) {
		if strings.Contains("\r\n"+value+"\r\n", "\r\n--XX") || strings.Contains("\r\n"+string(text), "\r\n--XX") {
			t.Skip("what a boundary may not be in")
		}

		// Repeated, so that some are long.
		file := bytes.Repeat(append(text, '.'), 1+min(max(repeat, 0), 2*maxPeek)/(len(text)+1))
		var body bytes.Buffer
		w := mimeform.NewWriter(&body)
		_ = w.SetBoundary("XX")

		if err := w.WriteField(name, value); err != nil {
			t.Skip(err)
		}
		part, err := w.CreateFormFile("file", filename)
		if err != nil {
			t.Skip(err)
		}

		ahead := body.Len()
		part.Write(file)
		w.Close()
		length := int64(body.Len())

		fields, err := fieldsOf(body.Bytes())
		if err != nil || fields["name"] == "" || strings.EqualFold(fields["name"], "file") || ahead > maxFields {
			return // not a valid form
		}
		body.Truncate(body.Len() - min(int(cut), body.Len()))
		src := &counted{Reader: &body}

		form, err := readForm(src, formType, length)
		if err == nil {
			err = form.openFile(make(chan struct{}, repeat&1)) // with and without a buffer
		}

		var got []byte
		if err == nil {
			got, err = io.ReadAll(form.file)
		}

		if cut > 0 {
			if err == nil {
				t.Fatalf("%d bytes are missing, and it is not noticed", cut)
			}
			return
		}

		want := map[string]string{strings.ToLower(fields["name"]): fields["value"]}
		if err != nil || !bytes.Equal(got, file) || form.size != int64(len(file)) || src.n != length ||
			!maps.Equal(form.fields, want) ||
			form.filename != fields["filename"] {
			t.Fatalf(
				"%d of %d bytes, size %d, fields %q not %q, file %q not %q, %v",
				len(got),
				len(file),
				form.size,
				form.fields,
				want,
				form.filename,
				fields["filename"],
				err,
			)
		}
	})
}

// fieldsOf parses the fields before the file with the standard library.
func fieldsOf(body []byte) (map[string]string, error) {
	r := mimeform.NewReader(bytes.NewReader(body), "XX")
	field, err := r.NextRawPart()
	if err != nil {
		return nil, err
	}

	value, err := io.ReadAll(field)
	if err != nil {
		return nil, err
	}

	out := map[string]string{"name": field.FormName(), "value": string(value)}
	file, err := r.NextRawPart()
	if err != nil {
		return nil, err
	}
	_, params, err := mime.ParseMediaType(file.Header.Get("Content-Disposition")) // FileName would remove directories
	out["filename"] = params["filename"]
	return out, err
}
