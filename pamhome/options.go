package pamhome

import (
	"slices"
	"strings"
)

// options are those of the module line, with SYSTEMD_HOME_SUSPEND below them.
type options struct {
	suspend bool // may the home be locked while the machine sleeps
	debug   bool
	// Which services have their password asked for by the password agents.
	agentServices []string
	agentsOff     bool
}

// Options of the session half. Every hook takes
// them, so that one line can be copied through a stack.
var elsewhere = []string{
	"class=", "type=", "desktop=", "area=",
	"default-capability-bounding-set=", "default-capability-ambient-set=",
}

// readOptions never fails a login: what cannot be read is logged and ignored.
func (c *call) readOptions() {
	if env, ok := c.Start.Env("SYSTEMD_HOME_SUSPEND"); ok {
		c.envSuspend(env)
	} else if env, ok := c.Start.HostEnv("SYSTEMD_HOME_SUSPEND"); ok && !c.Start.Secure {
		c.envSuspend(env)
	}
	c.agentServices = slices.Clone(agentServices)
	for _, arg := range c.Start.Args {
		name, value, _ := strings.Cut(arg, "=")
		switch {
		case strings.HasPrefix(arg, "suspend="):
			if b, ok := parseBool(value); ok {
				c.suspend = b
			} else {
				c.log(logWarning, "Failed to parse suspend= argument, ignoring: %s", value)
			}
		case arg == "debug":
			c.options.debug = true
		case strings.HasPrefix(arg, "debug="):
			if b, ok := parseBool(value); ok {
				c.options.debug = b
			} else {
				c.log(logWarning, "Failed to parse debug= argument, ignoring: %s", value)
			}
		case strings.HasPrefix(arg, "ask-password="):
			if b, ok := parseBool(value); ok {
				c.agentsOff = !b
			} else {
				c.agentServices = append(c.agentServices, strings.Split(value, ",")...)
			}
		case arg == "register", arg == "settings":
			c.log(logWarning, "Parameter '%s' has no effect yet: keep pam_systemd in the stack.", arg)
		case slices.Contains(elsewhere, name+"="):
		default:
			c.log(logWarning, "Unknown parameter '%s', ignoring.", arg)
		}
	}
}

func (c *call) envSuspend(value string) {
	if b, ok := parseBool(value); ok {
		c.suspend = b
	} else {
		c.log(logWarning, "Failed to parse $SYSTEMD_HOME_SUSPEND, ignoring: %s", value)
	}
}

func parseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}
