package cleanup

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestUnwindIsInReverseAndKeepsWhatFailed(t *testing.T) {
	var (
		s       Stack
		ran     []string
		refuse  = errors.New("refused")
		failing = true
	)
	add := func(name string, err func() error) {
		s.Add(name, func(context.Context) error { ran = append(ran, name); return err() })
	}
	fine := func() error { return nil }
	add("first", fine)
	add("second", func() error {
		if failing {
			return refuse
		}
		return nil
	})
	add("third", fine)

	if err := s.Unwind(t.Context()); !errors.Is(err, refuse) {
		t.Errorf("got %v, want the step's error", err)
	}
	failing = false
	if err := s.Unwind(t.Context()); err != nil {
		t.Errorf("second unwind: %v", err)
	}
	if err := s.Unwind(t.Context()); err != nil {
		t.Errorf("third unwind: %v", err)
	}
	if want := []string{"third", "second", "first", "second"}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
}

func TestReleasedStackUndoesNothing(t *testing.T) {
	var s Stack
	s.Add("kept", func(context.Context) error { t.Error("undone after release"); return nil })
	s.Release()
	if err := s.Unwind(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUnwindOutlivesTheCallersContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s Stack
	s.Add("step", func(ctx context.Context) error {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("teardown has no deadline")
		}
		return ctx.Err()
	})
	if err := s.Unwind(ctx); err != nil {
		t.Errorf("teardown on a cancelled context: %v", err)
	}
}

func TestPersist(t *testing.T) {
	refuse := errors.New("refused")
	var told, tries int
	err := Persist(t.Context(), nil, func(context.Context) error {
		if tries++; tries < 3 {
			return refuse
		}
		return nil
	}, func(error) { told++ })
	if err != nil || tries != 3 || told != 2 {
		t.Errorf("%v after %d tries, %d errors told", err, tries, told)
	}
	stop := make(chan struct{})
	close(stop)
	tries = 0
	err = Persist(t.Context(), stop, func(context.Context) error { tries++; return refuse }, func(error) {})
	if !errors.Is(err, refuse) || tries != 1 {
		t.Errorf("stopped: %v after %d tries", err, tries)
	}
}
