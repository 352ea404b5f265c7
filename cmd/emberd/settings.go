package main

import (
	"github.com/emberd/emberd/internal/config"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/paths"
)

// settings is everything that emberd can be told, by an operator who has flags,
// an environment and a file for it. A new one needs a line here, and `go test
// ./cmd/emberd -update`, which writes it into the sample and the reference.
func settings(cfg *daemon.Config, log *logging) *config.Table {
	t := config.NewTable("EMBERD_")
	listenSettings(t, cfg)

	f := t.Section("Where things are")
	f.StringVar((*string)(&cfg.DataDir), "data-dir", string(cfg.DataDir), "where kernel, packs and jails are kept")
	f.StringVar((*string)(&cfg.RunDir), "run-dir", string(cfg.RunDir), "where the state of running sandboxes is kept")
	f.StringVar(&cfg.Init, "init", cfg.Init, "the emberd-init executable that becomes PID 1 of every guest")
	t.Derive("init", "the one beside emberd", `"/usr/lib/emberd/emberd-init"`)

	limitSettings(t, cfg)
	egressSettings(t, &cfg.Egress)

	f = t.Section("How microVMs come to be")
	poolFlag(f, &cfg.Pool)
	t.Derive("pool", "up to 4 of the pack python", `["python=2:4"]`)
	f.TextVar(&cfg.Users, "vmm-users", cfg.Users, "the user ids, and group ids, that VMMs are given: FIRST-LAST")
	f.DurationVar(&cfg.BootTimeout, "boot-timeout", cfg.BootTimeout, "how long a microVM may take to become ready")
	f.BoolVar(&cfg.Templates, "templates", cfg.Templates, "restore microVMs from templates instead of booting each")
	f.IntVar(&cfg.Shells, "shells", cfg.Shells, "how many VMMs to keep ready, in jails of their own, for microVMs to be restored in")

	f = t.Section("What becomes of sandboxes when emberd ends")
	f.TextVar(&cfg.OnExit, "on-exit", cfg.OnExit, "keep: they go on, and the next emberd with them; stop: they are deleted")

	f = t.Section("What emberd tells")
	f.TextVar(&log.level, "log-level", log.level, "log what is at least this important: debug, info, warn or error")
	f.StringVar(&cfg.TraceEndpoint, "trace-endpoint", "", "URL of a collector to send traces to, as OTLP over HTTP (http://127.0.0.1:4318); '' for none")
	f.TextVar(&log.format, "log-format", logText, "log as text, or as json, with a line for each record")
	return t
}

// listenSettings adds where the API is served, and to whom.
func listenSettings(t *config.Table, cfg *daemon.Config) {
	f := t.Section("Where the API is served, and to whom")
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "address to serve the API on; '' for none")
	f.StringVar(&cfg.Socket, "socket", paths.Run(paths.DefaultRun).Socket(), "Unix socket to serve the API on; '' for none")
	t.Derive("socket", "emberd.sock in the run directory", `"/run/emberd/emberd.sock"`)
	f.UintSliceVar(&cfg.SocketUIDs, "socket-uid", nil, "id of a user who may use the socket, besides root")
	f.StringSliceVar(&cfg.AllowHosts, "allow-host", nil, "another Host header to answer to, exactly as clients send it: NAME or NAME:PORT")
	f.StringVar(&cfg.TLS.Cert, "tls-cert", "", "serve TLS at --listen with the certificate in this PEM file, which is read again when it changes")
	f.StringVar(&cfg.TLS.Key, "tls-key", "", "PEM file of the certificate's private key")
	f.IntVar(&cfg.RequestRate, "request-rate", cfg.RequestRate, "requests a second with one API key, and as many at once; 0 for any number")
	f.BoolVar(&cfg.Insecure, "insecure", false, "serve other hosts even without API keys or TLS")
}

// derive gives the settings that were left alone and depend on others the value
// that they have then.
func derive(t *config.Table, cfg *daemon.Config) {
	if !t.Given("socket") {
		cfg.Socket = cfg.RunDir.Socket()
	}
	if !t.Given("pool") {
		cfg.Pool = daemon.DefaultPool(*cfg)
	}
}
