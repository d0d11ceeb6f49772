package config_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/homed/config"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	for name, c := range map[string]struct {
		files    map[string]string
		want     config.Config
		warnings int
	}{
		"nothing": {nil, config.Config{}, 0},
		"first directory only": {map[string]string{
			"etc/homed.conf": "[Home]\nDefaultStorage=luks\n",
			"usr/homed.conf": "[Home]\nDefaultFileSystemType=xfs\n",
		}, config.Config{DefaultStorage: "luks"}, 0},
		"drop-ins in order of name": {map[string]string{
			"usr/homed.conf":             "# c\n[Home]\nDefaultFileSystemType = xfs\n",
			"usr/homed.conf.d/20-b.conf": "[Home]\nDefaultFileSystemType=ext4\n",
			"etc/homed.conf.d/10-a.conf": "[Home]\nDefaultFileSystemType=btrfs\nDefaultStorage=directory",
		}, config.Config{DefaultStorage: "directory", DefaultFileSystemType: "ext4"}, 0},
		"same name masks": {map[string]string{
			"usr/homed.conf.d/a.conf": "[Home]\nDefaultStorage=luks\n",
			"etc/homed.conf.d/a.conf": "",
		}, config.Config{}, 0},
		"empty resets": {map[string]string{
			"etc/homed.conf":          "[Home]\nDefaultStorage=luks\nDefaultFileSystemType=ext4\n",
			"etc/homed.conf.d/a.conf": "[Home]\nDefaultStorage=\nDefaultFileSystemType=\n",
		}, config.Config{}, 0},
		"unknown things warn": {map[string]string{
			"etc/homed.conf": "DefaultStorage=luks\n[Other]\nA=b\n[Home]\nDefaultStorage=floppy\nNope=1\nrubbish\nX-Mine=2\n",
		}, config.Config{}, 5},
		"continued line": {map[string]string{
			"etc/homed.conf": "[Home]\nDefaultStorage=\\\n; between\n  luks\n",
		}, config.Config{DefaultStorage: "luks"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range c.files {
				write(t, filepath.Join(dir, f), text)
			}
			var log strings.Builder
			got, err := config.Load(config.Layout{ConfigDirs: []string{filepath.Join(dir, "etc"), filepath.Join(dir, "usr")}},
				slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != c.warnings {
				t.Errorf("%d warnings, want %d:\n%s", n, c.warnings, log.String())
			}
		})
	}
}

func TestLingerPrompt(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": time.Minute, "0": 0, "0s": 0, "20": 20 * time.Second, "45s": 45 * time.Second, "1min": time.Minute, "500ms": time.Second / 2,
		"1h": time.Minute, "-3": time.Minute, "soon": time.Minute,
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "homed.conf"), "[Home]\nLingerPromptSec="+value+"\n")
		got, err := config.Load(config.Layout{ConfigDirs: []string{dir}}, slog.New(slog.DiscardHandler))
		if err != nil || got.LingerLimit() != want {
			t.Errorf("%q: %v, %v", value, got.LingerLimit(), err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	env := map[string]string{
		"SYSTEMD_HOME_ROOT":         "/srv/home/",
		"SYSTEMD_HOME_RECORD_DIR":   "relative",
		"SYSTEMD_HOMEWORK_PATH":     "/opt/homework",
		"SYSTEMD_HOME_DEBUG_SUFFIX": "x",
	}
	l := config.DefaultLayout("/usr/lib/hearth").WithEnvironment(func(k string) string { return env[k] }, slog.New(slog.DiscardHandler))
	if l.HomeRoot != "/srv/home" || l.RecordDir != "/var/lib/systemd/home" || l.Worker != "/opt/homework" ||
		l.BusName != "org.freedesktop.home1.x" || l.UserDBSocket != "/run/systemd/userdb/io.systemd.Home.x" {
		t.Errorf("got %+v", l)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("[Home]\nDefaultStorage=luks\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "homed.conf"), text)
		_, _ = config.Load(config.Layout{ConfigDirs: []string{dir}}, slog.New(slog.DiscardHandler))
	})
}
