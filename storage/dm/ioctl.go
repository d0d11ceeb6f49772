package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

// replyRoom is the room for answers of variable length; the kernel says
// BUFFER_FULL if it is not enough, which for one target it always is.
const replyRoom = 16 << 10

// request is what goes into one ioctl. The kernel takes
//
//	  0  version  3 u32: 4.0.0, what we ask for at least
//	 12  size of the whole buffer, u32
//	 16  start of the data, u32: 312
//	 20  number of targets, u32
//	 24  open count, u32 (answers only)
//	 28  flags, u32
//	 32  event number, u32: here 0, which is "no udev cookie"
//	 40  device number, u64 (answers only)
//	 48  name, 128 bytes, NUL terminated
//	176  uuid, 129 bytes, NUL terminated
//	312  data
//
// in the byte order of the machine.
type request struct {
	name, uuid string
	flags      uint32
	targets    uint32
	data       []byte
	room       int // least size of the data part, for the answer
}

type reply struct {
	head unix.DmIoctl
	data []byte
}

// encode returns the buffer of a request, aligned for unix.DmIoctl.
func (r request) encode() []byte {
	size := unix.SizeofDmIoctl + max(len(r.data), r.room)
	words := make([]uint64, (size+7)/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)[:size]
	head := (*unix.DmIoctl)(unsafe.Pointer(&words[0]))
	head.Version = [3]uint32{4, 0, 0}
	head.Data_size = uint32(size)
	head.Data_start = unix.SizeofDmIoctl
	head.Target_count = r.targets
	head.Flags = r.flags
	copy(head.Name[:len(head.Name)-1], r.name)
	copy(head.Uuid[:len(head.Uuid)-1], r.uuid)
	copy(buf[unix.SizeofDmIoctl:], r.data)
	return buf
}

// encodeTarget lays out a table of one target:
//
//	 0  first sector, u64
//	 8  sectors, u64
//	16  status, i32
//	20  offset of the next target, u32: the length of this one
//	24  type, 16 bytes, NUL terminated
//	40  parameters, NUL terminated, filled up to 8 bytes
func encodeTarget(sectors uint64, target, params string) []byte {
	size := (unix.SizeofDmTargetSpec + len(params) + 1 + 7) &^ 7
	b := make([]byte, size)
	binary.NativeEndian.PutUint64(b[8:], sectors)
	binary.NativeEndian.PutUint32(b[20:], uint32(size))
	copy(b[24:39], target)
	copy(b[40:], params)
	return b
}

func decodeTarget(b []byte) (sectors uint64, target, params string, err error) {
	if len(b) < unix.SizeofDmTargetSpec {
		return 0, "", "", fmt.Errorf("table of %d bytes", len(b))
	}
	return binary.NativeEndian.Uint64(b[8:]), cString(b[24:40]), cString(b[40:]), nil
}

// encodeMessage lays out a message to the target at sector 0: the sector, u64,
// and the text, NUL terminated.
func encodeMessage(text string) []byte {
	b := make([]byte, 8, 8+len(text)+1)
	b = append(b, text...)
	return append(b, 0)
}

// decodeDeps reads a count, u32, four bytes of nothing, and device numbers,
// u64 each.
func decodeDeps(b []byte) (uint64, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("answer of %d bytes", len(b))
	}
	if n := binary.NativeEndian.Uint32(b); n != 1 || len(b) < 16 {
		return 0, fmt.Errorf("%d devices instead of one", n)
	}
	return binary.NativeEndian.Uint64(b[8:]), nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// call does one ioctl, on the thread of its caller. Faults: NotSupported if
// there is no device mapper.
func call(op string, code uintptr, r request) (*reply, error) {
	var ctl int
	err := retry(func() (err error) {
		ctl, err = unix.Open(Dir+"/"+unix.DM_CONTROL_NODE, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		e := fault.Newf(fault.NotSupported, op, "This kernel has no device mapper.")
		e.Err = err
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("%s: open device mapper: %w", op, err)
	}
	defer func() { _ = unix.Close(ctl) }()
	var buf []byte
	err = retry(func() error {
		buf = r.encode() // anew: the kernel writes its answer over it
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ctl), code, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	out := &reply{head: *(*unix.DmIoctl)(unsafe.Pointer(&buf[0]))}
	if out.head.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return nil, fmt.Errorf("%s: the answer is longer than %d bytes", op, len(buf))
	}
	if from, to := int(out.head.Data_start), int(out.head.Data_size); from <= to && to <= len(buf) {
		out.data = buf[from:to]
	}
	return out, nil
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
