package crashtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The log that the kernel's log-writes target keeps (drivers/md/dm-log-writes.c),
// little endian. Sector 0:
//
//	 0  8  magic
//	 8  8  version, 1
//	16  8  number of entries
//	24  4  bytes of a sector
//
// From sector 1 on the entries, each a sector and what was written, in whole
// sectors; a mark has its text behind the 32 bytes, a discard has no data:
//
//	 0  8  first sector
//	 8  8  number of sectors
//	16  8  flags
//	24  8  bytes of data in the entry's own sector
//
// A write enters the log when it is complete and a flush comes after it, so the
// order within such a run is that of completion.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	logFlush   = 1 << 0
	logFUA     = 1 << 1
	logDiscard = 1 << 2
	logMark    = 1 << 3

	logHead    = 32
	maxEntry   = 64 << 20 // bytes
	maxSectors = 1 << 24
)

// ReadWritesLog reads the log of a log-writes target that has ended.
func ReadWritesLog(d io.ReaderAt) (Log, error) {
	le := binary.LittleEndian
	head := make([]byte, 28)
	if _, err := d.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read log of writes: %w", err)
	}
	entries, sector := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	if le.Uint64(head) != logMagic || le.Uint64(head[8:]) != logVersion || sector < 512 || sector > 4096 {
		return nil, errors.New("read log of writes: not such a log")
	}
	var log Log
	at := sector
	b := make([]byte, sector)
	for i := range entries {
		if _, err := d.ReadAt(b, at); err != nil {
			return nil, fmt.Errorf("read entry %d of the log of writes: %w", i, err)
		}
		at += sector
		first, count, flags, inline := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
		if first > 1<<40 || count > maxSectors || int64(count)*sector > maxEntry || inline > uint64(sector-logHead) {
			return nil, fmt.Errorf("read entry %d of the log of writes: %d sectors at %d", i, count, first)
		}
		s := Step{At: int64(first) * sector, Flush: flags&logFlush != 0, Now: flags&logFUA != 0}
		n := int64(count) * sector
		switch {
		case flags&logMark != 0:
			s = Step{Mark: string(b[logHead : logHead+inline])}
		case flags&logDiscard != 0:
			// Whatever the disk shows there afterwards, zeros are allowed.
			s.Data = make([]byte, n)
		case n > 0:
			s.Data = make([]byte, n)
			if _, err := d.ReadAt(s.Data, at); err != nil {
				return nil, fmt.Errorf("read entry %d of the log of writes: %w", i, err)
			}
			at += n
		}
		log = append(log, s)
	}
	return log, nil
}
