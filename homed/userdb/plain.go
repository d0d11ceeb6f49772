package userdb

import (
	"bytes"
	"encoding/json"
)

// parsePlain reads a call as the name service writes it: no white space, no
// escapes, parameters that are texts and numbers. For anything else it returns
// nil, also for what is no call: parseAny is the judge of that. What it reads
// means the same to both.
func parsePlain(text []byte) *request {
	p := plain{text}
	r := &request{}
	var seen [5]bool
	first := func(i int) bool {
		again := seen[i]
		seen[i] = true
		return !again
	}
	const method, parameters, more, oneway, upgrade = 0, 1, 2, 3, 4
	ok := p.members(func(key []byte) bool {
		var is, good bool
		switch string(key) {
		case "method":
			var name []byte
			name, good = p.word()
			r.method = string(name)
			return good && first(method)
		case "parameters":
			return first(parameters) && p.parameters(r)
		case "more":
			r.more, good = p.boolean()
			return good && first(more)
		case "oneway":
			r.oneway, good = p.boolean()
			return good && first(oneway)
		case "upgrade":
			is, good = p.boolean()
			return good && !is && first(upgrade)
		}
		return false
	})
	if !ok || len(p.rest) > 0 || !seen[method] || r.more && r.oneway {
		return nil
	}
	return r
}

type plain struct{ rest []byte }

func (p *plain) next(c byte) bool {
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// members steps over an object; each has to step over the value of a key.
func (p *plain) members(each func(key []byte) bool) bool {
	if !p.next('{') {
		return false
	}
	if p.next('}') {
		return true
	}
	for {
		key, ok := p.word()
		if !ok || !p.next(':') || !each(key) {
			return false
		}
		if !p.next(',') {
			return p.next('}')
		}
	}
}

// word steps over a string that holds nothing but itself.
func (p *plain) word() ([]byte, bool) {
	if !p.next('"') {
		return nil, false
	}
	for i, c := range p.rest {
		switch {
		case c == '"':
			word := p.rest[:i]
			p.rest = p.rest[i+1:]
			return word, true
		case c < ' ' || c > '~' || c == '\\':
			return nil, false
		}
	}
	return nil, false
}

func (p *plain) boolean() (is, ok bool) {
	var found bool
	if p.rest, found = bytes.CutPrefix(p.rest, []byte("true")); found {
		return true, true
	}
	p.rest, found = bytes.CutPrefix(p.rest, []byte("false"))
	return false, found
}

// number steps over digits. 20 of them hold any number that is asked for.
func (p *plain) number() (json.Number, bool) {
	n := 0
	for n < len(p.rest) && p.rest[n] >= '0' && p.rest[n] <= '9' {
		n++
	}
	if n == 0 || n > 20 || n > 1 && p.rest[0] == '0' || n == len(p.rest) || p.rest[n] != ',' && p.rest[n] != '}' {
		return "", false
	}
	digits := json.Number(p.rest[:n])
	p.rest = p.rest[n:]
	return digits, true
}

// maxPlain bounds the parameters that are each held against all before them. No
// method of ours has so many.
const maxPlain = 8

func (p *plain) parameters(r *request) bool {
	return p.members(func(key []byte) bool {
		if len(r.params) == maxPlain {
			return false
		}
		for _, q := range r.params {
			if q.name == string(key) {
				return false
			}
		}
		var value any
		var ok bool
		if len(p.rest) > 0 && p.rest[0] == '"' {
			var word []byte
			word, ok = p.word()
			value = string(word)
		} else {
			value, ok = p.number()
		}
		r.params = append(r.params, param{string(key), value})
		return ok
	})
}
