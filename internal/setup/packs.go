package setup

import (
	"context"
	"fmt"

	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/progress"
)

// packParts returns a part for each language pack.
func packParts(data paths.Data) ([]part, error) {
	defs, err := pack.Definitions()
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, def := range defs {
		parts = append(parts, part{
			name: fmt.Sprintf("pack %s", def.Name),
			missing: func() (string, error) {
				status, _, _ := pack.Inspect(data, def)
				if status == pack.Ready {
					return "", nil
				}
				return string(status), nil
			},
			create: func(ctx context.Context, _ string, report progress.Func) error {
				_, err := pack.Build(ctx, def, data, report)
				return err
			},
		})
	}
	return parts, nil
}
