// Command holdref takes a reference on a home, in a guest, and holds it until
// it is ended: what programs other than logins could do. It knows nothing of
// what the reference is good for; the stories look at that.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"hearth/homed/home1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "holdref RefHome|RefHomeUnrestricted USER")
		os.Exit(2)
	}
	ref, err := hold(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("held")
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, os.Interrupt)
	<-end
	_ = ref.Close()
}

func hold(method, user string) (*os.File, error) {
	ctx := context.Background()
	client, err := home1.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	switch method {
	case "RefHome":
		return client.RefHome(ctx, user, false)
	case "RefHomeUnrestricted":
		return client.RefHomeUnrestricted(ctx, user, false)
	}
	return nil, fmt.Errorf("no method %s", method)
}
