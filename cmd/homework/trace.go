package main

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"hearth/internal/trace"
)

// traceFile names the file that a line is appended to for each operation, with
// what it cost. It is for measuring: the service's environment, which its
// workers inherit, is the administrator's.
const traceFile = "HEARTH_TRACE"

// newTrace returns nil, which notes nothing, unless somebody wants to know.
func newTrace() *trace.Trace {
	if os.Getenv(traceFile) == "" {
		return nil
	}
	return trace.New("start", began, time.Now)
}

// began is when this program's own code began to run.
var began = time.Now()

// saveTrace appends the line.
func saveTrace(t *trace.Trace, verb string) error {
	if t == nil {
		return nil
	}
	type cost struct {
		What  string
		Times int
		MS    float64
	}
	line := struct {
		Verb        string
		Steps, Work []cost
	}{Verb: verb}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	steps, work := t.Seen()
	for _, s := range steps {
		line.Steps = append(line.Steps, cost{s.Name, 1, ms(s.Took)})
	}
	for name, w := range work {
		line.Work = append(line.Work, cost{name, w.Times, ms(w.Took)})
	}
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(os.Getenv(traceFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Close())
}
