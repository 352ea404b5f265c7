package main

import (
	"github.com/spf13/pflag"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/paths"
)

// listenFlags adds the flags that say where the API is served, and to whom.
func listenFlags(f *pflag.FlagSet, cfg *daemon.Config) {
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "address to serve the API on; '' for none")
	f.StringVar(&cfg.Socket, "socket", paths.Run(paths.DefaultRun).Socket(), "Unix socket to serve the API on, by default in the run directory; '' for none")
	f.UintSliceVar(&cfg.SocketUIDs, "socket-uid", nil, "id of a user who may use the socket, besides root")
	f.StringSliceVar(&cfg.AllowHosts, "allow-host", nil, "another Host header to answer to, exactly as clients send it: NAME or NAME:PORT")
	f.StringVar(&cfg.TLS.Cert, "tls-cert", "", "serve TLS at --listen with the certificate in this PEM file, which is read again when it changes")
	f.StringVar(&cfg.TLS.Key, "tls-key", "", "PEM file of the certificate's private key")
	f.BoolVar(&cfg.Insecure, "insecure", false, "serve other hosts even without API keys or TLS")
}
