/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * two-programs NODE DEVICE-A DEVICE-B [MIB]
 *
 * Two processes, each with its own open of the node, show that they are strangers to each
 * other: neither can name what the other has, or take its device, or disturb its DMA; and while
 * one maps a lot of memory (MIB, default 1024) the other's calls do not wait for it.
 *
 * Devices are written as in device.h.
 */
#include "device.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define GPA		0x100000UL
#define SIZE		(256 * KIB)
#define BIG_GPA		0x1000000UL
/* A map that is faster than this says nothing about who waits for whom. */
#define WORTH_JUDGING	0.020

/* What A tells B: its numbers. */
struct numbers {
	__u32 device;
	__u32 ioasid;
};

/* What both see during the last part: when A was mapping, by A; what B did meanwhile, by B. */
struct times {
	double map_began, map_ended;
	unsigned long allocs_meanwhile;
	double slowest;
};

static volatile struct times *times;
static int other;		/* a socket to the other process */

static void tell(const void *message, size_t size)
{
	if (write(other, message, size) != (ssize_t)size)
		die("the other program is gone");
}

static void hear(void *message, size_t size)
{
	struct pollfd readable = { .fd = other, .events = POLLIN };

	if (poll(&readable, 1, 120000) != 1)
		die("the other program has said nothing for 120 s");
	if (read(other, message, size) != (ssize_t)size)
		die("the other program has ended too early");
}

static void go(void)
{
	tell("", 1);
}

static void wait_for_go(void)
{
	char nothing;

	hear(&nothing, 1);
}

/* The device reads what `memory` holds, and the program sees what the device writes. */
static void dma_works(struct device *device, __u32 ioasid, unsigned char *memory, __u32 seed,
		      const char *when)
{
	static unsigned char sent[2000], seen[2000];

	fill(memory, SIZE, seed);
	if (!device_reads(device, ioasid, GPA + 5 * PAGE + 3, seen, sizeof(seen)))
		die("%s: DMA read failed. %s", when, explanation(device->node));
	must_equal(seen, memory + 5 * PAGE + 3, sizeof(seen), when);
	fill(sent, sizeof(sent), seed + 1);
	if (!device_writes(device, ioasid, GPA + 9 * PAGE + 1, sent, sizeof(sent)))
		die("%s: DMA write failed. %s", when, explanation(device->node));
	must_equal(memory + 9 * PAGE + 1, sent, sizeof(sent), when);
}

/* Maps a lot, while B allocates. */
static void map_a_lot(int node, __u32 ioasid, size_t size)
{
	unsigned char *memory = shared_memory(size);

	wait_for_go();
	times->map_began = now();
	map(node, ioasid, BIG_GPA, memory, size, MAP_BOTH);
	times->map_ended = now();
	wait_for_go();
	if (unmap(node, ioasid, BIG_GPA, size) != size)
		die("UNMAP_DMA did not unmap all of it");
}

static void program_a(const char *path, struct device *device, size_t size)
{
	int node = open_node(path);
	struct numbers mine;
	unsigned char *memory = shared_memory(SIZE);
	__u32 spare[3];

	bind_device(device, node);
	/* Some more, so that the number is one that B does not have too. */
	for (int i = 0; i < 3; i++)
		spare[i] = alloc_ioasid(node);
	mine.ioasid = alloc_ioasid(node);
	mine.device = device->id;
	attach(node, mine.device, mine.ioasid);
	map(node, mine.ioasid, GPA, memory, SIZE, MAP_BOTH);
	dma_works(device, mine.ioasid, memory, 1, "A's DMA at first");
	tell(&mine, sizeof(mine));

	wait_for_go();
	dma_works(device, mine.ioasid, memory, 3, "A's DMA while B maps the same IOVA");
	go();
	wait_for_go();
	dma_works(device, mine.ioasid, memory, 5, "A's DMA after B has unmapped, freed and closed");
	ok("what B unmapped, freed and closed made no difference to A");

	map_a_lot(node, mine.ioasid, size);
	for (int i = 0; i < 3; i++)
		free_ioasid(node, spare[i]);
}

static void cannot_name(int node, struct numbers theirs)
{
	struct ioasid_info info = { .argsz = sizeof(info), .ioasid = theirs.ioasid };
	struct ioasid_device_info device_info = {
		.argsz = sizeof(device_info),
		.device = theirs.device,
	};
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.ioasid = theirs.ioasid,
		.flags = IOASID_UNMAP_ALL,
	};
	struct ioasid_map_dma dma_map = mapping(theirs.ioasid, GPA + SIZE, shared_memory(PAGE),
						PAGE, MAP_BOTH);
	struct ioasid_attach_device at_data = attachment(theirs.device, theirs.ioasid);

	must_refuse(node, IOASID_FREE, by_value(theirs.ioasid), ENOENT, "FREE of A's IOASID");
	must_refuse(node, IOASID_GET_INFO, &info, ENOENT, "GET_INFO of A's IOASID");
	must_refuse(node, IOASID_MAP_DMA, &dma_map, ENOENT, "MAP_DMA into A's IOASID");
	must_refuse(node, IOASID_UNMAP_DMA, &dma_unmap, ENOENT, "UNMAP_DMA in A's IOASID");
	must_refuse(node, IOASID_GET_DEVICE_INFO, &device_info, ENOENT, "GET_DEVICE_INFO of A's device");
	must_refuse(node, IOASID_UNBIND_DEVICE, by_value(theirs.device), ENOENT,
		    "UNBIND_DEVICE of A's device");
	must_refuse(node, IOASID_ATTACH_DEVICE, &at_data, ENOENT, "ATTACH_DEVICE of A's device");
	must_refuse(node, IOASID_DETACH_DEVICE, &at_data, ENOENT, "DETACH_DEVICE of A's device");
}

static void cannot_take(int node, const struct device *device)
{
	struct ioasid_bind_device bind_data;
	char path[64];

	if (!device->is_edu) {
		bind_data = simulated(device->name, 0);
		must_refuse(node, IOASID_BIND_DEVICE, &bind_data, EBUSY, "BIND_DEVICE of A's device");
		return;
	}
	snprintf(path, sizeof(path), "/dev/vfio/%s", device->group_name);
	if (open(path, O_RDWR) >= 0 || errno != EBUSY)
		die("%s can be opened although A has it", path);
	ok("the kernel lets nobody else open %s, which is the way to A's device", path);
}

/* Counts what falls into A's map and keeps the longest. */
static void alloc_meanwhile(int node)
{
	double slowest = 0, give_up = now() + 300;
	unsigned long done = 0;

	go();
	while (!times->map_ended) {
		double began = now(), ended;
		__u32 ioasid = alloc_ioasid(node);

		ended = now();
		free_ioasid(node, ioasid);
		if (times->map_began && began >= times->map_began &&
		    (!times->map_ended || ended <= times->map_ended))
			done++;
		if (times->map_began && ended - began > slowest)
			slowest = ended - began;
		if (ended > give_up)
			die("A has been mapping for 300 s");
	}
	times->allocs_meanwhile = done;
	times->slowest = slowest;
	go();
}

static void program_b(const char *path, const struct device *device_a, struct device *device)
{
	int node = open_node(path);
	struct numbers theirs;
	unsigned char *memory = shared_memory(SIZE);
	__u32 ioasid;

	hear(&theirs, sizeof(theirs));
	cannot_name(node, theirs);
	cannot_take(node, device_a);

	bind_device(device, node);
	ioasid = alloc_ioasid(node);
	attach(node, device->id, ioasid);
	map(node, ioasid, GPA, memory, SIZE, MAP_BOTH);
	dma_works(device, ioasid, memory, 7, "B's DMA at the IOVA that A uses too");
	go();
	wait_for_go();
	dma_works(device, ioasid, memory, 9, "B's DMA after A's");
	ok("both do DMA at the same IOVA, each to its own memory");

	unmap(node, ioasid, GPA, SIZE);
	detach(node, device->id, ioasid);
	free_ioasid(node, ioasid);
	close(node);
	go();

	node = open_node(path);
	alloc_meanwhile(node);
}

static void judge(size_t size)
{
	double took = times->map_ended - times->map_began;

	printf("A mapped %lu MiB in %.1f ms; meanwhile B did %lu ALLOCs, the slowest in %.1f ms\n",
	       size / MIB, took * 1e3, times->allocs_meanwhile, times->slowest * 1e3);
	if (took < WORTH_JUDGING) {
		ok("the map was too quick for anybody to wait for it");
		return;
	}
	if (!times->allocs_meanwhile || times->slowest > took / 2)
		die("B's ALLOC waited for A's map");
	ok("B's ALLOC did not wait for A's map");
}

int main(int argc, char **argv)
{
	struct device device_a, device_b;
	size_t size;
	int sockets[2], status_a, status_b, next = 2;
	pid_t a, b;

	if (argc < 4)
		die("usage: two-programs NODE DEVICE-A DEVICE-B [MIB]");
	next += take_device(argv + next, &device_a);
	next += take_device(argv + next, &device_b);
	size = (argc > next ? number(argv[next]) : 1024) * MIB;

	times = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (times == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) < 0)
		die("cannot set up: %s", strerror(errno));

	/* Fork before any open: the two share no open file. */
	a = fork();
	if (!a) {
		other = sockets[0];
		close(sockets[1]);
		program_a(argv[1], &device_a, size);
		return 0;
	}
	b = fork();
	if (!b) {
		other = sockets[1];
		close(sockets[0]);
		program_b(argv[1], &device_a, &device_b);
		return 0;
	}
	close(sockets[0]);
	close(sockets[1]);
	if (a < 0 || b < 0 || waitpid(a, &status_a, 0) < 0 || waitpid(b, &status_b, 0) < 0)
		die("cannot run two programs: %s", strerror(errno));
	if (status_a || status_b)
		die("program %s failed", status_a ? "A" : "B");
	judge(size);
	return 0;
}
