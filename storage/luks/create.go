package luks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"unicode/utf16"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
	"hearth/storage"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
	"hearth/storage/luks2"
	"hearth/storage/memory"
	"hearth/storage/mounts"
)

const (
	mib     = 1 << 20
	minSize = 5 * mib // of any home
	maxSize = 5 << 40
)

// A recipe is what Create needs to know before it touches anything.
type recipe struct {
	fstype                          string
	partitionUUID, luksUUID, fsUUID string
	diskGUID                        string
	sectorSize                      int
	least                           int64 // bytes of the image
	keySize                         int
}

// Create implements storage.Backend. The image has a temporary name in its own
// directory until Commit.
func (Backend) Create(ctx context.Context, a storage.Area, c *storage.Credentials) (_ *storage.Setup, err error) {
	r, err := plan(a)
	if err != nil {
		return nil, err
	}
	if err := clearMapped(ctx, a); err != nil {
		return nil, err
	}
	s := &storage.Setup{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	s.Found.ImagePath = a.ImagePath
	var w window
	if device(a.ImagePath) {
		w, err = claimDevice(ctx, a, s, &r)
	} else {
		w, err = newImage(a, s, r)
	}
	if err != nil {
		return nil, err
	}
	t := trace.From(ctx)
	t.Step("header")
	h, err := format(ctx, a, s, w, r, c.Passphrases)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.New(fault.Timeout, "create", err)
	}
	t.Step("loop")
	l, err := attach(ctx, s, w, r.sectorSize)
	if err != nil {
		return nil, err
	}
	t.Step("mapped device")
	node, err := mapDevice(ctx, a, s, h, w.size, l.Major, l.Minor)
	if err != nil {
		return nil, err
	}
	a.Progress("make file system", 0, 0)
	t.Step("mkfs")
	err = fsops.MakeFS(ctx, fsops.MkfsOptions{
		Type: r.fstype, Node: node, Label: a.FullName, UUID: r.fsUUID, Discard: a.LUKS.Discard,
	})
	if err != nil {
		// The program sees an input/output error where a sparse image could
		// not grow.
		if full(w.file) {
			return nil, fault.New(fault.NoDiskSpace, "make file system", err)
		}
		return nil, err
	}
	s.Found.FileSystemType, s.Found.FileSystemUUID = r.fstype, r.fsUUID
	s.Found.PartitionUUID, s.Found.LUKSUUID = r.partitionUUID, r.luksUUID
	s.Found.LUKSCipher, s.Found.LUKSCipherMode, s.Found.LUKSVolumeKeySize = a.LUKS.Cipher, a.LUKS.CipherMode, r.keySize
	t.Step("mount")
	if err := mount(a, s, node); err != nil {
		return nil, err
	}
	root, err := newTopDirectory(a, r.fstype)
	if err != nil {
		return nil, storage.SpaceFault("make top directory", err)
	}
	enter(a, s, root)
	s.Private = &opened{window: w, header: h}
	return s, nil
}

// plan decides everything that can be refused without a trace.
func plan(a storage.Area) (recipe, error) {
	const op = "plan home area"
	r := recipe{fstype: a.FileSystemType, sectorSize: 512, keySize: a.LUKS.VolumeKeySize}
	if n := len(utf16.Encode([]rune(a.FullName))); n > gpt.MaxName {
		return r, fault.Newf(fault.InvalidArgs, op, "The name %s is too long for a partition: %d instead of %d characters.", a.FullName, n, gpt.MaxName)
	}
	if fsops.MinimumSize(r.fstype) == 0 {
		return r, fault.Newf(fault.NotSupported, op, "System does not support selected file system")
	}
	if !fsops.HasMkfs(r.fstype) && r.fstype == "btrfs" && !a.FileSystemTypeChosen {
		r.fstype = "ext4"
	}
	if !fsops.HasMkfs(r.fstype) {
		return r, fault.Newf(fault.NotSupported, op, "The program mkfs.%s is not installed.", r.fstype)
	}
	r.least = max(minSize, fsops.MinimumSize(r.fstype)+overhead)
	if a.LUKS.SectorSize != 0 {
		r.sectorSize = int(a.LUKS.SectorSize)
	}
	for _, u := range []struct {
		p     *string
		given string
	}{{&r.partitionUUID, a.PartitionUUID}, {&r.luksUUID, a.LUKSUUID}, {&r.fsUUID, a.FileSystemUUID}, {&r.diskGUID, ""}} {
		if *u.p = u.given; u.given != "" {
			continue
		}
		id, err := uuid.NewRandomFromReader(a.Rand)
		if err != nil {
			return r, fmt.Errorf("draw UUID: %w", err)
		}
		*u.p = id.String()
	}
	return r, nil
}

// newImage makes the image file, as large as the record wants it, under a
// temporary name that Commit replaces by the right one.
func newImage(a storage.Area, s *storage.Setup, r recipe) (window, error) {
	const op = "make image"
	dir := filepath.Dir(a.ImagePath)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return window{}, storage.SpaceFault(op, err)
	}
	name, err := storage.TempName(a.Rand, "homework", a.FullName+".home")
	if err != nil {
		return window{}, fmt.Errorf("%s: %w", op, err)
	}
	temp := filepath.Join(dir, name)
	var got int64 // how large it became
	fd, err := unix.Open(temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return window{}, storage.SpaceFault(op, err)
	}
	file := os.NewFile(uintptr(fd), temp)
	s.Finally("close image", func(context.Context) error { return file.Close() })
	storage.HoldUnfinished(a, file)
	s.Undo("remove temporary image", func(context.Context) error { return unix.Unlink(temp) })
	s.OnCommit(func(context.Context) error {
		if !a.LUKS.OfflineDiscard {
			reserve(a, file, got)
		}
		if err := file.Sync(); err != nil {
			return storage.SpaceFault("sync image", err)
		}
		return storage.PutInPlace(temp, a.ImagePath)
	})
	noCOW(file)
	size, err := imageSize(a, file, r)
	if err != nil {
		return window{}, err
	}
	a.Progress("allocate", 0, uint64(size))
	got, err = allocate(file, 0, size, a.LUKS.Discard)
	if err != nil {
		return window{}, storage.SpaceFault(op, err)
	}
	if got < r.least {
		return window{}, fault.New(fault.NoDiskSpace, op, fmt.Errorf("room for %d bytes, %d are needed", got, r.least))
	}
	part, err := partition(a, file, got, r)
	return window{file: file, offset: part.Offset, size: part.Size}, err
}

// noCOW asks a file system that copies on write, or compresses, to leave that
// to the one inside. Failures do not matter.
func noCOW(image *os.File) {
	const nocomp, nocow = 0x400, 0x800000 // FS_NOCOMP_FL, FS_NOCOW_FL of linux/fs.h
	fd := int(image.Fd())
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return
	}
	if unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|nocomp|nocow) == nil {
		return
	}
	for _, bit := range []int{nocow, nocomp} {
		if unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|bit) == nil {
			flags |= bit
		}
	}
}

// imageSize is the size in bytes that the record asks for, in whole MiB: what
// is free at most, but never less than the file system needs.
func imageSize(a storage.Area, image *os.File, r recipe) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(image.Fd()), &st); err != nil {
		return 0, fault.New(fault.IOError, "look for disk space", err)
	}
	hi, lo := bits.Mul64(uint64(st.Frsize), st.Bavail)
	if hi != 0 || lo > maxSize {
		lo = maxSize
	}
	upper := lo / mib * mib
	size := upper
	switch {
	case a.DiskSize != nil:
		size = min(*a.DiskSize/mib*mib, upper)
	case a.DiskSizeRelative != nil:
		size = scale(upper, min(*a.DiskSizeRelative, 1<<32-1), 1<<32-1)
	default:
		size = scale(upper, 83, 100)
	}
	return max(int64(size), r.least), nil
}

// scale returns whole MiB of n·num/den, for num ≤ den.
func scale(n, num, den uint64) uint64 {
	hi, lo := bits.Mul64(n, num)
	q, _ := bits.Div64(hi, lo, den)
	return q / mib * mib
}

// allocate makes the file, from bytes long, size bytes long and returns how long
// it became: where its blocks are reserved, less if the disk is full.
func allocate(image *os.File, from, size int64, sparse bool) (int64, error) {
	if sparse {
		return size, image.Truncate(size)
	}
	good, bad := from, int64(-1)
	for try := size; ; {
		err := fallocate(image, 0, try)
		switch {
		case err == nil:
			good = try
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return size, image.Truncate(size)
		case errors.Is(err, unix.ENOSPC):
			// What was reserved on the way is in nobody's use.
			if terr := image.Truncate(good); terr != nil {
				return 0, terr
			}
			bad = try
		default:
			return 0, err
		}
		if bad < 0 {
			return good, nil
		}
		if try = (good + bad) / 2 / mib * mib; try == good || try == bad {
			return good, nil
		}
	}
}

// full says whether the image's own file system has no room left.
func full(image *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(image.Fd()), &st) == nil && st.Bavail*uint64(st.Frsize) < mib
}

func partition(a storage.Area, image *os.File, size int64, r recipe) (gpt.Partition, error) {
	p, err := gpt.Layout(size, r.sectorSize)
	if err != nil {
		return p, err
	}
	p.UUID, p.Name = r.partitionUUID, a.FullName
	return p, storage.SpaceFault("write partition table", gpt.Write(image, size, r.sectorSize, p, r.diskGUID))
}

// format makes the LUKS2 header with one keyslot per passphrase.
func format(ctx context.Context, a storage.Area, s *storage.Setup, w window, r recipe, passphrases []*secret.Bytes) (*luks2.Header, error) {
	const op = "format image"
	if len(passphrases) == 0 {
		return nil, fault.New(fault.InvalidArgs, op, errors.New("no passphrase"))
	}
	if r.keySize < 16 || r.keySize > 512 {
		return nil, fault.Newf(fault.InvalidArgs, op, "A volume key of %d bytes is out of range.", r.keySize)
	}
	key, err := secret.New(r.keySize)
	if err != nil {
		return nil, err
	}
	holdKey(s, key)
	if err := key.Use(func(b []byte) error { _, err := io.ReadFull(a.Rand, b); return err }); err != nil {
		return nil, fmt.Errorf("draw volume key: %w", err)
	}
	derivation := pbkdf(a)
	derivation.Costs = costs(a)
	defer keepCosts(a, derivation.Costs)
	a.Progress("format", 0, 0)
	h, err := luks2.Format(w, luks2.Params{
		Label: a.FullName, Subsystem: "systemd-home", UUID: r.luksUUID,
		Cipher: a.LUKS.Cipher, Mode: a.LUKS.CipherMode, KeySize: r.keySize,
		Hash: a.LUKS.PBKDFHash, SectorSize: r.sectorSize, PBKDF: derivation, Rand: a.Rand,
	}, key)
	if err != nil {
		return nil, storage.SpaceFault(op, err)
	}
	h.StopOn(ctx.Done())
	h.Observe(trace.From(ctx).Work)
	for i, p := range passphrases {
		memory.Prepare(derivation.Memory())
		if _, err := h.AddKeyslot(w, key, p, derivation); err != nil {
			return nil, storage.SpaceFault(fmt.Sprintf("add keyslot %d", i), err)
		}
	}
	return h, nil
}

// memoryCost bounds what the record asks for, in bytes, by half of this
// machine's memory, in KiB.
func memoryCost(want uint64) uint32 {
	kib := (want + 1023) / 1024
	if half := memory.Total() / 2; half > 0 {
		kib = min(kib, half)
	}
	return uint32(min(kib, 4<<20))
}

// newTopDirectory makes the user's directory in the file system on Work, as a
// subvolume where there are such, with the neutral owner.
func newTopDirectory(a storage.Area, fstype string) (*os.File, error) {
	top, err := os.Open(mounts.Work)
	if err != nil {
		return nil, err
	}
	defer func() { _ = top.Close() }()
	made := false
	if fstype == "btrfs" {
		if err := fsops.MakeSubvolume(top, a.FullName); err == nil {
			made = true
		} else {
			a.Log.Info("no subvolume, a directory instead", "error", err)
		}
	}
	if !made {
		if err := unix.Mkdirat(int(top.Fd()), a.FullName, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := topDirectory(a)
	if err != nil {
		return nil, err
	}
	err = errors.Join(root.Chmod(0o700), root.Chown(storage.NeutralOwner, storage.NeutralOwner))
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}
