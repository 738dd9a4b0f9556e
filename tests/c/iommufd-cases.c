/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * iommufd-cases NODE DEVICE OTHER
 *
 * The cases of iommufd's selftest in Linux (tools/testing/selftests/iommu/iommufd.c) that need no
 * hardware and have a meaning here, restated: an IOAS is an IOASID, a mock domain a simulated device
 * that is attached to it, an access DMA of that device. The errnos are iommufd's, but for these:
 *
 *   unmap of nothing            iommufd ENOENT; here 0 with size 0, as VFIO type1 and ioasid.h have it
 *   an unmap that would split   iommufd ENOENT; here EINVAL, likewise
 *   unmap of 0 to 2^64 - 1      iommufd: everything; here IOASID_UNMAP_ALL
 *   map, unmap before a device  iommufd: works; here ENODEV, as the proposal has it
 *   destroying id 0, NULL       iommufd ENOENT, EFAULT; here FREE takes its number by value: ENOENT
 *   a list without any room     iommufd EMSGSIZE; here room for 0 asks for the number: 0
 *   memory of a fork that ended iommufd EFAULT for a new domain; here a file's memory stays
 *
 * Not here: the choice of IOVAs, allowed IOVAs, IOAS_COPY and options, which this interface does not
 * have; page tables by themselves (hwpt), which it does not show.
 */
#include "common.h"

#include <sys/wait.h>

#define BASE		(16 * MIB)
#define BUFFER		(16 * PAGE)

static const char *path, *names[2];
static int node;
static __u32 devices[2], space;
static unsigned char *buffer, *data;

/* A fresh open, with some devices attached to an IOASID. */
static void set_up(unsigned int nr_devices)
{
	node = open_node(path);
	space = alloc_ioasid(node);
	for (unsigned int i = 0; i < nr_devices; i++) {
		struct ioasid_bind_device bind_data = simulated(names[i], i);

		/* The close before has let go of it, or is about to. */
		for (int tries = 0; ioctl(node, IOASID_BIND_DEVICE, &bind_data); tries++) {
			if (errno != EBUSY || tries > 500)
				die("%s cannot be bound: %s", names[i], strerror(errno));
			sleep_ms(10);
		}
		devices[i] = bind_data.device;
		attach(node, devices[i], space);
	}
}

static void map_fixed(const void *memory, size_t size, __u64 iova)
{
	map(node, space, iova, memory, size, MAP_BOTH);
}

static void refuse_map(int error, const void *memory, size_t size, __u64 iova, const char *what)
{
	struct ioasid_map_dma dma_map = mapping(space, iova, memory, size, MAP_BOTH);

	must_refuse(node, IOASID_MAP_DMA, &dma_map, error, what);
}

static void refuse_unmap(int error, __u64 iova, __u64 size, const char *what)
{
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap), .ioasid = space, .iova = iova, .size = size,
	};

	must_refuse(node, IOASID_UNMAP_DMA, &dma_unmap, error, what);
}

static void must_unmap(__u64 iova, __u64 size, __u64 bytes)
{
	__u64 unmapped = unmap(node, space, iova, size);

	if (unmapped != bytes)
		die("%llu bytes are unmapped at %#llx instead of %llu", unmapped, iova, bytes);
}

static __u64 unmap_all(void)
{
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap), .flags = IOASID_UNMAP_ALL, .ioasid = space,
	};

	must(node, IOASID_UNMAP_DMA, &dma_unmap, "UNMAP_DMA of all");
	return dma_unmap.size;
}

static void check_access(__u32 device, __u64 iova, unsigned char *memory, size_t size)
{
	fill(memory, size, iova + size);
	if (simulated_dma(node, device, IOASID_SIM_DMA_READ, iova, data, size, NULL))
		die("cannot read %zu bytes at %#llx: %s", size, iova, explanation(node));
	must_equal(data, memory, size, "what was read");
	fill(data, size, iova + size + 1);
	if (simulated_dma(node, device, IOASID_SIM_DMA_WRITE, iova, data, size, NULL))
		die("cannot write %zu bytes at %#llx: %s", size, iova, explanation(node));
	must_equal(memory, data, size, "what was written");
}

/* cmd_fail, cmd_length, cmd_ex_fail */
static void commands(void)
{
	struct {
		union {
			__u32 argsz;
			struct ioasid_info info;
			struct ioasid_map_dma map;
			struct ioasid_unmap_dma unmap;
			struct ioasid_bind_pgtable bind;
			struct ioasid_attach_device attach;
		};
		unsigned char room[64];
	} argument;
	static const struct {
		unsigned long command;
		size_t size;
	} calls[] = {
		{ IOASID_GET_INFO, sizeof(struct ioasid_info) },
		{ IOASID_MAP_DMA, sizeof(struct ioasid_map_dma) },
		{ IOASID_UNMAP_DMA, sizeof(struct ioasid_unmap_dma) },
		{ IOASID_BIND_PGTABLE, sizeof(struct ioasid_bind_pgtable) },
		{ IOASID_ATTACH_DEVICE, sizeof(struct ioasid_attach_device) },
		{ IOASID_REGISTER_MEMORY, sizeof(struct ioasid_register_memory) },
		{ IOASID_INVALIDATE_CACHE, sizeof(struct ioasid_invalidate_cache) },
		{ IOASID_DIRTY, sizeof(struct ioasid_dirty) },
		{ IOASID_VECTOR, sizeof(struct ioasid_vector) },
	};

	set_up(0);
	must_refuse(node, IOASID_FREE, NULL, ENOENT, "freeing IOASID 0");
	must_refuse(node, IOASID_GET_INFO, NULL, EFAULT, "a bad pointer");
	must_refuse(node, _IO(IOASID_TYPE, IOASID_BASE - 1), &argument, ENOTTY, "an unknown ioctl");
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		unsigned char *bytes = (unsigned char *)&argument;
		int first, second;

		memset(&argument, 0, sizeof(argument));
		argument.argsz = calls[i].size - 1;
		bytes[calls[i].size] = 0xff;
		must_refuse(node, calls[i].command, &argument, EINVAL, "a short structure");
		argument.argsz = calls[i].size + 1;
		must_refuse(node, calls[i].command, &argument, E2BIG, "a long structure");
		argument.argsz = calls[i].size;
		first = ioctl(node, calls[i].command, &argument) < 0 ? errno : 0;
		bytes[calls[i].size] = 0;
		argument.argsz = calls[i].size + 1;
		second = ioctl(node, calls[i].command, &argument) < 0 ? errno : 0;
		if (first != second)
			die("call %zu: %s, but %s with a longer structure of zeroes", i,
			    strerror(first), strerror(second));
	}
	close(node);
}

/* ioas_destroy, ioas_area_destroy, ioas_area_auto_destroy */
static void destroy(unsigned int nr_devices)
{
	set_up(nr_devices);
	if (nr_devices) {
		must_refuse(node, IOASID_FREE, by_value(space), EBUSY, "freeing with a device");
		map_fixed(buffer, PAGE, BASE);
		must_refuse(node, IOASID_FREE, by_value(space), EBUSY, "freeing with an area");
		for (int i = 1; i < 10; i++)
			map_fixed(buffer, PAGE, BASE + i * PAGE);
		for (unsigned int i = 0; i < nr_devices; i++)
			detach(node, devices[i], space);
	}
	free_ioasid(node, space);
	must_refuse(node, IOASID_FREE, by_value(space), ENOENT, "freeing twice");
	close(node);
	set_up(nr_devices);
	for (int i = 0; nr_devices && i < 10; i++)
		map_fixed(buffer, PAGE, BASE + i * PAGE);
	close(node);
	ok("an IOASID is freed with its areas, or by the close (%u devices)", nr_devices);
}

/* area, and limits of ranges */
static void area(void)
{
	for (int i = 0; i < 10; i++)
		must_unmap(i * PAGE, PAGE, 0);
	for (int i = 0; i < 10; i++)
		map_fixed(buffer, PAGE, BASE + i * PAGE);
	for (int i = 0; i < 10; i++)
		must_unmap(BASE + i * PAGE, PAGE, PAGE);

	map_fixed(buffer, 2 * PAGE, BASE + 16 * PAGE);
	refuse_unmap(EINVAL, BASE + 16 * PAGE, PAGE, "splitting an area at its end");
	refuse_unmap(EINVAL, BASE + 17 * PAGE, PAGE, "splitting an area at its beginning");
	refuse_map(EEXIST, buffer, 2 * PAGE, BASE + 16 * PAGE, "mapping the same");
	refuse_map(EEXIST, buffer, PAGE, BASE + 16 * PAGE, "mapping the first half");
	refuse_map(EEXIST, buffer, PAGE, BASE + 17 * PAGE, "mapping the second half");
	refuse_map(EEXIST, buffer, 2 * PAGE, BASE + 15 * PAGE, "mapping over the beginning");
	refuse_map(EEXIST, buffer, 3 * PAGE, BASE + 15 * PAGE, "mapping over all of it");
	if (unmap_all() != 2 * PAGE || unmap_all() != 0)
		die("what is unmapped is not what there was");

	/* ioas_iova_alloc: every length that is no multiple of a page. */
	for (unsigned int length = 1; length < 2 * PAGE; length += 127) {
		struct ioasid_map_dma dma_map = mapping(space, BASE, buffer, length, MAP_BOTH);

		if (!ioctl(node, IOASID_MAP_DMA, &dma_map) || errno != EINVAL)
			die("%u bytes are mapped: %s", length, strerror(errno));
	}
	refuse_map(EINVAL, buffer + 512, PAGE, BASE, "misaligned memory");
	refuse_map(EINVAL, buffer, PAGE, BASE + 512, "a misaligned IOVA");
	refuse_map(EINVAL, buffer, 0, BASE, "nothing");
	refuse_map(EOVERFLOW, buffer, 2 * PAGE, -PAGE, "an IOVA that wraps");
	refuse_map(EOVERFLOW, (void *)-PAGE, 2 * PAGE, BASE, "memory that wraps");
	refuse_map(EINVAL, buffer, PAGE, 1UL << 39, "behind the aperture");
	refuse_map(EADDRINUSE, buffer, PAGE, 0xfee00000, "a reserved IOVA");
	ok("areas do not overlap, and are not split");
}

/* unmap_fully_contained_areas */
static void contained(void)
{
	__u64 base = BASE + 4 * PAGE;

	for (int i = 0; i < 4; i++)
		map_fixed(buffer, 8 * PAGE, base + i * 16 * PAGE);
	refuse_unmap(EINVAL, base - 4 * PAGE, 8 * PAGE, "an area that is half contained");
	refuse_unmap(EINVAL, base + 3 * 16 * PAGE + 4 * PAGE, 8 * PAGE,
		     "the last, half contained");
	must_unmap(base - 4 * PAGE, 3 * 16 * PAGE + 8 * PAGE + 4 * PAGE, 32 * PAGE);
	ok("areas that are fully contained are unmapped together");
}

/* iova_ranges */
static void ranges(void)
{
	struct ioasid_iova_range list[8] = { 0 };
	struct ioasid_info info = {
		.argsz = sizeof(info), .ioasid = space, .ranges = (uintptr_t)list, .nr_ranges = 8,
	};

	must(node, IOASID_GET_INFO, &info, "GET_INFO");
	if (info.nr_ranges != 2 || list[0].start || list[0].last != 0xfedfffff ||
	    list[1].start != 0xfef00000 || list[1].last != (1UL << 39) - 1)
		die("%u ranges, the first to %#llx", info.nr_ranges, list[0].last);
	memset(list, 0, sizeof(list));
	info.nr_ranges = 1;
	must_refuse(node, IOASID_GET_INFO, &info, EMSGSIZE, "too little room for the ranges");
	if (info.nr_ranges != 2 || list[0].last)
		die("with too little room: %u ranges, %#llx", info.nr_ranges, list[0].last);
	info.nr_ranges = 0;
	must(node, IOASID_GET_INFO, &info, "GET_INFO without room");
	if (info.nr_ranges != 2)
		die("without room: %u ranges", info.nr_ranges);
	ok("the IOVA ranges are listed");
}

/* access_rw, access_pin, access_pin_unmap, all_aligns_copy: a device that comes and goes */
static void access_rw(void)
{
	map_fixed(buffer, BUFFER, BASE);
	for (size_t at = PAGE - 20; at < PAGE + 20; at += 7)
		for (size_t size = 1; size < 32; size += 5)
			check_access(devices[0], BASE + at, buffer + at, size);
	check_access(devices[0], BASE, buffer, BUFFER);
	for (unsigned int pages = 1; pages < BUFFER / PAGE; pages += 3) {
		detach(node, devices[1], space);
		check_access(devices[0], BASE, buffer, pages * PAGE);
		attach(node, devices[1], space);
		check_access(devices[1], BASE, buffer, pages * PAGE);
	}
	must_unmap(BASE, BUFFER, BUFFER);
	for (int i = 0; i < 2; i++)
		if (simulated_dma(node, devices[i], IOASID_SIM_DMA_READ, BASE, data, 1, NULL) != EIO)
			die("device %d reads what was unmapped", i);
	ok("devices reach what is mapped, as they come and go, and not after the unmap");
}

/* basic: memory that is not there; ro_unshare: a private page that is written later */
static void memory(void)
{
	unsigned char *hole = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (hole == MAP_FAILED || munmap(hole + 4 * PAGE, 4 * PAGE))
		die("no memory");
	refuse_map(EFAULT, hole, 8 * PAGE, BASE, "memory that ends half way");
	munmap(hole, 4 * PAGE);
	refuse_map(EFAULT, hole, 8 * PAGE, BASE, "memory that is not there");
	if (get_info(node, space).nr_mappings)
		die("something stays mapped");
}

/* fork_present, fork_gone: an area of another process */
static void forked(bool gone)
{
	int ready[2], end[2], status;
	char byte = 0;
	pid_t child;

	detach(node, devices[1], space);
	if (pipe(ready) || pipe(end))
		die("no pipe");
	child = fork();
	if (!child) {
		close(end[1]);
		map_fixed(buffer, BUFFER, BASE);
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		if (!gone && read(end[0], &byte, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(end[0]);
	close(ready[1]);
	if (child < 0 || read(ready[0], &byte, 1) != 1)
		die("the fork does not map");
	if (gone && (waitpid(child, &status, 0) != child || status))
		die("the fork fails");
	check_access(devices[0], BASE, buffer, BUFFER);
	attach(node, devices[1], space);
	check_access(devices[1], BASE, buffer, BUFFER);
	close(end[1]);
	close(ready[0]);
	if (!gone && (waitpid(child, &status, 0) != child || status))
		die("the fork fails");
	check_access(devices[1], BASE, buffer, BUFFER);
	must_unmap(BASE, BUFFER, BUFFER);
	ok("the area of a fork that is %s", gone ? "gone" : "present");
}

/* set_dirty_tracking, get_dirty_bitmap */
static void dirty(size_t size)
{
	unsigned char *memory = shared_memory(size), bitmap[4096], expected[4096];
	struct ioasid_dirty arg = {
		.argsz = sizeof(arg), .flags = IOASID_DIRTY_READ, .ioasid = space, .iova = BASE,
		.size = size, .page_size = PAGE, .bitmap = (uintptr_t)bitmap,
		.bitmap_size = (size / PAGE + 63) / 64 * 8,
	};
	struct ioasid_dirty on = {
		.argsz = sizeof(on), .flags = IOASID_DIRTY_START, .ioasid = space,
	};
	struct ioasid_dirty off = on;

	off.flags = IOASID_DIRTY_STOP;
	must_refuse(node, IOASID_DIRTY, &arg, EINVAL, "a bitmap without tracking");
	map_fixed(memory, size, BASE);
	must(node, IOASID_DIRTY, &on, "DIRTY_START");
	memset(expected, 0, sizeof(expected));
	for (size_t page = 0; page < size / PAGE; page += 3) {
		expected[page / 8] |= 1 << page % 8;
		if (simulated_dma(node, devices[0], IOASID_SIM_DMA_WRITE, BASE + page * PAGE + 9,
				  data, 1, NULL))
			die("page %zu cannot be written", page);
	}
	must(node, IOASID_DIRTY, &arg, "DIRTY_READ");
	must_equal(bitmap, expected, arg.bitmap_size, "the bitmap");
	must(node, IOASID_DIRTY, &arg, "DIRTY_READ");
	if (!all_bytes_are(bitmap, arg.bitmap_size, 0))
		die("what was said is said again");
	must(node, IOASID_DIRTY, &off, "DIRTY_STOP");
	must_unmap(BASE, size, size);
	munmap(memory, size);
	ok("dirty pages of %zu KiB", size / KIB);
}

int main(int arguments, char **argument)
{
	if (arguments != 4)
		die("usage: iommufd-cases NODE DEVICE OTHER");
	path = argument[1];
	names[0] = argument[2];
	names[1] = argument[3];
	buffer = shared_memory(BUFFER);
	data = shared_memory(BUFFER);
	commands();
	for (unsigned int nr = 0; nr <= 2; nr++)
		destroy(nr);
	set_up(0);
	refuse_map(ENODEV, buffer, PAGE, BASE, "mapping without a device");
	close(node);
	set_up(2);
	area();
	contained();
	unmap_all();
	ranges();
	access_rw();
	memory();
	forked(false);
	forked(true);
	dirty(128 * KIB);
	dirty(256 * KIB);
	dirty(640 * KIB);
	dirty(16 * MIB);
	close(node);
	return EXIT_SUCCESS;
}
