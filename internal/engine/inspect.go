package engine

import "github.com/emberd/emberd/internal/sandbox"

// Inspect returns one sandbox that is running, and what confines its VMM.
func (e *Engine) Inspect(id sandbox.ID) (sandbox.Sandbox, sandbox.Jail, error) {
	if en := e.find(id); en != nil {
		if sb, vm, there := en.visible(); there {
			return sb, vm.Jail(), nil
		}
	}
	return sandbox.Sandbox{}, sandbox.Jail{}, sandbox.ErrNotFound
}
