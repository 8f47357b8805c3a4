// The way from the root namespace to the API server: a port on loopback, no interface, no route.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

// forward accepts connections on the inherited listener, file descriptor 3, and carries each to a target
// inside a namespace.
func forward(args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	netns, target := args[0], args[1]
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	for {
		near, err := listener.Accept()
		if err != nil {
			return err
		}
		var far net.Conn
		// A socket belongs to the namespace that it was created in, whichever thread uses it later.
		err = inNetns(netns, func() error {
			far, err = net.Dial("tcp", target)
			return err
		})
		if err != nil {
			log.Print(err)
			near.Close()
			continue
		}
		go splice(near.(*net.TCPConn), far.(*net.TCPConn))
	}
}

// splice carries bytes both ways until both sides have closed.
func splice(near, far *net.TCPConn) {
	defer near.Close()
	defer far.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(near, far)
	_ = near.CloseWrite()
	<-done
}
