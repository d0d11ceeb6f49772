package luks2

import (
	"encoding/json"
	"errors"
	"slices"

	"hearth/internal/fault"
)

// Flag reports whether name is among the flags of the header's configuration.
func (h *Header) Flag(name string) bool {
	_, list, err := h.flags()
	return err == nil && slices.Contains(list, name)
}

// flags returns the object config and the flags in it.
func (h *Header) flags() (object, []string, error) {
	config, err := parseObject(h.meta.doc.get("config"))
	if err != nil {
		return nil, nil, err
	}
	var list []string
	if text := config.get("flags"); text != nil {
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, nil, err
		}
	}
	return config, list, nil
}

// SetFlag adds name to the flags of the header's configuration, or takes it
// away. Other readers pass over flags that they do not know. A crash leaves
// the header as it was, or this one. Faults: Inconsistent for flags that are no
// list of words, and those of every write.
func (h *Header) SetFlag(d Device, name string, on bool) error {
	const op = "write LUKS2 header"
	if name == "" {
		return fault.New(fault.InvalidArgs, op, errors.New("a flag has a name"))
	}
	config, list, err := h.flags()
	if err != nil {
		return fault.New(fault.Inconsistent, op, err)
	}
	if slices.Contains(list, name) == on {
		return nil
	}
	if on {
		list = append(list, name)
	} else {
		list = slices.DeleteFunc(list, func(s string) bool { return s == name })
	}
	if len(list) == 0 {
		config = config.without("flags")
	} else {
		text, err := json.Marshal(list)
		if err != nil {
			return fault.New(fault.Inconsistent, op, err)
		}
		config = config.with("flags", text)
	}
	return h.rewrite(d, func() error { return h.commit(d, h.meta.doc.with("config", config.text())) })
}
