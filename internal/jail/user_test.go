package jail

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func testUsers(t *testing.T, ids IDRange) *users {
	t.Helper()
	u, err := openUsers(ids, t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func mustLease(t *testing.T, u *users) int {
	t.Helper()
	id, err := u.lease()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestUsersAreNotSharedAndReusedLate(t *testing.T) {
	u := testUsers(t, IDRange{First: 5000, Count: 4})
	first := mustLease(t, u)
	u.release(first)
	got := []int{mustLease(t, u), mustLease(t, u), mustLease(t, u)}
	if slices.Contains(got, first) {
		t.Errorf("%d was handed out again while others were unused: %v", first, got)
	}
	if last := mustLease(t, u); last != first {
		t.Errorf("got %d, want the one that is left, %d", last, first)
	}
	if _, err := u.lease(); err == nil {
		t.Error("a fifth lease of four ids")
	}
	u.release(got[1])
	if again := mustLease(t, u); again != got[1] {
		t.Errorf("got %d, want %d", again, got[1])
	}
}

func TestDaemonsDoNotShareUsers(t *testing.T) {
	locks := t.TempDir()
	// Two ranges that overlap, neither at the bounds of a block. What one has of
	// a block is kept from the other, even where that has no use for it.
	first, err := openUsers(IDRange{First: 5000, Count: 2000}, locks, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	second, err := openUsers(IDRange{First: 5500, Count: 1500}, locks, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]string{}
	for range 2000 {
		for name, u := range map[string]*users{"first": first, "second": second} {
			id, err := u.lease()
			if err != nil {
				continue // it has all that it can have
			}
			if seen[id] != "" {
				t.Fatalf("%d was handed out to %s and to %s", id, seen[id], name)
			}
			seen[id] = name
		}
	}
	if len(seen) < 1500 {
		t.Errorf("%d of 2000 ids were handed out", len(seen))
	}
	if _, err := openUsers(IDRange{First: 5000, Count: 10}, locks, t.TempDir()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a third daemon: %v", err)
	}
	if err := second.close(); err != nil {
		t.Fatal(err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	third, err := openUsers(IDRange{First: 5000, Count: 10}, locks, t.TempDir())
	if err != nil {
		t.Errorf("the ids of daemons that ended: %v", err)
	} else if err := third.close(); err != nil {
		t.Error(err)
	}
}

func TestUsersThatLiveAreLeftAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ids := IDRange{First: 1_999_999_000, Count: 4}
	jails := t.TempDir()
	file := filepath.Join(jails, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(file, ids.First, 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(ids.First) + 1, Gid: uint32(ids.First) + 2}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	u, err := openUsers(ids, t.TempDir(), jails)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.close() }()
	if id := mustLease(t, u); id != ids.First+3 {
		t.Errorf("got %d: a file, a process or a group has it", id)
	}
	if id, err := u.lease(); err == nil {
		t.Errorf("got %d: a file, a process or a group has it", id)
	}
}

func TestIDRangeText(t *testing.T) {
	for _, tt := range []struct{ text, err string }{
		{text: "1701642240-1701707775"},
		{text: "1000-1000"},
		{text: "65536-4294967294"},
		{text: "1000-65533"},
		{text: "5000", err: "want FIRST-LAST"},
		{text: "5000-", err: "want FIRST-LAST"},
		{text: "-5000", err: "want FIRST-LAST"},
		{text: "5000-4294967296", err: "want FIRST-LAST"},
		{text: "5001-5000", err: "empty"},
		{text: "0-5000", err: "take ids from 1000"},
		{text: "999-5000", err: "take ids from 1000"},
		{text: "65536-4294967295", err: "take ids from 1000"},
		{text: "60000-70000", err: "nobody's"},
		{text: "65535-65536", err: "nobody's"},
	} {
		var r IDRange
		err := r.UnmarshalText([]byte(tt.text))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.err)
		}
		if err != nil {
			continue
		}
		if back, err := r.MarshalText(); err != nil || string(back) != tt.text {
			t.Errorf("%s comes back as %s, %v", tt.text, back, err)
		}
	}
	if err := DefaultUsers.check(); err != nil {
		t.Errorf("the default: %v", err)
	}
}
