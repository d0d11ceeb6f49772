package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"hearth/internal/secret"
)

func TestTakeWipesItsSource(t *testing.T) {
	src := []byte("open sesame")
	b, err := secret.Take(src)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !bytes.Equal(src, make([]byte, len(src))) {
		t.Error("the source still holds the secret")
	}
	if err := b.Use(func(p []byte) error {
		if string(p) != "open sesame" {
			t.Error("the secret changed on its way")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestNothingPrintsIt(t *testing.T) {
	b, err := secret.Copy([]byte("hunter2-hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	holder := struct{ hidden *secret.Bytes }{b}
	j, jerr := json.Marshal(map[string]any{"s": b})
	if jerr == nil {
		t.Errorf("json.Marshal gave %s, want a refusal", j)
	}
	for _, s := range []string{fmt.Sprint(b), fmt.Sprintf("%v %+v %#v %s %q %x", b, b, b, b, b, b), fmt.Sprintf("%+v %#v", holder, holder), string(j)} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("printed as %q", s)
		}
	}
}

func TestEqual(t *testing.T) {
	mk := func(s string) *secret.Bytes {
		b, err := secret.Copy([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	a, b, c := mk("one"), mk("one"), mk("two")
	if !a.Equal(b) || !a.Equal(a) || a.Equal(c) || a.Equal(mk("")) || a.Equal(nil) {
		t.Error("Equal is wrong")
	}
	b.Close()
	b.Close()
	if a.Equal(b) || b.Len() != 0 {
		t.Error("a closed secret still compares")
	}
	if err := b.Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrClosed) {
		t.Errorf("Use after Close: %v", err)
	}
}

func TestReadLimit(t *testing.T) {
	b, err := secret.Read(strings.NewReader("12345"), 5)
	if err != nil || b.Len() != 5 {
		t.Fatalf("Read at the limit: %v, %d bytes", err, b.Len())
	}
	b.Close()
	if _, err := secret.Read(strings.NewReader("123456"), 5); !errors.Is(err, secret.ErrTooLong) {
		t.Fatalf("Read beyond the limit: %v", err)
	}
}
