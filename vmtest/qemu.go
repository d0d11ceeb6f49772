package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// qemu runs guests in QEMU, on the machine's virtualisation ("kvm") or without
// it ("tcg").
type qemu struct{ accel string }

func (q qemu) name() string { return q.accel }

func (q qemu) kernel(log io.Writer) (kernel, error) { return cloudKernel(log) }

func (q qemu) available(ctx context.Context, log io.Writer) error {
	if runtime.GOARCH != "amd64" {
		return errors.New("the guests are x86-64 only")
	}
	if q.accel == "kvm" {
		if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
			return fmt.Errorf("/dev/kvm: %w", err)
		}
	}
	for _, p := range []string{"qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf(`%s is missing; "make deps HEARTH_VM_RUNNER=%s" installs it`, p, q.accel)
		}
	}
	if q.accel != "kvm" {
		return nil
	}
	// On some clouds the device is there and runs no ordinary kernel.
	k, err := cloudKernel(log)
	if err != nil {
		return err
	}
	return probed(ctx, "kvm", k.key, 20*time.Second, func() *exec.Cmd {
		return exec.Command("qemu-system-x86_64", append(q.machine("256M"),
			"-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console",
			"-kernel", filepath.Join(k.dir, "vmlinuz"), "-append", "console=ttyS0 panic=-1")...)
	})
}

// machine is what every guest has; it ends where another would reboot.
func (q qemu) machine(memory string) []string {
	accel, cpu := "kvm", "host"
	if q.accel == "tcg" {
		accel, cpu = "tcg,thread=multi", "max"
	}
	return []string{
		"-accel", accel, "-cpu", cpu, "-machine", "q35", "-smp", "1", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
	}
}

func (q qemu) start(b boot) (*process, error) {
	if !exists(b.overlay) {
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", b.image, b.overlay).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("make the overlay: %w: %s", err, out)
		}
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("qemu-system-x86_64", q.machine(b.memory)...)
	cmd.Args = append(cmd.Args,
		"-device", "virtio-rng-pci",
		// Written through to the file when the guest flushes, so that killing
		// QEMU is a power cut and no more.
		"-drive", "file="+b.overlay+",if=virtio,format=qcow2,cache=writeback,discard=unmap",
		"-drive", "file="+b.payload+",if=virtio,format=raw,readonly=on")
	if b.console != nil {
		cmd.Args = append(cmd.Args, "-chardev", "stdio,id=console,signal=off")
		cmd.Stdin, cmd.Stdout = b.console, b.console
	} else {
		cmd.Args = append(cmd.Args, "-chardev", "file,id=console,append=on,path="+b.log.Name())
	}
	cmd.Stderr = b.log
	words := append([]string{"root=/dev/vda", "rw", "console=ttyS0"}, b.words...)
	if b.console == nil { // its getty would wait for a device that coldplug was to bring
		words = append(words, "systemd.mask=serial-getty@ttyS0.service")
	}
	cmd.Args = append(cmd.Args,
		"-serial", "chardev:console",
		"-chardev", "socket,id=control,fd=3", "-serial", "chardev:control",
		"-kernel", filepath.Join(b.kernel.dir, "vmlinuz"), "-initrd", filepath.Join(b.kernel.dir, "initrd.img"),
		"-append", strings.Join(words, " "))
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Dir = b.dir
	p, err := spawn(cmd, b.cpu)
	if err != nil {
		ours.Close()
		return nil, err
	}
	p.control = ours
	return p, nil
}

// cloudKernel returns Debian's kernel for virtual machines, with an initramfs
// that finds the root on a virtio disk.
func cloudKernel(log io.Writer) (kernel, error) {
	args := []string{"--variant=minbase", "--include=linux-image-cloud-amd64,initramfs-tools,zstd,kmod,udev,e2fsprogs",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io"}
	k := kernel{kind: "qemu", key: recipe(slices.Concat([]string{"1", string(kernelSuite)}, args)...)}
	var err error
	k.dir, err = cached(log, "kernel-qemu", k.key, func(work, tmp, final string) error {
		fmt.Fprintln(log, "kernel: fetching the kernel for virtual machines")
		tarball := filepath.Join(work, "kernel.tar")
		if err := debootstrap(log, kernelSuite, tarball, args); err != nil {
			return err
		}
		return run(log, "kernel", "sh", "-c",
			`set -eu; mkdir -p "$1" "$3"; tar -xf "$2" -C "$1" --no-same-owner --wildcards './boot/*' './usr/lib/modules/*'
			cp "$1"/boot/vmlinuz-* "$3"/vmlinuz; cp "$1"/boot/initrd.img-* "$3"/initrd.img; chmod 644 "$3"/*
			rm -rf "$1"/boot
			tar -cf "$3"/modules.tar --owner=0 --group=0 --numeric-owner -C "$1" .`, "sh", filepath.Join(work, "tree"), tarball, tmp)
	})
	return k, err
}
