package records

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// ValidName reports whether a home may have that name: it is a file name, a
// login name and a label at once.
func ValidName(name string) bool {
	if !PortableName(name) {
		return false
	}
	switch name {
	// nogroup is Debian's group of nobody.
	case "root", "nobody", "nogroup":
		return false
	}
	return !strings.HasPrefix(name, "_") && !strings.HasPrefix(name, "systemd-")
}

// PortableName reports whether name is a user or group name as every tool
// accepts it. homectl asks it of aliases and groups.
func PortableName(name string) bool {
	return startsOnly(name, letters+"_", letters+digits+"_-", 31)
}

// RelaxedName reports whether name is accepted in a record that was made
// elsewhere.
func RelaxedName(name string) bool {
	if name == "" || !utf8.ValidString(name) || name == "." || name == ".." {
		return false
	}
	digits := strings.TrimPrefix(name, "-")
	if digits != "" && strings.Trim(digits, "0123456789") == "" {
		return false
	}
	if strings.HasPrefix(name, " ") || strings.HasSuffix(name, " ") {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f || r == ':' || r == '/' })
}

// ValidRealm reports whether s can be a realm: a DNS name without a trailing
// dot, written in the one escaped form that DNS tools give it. Case counts.
func ValidRealm(s string) bool {
	labels, ok := dnsLabels(s)
	if !ok {
		return false
	}
	escaped := make([]string, len(labels))
	for i, l := range labels {
		escaped[i] = escapeLabel(l)
	}
	return strings.Join(escaped, ".") == s
}

// validDNS is the rule for realms in records made elsewhere.
func validDNS(s string) bool {
	_, ok := dnsLabels(strings.TrimSuffix(s, "."))
	return ok
}

// dnsLabels splits a name and undoes its escapes: \. and \\ and \DDD.
func dnsLabels(s string) (labels [][]byte, ok bool) {
	var label []byte
	total := 0
	end := func() bool {
		total += len(label) + 1
		labels = append(labels, label)
		ok := len(label) > 0 && len(label) <= 63 && total <= 254
		label = nil
		return ok
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.':
			if !end() {
				return nil, false
			}
		case c == '\\':
			i++
			switch {
			case i < len(s) && (s[i] == '.' || s[i] == '\\'):
				label = append(label, s[i])
			case i+3 <= len(s):
				n, err := strconv.ParseUint(s[i:i+3], 10, 8)
				if err != nil || n == 0 {
					return nil, false
				}
				label = append(label, byte(n))
				i += 2
			default:
				return nil, false
			}
		case c < ' ' || c == 0x7f:
			return nil, false
		default:
			label = append(label, c)
		}
	}
	return labels, end()
}

func escapeLabel(l []byte) string {
	var b strings.Builder
	for _, c := range l {
		switch {
		case c == '.' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z':
			b.WriteByte(c)
		default:
			b.WriteByte('\\')
			b.WriteString(strconv.Itoa(1000 + int(c))[1:])
		}
	}
	return b.String()
}

// UserName returns the user name, which every record has.
func (r *Record) UserName() string { return r.doc.get("userName").textOr("") }

// Realm returns the realm, "" if unset.
func (r *Record) Realm() string {
	v := r.doc.get("realm")
	if !fields["realm"].valid(v) {
		return ""
	}
	return v.str
}

// FullName returns userName or userName@realm: the name in file names, labels
// and partition names.
func (r *Record) FullName() string { return withRealm(r.UserName(), r.Realm()) }

func withRealm(name, realm string) string {
	if realm == "" {
		return name
	}
	return name + "@" + realm
}

// Aliases returns the other names of the user.
func (r *Record) Aliases() []string {
	v := r.doc.get("aliases")
	if !fields["aliases"].valid(v) {
		return nil
	}
	return unique(texts(v))
}

// Matches reports whether name is the user name or an alias, with or without
// the realm.
func (r *Record) Matches(name string) bool {
	for _, n := range append(r.Aliases(), r.UserName()) {
		if name == n || r.Realm() != "" && name == withRealm(n, r.Realm()) {
			return true
		}
	}
	return false
}

// SameUser reports whether two records are of the same user: name and realm.
func (r *Record) SameUser(o *Record) bool {
	return r.UserName() == o.UserName() && r.Realm() == o.Realm()
}
