package trace

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector keeps what it is sent.
type collector struct {
	*httptest.Server
	status int

	mu    sync.Mutex
	spans []jsonSpan
	from  []keyValue
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{status: http.StatusOK}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc document
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &doc)
		}
		if err != nil || r.Method != "POST" || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range doc.ResourceSpans {
			c.from = rs.Resource.Attributes
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
		w.WriteHeader(c.status)
	}))
	t.Cleanup(c.Close)
	return c
}

func TestSpansAreSent(t *testing.T) {
	c := newCollector(t)
	e, err := New(c.URL, "1.2.3", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, request := e.Request(t.Context(), "create-sandbox", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	request.Set("emberd.id", "sb_1")
	request.Set("emberd.pack", "")
	_, step := Start(ctx, "boot")
	step.End(Code(errors.Join(errors.New("/var/lib/secret"), sandbox.ErrBoot)))
	step.End("")
	request.End("")
	e.Close()
	if len(c.spans) != 2 {
		t.Fatalf("got %+v", c.spans)
	}
	boot, create := c.spans[0], c.spans[1]
	if create.TraceID != "0af7651916cd43dd8448eb211c80319c" || create.Parent != "b7ad6b7169203331" || create.Kind != kindServer || create.Name != "create-sandbox" ||
		create.Status != (status{}) || len(create.Attributes) != 1 || create.Attributes[0] != text("emberd.id", "sb_1") {
		t.Errorf("the request is %+v", create)
	}
	if boot.TraceID != create.TraceID || boot.Parent != create.SpanID || boot.Kind != kindInternal || boot.Status != (status{statusError, "boot_failed"}) {
		t.Errorf("the step is %+v", boot)
	}
	if len(boot.Start) != 19 || boot.End < boot.Start || create.End < boot.End || create.Start > boot.Start {
		t.Errorf("the step took from %s to %s, the request from %s to %s", boot.Start, boot.End, create.Start, create.End)
	}
	if len(c.from) != 2 || c.from[1] != text("service.version", "1.2.3") {
		t.Errorf("they are from %+v", c.from)
	}
}

func TestNobodyTraces(t *testing.T) {
	ctx, span := Start(t.Context(), "boot")
	if span != nil || ctx != t.Context() {
		t.Error("a span comes of nothing")
	}
	span.Set("a", "b")
	span.End("")
}

func TestTraceParent(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for header, want := range map[string]string{
		"00-" + trace + "-" + parent + "-01":                   "sampled",
		"00-" + trace + "-" + parent + "-00":                   "unwanted",
		"cc-" + trace + "-" + parent + "-01-what-is-to-come":   "sampled",
		"00-" + trace + "-" + parent + "-01-more":              "none",
		"ff-" + trace + "-" + parent + "-01":                   "none",
		"00-" + strings.ToUpper(trace) + "-" + parent + "-01":  "none",
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": "none",
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01":  "none",
		"00-" + trace[1:] + "-" + parent + "-01":               "none",
		"00-" + trace + "-" + parent + "-xx":                   "none",
		"":                                                     "none", "-": "none", "---": "none",
	} {
		got := "none"
		if id, _, sampled, ok := parseParent(header); ok && sampled {
			got = "sampled"
			if hex.EncodeToString(id[:]) != trace {
				t.Errorf("%q: trace %x", header, id)
			}
		} else if ok {
			got = "unwanted"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func FuzzTraceParent(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("---")
	f.Fuzz(func(t *testing.T, header string) {
		if trace, parent, _, ok := parseParent(header); ok && (trace == [16]byte{} || parent == [8]byte{}) {
			t.Errorf("%q names nothing", header)
		}
	})
}

// A sender that does not want a trace gets none, and whoever sends nonsense is one
// who sends nothing.
func TestWhoIsTraced(t *testing.T) {
	e := &Exporter{now: time.Now}
	if _, span := e.Request(t.Context(), "x", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"); span != nil {
		t.Error("a sender that does not want a trace gets one")
	}
	if _, span := e.Request(t.Context(), "x", "nonsense"); span == nil || span.trace == [16]byte{} || span.parent != [8]byte{} {
		t.Errorf("got %+v", span)
	}
}

// A collector that does not answer, or refuses, costs spans and no time.
func TestCollectorThatFails(t *testing.T) {
	var log testenv.Log
	c := newCollector(t)
	c.status = http.StatusInternalServerError
	e, err := New(c.URL+"/", "1.2.3", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * waiting {
		_, span := e.Request(context.Background(), "exec", "")
		span.End("")
	}
	e.Close()
	if got := e.dropped.Load(); got == 0 {
		t.Error("none were dropped")
	}
	if said := log.String(); strings.Count(said, "traces are not taken") != 1 || !strings.Contains(said, "500") {
		t.Errorf("the log says %s", said)
	}
	_, span := e.Request(context.Background(), "late", "")
	span.End("")
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/traces", "https://c.example/": "https://c.example/v1/traces",
		"http://c.example/otlp/v1/traces": "http://c.example/otlp/v1/traces",
		"127.0.0.1:4318":                  "", "grpc://c.example": "", "http:///x": "", "%": "",
	} {
		e, err := New(endpoint, "1", slog.New(slog.DiscardHandler))
		if (err == nil) != (want != "") {
			t.Errorf("%s: %v", endpoint, err)
		}
		if e != nil {
			if e.url != want {
				t.Errorf("%s: %s, want %s", endpoint, e.url, want)
			}
			e.Close()
		}
	}
}
