package egress

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Rules are compared as text, a line for each part, so that what differs can be
// told. It holds all that makes a difference to a packet, and nothing that packets
// change.

// text returns the rules as they are asked for.
func (r *ruleset) text() string {
	var b strings.Builder
	for _, s := range r.sets {
		b.WriteString(setText(s))
	}
	for _, c := range r.chains {
		b.WriteString(chainText(c.Chain))
		for _, rule := range c.rules {
			b.WriteString(ruleText(rule))
		}
	}
	return b.String()
}

// readBack returns the rules as they are in the kernel, "" if there are none.
func readBack(conn *nftables.Conn, fd int) (string, error) {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return "", fmt.Errorf("list chains: %w", err)
	}
	sets, err := conn.GetSets(table)
	if err != nil {
		return "", fmt.Errorf("list sets: %w", err)
	}
	rules, err := readRules(fd)
	if err != nil {
		return "", fmt.Errorf("list rules: %w", err)
	}
	var b strings.Builder
	for _, s := range sets {
		b.WriteString(setText(s))
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue // what is dropped here passes nowhere else
		}
		b.WriteString(chainText(c))
		for _, rule := range rules[c.Name] {
			b.WriteString(ruleText(rule))
		}
	}
	return b.String(), nil
}

func setText(s *nftables.Set) string {
	return fmt.Sprintf("set %s: %s (%d bytes), interval %t, dynamic %t, timeout %t %s, size %d\n",
		s.Name, s.KeyType.Name, s.KeyType.Bytes, s.Interval, s.Dynamic, s.HasTimeout, s.Timeout, s.Size)
}

func chainText(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return fmt.Sprintf("chain %s\n", c.Name)
	}
	policy := "accept"
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		policy = "drop"
	}
	return fmt.Sprintf("chain %s: %s, hook %d, priority %d, policy %s\n", c.Name, c.Type, *c.Hooknum, *c.Priority, policy)
}

func ruleText(rule []expr.Any) string {
	parts := make([]string, len(rule))
	for i, e := range rule {
		parts[i] = exprText(e)
	}
	return "\t" + strings.Join(parts, "; ") + "\n"
}

var (
	metaNames = map[expr.MetaKey]string{
		expr.MetaKeyIIFNAME: "iifname", expr.MetaKeyOIFNAME: "oifname", expr.MetaKeyNFPROTO: "nfproto",
		expr.MetaKeyL4PROTO: "l4proto", expr.MetaKeyPKTTYPE: "pkttype", expr.MetaKeyMARK: "mark",
	}
	baseNames    = map[expr.PayloadBase]string{expr.PayloadBaseLLHeader: "link", expr.PayloadBaseNetworkHeader: "network", expr.PayloadBaseTransportHeader: "transport"}
	verdictNames = map[expr.VerdictKind]string{expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictJump: "jump", expr.VerdictGoto: "goto"}
	objectNames  = map[int]string{int(nftables.ObjTypeQuota): "quota", int(nftables.ObjTypeCounter): "counter"}
)

func exprText(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Meta:
		if e.SourceRegister {
			return fmt.Sprintf("set meta %s = r%d", name(metaNames, e.Key), e.Register)
		}
		return fmt.Sprintf("r%d = meta %s", e.Register, name(metaNames, e.Key))
	case *expr.Payload:
		return fmt.Sprintf("r%d = %s[%d:%d]", e.DestRegister, name(baseNames, e.Base), e.Offset, e.Offset+e.Len)
	case *expr.Bitwise:
		return fmt.Sprintf("r%d = r%d & %x ^ %x (%d)", e.DestRegister, e.SourceRegister, e.Mask, e.Xor, e.Len)
	case *expr.Cmp:
		return fmt.Sprintf("r%d %s %x", e.Register, name(map[expr.CmpOp]string{expr.CmpOpEq: "==", expr.CmpOpNeq: "!="}, e.Op), e.Data)
	case *expr.Immediate:
		return fmt.Sprintf("r%d = %x", e.Register, e.Data)
	case *expr.Lookup:
		return fmt.Sprintf("r%d in %s (not %t, map %t)", e.SourceRegister, e.SetName, e.Invert, e.IsDestRegSet)
	case *expr.Dynset:
		parts := make([]string, len(e.Exprs))
		for i, part := range e.Exprs {
			parts[i] = exprText(part)
		}
		return fmt.Sprintf("update %s with r%d (%d, not %t): %s", e.SetName, e.SrcRegKey, e.Operation, e.Invert, strings.Join(parts, ", "))
	case *expr.Counter:
		return "counter"
	case *expr.Objref:
		return fmt.Sprintf("%s %s", name(objectNames, e.Type), strings.TrimRight(e.Name, "\x00"))
	case *expr.Socket:
		return fmt.Sprintf("r%d = socket %d", e.Register, e.Key)
	case *expr.TProxy:
		return fmt.Sprintf("tproxy %d to r%d:r%d", e.Family, e.RegAddr, e.RegPort)
	case *expr.Reject:
		return fmt.Sprintf("reject %d %d", e.Type, e.Code)
	case *expr.Verdict:
		return strings.TrimSpace(name(verdictNames, e.Kind) + " " + e.Chain)
	case *unknown:
		return "unknown " + e.name
	default:
		return fmt.Sprintf("unknown %T", e)
	}
}

func name[K comparable](names map[K]string, key K) string {
	if name, ok := names[key]; ok {
		return name
	}
	return fmt.Sprintf("%v", key)
}

// unknown is a part of a rule that this package never makes.
type unknown struct {
	expr.Notrack
	name string
}

// readRules returns the rules of the table in the namespace, by chain. The library
// leaves out parts of rules that it cannot read, which two of ours are.
func readRules(fd int) (map[string][][]expr.Any, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: fd})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := bound(conn); err != nil {
		return nil, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")}})
	if err != nil {
		return nil, err
	}
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, err
	}
	rules := map[string][][]expr.Any{}
	for _, answer := range answers {
		chain, rule, err := readRule(answer.Data)
		if err != nil {
			return nil, err
		}
		rules[chain] = append(rules[chain], rule)
	}
	return rules, nil
}

func readRule(msg []byte) (chain string, rule []expr.Any, err error) {
	if len(msg) < 4 {
		return "", nil, fmt.Errorf("a message of %d bytes", len(msg))
	}
	attrs, err := netlink.NewAttributeDecoder(msg[4:])
	if err != nil {
		return "", nil, err
	}
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_RULE_CHAIN:
			chain = attrs.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			attrs.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(part *netlink.AttributeDecoder) error {
						e, err := readExpr(part)
						rule = append(rule, e)
						return err
					})
				}
				return nil
			})
		}
	}
	return chain, rule, attrs.Err()
}

func readExpr(part *netlink.AttributeDecoder) (expr.Any, error) {
	var (
		kind string
		data []byte
	)
	for part.Next() {
		switch part.Type() {
		case unix.NFTA_EXPR_NAME:
			kind = part.String()
		case unix.NFTA_EXPR_DATA:
			data = part.Bytes()
		}
	}
	if err := part.Err(); err != nil {
		return nil, err
	}
	var e expr.Any
	switch kind {
	case "meta":
		e = &expr.Meta{}
	case "payload":
		e = &expr.Payload{}
	case "bitwise":
		e = &expr.Bitwise{}
	case "cmp":
		e = &expr.Cmp{}
	case "lookup":
		e = &expr.Lookup{}
	case "dynset":
		e = &expr.Dynset{}
	case "objref":
		e = &expr.Objref{}
	case "socket":
		e = &expr.Socket{}
	case "reject":
		e = &expr.Reject{}
	case "tproxy":
		return readTProxy(data)
	case "immediate":
		imm := &expr.Immediate{}
		if err := expr.Unmarshal(unix.NFPROTO_INET, data, imm); err != nil {
			return nil, err
		}
		if e = imm; imm.Register == unix.NFT_REG_VERDICT {
			e = &expr.Verdict{}
		}
	default:
		return &unknown{name: kind}, nil
	}
	return e, expr.Unmarshal(unix.NFPROTO_INET, data, e)
}

func readTProxy(data []byte) (expr.Any, error) {
	attrs, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	attrs.ByteOrder = binary.BigEndian
	e := &expr.TProxy{TableFamily: unix.NFPROTO_INET}
	for attrs.Next() {
		switch attrs.Type() {
		case expr.NFTA_TPROXY_FAMILY:
			e.Family = byte(attrs.Uint32())
		case expr.NFTA_TPROXY_REG_ADDR:
			e.RegAddr = attrs.Uint32()
		case expr.NFTA_TPROXY_REG_PORT:
			e.RegPort = attrs.Uint32()
		}
	}
	return e, attrs.Err()
}
