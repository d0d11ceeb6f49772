package manager_test

import (
	"os"
	"os/exec"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/records"
)

// TestEncryptedDirectories: a home that is found is known as encrypted by fscrypt
// whatever the version of its policy, with its key in the kernel or without.
func TestEncryptedDirectories(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "mkfs.ext4")
	d := boot(t, testenv.Scratch(t))
	disk := t.TempDir()
	image := disk + ".img"
	for _, c := range [][]string{{"truncate", "-s", "16M", image}, {"mkfs.ext4", "-q", "-O", "encrypt", image}, {"mount", "-o", "loop", image, disk}} {
		if text, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, text)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	control := func(path string, request uintptr, arg unsafe.Pointer) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		switch _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno {
		case 0:
		case unix.EOPNOTSUPP, unix.ENOTTY:
			t.Skipf("no fscrypt here: %v", errno)
		default:
			t.Fatalf("%s: %v", path, errno)
		}
	}
	for _, dir := range []string{"one", "two", "three"} {
		if err := os.Mkdir(disk+"/"+dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Version 1 needs no key to say so.
	control(disk+"/one", unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&unix.FscryptPolicyV1{
		Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS, Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS, Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32,
	}))
	var key struct {
		unix.FscryptAddKeyArg
		raw [64]byte
	}
	key.Key_spec.Type, key.Raw_size = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, uint32(len(key.raw))
	control(disk, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&key))
	control(disk+"/two", unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS, Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32, Master_key_identifier: [16]byte(key.Key_spec.U[:16]),
	}))
	for name, want := range map[string]string{"one": "fscrypt", "two": "fscrypt", "three": "directory"} {
		if err := os.Symlink(disk+"/"+name, d.file("home", name+".homedir")); err != nil {
			t.Fatal(err)
		}
		d.eventually(name, "unfixated")
		if got := d.record(name).View(records.Machine{ID: machineID}).Storage; got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
