package records

// A Machine is who reads the record: its entries of perMachine and binding
// count, others do not.
type Machine struct {
	ID       string // machine id: 32 hex digits, no dashes
	Hostname string // the kernel's node name
	HomeRoot string // where homes lie; "" is /home
}

func (m Machine) homeRoot() string {
	if m.HomeRoot == "" {
		return "/home"
	}
	return m.HomeRoot
}

// A Binding is what ties a record to one machine. Empty fields are unset.
// UUIDs are dashed and lower case, sizes are in bytes.
type Binding struct {
	Storage, ImagePath, HomeDirectory       string
	PartitionUUID, LUKSUUID, FileSystemUUID string
	LUKSCipher, LUKSCipherMode              string
	LUKSVolumeKeySize                       int
	FileSystemType, BlobDirectory           string
	UID, GID                                uint32
	HasUID                                  bool
}

type bindingText struct {
	key string
	p   *string
}

// texts pairs the text fields with their names.
func (b *Binding) texts() []bindingText {
	return []bindingText{
		{"blobDirectory", &b.BlobDirectory}, {"imagePath", &b.ImagePath},
		{"partitionUuid", &b.PartitionUUID}, {"luksUuid", &b.LUKSUUID}, {"fileSystemUuid", &b.FileSystemUUID},
		{"luksCipher", &b.LUKSCipher}, {"luksCipherMode", &b.LUKSCipherMode},
		{"fileSystemType", &b.FileSystemType}, {"homeDirectory", &b.HomeDirectory}, {"storage", &b.Storage},
	}
}

func isUUIDField(key string) bool {
	return key == "partitionUuid" || key == "luksUuid" || key == "fileSystemUuid"
}

// Binding returns the record's binding to a machine, and whether there is one.
func (r *Record) Binding(machineID string) (Binding, bool) {
	var b Binding
	obj := r.doc.get("binding").get(machineID)
	if !obj.is(object) {
		return b, false
	}
	l := layers{{binding, obj}}
	for _, t := range b.texts() {
		*t.p = l.text(t.key, "")
		if isUUIDField(t.key) {
			*t.p = dashed(*t.p)
		}
	}
	if n := l.u64("luksVolumeKeySize"); n != nil && *n <= 1<<20 {
		b.LUKSVolumeKeySize = int(*n)
	}
	if n := l.u64("uid"); n != nil {
		b.UID, b.GID, b.HasUID = uint32(*n), uint32(*n), true
		if n := l.u64("gid"); n != nil {
			b.GID = uint32(*n)
		}
	}
	return b, true
}

// WithBinding returns the record bound to a machine: what is set in b replaces
// what the existing binding says, the rest of it stays.
func (r *Record) WithBinding(machineID string, b Binding) *Record {
	set := newObject()
	for _, t := range b.texts() {
		// The order is that of systemd-homed.
		if t.key == "fileSystemType" && b.LUKSVolumeKeySize > 0 {
			set.members = append(set.members, member{"luksVolumeKeySize", newUnsigned(uint64(b.LUKSVolumeKeySize))})
		}
		if t.key == "storage" && b.HasUID {
			set.members = append(set.members, member{"uid", newUnsigned(uint64(b.UID))}, member{"gid", newUnsigned(uint64(b.GID))})
		}
		if *t.p == "" {
			continue
		}
		v := newText(*t.p)
		if isUUIDField(t.key) {
			v = newText(dashed(*t.p))
		}
		set.members = append(set.members, member{t.key, v})
	}
	all := r.doc.get("binding")
	return r.withSection("binding", all.with(machineID, all.get(machineID).merge(set)))
}
