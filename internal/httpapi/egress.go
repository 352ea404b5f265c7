package httpapi

import (
	"net/http"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/sandbox"
)

func (a *API) egressRoutes() []route {
	const path = "/sandboxes/{id}/egress"
	return []route{
		{
			method: "PUT", path: path, id: "set-egress", summary: "Change what a sandbox may reach",
			doc: "The policy takes the place of the one before, and is in force when the answer comes; connections that it does not allow are cut. What has gone through still counts towards total_mib. Only a sandbox that was made with egress has a network interface; for another one the answer is 409.",
			in:  rest.EgressRequest{}, out: rest.Egress{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeNoEgress, sandbox.CodeTooLarge, sandbox.CodeClosing},
			serve:  a.setEgress,
		},
		{
			method: "GET", path: path, id: "get-egress", summary: "Show what a sandbox may reach",
			out: rest.Egress{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound, sandbox.CodeNoEgress},
			serve:  a.getEgress,
		},
		{
			method: "GET", path: path + "/denials", id: "egress-denials", summary: "Show what was refused to a sandbox",
			doc: "What its programs wanted to reach and may not, with the rule that would have allowed it. Of a sandbox that wants very many things some are only counted.",
			out: rest.EgressDenialList{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound, sandbox.CodeNoEgress},
			serve:  a.egressDenials,
		},
	}
}

func (a *API) setEgress(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	body, err := a.readBody(w, r, rest.MaxEgressBody)
	if err != nil {
		return nil, err
	}
	asked, err := decodeEgress(body)
	if err != nil {
		return nil, err
	}
	policy, err := a.engine.SetEgress(r.Context(), id, asked)
	if err != nil {
		return nil, err
	}
	return describeEgress(policy), nil
}

func (a *API) getEgress(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	policy, err := a.engine.Egress(id)
	if err != nil {
		return nil, err
	}
	return describeEgress(policy), nil
}

func (a *API) egressDenials(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	denials, err := a.engine.EgressDenials(id)
	if err != nil {
		return nil, err
	}
	list := rest.EgressDenialList{Denials: describeDenials(denials)}
	if list.Denials == nil {
		list.Denials = []rest.EgressDenial{}
	}
	return list, nil
}

// decodeEgress turns a body into what is asked for.
func decodeEgress(body []byte) (sandbox.Egress, error) {
	var req rest.EgressRequest
	if err := decode(body, egressShape, &req); err != nil {
		return sandbox.Egress{}, err
	}
	return egressOf(req)
}

// egressOf returns what a request asks for in emberd's words. What the rules mean,
// and whether they are granted, is for the engine to find out.
func egressOf(req rest.EgressRequest) (sandbox.Egress, error) {
	policy := sandbox.Egress{Allow: make([]sandbox.EgressRule, len(req.Allow)), RateKiBps: req.RateKiBps, TotalMiB: req.TotalMiB}
	for i, r := range req.Allow {
		rule := sandbox.EgressRule{Host: r.Host, Protocol: sandbox.Protocol(r.Protocol)}
		if r.CIDR != "" {
			var err error
			if rule.CIDR, err = egress.ParseRange(r.CIDR); err != nil {
				return sandbox.Egress{}, sandbox.Invalid("egress: rule %d: %v", i+1, err)
			}
		}
		for _, port := range r.Ports {
			if port < 1 || port > 65535 {
				return sandbox.Egress{}, sandbox.Invalid("egress: rule %d: port is %d; ports go from 1 to 65535", i+1, port)
			}
			rule.Ports = append(rule.Ports, uint16(port))
		}
		policy.Allow[i] = rule
	}
	return policy, nil
}

// describeEgress returns a policy in the API's words.
func describeEgress(policy sandbox.Egress) rest.Egress {
	out := rest.Egress{Allow: make([]rest.EgressRule, len(policy.Allow)), RateKiBps: policy.RateKiBps, TotalMiB: policy.TotalMiB}
	for i, rule := range policy.Allow {
		out.Allow[i] = describeRule(rule)
	}
	return out
}

func describeRule(rule sandbox.EgressRule) rest.EgressRule {
	out := rest.EgressRule{Host: rule.Host, Protocol: string(rule.Protocol)}
	if rule.CIDR.IsValid() {
		out.CIDR = rule.CIDR.String()
	}
	for _, port := range rule.Ports {
		out.Ports = append(out.Ports, int(port))
	}
	return out
}

// describeDenials returns denials in the API's words, nil if there are none.
func describeDenials(denials []sandbox.EgressDenial) []rest.EgressDenial {
	var out []rest.EgressDenial
	for _, d := range denials {
		out = append(out, describeDenial(d))
	}
	return out
}

func describeDenial(d sandbox.EgressDenial) rest.EgressDenial {
	out := rest.EgressDenial{
		Host: d.Host, Port: int(d.Port), Protocol: string(d.Protocol), Reason: string(d.Reason), Count: d.Count,
	}
	if !d.Last.IsZero() {
		out.Last = d.Last.UTC()
	}
	if d.Addr.IsValid() {
		out.Addr = d.Addr.String()
	}
	if d.Rule != nil {
		rule := describeRule(*d.Rule)
		out.Rule = &rule
	}
	return out
}
