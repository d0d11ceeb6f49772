// Command kdftime compares how long an unlock takes here and in cryptsetup: the
// same container, each time a process of its own, in turn. It makes the
// containers with cryptsetup, so neither side chooses what it is measured by.
// It knows what the worker does with a header and a password, and leaves out
// what follows: devices and file systems are timed in guests.
//
// With -root the programs to compare with are those of another system, whose
// tree is there with /dev, /proc and a writable /tmp.
//
//	kdftime [-n PAIRS] [-only WORDS] [-raw FILE] [-root DIR]
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
	"hearth/records"
	"hearth/storage/luks2"
	"hearth/storage/memory"
)

const (
	password   = "correct horse"
	cryptsetup = "/usr/sbin/cryptsetup"
	perl       = "/usr/bin/perl"
)

func main() {
	var err error
	if len(os.Args) > 2 && os.Args[1] == "unlock" {
		err = unlock(os.Args[2], os.Args[3:])
	} else {
		err = compare()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kdftime:", err)
		os.Exit(1)
	}
}

// unlock does what the worker does with a password: its hash, if one is given,
// beside the keyslot. An image of "-" has only the hash.
func unlock(image string, hash []string) error {
	p, err := secret.Copy([]byte(password))
	if err != nil {
		return err
	}
	defer p.Close()
	checked := make(chan error, 1)
	go func() {
		for _, h := range hash {
			if ok, err := records.CheckHash(h, p); err != nil || !ok {
				checked <- errors.Join(err, errors.New("the hash does not match"))
				return
			}
		}
		checked <- nil
	}()
	if image == "-" {
		return <-checked
	}
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	h, err := luks2.Read(f, size)
	if err != nil {
		return err
	}
	h.SetMemoryLimit(memory.Total())
	memory.Prepare(h.KDFMemory())
	key, _, err := h.Unlock(f, []*secret.Bytes{p})
	if err != nil {
		return err
	}
	key.Close()
	return <-checked
}

// A row is one comparison. gate and aim are the ratios that are asked for, 0
// where none is: the hash runs beside the keyslot, which takes longer.
type row struct {
	name       string
	format     []string // arguments of luksFormat; nil: the hash alone
	hashed     bool     // with a password hash: theirs after, ours beside
	gate, aim  float64
	ours, them []sample
}

// A sample is one run, in milliseconds: wall clock and processor time.
type sample struct {
	Wall, CPU float64
}

func argon(p int) []string {
	return []string{"--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-parallel", strconv.Itoa(p), "--pbkdf-force-iterations", "4"}
}

func rows() []*row {
	pbkdf2 := func(hash string) []string {
		return []string{"--pbkdf", "pbkdf2", "--hash", hash, "--pbkdf-force-iterations", "1000000"}
	}
	return []*row{
		{name: "Argon2id 64 MiB, 4 passes, 1 lane", format: argon(1), gate: 0.95, aim: 0.85},
		{name: "Argon2id 64 MiB, 4 passes, 2 lanes", format: argon(2), gate: 0.95, aim: 0.85},
		{name: "Argon2id 64 MiB, 4 passes, 4 lanes", format: argon(4), gate: 0.95, aim: 0.85},
		{name: "PBKDF2-SHA512, 1,000,000 rounds", format: pbkdf2("sha512"), gate: 1.10, aim: 1},
		{name: "PBKDF2-SHA256, 1,000,000 rounds", format: pbkdf2("sha256"), gate: 1.10, aim: 1},
		{name: "yescrypt (`$y$j9T$`), the hash alone", hashed: true},
		{name: "unlock: default keyslot, digest, password hash", hashed: true, gate: 0.80, aim: 0.70,
			format: []string{"--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-parallel", "1", "--iter-time", "500", "--hash", "sha512"}},
	}
}

// root is the tree that the other side's programs run in.
var root string

func compare() error {
	n := flag.Int("n", 9, "pairs that count, after one that does not")
	raw := flag.String("raw", "", "file for all samples, as JSON lines")
	only := flag.String("only", "", "rows with this in their name")
	flag.StringVar(&root, "root", "/", "tree of the programs to compare with")
	flag.Parse()
	for _, program := range []string{cryptsetup, perl} {
		if _, err := os.Stat(filepath.Join(root, program)); err != nil {
			return fmt.Errorf("it is needed to compare with: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "kdftime")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p, err := secret.Copy([]byte(password))
	if err != nil {
		return err
	}
	defer p.Close()
	hash, err := records.HashPassword(p, zeros{})
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(rows(), func(r *row) bool { return !strings.Contains(r.name, *only) })
	for i, r := range list {
		if err := r.measure(self, filepath.Join(dir, strconv.Itoa(i)), hash, *n); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	print(list)
	if *raw == "" {
		return nil
	}
	return writeRaw(*raw, list)
}

// zeros is the same salt each time.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func (r *row) measure(self, image, hash string, n int) error {
	var theirs, mine [][]string
	if r.format != nil {
		f, err := os.Create(image)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(32<<20), f.Close()); err != nil {
			return err
		}
		args := append([]string{"luksFormat", "--type", "luks2", "-q", "--key-size", "256", "--key-file", "-"}, r.format...)
		inside := "/" + strings.TrimPrefix(image, strings.TrimSuffix(root, "/")+"/")
		if _, err := run(append(append([]string{cryptsetup}, args...), inside), root); err != nil {
			return err
		}
		theirs = append(theirs, []string{cryptsetup, "open", "--test-passphrase", "--key-file", "-", inside})
		mine = [][]string{{self, "unlock", image}}
	}
	if r.hashed {
		// libxcrypt by the shortest way there is to it.
		theirs = append(theirs, []string{perl, "-e", "exit(crypt('" + password + "','" + hash + "') ne '" + hash + "')"})
		if mine == nil {
			mine = [][]string{{self, "unlock", "-"}}
		}
		mine[0] = append(mine[0], hash)
	}
	for i := range n + 1 {
		// A B, B A, A B: neither side is always the second.
		for _, first := range []bool{i%2 == 0, i%2 != 0} {
			commands, to, in := theirs, &r.them, root
			if first {
				commands, to, in = mine, &r.ours, "/"
			}
			var sum sample
			for _, argv := range commands {
				s, err := run(argv, in)
				if err != nil {
					return err
				}
				sum.Wall, sum.CPU = sum.Wall+s.Wall, sum.CPU+s.CPU
			}
			if i > 0 {
				*to = append(*to, sum)
			}
		}
	}
	return nil
}

// run runs a command to its end in the tree below in, with the password on its
// standard input.
func run(argv []string, in string) (sample, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	if in != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: in}
		cmd.Dir = "/"
	}
	cmd.Stdin = strings.NewReader(password)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(out.Bytes()))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return sample{ms(took), ms(cpu)}, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// spread is the median and the ends of what get takes from the samples.
func spread(list []sample, get func(sample) float64) (median, low, high float64) {
	var v []float64
	for _, s := range list {
		v = append(v, get(s))
	}
	slices.Sort(v)
	return v[len(v)/2], v[0], v[len(v)-1]
}

func wall(s sample) float64 { return s.Wall }
func cpu(s sample) float64  { return s.CPU }

func print(list []*row) {
	var name unix.Utsname
	_ = unix.Uname(&name)
	ask := exec.Command(cryptsetup, "--version")
	if root != "/" {
		ask.SysProcAttr, ask.Dir = &syscall.SysProcAttr{Chroot: root}, "/"
	}
	version, _ := ask.Output()
	fmt.Printf("%s, Linux %s, %s; milliseconds, median [min..max] of %d\n\n", time.Now().UTC().Format(time.DateOnly),
		unix.ByteSliceToString(name.Release[:]), strings.Join(append(strings.Fields(string(version)), "no", "version")[:2], " "), len(list[0].ours))
	fmt.Println("| | ours, wall | theirs, wall | ratio | gate | aim | ours, CPU | theirs, CPU | ratio |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	text := func(list []sample, get func(sample) float64) (string, float64) {
		m, low, high := spread(list, get)
		return fmt.Sprintf("%.0f [%.0f..%.0f]", m, low, high), m
	}
	limit := func(ratio float64) string {
		if ratio == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", ratio)
	}
	for _, r := range list {
		ow, om := text(r.ours, wall)
		tw, tm := text(r.them, wall)
		oc, ocm := text(r.ours, cpu)
		tc, tcm := text(r.them, cpu)
		fmt.Printf("| %s | %s | %s | %.2f | %s | %s | %s | %s | %.2f |\n", r.name, ow, tw, om/tm, limit(r.gate), limit(r.aim), oc, tc, ocm/tcm)
	}
}

func writeRaw(path string, list []*row) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	for _, r := range list {
		for i := range r.ours {
			if err := enc.Encode(map[string]any{"row": r.name, "pair": i, "ours": r.ours[i], "theirs": r.them[i]}); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}
