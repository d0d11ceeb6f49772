package storage

import "testing"

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		site site
		want string
	}{
		{site{luks: true}, "luks"},
		{site{luks: true, btrfs: true}, "luks"},
		{site{luks: true, encrypted: true}, "directory"},
		{site{luks: true, encrypted: true, btrfs: true}, "subvolume"},
		{site{luks: true, container: true}, "directory"},
		{site{luks: true, container: true, btrfs: true}, "subvolume"},
		{site{}, "directory"},
		{site{btrfs: true}, "subvolume"},
	} {
		if got := c.site.choose(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.site, got, c.want)
		}
	}
}
