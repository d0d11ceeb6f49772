package luks

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/storage"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
)

// intentMark is the extended attribute on an image whose size is being changed:
// "grow FROM TO" or "shrink FROM TO", in bytes of the file. It is durable before
// the first step and goes after the last. systemd-homed does not know it, and
// opens such an image like any other.
const intentMark = "user.home-resize"

// An intent is a change of size that is under way, or was cut off.
type intent struct{ from, to int64 }

func (i intent) shrinks() bool { return i.to < i.from }

func (i intent) String() string {
	word := "grow"
	if i.shrinks() {
		word = "shrink"
	}
	return fmt.Sprintf("%s %d %d", word, i.from, i.to)
}

// parseIntent reads what String wrote. Whoever had the image may have changed
// it, so nothing rests on the numbers but whether they make sense.
func parseIntent(text string) (intent, error) {
	var word string
	var i intent
	if n, err := fmt.Sscanf(text, "%s %d %d", &word, &i.from, &i.to); err != nil || n != 3 || i.from <= 0 || i.to <= 0 || i.String() != text {
		return intent{}, fmt.Errorf("the note of a resize makes no sense: %.60q", text)
	}
	return i, nil
}

// shrinkFlag in the LUKS2 header says the same of a home on a block device,
// where there is no attribute. What it was to become does not matter then.
const shrinkFlag = "hearth-shrinking"

// note makes the intent durable. A file system without user attributes keeps
// none: a cut then leaves a longer file, which opens all the same.
func (c *container) note(i intent) error {
	if c.device {
		// A cut while growing is seen by the sizes.
		return c.header.SetFlag(c.window, shrinkFlag, i.shrinks())
	}
	image := c.image
	err := unix.Fsetxattr(int(image.Fd()), intentMark, []byte(i.String()), 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("note resize: %w", err)
	}
	return image.Sync()
}

// noted returns the intent on the image, if there is one.
func noted(a storage.Area, image *os.File) *intent {
	var buf [128]byte
	n, err := unix.Fgetxattr(int(image.Fd()), intentMark, buf[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	var i intent
	if err == nil {
		i, err = parseIntent(string(buf[:n]))
	}
	if err != nil {
		a.Log.Warn("ignoring the note of a resize", "error", err)
		return nil
	}
	return &i
}

// forgetIntent takes the note away, after what was done is durable.
func (c *container) forgetIntent() error {
	c.intent = nil
	if c.device {
		return c.header.SetFlag(c.window, shrinkFlag, false)
	}
	image := c.image
	if err := image.Sync(); err != nil {
		return fmt.Errorf("end resize: %w", err)
	}
	err := unix.Fremovexattr(int(image.Fd()), intentMark)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end resize: %w", err)
	}
	return image.Sync()
}

// A resize that was cut off left one of these, by what was written last:
//
//	grow     the file is longer than the table says   the file is cut again
//	         the file system is smaller than its room  it grows
//	shrink   the file system is smaller than its room  it grows back
//	         the file is longer than the table says    the file is cut
//	         the kernel's partition is, too            it is told
//
// So what is on the disk says what to do, without regard to where it was going;
// no step moves data. The first half, below, is done before the devices are
// made, the second by fillRoom when the file system is mounted. systemd-homed
// leaves small file systems too, which its own next resize takes for done.

// settleFile cuts off what is behind the end of the disk, if a resize left it.
func (c *container) settleFile(a storage.Area) error {
	if c.device {
		if c.header.Flag(shrinkFlag) {
			a.Log.Info("completing a shrink that was cut off")
			t, err := c.openTable(a)
			if err != nil {
				return err
			}
			// No size of its own: only that it is a shrink matters.
			c.intent = &intent{from: c.window.size}
			return t.close()
		}
		return nil
	}
	c.intent = noted(a, c.image)
	if c.intent == nil {
		return nil
	}
	a.Log.Info("completing a resize that was cut off", "resize", c.intent.String())
	return c.cutTail()
}

// cutTail makes the file end where the disk does.
func (c *container) cutTail() error {
	if c.device {
		return nil
	}
	disk := gpt.Disk(c.image, c.size, c.part)
	if c.part.Offset == 0 || disk >= c.size {
		return nil
	}
	if err := errors.Join(c.image.Truncate(disk), c.image.Sync()); err != nil {
		return storage.SpaceFault("cut image", err)
	}
	c.size = disk
	return nil
}

// roomSlack is what a file system may leave unused by its own nature, in bytes:
// xfs ends with a whole allocation group.
const roomSlack = 16 * mib

// fillRoom has the mounted file system use its whole room. That it cannot is
// only told: its files are all there.
func (c *container) fillRoom(a storage.Area, s *storage.Setup, node string) {
	room := c.room()
	span, err := span(s, node)
	switch slack := room - span; {
	case err != nil:
		a.Log.Warn("cannot tell whether the file system uses its room", "error", err)
		return
	case slack >= roomSlack, c.intent != nil && slack >= unit:
		a.Log.Info("the file system is smaller than its room, growing it", "bytes", span, "room", room)
		if err := fsops.Grow(s.Found.FileSystemType, s.Root, room); err != nil {
			a.Log.Warn("the file system stays smaller than its room", "error", err)
			return
		}
	}
	if c.intent == nil {
		return
	}
	if err := c.forgetIntent(); err != nil {
		a.Log.Warn("the note of a resize stays", "error", err)
	}
}
