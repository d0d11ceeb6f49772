package login1

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/pamhome/session"
)

// service answers one call with a text, and hands out what it was asked.
func service(t *testing.T, reply string) (socket string, asked chan []byte) {
	t.Helper()
	socket, asked = filepath.Join(t.TempDir(), "s"), make(chan []byte, 1)
	server, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		conn, err := server.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		request, _ := bufio.NewReader(conn).ReadBytes(0)
		asked <- request
		_, _ = conn.Write(append([]byte(reply), 0))
	}()
	return socket, asked
}

func TestCreateByVarlink(t *testing.T) {
	socket, asked := service(t, `{"parameters":{"Id":"7","RuntimePath":"/run/user/60001","UID":60001,"Seat":"seat0","VTNr":2,"Class":"user_light","Type":"tty"}}`)
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = pidfd.Close() }()
	r := Request{UID: 60001, PID: uint32(os.Getpid()), Leader: pidfd, Choice: session.Choice{
		Service: "login", Type: "tty", Class: "user-light", TTY: "tty2", VTNr: 2, ExtraDevices: []string{"render", "uaccess"},
	}}
	reply, err := createByVarlink(t.Context(), socket, r)
	if want := (Reply{ID: "7", RuntimePath: "/run/user/60001", UID: 60001, Seat: "seat0", VTNr: 2}); err != nil || reply != want {
		t.Errorf("got %+v, %v", reply, err)
	}
	var request struct {
		Method     string
		Parameters map[string]any
	}
	if text := <-asked; json.Unmarshal(text[:len(text)-1], &request) != nil || request.Method != "io.systemd.Login.CreateSession" {
		t.Fatalf("asked %s", text)
	}
	pid := request.Parameters["PID"].(map[string]any)
	delete(request.Parameters, "PID")
	if want := (map[string]any{
		"UID": 60001., "Service": "login", "Type": "tty", "Class": "user_light", "TTY": "tty2", "VTNr": 2., "Remote": false,
		"ExtraDeviceAccess": []any{"render", "uaccess"},
	}); !reflect.DeepEqual(request.Parameters, want) {
		t.Errorf("asked for %v", request.Parameters)
	}
	if pid["pid"] != float64(os.Getpid()) || (pid["pidfdId"] == nil) != (pid["bootId"] == nil) {
		t.Errorf("the leader is %v", pid)
	}
}

func TestVarlinkRefusals(t *testing.T) {
	for reply, want := range map[string]error{
		`{"error":"io.systemd.Login.AlreadySessionMember","parameters":{}}`:               ErrBusy,
		`{"error":"org.varlink.service.InvalidParameter","parameters":{"field":"Class"}}`: ErrRefused,
		`{"error":"org.varlink.service.MethodNotFound"}`:                                  errNoVarlink,
		`{"error":"io.systemd.Login.NoSuchSeat"}`:                                         nil,
		`{"parameters":`: nil,
		`[]`:             nil,
	} {
		socket, _ := service(t, reply)
		_, err := createByVarlink(t.Context(), socket, Request{})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", reply, err, want)
		}
	}
	if _, err := createByVarlink(t.Context(), filepath.Join(t.TempDir(), "none"), Request{}); !errors.Is(err, errNoVarlink) {
		t.Errorf("without a service: %v", err)
	}
}
