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
// part of the format. pairs says whether to apply it.
//
// Fails with errDuplicate or errReal.
func normalise(v *value, pairs bool) (*value, error) {
	switch v.kind {
	case real:
		if k, _ := v.canonical(); k == real {
			return nil, errReal
		}
	case object:
		out := newObject(make([]member, len(v.members))...)
		for i, m := range v.members {
			n, err := normalise(m.value, pairs)
			if err != nil {
				return nil, err
			}
			out.members[i] = member{m.key, n}
		}
		slices.SortFunc(out.members, func(a, b member) int { return strings.Compare(a.key, b.key) })
		for i := 1; i < len(out.members); i++ {
			if out.members[i].key == out.members[i-1].key {
				return nil, errDuplicate
			}
		}
		return out, nil
	case array:
		out := newArray(make([]*value, len(v.list)))
		for i, e := range v.list {
			n, err := normalise(e, pairs)
			if err != nil {
				return nil, err
			}
			out.list[i] = n
		}
		if pairs {
			sortPairs(out.list)
		}
		return out, nil
	}
	return v, nil
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
