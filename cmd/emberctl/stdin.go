package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// program reads the program that args and flags name, and its standard input.
func (s *source) program(ctx context.Context, a *app, args []string) (client.Program, error) {
	prog := client.Program{Timeout: s.timeout}
	switch {
	case s.file != "":
		code, err := os.ReadFile(s.file)
		if err != nil {
			return prog, err
		}
		prog.Code = string(code)
	case args[0] == "-":
		code, err := a.readStdin(ctx)
		if err != nil {
			return prog, err
		}
		prog.Code = string(code)
		return prog, nil // its standard input is used up
	default:
		prog.Code = args[0]
	}
	if isTerminal(a.stdin) {
		return prog, nil
	}
	stdin, err := a.readStdin(ctx)
	prog.Stdin = stdin
	return prog, err
}

// readStdin returns standard input up to its end.
func (a *app) readStdin(ctx context.Context) ([]byte, error) {
	show, stop := a.progress()
	defer stop()
	show.Step("reading standard input")

	type input struct {
		b   []byte
		err error
	}
	read := make(chan input, 1)
	// A read from a pipe or a terminal cannot be interrupted; on Ctrl-C it is
	// left behind and ends with the process.
	go func() {
		b, err := io.ReadAll(io.LimitReader(a.stdin, rest.MaxExecBody+1))
		read <- input{b, err}
	}()
	select {
	case in := <-read:
		if in.err != nil {
			return nil, fmt.Errorf("read standard input: %w", in.err)
		}
		if len(in.b) > rest.MaxExecBody {
			return nil, fmt.Errorf("standard input is longer than emberd takes (%d MiB)", rest.MaxExecBody>>20)
		}
		return in.b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
