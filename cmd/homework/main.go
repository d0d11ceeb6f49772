// Command homework carries out one storage operation on one home and exits. The
// daemon starts it as root, in a mount namespace of its own, with the verb as
// its only argument, the record on descriptor 0 and its socket on 3; or ahead of
// any request, which it then finds on the socket, and for which it makes itself
// a namespace. It knows one record, one set of secrets and one volume key, for as
// long as it lives.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/worker"
	"hearth/internal/journal"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/directory"
	"hearth/storage/holders"
	"hearth/storage/luks"
	"hearth/storage/mounts"
	"hearth/storage/subvolume"
)

// backends are the kinds of storage that are built, by the record's words.
var backends = map[string]storage.Backend{
	"luks":      luks.Backend{},
	"directory": directory.Backend{},
	"subvolume": subvolume.Backend{},
}

// A worker that waits for its request makes itself a namespace, which is one of
// the first thread.
func init() {
	if isSpare() {
		runtime.LockOSThread()
	}
}

// quiet is how long a worker has waited when it makes more ready than itself:
// operations that follow each other at once would have to share the processor
// with that.
const quiet = 250 * time.Millisecond

func isSpare() bool { return len(os.Args) == 2 && os.Args[1] == worker.SpareVerb }

func main() {
	if len(os.Args) == 2 && os.Args[1] == holders.Verb {
		// Not root any more: a worker started it as the home's user.
		os.Exit(holders.Child(os.Stdin, os.Stdout))
	}
	rarelyCollect()
	log := journal.New("homework")
	slog.SetDefault(log)
	if len(os.Args) != 2 || os.Args[1] == "" || os.Args[1][0] == '-' {
		fmt.Fprintln(os.Stderr, "homework VERB is started by the home service only.")
		os.Exit(1)
	}
	if err := harden(); err != nil {
		log.Error("cannot protect secrets", "error", err)
		os.Exit(1)
	}
	verb := os.Args[1]
	var prepare *time.Timer
	if isSpare() {
		prepare = time.AfterFunc(quiet, mounts.PrepareShift)
	}
	err := worker.Serve(verb, func(ctx context.Context, r worker.Request, up worker.Uplink) ([]byte, error) {
		if isSpare() {
			prepare.Stop()
			verb, began = r.Verb, time.Now()
			if err := mounts.NewNamespace(); err != nil {
				return nil, err
			}
		}
		if r.Verb != verb {
			return nil, fmt.Errorf("started for %q, asked for %q", verb, r.Verb)
		}
		t := newTrace()
		out, err := serve(trace.With(ctx, t), log, r, up)
		if terr := saveTrace(t, verb); terr != nil {
			log.Warn("cannot note what the operation cost", "error", terr)
		}
		return out, err
	})
	if err != nil {
		log.Error("no answer was given", "HOME_VERB", verb, "error", err)
		os.Exit(1)
	}
}

// collectFrom is how much memory this process may take before it looks for what
// it does not need any more, in bytes.
const collectFrom = 192 << 20

// rarelyCollect lets the memory of a process that ends in a moment be. To look
// for garbage for the first time touches two hundred pages of the runtime's own,
// and reading a header alone is garbage enough for that.
func rarelyCollect() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(collectFrom)
}

// harden keeps what this process will know out of core dumps and away from
// debuggers.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// serve carries out the request.
func serve(ctx context.Context, log *slog.Logger, r worker.Request, up worker.Uplink) ([]byte, error) {
	trace.From(ctx).Step("request")
	record, err := records.Parse(r.Record, records.WorkerInput)
	if err != nil {
		return nil, err
	}
	log = log.With("HOME_USER", record.UserName(), "HOME_VERB", r.Verb)
	secrets, err := records.ParseSecrets(r.Secrets)
	if err != nil {
		return nil, err
	}
	defer secrets.Close()
	if err := mounts.EnterWorkNamespace(); err != nil {
		return nil, err
	}
	keys := &records.Keys{}
	for name, pem := range r.Params.Keys {
		if err := keys.Add(name, []byte(pem)); err != nil {
			log.Warn("a public key does not count", "key", name, "error", err)
		}
	}
	subject := keys.Subject(record, r.Params.Machine.ID)
	trace.From(ctx).Step("look")
	out, err := storage.Run(ctx, storage.Host{
		Machine:               r.Params.Machine,
		HomeRoot:              r.Params.HomeRoot,
		DefaultStorage:        r.Params.DefaultStorage,
		DefaultFileSystemType: r.Params.DefaultFileSystemType,
		RunDir:                r.Params.RunDir,
		Log:                   log,
		Progress:              up.Progress,
		ImageLock:             up.ImageLock,
		HaveImageLock:         r.Params.HaveImageLock,
		KeepSize:              r.Params.KeepSize,
		Keep:                  func(r *records.Record) error { return up.Keep(r.Compact()) },
		Keys:                  keys,
		BlobDir:               r.Params.BlobDir,
		Blobs:                 r.Blobs,
		Offline:               r.Params.Offline,
		MadeOf:                r.Params.MadeOf,
		Users: func(uid, gid uint32, dir string) (string, error) {
			return holders.Who("/proc/self/exe", uid, gid, dir)
		},
	}, r.Verb, subject, secrets, backends)
	if err != nil {
		return nil, err
	}
	if out == nil {
		return nil, nil
	}
	return out.Compact(), nil
}
