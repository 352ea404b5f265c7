package warm

import (
	"os/exec"

	"golang.org/x/sys/unix"
)

// plain is the plain interpreter as it was when something was started ahead in
// its place. A program may put another one there, or none; what was started
// before stands for nothing then.
type plain struct {
	name         string
	dev, ino     uint64
	mtime, ctime unix.Timespec
}

// lookUp finds the interpreter as the start of a program does. One that is not
// there has no more than its name.
func lookUp(name string) plain {
	p := plain{name: name}
	path, err := exec.LookPath(name)
	if err != nil {
		return p
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		p.dev, p.ino, p.mtime, p.ctime = st.Dev, st.Ino, st.Mtim, st.Ctim
	}
	return p
}

// current tells whether a program would be given that interpreter today.
func (p plain) current() bool { return p == lookUp(p.name) }
