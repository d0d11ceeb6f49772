package presence

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestSurveyIsLook: of whatever there is, all three say the same.
func TestSurveyIsLook(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	put := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put(os.Mkdir(at("ann.homedir"), 0o700))
	put(os.Mkdir(at("closed"), 0o000))
	put(os.WriteFile(at("ann.home"), make([]byte, 512), 0o600))
	put(os.Symlink(at("ann.home"), at("link.home")))
	put(os.Symlink(at("nowhere"), at("dangling.home")))
	put(os.Symlink(dir, at("again")))
	put(os.Symlink("loop", at("loop")))
	images := []string{"/dev/null", "/proc/self/status", "/proc/1/cwd/x", "/sys/kernel", "relative", ""}
	for _, name := range []string{"ann.homedir", "ann.home", "link.home", "dangling.home", "bob.home", "closed/ann.home", "ann.home/x",
		"again/ann.home", "again/bob.home", "nodir/ann.home", "loop/ann.home", "ann.homedir/", "./ann.home"} {
		images = append(images, at(name), dir+"/"+name)
	}
	homes := []string{"", "/", "/proc", "/proc/self", "/dev/pts", "/nowhere/at/all", "//proc", "/proc/", at("loop/x"), at("ann.home/x"), dir}
	var s Survey
	seen := map[string]int{}
	for range 2 { // what is remembered is as good
		for _, storage := range []string{"luks", "directory", "cifs", ""} {
			for _, image := range images {
				for _, home := range homes {
					a := Area{Storage: storage, ImagePath: image, HomeDirectory: home}
					want, wantErr := Look(a)
					for what, f := range map[string]func(Area) (State, error){"survey": s.Look, "quickly": LookQuickly} {
						got, err := f(a)
						if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
							t.Errorf("%s, %+v: %v, %v, want %v, %v", what, a, got, err, want, wantErr)
						}
					}
					seen[fmt.Sprint(want, wantErr != nil)]++
				}
			}
		}
	}
	if len(seen) < 4 {
		t.Errorf("only %v were met", seen)
	}
}

// TestSurveyIsCheap: homes that are not there cost nothing each, and those that
// are one look.
func TestSurveyIsCheap(t *testing.T) {
	dir := t.TempDir()
	var s Survey
	const there, all = 3, 500
	for i := range there {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".home")), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[State]int{}
	for i := range all {
		state, err := s.Look(Area{Storage: "luks", ImagePath: filepath.Join(dir, fmt.Sprint(i, ".home")), HomeDirectory: filepath.Join(dir, fmt.Sprint(i))})
		if err != nil {
			t.Error(err)
		}
		seen[state]++
	}
	if seen[Inactive] != there || seen[Absent] != all-there || s.looks != there || s.lists != 1 {
		t.Errorf("seen %v, with %d looks and %d lists", seen, s.looks, s.lists)
	}
}

// TestSurveyOfFew: a directory of more names than that is left alone.
func TestSurveyOfFew(t *testing.T) {
	dir := t.TempDir()
	const there = 300
	for i := range there {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".home")), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, most := range []int{1, there - 1, there, there + 1, 0} {
		s := Survey{Most: most}
		for i := range there + 10 {
			a := Area{Storage: "luks", ImagePath: filepath.Join(dir, fmt.Sprint(i, ".home"))}
			if state, err := s.Look(a); err != nil || state != map[bool]State{true: Inactive, false: Absent}[i < there] {
				t.Errorf("at most %d, area %d: %v, %v", most, i, state, err)
			}
		}
		want := there
		if most > 0 && most < there {
			want += 10
		}
		if s.looks != want || s.lists != 1 {
			t.Errorf("at most %d: %d looks, want %d, and %d lists", most, s.looks, want, s.lists)
		}
	}
}
