package main

import (
	"encoding/json"
	"math"
	"testing"
)

func TestUpdatedUser(t *testing.T) {
	for _, c := range []struct {
		record map[string]any
		args   []string
		want   string
	}{
		{nil, []string{"ann"}, "ann"},
		{map[string]any{"userName": "ann"}, nil, "ann"},
		{map[string]any{}, []string{"ann"}, "ann"},
		{map[string]any{"userName": "ann"}, []string{"ann"}, "ann"},
		{map[string]any{"userName": "ann"}, []string{"bob"}, ""},
		{map[string]any{}, nil, ""},
	} {
		got, err := updatedUser(c.record, c.args)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v with %q: %q, %v", c.record, c.args, got, err)
		}
		if c.record != nil && err == nil && c.record["userName"] != c.want {
			t.Errorf("%v has not the name %q", c.record, c.want)
		}
	}
}

func TestTimestampOfUpdate(t *testing.T) {
	for _, c := range []struct {
		has   any
		whole bool
		want  any
	}{
		{nil, false, uint64(100)},
		{json.Number("99"), false, uint64(100)},
		{json.Number("100"), false, nil},
		{json.Number("18446744073709551615"), false, nil},
		{json.Number("200"), true, json.Number("200")},
		{nil, true, uint64(100)},
	} {
		record := map[string]any{}
		if c.has != nil {
			record["lastChangeUSec"] = c.has
		}
		err := timestamp(record, 100, c.whole)
		if (err == nil) != (c.want != nil) || err == nil && record["lastChangeUSec"] != c.want {
			t.Errorf("%+v: %v, %v", c, record, err)
		}
	}
}

func TestChangesOfAssembly(t *testing.T) {
	a := newAssembly()
	if a.changes() || a.resizes() {
		t.Error("nothing counts as a change")
	}
	a.reset("realName")
	if !a.changes() {
		t.Error("an empty reset is no change")
	}
	a.this["diskSize"] = uint64(1)
	if !a.resizes() {
		t.Error("a size is no resize")
	}
}

func TestResizeTo(t *testing.T) {
	const twice = "Disk size specified twice and doesn't match, refusing."
	const relative = "Relative disk size specification currently not supported when resizing."
	for _, c := range []struct {
		arg, option string
		want        uint64
		says        string
	}{
		{"", "", math.MaxUint64, ""},
		{"1G", "", 1 << 30, ""},
		{"", "2G", 2 << 30, ""},
		{"2G", "2048M", 2 << 30, ""},
		{"min", "", 0, ""},
		{"max", "", math.MaxUint64 - 1, ""},
		{"1G", "2G", 0, twice},
		{"50%", "", 0, relative},
		{"", "50%", 0, relative},
		{"1G", "50%", 0, relative},
		{"banana", "", 0, "Failed to parse disk size parameter: banana"},
	} {
		cmd := &command{assembly: newAssembly()}
		if c.option != "" {
			if err := setDiskSize(cmd.assembly, &property{bucket: "this"}, c.option); err != nil {
				t.Fatal(err)
			}
		}
		var args []string
		if c.arg != "" {
			args = append(args, c.arg)
		}
		got, err := cmd.resizeTo(args)
		if c.says == "" && (err != nil || got != c.want) || c.says != "" && (err == nil || err.Error() != c.says) {
			t.Errorf("%q, %q: %d, %v", c.arg, c.option, got, err)
		}
	}
}
