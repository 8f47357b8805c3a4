/* The least that a plugin of this wiring can do, as a static program: the floor of the bench beside this
 * file. It keeps a lease as a file, asks nothing twice and checks nothing. Its DEL gives the lease and the
 * route back, and leaves the link to the end of the pod's namespace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LEASES = 4096, GATEWAY = 0xa9fe0101, FIRST = 0x0af00100 };
static const unsigned char HOST_MAC[6] = {2, 'v', 'n', 'p', 0, 1};

static struct { char bytes[4096]; size_t size; struct nlmsghdr *last; unsigned count; } batch;

static void *put(const void *data, size_t size) {
	void *at = batch.bytes + batch.size;
	if (data) memcpy(at, data, size); else memset(at, 0, size);
	batch.size += NLMSG_ALIGN(size);
	batch.last->nlmsg_len = batch.bytes + batch.size - (char *)batch.last;
	return at;
}

static void message(int type, int flags, const void *header, size_t size) {
	batch.last = (void *)(batch.bytes + batch.size);
	int all = NLM_F_REQUEST | NLM_F_ACK | flags;
	*batch.last = (struct nlmsghdr){.nlmsg_type = type, .nlmsg_flags = all, .nlmsg_seq = ++batch.count};
	batch.size += NLMSG_HDRLEN;
	put(header, size);
}

static struct rtattr *attribute(int type, const void *data, size_t size) {
	struct rtattr attribute = {.rta_type = type, .rta_len = RTA_LENGTH(size)};
	struct rtattr *at = put(&attribute, sizeof attribute);
	if (size) put(data, size);
	return at;
}

static void end(struct rtattr *nest) { nest->rta_len = batch.bytes + batch.size - (char *)nest; }

/* Sends the batch and reads its answers; the first failure ends the program. */
static void apply(int socket) {
	char answers[4096];
	if (send(socket, batch.bytes, batch.size, 0) < 0) exit(2);
	while (batch.count) {
		ssize_t size = recv(socket, answers, sizeof answers, 0);
		if (size < 0) exit(3);
		struct nlmsghdr *one = (void *)answers;
		for (; NLMSG_OK(one, size); one = NLMSG_NEXT(one, size), batch.count--)
			if (((struct nlmsgerr *)NLMSG_DATA(one))->error) exit(4);
	}
	batch.size = 0;
}

static void up(int link) {
	struct ifinfomsg header = {.ifi_index = link, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	message(RTM_NEWLINK, 0, &header, sizeof header);
}

static void route(int type, int link, unsigned to, unsigned gateway) {
	int scope = gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
	struct rtmsg header = {.rtm_family = AF_INET, .rtm_dst_len = to ? 32 : 0, .rtm_table = RT_TABLE_MAIN,
		.rtm_protocol = RTPROT_STATIC, .rtm_scope = scope, .rtm_type = RTN_UNICAST};
	message(type, type == RTM_NEWROUTE ? NLM_F_CREATE | NLM_F_EXCL : 0, &header, sizeof header);
	if (to) attribute(RTA_DST, &to, 4);
	if (gateway) attribute(RTA_GATEWAY, &gateway, 4);
	if (link) attribute(RTA_OIF, &link, 4);
}

static void end_of_pair(const char *name, const void *mac) {
	unsigned one = 1;
	attribute(IFLA_IFNAME, name, strlen(name) + 1);
	attribute(IFLA_ADDRESS, mac, 6);
	attribute(IFLA_NUM_TX_QUEUES, &one, 4);
	attribute(IFLA_NUM_RX_QUEUES, &one, 4);
}

static int netlink(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE); }

/* The number of the container's lease: a new one, or the one that is given back. */
static int lease(const char *container, int is_add) {
	char mine[64], text[16] = "";
	int number = 0, lock = open("lock", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	flock(lock, LOCK_EX);
	snprintf(mine, sizeof mine, "of-%.60s", container);
	if (is_add) {
		if (pread(lock, text, 15, 0) < 0) exit(5);
		int file = -1;
		for (number = atoi(text) + 1; file < 0; number++) {
			if (number > LEASES) exit(6);
			snprintf(text, sizeof text, "%-8d", number);
			file = open(text, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
		}
		number--;
		if (write(file, container, strlen(container)) < 0 || pwrite(lock, text, 8, 0) < 0) exit(7);
		if (symlink(text, mine)) exit(7);
		close(file);
	} else {
		if (readlink(mine, text, 15) < 0) exit(8);
		number = atoi(text);
		unlink(text);
		unlink(mine);
	}
	close(lock);
	return number;
}

int main(void) {
	char configuration[65536];
	size_t size = 0;
	for (ssize_t more; (more = read(0, configuration + size, sizeof configuration - size)) > 0; size += more) {}
	const char *command = getenv("CNI_COMMAND"), *container = getenv("CNI_CONTAINERID");
	int is_add = !strcmp(command, "ADD");
	if (!is_add && strcmp(command, "DEL")) return 0;
	if (chdir(getenv("FLOOR_DIR"))) return 1;
	unsigned address = htonl(FIRST + lease(container, is_add)), gateway = htonl(GATEWAY);
	if (!is_add) {
		route(RTM_DELROUTE, 0, address, 0);
		apply(netlink());
		return 0;
	}

	const char *inside = getenv("CNI_IFNAME");
	char outside[IFNAMSIZ];
	unsigned char mac[6] = {0x0a, 0x58};
	memcpy(mac + 2, &address, 4);
	snprintf(outside, sizeof outside, "flr%u", ntohl(address) - FIRST);
	int node = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), host = netlink();
	int pod = open(getenv("CNI_NETNS"), O_RDONLY | O_CLOEXEC);
	struct ifinfomsg none = {0};
	message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &none, sizeof none);
	end_of_pair(outside, HOST_MAC);
	struct rtattr *info = attribute(IFLA_LINKINFO, 0, 0);
	attribute(IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = attribute(IFLA_INFO_DATA, 0, 0), *peer = attribute(VETH_INFO_PEER, 0, 0);
	put(&none, sizeof none);
	end_of_pair(inside, mac);
	attribute(IFLA_NET_NS_FD, &pod, 4);
	end(peer), end(data), end(info);
	apply(host);

	up(if_nametoindex(outside));
	route(RTM_NEWROUTE, if_nametoindex(outside), address, 0);
	apply(host);

	if (setns(pod, CLONE_NEWNET)) return 9;
	int link = if_nametoindex(inside);
	up(link);
	struct ifaddrmsg own = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = link};
	message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &own, sizeof own);
	attribute(IFA_LOCAL, &address, 4);
	route(RTM_NEWROUTE, link, gateway, 0);
	route(RTM_NEWROUTE, link, 0, gateway);
	struct ndmsg neighbour = {.ndm_family = AF_INET, .ndm_ifindex = link, .ndm_state = NUD_PERMANENT};
	message(RTM_NEWNEIGH, NLM_F_CREATE, &neighbour, sizeof neighbour);
	attribute(NDA_DST, &gateway, 4);
	attribute(NDA_LLADDR, HOST_MAC, 6);
	apply(netlink());
	if (setns(node, CLONE_NEWNET)) return 10;
	char shown[INET_ADDRSTRLEN];
	inet_ntop(AF_INET, &address, shown, sizeof shown);
	printf("{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"%s/32\"}]}\n", shown);
	return 0;
}
