package support

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/command"
)

// clientKey is the variable that holds a client's key, which is none of the
// daemon's settings.
const clientKey = "EMBERD_API_KEY="

// Settings returns a function that has the daemon's own program explain the
// settings that the daemon of the run directory has: with the arguments and the
// variables that it was started with. Where none runs it is those that one would
// have if it were started now.
func Settings(run paths.Run, program string) func(ctx context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		explain := command.Cmd{Name: program, Args: []string{"config", "explain"}}
		about := "# no emberd runs here; this is what one would have if it were started now\n\n"
		if pid, err := daemonOf(run); err == nil {
			proc := fmt.Sprintf("/proc/%d/", pid)
			args, err := fields(proc + "cmdline")
			if err != nil {
				return nil, err
			}
			env, err := fields(proc + "environ")
			if err != nil {
				return nil, err
			}
			explain.Name = proc + "exe"
			explain.Args = append(explain.Args, args[1:]...)
			for _, variable := range env {
				if strings.HasPrefix(variable, "EMBERD_") && !strings.HasPrefix(variable, clientKey) {
					explain.Env = append(explain.Env, variable)
				}
			}
			about = fmt.Sprintf("# emberd runs (pid %d): %s\n\n", pid, strings.Join(args, " "))
		}
		b, err := explain.Run(ctx)
		return append([]byte(about), b...), err
	}
}

// daemonOf returns the process id of the daemon of a run directory.
func daemonOf(run paths.Run) (int, error) {
	b, err := os.ReadFile(run.Lock())
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, err
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && strings.TrimSpace(string(comm)) != "emberd" {
		err = errors.New("the daemon has ended")
	}
	return pid, err
}

// fields reads a file of strings that end with NUL.
func fields(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00"), nil
}

// Log returns a function that returns the end of the daemon's log: out of a file,
// if one is named, and else out of the journal of its unit, or of the machine that
// it runs in.
func Log(file string, run paths.Run) func(ctx context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		if file != "" {
			return endOf(file)
		}
		b, err := command.Run(ctx, "journalctl", "--unit", "emberd", "--no-pager", "--quiet", "--lines", "5000", "--output", "short-iso-precise")
		if err == nil && len(b) > 0 {
			return b, nil
		}
		logs, _ := filepath.Glob(filepath.Join(run.Machine("*"), "emberd.log"))
		var all []byte
		for _, path := range logs {
			text, err := endOf(path)
			if err != nil {
				return all, err
			}
			all = append(fmt.Appendf(all, "== %s\n", path), text...)
		}
		if len(all) == 0 {
			return nil, errors.New("it is neither in the journal of a unit emberd nor of a machine; --log names a file")
		}
		return all, nil
	}
}

// endOf returns the end of a file, from the beginning of a line on.
func endOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	from := max(0, size-maxSection)
	b, err := io.ReadAll(io.NewSectionReader(f, from, size-from))
	if from > 0 {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return b, err
}
