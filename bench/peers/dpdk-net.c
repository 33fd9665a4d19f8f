/*
 * DPDK's way of a packet, for comparison with the library's: its null ports, its mbufs, and the loops of testpmd's modes. DPDK runs by
 * itself: no devices, no files, ordinary pages. Its null port does not touch the bytes of the packets that it receives.
 *
 * Orders, each with the answer in nanoseconds of work, and the number of packets:
 *   mac COUNT BURST     COUNT bursts are received, get new Ethernet addresses, and are sent by the other port
 *   rxonly COUNT BURST  COUNT bursts are received and freed
 *   txonly COUNT BURST  COUNT bursts are made of a template and sent
 */
#include "peer.h"
#include <libgen.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* Those of bench/net.ts. */
#define ELEMENTS 4096
#define CACHE 256
#define SIZE 64
#define MOST_BURST 512

static struct rte_mempool *pool;
static struct rte_ether_addr peer = {{2, 0, 0, 0, 0, 1}}, own;
static unsigned char template[SIZE];

static unsigned long long forward_mac(unsigned count, unsigned burst)
{
	struct rte_mbuf *packets[MOST_BURST];
	unsigned long long moved = 0;

	for (unsigned i = 0; i < count; i++) {
		unsigned got = rte_eth_rx_burst(0, 0, packets, burst), sent;
		for (unsigned n = 0; n < got; n++) {
			struct rte_ether_hdr *header = rte_pktmbuf_mtod(packets[n], struct rte_ether_hdr *);
			if (n + 1 < got) rte_prefetch0(rte_pktmbuf_mtod(packets[n + 1], void *));
			rte_ether_addr_copy(&peer, &header->dst_addr);
			rte_ether_addr_copy(&own, &header->src_addr);
		}
		sent = rte_eth_tx_burst(1, 0, packets, got);
		moved += sent;
		if (sent < got) rte_pktmbuf_free_bulk(packets + sent, got - sent);
	}
	return moved;
}

static unsigned long long receive(unsigned count, unsigned burst)
{
	struct rte_mbuf *packets[MOST_BURST];
	unsigned long long moved = 0;

	for (unsigned i = 0; i < count; i++) {
		unsigned got = rte_eth_rx_burst(0, 0, packets, burst);
		rte_pktmbuf_free_bulk(packets, got);
		moved += got;
	}
	return moved;
}

static unsigned long long transmit(unsigned count, unsigned burst)
{
	struct rte_mbuf *packets[MOST_BURST];
	unsigned long long moved = 0;

	for (unsigned i = 0; i < count; i++) {
		unsigned sent;
		need(rte_pktmbuf_alloc_bulk(pool, packets, burst) == 0, "rte_pktmbuf_alloc_bulk");
		for (unsigned n = 0; n < burst; n++) {
			memcpy(rte_pktmbuf_mtod(packets[n], void *), template, SIZE);
			packets[n]->data_len = packets[n]->pkt_len = SIZE;
		}
		sent = rte_eth_tx_burst(1, 0, packets, burst);
		moved += sent;
		if (sent < burst) rte_pktmbuf_free_bulk(packets + sent, burst - sent);
	}
	return moved;
}

static void start_port(unsigned port)
{
	struct rte_eth_conf none = {0};

	need(rte_eth_dev_configure(port, 1, 1, &none) == 0, "rte_eth_dev_configure");
	need(rte_eth_rx_queue_setup(port, 0, 512, SOCKET_ID_ANY, NULL, pool) == 0, "rte_eth_rx_queue_setup");
	need(rte_eth_tx_queue_setup(port, 0, 512, SOCKET_ID_ANY, NULL) == 0, "rte_eth_tx_queue_setup");
	need(rte_eth_dev_start(port) == 0, "rte_eth_dev_start");
}

static void start(char *program)
{
	char *arguments[] = {"bench",        "-m",          "128",       "--no-pci",       "--no-shconf",     "--log-level", "*:error",
			     "--no-telemetry", "--no-huge", "--vdev", "net_null0,size=64", "--vdev", "net_null1", NULL};

	/* DPDK makes a directory, which here goes with the program's own. */
	setenv("RUNTIME_DIRECTORY", dirname(strdup(program)), 1);
	need(rte_eal_init(sizeof arguments / sizeof *arguments - 1, arguments) >= 0, "rte_eal_init");
	pool = rte_pktmbuf_pool_create("bench", ELEMENTS, CACHE, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	need(pool != NULL, "rte_pktmbuf_pool_create");
	need(rte_eth_dev_count_avail() == 2, "the null ports");
	start_port(0);
	start_port(1);
	need(rte_eth_macaddr_get(1, &own) == 0, "rte_eth_macaddr_get");
}

int main(int count_of_arguments, char **arguments)
{
	char line[128], what[16];
	unsigned count, burst;

	if (count_of_arguments != 1) return 1;
	start(arguments[0]);
	while (fgets(line, sizeof line, stdin) != NULL) {
		long long begun;
		unsigned long long moved;
		if (sscanf(line, "%15s %u %u", what, &count, &burst) != 3 || burst > MOST_BURST) return 1;
		begun = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
		moved = strcmp(what, "mac") == 0 ? forward_mac(count, burst) : strcmp(what, "rxonly") == 0 ? receive(count, burst) : transmit(count, burst);
		printf("%lld %llu\n", nanoseconds(CLOCK_THREAD_CPUTIME_ID) - begun, moved);
		fflush(stdout);
	}
	return 0;
}
