package egress

import "github.com/google/nftables"

type (
	nftElement = nftables.SetElement
	nftConn    = nftables.Conn
)
