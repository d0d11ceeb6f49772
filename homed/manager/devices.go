package manager

import (
	"cmp"
	"context"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"hearth/homed/udev"
	"hearth/records"
)

// homePartition is the type of a partition that holds a home.
const homePartition = "773f91ef-66d4-49b5-bd83-d683bf40ad16"

// Devices knows the block devices of the machine.
type Devices interface {
	// Blocks returns those that are there and were looked at.
	Blocks() ([]udev.Device, error)
	// Events tells of those that come and go, until ctx ends or some were lost;
	// then the channel is closed.
	Events(ctx context.Context) (<-chan udev.Event, error)
}

// watchDevices follows block devices until ctx ends. It calls listening once
// nothing that happens later is missed.
func (m *Manager) watchDevices(ctx context.Context, listening func()) {
	for ctx.Err() == nil {
		events, err := m.Devices.Events(ctx)
		listening()
		if err != nil {
			m.log.Warn("homes on devices are found at the start only", "error", err)
			return
		}
		for e := range events {
			if e.Removed {
				m.unplugged(ctx, e.SysPath)
			} else {
				m.plugged(ctx, e.Device)
			}
		}
		m.Rescan()
	}
}

func (m *Manager) scanDevices(ctx context.Context) {
	list, err := m.Devices.Blocks()
	if err != nil {
		m.log.Warn("cannot look for homes on devices", "error", err)
		return
	}
	for _, d := range list {
		m.plugged(ctx, d)
	}
}

// assessDevice says whether a device is a partition for homes with something in
// it, by what udev read there.
func (m *Manager) assessDevice(d udev.Device) (candidate, bool) {
	c := candidate{storage: "luks", sysPath: d.SysPath}
	p := d.Properties
	if p["ID_PART_ENTRY_SCHEME"] != "gpt" || !strings.EqualFold(p["ID_PART_ENTRY_TYPE"], homePartition) {
		return c, false
	}
	id, err := uuid.Parse(p["ID_FS_UUID"])
	if err != nil || !c.named(p["ID_PART_ENTRY_NAME"]) {
		return c, false
	}
	c.path = filepath.Join(m.Layout.DeviceLinks, id.String())
	return c, true
}

// plugged takes note of a device that is there.
func (m *Manager) plugged(ctx context.Context, d udev.Device) {
	c, ok := m.assessDevice(d)
	if !ok || m.found(ctx, c) != nil {
		return
	}
	_ = m.ask(ctx, func() {
		if e := m.names[c.name]; e != nil && e.ImagePath == c.path {
			e.sysPath, e.seat = c.sysPath, cmp.Or(d.Properties["ID_SEAT"], "seat0")
			m.say(e)
		}
	})
}

// unplugged looks at the homes that were on a device, or at all where nobody
// knows which those are.
func (m *Manager) unplugged(ctx context.Context, sysPath string) {
	_ = m.ask(ctx, func() {
		var there []*entry
		for _, e := range m.homes {
			if e.sysPath == sysPath {
				there = append(there, e)
			}
		}
		if len(there) == 0 {
			for _, e := range m.homes {
				there = append(there, e)
			}
		}
		for _, e := range there {
			m.say(e)
			m.collect(e)
		}
	})
}

// named splits NAME[@REALM] and reports whether both can be a user's.
func (c *candidate) named(full string) bool {
	var realm bool
	c.name, c.realm, realm = strings.Cut(full, "@")
	return records.ValidName(c.name) && (!realm || records.ValidRealm(c.realm))
}
