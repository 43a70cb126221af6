package advisor

import (
	"encoding/json"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

// Handler serves the Report, as a page or as JSON.
func (r *Recorder) Handler() http.Handler {
	return &webpage.Report[Report]{
		Now: r.Report, View: func(rep Report) any { return newView(rep) }, Page: pageTemplate,
	}
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
