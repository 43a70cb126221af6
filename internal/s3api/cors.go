package s3api

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// Before a page of another origin may send a request, the browser asks
// whether it is allowed. Before the page sees a response, the browser checks
// its Access-Control- headers. Both depend on the bucket's CORS
// configuration, which the store has, so the proxy asks the store.

const corsPrefix = "Access-Control-"

// corsTimeout is how long a response of the proxy's own, such as an error,
// waits for the store's CORS headers.
const corsTimeout = 2 * time.Second

// preflight answers the browser's question, which is never signed. The proxy
// does not forward other parts of the request, such as the query of a
// presigned URL. From the store's answer, it returns only the CORS headers.
// https://docs.aws.amazon.com/AmazonS3/latest/API/RESTOPTIONSobject.html
func (s *Server) preflight(c *call) error {
	method := c.Header.Get("Access-Control-Request-Method")
	switch {
	case c.Header.Get("Origin") == "":
		return badRequest("BadRequest", "Insufficient information. Origin request header needed.")
	case !slices.Contains([]string{"GET", "PUT", "HEAD", "POST", "DELETE"}, method):
		return badRequest("BadRequest", "Invalid Access-Control-Request-Method: "+method)
	}
	if err := checkCORSNames(c.Header.Values(corsPrefix + "Request-Headers")); err != nil {
		return err
	}

	answer, err := s.askCORS(c.Context(), c, method)
	fault := storefault.Of(err)
	redirected := fault != nil && fault.Kind == storefault.Redirect // so there is such a bucket
	if own := (*Error)(nil); errors.As(err, &own) && (own.Status() != http.StatusServiceUnavailable || redirected) {
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

// checkCORSNames refuses names that no header can have, in S3's words.
func checkCORSNames(lists []string) error {
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			if trimmed := strings.TrimSpace(name); trimmed != "" && !httpguts.ValidHeaderFieldName(trimmed) {
				return badRequest("BadRequest",
					`Access-Control-Request-Headers "`+name+`" contains invalid character.`)
			}
		}
	}
	return nil
}

// corsRefused is the same answer to all preflights that the store refuses, in
// S3's words for a bucket whose configuration does not allow the request. An
// unsigned request must not find out whether the bucket exists.
func corsRefused(cause error) *Error {
	return &Error{
		Code: "AccessForbidden",
		Message: "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, " +
			"request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted " +
			"by the resource's CORS spec.",
		cause: cause,
	}
}

// askCORS asks the store which CORS headers it sends to the call's Origin
// for a method.
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

// rememberCORS keeps the CORS headers of a store's answer, if the request
// had the call's Origin and method.
func (c *call) rememberCORS(r *http.Request, resp *http.Response) {
	if origin := r.Header.Get("Origin"); origin != "" && r.Method == c.Method {
		said := corsHeader(origin, resp.Header)
		c.cors.Store(&said)
	}
}

// addCORSHeaders makes every response to a page of another origin have the
// store's CORS headers. The proxy's own errors need them too, or the page
// could not see them. If the call has not asked the store, the store is
// asked before the response is sent.
func (s *Server) addCORSHeaders(c *call) {
	if c.Header.Get("Origin") == "" || c.bucket == "" || c.Method == http.MethodOptions {
		return
	}

	c.w.last = func() {
		if said := c.cors.Load(); said != nil {
			maps.Copy(c.w.Header(), *said)
			return
		}
		if !c.slot.held() && s.enter(c, s.unsigned, holder{}) != nil {
			return
		}

		ctx, cancel := context.WithTimeout(c.Context(), corsTimeout)
		defer cancel()
		if said, err := s.askCORS(ctx, c, c.Method); err == nil {
			maps.Copy(c.w.Header(), said)
		}
	}
}

// corsHeaders are the headers that S3 sends to browsers.
var corsHeaders = []string{
	"Access-Control-Allow-Credentials", "Access-Control-Allow-Headers",
	"Access-Control-Allow-Methods", "Access-Control-Allow-Origin",
	"Access-Control-Expose-Headers", "Access-Control-Max-Age", "Vary",
}

// corsHeader returns the CORS headers of a store's answer. Apart from Vary,
// it returns none if the answer does not allow the origin.
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
