package mounts

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseTable(t *testing.T) {
	got, err := parseTable(`22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /root /mnt\040with\134all\011of\012it rw,noatime shared:7 master:2 propagate_from:1 - ext3 /dev/root rw,errors=continue
37 35 98:0 / /odd\9name rw master:12 - ext4 shared:1 rw
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{22, "/proc", false},
		{36, "/mnt with\\all\tof\nit", true},
		{37, `/odd\9name`, false},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"1 2 3\n", "x 35 98:0 / / rw - ext3 a rw\n"} {
		if _, err := parseTable(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestIDMap holds the map against the lines that systemd-homed writes.
func TestIDMap(t *testing.T) {
	const containersAndAbove = "524288 524288 1878523904,2147352576 2147352576 65536,2147483646 2147483646 1"
	for _, c := range []struct {
		name            string
		stored, exposed uint32
		want            string
	}{
		{"nobody to a home's uid", 65534, 60100, "0 0 60001,65534 60100 1,60513 60513 5021," + containersAndAbove},
		{"own uid", 60100, 60100, "0 0 60001,60100 60100 1,60513 60513 5021," + containersAndAbove},
		{"the last uid of the range", 65534, 60513, "0 0 60001,65534 60513 1,60514 60514 5020," + containersAndAbove},
		{"made on another machine with the last uid", 60513, 60001, "0 0 60001,60513 60001 1,60514 60514 5020," + containersAndAbove},
		{"root's files", 0, 60001, "1 1 60000,0 60001 1,60513 60513 5021," + containersAndAbove},
		{"an ordinary uid", 65534, 1000, "0 0 1000,1001 1001 59000,65534 1000 1,60513 60513 5021," + containersAndAbove},
		{"two ordinary uids", 1000, 999, "0 0 999,1001 1001 59000,1000 999 1,60513 60513 5021," + containersAndAbove},
		{"the end of a range", 60000, 65533, "0 0 60000,60000 65533 1,60513 60513 5020," + containersAndAbove},
		{"the single one", 2147483646, 60001, "0 0 60001,2147483646 60001 1,60513 60513 5021,524288 524288 1878523904,2147352576 2147352576 65536"},
	} {
		var lines []string
		for _, r := range idMap(c.stored, c.exposed) {
			lines = append(lines, fmt.Sprint(r.inside, r.outside, r.count))
		}
		if got := strings.Join(lines, ","); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
