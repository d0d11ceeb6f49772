// Package home1 is org.freedesktop.home1 in Go: the names and paths of the bus
// interface, its method tables and introspection documents, and a client. Both
// ends share it. It knows what can be called and by whom; what a call does is
// the daemon's, and what its answer means to a person is the client program's.
package home1

import (
	"strconv"
	"strings"
)

// Names on the bus.
const (
	Name = "org.freedesktop.home1"

	ManagerPath = "/org/freedesktop/home1"
	// HomesPath is the object manager; the homes are below it.
	HomesPath      = "/org/freedesktop/home1/home"
	LogControlPath = "/org/freedesktop/LogControl1"

	ManagerInterface        = "org.freedesktop.home1.Manager"
	HomeInterface           = "org.freedesktop.home1.Home"
	LogControlInterface     = "org.freedesktop.LogControl1"
	PeerInterface           = "org.freedesktop.DBus.Peer"
	IntrospectableInterface = "org.freedesktop.DBus.Introspectable"
	PropertiesInterface     = "org.freedesktop.DBus.Properties"
	ObjectManagerInterface  = "org.freedesktop.DBus.ObjectManager"
)

// The polkit actions.
const (
	ActionCreate        = "org.freedesktop.home1.create-home"
	ActionRemove        = "org.freedesktop.home1.remove-home"
	ActionAuthenticate  = "org.freedesktop.home1.authenticate-home"
	ActionUpdate        = "org.freedesktop.home1.update-home"
	ActionUpdateByOwner = "org.freedesktop.home1.update-home-by-owner"
	ActionResize        = "org.freedesktop.home1.resize-home"
	ActionPasswd        = "org.freedesktop.home1.passwd-home"
	ActionActivate      = "org.freedesktop.home1.activate-home"
	ActionManageKeys    = "org.freedesktop.home1.manage-signing-keys"
)

// HomePath returns the object path of the home of that user name.
func HomePath(userName string) string { return HomesPath + "/" + EscapeLabel(userName) }

// HomePathByUID returns the numeric form, which only the ByUID methods answer
// with.
func HomePathByUID(uid uint32) string {
	return HomesPath + "/" + strconv.FormatUint(uint64(uid), 10)
}

// EscapeLabel makes a path element of any text: letters stay, digits too
// except in front, every other byte becomes "_" and two lower case hex digits.
// The empty text becomes "_".
func EscapeLabel(text string) string {
	if text == "" {
		return "_"
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
			b.WriteByte(c)
		default:
			b.WriteByte('_')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// UnescapeLabel undoes EscapeLabel; a malformed escape stays as it is.
func UnescapeLabel(label string) string {
	if label == "_" {
		return ""
	}
	var b strings.Builder
	for i := 0; i < len(label); i++ {
		if label[i] == '_' && i+2 < len(label) {
			if v, err := strconv.ParseUint(label[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(label[i])
	}
	return b.String()
}
