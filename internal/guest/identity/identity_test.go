package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

func valid() *agentv1.Arm {
	return &agentv1.Arm{
		Entropy: make([]byte, 64), ClockUnixNs: earliest, Hostname: "vm-0123456789ab",
		MachineId: bytes.Repeat([]byte{0xff}, 16), BootId: bytes.Repeat([]byte{0xff}, 16),
		DiskMib: 1, Pids: 1,
	}
}

// recorder is a Taker whose steps only tell that they were taken; the one called
// broken fails.
func recorder(broken string) (*Taker, *[]string) {
	var taken []string
	t := New()
	for i, s := range t.steps {
		t.steps[i].take = func(*agentv1.Arm) error {
			taken = append(taken, s.name)
			if s.name == broken {
				return errors.New("broken")
			}
			return nil
		}
	}
	return t, &taken
}

// Everything that is random comes after the reseeding, and the order is what
// docs/PROTOCOL.md promises.
func TestOrder(t *testing.T) {
	want := []string{
		"reseed the random number generator", "set the clock", "set the host name", "write the machine id",
		"replace the boot id", "configure the network", "limit what is written", "limit processes",
	}
	taker, taken := recorder("")
	for range 2 { // a VM can be armed again
		*taken = nil
		if err := taker.Take(valid()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(*taken, want) {
			t.Errorf("steps are %q, want %q", *taken, want)
		}
	}
	for i, broken := range want {
		taker, taken := recorder(broken)
		if err := taker.Take(valid()); err == nil || !strings.HasPrefix(err.Error(), broken) {
			t.Errorf("%s: error is %v", broken, err)
		}
		if !slices.Equal(*taken, want[:i+1]) {
			t.Errorf("%s: steps are %q", broken, *taken)
		}
	}
}

func TestBounds(t *testing.T) {
	tests := map[string]func(*agentv1.Arm){
		"63 bytes of entropy":          func(a *agentv1.Arm) { a.Entropy = make([]byte, 63) },
		"513 bytes of entropy":         func(a *agentv1.Arm) { a.Entropy = make([]byte, 513) },
		"a clock at 2024":              func(a *agentv1.Arm) { a.ClockUnixNs = earliest - 1 },
		"a clock at 1677":              func(a *agentv1.Arm) { a.ClockUnixNs = -1 << 63 },
		`host name ""`:                 func(a *agentv1.Arm) { a.Hostname = "" },
		`host name "a b"`:              func(a *agentv1.Arm) { a.Hostname = "a b" },
		`host name "-a"`:               func(a *agentv1.Arm) { a.Hostname = "-a" },
		`host name "a\n127.0.0.1 b"`:   func(a *agentv1.Arm) { a.Hostname = "a\n127.0.0.1 b" },
		"host name \"aaaaaaaa":         func(a *agentv1.Arm) { a.Hostname = strings.Repeat("a", 64) },
		"machine id of 15 bytes":       func(a *agentv1.Arm) { a.MachineId = a.MachineId[1:] },
		"boot id of 0 bytes":           func(a *agentv1.Arm) { a.BootId = nil },
		"limit of 0 MiB for files":     func(a *agentv1.Arm) { a.DiskMib = 0 },
		"limit of 1048577 MiB for":     func(a *agentv1.Arm) { a.DiskMib = 1<<20 + 1 },
		"limit of 0 processes":         func(a *agentv1.Arm) { a.Pids = 0 },
		"limit of 4294967295 processe": func(a *agentv1.Arm) { a.Pids = 1<<32 - 1 },
	}
	for want, spoil := range tests {
		taker, taken := recorder("")
		id := valid()
		spoil(id)
		if err := taker.Take(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
		if len(*taken) > 0 {
			t.Errorf("%s: steps were taken: %q", want, *taken)
		}
	}
	for _, name := range []string{"a", "vm-0", strings.Repeat("a", 63)} {
		taker, _ := recorder("")
		id := valid()
		id.Hostname = name
		if err := taker.Take(id); err != nil {
			t.Errorf("host name %q: %v", name, err)
		}
	}
}

func TestFiles(t *testing.T) {
	s := &system{root: t.TempDir(), bootIDMounted: true}
	if err := (&Taker{system: s}).Prepare(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // in a system without the files, and over those of before
		id := valid()
		for _, take := range []func(*agentv1.Arm) error{s.writeMachineID, s.replaceBootID} {
			if err := take(id); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.nameHost(id.GetHostname()); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"etc/hostname":   "^vm-0123456789ab\n$",
			"etc/hosts":      "^127.0.0.1 localhost vm-0123456789ab\n::1 localhost\n$",
			"etc/machine-id": "^f{12}4f{3}bf{15}\n$",
			bootIDFile:       "^f{8}-f{4}-4f{3}-bf{3}-f{12}\n$",
		} {
			b, err := os.ReadFile(filepath.Join(s.root, name))
			if err != nil || !regexp.MustCompile(want).Match(b) {
				t.Errorf("%s holds %q, %v", name, b, err)
			}
		}
		if id.GetMachineId()[6] != 0xff {
			t.Error("the request was changed")
		}
	}
}
