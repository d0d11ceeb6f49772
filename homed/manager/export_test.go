package manager

import (
	"log/slog"
	"os"

	"hearth/homed/config"
	"hearth/records"
	"hearth/storage/presence"
)

// LoadRecord reads the record of that name from the disk. It is for a manager
// that is not running.
func (m *Manager) LoadRecord(name string) (err error) {
	m.handle(func() { _, err = m.loadRecord(name, &presence.Survey{}) })
	return err
}

// Strangers is the limit on callers whom nobody authorized.
type Strangers struct{ s strangers }

// Admit counts an attempt.
func (s *Strangers) Admit(v records.View, uid uint32, now uint64) (uint64, bool) {
	return s.s.admit(v, uid, now)
}

// ReplaceFile puts a file in place as a whole.
var ReplaceFile = replaceFile

// ReplaceFileFromReserve is ReplaceFile with what was set aside in that
// directory.
func ReplaceFileFromReserve(dir string) func(string, []byte, os.FileMode) error {
	m := &Manager{Options: Options{Layout: config.Layout{RecordDir: dir}}, log: slog.New(slog.DiscardHandler)}
	m.setAside()
	return m.replaceFromReserve
}

// ReserveSize is what is set aside, in bytes.
const ReserveSize = reserveSize

// Made is how many answers had to be put together.
func (m *Manager) Made() int {
	m.texts.mu.Lock()
	defer m.texts.mu.Unlock()
	return m.texts.made
}

// Kept is how many bytes of answers are kept, as counted and as they are.
func (m *Manager) Kept() (size, really int) {
	m.texts.mu.Lock()
	defer m.texts.mu.Unlock()
	for _, t := range m.texts.kept {
		really += t.weight()
	}
	return m.texts.size, really
}

// MaxTexts is the most that is kept.
const MaxTexts = maxTexts

// ReadRegular reads the file of a record.
var ReadRegular = readRegular

// The names of what was never finished.
var Leftover, UnfinishedRecord, UnfinishedBlobs = leftover, unfinishedRecord, unfinishedBlobs

// Getent asks the system's name service.
type Getent = getent
