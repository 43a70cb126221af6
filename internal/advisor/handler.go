package advisor

import (
	"encoding/json"
	"mime"
	"net/http"
	"strings"
)

// Handler serves the Report: as JSON for "Accept: application/json" or
// "?format=json", otherwise as a web page.
func (r *Recorder) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}

		format := req.URL.Query().Get("format")
		if format == "" {
			format = "html"
			if acceptsJSON(req.Header.Values("Accept")) {
				format = "json"
			}
		}

		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Vary", "Accept")
		h.Set("X-Content-Type-Options", "nosniff")

		switch format {
		case "json":
			h.Set("Content-Type", "application/json")
			enc := json.NewEncoder(w)
			enc.SetIndent("", "  ")
			_ = enc.Encode(r.Report()) // fails only if the client has left
		case "html":
			h.Set("Content-Type", "text/html; charset=utf-8")
			h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
			_ = pageTemplate.Execute(w, newView(r.Report())) // as above
		default:
			http.Error(w, "format is html or json", http.StatusBadRequest)
		}
	})
}

// acceptsJSON reports whether an Accept header contains JSON explicitly.
// Those of browsers do not.
func acceptsJSON(accept []string) bool {
	for _, line := range accept {
		for element := range strings.SplitSeq(line, ",") {
			if kind, _, err := mime.ParseMediaType(element); err == nil && kind == "application/json" {
				return true
			}
		}
	}

	return false
}

// MarshalJSON implements json.Marshaler. Durations are in seconds.
func (r Report) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Observed      float64 `json:"observed_seconds"`
		Accesses      float64 `json:"accesses_per_second"`
		Creates       float64 `json:"creates_per_second"`
		Probes        float64 `json:"probes_per_second"`
		SampledBlobs  int     `json:"sampled_blobs"`
		SampleRate    float64 `json:"sample_rate"`
		PricePer10000 float64 `json:"price_per_10000_calls"`
		Currency      string  `json:"currency"`
		Month         float64 `json:"month_seconds"`
		Rows          []Row   `json:"rows"`
	}{
		r.Observed.Seconds(), r.AccessesPerSecond, r.CreatesPerSecond, r.ProbesPerSecond,
		r.SampledBlobs, r.SampleRate, r.PricePer10000, r.Currency, Month.Seconds(), r.Rows,
	})
}

// MarshalJSON implements json.Marshaler. Durations are in seconds.
func (r Row) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		TTL              float64 `json:"ttl_seconds"`
		Current          bool    `json:"current"`
		Calls            float64 `json:"kms_calls_per_second"`
		HitRatio         float64 `json:"hit_ratio"`
		MonthlyCost      float64 `json:"monthly_cost"`
		RevocationWindow float64 `json:"revocation_window_seconds"`
		DEKsHeld         float64 `json:"deks_held"`
		WarmingUp        bool    `json:"warming_up"`
	}{
		r.TTL.Seconds(), r.Current, r.CallsPerSecond, r.HitRatio, r.MonthlyCost, r.RevocationWindow.Seconds(),
		r.DEKsHeld, r.WarmingUp,
	})
}
