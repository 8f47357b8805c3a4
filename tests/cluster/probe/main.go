// Probe shows which clients reach which servers: a server that answers clients with their address, a dialer
// that asks such servers, and packets that should reach nobody.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const usage = `usage:
  probe serve --listen :8080           answer GET /whoami, GET /resolve?name=NAME and POST /dial
  probe dial --timeout 2s TARGET...    ask each target (ip:port) who we are, and print what came of each
  probe dial --via IP:PORT TARGET...   have another probe do so
  probe forge --source IP --to IP:PORT send one UDP packet under an address that needn't be ours
  probe flood --ask IP --senders IP --count N
                                       ask for an address by ARP, under a made-up sender each time
  probe pause                          wait for a signal; reap orphans
`

// atOnce bounds how many targets are dialed at a time.
const atOnce = 64

// identity is the answer of GET /whoami.
type identity struct {
	Source       string `json:"source"` // the caller's address as seen here
	Local        string `json:"local"`
	Name         string `json:"name"`                    // of the machine that answers; a pod's is its own
	ForwardedFor string `json:"forwarded_for,omitempty"` // whom a proxy names as its caller
}

// resolution is the answer of GET /resolve.
type resolution struct {
	Addresses []netip.Addr `json:"addresses"`
	Error     string       `json:"error,omitempty"`
}

// dialRequest is the body of POST /dial.
type dialRequest struct {
	Targets   []string `json:"targets"`
	TimeoutMS int      `json:"timeout_ms"`
}

// outcome is what became of one target.
type outcome struct {
	Name               string `json:"name"` // of the machine that has dialed
	Target             string `json:"target"`
	OK                 bool   `json:"ok"`
	SourceSeenByTarget string `json:"source_seen_by_target"`
	AnsweredBy         string `json:"answered_by"` // the target's own name
	Error              string `json:"error"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2:])
	case "dial":
		err = dialCommand(os.Args[2:])
	case "forge":
		err = forge(os.Args[2:])
	case "flood":
		err = flood(os.Args[2:])
	case "pause":
		pause()
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe: %v\n", err)
		os.Exit(1)
	}
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "address to listen on")
	_ = flags.Parse(args)
	// Process number 1 of a container ends by a signal only if it asks for it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: *listen, Handler: handler()}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		reply(w, identity{Source: host(r.RemoteAddr), Local: host(local.String()), Name: ownName(),
			ForwardedFor: strings.Join(r.Header.Values("X-Forwarded-For"), ", ")})
	})
	mux.HandleFunc("GET /resolve", func(w http.ResponseWriter, r *http.Request) {
		// By Go's own resolver, for this program is static: the servers and search domains of /etc/resolv.conf.
		addresses, err := net.DefaultResolver.LookupNetIP(r.Context(), "ip4", r.URL.Query().Get("name"))
		answer := resolution{Addresses: addresses}
		if err != nil {
			answer.Error = err.Error()
		}
		reply(w, answer)
	})
	mux.HandleFunc("POST /dial", func(w http.ResponseWriter, r *http.Request) {
		request := dialRequest{TimeoutMS: 2000}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply(w, dialAll(r.Context(), request.Targets, time.Duration(request.TimeoutMS)*time.Millisecond))
	})
	return mux
}

// ownName is this machine's; empty without one.
func ownName() string {
	name, _ := os.Hostname()
	return name
}

func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// host is an address without its port, IPv4 in its own form.
func host(address string) string {
	bare, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.ParseIP(bare).String()
}

func dialCommand(args []string) error {
	flags := flag.NewFlagSet("dial", flag.ExitOnError)
	timeout := flags.Duration("timeout", 2*time.Second, "for each target")
	via := flags.String("via", "", "the probe (ip:port) that is to dial; empty: this one")
	_ = flags.Parse(args)
	ctx := context.Background()
	if *via == "" {
		return json.NewEncoder(os.Stdout).Encode(dialAll(ctx, flags.Args(), *timeout))
	}
	return dialVia(*via, dialRequest{Targets: flags.Args(), TimeoutMS: int(timeout.Milliseconds())})
}

// dialVia has another probe dial, and prints its answer as it comes.
func dialVia(via string, request dialRequest) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	response, err := http.Post("http://"+via+"/dial", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", via, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

// dialAll asks every target, each over a connection of its own, and answers in their order.
func dialAll(ctx context.Context, targets []string, timeout time.Duration) []outcome {
	outcomes := make([]outcome, len(targets))
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, target := range targets {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			outcomes[i] = dial(ctx, target, timeout)
		})
	}
	all.Wait()
	return outcomes
}

func dial(ctx context.Context, target string, timeout time.Duration) outcome {
	result := outcome{Name: ownName(), Target: target}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	seen, err := whoami(ctx, target)
	if err != nil {
		result.Error = err.Error()
		return result
	}
	result.OK, result.SourceSeenByTarget, result.AnsweredBy = true, seen.Source, seen.Name
	return result
}

func whoami(ctx context.Context, target string) (identity, error) {
	var seen identity
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+"/whoami", nil)
	if err != nil {
		return seen, err
	}
	// An earlier connection shows nothing of the present, and a proxy is never meant.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return seen, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return seen, fmt.Errorf("answer %s", response.Status)
	}
	return seen, json.NewDecoder(response.Body).Decode(&seen)
}

// pause holds a pod's namespaces and, where pods share processes, is everybody's parent.
func pause() {
	ends, children := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(ends, os.Interrupt, syscall.SIGTERM)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ends:
			return
		case <-children:
			// One signal may stand for several children.
			for pid := 1; pid > 0; {
				pid, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
			}
		}
	}
}
