package main

import (
	"maps"
	"slices"
	"strings"
)

// An assembly collects what the property options of one command line change in
// a record, before the record is known.
type assembly struct {
	any, this, other, priv, rlimits map[string]any
	// filter names fields to drop before anything is merged, everywhere.
	filter, rlimitFilter map[string]bool
	blobs                blobChanges
	// match is where following matchable options go: "any", "this", "other",
	// or "" for each option's own default.
	match string
}

func newAssembly() *assembly {
	return &assembly{
		any: map[string]any{}, this: map[string]any{}, other: map[string]any{}, priv: map[string]any{}, rlimits: map[string]any{},
		filter: map[string]bool{}, rlimitFilter: map[string]bool{},
	}
}

func (a *assembly) bucket(name string) map[string]any {
	switch name {
	case "this":
		return a.this
	case "other":
		return a.other
	case "priv":
		return a.priv
	}
	return a.any
}

// target returns where a property goes on this command line.
func (a *assembly) target(p *property) map[string]any {
	if p.matchable && a.match != "" {
		return a.bucket(a.match)
	}
	return a.bucket(p.bucket)
}

// reset forgets fields: those collected so far and, when it comes to merging,
// those of the record itself.
func (a *assembly) reset(fields ...string) {
	for _, f := range fields {
		a.filter[f] = true
		for _, b := range []map[string]any{a.any, a.this, a.other, a.priv} {
			delete(b, f)
		}
	}
}

// drop removes the fields of filter from m.
func drop(m map[string]any, filter map[string]bool) {
	for f := range filter {
		delete(m, f)
	}
}

// apply merges what was collected into record, for the machine of the given ID.
func (a *assembly) apply(record map[string]any, machineID string) error {
	drop(record, a.filter)
	maps.Copy(record, a.any)
	if err := a.applyPerMachine(record, machineID); err != nil {
		return err
	}

	priv, ok := record["privileged"].(map[string]any)
	if !ok {
		if record["privileged"] != nil {
			return usagef("JSON field 'privileged' is not an object.")
		}
		priv = map[string]any{}
	}
	drop(priv, a.filter)
	maps.Copy(priv, a.priv)
	if len(priv) > 0 {
		record["privileged"] = priv
	} else {
		delete(record, "privileged")
	}

	if limits, ok := record["resourceLimits"].(map[string]any); ok {
		drop(limits, a.rlimitFilter)
		if len(limits) == 0 {
			delete(record, "resourceLimits")
		}
	}
	return nil
}

// applyPerMachine rewrites the two entries that are ours to change, "this
// machine" and "all others", and leaves the rest in its order.
func (a *assembly) applyPerMachine(record map[string]any, machineID string) error {
	entries, ok := record["perMachine"].([]any)
	if !ok && record["perMachine"] != nil {
		return usagef("JSON field 'perMachine' is not an array.")
	}
	positive, negative := map[string]any{}, map[string]any{}
	var kept []any
	for _, e := range entries {
		entry, ok := e.(map[string]any)
		if !ok {
			return usagef("JSON field 'perMachine' is not an array of objects.")
		}
		switch {
		case entry["matchMachineId"] == machineID:
			maps.Copy(positive, entry)
		case entry["matchNotMachineId"] == machineID:
			maps.Copy(negative, entry)
		default:
			kept = append(kept, entry)
		}
	}
	delete(positive, "matchMachineId")
	delete(negative, "matchNotMachineId")
	drop(positive, a.filter)
	drop(negative, a.filter)
	maps.Copy(positive, a.this)
	maps.Copy(negative, a.other)

	limits := map[string]any{}
	if old, ok := positive["resourceLimits"].(map[string]any); ok {
		maps.Copy(limits, old)
	}
	drop(limits, a.rlimitFilter)
	maps.Copy(limits, a.rlimits)
	if len(limits) > 0 {
		positive["resourceLimits"] = limits
	} else {
		delete(positive, "resourceLimits")
	}

	if len(positive) > 0 {
		positive["matchMachineId"] = machineID
		kept = append(kept, positive)
	}
	if len(negative) > 0 {
		negative["matchNotMachineId"] = machineID
		kept = append(kept, negative)
	}
	if len(kept) > 0 {
		record["perMachine"] = kept
	} else {
		delete(record, "perMachine")
	}
	return nil
}

// names splits a comma separated list of user or group names into the sorted
// set that records hold, adding to what is there.
func names(there any, arg, separators string) []any {
	have, _ := there.([]any)
	for _, n := range strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
		if !slices.Contains(have, any(n)) {
			have = append(have, n)
		}
	}
	return have
}

// sorted orders a list of strings bytewise.
func sorted(list []any) []any {
	slices.SortFunc(list, func(x, y any) int { return strings.Compare(x.(string), y.(string)) })
	return list
}
