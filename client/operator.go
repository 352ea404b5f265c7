package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"

	"github.com/emberd/emberd/api/rest"
)

// Event is one thing that happened, or a gap: then Gap is set, and the events
// before the next one are not known.
type Event struct {
	rest.Event
	Gap *rest.Gap
}

// Events returns the events that the daemon keeps: those after the one with the id
// after, or all of them if it is empty.
func (c *Client) Events(ctx context.Context, after string) (rest.EventList, error) {
	var list rest.EventList
	err := c.do(ctx, http.MethodGet, "/events?after="+url.QueryEscape(after), nil, &list)
	return list, err
}

// Follow yields the events that [Client.Events] would return, and then each one as
// it happens, until ctx ends, the daemon does or the loop is left. The end of ctx is
// an error; an orderly end of the daemon is none.
func (c *Client) Follow(ctx context.Context, after string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		resp, err := c.send(ctx, http.MethodGet, "/events?follow=true&after="+url.QueryEscape(after), nil)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		frames := bufio.NewReaderSize(resp.Body, maxFrame)
		for {
			event, err := readEvent(frames)
			switch {
			case errors.Is(err, io.EOF):
				return
			case err != nil && ctx.Err() != nil:
				err = context.Cause(ctx)
			case err != nil:
				err = fmt.Errorf("follow the events of emberd at %s: %w", c.addr, err)
			}
			if !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// maxFrame bounds a server-sent event, in bytes.
const maxFrame = 64 << 10

// readEvent reads one server-sent event; those without data are skipped.
func readEvent(in *bufio.Reader) (Event, error) {
	var kind, data []byte
	for size := 0; ; {
		line, err := in.ReadSlice('\n')
		if size += len(line); size > maxFrame {
			err = errors.New("an event is too long")
		}
		if err != nil {
			return Event{}, err
		}
		line = bytes.TrimRight(line, "\r\n")
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0 && data != nil:
			return decodeEvent(string(kind), data)
		case len(line) == 0:
			size = 0
		case string(name) == "event":
			kind = bytes.Clone(value)
		case string(name) == "data":
			data = append(data, value...)
		}
	}
}

func decodeEvent(kind string, data []byte) (e Event, err error) {
	if kind == "gap" {
		e.Gap = new(rest.Gap)
		return e, json.Unmarshal(data, e.Gap)
	}
	return e, json.Unmarshal(data, &e.Event)
}

// Stats returns what sandboxes use now.
func (c *Client) Stats(ctx context.Context) (rest.Stats, error) {
	var s rest.Stats
	err := c.do(ctx, http.MethodGet, "/stats", nil, &s)
	return s, err
}

// Metrics returns the daemon's metrics in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the metrics of emberd at %s: %w", c.addr, err)
	}
	return b, nil
}
