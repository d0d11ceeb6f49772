package home1

import (
	"fmt"
	"strings"
)

const (
	doctype = `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"` + "\n" +
		`"https://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">` + "\n"
	annotatePrivileged = "org.freedesktop.systemd1.Privileged"
	annotateEmits      = "org.freedesktop.DBus.Property.EmitsChangedSignal"
)

// Introspect returns the introspection document of an object that has the
// standard interfaces, then own, then the child nodes.
func Introspect(own []*Interface, children []string) string {
	var b strings.Builder
	b.WriteString(doctype)
	b.WriteString("<node>\n")
	for _, i := range Standard {
		describe(&b, i)
	}
	for _, i := range own {
		describe(&b, i)
	}
	for _, c := range children {
		fmt.Fprintf(&b, " <node name=%q/>\n", c)
	}
	b.WriteString("</node>\n")
	return b.String()
}

// describe writes one interface. No name or type in the tables needs escaping
// in XML.
func describe(b *strings.Builder, i *Interface) {
	fmt.Fprintf(b, " <interface name=%q>\n", i.Name)
	for _, p := range i.Properties {
		access := "read"
		if p.Writable {
			access = "readwrite"
		}
		fmt.Fprintf(b, "  <property name=%q type=%q access=%q>\n", p.Name, p.Type, access)
		if p.Emits != EmitsValue {
			annotate(b, annotateEmits, string(p.Emits))
		}
		if p.Privileged {
			annotate(b, annotatePrivileged, "true")
		}
		b.WriteString("  </property>\n")
	}
	for _, m := range i.Methods {
		fmt.Fprintf(b, "  <method name=%q>\n", m.Name)
		for _, a := range m.In {
			fmt.Fprintf(b, "   <arg type=%q name=%q direction=\"in\"/>\n", a.Type, a.Name)
		}
		for _, a := range m.Out {
			fmt.Fprintf(b, "   <arg type=%q name=%q direction=\"out\"/>\n", a.Type, a.Name)
		}
		if m.Privileged {
			annotate(b, annotatePrivileged, "true")
		}
		b.WriteString("  </method>\n")
	}
	for _, s := range i.Signals {
		fmt.Fprintf(b, "  <signal name=%q>\n", s.Name)
		for _, a := range s.Args {
			fmt.Fprintf(b, "   <arg type=%q name=%q/>\n", a.Type, a.Name)
		}
		b.WriteString("  </signal>\n")
	}
	b.WriteString(" </interface>\n")
}

func annotate(b *strings.Builder, name, value string) {
	fmt.Fprintf(b, "   <annotation name=%q value=%q/>\n", name, value)
}
