package userdb

import (
	"bufio"
	"bytes"
	"context"
	"reflect"
	"strings"
	"testing"

	"hearth/homed/manager"
	"hearth/records"
)

// plainCalls are what the name service writes, and what is nearly that.
var plainCalls = []string{
	`{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"userName":"ann","service":"io.systemd.Home"}}`,
	`{"method":"a.B","parameters":{"uid":60001,"service":"s"},"more":true}`,
	`{"method":"a.B","parameters":{},"more":false,"oneway":true}`,
	`{"method":"a.B","parameters":{"uid":4294967296123456789}}`,
	`{"method":"a.B","upgrade":false}`,
	`{"method":"a.B"}`,
	`{"method":"a.B","parameters":{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8}}`,
	// The rest is for the other reader, or for nobody.
	`{"method":"a.B","upgrade":true}`,
	`{"method":"a.B","more":true,"oneway":true}`,
	`{"method":"a.B","method":"a.C"}`,
	`{"method":"a.B","parameters":{"x":1,"x":2}}`,
	`{"method":"a.B","parameters":{"x":01}}`,
	`{"method":"a.B","parameters":{"x":1.5,"y":-1,"z":1e3}}`,
	`{"method":"a.B","parameters":{"x":"\u0061","y":"ä","z":true}}`,
	`{"method":"a.B","parameters":null}`,
	`{ "method" : "a.B" }`,
	`{"method":"a.B"}x`,
	`{"method":"a.B",}`,
	`{"method":"a.B","other":1}`,
	`{"parameters":{}}`,
	`{"method":1}`,
	`{"method":"a.B","parameters":{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9}}`, // one may have thousands
	`{"method":"a.B","more":truefalse}`,
	`{}`, `{`, `[]`, ``,
}

// TestPlainCalls: the quick reader understands what the name service writes, and
// understands nothing that the other one does not understand alike.
func TestPlainCalls(t *testing.T) {
	for i, text := range plainCalls {
		if r := parsePlain([]byte(text)); (r != nil) != (i < 7) {
			t.Errorf("%s: %+v", text, r)
		}
		alike(t, text)
	}
}

func alike(t *testing.T, text string) {
	t.Helper()
	quick := parsePlain([]byte(text))
	if quick == nil {
		return
	}
	if full, err := parseAny([]byte(text)); err != nil || !reflect.DeepEqual(quick, full) {
		t.Errorf("%q: %+v, but %+v, %v", text, quick, full, err)
	}
}

func FuzzPlainCalls(f *testing.F) {
	for _, text := range plainCalls {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { alike(t, text) })
}

// counted counts what is written at once.
type counted struct {
	bytes.Buffer
	writes int
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes++
	return c.Buffer.Write(p)
}

// TestAnsweredTogether: calls that came together are answered with one write, in
// their order, and what was answered is sent also when what follows is no call.
func TestAnsweredTogether(t *testing.T) {
	s := &server{o: Options{Manager: homes(t, captures(t)), Machine: records.Machine{ID: machine}, Level: levelInfo()}, service: "io.systemd.Home"}
	ping := `{"method":"io.systemd.service.Ping","parameters":{}}` + "\x00"
	unknown := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"userName":"nobodyknows","service":"io.systemd.Home"}}` + "\x00"
	all := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"service":"io.systemd.Home"},"more":true}` + "\x00"
	for _, c := range []struct {
		text    string
		answers int
		writes  int
	}{
		{"", 0, 0},
		{ping, 1, 1},
		{strings.Repeat(ping+unknown, 16), 32, 1},
		{ping + unknown + "nothing\x00" + ping, 2, 1},
		{ping + ping[:20], 1, 1},
		{strings.Repeat(ping, 3) + all + ping, 7, 3}, // an enumeration waits for nobody
		{strings.Replace(ping, "{}", `{},"oneway":true`, 1) + ping, 1, 1},
	} {
		var sent counted
		s.converse(t.Context(), bufio.NewReader(strings.NewReader(c.text)), &replyWriter{c: &sent}, 0, nil)
		answers := bytes.Count(sent.Bytes(), []byte{0})
		if answers != c.answers || sent.writes != c.writes {
			t.Errorf("%.200q: %d answers in %d writes, want %d in %d: %.300q", c.text, answers, sent.writes, c.answers, c.writes, sent.String())
		}
		if strings.HasPrefix(c.text, ping+unknown) && !strings.HasPrefix(sent.String(), "{}\x00"+`{"error":"`+errNoRecord+`"}`+"\x00") {
			t.Errorf("order: %.200q", sent.String())
		}
	}
}

// glances notes under which context each look-up came.
type glances struct {
	shelf
	seen []context.Context
}

func (g *glances) Lookup(ctx context.Context, k manager.Key) (manager.Info, error) {
	g.seen = append(g.seen, ctx)
	return g.shelf.Lookup(ctx, k)
}

// TestOneGlance: calls that came together are answered by one look at the homes;
// those that came alone, or after something that may wait, have one of their own.
func TestOneGlance(t *testing.T) {
	one := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"userName":"nobodyknows","service":"io.systemd.Home"}}` + "\x00"
	all := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"service":"io.systemd.Home"},"more":true}` + "\x00"
	for _, c := range []struct {
		text                   string
		lookups, glances, with int // with a glance that is not theirs alone
	}{
		{one, 1, 0, 0},
		{strings.Repeat(one, 3), 3, 0, 0},
		{strings.Repeat(one, 20), 20, 1, 20},
		{strings.Repeat(one, 5) + all + strings.Repeat(one, 5), 10, 2, 10},
		{strings.Repeat(one, 5) + all + one, 6, 1, 5},
	} {
		g := &glances{shelf: homes(t, captures(t))}
		s := &server{o: Options{Manager: g, Machine: records.Machine{ID: machine}, Level: levelInfo()}, service: "io.systemd.Home"}
		s.converse(t.Context(), bufio.NewReader(strings.NewReader(c.text)), &replyWriter{c: &counted{}}, 0, nil)
		distinct, with := map[context.Context]bool{}, 0
		for _, ctx := range g.seen {
			if ctx != t.Context() {
				distinct[ctx] = true
				with++
			}
		}
		if len(g.seen) != c.lookups || len(distinct) != c.glances || with != c.with {
			t.Errorf("%.300q: %d look-ups, %d of them in %d glances; want %d, %d, %d", c.text, len(g.seen), with, len(distinct), c.lookups, c.with, c.glances)
		}
	}
}
