package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	id := NewID()
	if got, err := ParseID(string(id)); err != nil || got != id {
		t.Errorf("ParseID(%q) = %q, %v", id, got, err)
	}
	for _, s := range []string{
		"", "sb_", "sb_a1b2c3d4e5f", "sb_a1b2c3d4e5f67", "sb_A1B2C3D4E5F6", "xx_a1b2c3d4e5f6",
		"sb_../../../etc", "sb_a1b2c3d4e5f6/", "sb_a1b2c3d4e5f\n", "sb_a1b2c3d4e5f6 ", "sb-a1b2c3d4e5f6",
	} {
		if id, err := ParseID(s); !errors.Is(err, ErrNotFound) {
			t.Errorf("ParseID(%q) = %q, %v, want not found", s, id, err)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
}

func TestStateTable(t *testing.T) {
	all := []State{Creating, Running, Deleting, Gone}
	allowed := map[[2]State]bool{
		{Creating, Running}: true, {Creating, Deleting}: true,
		{Running, Deleting}: true, {Deleting, Gone}: true,
	}
	for _, from := range all {
		for _, to := range all {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				defer func() {
					if panicked := recover() != nil; panicked == allowed[[2]State{from, to}] {
						t.Errorf("panicked: %v", panicked)
					}
				}()
				if got := from.To(to); got != to {
					t.Errorf("got %s", got)
				}
			})
		}
	}
}

func TestPublicSaysNothingOfTheHost(t *testing.T) {
	secret := errors.New("open /var/lib/emberd/secret: permission denied")
	for _, tt := range []struct {
		err  error
		code Code
		text string
	}{
		{UnknownPack("ruby"), CodeUnknownPack, `unknown language pack: "ruby"`},
		{fmt.Errorf("create: %w", ErrBoot.Because(secret)), CodeBoot, ErrBoot.Message},
		{errors.Join(ErrLost.Because(secret), secret), CodeLost, ErrLost.Message},
		{secret, CodeInternal, "internal error"},
		{Invalid("timeout_ms is %d", -1), CodeInvalid, "timeout_ms is -1"},
	} {
		if code, text := Public(tt.err); code != tt.code || text != tt.text {
			t.Errorf("Public(%v) = %s, %q, want %s, %q", tt.err, code, text, tt.code, tt.text)
		}
	}
}

func TestErrorsAreComparedByCode(t *testing.T) {
	err := fmt.Errorf("create: %w", UnknownPack("ruby"))
	if !errors.Is(err, ErrUnknownPack) || errors.Is(err, ErrNotFound) {
		t.Errorf("%v is told apart wrongly", err)
	}
	cause := errors.New("cause")
	if !errors.Is(ErrBoot.Because(cause), cause) {
		t.Error("the cause is lost")
	}
}

func TestLimitsHitNames(t *testing.T) {
	for want, hit := range map[string]LimitsHit{
		"":                         {},
		"memory_mib":               {Memory: true},
		"disk_mib":                 {Disk: true},
		"pids":                     {PIDs: true},
		"memory_mib disk_mib pids": {Memory: true, Disk: true, PIDs: true},
	} {
		if got := strings.Join(hit.Names(), " "); got != want {
			t.Errorf("%+v: %q, want %q", hit, got, want)
		}
	}
}
