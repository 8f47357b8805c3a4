package main

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestATargetTellsTheDialerItsAddress(t *testing.T) {
	server := httptest.NewServer(handler())
	defer server.Close()
	target := strings.TrimPrefix(server.URL, "http://")
	outcomes := dialAll(context.Background(), []string{target}, 5*time.Second)
	if len(outcomes) != 1 || outcomes[0] != (outcome{Target: target, OK: true, SourceSeenByTarget: "127.0.0.1"}) {
		t.Errorf("%+v", outcomes)
	}
}

func TestOutcomesComeInTheOrderOfTheTargetsAndOneFailureStopsNoOther(t *testing.T) {
	server := httptest.NewServer(handler())
	defer server.Close()
	// A server that is closed again: its port answers with a reset.
	closed := httptest.NewServer(handler())
	closed.Close()
	targets := []string{strings.TrimPrefix(closed.URL, "http://"), strings.TrimPrefix(server.URL, "http://")}
	outcomes := dialAll(context.Background(), targets, 5*time.Second)
	if outcomes[0].Target != targets[0] || outcomes[0].OK || outcomes[0].Error == "" {
		t.Errorf("the closed port: %+v", outcomes[0])
	}
	if outcomes[1].Target != targets[1] || !outcomes[1].OK {
		t.Errorf("the open port: %+v", outcomes[1])
	}
}
