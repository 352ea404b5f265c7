package real

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/testenv/internet"
)

// newInternet makes the outside world of a test. It is there before the daemon
// and until after its end.
func newInternet(t testing.TB) *internet.Internet {
	t.Helper()
	testenv.Real(t)
	before := takeState(t)
	n, err := internet.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		checkState(t, before)
	})
	return n
}

// What the tests of egress rely on, seen from the host: the servers answer, at
// every kind of address, what they are to answer, and everything that is sent there
// is noted.
func TestInternet(t *testing.T) {
	n := newInternet(t)
	n.Host("api.example.org", "203.0.113.10", "2001:db8::10")
	n.Script("cut.example.org", func(internet.Question) internet.Answer {
		return internet.Answer{Records: []string{"cut.example.org. 0 IN A 203.0.113.11"}, Truncated: true}
	})
	ask := func(network, name string, kind uint16) string {
		t.Helper()
		c := dns.Client{Net: network, Timeout: 20 * time.Second}
		m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, kind), internet.Resolver.String())
		if err != nil {
			t.Fatalf("%s %s: %v", network, name, err)
		}
		answer := fmt.Sprint(dns.RcodeToString[m.Rcode], " ", m.Truncated)
		for _, rr := range m.Answer {
			answer += " " + strings.Join(strings.Fields(rr.String()), " ")
		}
		return answer
	}
	for _, tt := range []struct {
		network, name string
		kind          uint16
		want          string
	}{
		{"udp", "api.example.org.", dns.TypeA, "NOERROR false api.example.org. 60 IN A 203.0.113.10"},
		{"udp", "API.example.org.", dns.TypeAAAA, "NOERROR false api.example.org. 60 IN AAAA 2001:db8::10"},
		{"udp", "cut.example.org.", dns.TypeA, "NOERROR true"},
		{"tcp", "cut.example.org.", dns.TypeA, "NOERROR false cut.example.org. 0 IN A 203.0.113.11"},
		{"udp", "none.example.org.", dns.TypeA, "NXDOMAIN false"},
	} {
		if got := ask(tt.network, tt.name, tt.kind); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.network, tt.name, got, tt.want)
		}
	}
	if asked := n.Asked(); len(asked) != 5 || asked[4].Name != "none.example.org." {
		t.Errorf("noted %+v", asked)
	}

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.CA.PEM())
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "api.example.org"}}}
	for _, at := range slices.Concat(internet.Special, []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8::10")}) {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(at, 9000).String(), 20*time.Second)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		line := make([]byte, 100)
		size, err := conn.Read(line)
		if want := fmt.Sprintf("hello from %s\n", netip.AddrPortFrom(at, 9000)); err != nil || string(line[:size]) != want {
			t.Errorf("%q, %v, want %q", line[:size], err, want)
		}
		_ = conn.Close()
	}
	resp, err := client.Get("https://203.0.113.10/page")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := "GET /page of 203.0.113.10 at 203.0.113.10:443 with 0 bytes, forwarded []\n"; err != nil || string(body) != want {
		t.Errorf("%q, %v, want %q", body, err, want)
	}
	if want := (internet.Visit{At: netip.MustParseAddrPort("203.0.113.10:443"), Over: "tls", Host: "api.example.org"}); !slices.Contains(n.Visits(), want) {
		t.Errorf("%+v is not among %+v", want, n.Visits())
	}
	for _, to := range []string{"203.0.113.77:4500", "[2001:db8::77]:4500"} {
		checkEcho(t, to)
	}
	sent := n.Sent()
	for _, want := range []internet.Flow{
		{Protocol: "udp", To: internet.Resolver}, {Protocol: "tcp", To: internet.Resolver},
		{Protocol: "udp", To: netip.MustParseAddrPort("[2001:db8::77]:4500")}, {Protocol: "tcp", To: netip.MustParseAddrPort("169.254.169.254:9000")},
	} {
		if sent[want] == 0 {
			t.Errorf("%v was not seen: %v", want, sent)
		}
	}
	if want := 4 + len(internet.Special) + 3; len(sent) != want {
		t.Errorf("%d flows, want %d: %v", len(sent), want, sent)
	}
	n.Forget()
	if len(n.Sent())+len(n.Asked())+len(n.Visits()) > 0 {
		t.Error("it does not forget")
	}
}

// checkEcho has a datagram come back from where it was sent to.
func checkEcho(t *testing.T, to string) {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 100)
	if size, err := conn.Read(back); err != nil || string(back[:size]) != "anybody there?" {
		t.Errorf("%s says %q, %v", to, back[:size], err)
	}
}
