package records

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// here is the machine of what the fuzz targets read.
var here = Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"}

// FuzzRecord: whatever is a record comes back as it was from all that prints
// and changes it, with what nobody here has heard of.
func FuzzRecord(f *testing.F) {
	for _, name := range []string{"canon", "allfields", "badfieldsu", "pairsort", "dirfull", "recov"} {
		f.Add(read(f, fixtures, "records", name, "host.identity"))
	}
	f.Add([]byte(`{"userName":"ann","x":[{"b":1,"a":18446744073709551615}],"perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdef","y":null}],"privileged":{"z":-1}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := Parse(in, HostFile)
		if err != nil {
			return
		}
		again := mustParse(t, r.Compact(), HostFile)
		if !r.Equal(again) || !bytes.Equal(again.Compact(), r.Compact()) {
			t.Fatalf("%s comes back as %s", r.Compact(), again.Compact())
		}
		if len(r.Pretty()) != fileSize(r.doc, 0)+1 {
			t.Fatalf("%d bytes foreseen of %q", fileSize(r.doc, 0)+1, r.Pretty())
		}
		stored := mustParse(t, r.Pretty(), HostFile)
		if !bytes.Equal(stored.Pretty(), r.Pretty()) {
			t.Fatalf("%s is stored in another form the second time", r.Compact())
		}
		if n := r.signedBytes(true); !bytes.Equal(stored.signedBytes(true), n) || !bytes.Equal(stored.signedBytes(false), n) {
			t.Fatalf("%s is signed differently once it is stored", r.Compact())
		}
		// All of these touch known fields and nothing else.
		size, touched := uint64(9), r
		if n, err := r.Touched(1<<63, true); err == nil {
			touched = n
		}
		changed := touched.WithBinding(here.ID, Binding{Storage: "luks", UID: 60100, GID: 60100, HasUID: true}).
			WithCounters(here.ID, Counters{Good: 1}).WithDiskSize(here, size).WithoutPasswordChangeNow().WithoutSignature().
			Augment(here.ID, LiveStatus{State: "active", Active: true, DiskSize: &size})
		for _, m := range r.doc.members {
			if _, known := fields[m.key]; !known && sectionOf(m.key) == regular && !equal(changed.doc.get(m.key), m.value) {
				t.Fatalf("%s is lost: %s", m.key, changed.Compact())
			}
		}
		if !equal(changed.doc.get("privileged"), r.doc.get("privileged")) {
			t.Fatalf("the privileged section changed: %s", changed.Compact())
		}
		if v := changed.View(here); !v.HasUID || v.UID != 60100 || v.State != "active" {
			t.Fatalf("the binding does not count: %s", changed.Compact())
		}
		r.Ignored(here)
		r.UnstableOrder()
		_ = r.Validate(here)
		_ = r.Manageable(here)
		_ = r.Suitable(here)
		_ = SelfModifiable(r, changed, here)
		Group(changed.FoundAs(here.ID), here)
	})
}

// FuzzVerify: whatever is changed in a signed record, the signatures that are
// left vouch for what they were made for and nothing else.
func FuzzVerify(f *testing.F) {
	keys := &Keys{}
	for name, file := range map[string]string{LocalKey: "local.public", "foreign.public": "foreign.public"} {
		if err := keys.Add(name, read(f, fixtures, "keys", file)); err != nil {
			f.Fatal(err)
		}
	}
	var texts [][]byte
	signed := map[string]bool{} // what the fixtures' keys signed
	for _, path := range fixtureFiles(f, "host.identity", "inspect-E.json", "signed.identity") {
		text := read(f, path)
		r, err := Parse(text, HostFile)
		if err != nil {
			continue
		}
		if _, err := keys.Vouch(r); err == nil {
			texts = append(texts, text)
			signed[string(r.signedBytes(true))] = true
			signed[string(r.signedBytes(false))] = true
		}
	}
	if len(texts) < 60 {
		f.Fatalf("only %d signed records", len(texts))
	}
	f.Add(uint16(0), uint16(10), uint16(3), []byte(`"x":1,`))
	f.Add(uint16(5), uint16(1), uint16(0), []byte(`"memberOf":["wheel"],`))
	f.Add(uint16(9), uint16(200), uint16(1), []byte(`0`))
	f.Add(uint16(20), uint16(0), uint16(65535), []byte(`{"userName":"ann"}`))
	f.Fuzz(func(t *testing.T, which, at, cut uint16, put []byte) {
		text := texts[int(which)%len(texts)]
		begin := min(int(at), len(text))
		end := min(begin+int(cut), len(text))
		changed := slices.Concat(text[:begin], put, text[end:])
		for _, c := range []Context{HostFile, EmbeddedFile, BusUpdate} {
			r, err := Parse(changed, c)
			if err != nil {
				continue
			}
			v, err := keys.Vouch(r)
			if err != nil {
				continue
			}
			if !signed[string(r.signedBytes(true))] && !signed[string(r.signedBytes(false))] {
				t.Fatalf("%v: %s", v.Verdict(), changed)
			}
		}
	})
}

// FuzzMask: no audience sees what is not for it, wherever a record carries it
// and whatever stands around.
func FuzzMask(f *testing.F) {
	f.Add([]byte(`"userName":"ann"`), []byte(`"x":1`))
	f.Add([]byte(`"userName":"ann","perMachine":[{}],"privileg\u0065d":{}`), []byte(`"signature":[]`))
	f.Add([]byte(`"userName":"ann","x":{"y":"}"`), []byte(`"secret ":{}}`))
	f.Add([]byte(`"userName":"ann","binding":{"m":{}}`), []byte(`"status":{"m":{}},"\u0073ecret":{}`))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		const hash, password, bound, counted = "CANARY-hash", "CANARY-password", "CANARY-bound", "CANARY-counted"
		text := slices.Concat([]byte(`{`), before, []byte(`,"privileged":{"hashedPassword":["`+hash+`"]},"secret":{"password":["`+password+`"]},`+
			`"binding":{"`+here.ID+`":{"x":"`+bound+`"}},"status":{"`+here.ID+`":{"x":"`+counted+`"}},`), after, []byte(`}`))
		rest, section, err := CutSecret(text)
		if err != nil {
			return
		}
		defer section.Close()
		for c := HostFile; c <= ClientKeep; c++ {
			r, err := Parse(rest, c)
			if err != nil {
				continue
			}
			// What stands around may have made them part of another field.
			sections := map[string]bool{}
			for name, canary := range map[string]string{"privileged": hash, "binding": bound, "status": counted} {
				sections[canary] = strings.Contains(string(appendCompact(nil, orNull(r.doc.get(name)))), canary)
			}
			sections[password] = section != nil && strings.Contains(plain(t, section), password)
			masked, incomplete := r.Mask(false)
			full, _ := r.Mask(true)
			for audience, see := range map[string]struct {
				r     *Record
				hides []string
			}{
				"others":              {masked, []string{hash, password}},
				"the owner":           {full, []string{password}},
				"the home":            {r.Embedded(), []string{password, bound, counted}},
				"a signature":         {r.Signable(), []string{password, bound, counted}},
				"whoever is answered": {r.WithoutSecret(), []string{password}},
			} {
				text := string(see.r.Compact())
				for _, canary := range see.hides {
					if sections[canary] && strings.Contains(text, canary) {
						t.Fatalf("%s see %s: %s", audience, canary, text)
					}
				}
			}
			if sections[hash] && !incomplete {
				t.Fatal("not said to be incomplete")
			}
			if c == EmbeddedFile || c == BusRegister || c == ClientCreate {
				if text := string(r.Compact()); sections[bound] || sections[counted] {
					t.Fatalf("context %d lets in %s", c, text)
				}
			}
		}
	})
}

// FuzzManifest: what a record says of blobs names files of one folder, each
// with a hash.
func FuzzManifest(f *testing.F) {
	const hash = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
	f.Add("avatar", hash, "avatar")
	f.Add("..", hash, "x")
	f.Add("a/b", hash[:63], "a")
	f.Add("a\x00b", "z"+hash[1:], "")
	f.Fuzz(func(t *testing.T, name, hash, file string) {
		r, err := NewBuilder("ann").Set("blobManifest", Object{{name, hash}, {"second", strings.Repeat("0", 64)}}).Record()
		if err != nil {
			return
		}
		x, ok := r.Manifest(here)
		if !ok {
			return
		}
		for n, h := range x {
			if !ValidBlobName(n) || strings.ContainsAny(n, "/\x00\n") || n[0] == '.' || len(n) > 255 {
				t.Fatalf("%q is a blob's name", n)
			}
			if len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
				t.Fatalf("%q is a hash", h)
			}
		}
		if x.Fits(file, hash) && (x[file] != hash || !ValidBlobName(file)) {
			t.Fatalf("%q with %q fits %v", file, hash, x)
		}
		if err := x.CheckNames([]string{file}); err == nil && (len(x) != 1 || x[file] == "") {
			t.Fatalf("%q alone is taken for %v", file, x)
		}
		if back, _ := r.WithManifest(x).Manifest(here); len(back) != len(x) || back[name] != x[name] {
			t.Fatalf("%v comes back as %v", x, back)
		}
	})
}
