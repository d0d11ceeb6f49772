package manager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/records"
)

// file systems of other machines, where a scan may hang (linux/magic.h)
var remote = map[uint32]bool{
	0x6969: true, 0xff534d42: true, 0xfe534d42: true, 0x517b: true, 0x0187: true, /* autofs */
	0x00c36400: true /* ceph */, 0x01021997: true, /* 9p */
}

// scanTimeout bounds how long an answer waits for a scan: who has thousands of
// images gets it all the same.
const scanTimeout = 5 * time.Second

// noted is a change below the home root.
type noted struct {
	name  string
	came  bool
	went  bool
	again bool // the watch does not tell everything any more
}

// watchRoot finds the images in the home root, first all, then those that come
// and go, until ctx ends.
func (m *Manager) watchRoot(ctx context.Context) {
	root := m.Layout.HomeRoot
	if m.Devices != nil {
		var devices sync.WaitGroup
		defer devices.Wait()
		listening := make(chan struct{})
		devices.Go(func() { m.watchDevices(ctx, sync.OnceFunc(func() { close(listening) })) })
		<-listening
	}
	for first := true; ctx.Err() == nil; first = false {
		var waiting []chan struct{}
		_ = m.ask(ctx, func() { waiting, m.scanned = m.scanned, nil })
		if m.Devices != nil {
			m.scanDevices(ctx)
		}
		var st unix.Statfs_t
		watchable := unix.Statfs(root, &st) == nil && !remote[uint32(st.Type)]
		var events <-chan noted
		stop := func() {}
		if watchable {
			var err error
			// Watch first, scan then: nothing falls in between.
			if events, stop, err = watchDir(root); err != nil {
				m.log.Warn("cannot watch the home root", "path", root, "error", err)
				stop = func() {}
			}
			m.scan(ctx, root)
		} else if first {
			m.log.Info("the home root is missing or on another machine, homes in it are found by their records only", "path", root)
		}
		if !first {
			_ = m.ask(ctx, m.collectAll)
		}
		for _, done := range waiting {
			close(done)
		}
		m.readyOnce.Do(func() {
			_ = m.ask(ctx, func() { close(m.ready) })
		})
		m.follow(ctx, root, events)
		stop()
	}
}

func (m *Manager) collectAll() {
	for _, e := range m.homes {
		m.checkReferences(e)
		m.collect(e)
	}
}

// follow handles changes until everything is to be looked at anew.
func (m *Manager) follow(ctx context.Context, root string, events <-chan noted) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.rescan:
			return
		case n, ok := <-events:
			if !ok || n.again {
				return
			}
			path := filepath.Join(root, n.name)
			if n.came {
				m.discover(ctx, path)
			}
			if n.went {
				_ = m.ask(ctx, func() {
					for _, e := range m.homes {
						if e.ImagePath == path {
							m.collect(e)
						}
					}
				})
			}
		}
	}
}

func (m *Manager) scan(ctx context.Context, root string) {
	list, err := os.ReadDir(root)
	if err != nil {
		m.log.Warn("cannot scan the home root", "error", err)
		return
	}
	for _, d := range list {
		path := filepath.Join(root, d.Name())
		if leftover(d.Name()) {
			m.sweep(path)
			continue
		}
		m.discover(ctx, path)
	}
}

// candidate is an image by its looks. Its content was not read.
type candidate struct {
	name, realm, storage, path string
	owner                      uint32 // of a directory
	sysPath                    string // of a device
}

// assess says whether path looks like a home: NAME[@REALM].home, a regular
// file, or .homedir, a directory. Links are followed.
func assess(path string) (candidate, bool) {
	c := candidate{path: path}
	stem, file := strings.CutSuffix(filepath.Base(path), ".home")
	if !file {
		var dir bool
		if stem, dir = strings.CutSuffix(filepath.Base(path), ".homedir"); !dir {
			return c, false
		}
	}
	if !c.named(stem) {
		return c, false
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return c, false
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case file && kind == unix.S_IFREG:
		c.storage = "luks"
	case !file && kind == unix.S_IFDIR:
		c.storage, c.owner = directoryStorage(path, st.Ino), st.Uid
	default:
		return c, false
	}
	return c, true
}

// directoryStorage tells the kinds of directory apart: the top of a btrfs
// subvolume has inode 256, an encrypted directory answers for its policy, or has
// keyslots where the kernel knows of no policies.
func directoryStorage(path string, inode uint64) string {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) == nil && uint32(fs.Type) == unix.BTRFS_SUPER_MAGIC && inode == 256 {
		return "subvolume"
	}
	if hasPolicy(path) || hasKeyslot(path) {
		return "fscrypt"
	}
	return "directory"
}

// discover takes in what looks like a home at path.
func (m *Manager) discover(ctx context.Context, path string) {
	if c, ok := assess(path); ok {
		_ = m.found(ctx, c)
	}
}

// firstUID is the one that allocateUID tries first.
func firstUID(start uint32, name string) (first uint32) {
	_, _ = records.AllocateUID(start, name, func(uid uint32) bool { first = uid; return false }, nil)
	return first
}

// allocateUID chooses a UID that nobody has: start if it is in the range, the
// one that the name hashes to, or a random one. known says of which it is known
// that no account has it.
func (m *Manager) allocateUID(ctx context.Context, start uint32, name string, known func(uint32) bool) (uint32, error) {
	used := map[uint32]bool{}
	if err := m.ask(ctx, func() {
		for _, e := range m.homes {
			used[e.UID] = true
		}
	}); err != nil {
		return 0, err
	}
	return records.AllocateUID(start, name, func(uid uint32) bool {
		if used[uid] {
			return true
		}
		if known(uid) {
			return false
		}
		kind, _ := m.account(ctx, fmt.Sprint(uid))
		return kind != ""
	}, m.Rand)
}

// watchDir reports what comes and goes in a directory. After stop, and when
// the watch is lost, the channel is closed.
func watchDir(path string) (<-chan noted, func(), error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	const came, went = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO, unix.IN_DELETE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM
	if _, err := unix.InotifyAddWatch(fd, path, came|went|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR); err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	out := make(chan noted)
	quit := make(chan struct{})
	go func() {
		defer close(out)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					// Whoever follows looks at everything anew.
					select {
					case out <- noted{again: true}:
					case <-quit:
					}
				}
				return
			}
			for _, e := range inotifyEvents(buf[:n]) {
				n := noted{
					name: e.name, came: e.mask&came != 0, went: e.mask&went != 0,
					again: e.mask&(unix.IN_Q_OVERFLOW|unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0,
				}
				select {
				case out <- n:
				case <-quit:
					return
				}
			}
		}
	}()
	return out, func() { close(quit); _ = f.Close() }, nil
}

type inotifyEvent struct {
	mask uint32
	name string
}

// inotifyEvents splits what a read gave (struct inotify_event of inotify(7):
// wd, mask, cookie, len, then len bytes of name, NUL-padded).
func inotifyEvents(b []byte) (list []inotifyEvent) {
	for len(b) >= unix.SizeofInotifyEvent {
		n := int(binary.NativeEndian.Uint32(b[12:]))
		if n > len(b)-unix.SizeofInotifyEvent {
			break
		}
		name := b[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+n]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		list = append(list, inotifyEvent{binary.NativeEndian.Uint32(b[4:]), string(name)})
		b = b[unix.SizeofInotifyEvent+n:]
	}
	return list
}

// hasPolicy asks for an fscrypt policy of any version (FS_IOC_GET_ENCRYPTION_POLICY_EX,
// linux/fscrypt.h).
func hasPolicy(path string) bool {
	d, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = d.Close() }()
	return getPolicy(d) == nil
}
