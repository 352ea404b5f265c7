package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry"
)

// Telemetry is what operators see.
type Telemetry interface {
	// Metrics returns all metrics in a format that the headers ask for.
	Metrics(header http.Header) (contentType string, body []byte, err error)
	// Since returns the events after the one called id, all that are kept for "".
	Since(id string) telemetry.Page
	// Answered counts an answer by the pattern of its route, "" for none.
	Answered(route string, status int)
}

// Media types of answers that are no JSON.
const (
	textType   = "text/plain"
	streamType = "text/event-stream"
)

// heartbeat is how often a stream without events says that it is there, so that
// either side finds out when the other is not.
const heartbeat = 15 * time.Second

func (a *API) operatorRoutes() []route {
	return []route{
		{
			method: "GET", path: "/metrics", id: "metrics", summary: "Metrics for Prometheus",
			doc:   "In the text format or the one that a scraper asks for; native histograms come with the latter. docs/OPERATIONS.md says what each metric means.",
			media: textType, status: http.StatusOK,
			serve: a.metrics,
		},
		{
			method: "GET", path: "/events", id: "events", summary: "What happened to sandboxes",
			doc:   "Without follow the events that the daemon keeps; with it a stream of server-sent events, which begins with those. A client that is too slow is told how many it missed by an event called gap.",
			out:   rest.EventList{},
			media: streamType, status: http.StatusOK,
			query: []*huma.Param{
				{Name: "follow", Schema: &huma.Schema{Type: huma.TypeBoolean}, Description: "Stream events as they happen."},
				{Name: "after", Schema: &huma.Schema{Type: huma.TypeString}, Description: "The id of the last event that the client has; so does the header Last-Event-ID."},
			},
			errors: []sandbox.Code{sandbox.CodeInvalid},
			serve:  a.events,
		},
		{
			method: "GET", path: "/stats", id: "stats", summary: "What sandboxes use now",
			doc: "CPU time and memory of each VMM, as the host counts them. Memory is looked at every ten seconds at most.",
			out: rest.Stats{}, status: http.StatusOK,
			serve: func(http.ResponseWriter, *http.Request) (any, error) { return a.stats(), nil },
		},
	}
}

func (a *API) metrics(_ http.ResponseWriter, r *http.Request) (any, error) {
	contentType, body, err := a.telemetry.Metrics(r.Header)
	if err != nil {
		return nil, err
	}
	return document{contentType, body}, nil
}

func (a *API) events(_ http.ResponseWriter, r *http.Request) (any, error) {
	query := r.URL.Query()
	follow := false
	if value := query.Get("follow"); value != "" {
		var err error
		if follow, err = strconv.ParseBool(value); err != nil {
			return nil, sandbox.Invalid("follow is %q; it can be true or false", value)
		}
	}
	after := query.Get("after")
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		after = last // of a client that lost the connection, and repeats its first request
	}
	if follow {
		return stream{streamType, func(out *answer) error { return a.follow(out, after) }}, nil
	}
	page := a.telemetry.Since(after)
	list := rest.EventList{Events: make([]rest.Event, len(page.Events)), Gap: gapOf(page)}
	for i, record := range page.Events {
		list.Events[i] = describeEvent(record)
	}
	return list, nil
}

// follow writes events as they happen, until the client goes away or the daemon
// ends.
func (a *API) follow(out *answer, after string) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		page := a.telemetry.Since(after)
		if err := writePage(out, page); err != nil {
			return err
		}
		if page.More == nil {
			return nil
		}
		after = page.Last
		select {
		case <-page.More:
		case <-beat.C:
			if _, err := out.Write([]byte(":\n\n")); err != nil {
				return err
			}
		case <-out.r.Context().Done():
			return nil
		}
	}
}

// writePage writes a page as server-sent events, and has it sent.
func writePage(out *answer, page telemetry.Page) error {
	var frames []byte
	if gap := gapOf(page); gap != (rest.Gap{}) {
		frames = appendFrame(frames, "", "gap", gap)
	}
	for _, record := range page.Events {
		frames = appendFrame(frames, record.ID, string(record.Kind), describeEvent(record))
	}
	if _, err := out.Write(frames); err != nil {
		return err
	}
	return out.conn.Flush()
}

// appendFrame appends one server-sent event. A gap has no id: whoever is cut off
// behind it asks again from where it was.
func appendFrame(b []byte, id, kind string, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // the API's types hold nothing that JSON cannot
	}
	if id != "" {
		b = fmt.Appendf(b, "id: %s\n", id)
	}
	return fmt.Appendf(b, "event: %s\ndata: %s\n\n", kind, data)
}

func gapOf(page telemetry.Page) rest.Gap {
	return rest.Gap{Missed: page.Missed, Restarted: page.Restarted}
}

// describeEvent returns an event in the API's words.
func describeEvent(r telemetry.Record) rest.Event {
	event := rest.Event{
		ID: r.ID, Seq: r.Seq, Time: r.At, Event: string(r.Kind), SandboxID: string(r.Sandbox), LanguagePack: r.Pack,
		BootPath: string(r.BootPath), Reason: r.Reason, DurationMS: r.Took.Milliseconds(),
	}
	if r.Kind == sandbox.EventExec && r.Ran > 0 {
		event.Start = rest.StartName(r.Warm)
	}
	if r.Denied != nil {
		denied := describeDenial(*r.Denied)
		event.EgressDenied = &denied
	}
	return event
}
