package trace

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// How spans are sent: a queue of waiting, in batches, no later than every, and no
// longer than patience each.
const (
	waiting  = 2048
	batch    = 256
	every    = 2 * time.Second
	patience = 5 * time.Second
)

// tracesPath is where a collector takes traces if its URL names no place.
const tracesPath = "/v1/traces"

// Exporter sends spans to a collector.
type Exporter struct {
	url, version string
	log          *slog.Logger
	client       *http.Client
	now          func() time.Time

	queue   chan *Span
	dropped atomic.Int64
	quit    chan struct{}
	wg      sync.WaitGroup
}

// New returns an exporter to the collector at endpoint, a URL. The caller closes
// it.
func New(endpoint, version string, log *slog.Logger) (*Exporter, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("trace endpoint: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("trace endpoint %q is no http or https URL", endpoint)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	e := &Exporter{
		url: u.String(), version: version, log: log, now: time.Now,
		client: &http.Client{Timeout: patience, Transport: &http.Transport{}},
		queue:  make(chan *Span, waiting), quit: make(chan struct{}),
	}
	e.wg.Go(e.run)
	return e, nil
}

// Close sends what there is, within the time of one batch, and ends. Spans that end
// later are dropped.
func (e *Exporter) Close() {
	close(e.quit)
	e.wg.Wait()
	e.client.CloseIdleConnections()
}

// hand takes a span that has ended. It waits for nobody.
func (e *Exporter) hand(s *Span) {
	select {
	case e.queue <- s:
	default:
		e.dropped.Add(1)
	}
}

// run sends what is handed over.
func (e *Exporter) run() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var spans []*Span
	var failing bool
	flush := func() {
		if len(spans) == 0 {
			return
		}
		err := e.send(spans)
		switch {
		case err != nil && !failing:
			e.log.Warn("traces are not taken", "err", err, "dropped", e.dropped.Add(int64(len(spans))))
		case err != nil:
			e.dropped.Add(int64(len(spans)))
		case failing:
			e.log.Info("traces are taken again", "dropped", e.dropped.Load())
		}
		failing, spans = err != nil, nil
	}
	for {
		select {
		case s := <-e.queue:
			if spans = append(spans, s); len(spans) >= batch {
				flush()
			}
		case <-tick.C:
			flush()
		case <-e.quit:
			for len(spans) < batch {
				select {
				case s := <-e.queue:
					spans = append(spans, s)
					continue
				default:
				}
				break
			}
			flush()
			return
		}
	}
}

// send sends one batch.
func (e *Exporter) send(spans []*Span) error {
	body, err := json.Marshal(e.document(spans))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	if resp.StatusCode >= 300 {
		return fmt.Errorf("the collector answered %s", resp.Status)
	}
	return nil
}

// The JSON form of an ExportTraceServiceRequest, as far as it is used.
type (
	document struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []keyValue `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope      `json:"scope"`
		Spans []jsonSpan `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	jsonSpan struct {
		TraceID    string     `json:"traceId"`
		SpanID     string     `json:"spanId"`
		Parent     string     `json:"parentSpanId,omitempty"`
		Name       string     `json:"name"`
		Kind       int        `json:"kind"`
		Start      string     `json:"startTimeUnixNano"`
		End        string     `json:"endTimeUnixNano"`
		Attributes []keyValue `json:"attributes,omitempty"`
		Status     status     `json:"status"`
	}
	status struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
	keyValue struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String string `json:"stringValue"`
	}
)

// The numbers of OTLP's enumerations.
const (
	kindInternal = 1
	kindServer   = 2
	statusError  = 2
)

func text(key, s string) keyValue { return keyValue{key, value{s}} }

func (e *Exporter) document(spans []*Span) document {
	all := make([]jsonSpan, len(spans))
	for i, s := range spans {
		all[i] = s.json()
	}
	return document{[]resourceSpans{{
		Resource:   resource{[]keyValue{text("service.name", "emberd"), text("service.version", e.version)}},
		ScopeSpans: []scopeSpans{{Scope: scope{"github.com/emberd/emberd"}, Spans: all}},
	}}}
}

func (s *Span) json() jsonSpan {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := jsonSpan{
		TraceID: hex.EncodeToString(s.trace[:]), SpanID: hex.EncodeToString(s.id[:]), Name: s.name, Kind: kindInternal,
		Start: strconv.FormatInt(s.began.UnixNano(), 10), End: strconv.FormatInt(s.ended.UnixNano(), 10),
	}
	if s.parent != [8]byte{} {
		j.Parent = hex.EncodeToString(s.parent[:])
	}
	if s.server {
		j.Kind = kindServer
	}
	for _, a := range s.attributes {
		j.Attributes = append(j.Attributes, text(a.key, a.value))
	}
	if s.code != "" {
		j.Status = status{statusError, s.code}
	}
	return j
}
