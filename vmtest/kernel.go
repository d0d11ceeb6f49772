package vmtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// kernel is a cached kernel with its modules, for one kind of runner.
type kernel struct {
	kind string // "uml" or "qemu"
	key  string // its recipe
	dir  string
}

// modules is a tar of the kernel's modules, paths as in the guest.
func (k kernel) modules() string { return filepath.Join(k.dir, "modules.tar") }

// umlKernel returns forky's user-mode kernel, made to run on this machine
// whatever its libc: loader and libc of its own suite lie beside it. Its
// directory is part of the recipe, for the binary names it.
func umlKernel(log io.Writer) (kernel, error) {
	dir, err := cacheDir()
	if err != nil {
		return kernel{}, err
	}
	k := kernel{kind: "uml", key: recipe("1", string(kernelSuite), dir)}
	k.dir, err = cached(log, "kernel-uml", k.key, func(work, tmp, final string) error {
		fmt.Fprintln(log, "kernel: fetching the user-mode kernel")
		tarball := filepath.Join(work, "kernel.tar")
		if err := debootstrap(log, kernelSuite, tarball, []string{"--variant=extract", "--include=user-mode-linux"}); err != nil {
			return err
		}
		tree := filepath.Join(work, "tree")
		if err := run(log, "kernel", "sh", "-c",
			`set -eu; mkdir -p "$1" "$3"; tar -xf "$2" -C "$1" --no-same-owner --exclude='./dev/*'
			cp -L "$1"/usr/lib64/ld-linux-x86-64.so.2 "$1"/usr/lib/x86_64-linux-gnu/libc.so.6 "$1"/usr/bin/linux.uml "$3"
			mkdir -p "$1"/m/usr/lib/modules; mv "$1"/usr/lib/uml/modules/* "$1"/m/usr/lib/modules
			tar -cf "$3"/modules.tar --owner=0 --group=0 --numeric-owner -C "$1"/m .
			chmod -R u+rwX "$1"`, "sh", tree, tarball, tmp); err != nil {
			return err
		}
		// Starting it through the loader would not do: it executes itself again.
		return run(log, "kernel", "patchelf", "--set-interpreter", filepath.Join(final, "ld-linux-x86-64.so.2"),
			"--set-rpath", final, filepath.Join(tmp, "linux.uml"))
	})
	return k, err
}

// checkArch refuses machines for which there is no user-mode kernel.
func checkArch(machine string) error {
	if machine != "amd64" {
		return errors.New("User-Mode Linux exists for x86-64 only")
	}
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return fmt.Errorf("User-Mode Linux needs /proc: %w", err)
	}
	return nil
}
