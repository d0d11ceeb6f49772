package pamhome

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hearth/pamhome/frame"
)

// unitLogin is ann's user manager being started by a service manager that
// cannot ask.
func unitLogin(t *testing.T) *login {
	t.Helper()
	if os.Geteuid() != os.Getuid() {
		t.Skip("needs one user id")
	}
	l := annLogin(t)
	l.items["service"] = "systemd-user"
	l.refuse, l.mute, l.ppid = true, true, 1
	l.hostEnv = []string{"SYSTEMD_ACTIVATION_UNIT=user@60400.service", "SYSTEMD_ACTIVATION_SCOPE=system"}
	dir, err := os.MkdirTemp("", "ask")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l.agents = Agents{
		Dir: filepath.Join(dir, "q"), LockDir: filepath.Join(dir, "lock"), NoLogin: filepath.Join(dir, "nologin"),
		Question: 10 * time.Second, Call: 20 * time.Second, Poll: time.Minute,
	}
	l.bus.ref = []string{"HomeNotActive", "HomeNotActive"}
	return l
}

// agent answers the questions, in order, and returns their texts when stopped.
func (l *login) agent(answers ...string) (stop func() []string) {
	l.t.Helper()
	quit, done := make(chan struct{}), make(chan struct{})
	var asked []string
	go func() {
		defer close(done)
		seen := map[string]bool{}
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
			names, _ := filepath.Glob(filepath.Join(l.agents.Dir, "ask.*"))
			for _, name := range names {
				text, err := os.ReadFile(name)
				if err != nil || seen[name] {
					continue
				}
				seen[name] = true
				var message, socket string
				for line := range strings.Lines(string(text)) {
					if v, ok := strings.CutPrefix(line, "Message="); ok {
						message = strings.TrimSuffix(v, "\n")
					}
					if v, ok := strings.CutPrefix(line, "Socket="); ok {
						socket = strings.TrimSuffix(v, "\n")
					}
				}
				asked = append(asked, message)
				if len(answers) == 0 {
					continue
				}
				c, err := net.Dial("unixgram", socket)
				if err == nil {
					_, err = c.Write([]byte(answers[0]))
					c.Close()
				}
				if err != nil {
					l.t.Error(err)
				}
				answers = answers[1:]
			}
		}
	}()
	return func() []string {
		close(quit)
		<-done
		if left, _ := os.ReadDir(l.agents.Dir); len(left) != 0 {
			l.t.Errorf("left behind: %v", left)
		}
		return asked
	}
}

func (l *login) questions(stop func() []string, want ...string) {
	l.t.Helper()
	if got := stop(); strings.Join(got, "|") != strings.Join(want, "|") {
		l.t.Errorf("asked %q, want %q", got, want)
	}
}

const (
	openRecord    = `{"userName":"ann","disposition":"regular","uid":60400,"gid":60400,"homeDirectory":"/home/ann"}`
	firstQuestion = "Password for home of user ann: "
	nextQuestion  = "Sorry, try again. Password for home of user ann: "
)

func TestAgentsAnswer(t *testing.T) {
	l := unitLogin(t)
	l.bus.script = []string{"BadPassword", "ok"}
	l.bus.opened = openRecord
	stop := l.agent("+wrong", "+right")
	l.expect("acct", frame.Success)
	l.expect("open", frame.Success)
	l.questions(stop, firstQuestion, nextQuestion)
	l.wants(1, `AcquireHome("ann", {"password":["wrong"]}`)
	l.wants(1, `AcquireHome("ann", {"password":["right","wrong"]}`)
	l.atHome()
}

// TestAgentsDecline: account and session are one question, however it ends.
func TestAgentsDecline(t *testing.T) {
	for name, c := range map[string]struct {
		answers   []string
		questions []string
	}{
		"declined":    {[]string{"-"}, []string{firstQuestion}},
		"nothing":     {[]string{"+"}, []string{firstQuestion}},
		"nobody":      {nil, []string{firstQuestion}},
		"wrong":       {[]string{"+a", "+b", "+c", "+right"}, []string{firstQuestion, nextQuestion, nextQuestion}},
		"no text":     {[]string{"+\xff", "-"}, []string{firstQuestion, nextQuestion}},
		"then wanted": {[]string{"-", "+right"}, []string{firstQuestion}},
	} {
		t.Run(name, func(t *testing.T) {
			l := unitLogin(t)
			if name == "nobody" {
				l.agents.Question = 50 * time.Millisecond
			}
			for range 4 {
				l.bus.script = append(l.bus.script, "BadPassword")
			}
			stop := l.agent(c.answers...)
			l.expect("acct", frame.PermDenied)
			l.bus.ref = []string{"HomeNotActive", "HomeNotActive"}
			l.expect("open", frame.PermDenied)
			l.questions(stop, c.questions...)
			l.wants(2, "<5>Home of user ann is currently not active, please log in locally first.")
		})
	}
}

// TestAgentsNotAsked: nobody there is asked for what is somebody else's to ask.
func TestAgentsNotAsked(t *testing.T) {
	for name, change := range map[string]func(*login){
		"a manager that asked":  func(l *login) { l.mute = false },
		"no unit":               func(l *login) { l.hostEnv = nil },
		"a unit of a user":      func(l *login) { l.hostEnv[1] = "SYSTEMD_ACTIVATION_SCOPE=user" },
		"a child of another":    func(l *login) { l.ppid = 4711 },
		"another service":       func(l *login) { l.items["service"] = "crond" },
		"from far":              func(l *login) { l.items["rhost"] = "elsewhere" },
		"switched off":          func(l *login) { l.args = append(l.args, "ask-password=no") },
		"shutting down":         func(l *login) { _ = os.WriteFile(l.agents.NoLogin, nil, 0o644) },
		"a helper without them": func(l *login) { l.agents = Agents{} },
	} {
		t.Run(name, func(t *testing.T) {
			l := unitLogin(t)
			dir := l.agents.Dir
			change(l)
			stop := l.agent()
			l.expect("acct", frame.PermDenied)
			l.questions(stop)
			if _, err := os.Stat(dir); err == nil {
				t.Error("a place for questions was made")
			}
		})
	}
	t.Run("an own terminal", func(t *testing.T) {
		l := unitLogin(t)
		l.items["tty"] = "pts/1"
		stop := l.agent()
		l.expect("acct", frame.Success)
		l.questions(stop)
		l.wants(1, "RefHomeUnrestricted")
	})
	t.Run("authenticating", func(t *testing.T) {
		l := unitLogin(t)
		stop := l.agent()
		l.expect("auth", frame.ConvErr)
		l.questions(stop)
	})
}

// TestAgentsMore: run0 with a terminal is asked for, and what the module line
// names.
func TestAgentsMore(t *testing.T) {
	for name, change := range map[string]func(*login){
		"run0":  func(l *login) { l.items["service"], l.items["tty"] = "systemd-run0", "pts/1" },
		"named": func(l *login) { l.items["service"], l.args = "mine", []string{"ask-password=mine,other"} },
	} {
		t.Run(name, func(t *testing.T) {
			l := unitLogin(t)
			change(l)
			stop := l.agent("+right")
			l.expect("acct", frame.Success)
			l.questions(stop, firstQuestion)
		})
	}
	// Who declined does not get a shell in /.
	l := unitLogin(t)
	l.items["service"], l.items["tty"] = "systemd-run0", "pts/1"
	stop := l.agent("-")
	l.expect("acct", frame.PermDenied)
	l.questions(stop, firstQuestion)
	l.wants(0, "RefHomeUnrestricted")
}

// TestAgentsOvertaken: a login opens the home, and the question goes away.
func TestAgentsOvertaken(t *testing.T) {
	l := unitLogin(t)
	l.agents.Poll = 20 * time.Millisecond
	l.bus.ref = []string{"HomeNotActive", "HomeNotActive", "HomeNotActive", "ok"}
	l.bus.opened = openRecord
	stop := l.agent()
	l.expect("acct", frame.Success)
	l.questions(stop, firstQuestion)
	l.wants(0, "AcquireHome")
	l.atHome()
}

// TestOpenedBetween: the home was closed in account and is open in session.
func TestOpenedBetween(t *testing.T) {
	l := unitLogin(t)
	l.mute = false
	l.hostEnv = append(l.hostEnv, "HOME=/")
	l.expect("acct", frame.PermDenied)
	l.bus.opened = openRecord
	l.expect("open", frame.Success)
	l.atHome()
}

// TestOpenedMeanwhile: while a manager waited for an answer that never came,
// the user logged in.
func TestOpenedMeanwhile(t *testing.T) {
	l := unitLogin(t)
	l.mute = false
	l.hostEnv = append(l.hostEnv, "HOME=/")
	l.bus.ref = []string{"HomeNotActive", "ok"}
	l.bus.opened = openRecord
	l.expect("acct", frame.Success)
	l.wants(1, firstQuestion)
	l.atHome()
}

func (l *login) atHome() {
	l.t.Helper()
	if !slices.Contains(l.env, "HOME=/home/ann") {
		l.t.Errorf("environment %q", l.env)
	}
}

// TestAgentsOneQuestion: of two units that want one home, one asks.
func TestAgentsOneQuestion(t *testing.T) {
	first, second := unitLogin(t), unitLogin(t)
	second.agents = first.agents
	second.agents.Poll = 20 * time.Millisecond
	second.bus.ref = []string{"HomeNotActive", "HomeNotActive", "HomeNotActive", "ok"}
	lock, _, err := (&call{Hook: Hook{Agents: first.agents}}).lockQuestion(t.Context(), &user{name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	stop := second.agent()
	second.expect("acct", frame.Success)
	second.questions(stop)
}

// TestCredentials: a unit's own password files come before any question.
func TestCredentials(t *testing.T) {
	put := func(l *login, name, text string) {
		l.t.Helper()
		dir := filepath.Dir(l.agents.Dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			l.t.Fatal(err)
		}
		l.env = []string{"CREDENTIALS_DIRECTORY=" + dir}
	}
	t.Run("of the service", func(t *testing.T) {
		l := unitLogin(t)
		put(l, "pam.authtok.systemd-user", "right\n")
		l.expect("acct", frame.Success)
		l.wants(1, `AcquireHome("ann", {"password":["right"]}`)
		l.wants(0, "PROMPT")
	})
	t.Run("both wrong, then a person", func(t *testing.T) {
		l := unitLogin(t)
		put(l, "pam.authtok.systemd-user", "bad1")
		put(l, "home.password", "bad2")
		l.bus.script = []string{"BadPassword", "BadPassword", "BadPassword", "BadPassword", "ok"}
		stop := l.agent("+bad3", "+bad4", "+right")
		l.expect("acct", frame.Success)
		l.questions(stop, firstQuestion, nextQuestion, nextQuestion)
		l.wants(2, "The password in a credential")
		l.wants(1, `AcquireHome("ann", {"password":["right","bad4","bad3"]}`)
	})
	t.Run("not for others", func(t *testing.T) {
		l := unitLogin(t)
		l.items["service"] = "sshd"
		put(l, "home.password", "right")
		l.expect("acct", frame.PermDenied)
	})
}

// TestUnitPrompt: what a manager forwards says whose home it is.
func TestUnitPrompt(t *testing.T) {
	l := unitLogin(t)
	l.refuse, l.mute = false, false
	l.answers = []string{"wrong", "right"}
	l.bus.script = []string{"BadPassword", "ok"}
	l.expect("acct", frame.Success)
	l.wants(2, firstQuestion)
	l.wants(1, nextQuestion)
}
