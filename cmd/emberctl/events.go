package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newEventsCmd(a *app) *cobra.Command {
	var follow bool
	var after string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to sandboxes",
		Long: `Events shows what happened to sandboxes: created, ready, failed, exec, oom, adopted,
egress_denied, expired, lost, deleted. emberd keeps the last 1024 in memory.

With --json each event is a line of its own. A gap, {"missed": N}, stands for
events that are gone.`,
		Example: `  emberctl events
  emberctl events --follow --json | jq 'select(.event == "lost")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow {
				for event, err := range a.client().Follow(cmd.Context(), after) {
					if err != nil {
						return err
					}
					if err := a.printEvent(event.Event, event.Gap); err != nil {
						return err
					}
				}
				return nil
			}
			list, err := a.client().Events(cmd.Context(), after)
			if err != nil {
				return err
			}
			if list.Gap != (rest.Gap{}) {
				if err := a.printEvent(rest.Event{}, &list.Gap); err != nil {
					return err
				}
			}
			for _, event := range list.Events {
				if err := a.printEvent(event, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with events as they happen")
	cmd.Flags().StringVar(&after, "after", "", "only what happened after the event with this id")
	return cmd
}

// printEvent prints one event, or a gap, as a line of its own.
func (a *app) printEvent(event rest.Event, gap *rest.Gap) error {
	if a.json {
		var v any = event
		if gap != nil {
			v = gap
		}
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	line := eventLine(event)
	if gap != nil {
		line = gapLine(*gap)
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

func eventLine(e rest.Event) string {
	about := []string{e.LanguagePack}
	for _, word := range []string{e.BootPath, e.Start, e.Reason} {
		if word != "" {
			about = append(about, word)
		}
	}
	if e.EgressDenied != nil {
		about = append(about, refusal(*e.EgressDenied))
	}
	if e.DurationMS > 0 {
		about = append(about, (time.Duration(e.DurationMS) * time.Millisecond).String())
	}
	return fmt.Sprintf("%s  %s  %-8s %s", e.Time.Local().Format("15:04:05.000"), e.SandboxID, e.Event, strings.Join(about, " "))
}

func gapLine(g rest.Gap) string {
	if g.Restarted {
		return "-- emberd was started again; what happened in between is not known"
	}
	return fmt.Sprintf("-- %d events are gone", g.Missed)
}
