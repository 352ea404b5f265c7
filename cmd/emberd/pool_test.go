package main

import (
	"maps"
	"testing"

	"github.com/spf13/pflag"

	"github.com/emberd/emberd/internal/provision/pool"
)

func TestPoolFlag(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want map[string]pool.Bounds // nil for an error
	}{
		{[]string{"python=2"}, map[string]pool.Bounds{"python": {Min: 2, Max: 4}}},
		{[]string{"python=2:2", "shell=0:3"}, map[string]pool.Bounds{"python": {Min: 2, Max: 2}, "shell": {Min: 0, Max: 3}}},
		{[]string{"python=2", "python=0"}, map[string]pool.Bounds{"python": {}}},
		{[]string{"python"}, nil},
		{[]string{"=1"}, nil},
		{[]string{"python="}, nil},
		{[]string{"python=-1"}, nil},
		{[]string{"python=2:1"}, nil},
		{[]string{"python=2:"}, nil},
		{[]string{"python=99999999999"}, nil},
	} {
		var got map[string]pool.Bounds
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		poolFlag(f, &got)
		var args []string
		for _, a := range tt.args {
			args = append(args, "--pool", a)
		}
		if err := f.Parse(args); (err != nil) != (tt.want == nil) {
			t.Errorf("%v: %v", tt.args, err)
		} else if err == nil && !maps.Equal(got, tt.want) {
			t.Errorf("%v: got %v, want %v", tt.args, got, tt.want)
		}
	}
}
