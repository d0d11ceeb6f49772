package luks2

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// The JSON area. A header is a document first: unknown members survive a
// rewrite, byte for byte. So objects keep their members' text and order, and
// the typed view beside them serves reading only. Struct decoding would also
// match member names in any case, which no other reader of the format does.

const maxID = 32 // keyslots and tokens have numbers below

type member struct {
	name  string
	value json.RawMessage
}

// object is a JSON object whose values are not decoded yet.
type object []member

var errDuplicate = errors.New("member name occurs twice")

func parseObject(text []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	if t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	o := object{}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		// Readers differ in which of two they take; a header has no use for it.
		if seen[name] {
			return nil, fmt.Errorf("%q: %w", name, errDuplicate)
		}
		seen[name] = true
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		o = append(o, member{name, v})
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text after the object")
	}
	return o, nil
}

func (o object) get(name string) json.RawMessage {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// with returns o with one member set, in its old place or at the end.
func (o object) with(name string, value []byte) object {
	c := slices.Clone(o)
	for i := range c {
		if c[i].name == name {
			c[i].value = value
			return c
		}
	}
	return append(c, member{name, value})
}

func (o object) without(name string) object {
	return slices.DeleteFunc(slices.Clone(o), func(m member) bool { return m.name == name })
}

// text returns o as compact JSON.
func (o object) text() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(m.name))
		b.WriteByte(':')
		// The value was valid JSON when it came in, and ours is.
		_ = json.Compact(&b, m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// quote leaves <, > and & as they are; encoding/json would write them as
// escapes, which is valid but noise in a dump.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

func number(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }

// numberString writes a 64 bit quantity, which the format keeps as a string.
func numberString(n uint64) []byte { return quote(strconv.FormatUint(n, 10)) }

func encoded(b []byte) []byte { return quote(base64.StdEncoding.EncodeToString(b)) }

func idList(ids []int) []byte {
	b := []byte{'['}
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, quote(strconv.Itoa(id))...)
	}
	return append(b, ']')
}

// reader takes members out of one object and keeps the first complaint.
type reader struct {
	o    object
	what string
	err  error
}

func (r *reader) fail(name, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %s: %s", r.what, name, fmt.Sprintf(format, args...))
	}
}

func (r *reader) str(name string) string {
	v := r.o.get(name)
	var s string
	if len(v) == 0 || v[0] != '"' || json.Unmarshal(v, &s) != nil {
		r.fail(name, "no string")
	}
	return s
}

func (r *reader) num(name string, most uint64) uint64 {
	n, err := strconv.ParseUint(string(r.o.get(name)), 10, 64)
	if err != nil || n > most {
		r.fail(name, "no number up to %d", most)
		return 0
	}
	return n
}

// size reads a 64 bit quantity that must fit an int64, so that sums of two can
// be compared after one check.
func (r *reader) size(name string) int64 {
	s := r.str(name)
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		r.fail(name, "no size in a string")
	}
	return int64(n)
}

func (r *reader) bin(name string) []byte {
	b, err := base64.StdEncoding.Strict().DecodeString(r.str(name))
	if err != nil {
		r.fail(name, "no base64")
	}
	return b
}

func (r *reader) obj(name string) object {
	o, err := parseObject(r.o.get(name))
	if err != nil {
		r.fail(name, "no object: %v", err)
	}
	return o
}

func (r *reader) ids(name string) []int {
	var list []json.RawMessage
	v := r.o.get(name)
	if len(v) == 0 || v[0] != '[' || json.Unmarshal(v, &list) != nil {
		r.fail(name, "no list")
		return nil
	}
	ids := make([]int, 0, len(list))
	for _, v := range list {
		var s string
		if len(v) == 0 || v[0] != '"' || json.Unmarshal(v, &s) != nil {
			r.fail(name, "no list of strings")
			return nil
		}
		id, err := parseID(s)
		if err != nil {
			r.fail(name, "%v", err)
			return nil
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func parseID(s string) (int, error) {
	id, err := strconv.ParseUint(s, 10, 31)
	if err != nil || strconv.FormatUint(id, 10) != s {
		return 0, fmt.Errorf("%q is no number of an object", s)
	}
	return int(id), nil
}

// metadata is the JSON area: its document and the typed view.
type metadata struct {
	doc      object
	keyslots map[int]*keyslot
	segment  segment // number 0, the payload
	digest   digest  // the one that covers segment 0
	tokens   map[int]token
	areas    int64 // bytes of the keyslots area
}

type keyslot struct {
	id       int
	keySize  int // bytes of the volume key
	priority int
	offset   int64 // of the area, bytes
	size     int64
	// What follows is meaningful only if unusable is nil.
	unusable   error
	encryption string
	areaKey    int // bytes of the derived key
	afHash     string
	kdf        kdf
}

type segment struct {
	offset     int64
	size       int64 // -1 for dynamic
	ivTweak    uint64
	encryption string
	sectorSize int
}

type digest struct {
	id         int
	keyslots   []int
	hash       string
	iterations uint64
	salt, sum  []byte
	unusable   error
}

type token struct {
	kind     string
	keyslots []int
	body     object
}

var errRequirement = errors.New("the header asks for a feature that is not known here")

// parseMetadata reads and checks a JSON text for a header whose copies have
// size bytes each. errRequirement and errFeature mark what is valid but not for
// us.
func parseMetadata(text []byte, size int64) (*metadata, error) {
	doc, err := parseObject(text)
	if err != nil {
		return nil, err
	}
	m := &metadata{doc: doc, keyslots: map[int]*keyslot{}, tokens: map[int]token{}}
	top := reader{o: doc, what: "header"}
	slots, tokens, segments, digests, config := top.obj("keyslots"), top.obj("tokens"), top.obj("segments"), top.obj("digests"), top.obj("config")
	if top.err != nil {
		return nil, top.err
	}
	if err := m.parseConfig(config, size); err != nil {
		return nil, err
	}
	for _, s := range slots {
		k, err := parseKeyslot(s)
		if err != nil {
			return nil, err
		}
		m.keyslots[k.id] = k
	}
	if err := m.checkAreas(size); err != nil {
		return nil, err
	}
	for _, s := range tokens {
		if err := m.parseToken(s); err != nil {
			return nil, err
		}
	}
	segmentIDs, err := m.parseSegments(segments, size)
	if err != nil {
		return nil, err
	}
	return m, m.parseDigests(digests, segmentIDs)
}

func (m *metadata) parseConfig(o object, size int64) error {
	r := reader{o: o, what: "config"}
	jsonSize := r.size("json_size")
	m.areas = r.size("keyslots_size")
	if r.err != nil {
		return r.err
	}
	if jsonSize != size-binarySize {
		return fmt.Errorf("config: JSON area of %d bytes in a copy of %d", jsonSize, size)
	}
	if m.areas%4096 != 0 {
		return fmt.Errorf("config: keyslots area of %d bytes", m.areas)
	}
	if o.get("requirements") == nil {
		return nil
	}
	req := r.obj("requirements")
	if r.err != nil {
		return r.err
	}
	if v := req.get("mandatory"); v != nil {
		var list []string
		if err := json.Unmarshal(v, &list); err != nil {
			return fmt.Errorf("config: requirements: %w", err)
		}
		if len(list) > 0 {
			return fmt.Errorf("%w: %q", errRequirement, list)
		}
	}
	return nil
}

func parseKeyslot(s member) (*keyslot, error) {
	id, err := parseID(s.name)
	if err != nil {
		return nil, fmt.Errorf("keyslots: %w", err)
	}
	o, err := parseObject(s.value)
	if err != nil {
		return nil, fmt.Errorf("keyslot %d: %w", id, err)
	}
	r := reader{o: o, what: fmt.Sprintf("keyslot %d", id)}
	k := &keyslot{id: id, priority: 1}
	kind := r.str("type")
	k.keySize = int(r.num("key_size", maxKeySize))
	area := r.obj("area")
	if o.get("priority") != nil {
		k.priority = int(r.num("priority", 2))
	}
	ra := reader{o: area, what: r.what + ": area"}
	areaKind := ra.str("type")
	k.offset, k.size = ra.size("offset"), ra.size("size")
	if err := errors.Join(r.err, ra.err); err != nil {
		return nil, err
	}
	if kind != "luks2" || areaKind != "raw" {
		k.unusable = fmt.Errorf("keyslot %d: type %q, area %q", id, kind, areaKind)
		return k, nil
	}
	af, derive := r.obj("af"), r.obj("kdf")
	k.encryption, k.areaKey = ra.str("encryption"), int(ra.num("key_size", maxKeySize))
	rf := reader{o: af, what: r.what + ": af"}
	afKind, stripes := rf.str("type"), rf.num("stripes", 1<<31)
	k.afHash = rf.str("hash")
	if err := errors.Join(r.err, ra.err, rf.err); err != nil {
		return nil, err
	}
	if afKind != "luks1" || stripes != afStripes {
		k.unusable = fmt.Errorf("keyslot %d: anti-forensic type %q, %d stripes", id, afKind, stripes)
		return k, nil
	}
	if k.keySize == 0 || k.areaKey == 0 || materialSize(k.keySize) > k.size {
		k.unusable = fmt.Errorf("keyslot %d: key of %d bytes in an area of %d", id, k.keySize, k.size)
		return k, nil
	}
	if k.kdf, err = parseKDF(derive); err == nil {
		err = k.kdf.checkLength(k.areaKey)
	}
	if err != nil {
		k.unusable = fmt.Errorf("keyslot %d: %w", id, err)
	}
	return k, nil
}

func (m *metadata) checkAreas(size int64) error {
	list := make([]*keyslot, 0, len(m.keyslots))
	for _, k := range m.keyslots {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b *keyslot) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	end := 2 * size
	for _, k := range list {
		if k.offset < end || k.size > 2*size+m.areas-k.offset {
			return fmt.Errorf("keyslot %d: area %d+%d overlaps another or leaves the keyslots area", k.id, k.offset, k.size)
		}
		end = k.offset + k.size
	}
	return nil
}

func (m *metadata) parseToken(s member) error {
	id, err := parseID(s.name)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	o, err := parseObject(s.value)
	if err != nil {
		return fmt.Errorf("token %d: %w", id, err)
	}
	r := reader{o: o, what: fmt.Sprintf("token %d", id)}
	t := token{kind: r.str("type"), keyslots: r.ids("keyslots"), body: o}
	if r.err != nil {
		return r.err
	}
	for _, k := range t.keyslots {
		if m.keyslots[k] == nil {
			return fmt.Errorf("token %d: keyslot %d does not exist", id, k)
		}
	}
	m.tokens[id] = t
	return nil
}

func (m *metadata) parseSegments(segments object, size int64) (map[int]bool, error) {
	ids := map[int]bool{}
	var foreign error
	for _, s := range segments {
		id, err := parseID(s.name)
		if err != nil {
			return nil, fmt.Errorf("segments: %w", err)
		}
		ids[id] = true
		o, err := parseObject(s.value)
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", id, err)
		}
		r := reader{o: o, what: fmt.Sprintf("segment %d", id)}
		if kind := r.str("type"); id != 0 || kind != "crypt" || o.get("integrity") != nil || o.get("flags") != nil {
			foreign = fmt.Errorf("%w: segment %d of type %q", errFeature, id, kind)
			continue
		}
		g := segment{offset: r.size("offset"), size: -1, encryption: r.str("encryption"), sectorSize: int(r.num("sector_size", 4096))}
		if r.str("size") != "dynamic" {
			g.size = r.size("size")
		}
		g.ivTweak, err = strconv.ParseUint(r.str("iv_tweak"), 10, 64)
		if err != nil {
			r.fail("iv_tweak", "no number in a string")
		}
		if r.err != nil {
			return nil, r.err
		}
		if g.sectorSize < 512 || g.sectorSize&(g.sectorSize-1) != 0 {
			return nil, fmt.Errorf("segment 0: sectors of %d bytes", g.sectorSize)
		}
		if g.offset%int64(g.sectorSize) != 0 || g.size > 0 && g.size%int64(g.sectorSize) != 0 || g.size == 0 {
			return nil, fmt.Errorf("segment 0: %d+%d is not in sectors of %d bytes", g.offset, g.size, g.sectorSize)
		}
		if g.offset-2*size < m.areas {
			return nil, fmt.Errorf("segment 0: starts at %d, in the keyslots area", g.offset)
		}
		// The text becomes part of a dm table, where a space would begin the
		// next parameter.
		if !plainCipher(g.encryption) {
			return nil, fmt.Errorf("segment 0: encryption %q", g.encryption)
		}
		if strings.HasPrefix(g.encryption, "cipher_null") || !strings.Contains(g.encryption, "-") {
			foreign = fmt.Errorf("%w: encryption %q", errFeature, g.encryption)
		}
		m.segment = g
	}
	if foreign != nil {
		return nil, foreign
	}
	if !ids[0] {
		return nil, errors.New("segments: none has number 0")
	}
	return ids, nil
}

func plainCipher(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-_:,()", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) < 128 && s[0] != ':'
}

func (m *metadata) parseDigests(digests object, segments map[int]bool) error {
	assigned := map[int]bool{}
	found := false
	for _, s := range digests {
		id, err := parseID(s.name)
		if err != nil {
			return fmt.Errorf("digests: %w", err)
		}
		o, err := parseObject(s.value)
		if err != nil {
			return fmt.Errorf("digest %d: %w", id, err)
		}
		r := reader{o: o, what: fmt.Sprintf("digest %d", id)}
		d := digest{id: id, keyslots: r.ids("keyslots")}
		covers := r.ids("segments")
		kind := r.str("type")
		if r.err != nil {
			return r.err
		}
		for _, k := range d.keyslots {
			if m.keyslots[k] == nil {
				return fmt.Errorf("digest %d: keyslot %d does not exist", id, k)
			}
			assigned[k] = true
		}
		for _, g := range covers {
			if !segments[g] {
				return fmt.Errorf("digest %d: segment %d does not exist", id, g)
			}
		}
		if !slices.Contains(covers, 0) {
			continue
		}
		if found {
			return fmt.Errorf("digest %d: segment 0 has two digests", id)
		}
		found = true
		if kind == "pbkdf2" {
			d.hash, d.iterations = r.str("hash"), r.num("iterations", 1<<32-1)
			d.salt, d.sum = r.bin("salt"), r.bin("digest")
			d.unusable = r.err
			if d.unusable == nil {
				d.unusable = d.check()
			}
		} else {
			d.unusable = fmt.Errorf("digest %d: type %q", id, kind)
		}
		m.digest = d
	}
	if !found {
		return errors.New("digests: none covers segment 0")
	}
	for id := range m.keyslots {
		if !assigned[id] {
			return fmt.Errorf("keyslot %d: no digest lists it", id)
		}
	}
	return nil
}
