package client_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/emberd/emberd/client"
)

func Example() {
	daemon := startDaemon() // where emberd runs, this is client.DefaultAddr
	defer daemon.Close()

	ctx := context.Background()
	c := client.New(daemon.URL)
	id, err := c.Create(ctx, "python")
	if err != nil {
		panic(err)
	}
	defer func() { _ = c.Delete(ctx, id) }()

	res, err := c.Exec(ctx, id, client.Program{Code: "print(6*7)"})
	if err != nil {
		panic(err) // it is not known how the program ended
	}
	fmt.Printf("%sexit status %d\n", res.Stdout, res.ExitCode)
	// Output:
	// 42
	// exit status 0
}

// startDaemon stands in for an emberd in which every program prints 42.
func startDaemon() *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id":"sb_a1b2c3d4e5f6"}`)
	})
	mux.HandleFunc("POST /sandboxes/{id}/exec", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"stdout":"42\n","stderr":"","exit_code":0,"duration_ms":13,"duration_us":13021}`)
	})
	mux.HandleFunc("DELETE /sandboxes/{id}", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	return httptest.NewServer(mux)
}
