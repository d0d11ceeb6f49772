package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"hearth/homed/home"
	"hearth/homed/worker"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// call is an operation that waits for its answer.
type call struct {
	op        Operation
	secrets   *secret.Bytes // until the worker has them, which may start after the caller left
	fresh     *secret.Bytes // the new passwords among them, for ChangePassword
	madeOf    []int         // of which of the secrets' passwords each hash was made
	wantsInfo bool
	reply     chan answer // of one
	all       *collective // instead of reply: part of an operation on all homes
	balances  bool        // nobody asked: rebalancing resizes
	fits      bool        // a resize to the size that the image has
}

type answer struct {
	result Result
	err    error
}

func (c *call) finish(a answer) {
	c.close()
	if c.all != nil {
		c.all.finish(a.err)
		return
	}
	c.reply <- a
}

// close wipes the secrets and closes the files: nobody needs them after the
// worker has them.
func (c *call) close() {
	for _, p := range []**secret.Bytes{&c.secrets, &c.fresh, &c.op.Secrets, &c.op.OldSecrets} {
		(*p).Close()
		*p = nil
	}
	for _, f := range c.op.Blobs {
		_ = f.Close()
	}
	c.op.Blobs = nil
}

// refused ends a call that never reached the loop.
func (c *call) refused(err error) (Result, error) {
	c.close()
	return Result{}, err
}

// takeSecrets makes the secrets of the operation the call's. Faults: NoMemory,
// InvalidArgs.
func (c *call) takeSecrets() (err error) {
	c.secrets, c.op.Secrets = c.op.Secrets, nil
	if c.op.Verb != home.ChangePassword {
		return nil
	}
	c.fresh = c.secrets
	c.secrets, err = merged(c.fresh, c.op.OldSecrets)
	return err
}

// merged joins two secret sections, the newer one first.
func merged(newer, older *secret.Bytes) (*secret.Bytes, error) {
	n, err := records.ParseSecrets(newer)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	o, err := records.ParseSecrets(older)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	both, err := records.MergeSecrets(n, o)
	if err != nil {
		return nil, err
	}
	defer both.Close()
	return both.Encode()
}

// collective gathers the answers of all homes into one.
type collective struct {
	left  int
	err   error
	reply chan answer
}

// finish counts one answer. One home's failure is the answer, whatever came
// after it: who shuts a machine down has to know.
func (c *collective) finish(err error) {
	if err != nil {
		c.err = err
	}
	if c.left--; c.left == 0 {
		c.reply <- answer{err: c.err}
	}
}

// Do carries out an operation and waits for it to end. When ctx ends first,
// only the waiting ends: the operation goes on, and the reference it may yield
// is closed.
func (m *Manager) Do(ctx context.Context, op Operation) (_ Result, err error) {
	c := &call{op: op, reply: make(chan answer, 1)}
	switch op.Verb {
	case home.Create, home.Register:
		return m.introduce(ctx, c)
	case home.Unregister, home.Remove:
		// What the record hid shows when the caller is told.
		defer func() {
			if err == nil {
				m.rescanned(ctx)
			}
		}()
	}
	if err := m.admitChange(op); err != nil {
		return c.refused(fault.For(op.Key.Name, err))
	}
	if err := c.takeSecrets(); err != nil {
		return c.refused(err)
	}
	err = m.ask(ctx, func() {
		switch {
		case m.stopping:
			c.finish(answer{err: stopping()})
		case op.Verb == home.DeactivateAll, op.Verb == home.LockAll:
			m.beginAll(c)
		case op.Verb == home.Rebalance:
			m.rebalance(c)
		default:
			if e := m.find(op.Key); e != nil {
				if op.Verb == home.ChangePassword {
					if err := m.signedElsewhere(e); err != nil {
						c.finish(answer{err: err})
						return
					}
				}
				m.begin(e, c)
				return
			}
			c.finish(answer{err: noSuchHome(op.Key)})
		}
	})
	if err != nil {
		return c.refused(err)
	}
	return m.await(ctx, c)
}

func stopping() error {
	return fault.Newf(fault.ServiceUnknown, "take operation", "The home service is stopping.")
}

func (m *Manager) await(ctx context.Context, c *call) (Result, error) {
	if c.op.Posted != nil {
		c.op.Posted()
	}
	select {
	case a := <-c.reply:
		return a.result, a.err
	case <-ctx.Done():
		// Nobody takes the reference any more: its end is that of the login.
		go func() {
			select {
			case a := <-c.reply:
				if a.result.Reference != nil {
					_ = a.result.Reference.Close()
				}
			case <-m.ended:
			}
		}()
		return Result{}, fault.New(fault.Timeout, "wait for "+string(c.op.Verb), ctx.Err())
	case <-m.ended:
		select {
		case a := <-c.reply:
			return a.result, a.err
		default:
		}
		return Result{}, stopping()
	}
}

// begin gives a call to a home.
func (m *Manager) begin(e *entry, c *call) {
	m.checkReferences(e)
	if err := m.admitStranger(e, &c.op); err != nil {
		c.finish(answer{err: fault.For(e.name, err)})
		return
	}
	if c.op.Verb == home.Unlock {
		// Whatever the home's state: the limit comes first here.
		if err := m.attempt(e, home.WorkUnlock); err != nil {
			c.finish(answer{err: fault.For(e.name, err)})
			return
		}
	}
	m.lastID++
	m.calls[m.lastID] = c
	kind := home.DontSuspend
	if c.op.PleaseSuspend {
		kind = home.PleaseSuspend
	}
	m.step(e, home.Call{ID: m.lastID, Verb: c.op.Verb, Kind: kind,
		Offline: c.op.Verb == home.Update && c.op.Flags&Offline != 0})
}

// beginAll gives a call to every home; the one answer comes with the last.
func (m *Manager) beginAll(c *call) {
	if len(m.homes) == 0 {
		c.finish(answer{})
		return
	}
	all := &collective{left: len(m.homes), reply: c.reply}
	var list []*entry
	for _, e := range m.homes {
		list = append(list, e)
	}
	for _, e := range list {
		if e.gone {
			all.finish(nil)
			continue
		}
		m.begin(e, &call{op: c.op, all: all})
	}
}

// start starts the worker that the state machine asked for. Whatever keeps it
// from starting is the operation's end.
func (m *Manager) start(e *entry, s home.Start) {
	if err := m.launch(e, s); err != nil {
		m.notStarted(e, s, err)
	}
}

func (m *Manager) notStarted(e *entry, s home.Start, err error) {
	m.logOf(e).Warn("operation did not start", "HOME_VERB", string(s.Work), "error", err)
	m.step(e, home.Done{Err: err})
}

func (m *Manager) launch(e *entry, s home.Start) error {
	c := m.calls[s.Call.ID]
	var secrets *secret.Bytes
	if c != nil {
		secrets = c.secrets
	}
	if s.Attempt && (c == nil || !c.balances) {
		if err := m.attempt(e, s.Work); err != nil {
			return err
		}
	}
	switch s.Work {
	case home.WorkCreate:
		return m.launchCreate(e, s, c)
	case home.WorkUpdate:
		return m.launchUpdate(e, s, c)
	case home.WorkPasswd:
		return m.launchPasswd(e, s, c)
	case home.WorkResize:
		return m.launchResize(e, s, c)
	case home.WorkLock:
		return m.launchLock(e, s)
	}
	return m.work(e, s, e.subject, secrets)
}

// work starts the worker with a record, which need not be the home's yet.
func (m *Manager) work(e *entry, s home.Start, subject records.Subject, secrets *secret.Bytes) error {
	r := worker.Request{
		Verb:         string(s.Work),
		Record:       subject.Record().Compact(),
		Secrets:      secrets,
		SharedMounts: m.SharedMounts,
		Params: worker.Params{
			Machine:               m.Machine,
			HomeRoot:              m.Layout.HomeRoot,
			DefaultStorage:        m.Config.DefaultStorage,
			DefaultFileSystemType: m.Config.DefaultFileSystemType,
			HaveImageLock:         e.lock != nil,
			RunDir:                m.Layout.RunDir,
			KeepSize:              s.Call.Verb == home.DeactivateAll,
			Keys:                  m.keys.public(),
			BlobDir:               m.blobDir(e),
			Offline:               s.Call.Offline,
		},
	}
	var progress func(string, uint64, uint64)
	if c := m.calls[s.Call.ID]; c != nil {
		r.Blobs, r.Params.MadeOf = c.op.Blobs, c.madeOf
		progress = c.op.Progress
	}
	log := m.logOf(e).With("HOME_VERB", string(s.Work))
	// Not the caller's context: a terminal that closes must not leave half a
	// file system.
	var p *worker.Process
	var err error
	m.aside(func() { p, err = m.spare.Start(context.Background(), m.Layout.Worker, r) })
	if err != nil {
		return err
	}
	log.Debug("worker started")
	if c := m.calls[s.Call.ID]; c != nil && !e.home.Stored.WorksTwice() {
		c.close()
	}
	m.workers++
	uid := e.UID
	go func() {
		for ev := range p.Events() {
			if ev.Answer != nil && (s.Work == home.WorkLock || s.Work == home.WorkUnlock) {
				m.thawUnlessLocked(log, e.name, uid)
			}
			if p := ev.Progress; p != nil && progress != nil {
				progress(p.Stage, p.Done, p.Total)
			}
			m.deliver(e, s, ev)
		}
	}()
	return nil
}

// deliver takes what a worker reports to the loop.
func (m *Manager) deliver(e *entry, s home.Start, ev worker.Event) {
	switch {
	case ev.ImageLock != nil:
		took := m.post(func() {
			closeFile(&e.lock)
			e.lock = ev.ImageLock
		})
		if !took {
			_ = ev.ImageLock.Close()
		}
	case ev.Progress != nil:
		m.logOf(e).Debug("worker progresses", "HOME_VERB", string(s.Work), "stage", ev.Progress.Stage, "done", ev.Progress.Done, "total", ev.Progress.Total)
	case ev.Keep != nil:
		if !m.post(func() { m.keepEarly(e, s, ev.Keep) }) {
			ev.Keep.Reply(stopping())
		}
	case ev.Answer != nil:
		m.post(func() {
			m.workers--
			m.checkReferences(e)
			m.step(e, m.judge(e, s, *ev.Answer))
			m.prepareIn(spareNext)
			if ev.Answer.Err == nil && (s.Work == home.WorkActivate || s.Work == home.WorkDeactivate || s.Work == home.WorkRemove) {
				m.balanceIn(0)
			}
		})
	}
}

// attempt counts an attempt to authenticate. Fault: AuthenticationLimit.
func (m *Manager) attempt(e *entry, w home.Work) error {
	now := m.now()
	after, next, ok := records.Attempt(e.subject, m.Machine, now)
	if !ok {
		return tooMany(string(w)+" home", now, next)
	}
	m.count(e, after)
	return nil
}

// count keeps counters, on disk too where the home has a record there.
func (m *Manager) count(e *entry, counted records.Subject) {
	m.storeRecord(e, counted)
	if !e.saved {
		return
	}
	if err := m.saveCounters(e); err != nil {
		m.logOf(e).Error("cannot save the record", "error", err)
	}
}

// judge says what a worker's answer means: counts it, checks and takes over
// the record that came back.
func (m *Manager) judge(e *entry, s home.Start, a worker.Answer) home.Done {
	log := m.logOf(e).With("HOME_VERB", string(s.Work))
	if s.Work == home.WorkInspect && (a.Err == nil || fault.Is(a.Err, fault.BadSignature)) {
		return m.judgeInspect(e, s, a)
	}
	if a.Err != nil {
		log.Warn("operation failed", "error", a.Err)
		a.Err = executed(a.Err)
		switch fault.KindOf(a.Err) {
		case fault.BadPassword, fault.BadPasswordAndNoToken, fault.BadRecoveryKey:
			// Who makes a home does not log in.
			if s.Work != home.WorkCreate {
				m.count(e, records.Count(e.subject, m.Machine.ID, e.subject.Counters(m.Machine.ID).Failed(m.now())))
			}
		}
		return home.Done{Err: a.Err, Suspended: s.Work == home.WorkLock && m.suspended(log, e.name)}
	}
	switch s.Work {
	case home.WorkActivate:
		if a.Record != nil {
			r, err := m.accept(e, a.Record)
			if err != nil {
				log.Warn("the record found in the home is not accepted, detaching it again", "error", err)
				return home.Done{Err: err, Undo: true}
			}
			m.adopt(e, r)
		}
		m.succeeded(e)
		if m.look(e) != home.SeenMounted {
			// The worker mounted it where only it could see, and the mount has
			// gone with it.
			return home.Done{Err: notShown(e)}
		}
	case home.WorkUpdate, home.WorkPasswd, home.WorkResize:
		return m.judgeChange(e, s, a.Record)
	case home.WorkUnlock:
		m.succeeded(e)
	case home.WorkCreate:
		if r, err := m.accept(e, a.Record); err != nil {
			log.Error("the record of the new home is not accepted, keeping the one given", "error", err)
		} else {
			m.adopt(e, r)
		}
		if err := m.save(e); err != nil {
			log.Error("cannot save the record", "error", err)
		}
	}
	return home.Done{}
}

// executed says of an errno of the system what clients know to be a worker's.
func executed(err error) error {
	var f *fault.Error
	if !errors.As(err, &f) || !f.Kind.General() {
		return err
	}
	plain := fault.Public(fault.New(f.Kind, "", nil))
	switch f.Kind {
	case fault.NotSupported, fault.WorkerFailed, fault.KeyUnavailable, fault.Unknown:
		return err
	}
	if fault.Public(f) != plain {
		return err
	}
	named := *f
	named.Text = "Failed to execute operation: " + plain
	named.Err = err
	return &named
}

// notShown is what is told of a home that was opened and is not there.
func notShown(e *entry) error {
	err := fault.Newf(fault.IOError, "activate", "The home directory %s does not show what is mounted there. Is it on a file system of its own?", e.HomeDirectory)
	err.User = e.name
	return err
}

// judgeInspect takes the record that an inspection brought, or a worker's word
// that the one in the home is newer and nobody vouches for it: by then the
// password was right. For a home that has none yet it is the first, and has to
// be in order.
func (m *Manager) judgeInspect(e *entry, s home.Start, a worker.Answer) home.Done {
	r, err := records.Verified{}, a.Err
	if err == nil {
		r, err = m.accept(e, a.Record)
	}
	// An inspection of a home that has a record, or one that is only asked
	// whether the password is right, succeeds whatever the record is worth.
	unfixated := !e.saved
	switch {
	case !unfixated:
		if err != nil {
			m.logOf(e).Warn("the record found in the home is not accepted, keeping ours", "error", err)
		} else {
			m.adopt(e, r)
		}
		m.succeeded(e)
		return home.Done{}
	case err != nil && s.Call.Verb == home.Authenticate:
		m.logOf(e).Warn("the record found in the home is not accepted", "error", err)
		return home.Done{}
	case err != nil:
		return home.Done{Err: err}
	}
	m.adopt(e, r)
	if s.Call.Verb == home.Fixate || s.Call.Verb == home.Authenticate {
		m.storeRecord(e, m.afterSuccess(e))
	}
	if err := m.save(e); err != nil {
		return home.Done{Err: notSaved("fixate home", err)}
	}
	m.logOf(e).Info("the record found in the home is accepted and kept from now on")
	return home.Done{Fixated: true}
}

// succeeded counts a right password.
func (m *Manager) succeeded(e *entry) {
	m.storeRecord(e, m.afterSuccess(e))
	if !e.saved {
		return
	}
	// It may differ in more than that: in what an activation found.
	if err := m.save(e); err != nil {
		m.logOf(e).Error("cannot save the record", "error", err)
	}
}

func (m *Manager) afterSuccess(e *entry) records.Subject {
	return records.Count(e.subject, m.Machine.ID, e.subject.Counters(m.Machine.ID).Succeeded(m.now()))
}

// accept checks a record that a worker found: whose it is, who signed it, and
// that its ids are free. What the host knows beyond it, other machines'
// bindings and the counters, is added. Faults: IOError without a record,
// OtherUser, BadSignature, UIDInUse, and those of records.
func (m *Manager) accept(e *entry, text []byte) (records.Verified, error) {
	const op = "accept record"
	refuse := func(err error) (records.Verified, error) { return records.Verified{}, err }
	if text == nil {
		return refuse(fault.New(fault.IOError, op, errors.New("the worker brought none")))
	}
	r, err := records.Parse(text, records.WorkerOutput)
	if err != nil {
		return refuse(err)
	}
	known := e.subject.Record()
	if r.UserName() != e.name || r.Realm() != known.Realm() {
		return refuse(fault.New(fault.OtherUser, op, fmt.Errorf("it is that of %s", r.FullName())))
	}
	if e.saved && !sameSet(r.Aliases(), known.Aliases()) {
		return refuse(fault.New(fault.OtherUser, op, errors.New("its aliases are others")))
	}
	for _, a := range r.Aliases() {
		if o := m.names[a]; o != nil && o != e {
			return refuse(fault.New(fault.UserNameExists, op, fmt.Errorf("its alias %s is taken by %s", a, o.name)))
		}
	}
	v, err := m.keys.Vouch(r)
	if err != nil {
		return refuse(err)
	}
	bound, _ := r.Binding(m.Machine.ID)
	// A home that was found has none until its record is known.
	bound.BlobDirectory = cmp.Or(bound.BlobDirectory, m.Layout.BlobDir+"/"+e.name)
	v = records.Bind(v.WithBindingOf(e.subject), m.Machine.ID, bound).WithStatusOf(e.subject)
	if err := v.Record().Suitable(m.Machine); err != nil {
		return refuse(err)
	}
	if o := m.find(Key{UID: v.View(m.Machine).UID, ByUID: true}); o != nil && o != e {
		return refuse(fault.New(fault.UIDInUse, op, fmt.Errorf("by %s", o.name)))
	}
	return v, nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// introduce takes a new record: Register keeps it, Create makes its home.
func (m *Manager) introduce(ctx context.Context, c *call) (Result, error) {
	op := c.op
	if op.Record == nil {
		return c.refused(fault.New(fault.InvalidArgs, string(op.Verb), errors.New("no record")))
	}
	name := op.Record.UserName()
	// Only this verb is strict: what is registered was made elsewhere.
	if op.Verb == home.Create {
		if err := op.Record.Validate(m.Machine); err != nil {
			return c.refused(fault.For(name, err))
		}
	}
	v, err := m.vet(ctx, op.Record.WithoutSecret(), op.Blobs)
	if err != nil {
		return c.refused(fault.For(name, err))
	}
	c.wantsInfo = true
	if err := c.takeSecrets(); err != nil {
		return c.refused(err)
	}
	if err := m.ask(ctx, func() {
		if m.stopping {
			c.finish(answer{err: stopping()})
			return
		}
		// What was free when it was vetted may be taken by now.
		if err := m.conflict(v.Record(), v.View(m.Machine)); err != nil {
			c.finish(answer{err: fault.For(name, err)})
			return
		}
		e := m.add(v, home.Home{New: op.Verb == home.Create})
		if op.Verb == home.Create {
			m.begin(e, c)
			return
		}
		if err := m.save(e); err != nil {
			m.drop(e)
			c.finish(answer{err: fault.For(name, notSaved("register home", err))})
			return
		}
		m.say(e)
		c.finish(answer{result: Result{Info: m.snapshot(e).info(m)}})
	}); err != nil {
		return c.refused(err)
	}
	return m.await(ctx, c)
}

// namesOf are the names that a record claims.
func namesOf(r *records.Record) []string {
	list := append([]string{r.UserName()}, r.Aliases()...)
	if realm := r.Realm(); realm != "" {
		for _, n := range slices.Clone(list) {
			list = append(list, n+"@"+realm)
		}
	}
	return list
}

// conflict reports, in the loop, a name or UID that another home has.
func (m *Manager) conflict(r *records.Record, v records.View) error {
	const op = "check user record"
	for _, n := range namesOf(r) {
		if m.find(Key{Name: n}) != nil {
			return fault.Newf(fault.UserNameExists, op, "Specified user name %s exists already, refusing.", n)
		}
	}
	if v.HasUID {
		if o := m.find(Key{UID: v.UID, ByUID: true}); o != nil {
			return fault.Newf(fault.UIDInUse, op, "Specified UID %d already in use by home %s, refusing.", v.UID, o.name)
		}
	}
	return nil
}

// vet checks a record given from outside, signs it if nobody did, and gives it
// a UID if it has none. It asks for accounts, so it runs outside of the loop.
// Faults: InvalidArgs, UserNameExists, UIDInUse, BadSignature, BadAddress,
// TooManyHomes, NoPrivateKey.
func (m *Manager) vet(ctx context.Context, r *records.Record, blobs map[string]*os.File) (records.Verified, error) {
	const op = "check user record"
	refuse := func(err error) (records.Verified, error) { return records.Verified{}, err }
	if err := r.Manageable(m.Machine); err != nil {
		return refuse(err)
	}
	var err error
	if aerr := m.ask(ctx, func() { err = m.conflict(r, records.View{}) }); aerr != nil || err != nil {
		return refuse(cmp.Or(aerr, err))
	}
	// Most often nobody has any of it, which one question can tell.
	names, first := namesOf(r), firstUID(0, r.UserName())
	free := m.Accounts.Free(ctx, append(slices.Clone(names), fmt.Sprint(first)))
	if free {
		names = nil
	}
	for _, n := range names {
		switch kind, _ := m.account(ctx, n); kind {
		case "user":
			return refuse(fault.Newf(fault.UserNameExists, op, "Specified user name %s exists in the NSS user database, refusing.", n))
		case "group":
			return refuse(fault.Newf(fault.UserNameExists, op, "Specified user name %s conflicts with an NSS group by the same name, refusing.", n))
		}
	}
	if blobs != nil {
		if r, err = WithManifest(r, blobs, m.Machine); err != nil {
			return refuse(err)
		}
	}
	var v records.Verified
	if aerr := m.ask(ctx, func() {
		if v, err = m.keys.Vouch(r); errors.Is(err, records.ErrUnsigned) {
			v, err = m.sign(r)
		}
	}); aerr != nil {
		return refuse(aerr)
	}
	switch {
	case fault.Is(err, fault.BadSignature):
		return refuse(fault.Newf(fault.BadSignature, op, "Specified user record for %s is signed by a key we don't recognize, refusing.", r.UserName()))
	case err != nil:
		return refuse(err)
	}
	if view := v.View(m.Machine); view.HasUID {
		if aerr := m.ask(ctx, func() { err = m.conflict(r, view) }); aerr != nil || err != nil {
			return refuse(cmp.Or(aerr, err))
		}
		var kind, name string
		if !free || view.UID != first {
			kind, name = m.account(ctx, fmt.Sprint(view.UID))
		}
		switch kind {
		case "user":
			return refuse(fault.Newf(fault.UIDInUse, op, "Specified UID %d already in use by NSS user %s, refusing.", view.UID, name))
		case "group":
			return refuse(fault.Newf(fault.UIDInUse, op, "Specified UID %d already in use as GID by NSS group %s, refusing.", view.UID, name))
		}
	} else {
		uid, err := m.allocateUID(ctx, m.ownerOf(view), r.UserName(), func(uid uint32) bool { return free && uid == first })
		if err != nil {
			return refuse(err)
		}
		v = records.Bind(v, m.Machine.ID, records.Binding{
			BlobDirectory: m.Layout.BlobDir + "/" + r.UserName(),
			UID:           uid, GID: uid, HasUID: true,
		})
	}
	if err := v.Record().Suitable(m.Machine); err != nil {
		return refuse(err)
	}
	return v, nil
}

// ownerOf returns who owns a directory that is there already, 0 otherwise: its
// files then need no new owner.
func (m *Manager) ownerOf(v records.View) uint32 {
	switch v.Storage {
	case "directory", "subvolume", "fscrypt":
	default:
		return 0
	}
	info, err := os.Stat(v.ImagePath)
	if err != nil || !info.IsDir() {
		return 0
	}
	return ownerOf(info)
}
