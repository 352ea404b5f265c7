package execs

import "io"

// blockSize is how much of a stream is allocated, and dropped, at a time. A
// program that writes little takes less, and leastBlock at least.
const (
	blockSize  = 16 << 10
	leastBlock = 512
)

// Stream is the youngest part of what a program wrote to one of its outputs.
type Stream struct {
	reg *Registry

	// Guarded by reg.mu.
	blocks  [][]byte // the oldest first; all but the last are full
	first   uint64   // the position of the oldest byte
	end     uint64   // how much was written
	size    int      // the memory that the blocks take
	over    bool
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// Write keeps p, and drops what is too old for it. It never fails.
func (s *Stream) Write(p []byte) (int, error) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	for rest := p; len(rest) > 0; {
		last := len(s.blocks) - 1
		if last < 0 || len(s.blocks[last]) == blockSize {
			s.addBlock()
			last++
		}
		block := s.blocks[last]
		n := min(len(rest), blockSize-len(block))
		if len(block)+n > cap(block) {
			grown := make([]byte, len(block), min(blockSize, max(leastBlock, 2*cap(block), len(block)+n)))
			copy(grown, block)
			s.take(cap(grown) - cap(block))
			block = grown
		}
		s.blocks[last] = append(block, rest[:n]...)
		s.end += uint64(n)
		rest = rest[n:]
		for s.end-s.first > MaxStream {
			s.dropBlock()
		}
		s.reg.makeRoom()
	}
	s.announce()
	return len(p), nil
}

// Span is the positions of the oldest byte that is kept and of the next one that
// will be written.
func (s *Stream) Span() (first, end uint64) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	return s.first, s.end
}

// Read copies what was written at position at and after it to p. It returns 0
// bytes and a channel that is closed when there may be more, or an error: [io.EOF]
// at the end of the stream, a [*GoneError], or [ErrBeyond].
func (s *Stream) Read(p []byte, at uint64) (n int, more <-chan struct{}, err error) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	switch {
	case at < s.first:
		return 0, nil, &GoneError{First: s.first}
	case at > s.end:
		return 0, nil, ErrBeyond
	case at == s.end && s.over:
		return 0, nil, io.EOF
	case at == s.end:
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		return 0, s.changed, nil
	}
	// All blocks but the last are full.
	skip := at - s.first
	blocks, skip := s.blocks[skip/blockSize:], skip%blockSize
	for len(blocks) > 0 && n < len(p) {
		n += copy(p[n:], blocks[0][skip:])
		blocks, skip = blocks[1:], 0
	}
	return n, nil, nil
}

func (s *Stream) addBlock() {
	if s.reg.spare != nil && len(s.blocks) > 0 { // a stream that is that long will fill it
		s.blocks = append(s.blocks, s.reg.spare[:0])
		s.take(blockSize)
		s.reg.spare = nil
		return
	}
	s.blocks = append(s.blocks, nil)
}

// dropBlock drops the oldest block.
func (s *Stream) dropBlock() {
	oldest := s.blocks[0]
	s.blocks[0] = nil
	s.blocks = s.blocks[1:]
	s.first += uint64(len(oldest))
	s.take(-cap(oldest))
	if cap(oldest) == blockSize {
		s.reg.spare = oldest
	}
	s.announce()
}

// clear drops everything.
func (s *Stream) clear() {
	for len(s.blocks) > 0 {
		s.dropBlock()
	}
}

func (s *Stream) finish() {
	s.over = true
	s.announce()
}

// take counts n bytes more.
func (s *Stream) take(n int) {
	s.size += n
	s.reg.used += n
}

func (s *Stream) announce() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}
