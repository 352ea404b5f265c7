package pack

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/emberd/emberd/internal/paths"
)

// Status says how a pack's image stands to its definition.
type Status string

// The statuses of a pack.
const (
	Ready     Status = "ready"
	OutOfDate Status = "out of date" // made from another definition
	NotBuilt  Status = "not built"
	Broken    Status = "broken" // the error says what is wrong
)

// Inspect reports the status of def's image under data, and its manifest where
// there is one. The error is the reason of [Broken] and nil otherwise.
func Inspect(data paths.Data, def Definition) (Status, Manifest, error) {
	m, err := ReadManifest(data, def.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return NotBuilt, Manifest{}, nil
	}
	if err != nil {
		return Broken, Manifest{}, err
	}
	if err := checkImage(data.PackRootfs(def.Name), m.Size); err != nil {
		return Broken, m, fmt.Errorf("pack %s: %w", def.Name, err)
	}
	if m.Definition != def.Digest() {
		return OutOfDate, m, nil
	}
	return Ready, m, nil
}
