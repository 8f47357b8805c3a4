package main

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
)

func TestAForgedPacketHasTheSumAndTheAddressesThatAReceiverChecks(t *testing.T) {
	packet := datagram(netip.MustParseAddr("10.240.0.5"), netip.MustParseAddrPort("127.0.0.1:9053"))
	if sum(packet[:20]) != 0xffff {
		t.Errorf("the sum is %#x", sum(packet[:20]))
	}
	if !bytes.Equal(packet[12:20], []byte{10, 240, 0, 5, 127, 0, 0, 1}) || len(packet) != 28 {
		t.Errorf("%v", packet)
	}
}

func TestARequestNamesItsMadeUpSender(t *testing.T) {
	own := net.HardwareAddr{10, 88, 10, 240, 0, 5}
	packet := request(own, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.240.0.4"))
	want := []byte{0, 1, 8, 0, 6, 4, 0, 1, 10, 88, 10, 240, 0, 5, 10, 77, 0, 1, 0, 0, 0, 0, 0, 0, 10, 240, 0, 4}
	if !bytes.Equal(packet, want) {
		t.Errorf("%v", packet)
	}
}
