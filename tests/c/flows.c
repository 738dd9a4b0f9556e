/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * flows NODE DEVICE-1 DEVICE-2
 * flows NODE --small SMALL OTHER
 *
 * The flows of section 5 of the proposal, 5.1 to 5.4, in its order of calls and with its
 * addresses; binding and attaching go through the node. After every step both devices are asked
 * what they reach: what the step says, and nothing else. Between and after the steps of the
 * proposal come those that it only speaks of: deeper nesting, holes, rights, refusals. The devices
 * are written as in device.h, and have a group each.
 *
 * --small: what happens when an I/O page table is full. SMALL is a simulated device whose table
 * takes SMALL_MAPPINGS mappings; OTHER is one with a larger table.
 */
#include "reach.h"

#include <stdatomic.h>
#include <sys/wait.h>

#define GUEST		(4 * MIB)	/* in the proposal, 1 GB */
#define OUTSIDE		(64 * MIB)	/* a guest-physical address at which nothing is */
#define SMALL_MAPPINGS	8

static int ioasid_fd;
static struct device dev1, dev2;
static __u32 gpa_ioasid, giova_ioasid;

/* ------------------------------------------------------------------ */
/* What holds at all times                                              */
/* ------------------------------------------------------------------ */

static void holds(__u32 ioasid, __u64 mappings, __u64 bytes, const char *when)
{
	struct ioasid_info info = get_info(ioasid_fd, ioasid);

	/* Windows are none of the flow's. */
	if (dev1.is_edu && mappings) {
		mappings++;
		bytes += PAGE;
	}
	if (info.nr_mappings != mappings || info.mapped_bytes != bytes)
		die("%s: IOASID %u holds %llu mappings of %llu bytes instead of %llu of %llu", when,
		    ioasid, info.nr_mappings, info.mapped_bytes, mappings, bytes);
}

static void stands(__u32 ioasid, __u32 parent, __u32 depth, __u32 devices, __u32 children)
{
	struct ioasid_info info = get_info(ioasid_fd, ioasid);
	__u32 shadow = parent ? IOASID_INFO_SHADOW : 0;

	if (info.parent != parent || info.depth != depth || info.nr_devices != devices ||
	    info.nr_children != children)
		die("IOASID %u has parent %u, depth %u, %u devices, %u children instead of %u, %u, "
		    "%u, %u", ioasid, info.parent, info.depth, info.nr_devices, info.nr_children,
		    parent, depth, devices, children);
	if ((info.flags & IOASID_INFO_SHADOW) != shadow)
		die("IOASID %u has flags %#x", ioasid, info.flags);
	if (!info.formats != !parent || info.format || info.format_addr)
		die("IOASID %u has formats %#llx, and format %u at %#llx", ioasid, info.formats,
		    info.format, info.format_addr);
	/* What is mapped through a parent is charged there. */
	if (parent && info.locked_bytes)
		die("%llu bytes are charged for child %u", info.locked_bytes, ioasid);
}

static __u32 attached_to(const struct device *device)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = device->id };

	must(ioasid_fd, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
	return info.ioasid;
}

static void must_be_at(const struct device *device, __u32 ioasid)
{
	if (attached_to(device) != ioasid)
		die("%s is attached to %u instead of %u", device->name, attached_to(device),
		    ioasid);
}

static void refuse_attach(const struct device *device, __u32 ioasid, int error, const char *what)
{
	struct ioasid_attach_device at_data = attachment(device->id, ioasid);
	__u32 was = attached_to(device);

	must_refuse(ioasid_fd, IOASID_ATTACH_DEVICE, &at_data, error, what);
	must_be_at(device, was);
}

static void refuse_detach(const struct device *device, __u32 ioasid, int error, const char *what)
{
	struct ioasid_attach_device at_data = attachment(device->id, ioasid);
	__u32 was = attached_to(device);

	must_refuse(ioasid_fd, IOASID_DETACH_DEVICE, &at_data, error, what);
	must_be_at(device, was);
}

static void refuse_map(__u32 ioasid, __u64 iova, __u64 at, __u64 size, __u32 flags, int error,
		       const char *what)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, (void *)(uintptr_t)at, size, flags);

	must_refuse(ioasid_fd, IOASID_MAP_DMA, &dma_map, error, what);
}

/* The guest's memory, all of it, at guest-physical address 0. */
static void map_guest(const struct device *device)
{
	map_window(device, gpa_ioasid);
	map(ioasid_fd, gpa_ioasid, 0, guest, guest_size, MAP_BOTH);
}

static void reaches_guest(const struct device *device, const char *when)
{
	reaches(device, 0, 0, MAP_BOTH, when);
	reaches(device, guest_size - SAMPLE, guest_size - SAMPLE, MAP_BOTH, when);
	faults(device, guest_size, when);
}

/* ------------------------------------------------------------------ */
/* 5.1. A simple example                                                */
/* ------------------------------------------------------------------ */

static void simple_example(void)
{
	/* Attach device to IOASID */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	map_window(&dev1, gpa_ioasid);
	load(&dev1);
	faults(&dev1, 0, "5.1, before anything is mapped");

	/* Setup GPA mapping */
	map(ioasid_fd, gpa_ioasid, 0, guest, guest_size, MAP_BOTH);
	reaches_guest(&dev1, "5.1");
	stands(gpa_ioasid, 0, 0, 1, 0);
	ok("5.1: a device reaches the guest's memory at guest-physical addresses");

	detach(ioasid_fd, dev1.id, gpa_ioasid);
	reaches_nothing(&dev1, 0, "5.1, detached");
	free_ioasid(ioasid_fd, gpa_ioasid);
}

/* ------------------------------------------------------------------ */
/* 5.2. Multiple IOASIDs (no nesting)                                   */
/* ------------------------------------------------------------------ */

static void registration(unsigned long command, void *memory, size_t size)
{
	struct ioasid_register_memory mem_info = {
		.argsz = sizeof(mem_info), .vaddr = (uintptr_t)memory, .size = size,
	};

	must(ioasid_fd, command, &mem_info, "REGISTER_MEMORY or UNREGISTER_MEMORY");
}

static atomic_bool runs;
static atomic_ulong transfers;

/* A device that writes to GIOVA 0x2000 all the time, wherever that leads. */
static void *writes_all_the_time(void *unused)
{
	unsigned char sent[SAMPLE];

	(void)unused;
	while (runs) {
		int error = write_sample(&dev2, 0x2000, sent);

		if (error && error != EIO)
			die("DMA while the device moves: %s", strerror(error));
		transfers++;
	}
	return NULL;
}

/*
 * The device moves between the two while its DMA goes on. Each transfer gets to the place that
 * one of the two maps, or to none.
 */
static void moves_while_it_runs(void)
{
	int at_least = dev1.is_edu ? 20 : 2000, moves;
	double give_up = now() + 30;
	pthread_t thread;

	memcpy(before, guest, guest_size);
	runs = true;
	if (pthread_create(&thread, NULL, writes_all_the_time, NULL))
		die("cannot start a thread");
	for (moves = 0; moves < at_least || transfers < 5; moves++) {
		if (now() > give_up)
			die("only %lu transfers while the device moved", transfers);
		detach(ioasid_fd, dev2.id, giova_ioasid);
		attach(ioasid_fd, dev2.id, gpa_ioasid);
		if (dev1.is_edu)
			sleep_ms(70);
		detach(ioasid_fd, dev2.id, gpa_ioasid);
		attach(ioasid_fd, dev2.id, giova_ioasid);
	}
	runs = false;
	pthread_join(thread, NULL);
	memcpy(before + 0x1000, guest + 0x1000, SAMPLE);
	memcpy(before + 0x2000, guest + 0x2000, SAMPLE);
	must_equal(guest, before, guest_size, "memory that a moving device does not write");
	memset(guest + 0x1000, 0, SAMPLE);
	memset(guest + 0x2000, 0, SAMPLE);
	ok("5.2: %d moves while the device writes (%lu transfers): nothing else is written", moves,
	   transfers);
}

static void multiple_ioasids(void)
{
	bool registers = has_extension(ioasid_fd, IOASID_EXT_REGISTER_MEMORY);
	__u64 locked;

	/* pre-register the virtual address range for accounting */
	if (registers) {
		registration(IOASID_REGISTER_MEMORY, guest, guest_size);
		registration(IOASID_REGISTER_MEMORY, window, PAGE);
	} else {
		printf("skipped: 5.2 with registered memory: the node has none\n");
	}

	/* Attach dev1 and dev2 to gpa_ioasid */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	attach(ioasid_fd, dev2.id, gpa_ioasid);

	/* Setup GPA mapping */
	map_guest(&dev1);
	load(&dev2);
	reaches_guest(&dev1, "5.2, first device");
	reaches_guest(&dev2, "5.2, second device");
	locked = get_info(ioasid_fd, gpa_ioasid).locked_used;

	/* After boot, guest enables an GIOVA space for dev2 */
	giova_ioasid = alloc_ioasid(ioasid_fd);

	/* First detach dev2 from previous address space */
	detach(ioasid_fd, dev2.id, gpa_ioasid);
	reaches_nothing(&dev2, 0x1000, "5.2, detached");
	reaches(&dev1, 0x1000, 0x1000, MAP_BOTH, "5.2, the device that stays");

	/* Then attach dev2 to the new address space */
	attach(ioasid_fd, dev2.id, giova_ioasid);
	map_window(&dev2, giova_ioasid);
	faults(&dev2, 0x1000, "5.2, in an empty address space");

	/* Setup a shadow DMA mapping according to vIOMMU
	 * GIOVA (0x2000) -> GPA (0x1000) -> HVA (0x40001000)
	 */
	map(ioasid_fd, giova_ioasid, 0x2000, guest + 0x1000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.2, the shadow mapping");
	reaches(&dev2, 0x2fc0, 0x1fc0, MAP_BOTH, "5.2, the end of the shadow mapping");
	faults(&dev2, 0x1000, "5.2, in front of the shadow mapping");
	faults(&dev2, 0x3000, "5.2, behind the shadow mapping");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.2, the device that has stayed");
	if (registers && get_info(ioasid_fd, giova_ioasid).locked_used != locked)
		die("registered memory is charged again for a second IOASID");
	ok("5.2: a device has moved to an address space of its own; the other has not noticed");

	moves_while_it_runs();
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.2, after the moves");
	faults(&dev2, 0x1000, "5.2, after the moves");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.2, beside the moves");

	/* The guest gives the GIOVA space up again. */
	unmap(ioasid_fd, giova_ioasid, 0x2000, 4 * KIB);
	faults(&dev2, 0x2000, "5.2, unmapped");
	detach(ioasid_fd, dev2.id, giova_ioasid);
	free_ioasid(ioasid_fd, giova_ioasid);
	attach(ioasid_fd, dev2.id, gpa_ioasid);
	reaches_guest(&dev2, "5.2, back at the first IOASID");
	detach(ioasid_fd, dev2.id, gpa_ioasid);
	detach(ioasid_fd, dev1.id, gpa_ioasid);
	free_ioasid(ioasid_fd, gpa_ioasid);
	if (registers) {
		registration(IOASID_UNREGISTER_MEMORY, guest, guest_size);
		registration(IOASID_UNREGISTER_MEMORY, window, PAGE);
	}
}

/* ------------------------------------------------------------------ */
/* 5.3. IOASID nesting (software)                                       */
/* ------------------------------------------------------------------ */

static void software_nesting(void)
{
	/* The flow before guest boots is same as 5.2, without the registration */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	must_refuse(ioasid_fd, IOASID_CREATE_NESTING, by_value(gpa_ioasid), ENODEV,
		    "CREATE_NESTING on an IOASID that never had a device");
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	attach(ioasid_fd, dev2.id, gpa_ioasid);
	map_guest(&dev1);

	/* After boots */
	/* Make GIOVA space nested on GPA space */
	giova_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	reaches_guest(&dev2, "5.3, before the attach");
	refuse_map(giova_ioasid, 0x2000, 0x1000, 4 * KIB, MAP_BOTH, ENODEV,
		   "MAP_DMA on a child that never had a device");

	/* Attach dev2 to the new address space (child)
	 * Note dev2 is still attached to gpa_ioasid (parent)
	 */
	attach(ioasid_fd, dev2.id, giova_ioasid);
	reaches_nothing(&dev2, 0x1000, "5.3, in an empty child");
	reaches(&dev1, 0x1000, 0x1000, MAP_BOTH, "5.3, the device that stays at the parent");
	stands(gpa_ioasid, 0, 0, 2, 1);
	stands(giova_ioasid, gpa_ioasid, 1, 1, 0);

	/* Setup a GIOVA->GPA mapping for giova_ioasid, which will be
	 * merged by the kernel with GPA->HVA mapping of gpa_ioasid
	 * to form a shadow mapping.
	 */
	map_window_below(&dev2, giova_ioasid);
	map_child(ioasid_fd, giova_ioasid, 0x2000, 0x1000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.3, the shadow mapping");
	reaches(&dev2, 0x2fc0, 0x1fc0, MAP_BOTH, "5.3, the end of the shadow mapping");
	faults(&dev2, 0x1000, "5.3, in front of the shadow mapping");
	faults(&dev2, 0x3000, "5.3, behind the shadow mapping");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.3, the device at the parent");
	holds(giova_ioasid, 1, 4 * KIB, "5.3");
	ok("5.3: child and parent together give one mapping; the device at the parent has not noticed");

	/* Detached from the child, the device is where it was. */
	detach(ioasid_fd, dev2.id, giova_ioasid);
	must_be_at(&dev2, gpa_ioasid);
	reaches_guest(&dev2, "5.3, detached from the child");
	attach(ioasid_fd, dev2.id, giova_ioasid);
	must_be_at(&dev2, giova_ioasid);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.3, attached to a child that has mappings");
	faults(&dev2, 0x1000, "5.3, attached to a child that has mappings");
	ok("5.3: a device moves between child and parent, and each shows what it maps");
}

static void refusals(void)
{
	struct ioasid_unmap_dma middle = {
		.argsz = sizeof(middle), .ioasid = giova_ioasid, .iova = 0x20000, .size = 4 * KIB,
	};
	__u32 sibling = create_nesting(ioasid_fd, gpa_ioasid);
	__u32 grandchild = create_nesting(ioasid_fd, giova_ioasid);
	__u32 lone = alloc_ioasid(ioasid_fd);

	refuse_detach(&dev2, gpa_ioasid, EBUSY, "DETACH_DEVICE from the parent of its IOASID");
	refuse_detach(&dev2, sibling, ENOENT, "DETACH_DEVICE from another child");
	refuse_attach(&dev2, giova_ioasid, EBUSY, "ATTACH_DEVICE a second time");
	refuse_attach(&dev2, sibling, EBUSY, "ATTACH_DEVICE to a second child");
	refuse_attach(&dev2, lone, EBUSY, "ATTACH_DEVICE to an unrelated IOASID");
	refuse_attach(&dev1, grandchild, EINVAL, "ATTACH_DEVICE to a grandchild from its grandparent");
	detach(ioasid_fd, dev1.id, gpa_ioasid);
	refuse_attach(&dev1, giova_ioasid, EINVAL, "ATTACH_DEVICE to a child without its parent");
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	must_refuse(ioasid_fd, IOASID_FREE, by_value(gpa_ioasid), EBUSY, "FREE of a parent in use");
	must_refuse(ioasid_fd, IOASID_FREE, by_value(giova_ioasid), EBUSY, "FREE of a child in use");
	must_refuse(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(dev2.id), EBUSY,
		    "UNBIND_DEVICE of a device at a child");

	refuse_map(giova_ioasid, 0x2000, 0x1000, 4 * KIB, MAP_BOTH, EEXIST,
		   "MAP_DMA over a mapping of the child");
	refuse_map(giova_ioasid, 0x5000, 0x1000, 4 * KIB, 0, EINVAL,
		   "MAP_DMA on a child for neither direction");
	refuse_map(giova_ioasid, 0x5000, 0x1000, 0, MAP_BOTH, EINVAL,
		   "MAP_DMA of nothing on a child");
	refuse_map(giova_ioasid, 0x5000, 0x1080, 4 * KIB, MAP_BOTH, EINVAL,
		   "MAP_DMA on a child to an address that is not aligned");
	refuse_map(giova_ioasid, 0x5000, 0x1000, 4 * KIB, MAP_BOTH | IOASID_MAP_FILE, EINVAL,
		   "MAP_DMA of a file on a child");
	refuse_map(giova_ioasid, 0x5000, -PAGE, 2 * PAGE, MAP_BOTH, EOVERFLOW,
		   "MAP_DMA on a child to addresses that wrap");
	map_child(ioasid_fd, giova_ioasid, 0x20000, 0x10000, 12 * KIB, MAP_BOTH);
	must_refuse(ioasid_fd, IOASID_UNMAP_DMA, &middle, EINVAL,
		    "UNMAP_DMA of a part of a child's mapping");
	holds(giova_ioasid, 2, 16 * KIB, "after refusals");
	reaches(&dev2, 0x20000, 0x10000, MAP_BOTH, "after refusals");
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "after refusals");
	faults(&dev2, 0x5000, "after refusals");
	if (unmap(ioasid_fd, giova_ioasid, 0x20000, 12 * KIB) != 12 * KIB)
		die("UNMAP_DMA on a child does not say how much it has unmapped");
	faults(&dev2, 0x20000, "after an unmap in the child");
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "beside what was unmapped in the child");

	free_ioasid(ioasid_fd, lone);
	free_ioasid(ioasid_fd, grandchild);
	free_ioasid(ioasid_fd, sibling);
	stands(gpa_ioasid, 0, 0, 2, 1);
	ok("what is refused at a child or its parent changes nothing");
}

/* The child maps what the parent does not, or only later, or in pieces of its own. */
static void holes_in_the_parent(void)
{
	__u64 child = 8 * MIB;

	map_child(ioasid_fd, giova_ioasid, child, OUTSIDE, 16 * PAGE, MAP_BOTH);
	faults(&dev2, child, "where the parent maps nothing");
	faults(&dev2, child + 8 * PAGE, "where the parent maps nothing");

	map(ioasid_fd, gpa_ioasid, OUTSIDE + 4 * PAGE, guest + 32 * PAGE, 2 * PAGE, MAP_BOTH);
	map(ioasid_fd, gpa_ioasid, OUTSIDE + 6 * PAGE, guest + 80 * PAGE, PAGE, IOASID_MAP_READ);
	faults(&dev2, child + 3 * PAGE, "in front of what the parent maps since");
	reaches(&dev2, child + 4 * PAGE, 32 * PAGE, MAP_BOTH, "what the parent maps since");
	reaches(&dev2, child + 6 * PAGE - SAMPLE, 34 * PAGE - SAMPLE, MAP_BOTH,
		"the end of what the parent maps since");
	reaches(&dev2, child + 6 * PAGE, 80 * PAGE, IOASID_MAP_READ, "the parent's next mapping");
	faults(&dev2, child + 7 * PAGE, "behind what the parent maps since");
	reaches(&dev1, OUTSIDE + 4 * PAGE, 32 * PAGE, MAP_BOTH, "the same at the parent");
	ok("what the parent maps later fills holes of the child, with the parent's rights");

	/* Half of this mapping of the parent lies in the child's. */
	map(ioasid_fd, gpa_ioasid, OUTSIDE + 14 * PAGE, guest + 40 * PAGE, 4 * PAGE, MAP_BOTH);
	reaches(&dev2, child + 15 * PAGE, 41 * PAGE, MAP_BOTH, "the half that the child maps");
	faults(&dev2, child + 16 * PAGE, "the half that the child does not map");
	reaches(&dev1, OUTSIDE + 17 * PAGE, 43 * PAGE, MAP_BOTH, "the other half at the parent");

	unmap(ioasid_fd, gpa_ioasid, OUTSIDE + 4 * PAGE, 2 * PAGE);
	faults(&dev2, child + 4 * PAGE, "what the parent maps no more");
	reaches(&dev2, child + 6 * PAGE, 80 * PAGE, IOASID_MAP_READ, "beside what is gone");
	reaches(&dev2, child + 14 * PAGE, 40 * PAGE, MAP_BOTH, "beside what is gone");
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, 32 * PAGE);
	faults(&dev2, child + 6 * PAGE, "what the parent maps no more");
	faults(&dev2, child + 14 * PAGE, "what the parent maps no more");
	holds(giova_ioasid, 2, 17 * PAGE, "the child's own mappings, when the parent's are gone");
	ok("what the parent unmaps is gone from the child, which keeps its mapping");

	map(ioasid_fd, gpa_ioasid, OUTSIDE, guest + 64 * PAGE, 16 * PAGE, MAP_BOTH);
	reaches(&dev2, child + 5 * PAGE, 69 * PAGE, MAP_BOTH, "other memory at the same addresses");
	unmap(ioasid_fd, giova_ioasid, child, 16 * PAGE);
	faults(&dev2, child + 5 * PAGE, "unmapped in the child");
	reaches(&dev1, OUTSIDE + 5 * PAGE, 69 * PAGE, MAP_BOTH, "at the parent, after that");
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, 16 * PAGE);
	ok("other memory at the parent's addresses is what the child then shows");
}

/* Rights are those that all levels give; several mappings may lead to one place. */
static void rights_and_aliases(void)
{
	__u64 child = 8 * MIB;

	map(ioasid_fd, gpa_ioasid, OUTSIDE, guest + 16 * PAGE, PAGE, MAP_BOTH);
	map(ioasid_fd, gpa_ioasid, OUTSIDE + PAGE, guest + 24 * PAGE, PAGE, IOASID_MAP_READ);
	map(ioasid_fd, gpa_ioasid, OUTSIDE + 2 * PAGE, guest + 48 * PAGE, PAGE, IOASID_MAP_WRITE);
	map_child(ioasid_fd, giova_ioasid, child, OUTSIDE, 3 * PAGE, IOASID_MAP_READ);
	map_child(ioasid_fd, giova_ioasid, child + 4 * PAGE, OUTSIDE, 3 * PAGE, IOASID_MAP_WRITE);
	map_child(ioasid_fd, giova_ioasid, child + 8 * PAGE, OUTSIDE, 3 * PAGE, MAP_BOTH);
	reaches(&dev2, child, 16 * PAGE, IOASID_MAP_READ, "read-only child, parent for both");
	reaches(&dev2, child + PAGE, 24 * PAGE, IOASID_MAP_READ, "read-only child and parent");
	faults(&dev2, child + 2 * PAGE, "read-only child, write-only parent");
	reaches(&dev2, child + 4 * PAGE, 16 * PAGE, IOASID_MAP_WRITE, "write-only child");
	faults(&dev2, child + 5 * PAGE, "write-only child, read-only parent");
	reaches(&dev2, child + 6 * PAGE, 48 * PAGE, IOASID_MAP_WRITE, "write-only child and parent");
	reaches(&dev2, child + 8 * PAGE, 16 * PAGE, MAP_BOTH, "child and parent for both");
	reaches(&dev2, child + 9 * PAGE, 24 * PAGE, IOASID_MAP_READ, "read-only parent");
	reaches(&dev2, child + 10 * PAGE, 48 * PAGE, IOASID_MAP_WRITE, "write-only parent");
	ok("a device has the rights that both levels give");

	unmap(ioasid_fd, giova_ioasid, child + 4 * PAGE, 3 * PAGE);
	faults(&dev2, child + 4 * PAGE, "one of three ways to a place, unmapped");
	reaches(&dev2, child, 16 * PAGE, IOASID_MAP_READ, "another way to it");
	reaches(&dev2, child + 8 * PAGE, 16 * PAGE, MAP_BOTH, "a third way to it");
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, PAGE);
	faults(&dev2, child, "the place is gone, one way");
	faults(&dev2, child + 8 * PAGE, "the place is gone, another way");
	reaches(&dev2, child + PAGE, 24 * PAGE, IOASID_MAP_READ, "a place beside it");
	unmap(ioasid_fd, giova_ioasid, child, 16 * PAGE);
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, 3 * PAGE);
	ok("several mappings of a child may lead to one place, and go with it");
}

/* Three levels, and devices that show different ones of them at once. */
static void deeper(void)
{
	__u32 gva_ioasid = create_nesting(ioasid_fd, giova_ioasid), last;

	attach(ioasid_fd, dev2.id, gva_ioasid);
	stands(gva_ioasid, giova_ioasid, 2, 1, 0);
	map_window_below(&dev2, gva_ioasid);
	/* GVA 0x5000 -> GIOVA 0x2000 -> GPA 0x1000 */
	map_child(ioasid_fd, gva_ioasid, 0x5000, 0x1000, 12 * KIB, MAP_BOTH);
	faults(&dev2, 0x5000, "a hole of the middle level");
	reaches(&dev2, 0x6000, 0x1000, MAP_BOTH, "through three levels");
	faults(&dev2, 0x7000, "a hole of the middle level");
	faults(&dev2, 0x2000, "what only the middle level maps");

	/* The other device shows the middle level. */
	attach(ioasid_fd, dev1.id, giova_ioasid);
	reaches(&dev1, 0x2000, 0x1000, MAP_BOTH, "a device at the middle level");
	faults(&dev1, 0x6000, "a device at the middle level");
	map_child(ioasid_fd, giova_ioasid, 0x3000, 0x8000, 4 * KIB, IOASID_MAP_READ);
	reaches(&dev1, 0x3000, 0x8000, IOASID_MAP_READ, "mapped at the middle level");
	reaches(&dev2, 0x7000, 0x8000, IOASID_MAP_READ, "mapped at the middle level, seen below");
	unmap(ioasid_fd, giova_ioasid, 0x2000, 4 * KIB);
	faults(&dev1, 0x2000, "unmapped at the middle level");
	faults(&dev2, 0x6000, "unmapped at the middle level, below");
	reaches(&dev2, 0x7000, 0x8000, IOASID_MAP_READ, "beside what was unmapped there");
	map_child(ioasid_fd, giova_ioasid, 0x2000, 0x1000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x6000, 0x1000, MAP_BOTH, "mapped again at the middle level");
	ok("three levels: what the middle one maps and unmaps shows at it and below it");

	/* The top: gone and back, for both. */
	if (unmap(ioasid_fd, gpa_ioasid, 0, guest_size) != guest_size)
		die("the parent does not say how much it has unmapped");
	faults(&dev1, 0x2000, "unmapped at the top");
	faults(&dev2, 0x6000, "unmapped at the top");
	map(ioasid_fd, gpa_ioasid, 0, guest, guest_size, IOASID_MAP_READ);
	reaches(&dev1, 0x2000, 0x1000, IOASID_MAP_READ, "read-only at the top");
	reaches(&dev2, 0x6000, 0x1000, IOASID_MAP_READ, "read-only at the top");
	unmap(ioasid_fd, gpa_ioasid, 0, guest_size);
	map(ioasid_fd, gpa_ioasid, 0, guest, guest_size, MAP_BOTH);
	reaches(&dev1, 0x2000, 0x1000, MAP_BOTH, "mapped again at the top");
	reaches(&dev2, 0x6000, 0x1000, MAP_BOTH, "mapped again at the top");
	ok("two devices show two levels at once, and both follow the top");

	must_refuse(ioasid_fd, IOASID_FREE, by_value(giova_ioasid), EBUSY,
		    "FREE of the level in the middle");
	refuse_detach(&dev2, giova_ioasid, EBUSY, "DETACH_DEVICE from the level in the middle");
	refuse_detach(&dev2, gpa_ioasid, EBUSY, "DETACH_DEVICE from the top level");
	refuse_attach(&dev1, giova_ioasid, EBUSY, "ATTACH_DEVICE where the device is");
	detach(ioasid_fd, dev1.id, giova_ioasid);
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "back at the top");
	detach(ioasid_fd, dev2.id, gva_ioasid);
	must_be_at(&dev2, giova_ioasid);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "one level up");
	faults(&dev2, 0x6000, "one level up");
	must_refuse(ioasid_fd, IOASID_FREE, by_value(giova_ioasid), EBUSY, "FREE of a parent");

	/* A level without devices keeps what it maps. */
	attach(ioasid_fd, dev2.id, gva_ioasid);
	reaches(&dev2, 0x6000, 0x1000, MAP_BOTH, "one level down again");
	if (!dev1.is_edu) {
		__u32 levels[20];

		for (int i = 0; i < 20; i++) {
			last = i ? levels[i - 1] : gva_ioasid;
			levels[i] = create_nesting(ioasid_fd, last);
			attach(ioasid_fd, dev2.id, levels[i]);
			map_child(ioasid_fd, levels[i], 0x6000, 0x6000, 4 * KIB, MAP_BOTH);
		}
		stands(levels[19], levels[18], 22, 1, 0);
		reaches(&dev2, 0x6000, 0x1000, MAP_BOTH, "through 23 levels");
		faults(&dev2, 0x7000, "through 23 levels");
		unmap(ioasid_fd, levels[9], 0x6000, 4 * KIB);
		faults(&dev2, 0x6000, "a hole in the middle of 23 levels");
		for (int i = 20; i--;) {
			detach(ioasid_fd, dev2.id, levels[i]);
			free_ioasid(ioasid_fd, levels[i]);
		}
		ok("23 levels");
	}
	detach(ioasid_fd, dev2.id, gva_ioasid);
	unmap(ioasid_fd, giova_ioasid, 0x3000, 4 * KIB);
	must_refuse(ioasid_fd, IOASID_FREE, by_value(giova_ioasid), EBUSY, "FREE of a parent");
	free_ioasid(ioasid_fd, gva_ioasid);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "when the level below is gone");
	ok("levels are refused to be freed while they are in use, and shown again when left");
}

/* ------------------------------------------------------------------ */
/* Private memory                                                       */
/* ------------------------------------------------------------------ */

/* The device reads what is at an address of this process, which the guest's memory is no part of. */
static bool reads(const struct device *device, __u64 iova, const unsigned char *memory)
{
	unsigned char seen[SAMPLE] = { 0 };

	if (device->is_edu) {
		edu_read(device->registers, iova, BUFFER_READ, SAMPLE);
		see_buffer(device, BUFFER_READ, seen, "private memory");
	} else if (simulated_dma(ioasid_fd, device->id, IOASID_SIM_DMA_READ, iova, seen, SAMPLE,
				 NULL)) {
		return false;
	}
	return !memcmp(seen, memory, SAMPLE);
}

static unsigned char *private_pages(size_t size, __u32 seed)
{
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	fill(memory, size, seed);
	return memory;
}

/* Another process maps its own memory at the parent, and so for the child too. */
static void private_memory_of_others(void)
{
	unsigned char theirs[SAMPLE], *memory;
	struct ioasid_map_dma dma_map;
	int told[2], held[2], status;
	pid_t child;
	char byte;

	map_child(ioasid_fd, giova_ioasid, 8 * MIB, OUTSIDE, 2 * PAGE, MAP_BOTH);
	if (pipe2(told, O_CLOEXEC) < 0 || pipe2(held, O_CLOEXEC) < 0)
		die("no pipes: %s", strerror(errno));
	fflush(stdout);
	child = fork();
	if (!child) {
		close(held[1]);
		memory = private_pages(4 * PAGE, 78);
		map(ioasid_fd, gpa_ioasid, OUTSIDE, memory, 4 * PAGE, MAP_BOTH);
		if (write(told[1], "x", 1) != 1 || read(held[0], &byte, 1) != 1)
			_exit(1);
		/* Its owner can have it pinned for the parent too. */
		detach(ioasid_fd, dev2.id, giova_ioasid);
		if (write(told[1], "x", 1) != 1 || read(held[0], &byte, 1))
			_exit(1);
		_exit(0);
	}
	close(told[1]);
	close(held[0]);
	if (child < 0 || read(told[0], &byte, 1) != 1)
		die("another process cannot map at the parent");
	fill(theirs, sizeof(theirs), 78);
	if (!reads(&dev2, 8 * MIB, theirs))
		die("private memory of another process does not show through the child");
	dma_map = mapping(giova_ioasid, 9 * MIB, (void *)(OUTSIDE + 2 * PAGE), 2 * PAGE, MAP_BOTH);
	if (dev2.is_edu) {
		must_refuse(ioasid_fd, IOASID_MAP_DMA, &dma_map, EFAULT,
			    "MAP_DMA on a child to private memory of another process");
		faults(&dev2, 9 * MIB, "after a refused mapping in the child");
		refuse_detach(&dev2, giova_ioasid, EFAULT,
			      "DETACH_DEVICE to a parent with private memory of another process");
		if (!reads(&dev2, 8 * MIB, theirs))
			die("private memory of another process is lost in a refused detach");
		reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "after a refused detach");
	}
	if (!reads(&dev1, OUTSIDE, theirs))
		die("the other device has lost private memory of another process");
	if (write(held[1], "x", 1) != 1 || read(told[0], &byte, 1) != 1)
		die("the process that owns the memory cannot detach the device");
	must_be_at(&dev2, gpa_ioasid);
	if (!reads(&dev2, OUTSIDE, theirs))
		die("private memory of another process does not show at the parent");
	if (dev2.is_edu) {
		refuse_attach(&dev2, giova_ioasid, EFAULT,
			      "ATTACH_DEVICE to a child with private memory of another process");
		if (!reads(&dev2, OUTSIDE, theirs))
			die("private memory of another process is lost in a refused attach");
		reaches(&dev2, 0x2000, 0x2000, MAP_BOTH, "after a refused attach");
		reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "beside a refused attach");
	}
	close(held[1]);
	close(told[0]);
	if (waitpid(child, &status, 0) < 0 || status)
		die("the other process has failed");
	if (dev2.is_edu && !reads(&dev2, OUTSIDE, theirs))
		die("what an ended process had mapped is gone");
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, 4 * PAGE);
	attach(ioasid_fd, dev2.id, giova_ioasid);
	unmap(ioasid_fd, giova_ioasid, 8 * MIB, 2 * PAGE);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "after private memory of another process");
	ok("private memory of another process shows where that process itself has brought it");
}

/*
 * Private memory has to be pinned once more for each table that shows it, by its own process: when
 * the parent maps it, when the child leads to it, and when a device gets to the child.
 */
static void private_memory_below(void)
{
	unsigned char *memory = private_pages(8 * PAGE, 77);

	map_child(ioasid_fd, giova_ioasid, 8 * MIB, OUTSIDE, 4 * PAGE, MAP_BOTH);
	map(ioasid_fd, gpa_ioasid, OUTSIDE, memory, 8 * PAGE, MAP_BOTH);
	if (!reads(&dev2, 8 * MIB + PAGE, memory + PAGE) ||
	    !reads(&dev1, OUTSIDE + PAGE, memory + PAGE))
		die("private memory that the parent maps is not read through child and parent");
	map_child(ioasid_fd, giova_ioasid, 9 * MIB, OUTSIDE + 4 * PAGE, 4 * PAGE, MAP_BOTH);
	if (!reads(&dev2, 9 * MIB + PAGE, memory + 5 * PAGE))
		die("private memory that the child leads to is not read");
	detach(ioasid_fd, dev2.id, giova_ioasid);
	if (!reads(&dev2, OUTSIDE + PAGE, memory + PAGE))
		die("private memory is not read at the parent after the child was left");
	attach(ioasid_fd, dev2.id, giova_ioasid);
	if (!reads(&dev2, 9 * MIB, memory + 4 * PAGE))
		die("private memory is not read after a device was attached to the child");
	unmap(ioasid_fd, giova_ioasid, 8 * MIB, 2 * MIB);
	unmap(ioasid_fd, gpa_ioasid, OUTSIDE, 8 * PAGE);
	munmap(memory, 8 * PAGE);
	ok("private memory shows through a child, whichever level is mapped or attached last");

	private_memory_of_others();
}

/* ------------------------------------------------------------------ */
/* 5.4. IOASID nesting (hardware)                                       */
/* ------------------------------------------------------------------ */

#define GIOVA_PGTABLE	(2 * MIB)	/* guest-physical; four tables follow each other */

/* The guest's own page table: GIOVA 0x2000 and what else the guest maps, as x86-64 has it. */
static void guest_maps(__u64 giova, __u64 gpa)
{
	__u64 *root = (void *)(guest + GIOVA_PGTABLE), *tables = root;
	unsigned int levels = 4;

	for (unsigned int level = levels; --level;) {
		unsigned int index = giova >> (12 + 9 * level) & 511;
		/* Every level has one table, except that windows have a last one of their own. */
		unsigned int next = levels - level + (level == 1 && giova >> 21 ? 1 : 0);

		tables[index] = (GIOVA_PGTABLE + next * PAGE) | 7;
		tables = root + next * (PAGE / sizeof(*root));
	}
	tables[giova >> 12 & 511] = gpa ? gpa | 7 : 0;
}

static void hardware_nesting(void)
{
	struct ioasid_bind_pgtable second;

	/* After boots */
	/* Make GIOVA space nested on GPA space: as before. Nothing is mapped in it by MAP_DMA. */
	detach(ioasid_fd, dev2.id, giova_ioasid);
	free_ioasid(ioasid_fd, giova_ioasid);
	giova_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	memset(guest + GIOVA_PGTABLE, 0, 5 * PAGE);
	guest_maps(0x2000, 0x1000);
	guest_maps(WINDOW_IOVA, WINDOW_IOVA);

	/* Attach dev2 to the new address space (child)
	 * Note dev2 is still attached to gpa_ioasid (parent)
	 */
	attach(ioasid_fd, dev2.id, giova_ioasid);
	reaches_nothing(&dev2, 0x2000, "5.4, before the bind");

	/* Bind guest I/O page table */
	bind_pgtable(ioasid_fd, giova_ioasid, IOASID_FORMAT_X86_4LEVEL, GIOVA_PGTABLE, 48);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.4");
	faults(&dev2, 0x1000, "5.4, what the guest does not map");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.4, the device at the parent");
	second = page_table(giova_ioasid, IOASID_FORMAT_X86_4LEVEL, GIOVA_PGTABLE, 48);
	must_refuse(ioasid_fd, IOASID_BIND_PGTABLE, &second, EBUSY, "BIND_PGTABLE a second time");
	refuse_map(giova_ioasid, 0x8000, 0x1000, 4 * KIB, MAP_BOTH, EBUSY,
		   "MAP_DMA while a page table is bound");
	ok("5.4: the guest's own page table translates for the device");

	/* Invalidate IOTLB when required */
	guest_maps(0x2000, 0x9000);
	guest_maps(0x4000, 0xa000);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.4, before the invalidation");
	faults(&dev2, 0x4000, "5.4, before the invalidation");
	invalidate(ioasid_fd, giova_ioasid, 0x2000, 4 * KIB);
	reaches(&dev2, 0x2000, 0x9000, MAP_BOTH, "5.4, after the invalidation");
	faults(&dev2, 0x4000, "5.4, what was not invalidated");
	invalidate(ioasid_fd, giova_ioasid, 0, 0);
	reaches(&dev2, 0x4000, 0xa000, MAP_BOTH, "5.4, after the invalidation of all");
	ok("5.4: what the guest has changed counts from its invalidation on, and not before");

	/* What the entries lead to follows the parent at once. */
	unmap(ioasid_fd, gpa_ioasid, 0, guest_size);
	faults(&dev2, 0x2000, "5.4, while the parent maps nothing");
	map(ioasid_fd, gpa_ioasid, 0, guest, guest_size, MAP_BOTH);
	reaches(&dev2, 0x2000, 0x9000, MAP_BOTH, "5.4, when the parent maps it again");
	detach(ioasid_fd, dev2.id, giova_ioasid);
	reaches(&dev2, 0x2000, 0x2000, MAP_BOTH, "5.4, at the parent");
	attach(ioasid_fd, dev2.id, giova_ioasid);
	reaches(&dev2, 0x2000, 0x9000, MAP_BOTH, "5.4, at the child again");
	ok("5.4: the bound table shows through what the parent maps, and to who comes and goes");

	unbind_pgtable(ioasid_fd, giova_ioasid);
	reaches_nothing(&dev2, 0x2000, "5.4, after the unbind");
	map_window_below(&dev2, giova_ioasid);
	map_child(ioasid_fd, giova_ioasid, 0x8000, 0x1000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x8000, 0x1000, MAP_BOTH, "5.4, by MAP_DMA after the unbind");
	faults(&dev2, 0x2000, "5.4, by MAP_DMA after the unbind");
	ok("5.4: unbound, the child takes mappings again");
}

/* ------------------------------------------------------------------ */
/* Full tables                                                          */
/* ------------------------------------------------------------------ */

static void small_shows(const char *when)
{
	reaches(&dev1, 0, 0, MAP_BOTH, when);
	reaches(&dev2, 2 * MIB, 0, MAP_BOTH, when);
}

/*
 * The table of dev1 takes SMALL_MAPPINGS mappings, that of dev2 many. The parent has pieces of one
 * page with other pages between them, so that a mapping of the child takes several places.
 */
static void full_tables(void)
{
	struct ioasid_attach_device at_data;
	struct ioasid_invalidate_cache inv_data;
	struct ioasid_bind_pgtable bind_data;
	struct ioasid_info before_it;
	__u64 *superpages = (void *)(guest + GIOVA_PGTABLE + 2 * PAGE);	/* the third level */
	__u64 pieces = SMALL_MAPPINGS / 2;
	__u32 grandchild;

	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev2.id, gpa_ioasid);
	for (__u64 i = 0; i < pieces; i++)
		map(ioasid_fd, gpa_ioasid, 2 * i * PAGE, guest + 2 * i * PAGE, PAGE, MAP_BOTH);
	giova_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	attach(ioasid_fd, dev2.id, giova_ioasid);
	for (__u64 i = 0; i < 3; i++)
		map_child(ioasid_fd, giova_ioasid, (i + 2) * MIB, 0, 16 * PAGE, MAP_BOTH);
	attach(ioasid_fd, dev1.id, gpa_ioasid);

	/* Three times as many pieces as the parent has: too many to attach. */
	refuse_attach(&dev1, giova_ioasid, ENOSPC,
		      "ATTACH_DEVICE to a child with more pieces than the table takes");
	stands(giova_ioasid, gpa_ioasid, 1, 1, 0);
	small_shows("after the refused attach");
	unmap(ioasid_fd, giova_ioasid, 3 * MIB, 2 * MIB);
	attach(ioasid_fd, dev1.id, giova_ioasid);
	reaches(&dev1, 2 * MIB, 0, MAP_BOTH, "a child that fits");
	ok("a device is not attached to a child that its table cannot hold; else it is");

	/* Twice as many fill it; once more is refused in full, for the other device as well. */
	map_child(ioasid_fd, giova_ioasid, 3 * MIB, 0, 16 * PAGE, MAP_BOTH);
	reaches(&dev1, 3 * MIB + 2 * PAGE, 2 * PAGE, MAP_BOTH, "a full table");
	before_it = get_info(ioasid_fd, giova_ioasid);
	refuse_map(giova_ioasid, 16 * MIB, 0, 16 * PAGE, MAP_BOTH, ENOSPC,
		   "MAP_DMA on a child with more pieces than a table takes");
	if (get_info(ioasid_fd, giova_ioasid).nr_mappings != before_it.nr_mappings)
		die("a mapping that was refused is counted");
	for (__u64 i = 0; i < pieces; i++) {
		faults(&dev1, 16 * MIB + 2 * i * PAGE, "after the refused mapping");
		faults(&dev2, 16 * MIB + 2 * i * PAGE, "after the refused mapping");
	}
	reaches(&dev2, 3 * MIB + 2 * PAGE, 2 * PAGE, MAP_BOTH, "after the refused mapping");

	/* A mapping of the parent takes a place for each of the child's: refused in full as well. */
	refuse_map(gpa_ioasid, PAGE, (uintptr_t)guest, PAGE, MAP_BOTH, ENOSPC,
		   "MAP_DMA on a parent with more pieces than a table takes");
	faults(&dev1, 2 * MIB + PAGE, "after the parent's refused mapping");
	faults(&dev2, 2 * MIB + PAGE, "after the parent's refused mapping");
	reaches(&dev1, 2 * MIB + 2 * PAGE, 2 * PAGE, MAP_BOTH, "after the parent's refused mapping");
	ok("what a table below cannot hold is refused at every level, and undone for all devices");

	/* A page table whose entries fit one by one, but not with what they lead to. */
	unmap(ioasid_fd, giova_ioasid, 0, GIB);
	memset(guest + GIOVA_PGTABLE, 0, 5 * PAGE);
	detach(ioasid_fd, dev1.id, giova_ioasid);
	map(ioasid_fd, gpa_ioasid, GIOVA_PGTABLE, guest + GIOVA_PGTABLE, 5 * PAGE, MAP_BOTH);
	attach(ioasid_fd, dev1.id, giova_ioasid);
	for (__u64 i = 0; i < SMALL_MAPPINGS; i++)
		guest_maps(0x10000 + i * PAGE, 2 * PAGE);
	bind_pgtable(ioasid_fd, giova_ioasid, IOASID_FORMAT_X86_4LEVEL, GIOVA_PGTABLE, 48);
	reaches(&dev1, 0x10000, 2 * PAGE, MAP_BOTH, "a page table that fills the table");
	guest_maps(0x10000 + SMALL_MAPPINGS * PAGE, 2 * PAGE);
	guest_maps(0x10000, 4 * PAGE);
	inv_data = invalidation(giova_ioasid, 0, 0);
	must_refuse(ioasid_fd, IOASID_INVALIDATE_CACHE, &inv_data, ENOSPC,
		    "INVALIDATE_CACHE with more pages than a table takes");
	reaches(&dev1, 0x10000, 2 * PAGE, MAP_BOTH, "what was read before stays");
	reaches(&dev2, 0x10000, 2 * PAGE, MAP_BOTH, "what was read before stays");
	faults(&dev2, 0x10000 + SMALL_MAPPINGS * PAGE, "what was too much");
	guest_maps(0x11000, 0);
	invalidate(ioasid_fd, giova_ioasid, 0, 0);
	reaches(&dev1, 0x10000, 4 * PAGE, MAP_BOTH, "after an invalidation that fits");
	faults(&dev1, 0x11000, "after an invalidation that fits");
	reaches(&dev2, 0x10000 + SMALL_MAPPINGS * PAGE, 2 * PAGE, MAP_BOTH, "once it fits");

	/* And one of few entries, each of which leads to several pieces. */
	memset(guest + GIOVA_PGTABLE + 3 * PAGE, 0, 2 * PAGE);
	for (__u64 i = 8; i < 10; i++)
		superpages[i] = 0 | 0x87;
	invalidate(ioasid_fd, giova_ioasid, 0, 0);
	reaches(&dev1, 18 * MIB + 2 * PAGE, 2 * PAGE, MAP_BOTH, "superpages that fill the table");
	superpages[10] = 0 | 0x87;
	superpages[8] = 0;
	superpages[7] = 0 | 0x87;
	must_refuse(ioasid_fd, IOASID_INVALIDATE_CACHE, &inv_data, ENOSPC,
		    "INVALIDATE_CACHE with more pieces than a table takes");
	reaches(&dev1, 16 * MIB, 0, MAP_BOTH, "superpages that stay");
	reaches(&dev1, 18 * MIB + 2 * PAGE, 2 * PAGE, MAP_BOTH, "superpages that stay");
	reaches(&dev2, 16 * MIB, 0, MAP_BOTH, "superpages that stay");
	faults(&dev1, 14 * MIB, "a superpage that does not fit");
	faults(&dev2, 14 * MIB, "a superpage that does not fit");
	ok("an invalidation that does not fit leaves what was read before in force");
	unbind_pgtable(ioasid_fd, giova_ioasid);

	/* Of tables that lead to nothing no more are read than a sensible one could have. */
	for (__u64 i = 0; i < 512; i++) {
		superpages[i - 1024] = (GIOVA_PGTABLE + PAGE) | 3;
		superpages[i - 512] = (GIOVA_PGTABLE + 2 * PAGE) | 3;
		superpages[i] = 0;
	}
	bind_data = page_table(giova_ioasid, IOASID_FORMAT_VTD_SECOND, GIOVA_PGTABLE, 39);
	must_refuse(ioasid_fd, IOASID_BIND_PGTABLE, &bind_data, ENOSPC,
		    "BIND_PGTABLE of a table that leads to nothing in 2^18 ways");

	/* Shown from below, a level may hold more than the table takes; until it is to be shown. */
	map_child(ioasid_fd, giova_ioasid, 2 * MIB, 0, 16 * PAGE, MAP_BOTH);
	grandchild = create_nesting(ioasid_fd, giova_ioasid);
	attach(ioasid_fd, dev1.id, grandchild);
	map_child(ioasid_fd, grandchild, 0, 2 * MIB, PAGE, MAP_BOTH);
	map_child(ioasid_fd, giova_ioasid, 3 * MIB, 0, 16 * PAGE, MAP_BOTH);
	map_child(ioasid_fd, giova_ioasid, 16 * MIB, 0, 16 * PAGE, MAP_BOTH);
	reaches(&dev1, 0, 0, MAP_BOTH, "through a level that is too large");
	at_data = attachment(dev1.id, grandchild);
	must_refuse(ioasid_fd, IOASID_DETACH_DEVICE, &at_data, ENOSPC,
		    "DETACH_DEVICE to a parent with more pieces than the table takes");
	must_be_at(&dev1, grandchild);
	reaches(&dev1, 0, 0, MAP_BOTH, "after the refused detach");
	reaches(&dev2, 16 * MIB, 0, MAP_BOTH, "after the refused detach");
	unmap(ioasid_fd, giova_ioasid, 3 * MIB, GIB);
	detach(ioasid_fd, dev1.id, grandchild);
	reaches(&dev1, 2 * MIB, 0, MAP_BOTH, "once the parent fits");
	ok("a device stays where it is if its table cannot hold what the parent shows");
	free_ioasid(ioasid_fd, grandchild);
}

int main(int argc, char **argv)
{
	bool small = argc > 2 && !strcmp(argv[2], "--small");
	int next = small ? 3 : 2;

	if (argc < 4)
		die("usage: flows NODE DEVICE-1 DEVICE-2 | flows NODE --small SMALL OTHER");
	next += take_device(argv + next, &dev1);
	next += take_device(argv + next, &dev2);
	if (next != argc || dev1.is_edu != dev2.is_edu || (small && dev1.is_edu))
		die("name two devices, both simulated or both edu");
	make_guest(GUEST);

	/* Bind device to IOASID fd */
	ioasid_fd = open_node(argv[1]);
	bind_device(&dev1, ioasid_fd);
	bind_device(&dev2, ioasid_fd);
	if (!has_extension(ioasid_fd, IOASID_EXT_NESTING) ||
	    !has_extension(ioasid_fd, IOASID_EXT_USER_PAGE_TABLE))
		skip("the node does not nest IOASIDs");

	if (small) {
		full_tables();
	} else {
		simple_example();
		multiple_ioasids();
		software_nesting();
		refusals();
		holes_in_the_parent();
		rights_and_aliases();
		deeper();
		if (has_extension(ioasid_fd, IOASID_EXT_PRIVATE_MEMORY))
			private_memory_below();
		hardware_nesting();
	}

	/* Everything can be given back, in order. */
	detach(ioasid_fd, dev2.id, giova_ioasid);
	if (small)
		detach(ioasid_fd, dev1.id, giova_ioasid);
	free_ioasid(ioasid_fd, giova_ioasid);
	reaches(&dev2, 0, 0, MAP_BOTH, "when the child is gone");
	detach(ioasid_fd, dev2.id, gpa_ioasid);
	detach(ioasid_fd, dev1.id, gpa_ioasid);
	reaches_nothing(&dev1, 0, "detached at the end");
	free_ioasid(ioasid_fd, gpa_ioasid);
	ok("all is given back");
	return 0;
}
