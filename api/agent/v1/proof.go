package agentv1

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Sizes of the secret that a VM is armed with, and bounds of a challenge, in
// bytes.
const (
	SecretSize   = 32
	MinChallenge = 16
	MaxChallenge = 64
)

// Prove returns what shows to whoever sent the challenge, and knows the secret,
// that the caller knows it too.
func Prove(secret, challenge []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(challenge)
	return mac.Sum(nil)
}
