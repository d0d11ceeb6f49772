package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	"hearth/internal/fault"
)

func runListSigningKeys(c *command, ctx context.Context, _ []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	keys, err := client.ListSigningKeys(ctx)
	if err != nil {
		return usagef("Failed to list signing keys: %s", fault.Public(err))
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i].Name < keys[j].Name })
	if c.json == "pretty" || c.json == "short" {
		type row struct {
			Name string `json:"name"`
			Key  string `json:"key"`
		}
		rows := []row{}
		for _, k := range keys {
			rows = append(rows, row{k.Name, k.PEM})
		}
		return c.printJSON(rows)
	}
	if len(keys) == 0 {
		if c.legend {
			c.print("No signing keys.")
		}
		return nil
	}
	rows := [][]string{{"NAME", "KEY"}}
	for _, k := range keys {
		rows = append(rows, []string{k.Name, shortKey(k.PEM)})
	}
	c.table(rows, nil, nil)
	if c.legend {
		fmt.Fprintf(c.out, "\n%d signing keys listed.\n", len(keys))
	}
	return nil
}

// shortKey is the key in base64, its first 64 bytes at most.
func shortKey(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return "n/a"
	}
	der, more := block.Bytes, ""
	if len(der) > 64 {
		der, more = der[:64], "…"
	}
	return base64.StdEncoding.EncodeToString(der) + more
}

func runGetSigningKey(c *command, ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"local.public"}
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, name := range args {
		text, e := client.GetSigningKey(ctx, name)
		if e != nil {
			c.fail("Failed to get signing key '%s': %s", name, fault.Public(e))
			err = errSaid
			continue
		}
		fmt.Fprintln(c.out, printable(strings.TrimSuffix(text, "\n")))
	}
	return err
}

func runAddSigningKey(c *command, ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"-"}
	}
	if args[0] == "-" && len(args) == 1 && c.keyName == "" {
		return usagef("Key name must be specified via --key-name= when reading key from standard input, refusing.")
	}
	if len(args) > 1 && c.keyName != "" {
		return usagef("--key-name= is not supported if multiple signing keys are specified, refusing.")
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, path := range args {
		if path == "-" && len(args) > 1 {
			c.fail("Refusing to read from standard input if multiple keys are specified.")
			return errSaid
		}
		name := c.keyName
		if name == "" {
			name = filepath.Base(path)
		}
		text, e := c.readFile(path)
		if e != nil {
			c.fail("Failed to open '%s': %s", path, reason(e))
			err = errSaid
			continue
		}
		if e := client.AddSigningKey(ctx, name, string(text)); e != nil {
			c.fail("Failed to add signing key '%s': %s", name, fault.Public(e))
			err = errSaid
		}
	}
	return err
}

func runRemoveSigningKey(c *command, ctx context.Context, args []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, name := range args {
		if e := client.RemoveSigningKey(ctx, name); e != nil {
			c.fail("Failed to remove signing key '%s': %s", name, fault.Public(e))
			err = errSaid
		}
	}
	return err
}

// printJSON prints as --json= asks.
func (c *command) printJSON(rows any) error {
	enc := json.NewEncoder(c.out)
	enc.SetEscapeHTML(false)
	if c.json == "pretty" {
		enc.SetIndent("", "\t")
	}
	return enc.Encode(rows)
}
