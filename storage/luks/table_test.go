package luks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/disk"
	"hearth/storage/gpt"
)

// TestDiskTable moves the end of a partition, in the table and in the kernel,
// and puts right what a killed worker leaves between the two.
func TestDiskTable(t *testing.T) {
	testenv.Need(t, "root", "loop", "losetup", "partx", "sfdisk")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	file := filepath.Join(testenv.Scratch(t), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 96*mib); err != nil {
		t.Fatal(err)
	}
	sfdisk := func(script string) {
		t.Helper()
		cmd := exec.Command("sfdisk", "-q", "-X", "gpt", file)
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, out)
		}
	}
	sfdisk("start=1MiB, size=2MiB, name=other\nsize=40MiB, type=" + gpt.HomeType + ", name=ann\n")
	// Boot code is its owner's.
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("boot code"), 0); err != nil {
		t.Fatal(err)
	}
	loopDev := run("losetup", "-P", "-f", "--show", file)
	t.Cleanup(func() { run("losetup", "-d", loopDev) })
	node := loopDev + "p2"
	if _, err := os.Stat(node); err != nil {
		// A kernel that reads no GPT is told what is there.
		run("partx", "--add", loopDev)
		t.Cleanup(func() { run("partx", "--delete", loopDev) })
	}

	a := area(t, "")
	a.ImagePath = node
	*a.LUKS.PBKDFForceIterations = 1000
	word, err := secret.Copy([]byte("pw"))
	if err != nil {
		t.Fatal(err)
	}
	defer word.Close()
	image, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	s := &storage.Setup{}
	defer func() { _ = s.Close(t.Context()) }()
	w := window{file: image, size: 40 * mib}
	h, err := format(t.Context(), a, s, w, testRecipe(), []*secret.Bytes{word})
	if err != nil {
		t.Fatal(err)
	}
	c := &container{image: image, device: true, size: 40 * mib, window: w, header: h}
	open := func() *diskTable {
		t.Helper()
		table, err := c.openTable(a)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	shows := func(want int64) {
		t.Helper()
		d, err := disk.Look(image)
		if err != nil || d.Size != want || d.Start != 3*mib {
			t.Errorf("the kernel shows %d+%d, %v; want %d", d.Start, d.Size, err, want)
		}
		if got := run("sfdisk", "--verify", file); !strings.Contains(got, "No errors detected") {
			t.Errorf("sfdisk: %s", got)
		}
		boot := make([]byte, 9)
		if _, err := f.ReadAt(boot, 0); err != nil || string(boot) != "boot code" {
			t.Errorf("boot code %q, %v", boot, err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	table := open()
	if table.why != nil || table.most != 92*mib {
		t.Fatalf("%d bytes at most, %v", table.most, table.why)
	}
	must(table.resize(80 * mib))
	shows(40 * mib) // until it is told
	must(table.limit(80 * mib))
	shows(80 * mib)
	must(table.close())

	// Killed while growing: the next one goes on from there.
	c.window.size = 80 * mib
	table = open()
	must(table.resize(85 * mib))
	must(table.close())
	table = open()
	shows(85 * mib)
	if c.window.size != 85*mib || table.why != nil {
		t.Errorf("window of %d, %v", c.window.size, table.why)
	}
	// A smaller table that nobody here wrote is not believed.
	must(table.resize(60 * mib))
	must(table.close())
	table = open()
	shows(85 * mib)
	if table.why == nil {
		t.Error("another's table is taken for ours")
	}
	must(table.close())
	// Killed while shrinking: the header tells that the file system is small.
	must(c.note(intent{from: 85 * mib, to: 60 * mib}))
	must(c.settleFile(a))
	shows(60 * mib)
	if c.window.size != 60*mib || c.intent == nil || !c.intent.shrinks() {
		t.Errorf("window of %d, %+v", c.window.size, c.intent)
	}
	must(c.forgetIntent())
	if c.header.Flag(shrinkFlag) {
		t.Error("the note stays")
	}
	// Another partition behind it.
	cmd := exec.Command("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--append", loopDev)
	cmd.Stdin = strings.NewReader("size=1MiB\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	table = open()
	if table.why == nil || table.most != 60*mib {
		t.Errorf("not the last partition, and yet %d bytes, %v", table.most, table.why)
	}
	must(table.close())
}
