package httpapi

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// TestOpenAPI compares the published document with the one that was reviewed.
func TestOpenAPI(t *testing.T) {
	rec := request(t, newAPI(&fakeEngine{}), "GET", "/openapi.json", "")
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.WriteFile(golden, rec.Body.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := rec.Body.String(); got != string(want) {
		t.Errorf("the document differs from %s (go test -update writes it):\n%s", golden, got)
	}
}
