package manager

import (
	"sync"

	"hearth/records"
)

// maxTexts is how many bytes of answers are kept. A thousand homes fit; of more
// those are there that somebody asked for lately.
const maxTexts = 2 << 20

// texts are the records as they were last told, since the name service asks for
// the same ones over and over. What a text was made of stands beside it: all that
// may change is looked at for each answer, and a text that was made of anything
// else is not used. So nothing has to be told when a home changes, and there is
// no text that is too old. The zero value is ready; nil keeps nothing.
type texts struct {
	mu   sync.Mutex
	kept map[audience]*answerText
	size int
	made int // how many answers had to be put together, for tests
}

// audience is of whose record a text is, and for whom.
type audience struct {
	name    string
	trusted bool
}

type answerText struct {
	subject    records.Subject
	live       records.LiveStatus
	text       []byte
	incomplete bool
}

// weight is about what a text takes of the memory.
func (t *answerText) weight() int { return len(t.text) + 512 }

func (x *texts) find(name string, trusted bool, s records.Subject, live records.LiveStatus) *answerText {
	if x == nil {
		return nil
	}
	x.mu.Lock()
	t := x.kept[audience{name, trusted}]
	x.mu.Unlock()
	if t == nil || t.subject != s || !t.live.Same(live) {
		return nil
	}
	return t
}

func (x *texts) keep(name string, trusted bool, t *answerText) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.made++
	if t.weight() > maxTexts/16 {
		return
	}
	if x.kept == nil {
		x.kept = map[audience]*answerText{}
	}
	key := audience{name, trusted}
	x.lose(key)
	for k := range x.kept { // in no order: any is as good as the others
		if x.size+t.weight() <= maxTexts {
			break
		}
		x.lose(k)
	}
	x.kept[key] = t
	x.size += t.weight()
}

func (x *texts) lose(k audience) {
	if t := x.kept[k]; t != nil {
		x.size -= t.weight()
		delete(x.kept, k)
	}
}

// forget lets go of what is kept of a home that is gone.
func (x *texts) forget(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lose(audience{name, true})
	x.lose(audience{name, false})
}
