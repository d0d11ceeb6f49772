package long

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// script runs run.sh with a program in the place of go, for the parts given.
func script(t *testing.T, goes, parts string) (lines []string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/bash\n"+goes), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("./run.sh", "1s", parts)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HEARTH_TEST_LOG="+filepath.Join(dir, "log"))
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	for line := range strings.Lines(string(out)) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), "  ") // behind date and commit
		lines = append(lines, strings.ReplaceAll(text, dir, "DIR"))
	}
	return lines, err == nil
}

// TestScript: each part has its line, whatever the others say, and a failure is
// the script's.
func TestScript(t *testing.T) {
	const passes = `case "$*" in
*-fuzz*) echo 'fuzz: elapsed: 3s, execs: 4711 (0/sec)' ;;
*) echo '    x_test.go:1: RESULT part: 3 of 3'; echo '--- PASS: TestX (1.00s)' ;;
esac
`
	for _, c := range []struct {
		name, goes, parts string
		ok                bool
		want              []string
	}{
		{"passes", passes, "^vmtest/long|FuzzFind$", true, []string{
			"part: 3 of 3", "vmtest/long TestCrash: passed", "part: 3 of 3", "vmtest/long TestKilled: passed",
			"storage/gpt FuzzFind: 4711 inputs in 1s: nothing found"}},
		{"fails", `case "$*" in *TestCrash*) echo '    --- FAIL: TestCrash/ext4 (1s)'; exit 1 ;; esac` + "\n" + passes, "^vmtest/long", false, []string{
			"TestCrash/ext4: FAILED", "vmtest/long TestCrash: FAILED, see DIR/log",
			"part: 3 of 3", "vmtest/long TestKilled: passed"}},
		{"is not built", "echo 'undefined: x'; exit 2\n", "TestCrash|FuzzFind$", false, []string{
			"vmtest/long TestCrash: FAILED, see DIR/log", "storage/gpt FuzzFind: 0 inputs: FAILED, see DIR/log"}},
		{"is skipped", "echo '--- SKIP: TestCrash (0.00s)'\n", "TestCrash", false, []string{
			"vmtest/long TestCrash: FAILED, nothing ran, see DIR/log"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, ok := script(t, c.goes, c.parts)
			if ok != c.ok {
				t.Errorf("exit status 0: %v", ok)
			}
			for i := range lines {
				lines[i], _, _ = strings.Cut(lines[i], " (")
			}
			if got, want := strings.Join(lines, "\n"), strings.Join(c.want, "\n"); got != want {
				t.Errorf("it says\n%s\nwant\n%s", got, want)
			}
		})
	}
}
