/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * shared-table NODE DEVICE-A DEVICE-B
 *
 * Two devices of different groups share one I/O page table (IOASID_BIND_SHARE): what is mapped
 * is pinned once and reached by both, their groups are attached as one, and each can go without
 * the other. And the refusals: too late, too early, and with the wrong one.
 *
 * Devices are written as in device.h.
 */
#include "device.h"

#define GPA	0x100000UL
#define SIZE	(256 * KIB)

static struct ioasid_bind_device binding(struct device *device, __u32 flags, __u32 with)
{
	struct ioasid_bind_device bind_data = {
		.argsz = sizeof(bind_data),
		.flags = flags | (device->is_edu ? IOASID_BIND_VFIO_GROUP : IOASID_BIND_SIMULATED),
		.with = with,
	};

	prepare_device(device);
	bind_data.fd = device->is_edu ? device->group : -1;
	strcpy(bind_data.name, device->name);
	return bind_data;
}

/* Binds the device to share the table of another. */
static void share(int node, struct device *device, __u32 with)
{
	struct ioasid_bind_device bind_data = binding(device, IOASID_BIND_SHARE, with);

	must(node, IOASID_BIND_DEVICE, &bind_data, "BIND_DEVICE with SHARE");
	device->node = node;
	device->id = bind_data.device;
	if (device->is_edu) {
		device->registers = open_edu(device->group, device->name, &device->fd);
		device->window = shared_memory(PAGE);
	}
}

static void close_device(struct device *device)
{
	if (!device->is_edu)
		return;
	munmap((void *)device->registers, region(device->fd, VFIO_PCI_BAR0_REGION_INDEX).size);
	close(device->fd);
}

/* The device reads what `memory` holds, and the program sees what the device writes. */
static void dma_works(struct device *device, __u32 ioasid, unsigned char *memory, __u32 seed)
{
	static unsigned char sent[2000], seen[2000];

	fill(memory, SIZE, seed);
	if (!device_reads(device, ioasid, GPA + 5 * PAGE + 3, seen, sizeof(seen)))
		die("%s cannot read. %s", device->name, explanation(device->node));
	must_equal(seen, memory + 5 * PAGE + 3, sizeof(seen), device->name);
	fill(sent, sizeof(sent), seed + 1);
	if (!device_writes(device, ioasid, GPA + 9 * PAGE + 1, sent, sizeof(sent)))
		die("%s cannot write. %s", device->name, explanation(device->node));
	must_equal(memory + 9 * PAGE + 1, sent, sizeof(sent), device->name);
}

static void check_refusals(int node, struct device *a, struct device *b)
{
	struct ioasid_bind_device bind_data = binding(b, IOASID_BIND_SHARE, a->id + 100);

	must_refuse(node, IOASID_BIND_DEVICE, &bind_data, ENOENT, "SHARE with a device that is not there");
	bind_data = binding(b, 0, a->id);
	must_refuse(node, IOASID_BIND_DEVICE, &bind_data, EINVAL, "`with` without SHARE");
	bind_data = binding(b, IOASID_BIND_SHARE, a->id);
	bind_data.argsz = IOASID_BIND_SIZE_VER0;
	must_refuse(node, IOASID_BIND_DEVICE, &bind_data, ENOENT, "SHARE in the first version's structure");
	bind_data = binding(a, IOASID_BIND_SHARE, a->id);
	must_refuse(node, IOASID_BIND_DEVICE, &bind_data, EBUSY, "SHARE of a device with itself");
	bind_data = binding(b, 0, 0);
	bind_data.argsz = IOASID_BIND_SIZE_VER0;
	bind_data.with = 77;	/* not looked at */
	must(node, IOASID_BIND_DEVICE, &bind_data, "BIND_DEVICE in the first version's structure");
	b->id = bind_data.device;
	bind_data = binding(b, IOASID_BIND_SHARE, a->id);
	must_refuse(node, IOASID_BIND_DEVICE, &bind_data, EBUSY, "SHARE of a group with its own table");
	must(node, IOASID_UNBIND_DEVICE, by_value(b->id), "UNBIND_DEVICE");
}

static void must_count(int node, __u32 ioasid, __u32 devices, __u64 mappings)
{
	struct ioasid_info info = get_info(node, ioasid);

	if (info.nr_devices != devices || info.nr_mappings != mappings)
		die("IOASID %u has %u devices and %llu mappings instead of %u and %llu", ioasid,
		    info.nr_devices, info.nr_mappings, devices, mappings);
}

int main(int argc, char **argv)
{
	struct device a, b;
	struct ioasid_map_dma dma_map;
	struct ioasid_device_info info_a = { .argsz = sizeof(info_a) }, info_b = info_a;
	unsigned char *memory, *more;
	long before, between, after;
	int node, next = 2;
	__u32 ioasid;

	if (argc < 4)
		die("usage: shared-table NODE DEVICE-A DEVICE-B");
	next += take_device(argv + next, &a);
	take_device(argv + next, &b);
	node = open_node(argv[1]);
	if (!has_extension(node, IOASID_EXT_SHARED_TABLE))
		die("IOASID_EXT_SHARED_TABLE is 0");
	bind_device(&a, node);
	check_refusals(node, &a, &b);

	/* The other joins while the first is attached and has something mapped. */
	ioasid = alloc_ioasid(node);
	attach(node, a.id, ioasid);
	memory = shared_memory(SIZE);
	before = pinned_pages();
	map(node, ioasid, GPA, memory, SIZE, MAP_BOTH);
	between = pinned_pages();
	share(node, &b, a.id);
	dma_map = mapping(ioasid, GPA + SIZE, memory, PAGE, MAP_BOTH);
	must_refuse(node, IOASID_MAP_DMA, &dma_map, EBUSY, "MAP_DMA while one of two is attached");
	attach(node, b.id, ioasid);
	after = pinned_pages();
	must_count(node, ioasid, 2, 1);
	if (a.is_edu && before >= 0 && (between - before != SIZE / PAGE || after != between))
		die("%ld pages were pinned by the map, and %ld more by the second device",
		    between - before, after - between);
	if (a.is_edu && before >= 0)
		ok("%ld pages were pinned by the map, and none by the second device", between - before);
	dma_works(&a, ioasid, memory, 1);
	dma_works(&b, ioasid, memory, 3);
	ok("both reach what was mapped before they shared");
	more = shared_memory(SIZE);
	unmap(node, ioasid, GPA, SIZE);
	before = pinned_pages();
	map(node, ioasid, GPA, more, SIZE, MAP_BOTH);
	after = pinned_pages();
	if (a.is_edu && before >= 0 && after - before != SIZE / PAGE)
		die("%ld pages were pinned for %lu", after - before, SIZE / PAGE);
	dma_works(&a, ioasid, more, 5);
	dma_works(&b, ioasid, more, 7);
	ok("both reach what was mapped afterwards, pinned once");

	info_a.device = a.id;
	info_b.device = b.id;
	must(node, IOASID_GET_DEVICE_INFO, &info_a, "GET_DEVICE_INFO");
	must(node, IOASID_GET_DEVICE_INFO, &info_b, "GET_DEVICE_INFO");
	if (info_a.group == info_b.group)
		die("both devices are said to be in group %u", info_a.group);
	if (a.is_edu && (info_a.group != number(a.group_name) || info_b.group != number(b.group_name)))
		die("the groups are said to be %u and %u", info_a.group, info_b.group);

	/* One goes. The other stays as it is. */
	detach(node, a.id, ioasid);
	must_refuse(node, IOASID_MAP_DMA, &dma_map, EBUSY, "MAP_DMA while one of two is detached");
	if (a.is_edu)
		must_refuse(node, IOASID_UNBIND_DEVICE, by_value(a.id), EBUSY,
			    "UNBIND_DEVICE of an open device");
	close_device(&a);
	must(node, IOASID_UNBIND_DEVICE, by_value(a.id), "UNBIND_DEVICE");
	must_count(node, ioasid, 1, 1);
	dma_works(&b, ioasid, more, 9);
	ok("when one is unbound, the other reaches memory as before");

	/* It comes back by itself, and then not by itself. */
	a.window = NULL;
	bind_device(&a, node);
	attach(node, a.id, ioasid);
	must_count(node, ioasid, 2, 1);
	dma_works(&a, ioasid, more, 11);
	dma_works(&b, ioasid, more, 13);
	ok("with a table of its own it reaches the memory again");
	detach(node, a.id, ioasid);
	close_device(&a);
	must(node, IOASID_UNBIND_DEVICE, by_value(a.id), "UNBIND_DEVICE");
	share(node, &a, b.id);
	attach(node, a.id, ioasid);
	dma_works(&a, ioasid, more, 15);

	/* Memory goes with the last. */
	before = pinned_pages();
	close(node);
	after = pinned_pages();
	if (a.is_edu && before >= 0 && before - after < (long)(SIZE / PAGE))
		die("%ld pages were unpinned by the close", before - after);
	ok("closed with both attached");
	return 0;
}
