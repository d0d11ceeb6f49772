package luks

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
	"hearth/storage/keyring"
	"hearth/storage/luks2"
	"hearth/storage/memory"
	"hearth/storage/mounts"
)

// Open implements storage.Backend. Up to the moment that the header's record
// is admitted it only reads.
func (Backend) Open(ctx context.Context, a storage.Area, c *storage.Credentials) (_ *storage.Setup, err error) {
	s := &storage.Setup{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	t := trace.From(ctx)
	t.Step("image")
	img, err := openImage(a, s)
	if err != nil {
		return nil, err
	}
	if err := checkMapped(ctx, a); err != nil {
		return nil, err
	}
	t.Step("header")
	if err := img.read(ctx, a, s); err != nil {
		return nil, err
	}
	t.Step("unlock")
	if err := img.unlock(ctx, a, s, c); err != nil {
		return nil, err
	}
	if a.HeaderAlone && !a.Active {
		return s, nil
	}
	if !img.device && a.HandLock != nil && !a.HaveLock {
		if err := a.HandLock(img.image); err != nil {
			return nil, fmt.Errorf("hand over image lock: %w", err)
		}
	}
	s.Private = &opened{area: a, image: img, window: img.window, header: img.header, pbkdf: pbkdf(a)}
	if a.Active {
		s.Found.FileSystemUUID = a.Bound.FileSystemUUID
		err = storage.Adopt(a, s)
	} else {
		err = img.setUp(ctx, a, s)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// checkMapped compares whether the device is there with whether the home is.
func checkMapped(ctx context.Context, a storage.Area) error {
	if !a.Active {
		return clearMapped(ctx, a)
	}
	if !dm.Exists(deviceName(a)) {
		return fault.New(fault.HomeBusy, "look for mapped device", errors.New("the home is mounted without its device"))
	}
	return nil
}

// clearMapped makes way for the mapped device of a home that is not active. One
// that its last user has left is on its way out, which is waited for; one
// that nobody uses was left by a worker that was killed before it could give it
// to a user, and would keep the home shut for ever. Call it with the image
// locked, where there is an image. Fault: FileExists if the device is in use.
func clearMapped(ctx context.Context, a storage.Area) error {
	name := deviceName(a)
	if !dm.Exists(name) {
		return nil
	}
	err := dm.Remove(ctx, name, false)
	if err == nil {
		err = dm.WaitGone(ctx, name)
	}
	if err != nil {
		return fault.New(fault.FileExists, "look for mapped device", fmt.Errorf("%s/%s exists: %w", dm.Dir, name, err))
	}
	return nil
}

// read finds and reads the header, and compares the container with what the
// binding pins.
func (c *container) read(ctx context.Context, a storage.Area, s *storage.Setup) error {
	part, err := gpt.Find(c.image, c.size, a.FullName, a.Bound.PartitionUUID)
	if err != nil {
		return err
	}
	c.part = part
	c.window = window{file: c.image, offset: part.Offset, size: part.Size}
	if c.device && part.Offset != 0 {
		if err := c.enterPartition(s); err != nil {
			return err
		}
	}
	read := trace.From(ctx).Work(trace.Header)
	c.header, err = luks2.Read(c.window, c.window.size)
	read()
	if err != nil {
		return err
	}
	c.header.Observe(trace.From(ctx).Work)
	cipher, mode, keySize := c.header.Cipher()
	for _, w := range []struct {
		what, bound, found string
	}{
		{"LUKS UUID", a.Bound.LUKSUUID, c.header.UUID()},
		{"cipher", a.Bound.LUKSCipher, cipher},
		{"cipher mode", a.Bound.LUKSCipherMode, mode},
	} {
		if w.bound != "" && !strings.EqualFold(w.bound, w.found) {
			return wrongMedium(w.what, w.found, w.bound)
		}
	}
	if n := a.Bound.LUKSVolumeKeySize; n > 0 && keySize > 0 && n != keySize {
		return wrongMedium("volume key size", fmt.Sprint(keySize), fmt.Sprint(n))
	}
	s.Found.PartitionUUID, s.Found.LUKSUUID = part.UUID, c.header.UUID()
	s.Found.LUKSCipher, s.Found.LUKSCipherMode, s.Found.LUKSVolumeKeySize = cipher, mode, keySize
	return nil
}

func wrongMedium(what, found, bound string) error {
	return fault.New(fault.WrongMedium, "compare image with binding", fmt.Errorf("%s is %s, bound to %s", what, found, bound))
}

// unlock obtains the volume key and has the record in the token admitted.
func (c *container) unlock(ctx context.Context, a storage.Area, s *storage.Setup, cred *storage.Credentials) error {
	c.header.StopOn(ctx.Done()) // also for what is done with it later
	switch {
	case a.KeptKey:
		key, err := keyring.Get(keyName(a))
		if err != nil {
			return fault.New(fault.BadPassword, "fetch volume key", err)
		}
		holdKey(s, key)
		if err := c.header.CheckKey(key); err != nil {
			return err
		}
	case cred.VolumeKey != nil:
		key, err := cred.VolumeKey.Clone()
		if err != nil {
			return fmt.Errorf("copy volume key: %w", err)
		}
		holdKey(s, key)
		if err := c.header.CheckKey(key); err != nil {
			return err
		}
	case len(cred.Passphrases) == 0:
		return fault.New(fault.BadPassword, "open keyslot", errors.New("no passphrase given"))
	default:
		c.header.SetMemoryLimit(memory.Total()) // more would end in the out-of-memory killer
		memory.Prepare(c.header.KDFMemory())
		a.Progress("unlock", 0, 0)
		key, _, err := c.header.Unlock(c.window, cred.Passphrases)
		if err != nil {
			return err
		}
		holdKey(s, key)
		s.Found.LUKSVolumeKeySize = key.Len()
	}
	record, err := c.header.HomedToken(s.VolumeKey)
	if err != nil {
		return err
	}
	if a.Admit != nil {
		if err := a.Admit(record); err != nil {
			return err
		}
	}
	return nil
}

// setUp makes the devices, checks and mounts the file system, and opens the
// user's directory.
func (c *container) setUp(ctx context.Context, a storage.Area, s *storage.Setup) error {
	t := trace.From(ctx)
	t.Step("mark and reserve")
	if err := c.markDirty(a, s); err != nil {
		return err
	}
	if c.header.Damaged != luks2.Neither {
		a.Log.Warn("repairing the LUKS2 header", "copy", c.header.Damaged.String())
		if err := c.header.Repair(c.window); err != nil {
			return storage.SpaceFault("repair header", err)
		}
	}
	if err := c.settleFile(a); err != nil {
		return err
	}
	if err := c.preallocate(a, s); err != nil {
		return err
	}
	t.Step("loop")
	var major, minor uint32
	if c.device && c.window.offset == 0 {
		var err error
		if major, minor, err = deviceNumbers(c.window.file); err != nil {
			return fault.New(fault.IOError, "map image", err)
		}
	} else {
		l, err := attach(ctx, s, c.window, c.header.SectorSize())
		if err != nil {
			return err
		}
		major, minor = l.Major, l.Minor
	}
	t.Step("mapped device")
	node, err := mapDevice(ctx, a, s, c.header, c.window.size, major, minor)
	if err != nil {
		return err
	}
	keepKey(a, s)
	t.Step("look at file system")
	if err := probe(a, s, node); err != nil {
		return err
	}
	if err := c.check(ctx, s, node); err != nil {
		return err
	}
	t.Step("mount")
	if err := mount(a, s, node); err != nil {
		return err
	}
	root, err := topDirectory(a)
	if err != nil {
		return err
	}
	enter(a, s, root)
	c.fillRoom(a, s, node)
	if a.LUKS.Discard {
		trim(a, s.Root, "home was not trimmed")
	}
	return nil
}

// check repairs the file system where that is safe without asking. A shrink
// that was cut off leaves an ext4 that needs more.
func (c *container) check(ctx context.Context, s *storage.Setup, node string) error {
	fstype := s.Found.FileSystemType
	err := fsops.Check(ctx, fstype, node)
	if err != nil && fstype == "ext4" && c.intent != nil && c.intent.shrinks() {
		err = fsops.Repair(ctx, node)
	}
	if err != nil {
		return fmt.Errorf("check file system: %w", err)
	}
	return nil
}

// enter makes root the setup's, closes it before the unmount, and trims it
// before that where free blocks are not to be kept while nobody is in.
func enter(a storage.Area, s *storage.Setup, root *os.File) {
	s.Enter(root)
	s.Undo("sync home", func(context.Context) error {
		if a.LUKS.OfflineDiscard {
			trim(a, s.Root, "home was not trimmed")
		}
		return mounts.SyncFS(s.Root)
	})
}

func mount(a storage.Area, s *storage.Setup, node string) error {
	if err := mountNode(a, s.Found.FileSystemType, node); err != nil {
		return err
	}
	// Where the home was published it has a mount of its own by then.
	s.Finally("unmount work directory", func(context.Context) error { return mounts.UnmountTree(mounts.Work) })
	return nil
}

func mountNode(a storage.Area, fstype, node string) error {
	data, flags := fsops.MountOptions(fstype, a.LUKS.Discard, a.LUKS.ExtraMountOptions)
	mended, err := fsops.MountMended(fstype, node, func() error {
		return mounts.Mount(node, mounts.Work, fstype, flags|a.MountFlags(), data)
	})
	if mended {
		a.Log.Warn("a power cut had torn the superblock of the home's btrfs, which is mended", "HOME_USER", a.UserName)
	}
	return err
}

// probe finds the file system's type and UUID. Nothing but what homes are made
// of is given to the kernel to parse.
func probe(a storage.Area, s *storage.Setup, node string) error {
	f, err := os.Open(node)
	if err != nil {
		return fault.New(fault.IOError, "probe file system", err)
	}
	defer func() { _ = f.Close() }()
	fstype, uuid, err := fsops.Probe(f)
	if err != nil {
		return err
	}
	if a.Bound.FileSystemUUID != "" && !strings.EqualFold(uuid, a.Bound.FileSystemUUID) {
		return wrongMedium("file system UUID", uuid, a.Bound.FileSystemUUID)
	}
	s.Found.FileSystemType, s.Found.FileSystemUUID = fstype, uuid
	return nil
}

// markDirty says on the image that it may be changing.
func (c *container) markDirty(a storage.Area, s *storage.Setup) error {
	if c.device {
		return nil
	}
	set, err := mounts.SetDirty(c.image)
	if set {
		// One that was there before stays: only a deactivation in order
		// proves that nothing is left of what set it.
		s.Undo("clear dirty mark", func(context.Context) error { return mounts.ClearDirty(c.image) })
	}
	return storage.SpaceFault("mark image", err)
}

// preallocate reserves the blocks of the image while it is in use, and again
// after it was, as the record asks. A full disk does not keep a user out: the
// home then runs on what is there.
func (c *container) preallocate(a storage.Area, s *storage.Setup) error {
	if c.device || a.LUKS.Discard {
		return nil
	}
	if !a.LUKS.OfflineDiscard {
		s.Undo("reserve image", func(context.Context) error {
			reserve(a, c.image, c.size)
			return nil
		})
	}
	if a.Preallocate {
		reserve(a, c.image, c.size)
	}
	return nil
}

// spare is what reserving an image leaves free on the file system below, in
// bytes: others need to make a directory or save a record there.
const spare = 4 * mib

// reserve allocates all blocks of an image of size bytes; that it cannot is
// only told. It looks for room first: a fallocate that fails half way keeps
// what it got, which would take the last free block from everybody.
func reserve(a storage.Area, image *os.File, size int64) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(int(image.Fd()), &st) == nil {
		held := min(uint64(max(st.Blocks, 0)), math.MaxInt64/512) * 512
		if held >= uint64(size) {
			return
		}
		if unix.Fstatfs(int(image.Fd()), &fs) == nil {
			hi, free := bits.Mul64(uint64(fs.Frsize), fs.Bavail)
			if hi == 0 && free < uint64(size)-held+spare {
				a.Log.Warn("not enough disk space to reserve the whole image, it stays sparse", "HOME_USER", a.UserName, "free", free, "missing", uint64(size)-held)
				return
			}
		}
	}
	err := fallocate(image, unix.FALLOC_FL_KEEP_SIZE, size)
	switch {
	case err == nil, errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
	case errors.Is(err, unix.ENOSPC):
		a.Log.Warn("not enough disk space to reserve the whole image, it stays sparse", "HOME_USER", a.UserName, "error", err)
	default:
		a.Log.Warn("cannot reserve the image", "HOME_USER", a.UserName, "error", err)
	}
}

func fallocate(f *os.File, mode uint32, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), mode, 0, size)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
