package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestATargetReportsTheDialersAddressAndItsOwnName(t *testing.T) {
	server := httptest.NewServer(handler())
	defer server.Close()
	target := strings.TrimPrefix(server.URL, "http://")
	outcomes := dialAll(context.Background(), []string{target}, 5*time.Second)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if len(outcomes) != 1 || outcomes[0] != (outcome{Name: hostname, Target: target, OK: true, SourceSeenByTarget: "127.0.0.1", AnsweredBy: hostname}) {
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

func TestAnAnswerNamesTheForwardedClient(t *testing.T) {
	server := httptest.NewServer(handler())
	defer server.Close()
	request, err := http.NewRequest(http.MethodGet, server.URL+"/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Forwarded-For", "10.240.0.9")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var seen identity
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(response.Body).Decode(&seen); err != nil || seen != (identity{"127.0.0.1", "127.0.0.1", hostname, "10.240.0.9"}) {
		t.Errorf("%+v, %v", seen, err)
	}
}

func TestANameIsResolvedOrReportedAsUnknown(t *testing.T) {
	for name, resolves := range map[string]bool{"localhost": true, "no%20name": false} {
		recorder := httptest.NewRecorder()
		handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/resolve?name="+name, nil))
		var answer resolution
		if err := json.NewDecoder(recorder.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		if (len(answer.Addresses) > 0) != resolves || (answer.Error == "") != resolves {
			t.Errorf("%s: %+v", name, answer)
		}
	}
}
