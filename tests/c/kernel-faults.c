/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kernel-faults NODE ADDRESS GROUP
 *
 * DMA of a real edu device to where nothing is mapped: the kernel's log tells of it, and so does
 * read() of the node, as best effort. (The laboratory's IOMMU is VT-d, which tells the page.)
 */
#include "edu.h"

#include <poll.h>

#define COOKIE	0xfeedUL
#define HOLE	0x5000000UL

int main(int argc, char **argv)
{
	struct ioasid_fault fault;
	struct pollfd readable = { .events = POLLIN };
	volatile void *registers;
	__u32 device, ioasid;
	int node, group, fd;

	if (argc != 4)
		die("usage: kernel-faults NODE ADDRESS GROUP");
	node = open_node(argv[1]);
	if (!has_extension(node, IOASID_EXT_FAULTS))
		skip("this daemon cannot read the kernel's log");
	group = open_group(argv[3]);
	device = bind_group(node, group, argv[2], COOKIE);
	registers = open_edu(group, argv[2], &fd);
	ioasid = alloc_ioasid(node);
	attach(node, device, ioasid);
	/* The kernel tells of few faults at once. Wait out those of others. */
	for (int tries = 0;; tries++) {
		edu_write(registers, HOLE, 0, 8);
		readable.fd = node;
		if (poll(&readable, 1, 3000) == 1)
			break;
		if (tries == 5)
			die("no record of a fault came");
	}
	if (read(node, &fault, sizeof(fault)) != sizeof(fault))
		die("a record cannot be read: %s", strerror(errno));
	if (fault.address != HOLE || fault.cookie != COOKIE || fault.device != device ||
	    fault.ioasid != ioasid || fault.id)
		die("the record is of %#llx, cookie %#llx, device %u, IOASID %u, id %u",
		    fault.address, fault.cookie, fault.device, fault.ioasid, fault.id);
	if (fault.flags != (IOASID_FAULT_WRITE | IOASID_FAULT_BEST_EFFORT))
		die("the record's flags are %#x", fault.flags);
	puts("ok: read() tells of a fault that the kernel logged, with address, device and direction");
	return 0;
}
