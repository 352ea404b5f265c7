package telemetry

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// kept is how many events are kept.
const kept = 1024

// events are the last of what happened, in the order in which it did. There is one
// copy of them, and a reader is no more than a place in it: it holds nothing back,
// and one that is too slow is told how many it missed.
type events struct {
	now func() time.Time
	// run tells the events of this daemon from those of another.
	run string

	mu     sync.Mutex
	ring   [kept]Record
	last   uint64        // sequence number of the newest, 0 if there is none
	more   chan struct{} // closed when there is another one
	closed bool
}

// Record is an event, when it happened, and its place among the others.
type Record struct {
	sandbox.Event
	Seq uint64
	// ID names the event, in the life of this daemon and of others.
	ID string
	At time.Time
}

// Page is what a reader gets.
type Page struct {
	Events []Record
	// Last is the id to ask from when there is more.
	Last string
	// Missed are events between those that the reader has and these, which are gone.
	Missed uint64
	// Restarted says that the reader's last event was another daemon's, so that it
	// is not known what it missed.
	Restarted bool
	// More is closed when there are further events. It is nil when there will be
	// none, because the daemon ends.
	More <-chan struct{}
}

func newEvents(now func() time.Time) *events {
	if now == nil {
		now = time.Now
	}
	var run [4]byte
	_, _ = rand.Read(run[:]) // it cannot fail
	return &events{now: now, run: hex.EncodeToString(run[:]), more: make(chan struct{})}
}

// add appends one event.
func (e *events) add(event sandbox.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	e.ring[e.last%kept] = Record{Event: event, Seq: e.last, ID: e.id(e.last), At: e.now().UTC()}
	if !e.closed {
		close(e.more)
		e.more = make(chan struct{})
	}
}

// since returns the events after the one called id, and all that there are for "".
func (e *events) since(id string) Page {
	e.mu.Lock()
	defer e.mu.Unlock()
	oldest := uint64(1)
	if e.last > kept {
		oldest = e.last - kept + 1
	}
	p := Page{Last: e.id(e.last)}
	if !e.closed {
		p.More = e.more
	}
	next := oldest
	if seq, ours := e.place(id); ours {
		next = min(seq, e.last) + 1
	} else if p.Restarted = id != ""; p.Restarted {
		next = 1
	}
	if next < oldest {
		p.Missed, next = oldest-next, oldest
	}
	for seq := next; seq <= e.last; seq++ {
		p.Events = append(p.Events, e.ring[seq%kept])
	}
	return p
}

func (e *events) id(seq uint64) string { return fmt.Sprintf("%s-%d", e.run, seq) }

// place is the sequence number in an id, if this daemon gave it.
func (e *events) place(id string) (seq uint64, ours bool) {
	run, number, _ := strings.Cut(id, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	return seq, run == e.run && err == nil
}

// close tells those who follow that there will be no more.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		close(e.more)
	}
	e.closed = true
}
