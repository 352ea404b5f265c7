package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// maxVmlinux bounds what a payload may unpack to, in bytes. Debian's cloud
// kernel is 53 MB.
const maxVmlinux = 512 << 20

// The fields of the setup header that lead to the payload, from "The Linux/x86
// Boot Protocol" in the kernel's documentation.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250

	sectorSize = 512
	// versionPayload is the first version of the protocol that has the two
	// payload fields.
	versionPayload = 0x0208
)

// ExtractVmlinux returns the ELF kernel that is packed in a bzImage. It knows
// the one compression that Debian's kernels use, LZ4.
func ExtractVmlinux(bzImage []byte) ([]byte, error) {
	packed, err := payload(bzImage)
	if err != nil {
		return nil, err
	}
	// The kernel's build appends the unpacked size to a payload, because the
	// legacy LZ4 format has no end mark.
	if len(packed) < 4 {
		return nil, errors.New("payload is too short for its size field")
	}
	body, size := packed[:len(packed)-4], binary.LittleEndian.Uint32(packed[len(packed)-4:])
	if !bytes.HasPrefix(body, []byte{0x02, 0x21, 0x4c, 0x18}) {
		return nil, fmt.Errorf("payload begins with %x, which is not LZ4's legacy format", body[:min(4, len(body))])
	}
	if size > maxVmlinux {
		return nil, fmt.Errorf("payload claims to unpack to %d bytes, more than %d", size, maxVmlinux)
	}
	elf, err := io.ReadAll(io.LimitReader(lz4.NewReader(bytes.NewReader(body)), int64(size)+1))
	if err != nil {
		return nil, fmt.Errorf("unpack payload: %w", err)
	}
	if len(elf) != int(size) {
		return nil, fmt.Errorf("payload does not unpack to the %d bytes it claims", size)
	}
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		return nil, errors.New("payload is not an ELF file")
	}
	return elf, nil
}

// payload returns the compressed kernel inside a bzImage.
func payload(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage: setup header not found")
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < versionPayload {
		return nil, fmt.Errorf("boot protocol %#04x names no payload, need %#04x", v, versionPayload)
	}
	sects := uint64(image[offSetupSects])
	if sects == 0 {
		sects = 4 // What the protocol says an empty field stands for.
	}
	start := (sects+1)*sectorSize + uint64(binary.LittleEndian.Uint32(image[offPayload:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if end > uint64(len(image)) {
		return nil, fmt.Errorf("payload ends at byte %d of an image of %d", end, len(image))
	}
	return image[start:end], nil
}
