package records

import (
	"reflect"
	"testing"
)

// TestSameStatus: a difference in any field counts, whichever fields there are.
func TestSameStatus(t *testing.T) {
	var s LiveStatus
	if !s.Same(LiveStatus{}) {
		t.Error("nothing is not the same as nothing")
	}
	all := reflect.ValueOf(&s).Elem()
	set := func(v reflect.Value, n int) {
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
			v = v.Elem()
		}
		switch v.Kind() {
		case reflect.String:
			v.SetString(string(rune('a' + n)))
		case reflect.Bool:
			v.SetBool(n%2 == 1)
		default:
			v.SetUint(uint64(n))
		}
	}
	for i := range all.NumField() {
		set(all.Field(i), 1)
		name := all.Type().Field(i).Name
		o := s
		set(reflect.ValueOf(&o).Elem().Field(i), 2)
		if s.Same(o) || o.Same(s) {
			t.Errorf("%s does not count", name)
		}
		set(reflect.ValueOf(&o).Elem().Field(i), 1)
		if !s.Same(o) {
			t.Errorf("%s counts by where it is", name)
		}
		if f := reflect.ValueOf(&o).Elem().Field(i); f.Kind() == reflect.Pointer {
			f.SetZero()
			if s.Same(o) || o.Same(s) {
				t.Errorf("that %s is not known does not count", name)
			}
		}
	}
}
