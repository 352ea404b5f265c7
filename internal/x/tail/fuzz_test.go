package tail

import "testing"

// However the bytes are written, the last of them are kept, and no more.
func FuzzBuffer(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), uint8(8), uint8(3))
	f.Add([]byte("0123456789"), uint8(4), uint8(200))
	f.Add([]byte("ab"), uint8(0), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, size, chunk uint8) {
		b := Buffer{Size: int(size)}
		for rest := in; len(rest) > 0; {
			n := min(int(chunk)+1, len(rest))
			if wrote, err := b.Write(rest[:n]); wrote != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", wrote, n, err)
			}
			rest = rest[n:]
		}
		if want := string(in[max(0, len(in)-int(size)):]); b.String() != want {
			t.Fatalf("kept %q, want %q", b.String(), want)
		}
		if cap(b.buf) > 2*max(8, int(size)) {
			t.Fatalf("%d bytes are held for %d", cap(b.buf), size)
		}
	})
}
