/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * first-light-edu NODE ADDRESS GROUP [--hold | --close-midway]
 *
 * The flow of section 5.1 of the proposal with a PCI device on VFIO, QEMU's edu: real bytes in
 * both directions, and none any more after the unmap. The program opens /dev/vfio/GROUP with
 * its own rights; ADDRESS is as in 0000:00:10.0.
 *
 * --hold: prints "ready" once memory is mapped and reached, and sleeps until it is killed.
 * --close-midway: closes /dev/ioasid while memory is mapped and the device is open, and shows
 *   that the device then no longer reaches the memory.
 */
#include "edu.h"

#define GPA	0x100000UL		/* where the device sees the memory */
#define SIZE	(2 * MIB)
#define COOKIE	0x0edUL

struct edu {
	const char *address;
	int group;
	int fd;
	volatile void *registers;
	__u32 id;
};

static void check_what_was_bound(int node, const struct edu *edu)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = edu->id };

	must(node, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
	if (strcmp(info.name, edu->address) || info.cookie != COOKIE)
		die("device %u is %s with cookie %#llx", edu->id, info.name, info.cookie);
	if (!(info.flags & IOASID_DEVICE_VFIO) || (info.flags & IOASID_DEVICE_SIMULATED))
		die("%s is not called a VFIO device", edu->address);
	ok("%s is device %u of this context, in group %u, IOVAs %#llx to %#llx", edu->address,
	   edu->id, info.group, info.aperture_start, info.aperture_last);
}

/*
 * memory -> buffer of the device -> other memory, at offsets that no page is aligned to. Nothing
 * around the destination may change.
 */
static void both_directions(const struct edu *edu, unsigned char *memory)
{
	static unsigned char expected[SIZE];
	size_t source = 3 * PAGE + 40, destination = 301 * PAGE + 1816, count = 2000;

	fill(memory, SIZE, 1);
	memcpy(expected, memory, SIZE);
	memcpy(expected + destination, expected + source, count);
	edu_read(edu->registers, GPA + source, 16, count);
	ok("the device has read memory at IOVA %#lx", GPA + source);
	edu_write(edu->registers, GPA + destination, 16, count);
	must_equal(memory, expected, SIZE, "memory after DMA in both directions");
	ok("it wrote the same bytes to IOVA %#lx, and nothing else has changed", GPA + destination);
}

/* Leaves `value` in the whole buffer of the device, so that a write of it would be seen. */
static void load_buffer(const struct edu *edu, unsigned char *memory, unsigned char value)
{
	memset(memory, value, PAGE);
	edu_read(edu->registers, GPA, 0, EDU_TRANSFER_MAX);
}

/* Does the device still reach the memory that was mapped at GPA? */
static bool reaches(const struct edu *edu, unsigned char *memory)
{
	memset(memory, 0x11, PAGE);
	edu_write(edu->registers, GPA, 0, EDU_TRANSFER_MAX);
	return !all_bytes_are(memory, PAGE, 0x11);
}

/*
 * Detached, the device reaches nothing; attached to another IOASID, what that one maps; and back
 * again, all that the first one maps.
 */
static void moved_and_back(int node, __u32 gpa_ioasid, const struct edu *edu,
			   unsigned char *memory)
{
	unsigned char *other = shared_memory(PAGE);
	__u32 other_ioasid = alloc_ioasid(node);

	load_buffer(edu, memory, 0xaa);
	detach(node, edu->id, gpa_ioasid);
	if (reaches(edu, memory))
		die("the detached device still reaches the memory");
	attach(node, edu->id, other_ioasid);
	map(node, other_ioasid, GPA, other, PAGE, MAP_BOTH);
	if (!reaches(edu, other))
		die("the device does not reach what its new IOASID maps");
	if (!all_bytes_are(memory, PAGE, 0x11))
		die("the device still reaches what its old IOASID maps");
	detach(node, edu->id, other_ioasid);
	free_ioasid(node, other_ioasid);
	attach(node, edu->id, gpa_ioasid);
	if (!reaches(edu, memory))
		die("back at its IOASID, the device does not reach the memory");
	both_directions(edu, memory);
	ok("moved to another IOASID and back, it reaches what that IOASID maps and nothing else");
}

static void after_the_unmap(int node, __u32 gpa_ioasid, const struct edu *edu,
			    unsigned char *memory)
{
	unsigned char *seen;

	load_buffer(edu, memory, 0xaa);
	if (unmap(node, gpa_ioasid, GPA, SIZE) != SIZE)
		die("UNMAP_DMA did not unmap %lu bytes", SIZE);
	if (reaches(edu, memory))
		die("the device still writes to memory that was unmapped");
	ok("after the unmap the device no longer writes there");

	/* What it reads there now does not get into its buffer, nor from there into `seen`. */
	memset(memory, 0x5e, PAGE);
	edu_read(edu->registers, GPA, 0, EDU_TRANSFER_MAX);
	seen = shared_memory(PAGE);
	memset(seen, 0x11, PAGE);
	map(node, gpa_ioasid, GPA, seen, PAGE, MAP_BOTH);
	edu_write(edu->registers, GPA, 0, EDU_TRANSFER_MAX);
	if (all_bytes_are(seen, PAGE, 0x11))
		die("the device does not reach what was mapped at the same IOVA afterwards");
	for (size_t i = 0; i < PAGE; i++)
		if (seen[i] == 0x5e)
			die("the device still reads memory that was unmapped");
	if (!all_bytes_are(memory, PAGE, 0x5e))
		die("the memory was changed after it had been unmapped");
	ok("nor does it read there; and it reaches what is mapped there next");
	unmap(node, gpa_ioasid, GPA, PAGE);
}

/* The release of the context follows the close, but close() does not wait for it. */
static void close_midway(int node, const struct edu *edu, unsigned char *memory)
{
	double give_up = now() + 10;

	load_buffer(edu, memory, 0xaa);
	if (!reaches(edu, memory))
		die("the device does not reach the memory before the close");
	close(node);
	while (reaches(edu, memory))
		if (now() > give_up)
			die("10 s after the close the device still reaches the memory");
	if (reaches(edu, memory))
		die("the device reaches the memory again");
	ok("after the close the open device no longer reaches the memory");
}

int main(int argc, char **argv)
{
	const char *option = argc > 4 ? argv[4] : "";
	struct edu edu;
	int ioasid_fd;
	__u32 gpa_ioasid;
	unsigned char *memory;

	if (argc < 4)
		die("usage: first-light-edu NODE ADDRESS GROUP [--hold | --close-midway]");

	/* Bind device to IOASID fd */
	edu.address = argv[2];
	edu.group = open_group(argv[3]);
	ioasid_fd = open_node(argv[1]);
	edu.id = bind_group(ioasid_fd, edu.group, edu.address, COOKIE);
	check_what_was_bound(ioasid_fd, &edu);
	edu.registers = open_edu(edu.group, edu.address, &edu.fd);
	ok("the program has the device's own descriptor and registers");

	/* Attach device to IOASID */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, edu.id, gpa_ioasid);

	/* Setup GPA mapping */
	memory = shared_memory(SIZE);
	map(ioasid_fd, gpa_ioasid, GPA, memory, SIZE, MAP_BOTH);

	both_directions(&edu, memory);
	if (!strcmp(option, "--hold")) {
		printf("ready\n");
		fflush(stdout);
		for (;;)
			pause();
	}
	if (!strcmp(option, "--close-midway")) {
		close_midway(ioasid_fd, &edu, memory);
		return 0;
	}
	moved_and_back(ioasid_fd, gpa_ioasid, &edu, memory);
	after_the_unmap(ioasid_fd, gpa_ioasid, &edu, memory);

	/* The registers and the device go first: a device in use stays bound */
	must_refuse(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(edu.id), EBUSY,
		    "UNBIND_DEVICE of an attached device");
	detach(ioasid_fd, edu.id, gpa_ioasid);
	must_refuse(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(edu.id), EBUSY,
		    "UNBIND_DEVICE of an open device");
	munmap((void *)edu.registers, region(edu.fd, VFIO_PCI_BAR0_REGION_INDEX).size);
	close(edu.fd);
	must(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(edu.id), "UNBIND_DEVICE");
	free_ioasid(ioasid_fd, gpa_ioasid);
	close(ioasid_fd);
	close(edu.group);
	ok("detached, unbound and freed");
	return 0;
}
