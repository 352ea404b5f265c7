// Package kernel holds the configuration of the guest kernel that emberd can
// build for its sandboxes. It is data: internal/kernel builds what it says.
package kernel

import _ "embed"

// GuestConfig is the configuration, a fragment for Kconfig.
//
//go:embed guest.config
var GuestConfig []byte
