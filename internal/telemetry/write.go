package telemetry

import (
	"bytes"
	"fmt"
	"net/http"

	"github.com/prometheus/common/expfmt"
)

// Metrics returns all metrics in the format that a scraper with those headers
// wants, and that format's content type. Only the one that Prometheus prefers
// carries native histograms.
func (t *Telemetry) Metrics(header http.Header) (contentType string, body []byte, err error) {
	families, err := t.registry.Gather()
	if err != nil {
		return "", nil, fmt.Errorf("metrics: %w", err)
	}
	format := expfmt.NegotiateAccept(header, expfmt.DefaultAcceptedFormats()...)
	var b bytes.Buffer
	enc := expfmt.NewEncoder(&b, format)
	for _, family := range families {
		if err := enc.Encode(family); err != nil {
			return "", nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return string(format), b.Bytes(), nil
}
