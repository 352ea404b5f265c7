package warm

import (
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"
)

// origin is what an interpreter starts from, as it was at one moment: its own
// file, and what else it reads as it starts. A program may change any of it, and
// then what was started before is not what a plain start would give.
type origin []file

// file is what there is under a name; nothing but the name, if there is nothing.
type file struct {
	name         string
	dev, ino     uint64
	mtime, ctime unix.Timespec
}

// origin looks at what the interpreter would be started from now.
func (c Config) origin() origin {
	// It is found as the start of a program finds it.
	interpreter, _ := exec.LookPath(c.Interpreter)
	files := origin{identify(interpreter)}
	for _, path := range c.Recipe.Watch {
		files = append(files, identify(path))
	}
	return files
}

func identify(path string) file {
	f := file{name: path}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		f.dev, f.ino, f.mtime, f.ctime = st.Dev, st.Ino, st.Mtim, st.Ctim
	}
	return f
}

// is tells whether nothing has changed.
func (o origin) is(now origin) bool { return slices.Equal(o, now) }
