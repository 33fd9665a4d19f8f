/*
 * A small vfio-user client in C, for comparison with the library's: the same messages to the same server.
 *
 * Orders, each with the answer in nanoseconds unless told otherwise:
 *   connect PATH            connects and negotiates; the answer is 0
 *   read COUNT              COUNT loads of the 4 bytes at the beginning of region 0, one after the other
 *   map COUNT DEPTH         maps COUNT pages of a memfd, its descriptor with each; DEPTH requests, then their replies
 *   pairs COUNT DEPTH       the same, and after each DEPTH pages these are unmapped again
 *   close                   ends the connection; the answer is 0
 */
#include "peer.h"
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096
#define FILE_PAGES 65536
#define TRIES 200

enum { VERSION = 1, DMA_MAP = 2, DMA_UNMAP = 3, REGION_READ = 9 };
enum { REPLY = 1, FAILED = 0x20 };

struct header {
	uint16_t id, command;
	uint32_t size, flags, error;
};
struct map {
	struct header header;
	uint32_t argsz, flags;
	uint64_t offset, iova, size;
};
struct unmap {
	struct header header;
	uint32_t argsz, flags;
	uint64_t iova, size;
};
struct access {
	struct header header;
	uint64_t offset;
	uint32_t region, count;
};

static int sock = -1, file = -1;
static uint16_t id;
static char buffer[65536];
static size_t filled, taken;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, errno != 0 ? strerror(errno) : "protocol");
	exit(1);
}

static int send_command(void *message, uint16_t command, size_t size, int fd)
{
	struct header *header = message;
	struct iovec data = {message, size};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof fd)];
	} control;
	struct msghdr all = {.msg_iov = &data, .msg_iovlen = 1};

	*header = (struct header){.id = ++id, .command = command, .size = size};
	if (fd < 0) return send(sock, message, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
	control.head = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
	all.msg_control = &control;
	all.msg_controllen = sizeof control;
	return sendmsg(sock, &all, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

/* The next reply, which has to be a good one; NULL at the end of the connection. It is good until the next call. */
static const struct header *next_reply(void)
{
	static struct header aligned[256];
	struct header header;
	for (;;) {
		size_t have = filled - taken;
		ssize_t got;
		if (have >= sizeof header) {
			memcpy(&header, buffer + taken, sizeof header);
			if (header.size < sizeof header || header.size > sizeof aligned) fail("reply");
			if (have >= header.size) break;
		}
		memmove(buffer, buffer + taken, have);
		filled = have;
		taken = 0;
		got = recv(sock, buffer + filled, sizeof buffer - filled, 0);
		if (got <= 0) return NULL;
		filled += got;
	}
	memcpy(aligned, buffer + taken, header.size);
	taken += header.size;
	errno = 0;
	if ((header.flags & 0xf) != REPLY) fail("reply");
	errno = header.error;
	if ((header.flags & FAILED) != 0) fail("refused");
	return aligned;
}

static void check(int failed)
{
	if (failed) fail("connection");
}

/* Whoever comes while the last client is being cleared away is sent away, and tries again. */
static void open_connection(const char *path)
{
	static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":1}}";
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct {
		struct header header;
		uint16_t major, minor;
		char text[sizeof capabilities];
	} version = {.major = 0, .minor = 1};

	if (strlen(path) >= sizeof address.sun_path) fail("path");
	strcpy(address.sun_path, path);
	memcpy(version.text, capabilities, sizeof capabilities);
	for (int i = 0; i < TRIES; i++) {
		sock = socket(AF_UNIX, SOCK_STREAM, 0);
		filled = taken = 0;
		if (connect(sock, (struct sockaddr *)&address, sizeof address) == 0 &&
		    send_command(&version, VERSION, offsetof(__typeof__(version), text) + sizeof capabilities, -1) == 0 &&
		    next_reply() != NULL)
			return;
		close(sock);
		usleep(5000);
	}
	fail("connect");
}

static void start_map(uint64_t page)
{
	struct map map = {.argsz = 32, .flags = 3, .offset = page * PAGE, .iova = page * PAGE, .size = PAGE};
	check(send_command(&map, DMA_MAP, sizeof map, file));
}

static void start_unmap(uint64_t page)
{
	struct unmap unmap = {.argsz = 24, .iova = page * PAGE, .size = PAGE};
	check(send_command(&unmap, DMA_UNMAP, sizeof unmap, -1));
}

static void map_pages(unsigned count, unsigned depth, int pairs)
{
	for (unsigned first = 0; first < count; first += depth) {
		unsigned end = first + depth < count ? first + depth : count;
		for (unsigned page = first; page < end; page++) start_map(page);
		for (unsigned page = first; page < end; page++) check(next_reply() == NULL);
		if (!pairs) continue;
		for (unsigned page = first; page < end; page++) start_unmap(page);
		for (unsigned page = first; page < end; page++) check(next_reply() == NULL);
	}
}

static void read_register(void)
{
	struct access access = {.offset = 0, .region = 0, .count = 4};
	const struct header *reply;
	check(send_command(&access, REGION_READ, sizeof access, -1));
	check((reply = next_reply()) == NULL || reply->size != sizeof access + 4);
}

int main(void)
{
	char line[512], order[16], path[256];
	unsigned count, depth;

	file = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (file < 0 || ftruncate(file, (off_t)FILE_PAGES * PAGE) != 0) fail("memfd");
	while (fgets(line, sizeof line, stdin) != NULL) {
		long long ns = 0;
		if (sscanf(line, "connect %255[^\n]", path) == 1) {
			open_connection(path);
		} else if (strcmp(line, "close\n") == 0) {
			close(sock);
		} else {
			depth = 1;
			if (sscanf(line, "%15s %u %u", order, &count, &depth) < 2 || count > FILE_PAGES || depth == 0) return 1;
			const long long start = nanoseconds(CLOCK_MONOTONIC);
			if (strcmp(order, "read") == 0) {
				for (unsigned i = 0; i < count; i++) read_register();
			} else if (strcmp(order, "map") == 0 || strcmp(order, "pairs") == 0) {
				map_pages(count, depth, strcmp(order, "pairs") == 0);
			} else {
				return 1;
			}
			ns = nanoseconds(CLOCK_MONOTONIC) - start;
		}
		answer(ns);
	}
	return 0;
}
