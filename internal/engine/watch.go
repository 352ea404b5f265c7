package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// An agent is asked for a sign of life every pingInterval, and has maxSilence
// to give it. Then it is asked once more and has lastChance: a daemon that was
// itself stopped for a while must not take that for the agent's silence. So one
// that hangs is found out within the sum of the three, on a host that has a CPU for
// it; see [provision.VM.Ping].
const (
	pingInterval = 3 * time.Second
	maxSilence   = 5 * time.Second
	lastChance   = time.Second
)

// headStart is what the answer to a create has before its sandbox is seen to: on
// a host with few CPUs the client would wait for that.
const headStart = 5 * time.Millisecond

// letAnswer returns when a create has had its headStart, or the sandbox is to be
// seen to at once.
func (e *Engine) letAnswer(en *entry) {
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-en.doomed:
	case <-e.leave:
	}
}

// watch owns a running sandbox: it waits for its end and takes it down. The end
// is somebody's wish, or comes when the VM ends on its own or is of no use any
// more because its agent is silent.
func (e *Engine) watch(ctx context.Context, en *entry, vm *provision.VM) {
	t := newTeller()
	if why := e.awaitEnd(ctx, en, vm, t); why != "" && en.condemn(sandbox.Running, why) {
		sb, _ := en.snapshot()
		e.cfg.Log.Error("sandbox failed", "sandbox_id", sb.ID, "pack", sb.Pack, "reason", string(why))
		_ = e.doom(en) // logged, and here it is taken down
	}
	select {
	case <-en.doomed: // whoever condemned it may still be writing its record
	case <-e.leave:
		if en.letGo() {
			e.tellDenials(en, vm.Network(), t, true)
			return
		}
		<-en.doomed
	}
	e.tellDenials(en, vm.Network(), t, true)
	e.clear(ctx, en)
}

// awaitEnd returns why the VM of a sandbox has to be taken down, "" if somebody
// wants it.
func (e *Engine) awaitEnd(ctx context.Context, en *entry, vm *provision.VM, t *teller) reason {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	var look <-chan time.Time
	if vm.Network() != nil {
		looks := time.NewTicker(lookInterval)
		defer looks.Stop()
		look = looks.C
	}
	for {
		select {
		case <-en.doomed:
			return ""
		case <-e.leave:
			return ""
		case <-vm.Done():
			return endOf(vm)
		case <-vm.Agent.Done():
			return e.afterDisconnect(en, vm)
		case <-look:
			e.tellDenials(en, vm.Network(), t, false)
		case <-tick.C:
			switch err := e.signOfLife(ctx, en, vm); {
			case err == nil, errors.Is(err, context.Canceled):
			case errors.Is(err, context.DeadlineExceeded):
				return unresponsive
			default:
				return e.afterDisconnect(en, vm)
			}
		}
	}
}

// signOfLife asks the agent of vm for a sign of life. The error is
// [context.DeadlineExceeded] if it gives none in time, and [context.Canceled] if
// nobody wants to know any more.
func (e *Engine) signOfLife(ctx context.Context, en *entry, vm *provision.VM) error {
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	waiting.Go(func() {
		defer cancel()
		select {
		case <-en.doomed:
		case <-e.leave:
		case <-vm.Done():
		case <-ctx.Done():
		}
	})
	err := vm.Ping(ctx, maxSilence)
	if errors.Is(err, context.DeadlineExceeded) {
		err = vm.Ping(ctx, lastChance)
	}
	return err
}

// afterDisconnect tells the connection's end from that of the VM, which follows
// it in a moment if that is what happened.
func (e *Engine) afterDisconnect(en *entry, vm *provision.VM) reason {
	timer := time.NewTimer(deathNotice)
	defer timer.Stop()
	select {
	case <-en.doomed:
		return ""
	case <-vm.Done():
		return endOf(vm)
	case <-timer.C:
		return disconnected
	}
}

// endOf says why a VM ended of its own.
func endOf(vm *provision.VM) reason {
	if vm.OOMKilled() {
		return oomKilled
	}
	return ended
}
