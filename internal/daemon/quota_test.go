package daemon

import (
	"fmt"
	"sync"
	"testing"

	"github.com/emberd/emberd/client"
)

// TestQuotaRaces has many clients create sandboxes at once. However they race,
// exactly as many get one as there may be, and the others are told why.
func TestQuotaRaces(t *testing.T) {
	for round := range 20 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			const creates, quota = 50, 3
			cfg := fakeConfig(t)
			cfg.Capacity.Sandboxes = quota
			c := client.New(run(t, cfg).Addr())
			var clients sync.WaitGroup
			answers := make(chan error, creates)
			for range creates {
				clients.Go(func() {
					_, err := c.Create(t.Context(), "shell")
					answers <- err
				})
			}
			clients.Wait()
			close(answers)
			made, refused := 0, 0
			for err := range answers {
				switch {
				case err == nil:
					made++
				case codeOf(err) == "quota_exceeded":
					refused++
				default:
					t.Error(err)
				}
			}
			if made != quota || refused != creates-quota {
				t.Errorf("%d were made, %d refused", made, refused)
			}
		})
	}
}
