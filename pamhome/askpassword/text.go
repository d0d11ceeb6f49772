package askpassword

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"hearth/internal/secret"
)

// A Request is one question.
type Request struct {
	Message string        // prompt, one line
	Icon    string        // name in the icon theme, "" for none
	ID      string        // SUBSYSTEM:THING that is asked about, "" for none
	Limit   time.Duration // how long it stands, 0 for ever
}

// maxMessage is how many bytes of a question are shown.
const maxMessage = 200

// ForHome is the question for what opens a home: "Password", "Recovery key",
// "Security token PIN". again says that an answer was rejected before.
func ForHome(user, what string, again bool, limit time.Duration) Request {
	text := what + " for home of user " + user + ": "
	if again {
		text = "Sorry, try again. " + text
	}
	return Request{Message: oneLine(text), Icon: "user-home", ID: oneLine("home:" + user), Limit: limit}
}

// oneLine replaces what would let a name rewrite the screen or the request.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if control(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "")
	}
	return s
}

func control(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

// errUnsafe is for text that would add lines to the request.
var errUnsafe = errors.New("a question holds control characters")

// encode writes the request as agents read it. notAfter is CLOCK_MONOTONIC in
// microseconds, 0 for no limit. The answer must come from a person, not from an
// agent's memory: AcceptCached is 0.
func (r Request) encode(pid int, socket string, notAfter int64) ([]byte, error) {
	for _, s := range []string{r.Message, r.Icon, r.ID, socket} {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, control) {
			return nil, errUnsafe
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "[Ask]\nPID=%d\nSocket=%s\nAcceptCached=0\nEcho=0\nNotAfter=%d\nSilent=0\n", pid, socket, notAfter)
	for _, kv := range []struct{ key, value string }{{"Message", r.Message}, {"Icon", r.Icon}, {"Id", r.ID}} {
		if kv.value != "" {
			fmt.Fprintf(&b, "%s=%s\n", kv.key, kv.value)
		}
	}
	return b.Bytes(), nil
}

// maxReply is one byte that says which reply, and 2048 of secrets.
const maxReply = 2049

type verdict int

const (
	isNoise   verdict = iota // nothing that ends the question
	declines                 // "-"
	answersIt                // "+"
)

// readReply reads one datagram: "+" and secrets with a NUL after each, the last
// one optional, or "-". "+" alone is one empty secret.
func readReply(p []byte) ([]*secret.Bytes, verdict, error) {
	if len(p) == 0 {
		return nil, isNoise, nil
	}
	switch p[0] {
	case '-':
		return nil, declines, nil
	case '+':
	default:
		return nil, isNoise, nil
	}
	list, err := readList(p[1:])
	if err == nil && len(list) == 0 {
		var none *secret.Bytes
		none, err = secret.New(0)
		list = append(list, none)
	}
	return list, answersIt, err
}

// readList reads secrets with a NUL after each, the last one optional.
func readList(p []byte) ([]*secret.Bytes, error) {
	var list []*secret.Bytes
	for len(p) > 0 {
		one, rest, _ := bytes.Cut(p, []byte{0})
		s, err := secret.Copy(one)
		if err != nil {
			secret.CloseAll(list)
			return nil, err
		}
		list, p = append(list, s), rest
	}
	return list, nil
}
