package machine

import "testing"

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		args     []string
		ours, ok bool
	}{
		{nil, false, true},
		{[]string{"unknown"}, false, true},
		{[]string{"remove"}, false, true},
		{[]string{"remove", execDir + "/not-there"}, true, false},
		{[]string{"remove", "/etc/passwd"}, true, false},
		{[]string{"remove", execDir + "/../passwd"}, true, false},
		{[]string{"remove", execDir}, true, false},
	} {
		ours, err := Command(tt.args)
		if ours != tt.ours || (err == nil) != tt.ok {
			t.Errorf("%q: %v, %v", tt.args, ours, err)
		}
	}
}

func TestOthersRun(t *testing.T) {
	if !othersRun() {
		t.Error("this test runs, and is not PID 1")
	}
}
