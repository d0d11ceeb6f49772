package dm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// stackDepth bounds how many devices may lie on each other.
const stackDepth = 10

// Encrypted reports whether what is written to the block device reaches the
// disk through dm-crypt. A device on several others is, if all of them are.
func Encrypted(major, minor uint32) bool {
	return encrypted(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor), stackDepth)
}

func encrypted(device string, depth int) bool {
	if uuid, err := os.ReadFile(filepath.Join(device, "dm/uuid")); err == nil && strings.HasPrefix(string(uuid), "CRYPT-") {
		return true
	}
	slaves, err := os.ReadDir(filepath.Join(device, "slaves"))
	if err != nil || len(slaves) == 0 || depth == 0 {
		return false
	}
	for _, s := range slaves {
		if !encrypted(filepath.Join(device, "slaves", s.Name()), depth-1) {
			return false
		}
	}
	return true
}
