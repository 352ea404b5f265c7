package httpapi

import (
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// grants is what the requests to one daemon may ask for. Its document says so:
// what that allows, the daemon takes.
type grants struct {
	least, most rest.Limits
	packs       []string
	bootPaths   []string
	egress      bool
}

// grantsOf returns what a daemon grants that has those limits and says that of
// itself.
func grantsOf(limits sandbox.Policy, info rest.Info) grants {
	most := describeLimits(limits.Ceiling)
	most.DiskMiB = most.MemoryMiB - sandbox.GuestReserveMiB
	// A microVM may always come to be more slowly than the fastest way.
	paths := []string{string(sandbox.ColdBoot), string(sandbox.Restored), string(sandbox.Pooled)}
	return grants{
		least: describeLimits(sandbox.LeastLimits()), most: most,
		packs: info.Packs, bootPaths: paths[:slices.Index(paths, info.BootPath)+1], egress: info.Egress,
	}
}

// state puts g into the schemas of requests, and what else of them does not fit
// in the tags of a field. Two rules stay out, as a schema cannot say them: how much
// disk there is depends on the memory, and how long a program may run on the
// sandbox.
func (g grants) state(schemas map[string]*huma.Schema) {
	setEnum(schemas["CreateRequest"].Properties["boot_path"], g.bootPaths)
	if !g.egress {
		delete(schemas["CreateRequest"].Properties, "egress")
	}
	setEnum(schemas["EgressRuleRequest"].Properties["protocol"], []string{"tcp", "udp"})
	for _, name := range []string{"CreateRequest", "TemplateRequest"} {
		g.bound(schemas[name].Properties)
	}
	for _, request := range []string{"ExecRequest", "StartRequest"} {
		schemas[request].Properties["timeout_ms"].Maximum = number(reflect.ValueOf(1000 * g.most.ExecTimeoutS))
		none := 0
		for _, name := range []string{"stdin", "stdin_base64"} {
			either := &huma.Schema{Properties: map[string]*huma.Schema{name: {MaxLength: &none}}}
			schemas[request].AnyOf = append(schemas[request].AnyOf, either)
		}
	}
}

// bound puts the packs into the schema of a request, and the least and the most of
// each limit that it has.
func (g grants) bound(request map[string]*huma.Schema) {
	setEnum(request["language_pack"], g.packs)
	least, most := reflect.ValueOf(g.least), reflect.ValueOf(g.most)
	for _, field := range fields(most.Type()) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		limit := request[name]
		if limit == nil {
			continue
		}
		lowest := number(least.FieldByIndex(field.Index))
		limit.Maximum = number(most.FieldByIndex(field.Index))
		if *lowest > 1 { // 0 asks for the default
			limit.AnyOf = []*huma.Schema{{Enum: []any{0}}, {Minimum: lowest}}
		}
	}
}

// number returns an integer as schemas hold it.
func number(v reflect.Value) *float64 {
	n := float64(v.Int())
	return &n
}

// setEnum has s allow those values alone. As in every request, null counts as
// absent, and an empty string does too.
func setEnum(s *huma.Schema, values []string) {
	s.Enum = []any{"", nil}
	for _, v := range values {
		s.Enum = append(s.Enum, v)
	}
}
