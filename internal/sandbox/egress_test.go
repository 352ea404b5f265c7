package sandbox

import (
	"net/netip"
	"reflect"
	"testing"
)

func TestEgressDenialsSince(t *testing.T) {
	denial := func(host string, port uint16, count int64) EgressDenial {
		return EgressDenial{Host: host, Port: port, Protocol: TCP, Reason: DeniedNoRule, Count: count}
	}
	addr := denial("", 443, 2)
	addr.Addr = netip.MustParseAddr("203.0.113.7")
	for name, tt := range map[string]struct{ before, now, want []EgressDenial }{
		"nothing":               {},
		"all of it":             {nil, []EgressDenial{denial("a", 80, 3), addr}, []EgressDenial{denial("a", 80, 3), addr}},
		"no more":               {[]EgressDenial{denial("a", 80, 3)}, []EgressDenial{denial("a", 80, 3)}, nil},
		"more of it":            {[]EgressDenial{denial("a", 80, 3)}, []EgressDenial{denial("a", 80, 5)}, []EgressDenial{denial("a", 80, 2)}},
		"another port":          {[]EgressDenial{denial("a", 80, 3)}, []EgressDenial{denial("a", 80, 3), denial("a", 81, 1)}, []EgressDenial{denial("a", 81, 1)}},
		"in another order":      {[]EgressDenial{denial("a", 80, 1), denial("b", 80, 1)}, []EgressDenial{denial("b", 80, 2), denial("a", 80, 1)}, []EgressDenial{denial("b", 80, 1)}},
		"forgotten":             {[]EgressDenial{denial("a", 80, 3)}, nil, nil},
		"forgotten and counted": {[]EgressDenial{denial("a", 80, 3)}, []EgressDenial{denial("a", 80, 1)}, []EgressDenial{denial("a", 80, 1)}},
	} {
		if got := EgressDenialsSince(tt.before, tt.now); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}
