package pamhome

import (
	"slices"
	"strings"

	"hearth/pamhome/session"
)

// options are those of the module line, with SYSTEMD_HOME_SUSPEND below them.
type options struct {
	suspend bool // may the home be locked while the machine sleeps
	debug   bool
	// Which services have their password asked for by the password agents.
	agentServices []string
	agentsOff     bool

	// The session half: all of pam_systemd(8), or what needs no login manager.
	register, settings bool
	session            session.Options
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
		_, value, _ := strings.Cut(arg, "=")
		switch {
		case strings.HasPrefix(arg, "suspend="):
			if b, ok := session.ParseBool(value); ok {
				c.suspend = b
			} else {
				c.log(logWarning, "Failed to parse suspend= argument, ignoring: %s", value)
			}
		case arg == "debug":
			c.options.debug = true
		case strings.HasPrefix(arg, "debug="):
			if b, ok := session.ParseBool(value); ok {
				c.options.debug = b
			} else {
				c.log(logWarning, "Failed to parse debug= argument, ignoring: %s", value)
			}
		case strings.HasPrefix(arg, "ask-password="):
			if b, ok := session.ParseBool(value); ok {
				c.agentsOff = !b
			} else {
				c.agentServices = append(c.agentServices, strings.Split(value, ",")...)
			}
		case arg == "register":
			c.register = true
		case arg == "settings":
			c.settings = true
		case strings.HasPrefix(arg, "class="):
			c.session.Class = value
		case strings.HasPrefix(arg, "type="):
			c.session.Type = value
		case strings.HasPrefix(arg, "desktop="):
			c.session.Desktop = value
		case strings.HasPrefix(arg, "area="):
			if value == "." || value == ".." || strings.ContainsRune(value, '/') || len(value) > 255 {
				c.log(logWarning, "Area name is not valid, ignoring: %s", value)
			} else {
				c.session.Area = value
			}
		case strings.HasPrefix(arg, "default-capability-bounding-set="):
			c.session.Bounding = c.capabilities(c.session.Bounding, value)
		case strings.HasPrefix(arg, "default-capability-ambient-set="):
			c.session.Ambient = c.capabilities(c.session.Ambient, value)
		default:
			c.log(logWarning, "Unknown parameter '%s', ignoring.", arg)
		}
	}
}

func (c *call) capabilities(before *session.Capabilities, value string) *session.Capabilities {
	set, warnings := session.Option(before, value)
	for _, w := range warnings {
		c.log(logWarning, "%s", w)
	}
	return set
}

func (c *call) envSuspend(value string) {
	if b, ok := session.ParseBool(value); ok {
		c.suspend = b
	} else {
		c.log(logWarning, "Failed to parse $SYSTEMD_HOME_SUSPEND, ignoring: %s", value)
	}
}
