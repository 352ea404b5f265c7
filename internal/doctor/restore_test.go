package doctor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// clonesOf is a daemon whose clones answer what say makes up for each.
func clonesOf(t *testing.T, say func(n int) clone) *client.Client {
	t.Helper()
	n := 0
	mux := http.NewServeMux()
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
	}
	mux.HandleFunc("POST /templates", answer(rest.Template{ID: "0123456789abcdef", LanguagePack: "python"}))
	mux.HandleFunc("POST /sandboxes", func(w http.ResponseWriter, r *http.Request) {
		var req rest.CreateRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.BootPath != "restore" {
			t.Errorf("asked for %+v, %v", req, err)
		}
		answer(rest.CreateResponse{ID: "sb_0123456789ab"})(w, r)
	})
	mux.HandleFunc("POST /sandboxes/{id}/exec", func(w http.ResponseWriter, r *http.Request) {
		b, err := json.Marshal(say(n))
		if err != nil {
			t.Error(err)
		}
		n++
		answer(map[string]any{"stdout": string(b), "exit_code": 0})(w, r)
	})
	mux.HandleFunc("DELETE /sandboxes/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return client.New(srv.URL)
}

func TestCheckRestore(t *testing.T) {
	sound := func(n int) clone {
		return clone{Time: float64(time.Now().UnixMicro()) / 1e6, IDs: map[string]string{"random": fmt.Sprint(n), "boot_id": fmt.Sprint(-n)}}
	}
	for name, tt := range map[string]struct {
		say  func(n int) clone
		want []string // what fails
	}{
		"sound": {sound, nil},
		"two alike": {func(n int) clone {
			c := sound(n)
			c.IDs["random"] = fmt.Sprint(min(n, clones-2))
			return c
		}, []string{"random"}},
		"nothing said": {func(n int) clone {
			c := sound(n)
			if n == 3 {
				c.IDs["boot_id"] = ""
			}
			return c
		}, []string{"boot_id"}},
		"one without": {func(n int) clone {
			c := sound(n)
			if n == 3 {
				delete(c.IDs, "boot_id")
			}
			return c
		}, []string{"boot_id"}},
		"slow clock": {func(n int) clone {
			c := sound(n)
			c.Time -= 1.5
			return c
		}, []string{"clock"}},
		"fast clock": {func(n int) clone {
			c := sound(n)
			if n == clones-1 {
				c.Time += 10
			}
			return c
		}, []string{"clock"}},
	} {
		var failed []string
		for _, r := range CheckRestore(t.Context(), clonesOf(t, tt.say)) {
			if r.Verdict != OK {
				failed = append(failed, r.Name)
			}
		}
		if !slices.Equal(failed, tt.want) {
			t.Errorf("%s: %q failed, want %q", name, failed, tt.want)
		}
	}
}

func TestCheckRestoreSaysWhatItCannotDo(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	results := CheckRestore(t.Context(), client.New(srv.URL))
	if len(results) != 1 || results[0].Verdict != Fail || !strings.Contains(results[0].Reason, "no emberd") {
		t.Errorf("%+v", results)
	}
}
