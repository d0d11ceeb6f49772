package fsops

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"

	"hearth/internal/fault"
	"hearth/internal/trace"
)

// Signatures names what is on an open device: file systems, partition tables,
// members of arrays. It asks wipefs, which knows more of them than we ever
// would. Fault: NotSupported without that program.
func Signatures(ctx context.Context, device *os.File) ([]string, error) {
	const op = "look for signatures"
	path, err := tool("wipefs")
	if err != nil {
		return nil, fault.Newf(fault.NotSupported, op, "The program wipefs is not installed, so nobody can say whether the device is empty.")
	}
	defer trace.From(ctx).Work(trace.Exec)()
	cmd := exec.CommandContext(ctx, path, "--noheadings", "--output", "TYPE", "/proc/self/fd/3")
	cmd.Env = []string{"PATH=" + toolPath, "LC_ALL=C.UTF-8"}
	cmd.ExtraFiles = []*os.File{device}
	var out bytes.Buffer
	var said tail
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fault.New(fault.IOError, op+": "+said.text(), err)
	}
	found := strings.Fields(out.String())
	slices.Sort(found)
	return slices.Compact(found), nil
}
