/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * first-light-sim NODE DEVICE [--hold]
 *
 * The flow of section 5.1 of the proposal with a simulated device, with real bytes in both
 * directions, and none any more after the unmap. Needs no hardware and no privilege.
 *
 * --hold: prints "ready" once memory is mapped and reached, and sleeps until it is killed.
 */
#include "common.h"

#define GPA	0x10000UL		/* where the device sees the memory */
#define SIZE	(1 * MIB)
#define COOKIE	0x1234567890abcdefULL

static void check_what_was_bound(int node, __u32 device, const char *name)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = device };

	must(node, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
	if (strcmp(info.name, name) || info.cookie != COOKIE)
		die("device %u is %s with cookie %#llx", device, info.name, info.cookie);
	if (!(info.flags & IOASID_DEVICE_SIMULATED) || (info.flags & IOASID_DEVICE_VFIO))
		die("%s is not called simulated", name);
	ok("%s is simulated device %u of this context", name, device);
}

static void check_info(int node, __u32 gpa_ioasid)
{
	struct ioasid_info info = get_info(node, gpa_ioasid);

	if (!(info.pgsizes & PAGE) || !(info.flags & IOASID_INFO_MAP_DMA) ||
	    !(info.flags & IOASID_INFO_SIMULATED))
		die("IOASID %u has page sizes %#llx and flags %#x", gpa_ioasid, info.pgsizes,
		    info.flags);
	if (info.nr_devices != 1 || info.nr_mappings != 1 || info.mapped_bytes != SIZE)
		die("IOASID %u has %u devices and %llu mappings of %llu bytes", gpa_ioasid,
		    info.nr_devices, info.nr_mappings, info.mapped_bytes);
	ok("IOASID %u has one device and one mapping of %lu bytes", gpa_ioasid, SIZE);
}

/* The device reads what the program wrote, at offsets that no page is aligned to. */
static void memory_to_device(int node, __u32 device, unsigned char *memory)
{
	static unsigned char seen[3 * PAGE];
	size_t offsets[] = { 0, 1, PAGE - 1, 5 * PAGE + 123, SIZE - sizeof(seen) }, done;

	fill(memory, SIZE, 1);
	for (size_t i = 0; i < sizeof(offsets) / sizeof(*offsets); i++) {
		int error = simulated_dma(node, device, IOASID_SIM_DMA_READ, GPA + offsets[i], seen,
					  sizeof(seen), &done);

		if (error || done != sizeof(seen))
			die("DMA read at offset %zu: %s after %zu bytes. %s", offsets[i],
			    strerror(error), done, explanation(node));
		must_equal(seen, memory + offsets[i], sizeof(seen), "what the device read");
	}
	ok("the device reads what the program wrote");
}

/* The program sees what the device wrote, and nothing else has changed. */
static void device_to_memory(int node, __u32 device, unsigned char *memory)
{
	static unsigned char sent[2 * PAGE + 77], expected[SIZE];
	size_t offset = 7 * PAGE + 1000, done;
	int error;

	memcpy(expected, memory, SIZE);
	fill(sent, sizeof(sent), 2);
	memcpy(expected + offset, sent, sizeof(sent));
	error = simulated_dma(node, device, IOASID_SIM_DMA_WRITE, GPA + offset, sent, sizeof(sent),
			      &done);
	if (error || done != sizeof(sent))
		die("DMA write: %s after %zu bytes. %s", strerror(error), done, explanation(node));
	must_equal(memory, expected, SIZE, "the program's memory");
	ok("the program sees what the device wrote, and nothing else has changed");
}

static void must_fault(int node, __u32 device, __u32 direction, __u64 iova, size_t after,
		       const char *what)
{
	static unsigned char data[2 * PAGE];
	size_t done = ~0UL;
	int error = simulated_dma(node, device, direction, iova, data, sizeof(data), &done);

	if (error != EIO || done != after)
		die("%s: \"%s\" after %zu bytes, instead of a fault after %zu", what,
		    strerror(error), done, after);
	ok("%s is a fault: %s", what, explanation(node));
}

int main(int argc, char **argv)
{
	int ioasid_fd;
	__u32 dev1, gpa_ioasid;
	unsigned char *memory;
	static unsigned char before[SIZE];

	if (argc < 3)
		die("usage: first-light-sim NODE DEVICE [--hold]");

	/* Bind device to IOASID fd */
	ioasid_fd = open_node(argv[1]);
	dev1 = bind_simulated(ioasid_fd, argv[2], COOKIE);
	check_what_was_bound(ioasid_fd, dev1, argv[2]);

	/* Attach device to IOASID */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1, gpa_ioasid);

	/* Setup GPA mapping */
	memory = shared_memory(SIZE);
	map(ioasid_fd, gpa_ioasid, GPA, memory, SIZE, MAP_BOTH);
	check_info(ioasid_fd, gpa_ioasid);

	memory_to_device(ioasid_fd, dev1, memory);
	if (argc > 3 && !strcmp(argv[3], "--hold")) {
		printf("ready\n");
		fflush(stdout);
		for (;;)
			pause();
	}
	device_to_memory(ioasid_fd, dev1, memory);

	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_READ, GPA + SIZE, 0,
		   "DMA past the end of the mapping");
	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_READ, GPA + SIZE - PAGE, PAGE,
		   "DMA that runs out of the mapping");
	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_WRITE, GPA - PAGE, 0,
		   "DMA in front of the mapping");

	/* A mapping that devices may only read, and one that they may only write */
	if (unmap(ioasid_fd, gpa_ioasid, GPA, SIZE) != SIZE)
		die("UNMAP_DMA did not unmap %lu bytes", SIZE);
	map(ioasid_fd, gpa_ioasid, GPA, memory, SIZE, IOASID_MAP_READ);
	memory_to_device(ioasid_fd, dev1, memory);
	memcpy(before, memory, SIZE);
	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_WRITE, GPA, 0, "DMA write to read-only memory");
	unmap(ioasid_fd, gpa_ioasid, GPA, SIZE);
	map(ioasid_fd, gpa_ioasid, GPA, memory, SIZE, IOASID_MAP_WRITE);
	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_READ, GPA, 0, "DMA read of write-only memory");

	/* Take it all away again */
	unmap(ioasid_fd, gpa_ioasid, GPA, SIZE);
	must_fault(ioasid_fd, dev1, IOASID_SIM_DMA_WRITE, GPA, 0, "DMA after the unmap");
	must_equal(memory, before, SIZE, "the memory after DMA that faulted");
	ok("faulting DMA has changed nothing");
	if (unmap(ioasid_fd, gpa_ioasid, GPA, SIZE) != 0)
		die("unmapping nothing did not give 0 bytes");

	detach(ioasid_fd, dev1, gpa_ioasid);
	must(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(dev1), "UNBIND_DEVICE");
	free_ioasid(ioasid_fd, gpa_ioasid);
	close(ioasid_fd);
	ok("detached, unbound and freed");
	return 0;
}
