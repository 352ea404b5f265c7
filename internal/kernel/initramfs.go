package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// WriteInitramfs writes an uncompressed cpio archive that holds
//
//	/init            the executable at initPath
//	/modules/order   the names of the module files, one per line, in load order
//	/modules/*.ko    the named modules of modulesDir and what they depend on
//
// The same inputs give the same bytes. Modules that are built into the kernel
// are left out; an empty order is fine.
func WriteInitramfs(w io.Writer, initPath, modulesDir string, modules []string) error {
	ix, err := readIndex(modulesDir)
	if err != nil {
		return err
	}
	files, err := ix.loadOrder(modules)
	if err != nil {
		return err
	}
	init, err := os.ReadFile(initPath)
	if err != nil {
		return fmt.Errorf("read init: %w", err)
	}
	var order strings.Builder
	for _, file := range files {
		order.WriteString(path.Base(file) + "\n")
	}
	records := []cpio.Record{
		cpio.StaticFile("init", string(init), 0o755),
		cpio.Directory("modules", 0o755),
		cpio.StaticFile("modules/order", order.String(), 0o644),
	}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(modulesDir, file))
		if err != nil {
			return fmt.Errorf("read module: %w", err)
		}
		records = append(records, cpio.StaticFile("modules/"+path.Base(file), string(data), 0o644))
	}
	cpio.MakeAllReproducible(records)
	rw := cpio.Newc.Writer(w)
	if err := cpio.WriteRecords(rw, records); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// BuildInitramfs makes the file dst what [WriteInitramfs] writes. A file that
// has this content already is left alone, and one that is replaced is replaced
// as a whole, so a VM that boots from the old one is not disturbed.
func BuildInitramfs(dst, initPath, modulesDir string, modules []string) error {
	var want bytes.Buffer
	if err := WriteInitramfs(&want, initPath, modulesDir, modules); err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	have, err := os.ReadFile(dst)
	if err == nil && bytes.Equal(have, want.Bytes()) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("build initramfs: %w", err)
	}
	return writeFile(dst, want.Bytes())
}
