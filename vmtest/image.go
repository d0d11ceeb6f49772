package vmtest

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Suite is a release of Debian, by its code name.
type Suite string

// The suites we test on. Their systemd is the reason: 257 refuses PAM
// conversations of services, 262 is the newest peer.
const (
	Forky  Suite = "forky"  // systemd 262
	Trixie Suite = "trixie" // systemd 257
)

// Suites lists them all.
var Suites = []Suite{Forky, Trixie}

// kernelSuite is where the kernels come from, for every suite: the user-mode
// kernels of the others die at their first process on newer hosts.
const kernelSuite = Forky

// packages are what every guest has.
var packages = strings.Fields(`
	systemd systemd-sysv dbus udev kmod libpam-systemd libnss-systemd
	systemd-userdbd systemd-container polkitd
	systemd-homed libcryptsetup12 libpwquality1 libfdisk1 libblkid1 libmount1
	openssh-server openssh-client
	cryptsetup-bin btrfs-progs xfsprogs e2fsprogs dosfstools util-linux fdisk
	login passwd sudo pamtester expect tmux socat strace acl attr keyutils
	jq xz-utils procps psmisc cifs-utils samba less
	cron rsync git greetd plymouth`)

// more are the packages that only one suite has or needs.
var more = map[Suite][]string{
	Forky: {"libcrypt1"},
}

//go:embed guest/setup.sh
var setup string

const (
	imageSize    = "4G"
	imageVersion = "1" // raise it for changes that the recipe's text does not show
)

var mkfsArgs = strings.Fields("-q -F -t ext4 -L hearth -E lazy_itable_init=0,lazy_journal_init=0 -J size=32")

// image returns the path of the suite's root disk with the modules of k,
// built if need be.
func image(log io.Writer, s Suite, k kernel) (string, error) {
	if !slices.Contains(Suites, s) {
		return "", fmt.Errorf("unknown suite %q", s)
	}
	list := slices.Concat(packages, more[s])
	key := recipe(imageVersion, string(s), strings.Join(list, ","), setup, strings.Join(mkfsArgs, " "), imageSize, k.key)
	return cached(log, string(s)+"-"+k.kind, key, func(work, tmp, final string) error {
		began := time.Now()
		fmt.Fprintf(log, "%s: building the guest image (once, a minute or two)\n", s)
		script := filepath.Join(work, "setup.sh")
		if err := os.WriteFile(script, []byte(setup), 0o755); err != nil {
			return err
		}
		tarball := filepath.Join(work, "tree.tar")
		args := []string{
			"--variant=minbase", "--include=" + strings.Join(list, ","),
			// A guest needs no manuals, and none of its data outlives a crash.
			"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
			"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
			"--dpkgopt=force-unsafe-io",
			"--customize-hook=tar-in " + k.modules() + " /",
			"--customize-hook=sh " + script + ` "$1"`,
		}
		if err := debootstrap(log, s, tarball, args); err != nil {
			return err
		}
		fmt.Fprintf(log, "%s: making the file system\n", s)
		tree := filepath.Join(work, "tree")
		// Unprivileged, owners other than ourselves exist only in a user name space.
		var wrap []string
		if os.Geteuid() != 0 {
			wrap = []string{"mmdebstrap", "--unshare-helper"}
		}
		sh := `set -eu; mkdir -p "$1"; tar -xf "$2" -C "$1" --exclude='./dev/*'; shift 2; "$@"`
		mkfs := slices.Concat([]string{"mkfs.ext4"}, mkfsArgs, []string{"-d", tree, tmp, imageSize})
		if err := run(log, string(s), slices.Concat(wrap, []string{"sh", "-c", sh, "sh", tree, tarball}, mkfs)...); err != nil {
			return err
		}
		if len(wrap) > 0 { // its files belong to ids that only the helper may remove
			if err := run(log, string(s), slices.Concat(wrap, []string{"rm", "-rf", tree})...); err != nil {
				return err
			}
		}
		fmt.Fprintf(log, "%s: guest image ready after %.0f s\n", s, time.Since(began).Seconds())
		return nil
	})
}

// debootstrap runs mmdebstrap for the suite with the machine's own mirror.
func debootstrap(log io.Writer, s Suite, target string, args []string) error {
	mirror, err := mirror("/etc", os.Getenv("HEARTH_MIRROR"))
	if err != nil {
		return err
	}
	args = slices.Concat([]string{"mmdebstrap"}, args, []string{
		// An older host's keyring package has the newer suites' keys in files of
		// their own; a mirror may be a snapshot.
		"--keyring=/usr/share/keyrings", `--aptopt=Acquire::Check-Valid-Until "false"`, "--aptopt=Acquire::Retries \"3\"",
		string(s), target, mirror,
	})
	return run(log, string(s), args...)
}

// mirror finds where this machine gets Debian from: the source of its own
// release, in deb822 or one-line form. A value given wins.
func mirror(etc, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	release, err := os.ReadFile(filepath.Join(etc, "os-release"))
	if err != nil {
		return "", fmt.Errorf("find this machine's release: %w", err)
	}
	own := map[string]bool{"stable": true, "testing": true, "unstable": true, "sid": true}
	for line := range strings.Lines(string(release)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && name == "VERSION_CODENAME" {
			own[strings.Trim(value, `"`)] = true
		}
	}
	files, _ := filepath.Glob(filepath.Join(etc, "apt/sources.list.d/*"))
	for _, f := range append([]string{filepath.Join(etc, "apt/sources.list")}, files...) {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		var uri string
		switch filepath.Ext(f) {
		case ".sources":
			uri = deb822(string(text), own)
		case ".list":
			uri = oneLine(string(text), own)
		}
		if uri != "" {
			return uri, nil
		}
	}
	return "", errors.New("no Debian mirror in this machine's apt sources; set HEARTH_MIRROR")
}

func oneLine(text string, own map[string]bool) string {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "deb" {
			continue
		}
		f = f[1:]
		if strings.HasPrefix(f[0], "[") { // options end with the word that has the bracket
			for len(f) > 0 && !strings.HasSuffix(f[0], "]") {
				f = f[1:]
			}
			f = f[min(1, len(f)):]
		}
		if len(f) >= 3 && own[f[1]] && slices.Contains(f[2:], "main") {
			return f[0]
		}
	}
	return ""
}

func deb822(text string, own map[string]bool) string {
	for stanza := range strings.SplitSeq(text, "\n\n") {
		fields := map[string][]string{}
		var name string
		for line := range strings.Lines(stanza) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if line[0] != ' ' && line[0] != '\t' {
				var value string
				name, value, _ = strings.Cut(line, ":")
				name, line = strings.ToLower(name), value
			}
			fields[name] = append(fields[name], strings.Fields(line)...)
		}
		if slices.Contains(fields["enabled"], "no") || !slices.Contains(fields["types"], "deb") ||
			!slices.Contains(fields["components"], "main") || len(fields["uris"]) == 0 {
			continue
		}
		if slices.ContainsFunc(fields["suites"], func(s string) bool { return own[s] }) {
			return fields["uris"][0]
		}
	}
	return ""
}

// run runs a program and passes on what it says, line by line behind the
// name. A failure carries its last lines.
func run(log io.Writer, name string, argv ...string) error {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return fmt.Errorf("%s is missing; run \"make deps\": %w", argv[0], err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	// mkfs and the like live where an ordinary user's PATH does not look.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	var tail []string
	lines := bufio.NewScanner(r)
	lines.Split(scanLines)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		if tail = append(tail, line); len(tail) > 15 {
			tail = tail[1:]
		}
		if strings.HasPrefix(line, "I: ") {
			fmt.Fprintf(log, "%s: %s\n", name, line[3:])
		}
	}
	io.Copy(io.Discard, r) // a line too long for the scanner must not block the program
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(argv[0]), err, strings.Join(tail, "\n"))
	}
	return nil
}

// scanLines ends lines at carriage returns too: progress bars.
func scanLines(data []byte, end bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if end && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
