package manager

import (
	"cmp"
	"math"
	"math/bits"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/records"
)

// What balancing goes by, as systemd-homed has it.
const (
	poolWeight    = 20   // of what is left to the file system around the homes
	shareUnit     = 4096 // bytes
	worthOf       = 20   // a change of less than this part of a size is worth nothing
	balanceFirst  = 2 * time.Minute
	balanceLeast  = time.Minute
	balanceMost   = 15 * time.Minute
	balanceScales = 26 // powers of two from the smallest share that counts to the largest
	balanceFrom   = 22 // the smallest share that counts, a power of two
	busyWait      = time.Second
)

// A portion is one home's part in the balance. Sizes are in bytes.
type portion struct {
	name                      string
	weight                    uint64
	size, used, free, atLeast uint64
	goal                      uint64
}

// divide gives each home what it uses and a part, by weight, of all that is
// free, and says how soon that is worth another look. The portions are brought
// in the order of weight and name.
func divide(free uint64, list []*portion) time.Duration {
	weights := uint64(poolWeight)
	for _, p := range list {
		free += min(p.free, math.MaxUint64-free)
		weights += p.weight
	}
	slices.SortFunc(list, func(a, b *portion) int {
		return cmp.Or(cmp.Compare(a.weight, b.weight), strings.Compare(a.name, b.name))
	})
	smallest := uint64(math.MaxUint64)
	worth := false
	for _, p := range list {
		hi, lo := bits.Mul64(free/shareUnit, p.weight)
		share, _ := bits.Div64(hi, lo, weights)
		share *= shareUnit
		free -= share
		weights -= p.weight
		smallest = min(smallest, share)
		p.goal = max(p.used+min(share, math.MaxUint64-1-p.used), p.atLeast)
		worth = worth || max(p.goal, p.size)-min(p.goal, p.size) >= max(p.size/worthOf, 1)
	}
	if !worth {
		for _, p := range list {
			p.goal = p.size
		}
	}
	scale := max(bits.Len64(smallest)-1-balanceFrom, 0)
	return min(max(balanceMost*time.Duration(scale)/balanceScales, balanceLeast), balanceMost)
}

// balance is the state of balancing. It belongs to the loop.
type balance struct {
	running bool
	all     bool    // this time also homes whose record states no weight
	asked   []*call // answered when it ends
	timer   *time.Timer
	next    time.Duration
}

// rebalance begins a round: homes with too much shrink, then those with too
// little grow. c is nil for the rounds that come by themselves; those leave
// homes alone whose record states no weight, or every home would be resized
// behind its owner's back.
func (m *Manager) rebalance(c *call) {
	b := &m.balance
	if c != nil && b.running {
		b.asked = append(b.asked, c)
		return
	}
	if b.running || m.stopping {
		return
	}
	b.all = c != nil
	if len(m.balanced()) == 0 {
		if c != nil {
			c.finish(answer{err: fault.New(fault.RebalanceNotNeeded, "rebalance", nil)})
		}
		return
	}
	if c != nil {
		b.asked = append(b.asked, c)
	}
	b.running = true
	m.balancePhase(true)
}

// balanced are the homes that take part: open images below the home root whose
// record we may change.
func (m *Manager) balanced() []*entry {
	var list []*entry
	for _, e := range m.homes {
		v := e.face
		ours := e.subject.SignedLocally()
		if v.Storage != "luks" || v.RebalanceWeight == 0 || !m.balance.all && !v.HasRebalanceWeight ||
			filepath.Dir(v.ImagePath) != m.Layout.HomeRoot || ours == nil || !*ours || !e.home.State(m.look(e)).Pins() {
			continue
		}
		list = append(list, e)
	}
	return list
}

// balancePhase resizes the homes that are to shrink, or those that are to grow.
func (m *Manager) balancePhase(shrink bool) {
	b := &m.balance
	homes := m.balanced()
	for _, e := range homes {
		if !e.home.Idle() {
			time.AfterFunc(busyWait, func() { m.post(func() { m.balancePhase(shrink) }) })
			return
		}
	}
	var list []*portion
	for _, e := range homes {
		live := records.LiveStatus{Active: true}
		measure(e.face, &live, false)
		if live.DiskSize == nil || live.DiskUsage == nil || live.DiskFree == nil || live.DiskFloor == nil {
			continue
		}
		list = append(list, &portion{
			name: e.name, weight: e.RebalanceWeight,
			size: *live.DiskSize, used: *live.DiskUsage, free: *live.DiskFree, atLeast: *live.DiskFloor,
		})
	}
	b.next = divide(freeBelow(m.Layout.HomeRoot), list)
	list = slices.DeleteFunc(list, func(p *portion) bool { return p.goal == p.size || (p.goal < p.size) != shrink })
	then := func() { m.balancePhase(false) }
	if !shrink {
		then = m.balanceDone
	}
	if len(list) == 0 || m.stopping {
		then()
		return
	}
	// What goes wrong with a home is logged with it.
	all := &collective{left: len(list), reply: make(chan answer, 1)}
	for _, p := range list {
		m.begin(m.homes[p.name], &call{op: Operation{Verb: home.Resize, Size: p.goal}, balances: true, all: all})
	}
	go func() {
		<-all.reply
		m.post(then)
	}()
}

func (m *Manager) balanceDone() {
	b := &m.balance
	b.running = false
	for _, c := range b.asked {
		c.finish(answer{})
	}
	b.asked = nil
	m.balanceIn(b.next)
}

// balanceIn has the next round come by itself, if any home's record asks for
// that.
func (m *Manager) balanceIn(d time.Duration) {
	b := &m.balance
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.running || m.stopping {
		return
	}
	b.all = false
	if len(m.balanced()) > 0 {
		b.timer = time.AfterFunc(d, func() { m.post(func() { m.rebalance(nil) }) })
	}
}
