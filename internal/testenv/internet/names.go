package internet

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Question is what somebody asked a name server.
type Question struct {
	// Name is in lower case and ends with a dot, Type as in a zone file.
	Name, Type string
	// Over is "udp", "tcp", "tls" or "https".
	Over string
	// Time is the how-many-th time this is that the name is asked for with that
	// type, from 1.
	Time int
}

// Answer is what a name server says to a question.
type Answer struct {
	// Records are lines of a zone file, in the order in which they are sent.
	Records []string
	// Code is one of miekg/dns.
	Code int
	// Truncated says that the answer is cut where it goes over UDP. Silent is no
	// answer at all.
	Truncated, Silent bool
	// ID is added to that of the question, and Name is what the answer says the
	// question was, if it is not empty.
	ID   uint16
	Name string
}

// Script answers the questions for one name.
type Script func(Question) Answer

// Host gives a name its addresses.
func (n *Internet) Host(name string, addrs ...string) { n.Script(name, Addresses(name, addrs...)) }

// Script has a name's questions answered by s. Names without a script do not
// exist.
func (n *Internet) Script(name string, s Script) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[canonical(name)] = s
}

// Records is a script that answers with those of some lines of a zone file that
// have the type that is asked for, and with all that lead elsewhere.
func Records(lines ...string) Script {
	return func(q Question) Answer {
		var a Answer
		for _, line := range lines {
			if fields := strings.Fields(line); len(fields) > 3 && (fields[3] == q.Type || fields[3] == "CNAME") {
				a.Records = append(a.Records, line)
			}
		}
		return a
	}
}

// Addresses is a script that answers with addresses, which hold for a minute.
func Addresses(name string, addrs ...string) Script {
	lines := make([]string, len(addrs))
	for i, a := range addrs {
		kind := "A"
		if netip.MustParseAddr(a).Is6() {
			kind = "AAAA"
		}
		lines[i] = fmt.Sprintf("%s 60 IN %s %s", dns.Fqdn(name), kind, a)
	}
	return Records(lines...)
}

// Asked is what name servers were asked since Forget.
func (n *Internet) Asked() []Question {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

// answerTo asks the script of a question's name.
func (n *Internet) answerTo(name, kind, over string) Answer {
	name = canonical(name)
	n.mu.Lock()
	n.times[name+" "+kind]++
	q := Question{Name: name, Type: kind, Over: over, Time: n.times[name+" "+kind]}
	n.asked = append(n.asked, q)
	script := n.names[name]
	n.mu.Unlock()
	if script == nil {
		return Answer{Code: dns.RcodeNameError}
	}
	return script(q)
}

// reply is the message that answers another, nil if none does.
func (n *Internet) reply(question *dns.Msg, over string) *dns.Msg {
	if len(question.Question) != 1 {
		return new(dns.Msg).SetRcode(question, dns.RcodeFormatError)
	}
	q := question.Question[0]
	a := n.answerTo(q.Name, dns.TypeToString[q.Qtype], over)
	if a.Silent {
		return nil
	}
	m := new(dns.Msg).SetRcode(question, a.Code)
	m.RecursionAvailable = true
	m.Id += a.ID
	if a.Name != "" {
		m.Question[0].Name = dns.Fqdn(a.Name)
	}
	if a.Truncated && over == "udp" {
		m.Truncated = true
		return m
	}
	for _, line := range a.Records {
		rr, err := dns.NewRR(line)
		if err != nil {
			return new(dns.Msg).SetRcode(question, dns.RcodeServerFailure)
		}
		m.Answer = append(m.Answer, rr)
	}
	if over == "udp" {
		size := dns.MinMsgSize
		if o := question.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	return m
}

// nameServer answers over one transport.
func (n *Internet) nameServer(over string) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		if m := n.reply(question, over); m != nil {
			_ = w.WriteMsg(m)
		}
	})
}

// dnsOverHTTPS answers questions that are POSTed, as RFC 8484 has it.
func (n *Internet) dnsOverHTTPS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, dns.MaxMsgSize))
	question := new(dns.Msg)
	if err != nil || question.Unpack(body) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if m := n.reply(question, "https"); m != nil {
		if packed, err := m.Pack(); err == nil {
			w.Header().Set("Content-Type", "application/dns-message")
			_, _ = w.Write(packed)
		}
	}
}
