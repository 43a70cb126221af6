package s3api

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"
)

// A browser asks before a page of another origin may send a request, and looks
// at the answer's Access-Control- headers before the page may see it. Both
// follow from the bucket's CORS configuration, which is the store's: it is
// asked.

const corsPrefix = "Access-Control-"

// corsTimeout is how long an answer of the proxy's own waits for what the
// store says to its origin.
const corsTimeout = 2 * time.Second

// preflight answers the browser's question, which is never signed. Whatever
// belongs to the request that is asked about, such as the query of a presigned
// URL, stays here, and of the store's answer nothing comes back but what it
// says of CORS.
// https://docs.aws.amazon.com/AmazonS3/latest/API/RESTOPTIONSobject.html
func (s *Server) preflight(c *call) error {
	method := c.Header.Get("Access-Control-Request-Method")
	switch {
	case c.Header.Get("Origin") == "":
		return badRequest("BadRequest", "Insufficient information. Origin request header needed.")
	case !slices.Contains([]string{"GET", "PUT", "HEAD", "POST", "DELETE"}, method):
		return badRequest("BadRequest", "Invalid Access-Control-Request-Method: "+method)
	}

	answer, err := s.askCORS(c.Context(), c, method)
	if own := (*Error)(nil); errors.As(err, &own) && own.Status() != http.StatusServiceUnavailable {
		return corsRefused(own)
	}
	if err != nil {
		return err
	}

	if answer.Get(corsPrefix+"Allow-Origin") == "" {
		return corsRefused(nil)
	}
	maps.Copy(c.w.Header(), answer)
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// corsRefused is the one answer to all preflights that the store refuses: who
// does not sign must not learn whether the bucket exists, or what it allows.
func corsRefused(cause error) *Error {
	return &Error{
		Code:    "AccessForbidden",
		Message: "CORSResponse: This CORS request is not allowed. The CORS configuration of the bucket, if there is such a bucket, does not allow the origin, the method or a header.",
		cause:   cause,
	}
}

// askCORS asks the store what it says to the call's Origin about a method, and
// returns the headers that say it.
func (s *Server) askCORS(ctx context.Context, c *call, method string) (http.Header, error) {
	header := http.Header{"Origin": c.Header.Values("Origin"), "Access-Control-Request-Method": {method}}
	if names := c.Header.Values("Access-Control-Request-Headers"); len(names) > 0 {
		header["Access-Control-Request-Headers"] = names
	}
	resp, err := s.send(c, c.originRequestTo(http.MethodOptions, nil, header, nil, 0).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return corsHeader(header.Get("Origin"), resp.Header), nil
}

// rememberCORS remembers what the store says to the call's Origin, if it was
// told of it with the call's own method.
func (c *call) rememberCORS(r *http.Request, resp *http.Response) {
	if origin := r.Header.Get("Origin"); origin != "" && r.Method == c.Method {
		said := corsHeader(origin, resp.Header)
		c.cors.Store(&said)
	}
}

// addCORSHeaders has the answer to a page of another origin say what the store
// says to it, whatever the answer is: an error of the proxy's own too, which
// the page could not see otherwise. Where the store was not asked in the
// course of the call, it is now.
func (s *Server) addCORSHeaders(c *call) {
	if c.Header.Get("Origin") == "" || c.bucket == "" || c.Method == http.MethodOptions {
		return
	}

	c.w.last = func() {
		if said := c.cors.Load(); said != nil {
			maps.Copy(c.w.Header(), *said)
			return
		}
		if !c.slot.held() && s.enter(c, s.unsigned, "") != nil {
			return
		}

		ctx, cancel := context.WithTimeout(c.Context(), corsTimeout)
		defer cancel()
		if said, err := s.askCORS(ctx, c, c.Method); err == nil {
			maps.Copy(c.w.Header(), said)
		}
	}
}

// corsHeaders are those that S3 sends to browsers.
var corsHeaders = []string{
	"Access-Control-Allow-Credentials", "Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin",
	"Access-Control-Expose-Headers", "Access-Control-Max-Age", "Vary",
}

// corsHeader returns the part of the store's answer that speaks to browsers. It
// is empty if it does not speak to the origin that asked.
func corsHeader(origin string, h http.Header) http.Header {
	out := make(http.Header)
	if vary := h.Values("Vary"); len(vary) > 0 {
		out["Vary"] = vary
	}

	allowed := h.Values(corsPrefix + "Allow-Origin")
	if len(allowed) != 1 || allowed[0] != "*" && allowed[0] != origin {
		return out
	}

	for _, name := range corsHeaders {
		if values := h.Values(name); len(values) > 0 {
			out[name] = values
		}
	}
	return out
}
