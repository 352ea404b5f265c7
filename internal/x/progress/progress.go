// Package progress carries "what is being done now" from long operations to
// whoever shows it. The operations know nothing about terminals.
package progress

import "fmt"

// Func is told the step that now begins, in a few words without a full stop:
// "fetching the kernel". A nil Func is silent.
type Func func(step string)

// Step reports the step that now begins.
func (f Func) Step(format string, args ...any) {
	if f != nil {
		f(fmt.Sprintf(format, args...))
	}
}
