package s3api

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A browser asks before a page of another origin may send a request, and looks at the answer's Access-Control- headers
// before the page may see it. Both follow from the bucket's CORS configuration, which is the store's: it is asked.

const corsPrefix = "Access-Control-"

// corsTimeout is how long an answer of the proxy's own waits for what the store says to its origin.
const corsTimeout = 2 * time.Second

// preflight answers the browser's question, which is never signed. Whatever belongs to the request that is asked about,
// such as the query of a presigned URL, stays here, and of the store's answer nothing comes back but what it says of CORS.
// https://docs.aws.amazon.com/AmazonS3/latest/API/RESTOPTIONSobject.html
func (s *Server) preflight(c *call) error {
	method := c.Header.Get("Access-Control-Request-Method")
	switch {
	case c.Header.Get("Origin") == "":
		return badRequest("BadRequest", "Insufficient information. Origin request header needed.")
	case !slices.Contains([]string{"GET", "PUT", "HEAD", "POST", "DELETE"}, method):
		return badRequest("BadRequest", "Invalid Access-Control-Request-Method: "+method)
	}
	answer, err := s.askOrigin(c.Context(), c, method)
	if own := (*Error)(nil); errors.As(err, &own) {
		own.Header = nil
	}
	if err != nil {
		return err
	}
	maps.Copy(c.w.Header(), answer)
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// askOrigin asks the store what it says to the call's Origin about a method, and returns the headers that say it.
func (s *Server) askOrigin(ctx context.Context, c *call, method string) (http.Header, error) {
	header := http.Header{"Origin": c.Header.Values("Origin"), "Access-Control-Request-Method": {method}}
	if names := c.Header.Values("Access-Control-Request-Headers"); len(names) > 0 {
		header["Access-Control-Request-Headers"] = names
	}
	r := &http.Request{Method: http.MethodOptions, URL: c.objectURL(nil), Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	resp, err := s.send(c, r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return corsHeader(resp.Header), nil
}

// noteOrigin remembers what the store says to the call's Origin, if it was told of it with the call's own method.
func (c *call) noteOrigin(r *http.Request, resp *http.Response) {
	if r.Header.Get("Origin") != "" && r.Method == c.Method {
		said := corsHeader(resp.Header)
		c.cors.Store(&said)
	}
}

// answerOrigins has the answer to a page of another origin say what the store says to it, whatever the answer is: an error
// of the proxy's own too, which the page could not see otherwise. Where the store was not asked in the course of the call,
// it is now.
func (s *Server) answerOrigins(c *call) {
	if c.Header.Get("Origin") == "" || c.bucket == "" || c.Method == http.MethodOptions {
		return
	}
	c.w.last = func() {
		if said := c.cors.Load(); said != nil {
			maps.Copy(c.w.Header(), *said)
			return
		}
		ctx, cancel := context.WithTimeout(c.Context(), corsTimeout)
		defer cancel()
		if said, err := s.askOrigin(ctx, c, c.Method); err == nil {
			maps.Copy(c.w.Header(), said)
		}
	}
}

// corsHeader returns the part of the store's answer that speaks to browsers.
func corsHeader(h http.Header) http.Header {
	out := make(http.Header)
	for name, values := range h {
		if strings.HasPrefix(name, corsPrefix) || name == "Vary" {
			out[name] = values
		}
	}
	return out
}
