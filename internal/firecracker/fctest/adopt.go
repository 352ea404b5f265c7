package fctest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/process"
)

// Handle is what [Launcher.Adopt] finds the fake with, in any process.
func (p *fake) Handle() ([]byte, error) {
	id, err := process.Of(p.pid)
	if err != nil {
		return nil, err
	}
	return json.Marshal(id)
}

// Leave does nothing: somebody has to collect a fake that ends.
func (p *fake) Leave() {}

// Left names the directories of fakes that are there now.
func (l *Launcher) Left() []sandbox.VMID {
	entries, _ := os.ReadDir(l.Dir)
	var left []sandbox.VMID
	for _, e := range entries {
		if id, ok := sandbox.ParseVMID(e.Name()); ok {
			left = append(left, id)
		}
	}
	return left
}

// Adopt takes over a fake that another launcher with the same directory started,
// or this one.
func (l *Launcher) Adopt(id sandbox.VMID, handle []byte) (firecracker.Process, error) {
	var who process.ID
	if err := json.Unmarshal(handle, &who); err != nil {
		return nil, err
	}
	held, err := process.Find(who)
	if err != nil {
		return nil, err
	}
	p := &adopted{fake: fake{root: filepath.Join(l.Dir, string(id)), pid: who.PID, done: make(chan struct{})}, held: held}
	p.undo.Add("root", func(context.Context) error { return os.RemoveAll(p.root) })
	p.undo.Add("process", p.end)
	p.watching.Go(func() {
		if held.Wait() != nil {
			return
		}
		_, _ = syscall.Kill(-p.pid, syscall.SIGKILL), held.Close()
		close(p.done)
	})
	return p, nil
}

// adopted is a fake whose launcher is another one's.
type adopted struct {
	fake
	held     *process.Handle
	watching sync.WaitGroup
}

// Leave lets go of the fake.
func (p *adopted) Leave() {
	_ = p.held.Close()
	p.watching.Wait()
}

// Remove ends a fake that was not adopted, known by its working directory.
func (l *Launcher) Remove(_ context.Context, id sandbox.VMID) error {
	root := filepath.Join(l.Dir, string(id))
	var errs []error
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return err
	}
	for _, link := range links {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if dir, gone := os.Readlink(link); err != nil || gone != nil || dir != root {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(root))...)
}
