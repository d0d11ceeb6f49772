package records

import (
	"errors"
	"slices"
	"strings"
)

// Why a document has no normal form. Such a document cannot be signed.
var (
	errDuplicate = errors.New("the same key twice in one object")
	errReal      = errors.New("a number that is not integral or out of range")
)

// hasNormalForm fails with what normalise would fail with, and builds nothing.
func hasNormalForm(v *value) error {
	switch v.kind {
	case real:
		if k, _ := v.canonical(); k == real {
			return errReal
		}
	case object:
		keys := make([]string, len(v.members))
		for i, m := range v.members {
			keys[i] = m.key
			if err := hasNormalForm(m.value); err != nil {
				return err
			}
		}
		slices.Sort(keys)
		if len(slices.Compact(keys)) != len(v.members) {
			return errDuplicate
		}
	case array:
		for _, e := range v.list {
			if err := hasNormalForm(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// normalise returns the form that is signed and stored: members by key, and
// in arrays the elements taken as pairs, the pairs ordered by their first
// element where all of those are strings. The second rule is an accident of
// systemd-homed that its verifier repeats on every record it reads, so it is
// part of the format. pairs says whether to apply it. What is in that form
// already, as all that comes from a file of ours, is returned as it is.
//
// Fails with errDuplicate or errReal.
func normalise(v *value, pairs bool) (*value, error) {
	switch v.kind {
	case real:
		if k, _ := v.canonical(); k == real {
			return nil, errReal
		}
	case object:
		var changed []member
		sorted := true
		for i, m := range v.members {
			n, err := normalise(m.value, pairs)
			if err != nil {
				return nil, err
			}
			if n != m.value {
				if changed == nil {
					changed = slices.Clone(v.members)
				}
				changed[i].value = n
			}
			sorted = sorted && (i == 0 || v.members[i-1].key < m.key)
		}
		if !sorted {
			if changed == nil {
				changed = slices.Clone(v.members)
			}
			slices.SortFunc(changed, func(a, b member) int { return strings.Compare(a.key, b.key) })
			for i := 1; i < len(changed); i++ {
				if changed[i].key == changed[i-1].key {
					return nil, errDuplicate
				}
			}
		}
		if changed != nil {
			return newObject(changed...), nil
		}
	case array:
		var changed []*value
		for i, e := range v.list {
			n, err := normalise(e, pairs)
			if err != nil {
				return nil, err
			}
			if n != e {
				if changed == nil {
					changed = slices.Clone(v.list)
				}
				changed[i] = n
			}
		}
		if pairs && !inPairs(v.list) {
			if changed == nil {
				changed = slices.Clone(v.list)
			}
			sortPairs(changed)
		}
		if changed != nil {
			return newArray(changed), nil
		}
	}
	return v, nil
}

// inPairs reports whether sortPairs leaves a list as it is.
func inPairs(list []*value) bool {
	sorted := true
	for i := 0; i+1 < len(list); i += 2 {
		if list[i].kind != text {
			return true
		}
		sorted = sorted && (i == 0 || list[i-2].str <= list[i].str)
	}
	return sorted
}

// unpaired reports whether pairs make a difference to the normal form of v.
func unpaired(v *value) bool {
	if v.kind == array && !inPairs(v.list) {
		return true
	}
	return slices.ContainsFunc(v.list, unpaired) ||
		slices.ContainsFunc(v.members, func(m member) bool { return unpaired(m.value) })
}

// sortPairs orders (e0,e1), (e2,e3), ... by the first of each; an odd last
// element stays. Where a first element is no string systemd compares memory
// addresses, which almost always means the order of creation: left alone.
func sortPairs(list []*value) {
	pairs := make([][2]*value, len(list)/2)
	for i := range pairs {
		pairs[i] = [2]*value{list[2*i], list[2*i+1]}
		if pairs[i][0].kind != text {
			return
		}
	}
	slices.SortStableFunc(pairs, func(a, b [2]*value) int { return strings.Compare(a[0].str, b[0].str) })
	for i, p := range pairs {
		list[2*i], list[2*i+1] = p[0], p[1]
	}
}
