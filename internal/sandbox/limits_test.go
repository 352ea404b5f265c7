package sandbox

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestLimitsNotAskedForAreTheDefaults(t *testing.T) {
	p := DefaultPolicy()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	got, err := p.Resolve(Limits{})
	want := p.Default
	want.DiskMiB = want.MemoryMiB / 2
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	asked := Limits{
		Size: Size{VCPUs: 2, MemoryMiB: 1024}, DiskMiB: 300, PIDs: 100, Lifetime: 2 * time.Second,
		IdleTimeout: 3 * time.Second, ExecTimeout: 4 * time.Second, Execs: 5, OutputBytes: 6,
	}
	if got, err := p.Resolve(asked); err != nil || got != asked {
		t.Errorf("got %+v, %v, want what was asked for", got, err)
	}
	if got, err := p.Resolve(Limits{Size: Size{MemoryMiB: 1000}}); err != nil || got.DiskMiB != 500 {
		t.Errorf("disk of %d MiB, %v, want half of the memory", got.DiskMiB, err)
	}
}

func TestEachLimitHasBounds(t *testing.T) {
	p := DefaultPolicy()
	for name, tt := range map[string]struct {
		low, high Limits
		want      [2]string
	}{
		"vcpus":          {Limits{Size: Size{VCPUs: -1}}, Limits{Size: Size{VCPUs: 33}}, [2]string{"-1; it must be at least 1", "33; this emberd allows 32"}},
		"memory_mib":     {Limits{Size: Size{MemoryMiB: 127}}, Limits{Size: Size{MemoryMiB: 32769}}, [2]string{"127; it must be at least 128", "32769; this emberd allows 32768"}},
		"disk_mib":       {Limits{DiskMiB: -1}, Limits{DiskMiB: 193}, [2]string{"-1; it must be at least 1", "193; with memory_mib 256 it can be 192"}},
		"pids":           {Limits{PIDs: 15}, Limits{PIDs: 16385}, [2]string{"15; it must be at least 16", "16385; this emberd allows 16384"}},
		"timeout_s":      {Limits{Lifetime: -time.Second}, Limits{Lifetime: 86401 * time.Second}, [2]string{"-1; it must be at least 1", "86401; this emberd allows 86400"}},
		"idle_timeout_s": {Limits{IdleTimeout: -time.Second}, Limits{IdleTimeout: math.MaxInt64}, [2]string{"-1; it must be at least 1", "9223372036; this emberd allows 86400"}},
		"exec_timeout_s": {Limits{ExecTimeout: -time.Second}, Limits{ExecTimeout: 86401 * time.Second}, [2]string{"-1; it must be at least 1", "86401; this emberd allows 86400"}},
		"execs":          {Limits{Execs: -1}, Limits{Execs: 65}, [2]string{"-1; it must be at least 1", "65; this emberd allows 64"}},
		"output_bytes":   {Limits{OutputBytes: -1}, Limits{OutputBytes: 16<<20 + 1}, [2]string{"-1; it must be at least 1", "16777217; this emberd allows 16777216"}},
	} {
		for i, asked := range []Limits{tt.low, tt.high} {
			_, err := p.Resolve(asked)
			code, msg := Public(err)
			if code != CodeInvalid || !strings.HasPrefix(msg, name+" is "+tt.want[i]) {
				t.Errorf("%s: %s, %q, want %q", name, code, msg, tt.want[i])
			}
		}
	}
}

func TestPolicyThatContradictsItself(t *testing.T) {
	for want, spoil := range map[string]func(*Policy){
		"default limits: memory_mib is 512": func(p *Policy) { p.Default.MemoryMiB = 512; p.Ceiling.MemoryMiB = 256 },
		"default limits: timeout_s is 0":    func(p *Policy) { p.Default.Lifetime = 0 },
		"ceiling: a microVM has 1 to 32":    func(p *Policy) { p.Ceiling.VCPUs = 64 },
	} {
		p := DefaultPolicy()
		spoil(&p)
		if err := p.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
