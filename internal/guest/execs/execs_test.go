package execs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// registry is one whose clock the test sets.
func registry(budget int) (*Registry, *time.Time) {
	r := New(budget)
	now := time.Now()
	r.now = func() time.Time { return now }
	return r, &now
}

func add(t *testing.T, r *Registry, id string) *Exec {
	t.Helper()
	e, err := r.Add(id, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// check fails the test if r takes more memory than it may, or counts wrongly.
func check(t *testing.T, r *Registry) {
	t.Helper()
	sum := 0
	for _, e := range r.execs {
		for _, s := range []*Stream{e.Stdout, e.Stderr} {
			size := 0
			for _, b := range s.blocks {
				size += cap(b)
			}
			if size != s.size || s.end-s.first > MaxStream || size > MaxStream+blockSize {
				t.Fatalf("a stream of %d bytes takes %d, which are counted as %d", s.end-s.first, size, s.size)
			}
			sum += size
		}
	}
	if sum != r.used || sum > r.budget {
		t.Fatalf("%d bytes are taken, counted as %d, of %d", sum, r.used, r.budget)
	}
}

// Whatever several programs write, each byte that is kept is at the position that
// it was written at, and what is not kept is said to be gone.
func FuzzStreams(f *testing.F) {
	f.Add(uint64(1), 3, 1<<20)
	f.Add(uint64(2), 1, 64<<20)
	f.Add(uint64(3), 8, 2*blockSize)
	f.Fuzz(func(t *testing.T, seed uint64, programs, budget int) {
		programs, budget = 1+(programs&7), blockSize+(budget&(8<<20-1))
		random := rand.New(rand.NewPCG(seed, 0))
		r, now := registry(budget)
		var all []*Exec
		for i := range programs {
			all = append(all, add(t, r, fmt.Sprint(i)))
		}
		want := make([][]byte, programs)
		for range 60 {
			i := random.IntN(programs)
			e := all[i]
			if exit, _ := e.Exit(); exit != nil {
				continue
			}
			p := make([]byte, random.IntN(1<<random.IntN(17)+1))
			for j := range p {
				p[j] = byte(len(want[i]) + j)
			}
			want[i] = append(want[i], p...)
			if n, err := e.Stdout.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			check(t, r)
			if random.IntN(20) == 0 {
				*now = now.Add(time.Second)
				e.End(&agentv1.Exit{}, 0)
			}
		}
		for i, e := range all {
			first, end := e.Stdout.Span()
			if end != uint64(len(want[i])) {
				t.Fatalf("%d bytes were written, it says %d", len(want[i]), end)
			}
			var gone *GoneError
			if _, _, err := e.Stdout.Read(make([]byte, 1), first-1); first > 0 && (!errors.As(err, &gone) || gone.First != first) {
				t.Fatalf("before the first byte: %v", err)
			}
			if _, _, err := e.Stdout.Read(make([]byte, 1), end+1); !errors.Is(err, ErrBeyond) {
				t.Fatalf("beyond the end: %v", err)
			}
			var got []byte
			buf := make([]byte, 1+random.IntN(40000))
			for at := first; at < end; {
				n, _, err := e.Stdout.Read(buf, at)
				if err != nil || n == 0 {
					t.Fatalf("at %d of %d to %d: %d, %v", at, first, end, n, err)
				}
				got = append(got, buf[:n]...)
				at += uint64(n)
			}
			if !bytes.Equal(got, want[i][first:]) {
				t.Fatalf("what was read from %d on is not what was written", first)
			}
		}
	})
}

func TestReadersAreWoken(t *testing.T) {
	r, _ := registry(1 << 20)
	e := add(t, r, "a")
	buf := make([]byte, 10)
	n, more, err := e.Stdout.Read(buf, 0)
	if n != 0 || more == nil || err != nil {
		t.Fatal(n, err)
	}
	_, _ = e.Stdout.Write([]byte("x"))
	<-more
	if n, _, err = e.Stdout.Read(buf, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	_, more, _ = e.Stdout.Read(buf, 1)
	e.End(&agentv1.Exit{Code: 3}, 7)
	<-more
	if _, _, err = e.Stdout.Read(buf, 1); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	<-e.Done()
	if exit, given := e.Exit(); exit.GetCode() != 3 || given != 7 {
		t.Error(exit, given)
	}
}

// What ended first goes first, and what somebody was told of before that; what
// runs is never forgotten.
func TestForgetting(t *testing.T) {
	r, now := registry(1 << 20)
	runs := add(t, r, "runs")
	told := []*Exec{}
	for i := range maxEnded {
		*now = now.Add(time.Second)
		e := add(t, r, fmt.Sprint("ended", i))
		e.End(&agentv1.Exit{}, 0)
		if i == 10 || i == 20 {
			e.Told()
			told = append(told, e)
		}
	}
	if n := len(r.List()); n != maxEnded+1 {
		t.Fatalf("%d are known", n)
	}
	for i, want := range []string{told[0].ID, told[1].ID, "ended0", "ended1"} {
		*now = now.Add(time.Second)
		add(t, r, fmt.Sprint("more", i)).End(&agentv1.Exit{}, 0)
		if _, err := r.Get(want); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s is known: %v", want, err)
		}
	}
	if _, err := r.Get("ended2"); err != nil {
		t.Error(err)
	}
	*now = now.Add(maxAge + time.Second)
	if list := r.List(); len(list) != 1 || list[0] != runs {
		t.Errorf("%d are known after %v", len(list), maxAge)
	}
	if _, err := r.Add("runs", "", 0); !errors.Is(err, ErrExists) {
		t.Errorf("twice the same id: %v", err)
	}
}

// A program that writes a lot takes the room of one that has ended, and not of one
// that runs and wrote less.
func TestRoomIsTakenFromThoseThatEnded(t *testing.T) {
	const budget = 2 << 20
	r, _ := registry(budget)
	ended, small, large := add(t, r, "ended"), add(t, r, "small"), add(t, r, "large")
	_, _ = ended.Stdout.Write(make([]byte, MaxStream))
	ended.End(&agentv1.Exit{}, 0)
	_, _ = small.Stderr.Write(make([]byte, 100<<10))
	for range 10 {
		_, _ = large.Stdout.Write(make([]byte, MaxStream/4))
		_, _ = large.Stderr.Write(make([]byte, MaxStream/4))
		check(t, r)
	}
	if first, end := ended.Stdout.Span(); first != end {
		t.Errorf("%d bytes of a program that ended are kept", end-first)
	}
	if exit, _ := ended.Exit(); exit == nil {
		t.Error("with its output, its end was forgotten")
	}
	if first, _ := small.Stderr.Span(); first != 0 {
		t.Error("a program that wrote little lost output")
	}
	if first, end := large.Stdout.Span(); first == 0 || end-first < MaxStream/2 {
		t.Errorf("of the largest, bytes %d to %d are kept", first, end)
	}
}

// The id of a program that is started once is never used again, whatever becomes of
// the program, and there is an end to such ids.
func TestOnce(t *testing.T) {
	r, now := registry(1 << 20)
	e, err := r.Add("once", "digest", 0)
	if err != nil {
		t.Fatal(err)
	}
	add(t, r, "plain")
	is := func(when string, known *Exec, gone error) {
		t.Helper()
		for digest, want := range map[string]error{"digest": gone, "other": ErrDiffers} {
			if got, err := r.GetOnce("once", digest); !errors.Is(err, want) || err == nil && got != known {
				t.Errorf("%s, with the digest %q: %v", when, digest, err)
			}
		}
		if _, err := r.Add("once", "digest", 0); !errors.Is(err, ErrExists) {
			t.Errorf("%s it is started again: %v", when, err)
		}
		for _, digest := range []string{"other", ""} {
			if _, err := r.Add("once", digest, 0); !errors.Is(err, ErrDiffers) {
				t.Errorf("%s it is started again with the digest %q: %v", when, digest, err)
			}
		}
	}
	is("while it runs", e, nil)
	e.End(&agentv1.Exit{}, 0)
	is("when it has ended", e, nil)
	*now = now.Add(maxAge + time.Second)
	is("when it is forgotten", nil, ErrExists)
	if _, err := r.GetOnce("nobody", "digest"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a program that was never started: %v", err)
	}
	if _, err := r.GetOnce("plain", "digest"); !errors.Is(err, ErrDiffers) {
		t.Errorf("a program without a digest: %v", err)
	}
	for i := 1; i < maxOnce; i++ {
		e, err := r.Add(fmt.Sprint(i), "digest", 0)
		if err != nil {
			t.Fatal(i, err)
		}
		r.Forget(e)
	}
	if _, err := r.Add("more", "digest", 0); !errors.Is(err, ErrMany) {
		t.Errorf("one too many: %v", err)
	}
	add(t, r, "more")
}
