package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/emberd/emberd/internal/x/progress"
)

// printJSON prints v on standard output, indented.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable prints rows in columns on standard output.
func (a *app) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// say writes for people to read, on standard error. If that does not work,
// there is nobody to be told.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// What takes less than quiet needs no progress where nobody watches, and leaves
// no trace where somebody does. What takes less than flicker is not shown at
// all.
const (
	quiet   = 2 * time.Second
	flicker = 150 * time.Millisecond
)

// progress returns a [progress.Func] that shows on standard error what is being
// done, and the function that ends the showing; it must be called before
// anything else is written to standard error. On a terminal it is a line with
// a clock; elsewhere it is a plain line per step, once the whole has taken
// longer than [quiet].
func (a *app) progress() (progress.Func, func()) {
	m := newMeter(a.stderr, isTerminal(a.stderr))
	return m.step, sync.OnceFunc(m.stop)
}

// meter shows the progress of one operation.
type meter struct {
	w     io.Writer
	tty   bool
	began time.Time
	done  chan struct{}

	running sync.WaitGroup

	mu      sync.Mutex
	name    string
	since   time.Time
	printed bool // something of this step was written
	stopped bool
}

func newMeter(w io.Writer, tty bool) *meter {
	m := &meter{w: w, tty: tty, began: time.Now(), done: make(chan struct{})}
	m.running.Go(m.run)
	return m
}

func (m *meter) run() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-tick.C:
			m.mu.Lock()
			m.show()
			m.mu.Unlock()
		}
	}
}

// step ends the step that was shown and begins the one called name.
func (m *meter) step(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return
	}
	m.end()
	m.name, m.since, m.printed = name, time.Now(), false
	m.show()
}

func (m *meter) stop() {
	close(m.done)
	m.running.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end()
	m.stopped = true
}

// show writes the state of the current step. The caller holds mu.
func (m *meter) show() {
	if m.name == "" {
		return
	}
	took := time.Since(m.since)
	switch {
	case m.tty && took > flicker:
		say(m.w, "\r\x1b[K%s… %.1fs", m.name, took.Seconds())
		m.printed = true
	case !m.tty && !m.printed && time.Since(m.began) > quiet:
		say(m.w, "%s…\n", m.name)
		m.printed = true
	}
}

// end finishes the line of the current step. The caller holds mu.
func (m *meter) end() {
	if m.tty && m.printed {
		if took := time.Since(m.since); took > quiet {
			say(m.w, "\r\x1b[K%s… %.1fs\n", m.name, took.Seconds())
		} else {
			say(m.w, "\r\x1b[K")
		}
	}
	m.name = ""
}

// isTerminal reports whether v is a file that is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
