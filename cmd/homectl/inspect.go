package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/records"
	"hearth/records/show"
)

func runInspect(c *command, ctx context.Context, args []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		me, err := caller()
		if err != nil {
			return err
		}
		args = []string{me}
	}
	for _, a := range args {
		if e := c.inspectOne(ctx, client, a); e != nil {
			c.explain("Failed to inspect home", a, e)
			err = errSaid
		}
	}
	return err
}

func (c *command) inspectOne(ctx context.Context, client *home1.Client, arg string) error {
	text, incomplete, err := fetch(ctx, client, arg)
	if err != nil {
		return err
	}
	r, err := records.Parse(text, records.ClientReply)
	if err != nil {
		return usagef("Failed to inspect home: the record of %s cannot be read: %s", arg, reason(err))
	}
	if incomplete {
		c.warn("Warning: lacking rights to acquire privileged fields of user record of '%s', output incomplete.", r.UserName())
	}
	switch c.export {
	case "stripped":
		r = r.Embedded()
	case "minimal":
		r = r.Signable()
	}
	switch c.json {
	case "short":
		fmt.Fprintf(c.out, "%s\n", r.Compact())
		return nil
	case "pretty":
		fmt.Fprintf(c.out, "%s", show.JSON(r))
		return nil
	}
	mid, err := c.machineID()
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Fprint(c.out, show.Text(r, show.Options{
		Machine:    records.Machine{ID: mid, Hostname: host},
		Now:        time.Now(),
		Zone:       time.Local,
		Colour:     c.colour,
		ASCII:      !speaksUTF8(os.Getenv),
		Incomplete: incomplete,
	}))
	return nil
}

// fetch gets a record by name or, where the argument is one, by UID.
func fetch(ctx context.Context, client *home1.Client, arg string) (text []byte, incomplete bool, err error) {
	n, e := strconv.ParseUint(arg, 10, 32)
	if e != nil || !uidForm().MatchString(arg) || n == 65535 || n == 1<<32-1 {
		return client.GetUserRecordByName(ctx, arg)
	}
	reply, err := client.Query(ctx, "GetUserRecordByUID", uint32(n))
	if err != nil {
		return nil, false, err
	}
	if len(reply) == 3 {
		s, ok1 := reply[0].(string)
		b, ok2 := reply[1].(bool)
		if ok1 && ok2 {
			return []byte(s), b, nil
		}
	}
	return nil, false, fault.Newf(fault.Inconsistent, "read record", "The reply of the daemon has another shape than expected.")
}
