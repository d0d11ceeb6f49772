package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"hearth/homed/home1"
	"hearth/internal/fault"
)

func runList(c *command, ctx context.Context, _ []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	homes, err := client.ListHomes(ctx)
	if err != nil {
		return usagef("Failed to list homes: %s", fault.Public(err))
	}
	sort.Slice(homes, func(i, j int) bool { return homes[i].UserName < homes[j].UserName })
	if c.json == "pretty" || c.json == "short" {
		return c.listJSON(homes)
	}
	c.listTable(homes)
	return nil
}

func (c *command) listJSON(homes []home1.HomeInfo) error {
	type row struct {
		Name     string `json:"name"`
		UID      uint32 `json:"uid"`
		GID      uint32 `json:"gid"`
		State    string `json:"state"`
		RealName string `json:"realname"`
		Home     string `json:"home"`
		Shell    string `json:"shell"`
	}
	rows := []row{}
	for _, h := range homes {
		rows = append(rows, row{h.UserName, h.UID, h.GID, h.State, h.RealName, h.HomeDirectory, h.Shell})
	}
	return c.printJSON(rows)
}

func (c *command) listTable(homes []home1.HomeInfo) {
	if len(homes) == 0 {
		if c.legend {
			fmt.Fprintln(c.out, "No home areas.")
		}
		return
	}
	rows := [][]string{{"NAME", "UID", "GID", "STATE", "REALNAME", "HOME", "SHELL"}}
	for _, h := range homes {
		rows = append(rows, []string{h.UserName, strconv.FormatUint(uint64(h.UID), 10), strconv.FormatUint(uint64(h.GID), 10), h.State, orNone(h.RealName), orNone(h.HomeDirectory), orNone(h.Shell)})
	}
	c.table(rows, func(column int, cell string) string {
		if column != 3 {
			return ""
		}
		return stateColour[cell]
	}, c.squeeze)
	if c.legend {
		fmt.Fprintf(c.out, "\n%d home areas listed.\n", len(homes))
	}
}

// table prints rows, the first of which is the legend, in columns. colour says
// which one a cell is printed in, squeeze makes columns fit; both may be nil.
func (c *command) table(rows [][]string, colour func(column int, cell string) string, squeeze func(width []int)) {
	if !c.legend {
		rows = rows[1:]
	}
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			r[i] = printable(cell)
			width[i] = max(width[i], utf8.RuneCountInString(r[i]))
		}
	}
	if squeeze != nil {
		squeeze(width)
	}
	var b strings.Builder // written at once: a call to the kernel for each row takes longer than the row
	for n, r := range rows {
		for i, cell := range r {
			cell = cut(cell, width[i])
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == len(r)-1 {
				pad = ""
			}
			switch {
			case c.colour && c.legend && n == 0:
				b.WriteString("\x1b[0;4m" + cell + pad + "\x1b[0m")
			case c.colour && colour != nil && colour(i, r[i]) != "":
				b.WriteString(colour(i, r[i]) + cell + "\x1b[0m" + pad)
			default:
				b.WriteString(cell + pad)
			}
			if i < len(r)-1 {
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	_, _ = io.WriteString(c.out, b.String())
}

var stateColour = map[string]string{
	"active": "\x1b[0;1;32m", "locked": "\x1b[0;1;33m", "dirty": "\x1b[0;1;33m", "absent": "\x1b[0;90m", "unfixated": "\x1b[0;90m",
}

// squeeze narrows the last three columns to the terminal's width; elsewhere a
// table is never cut.
func (c *command) squeeze(width []int) {
	if !term.IsTerminal(int(c.out.Fd())) {
		return
	}
	columns, _, err := term.GetSize(int(c.out.Fd()))
	if err != nil || columns <= 0 {
		return
	}
	total := len(width) - 1
	for _, w := range width {
		total += w
	}
	for over := total - columns; over > 0; over-- {
		widest := 4
		for i := 5; i < len(width); i++ {
			if width[i] > width[widest] {
				widest = i
			}
		}
		if width[widest] <= 8 {
			return
		}
		width[widest]--
	}
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

func orNone(s string) string {
	if s == "" {
		return "n/a"
	}
	return s
}
