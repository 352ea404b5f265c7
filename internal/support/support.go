// Package support collects what somebody needs who is to find out from afar why an
// emberd does not do what it should.
//
// The one idea: a bundle is a list of sections, each of which has a name and knows
// how to get its own text. One that cannot be had says why in its place, so a
// daemon that is dead, or a host without root, still makes a bundle.
//
// The invariant: nothing gets into a bundle but what went through the scrubber,
// and what it looks for is left out: keys, tokens, passwords, and what a guest
// wrote to its console. Records of programs, their code and their output are not
// collected in the first place. A scrubber cannot know every secret, so whoever
// sends a bundle is asked to look first.
package support

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/version"
)

// Config is where a bundle comes from.
type Config struct {
	// Client is of the daemon, which need not answer.
	Client *client.Client
	Doctor doctor.Env
	// Settings returns what is in force for the daemon, for people.
	Settings func(ctx context.Context) ([]byte, error)
	// Log returns the end of the daemon's log.
	Log func(ctx context.Context) ([]byte, error)
	// Now is the clock; nil means [time.Now].
	Now func() time.Time
}

// Part is one file of a bundle.
type Part struct {
	Name, About string
	Bytes       int
	// Err says why it holds no more than that.
	Err error
}

// section is one file, and how to get it.
type section struct {
	name, about string
	get         func(ctx context.Context) ([]byte, error)
}

// patience is how long one section may take.
const patience = 15 * time.Second

// maxSection bounds a section, in bytes: of a longer one the end is kept.
const maxSection = 4 << 20

// Write writes a bundle as a compressed tar archive, and returns what is in it.
func Write(ctx context.Context, w io.Writer, cfg Config) ([]Part, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	now := cfg.Now()
	root := "emberd-support-" + now.UTC().Format("20060102-150405")
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	put := func(name string, b []byte) error {
		err := archive.WriteHeader(&tar.Header{Name: root + "/" + name, Mode: 0o600, Size: int64(len(b)), ModTime: now.Truncate(time.Second), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = archive.Write(b)
		}
		if err != nil {
			return fmt.Errorf("support bundle: %w", err)
		}
		return nil
	}
	var parts []Part
	for _, s := range sections(cfg) {
		b, err := s.collect(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := put(s.name, b); err != nil {
			return nil, err
		}
		parts = append(parts, Part{Name: s.name, About: s.about, Bytes: len(b), Err: err})
	}
	if err := put("README.txt", readme(parts)); err != nil {
		return nil, err
	}
	if err := cmp.Or(archive.Close(), zip.Close()); err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	return parts, nil
}

// collect gets a section's text, or why there is none.
func (s section) collect(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := s.get(ctx)
	if err != nil {
		b = fmt.Appendf(b, "not to be had: %v\n", err)
	}
	b = scrub(b) // before it is cut, which might leave the half of a secret
	if len(b) > maxSection {
		b = append([]byte("[the beginning is left out]\n"), b[len(b)-maxSection:]...)
	}
	return b, err
}

// sections is the whole of a bundle.
func sections(cfg Config) []section {
	c := cfg.Client
	return []section{
		{"versions.txt", "versions of emberctl, Firecracker and the kernel", func(ctx context.Context) ([]byte, error) { return versions(ctx, cfg.Doctor) }},
		{"doctor.json", "what emberctl doctor says of this host", func(ctx context.Context) ([]byte, error) { return asJSON(doctor.Run(ctx, cfg.Doctor), nil) }},
		{"settings.txt", "the daemon's settings, and where they come from", cfg.Settings},
		{"info.json", "what the daemon says of itself, its pool included", func(ctx context.Context) ([]byte, error) { return ask(c.Info(ctx)) }},
		{"stats.json", "what sandboxes use", func(ctx context.Context) ([]byte, error) { return ask(c.Stats(ctx)) }},
		{"templates.json", "the templates", func(ctx context.Context) ([]byte, error) { return ask(c.Templates(ctx)) }},
		{"events.json", "the last of what happened to sandboxes", func(ctx context.Context) ([]byte, error) { return ask(c.Events(ctx, "")) }},
		{"metrics.txt", "the daemon's metrics", c.Metrics},
		{"log.txt", "the end of the daemon's log, without what guests wrote to their consoles", func(ctx context.Context) ([]byte, error) {
			b, err := cfg.Log(ctx)
			return cutConsoles(b), err
		}},
		{"host.txt", "this host: kernel, processor, memory, mounts, cgroups", func(context.Context) ([]byte, error) { return hostFacts(cfg.Doctor.Host) }},
	}
}

// ask is asJSON of what a daemon answered.
func ask[T any](v T, err error) ([]byte, error) { return asJSON(v, err) }

func asJSON(v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}

func versions(ctx context.Context, env doctor.Env) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "emberctl %s\n", version.Version)
	release, err := env.Versions(ctx, env.Data.Firecracker(), env.Data.Jailer())
	fmt.Fprintf(&b, "firecracker %s\n", cmp.Or(release, "unknown"))
	b.WriteString(hostFile(env.Host, "proc/version"))
	return b.Bytes(), err
}

func readme(parts []Part) []byte {
	var b bytes.Buffer
	b.WriteString("What emberctl support-bundle found on this host. Look at it before you send it:\n" +
		"keys, tokens and passwords that were recognised are left out, and so are the code\n" +
		"and the output of programs, but names of hosts, directories and packs are in it.\n\n")
	for _, p := range parts {
		fmt.Fprintf(&b, "%-15s %s\n", p.Name, p.About)
	}
	return b.Bytes()
}
