/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * container NODE DEVICE-A [DEVICE-B [DEVICE-C]]
 *
 * The node as a VFIO container: every call has the result that VFIO type1 gives, errno by
 * errno. Where the device is real, the very same calls are made on /dev/vfio/vfio too, so that it is
 * the kernel who says what is right. After that, DMA through the node as a container: of one
 * device, of two, which share what is pinned, and of three, where one is open too early for that.
 *
 * Devices are written as in device.h.
 */
#include "device.h"

#define GPA		0x100000UL
#define RESERVED	0xfee00000UL	/* where interrupts go */
#define SIZE		(16 * PAGE)
#define ENTRY_LIMIT	"/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
#define READ_WRITE	(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)
/* The most mappings that are made to find the limit. */
#define LIMIT_WORTH_FINDING	1000

/* A container: of the node, or the kernel's. */
struct end {
	const char *what;
	bool is_node;
	int fd;
	struct device *device;
	unsigned int checks;
	bool overflows;			/* says EOVERFLOW of addresses that wrap */
};

/* What GET_INFO tells. */
struct told {
	__u64 pgsizes;
	__u32 avail, nr_ranges, coherent, migration_flags;
	__u64 dirty_pgsizes;
	struct vfio_iova_range ranges[16];
	__u32 capabilities[8];		/* in their order */
};

static __u64 bitmap_max;		/* what GET_INFO told last of the longest bitmap */
static unsigned char *memory;		/* SIZE bytes that devices may use */

static int call(struct end *end, unsigned long command, void *argument)
{
	int result = ioctl(end->fd, command, argument);

	return result < 0 ? -errno : result;
}

static const char *name_of(int result)
{
	static char text[2][64];
	static int turn;
	char *name = text[turn ^= 1];

	if (result < 0)
		snprintf(name, sizeof(text[0]), "\"%s\"", strerror(-result));
	else
		snprintf(name, sizeof(text[0]), "%d", result);
	return name;
}

static void expect(struct end *end, int got, int expected, const char *what)
{
	if (got != expected)
		die("%s: %s gives %s instead of %s. %s", end->what, what, name_of(got),
		    name_of(expected), end->is_node ? explanation(end->fd) : "");
	if (got < 0 && end->is_node && !*explanation(end->fd))
		die("%s: %s was refused, but not explained", end->what, what);
	end->checks++;
}

/* Newer kernels say EOVERFLOW where others, and the node on all, say EINVAL. */
static void expect_wrap(struct end *end, int got, const char *what)
{
	if (!end->is_node && got == -EOVERFLOW) {
		end->overflows = true;
		got = -EINVAL;
	}
	expect(end, got, -EINVAL, what);
}

static int do_map(struct end *end, __u32 flags, const void *vaddr, __u64 iova, __u64 size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = (uintptr_t)vaddr,
		.iova = iova,
		.size = size,
	};

	return call(end, VFIO_IOMMU_MAP_DMA, &map);
}

static int do_unmap(struct end *end, __u32 flags, __u64 iova, __u64 size, __u64 *unmapped)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = flags,
		.iova = iova,
		.size = size,
	};
	int result = call(end, VFIO_IOMMU_UNMAP_DMA, &unmap);

	if (unmapped)
		*unmapped = unmap.size;
	return result;
}

static void must_map(struct end *end, __u64 iova, __u64 size)
{
	expect(end, do_map(end, READ_WRITE, memory, iova, size), 0, "a map");
}

static void must_unmap(struct end *end, __u32 flags, __u64 iova, __u64 size, __u64 bytes,
		       const char *what)
{
	__u64 unmapped = 0;

	expect(end, do_unmap(end, flags, iova, size, &unmapped), 0, what);
	if (unmapped != bytes)
		die("%s: %s unmaps %llu bytes instead of %llu", end->what, what, unmapped, bytes);
}

static void open_end(struct end *end, const char *node, struct device *device, bool is_node)
{
	*end = (struct end){ is_node ? "the node" : "the kernel", is_node, -1, device, 0, false };
	end->fd = open(is_node ? node : "/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (end->fd < 0)
		die("%s cannot be opened: %s", end->what, strerror(errno));
}

/* Puts the device into the container, and takes it out again. */
static void add_device(struct end *end)
{
	struct device *device = end->device;

	prepare_device(device);
	if (end->is_node && device->is_edu)
		device->id = bind_group(end->fd, device->group, device->name, 0);
	else if (end->is_node)
		device->id = bind_simulated(end->fd, device->name, 0);
	else if (ioctl(device->group, VFIO_GROUP_SET_CONTAINER, &end->fd) < 0)
		die("VFIO_GROUP_SET_CONTAINER failed: %s", strerror(errno));
}

static void remove_device(struct end *end)
{
	if (end->is_node)
		must(end->fd, IOASID_UNBIND_DEVICE, by_value(end->device->id), "UNBIND_DEVICE");
	else if (ioctl(end->device->group, VFIO_GROUP_UNSET_CONTAINER) < 0)
		die("VFIO_GROUP_UNSET_CONTAINER failed: %s", strerror(errno));
}

static void check_extensions(struct end *end)
{
	const struct { unsigned long number; int answer; } known[] = {
		{ VFIO_TYPE1_IOMMU, 1 }, { VFIO_TYPE1v2_IOMMU, 1 }, { VFIO_UNMAP_ALL, 1 },
		{ VFIO_SPAPR_TCE_IOMMU, 0 }, { VFIO_SPAPR_TCE_v2_IOMMU, 0 },
		{ VFIO_NOIOMMU_IOMMU, 0 }, { VFIO_EEH, 0 }, { 0, 0 }, { 1000, 0 }, { 1UL << 32, 0 },
	};

	expect(end, call(end, VFIO_GET_API_VERSION, NULL), VFIO_API_VERSION, "GET_API_VERSION");
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		expect(end, call(end, VFIO_CHECK_EXTENSION, by_value(known[i].number)),
		       known[i].answer, "CHECK_EXTENSION");
}

/* What is refused as long as there is no IOMMU. */
static void check_unset(struct end *end)
{
	struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };

	expect(end, call(end, VFIO_CHECK_EXTENSION, by_value(VFIO_DMA_CC_IOMMU)), 0,
	       "CHECK_EXTENSION of coherence without an IOMMU");
	expect(end, call(end, VFIO_IOMMU_GET_INFO, &info), -EINVAL, "GET_INFO without an IOMMU");
	expect(end, do_map(end, READ_WRITE, memory, GPA, PAGE), -EINVAL, "a map without an IOMMU");
	expect(end, call(end, VFIO_IOMMU_MAP_DMA, NULL), -EINVAL, "a map of NULL without an IOMMU");
	expect(end, do_unmap(end, 0, GPA, PAGE, NULL), -EINVAL, "an unmap without an IOMMU");
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, NULL), -EINVAL, "DIRTY_PAGES without an IOMMU");
	expect(end, call(end, _IO(VFIO_TYPE, VFIO_BASE + 27), NULL), -EINVAL,
	       "an unknown command without an IOMMU");
}

static void set_iommu(struct end *end, unsigned long type)
{
	check_unset(end);
	expect(end, call(end, VFIO_SET_IOMMU, by_value(type)), -EINVAL, "SET_IOMMU without a group");
	add_device(end);
	check_unset(end);
	expect(end, call(end, VFIO_SET_IOMMU, by_value(1000)), -ENODEV, "SET_IOMMU of nothing known");
	expect(end, call(end, VFIO_SET_IOMMU, by_value(type)), 0, "SET_IOMMU");
	expect(end, call(end, VFIO_SET_IOMMU, by_value(type)), -EINVAL, "SET_IOMMU again");
	expect(end, call(end, VFIO_SET_IOMMU, by_value(1000)), -EINVAL, "SET_IOMMU of another");
	expect(end, call(end, _IO(VFIO_TYPE, VFIO_BASE + 27), NULL), -ENOTTY, "an unknown command");
	expect(end, call(end, VFIO_GROUP_GET_STATUS, NULL), -ENOTTY, "a group's command");
	expect(end, call(end, VFIO_DEVICE_RESET, NULL), -ENOTTY, "a device's command");
}

static void parse_info(struct end *end, const unsigned char *bytes, struct told *told)
{
	const struct vfio_iommu_type1_info *info = (const void *)bytes;
	__u32 offset = info->cap_offset;

	memset(told, 0, sizeof(*told));
	told->pgsizes = info->iova_pgsizes;
	for (size_t i = 0; offset; i++) {
		const struct vfio_info_cap_header *header = (const void *)(bytes + offset);

		if (offset + sizeof(*header) > info->argsz)
			die("%s: a capability lies behind the end", end->what);
		if (i < 8)
			told->capabilities[i] = header->id | (__u32)header->version << 16;
		if (header->id == VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION) {
			const struct vfio_iommu_type1_info_cap_migration *cap = (const void *)header;

			told->migration_flags = cap->flags;
			told->dirty_pgsizes = cap->pgsize_bitmap;
			bitmap_max = cap->max_dirty_bitmap_size;
		}
		if (header->id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
			const struct vfio_iommu_type1_info_cap_iova_range *cap = (const void *)header;

			told->nr_ranges = cap->nr_iovas;
			if (cap->nr_iovas > 16)
				die("%s: %u IOVA ranges", end->what, cap->nr_iovas);
			memcpy(told->ranges, cap->iova_ranges,
			       cap->nr_iovas * sizeof(*cap->iova_ranges));
		}
		if (header->id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)
			told->avail = ((const struct vfio_iommu_type1_info_dma_avail *)header)->avail;
		offset = header->next;
	}
	if (!told->nr_ranges || !told->avail || !told->dirty_pgsizes || !bitmap_max)
		die("%s: GET_INFO tells of no IOVA ranges, dirty pages or mappings left", end->what);
}

static struct told get_told(struct end *end)
{
	unsigned char bytes[1024] __attribute__((aligned(8))) = { 0 };
	struct vfio_iommu_type1_info *info = (void *)bytes;
	struct told told;

	info->argsz = sizeof(bytes);
	expect(end, call(end, VFIO_IOMMU_GET_INFO, bytes), 0, "GET_INFO with much room");
	if (info->argsz != sizeof(bytes))
		die("%s: GET_INFO changes an argsz that was enough", end->what);
	parse_info(end, bytes, &told);
	return told;
}

static struct told check_info(struct end *end)
{
	unsigned char bytes[1024] __attribute__((aligned(8)));
	struct vfio_iommu_type1_info *info = (void *)bytes;
	__u32 sizes[] = { 16, 20, 24, 32 }, needed = 0;
	struct told told, again;

	memset(bytes, 0xaa, sizeof(bytes));
	info->argsz = 15;
	expect(end, call(end, VFIO_IOMMU_GET_INFO, bytes), -EINVAL, "GET_INFO with argsz 15");
	expect(end, call(end, VFIO_IOMMU_GET_INFO, NULL), -EFAULT, "GET_INFO of NULL");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		memset(bytes, 0xaa, sizeof(bytes));
		info->argsz = sizes[i];
		expect(end, call(end, VFIO_IOMMU_GET_INFO, bytes), 0, "GET_INFO with little room");
		if (info->flags != (VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS) ||
		    info->argsz <= sizeof(*info) || (sizes[i] >= 20 && info->cap_offset) ||
		    !all_bytes_are(bytes + sizes[i], sizeof(bytes) - sizes[i], 0xaa))
			die("%s: GET_INFO with argsz %u gives flags %#x, argsz %u, cap_offset %#x",
			    end->what, sizes[i], info->flags, info->argsz, info->cap_offset);
		needed = info->argsz;
	}
	memset(bytes, 0xaa, sizeof(bytes));
	info->argsz = needed;
	expect(end, call(end, VFIO_IOMMU_GET_INFO, bytes), 0, "GET_INFO with the room it wants");
	if (info->argsz != needed || !info->cap_offset ||
	    !all_bytes_are(bytes + needed, sizeof(bytes) - needed, 0xaa))
		die("%s: GET_INFO with argsz %u is not content", end->what, needed);
	parse_info(end, bytes, &told);
	told.coherent = call(end, VFIO_CHECK_EXTENSION, by_value(VFIO_DMA_CC_IOMMU));
	must_map(end, GPA, PAGE);
	again = get_told(end);
	if (again.avail != told.avail - 1)
		die("%s: after a map %u more are left, before %u", end->what, again.avail, told.avail);
	must_unmap(end, 0, GPA, PAGE, PAGE, "the unmap of it");
	return told;
}

static void check_map_arguments(struct end *end)
{
	struct vfio_iommu_type1_dma_map map[2] = { {
		.argsz = sizeof(*map) - 1, .flags = READ_WRITE, .vaddr = (uintptr_t)memory,
		.iova = GPA, .size = PAGE,
	} };
	void *nowhere = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	expect(end, call(end, VFIO_IOMMU_MAP_DMA, map), -EINVAL, "a map with a short argsz");
	expect(end, call(end, VFIO_IOMMU_MAP_DMA, NULL), -EFAULT, "a map of NULL");
	expect(end, call(end, VFIO_IOMMU_MAP_DMA, nowhere), -EFAULT, "a map that cannot be read");
	expect(end, do_map(end, 0, memory, GPA, PAGE), -EINVAL, "a map with no flag");
	expect(end, do_map(end, READ_WRITE | 1 << 7, memory, GPA, PAGE), -EINVAL, "a map with an unknown flag");
	expect(end, do_map(end, READ_WRITE, memory, GPA, 0), -EINVAL, "a map of nothing");
	expect(end, do_map(end, READ_WRITE, memory, GPA, PAGE + 1), -EINVAL, "a map of a misaligned size");
	expect(end, do_map(end, READ_WRITE, memory, GPA + 1, PAGE), -EINVAL, "a map at a misaligned IOVA");
	expect(end, do_map(end, READ_WRITE, memory + 1, GPA, PAGE), -EINVAL, "a map of a misaligned vaddr");
	expect_wrap(end, do_map(end, READ_WRITE, memory, -PAGE, 2 * PAGE), "a map whose IOVAs wrap");
	expect_wrap(end, do_map(end, READ_WRITE, by_value(-PAGE), GPA, 2 * PAGE), "a map whose vaddr wraps");
	expect(end, do_map(end, READ_WRITE, memory, RESERVED, PAGE), -EINVAL, "a map of reserved IOVAs");
	expect(end, do_map(end, READ_WRITE, memory, RESERVED - PAGE, 2 * PAGE), -EINVAL,
	       "a map that runs into reserved IOVAs");
	expect(end, do_map(end, READ_WRITE, memory, 1UL << 60, PAGE), -EINVAL, "a map outside the aperture");
	expect(end, do_map(end, READ_WRITE, memory, -PAGE, PAGE), -EINVAL, "a map of the last IOVAs");
	expect(end, do_map(end, READ_WRITE, nowhere, GPA, PAGE), -EFAULT, "a map of what is not accessible");
	expect(end, do_map(end, READ_WRITE, read_only, GPA, PAGE), -EFAULT, "a map to write what is read-only");
	munmap(nowhere, PAGE);
	expect(end, do_map(end, READ_WRITE, nowhere, GPA, PAGE), -EFAULT, "a map of what is not there");
	munmap(read_only, PAGE);
	must_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, 0, "an unmap after all these refusals");

	/* What lies behind the structure is not looked at. */
	memset(map + 1, 0xff, sizeof(*map));
	map->argsz = sizeof(map);
	expect(end, call(end, VFIO_IOMMU_MAP_DMA, map), 0, "a map with a long argsz");
	must_unmap(end, 0, GPA, PAGE, PAGE, "the unmap of it");
}

static void check_overlaps(struct end *end)
{
	__u64 edge = RESERVED - PAGE;

	must_map(end, GPA, 4 * PAGE);
	expect(end, do_map(end, READ_WRITE, memory, GPA, 4 * PAGE), -EEXIST, "the same map again");
	expect(end, do_map(end, READ_WRITE, memory, GPA + 3 * PAGE, 2 * PAGE), -EEXIST, "a map that begins in another");
	expect(end, do_map(end, READ_WRITE, memory, GPA - PAGE, 2 * PAGE), -EEXIST, "a map that ends in another");
	expect(end, do_map(end, READ_WRITE, memory, GPA - PAGE, 8 * PAGE), -EEXIST, "a map around another");
	expect(end, do_map(end, READ_WRITE, by_value(PAGE), GPA, PAGE), -EEXIST, "an overlap of no memory");
	expect(end, do_map(end, READ_WRITE, memory, GPA + 1, PAGE), -EINVAL, "an overlap that is misaligned");
	expect(end, do_map(end, 0, memory, GPA, PAGE), -EINVAL, "an overlap without a flag");
	/* Below the reserved IOVAs of VT-d there may be more of them. */
	if (do_map(end, READ_WRITE, memory, edge, PAGE) < 0)
		edge = 0xfedff000;
	else
		must_unmap(end, 0, edge, PAGE, PAGE, "the unmap at the edge");
	must_map(end, edge, PAGE);
	expect(end, do_map(end, READ_WRITE, memory, edge, 2 * PAGE), -EEXIST,
	       "a map that overlaps, and runs into reserved IOVAs");
	must_unmap(end, 0, edge, PAGE, PAGE, "the unmap at the edge");
	must_map(end, GPA + 4 * PAGE, PAGE);
	must_map(end, GPA - PAGE, PAGE);
	must_unmap(end, 0, GPA - PAGE, 6 * PAGE, 6 * PAGE, "an unmap of three");
}

static void check_unmap_arguments(struct end *end)
{
	struct { struct vfio_iommu_type1_dma_unmap unmap; struct vfio_bitmap bitmap; } with_bitmap = {
		.unmap = { .argsz = 23, .iova = GPA, .size = PAGE },
		.bitmap = { .pgsize = PAGE, .size = 8, .data = (void *)memory },
	};
	unsigned char *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_unmap *cut = (void *)(two + PAGE - sizeof(*cut));

	must_map(end, GPA, PAGE);
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &with_bitmap), -EINVAL, "an unmap with a short argsz");
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, NULL), -EFAULT, "an unmap of NULL");
	expect(end, do_unmap(end, 1 << 7, GPA, PAGE, NULL), -EINVAL, "an unmap with an unknown flag");
	expect(end, do_unmap(end, 0, GPA, 0, NULL), -EINVAL, "an unmap of nothing");
	expect(end, do_unmap(end, 0, GPA + 1, PAGE, NULL), -EINVAL, "an unmap at a misaligned IOVA");
	expect(end, do_unmap(end, 0, GPA, PAGE + 1, NULL), -EINVAL, "an unmap of a misaligned size");
	expect_wrap(end, do_unmap(end, 0, -PAGE, 2 * PAGE, NULL), "an unmap whose IOVAs wrap");
	expect(end, do_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, GPA, 0, NULL), -EINVAL, "an unmap of all, at an IOVA");
	expect(end, do_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, PAGE, NULL), -EINVAL, "an unmap of all, with a size");
	expect(end, do_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, 0, 0, NULL),
	       -EINVAL, "an unmap of all, with dirty pages");
	expect(end, do_unmap(end, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, GPA, PAGE, NULL), -EINVAL,
	       "an unmap with dirty pages and no bitmap");
	with_bitmap.unmap.argsz = sizeof(with_bitmap);
	with_bitmap.unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &with_bitmap), -EINVAL, "an unmap with dirty pages untracked");
	munmap(two + PAGE, PAGE);
	*cut = with_bitmap.unmap;
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, cut), -EFAULT, "an unmap whose bitmap cannot be read");
	munmap(two, PAGE);
	must_unmap(end, 0, GPA - PAGE, PAGE, 0, "an unmap of what is not mapped");
	must_unmap(end, 0, GPA + PAGE, 1UL << 30, 0, "an unmap of much that is not mapped");
	must_unmap(end, 0, 1UL << 60, PAGE, 0, "an unmap outside the aperture");
	must_unmap(end, 0, RESERVED, PAGE, 0, "an unmap of reserved IOVAs");
	must_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, PAGE, "an unmap of all");
	must_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, 0, "an unmap of all there is not");
}

static void check_splits(struct end *end, bool is_v1)
{
	must_map(end, GPA, 4 * PAGE);
	must_map(end, GPA + 8 * PAGE, 4 * PAGE);
	if (is_v1) {
		must_unmap(end, 0, GPA + PAGE, PAGE, 0, "an unmap inside a mapping (v1)");
		must_unmap(end, 0, GPA + PAGE, 8 * PAGE, 0, "an unmap from inside a mapping (v1)");
		must_unmap(end, 0, GPA, PAGE, 4 * PAGE, "an unmap of a mapping's first page (v1)");
		must_map(end, GPA, 4 * PAGE);
		must_unmap(end, 0, GPA - PAGE, 10 * PAGE, 8 * PAGE, "an unmap into a mapping (v1)");
		expect(end, do_unmap(end, 0, GPA + 1, PAGE, NULL), -EINVAL, "an unmap at a misaligned IOVA (v1)");
		expect(end, do_unmap(end, 0, GPA, 0, NULL), -EINVAL, "an unmap of nothing (v1)");
		expect_wrap(end, do_unmap(end, 0, -PAGE, 2 * PAGE, NULL), "an unmap that wraps (v1)");
		return;
	}
	expect(end, do_unmap(end, 0, GPA, PAGE, NULL), -EINVAL, "an unmap of a mapping's first page");
	expect(end, do_unmap(end, 0, GPA + PAGE, PAGE, NULL), -EINVAL, "an unmap inside a mapping");
	expect(end, do_unmap(end, 0, GPA + PAGE, 3 * PAGE, NULL), -EINVAL, "an unmap of a mapping's last pages");
	expect(end, do_unmap(end, 0, GPA - PAGE, 10 * PAGE, NULL), -EINVAL, "an unmap into a mapping");
	expect(end, do_unmap(end, 0, GPA + PAGE, 11 * PAGE, NULL), -EINVAL, "an unmap out of a mapping");
	must_unmap(end, 0, GPA - PAGE, 14 * PAGE, 8 * PAGE, "an unmap around two");
}

/* ------------------------------------------------------------------ */
/* Dirty pages                                                          */
/* ------------------------------------------------------------------ */

/* struct vfio_iommu_type1_dirty_bitmap with what it leads to. */
struct get_bitmap {
	__u32 argsz, flags;
	struct vfio_iommu_type1_dirty_bitmap_get get;
};

struct unmap_bitmap {
	struct vfio_iommu_type1_dma_unmap unmap;
	struct vfio_bitmap bitmap;
};

_Static_assert(sizeof(struct get_bitmap) == 48 && sizeof(struct unmap_bitmap) == 48,
	       "what follows a structure follows it at once");

#define BITS	4			/* words */

static int do_track(struct end *end, __u32 flag)
{
	struct vfio_iommu_type1_dirty_bitmap order = { .argsz = sizeof(order), .flags = flag };

	return call(end, VFIO_IOMMU_DIRTY_PAGES, &order);
}

static struct vfio_bitmap bitmap_at(__u64 *bits, __u64 size)
{
	return (struct vfio_bitmap){ .pgsize = PAGE, .size = (size / PAGE + 63) / 64 * 8, .data = bits };
}

static struct get_bitmap getting(__u64 iova, __u64 size, __u64 *bits)
{
	return (struct get_bitmap){
		.argsz = sizeof(struct get_bitmap),
		.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
		.get = { .iova = iova, .size = size, .bitmap = bitmap_at(bits, size) },
	};
}

/* The bitmap of a range, over words that are all `before`. */
static void bits_are(struct end *end, __u64 iova, __u64 size, __u64 before, const __u64 *expected,
		     const char *what)
{
	__u64 bits[BITS];
	struct get_bitmap order = getting(iova, size, bits);

	for (int i = 0; i < BITS; i++)
		bits[i] = before;
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &order), 0, what);
	for (int i = 0; i < BITS; i++)
		if (bits[i] != expected[i])
			die("%s: %s: word %d is %#llx instead of %#llx", end->what, what, i, bits[i],
			    expected[i]);
}

static void writes_page(struct end *end, __u64 iova)
{
	unsigned char byte = 1;

	if (end->is_node && !end->device->is_edu &&
	    simulated_dma(end->fd, end->device->id, IOASID_SIM_DMA_WRITE, iova, &byte, 1, NULL))
		die("a simulated device cannot write. %s", explanation(end->fd));
}

#define BAD(change, error, what) do { \
		bad = good; \
		bad.change; \
		expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &bad), error, what); \
	} while (0)

static void check_dirty_arguments(struct end *end)
{
	__u64 bits[BITS] = { 0 };
	struct get_bitmap good = getting(GPA, 4 * PAGE, bits), bad;
	unsigned char *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct get_bitmap *cut = (void *)(two + PAGE - 2 * sizeof(__u32));
	void *read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must_map(end, GPA, 4 * PAGE);
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &good), -EINVAL, "GET_BITMAP untracked");
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP), 0, "STOP untracked");
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_START), 0, "START");
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_START), 0, "START again");
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, NULL), -EFAULT, "DIRTY_PAGES of NULL");
	expect(end, do_track(end, 0), -EINVAL, "DIRTY_PAGES with no flag");
	expect(end, do_track(end, 3), -EINVAL, "DIRTY_PAGES with two flags");
	expect(end, do_track(end, 1 << 3), -EINVAL, "DIRTY_PAGES with an unknown flag");
	expect(end, do_track(end, 1 << 3 | 1), -EINVAL, "START with an unknown flag");
	BAD(argsz = 7, -EINVAL, "GET_BITMAP with a short argsz");
	BAD(argsz = 8, -EINVAL, "GET_BITMAP without a range");
	BAD(argsz = 47, -EINVAL, "GET_BITMAP with a cut range");
	BAD(argsz = 1000, 0, "GET_BITMAP with a long argsz");
	BAD(get.iova = GPA + 1, -EINVAL, "GET_BITMAP at a misaligned IOVA");
	BAD(get.size = 0, -EINVAL, "GET_BITMAP of nothing");
	BAD(get.size = PAGE + 1, -EINVAL, "GET_BITMAP of a misaligned size");
	bad = good;
	bad.get.iova = -PAGE;
	expect_wrap(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &bad), "GET_BITMAP that wraps");
	BAD(get.iova = GPA + PAGE, -EINVAL, "GET_BITMAP from inside a mapping");
	BAD(get.iova = GPA - PAGE, -EINVAL, "GET_BITMAP into a mapping");
	BAD(get.size = PAGE, -EINVAL, "GET_BITMAP of a part");
	BAD(get.bitmap.pgsize = 0, -EINVAL, "GET_BITMAP of no page size");
	BAD(get.bitmap.pgsize = 3 * PAGE, -EINVAL, "GET_BITMAP of a page size that is none");
	BAD(get.bitmap.pgsize = 2 * MIB, -EINVAL, "GET_BITMAP of another page size");
	BAD(get.bitmap.size = 0, -EINVAL, "GET_BITMAP without room");
	BAD(get.bitmap.size = 7, -EINVAL, "GET_BITMAP with little room");
	BAD(get.bitmap.size = 32, 0, "GET_BITMAP with much room");
	BAD(get.bitmap.size = bitmap_max, 0, "GET_BITMAP with the most room");
	BAD(get.bitmap.size = bitmap_max + 1, -EINVAL, "GET_BITMAP with too much room");
	BAD(get.bitmap.data = by_value(-PAGE), -EINVAL, "GET_BITMAP to the kernel's addresses");
	BAD(get.bitmap.data = by_value(PAGE), -EFAULT, "GET_BITMAP to nowhere");
	BAD(get.bitmap.data = read_only, -EFAULT, "GET_BITMAP to what is read-only");
	/* Of what is not mapped, nothing is told. */
	bad = getting(GPA + 4 * PAGE, PAGE, by_value(PAGE));
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &bad), 0, "GET_BITMAP of nothing to nowhere");
	bad = getting(1UL << 60, PAGE, bits);
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &bad), 0, "GET_BITMAP outside the aperture");
	munmap(two + PAGE, PAGE);
	memcpy(cut, &good, 2 * sizeof(__u32));
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, cut), -EFAULT, "GET_BITMAP whose range cannot be read");
	munmap(two, PAGE);
	munmap(read_only, PAGE);
	must_unmap(end, 0, GPA, 4 * PAGE, 4 * PAGE, "an unmap while tracked");
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP), 0, "STOP");
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, &good), -EINVAL, "GET_BITMAP after STOP");
}

/* Bits, where every page that is mapped may have been written, or `exactly` some were. */
static void check_bits(struct end *end)
{
	bool all = end->device->is_edu;
	__u64 none[BITS] = { 0 };
	__u64 word[BITS] = { all ? 0xff : 0x12 };
	/* A mapping that begins inside a word adds to what the word holds. */
	const __u64 held = 0xf00000000000000f;
	__u64 kept[BITS] = { held | (all ? 0xffULL : 0x12ULL) << 4, held, held, held };
	__u64 begun[BITS] = { all ? 0xff : 0, held, held, held };
	__u64 two[BITS] = { all ? 0xff : 0x1, 0, all ? 0xf : 0x8, 0 };
	__u64 ends[BITS] = { 0, (all ? 0xfULL : 0x1ULL) << 60, all ? 0xf : 0x8, 0 };

	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_START), 0, "START");
	must_map(end, GPA, 8 * PAGE);
	bits_are(end, GPA, 8 * PAGE, 0, all ? word : none, "a mapping that was not written");
	writes_page(end, GPA + PAGE);
	writes_page(end, GPA + 4 * PAGE);
	bits_are(end, GPA, 8 * PAGE, 0, word, "a mapping");
	bits_are(end, GPA, 8 * PAGE, 0, all ? word : none, "the same again");
	writes_page(end, GPA + PAGE);
	writes_page(end, GPA + 4 * PAGE);
	bits_are(end, GPA - 4 * PAGE, 64 * PAGE, held, kept, "a mapping inside a word");
	/*
	 * type1 has shifted the bits of this mapping, and would now also set some behind it: all
	 * that begin inside a word are asked for once only.
	 */
	must_unmap(end, 0, GPA, 8 * PAGE, 8 * PAGE, "the unmap of it");
	must_map(end, GPA, 8 * PAGE);
	bits_are(end, GPA, 8 * PAGE, held, begun, "a mapping that begins a word");
	must_map(end, GPA + 128 * PAGE, 4 * PAGE);
	writes_page(end, GPA);
	writes_page(end, GPA + 131 * PAGE);
	bits_are(end, GPA, 200 * PAGE, 0, two, "two mappings and a gap");
	must_unmap(end, 0, GPA, 200 * PAGE, 12 * PAGE, "an unmap of both");
	must_map(end, GPA, 8 * PAGE);
	bits_are(end, GPA, 8 * PAGE, 0, all ? word : none, "a new mapping where one was written");
	must_unmap(end, 0, GPA, 8 * PAGE, 8 * PAGE, "the unmap of it");
	must_map(end, GPA + 124 * PAGE, 8 * PAGE);
	writes_page(end, GPA + 124 * PAGE);
	writes_page(end, GPA + 131 * PAGE);
	bits_are(end, GPA, 256 * PAGE, 0, ends, "a mapping across words");
	must_unmap(end, 0, GPA + 124 * PAGE, 8 * PAGE, 8 * PAGE, "an unmap across words");
	bits_are(end, GPA, 256 * PAGE, 0, none, "nothing mapped");
}

static void check_dirty_unmaps(struct end *end)
{
	bool all = end->device->is_edu;
	__u64 bits[BITS] = { 0 };
	struct unmap_bitmap good = {
		.unmap = {
			.argsz = sizeof(good), .flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
			.iova = GPA - 2 * PAGE, .size = 16 * PAGE,
		},
		.bitmap = bitmap_at(bits, 16 * PAGE),
	}, bad;

#undef BAD
#define BAD(change, error, what) do { \
		bad = good; \
		bad.change; \
		expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &bad), error, what); \
	} while (0)
	must_map(end, GPA, 4 * PAGE);
	must_map(end, GPA + 8 * PAGE, 4 * PAGE);
	writes_page(end, GPA);
	writes_page(end, GPA + 11 * PAGE);
	BAD(unmap.argsz = 47, -EINVAL, "an unmap with a cut bitmap");
	BAD(unmap.flags |= VFIO_DMA_UNMAP_FLAG_ALL, -EINVAL, "an unmap of all, with a bitmap");
	BAD(unmap.size = 0, -EINVAL, "an unmap of nothing, with a bitmap");
	BAD(unmap.size = PAGE, 0, "an unmap of nothing mapped, with a bitmap");
	BAD(unmap.size = 4 * PAGE, -EINVAL, "an unmap into a mapping, with a bitmap");
	BAD(unmap.iova += 1, -EINVAL, "an unmap at a misaligned IOVA, with a bitmap");
	BAD(bitmap.pgsize = 2 * MIB, -EINVAL, "an unmap with a bitmap of another page size");
	BAD(bitmap.size = 0, -EINVAL, "an unmap with a bitmap without room");
	BAD(bitmap.size = bitmap_max + 1, -EINVAL, "an unmap with a bitmap with too much room");
	BAD(bitmap.data = by_value(-PAGE), -EINVAL, "an unmap with a bitmap at the kernel's addresses");
	/* From the first mapping on, so that type1 shifts no bits before it fails. */
	bad = good;
	bad.unmap.iova = GPA;
	bad.unmap.size = 12 * PAGE;
	bad.bitmap.data = by_value(PAGE);
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &bad), -EFAULT, "an unmap with a bitmap nowhere");
	bits[0] = 1ULL << 63 | 1;
	bad = good;
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &bad), 0, "an unmap with a bitmap");
	if (bad.unmap.size != 8 * PAGE || bits[0] != (1ULL << 63 | 1 | (all ? 0x3c3c : 0x2004)))
		die("%s: an unmap with a bitmap unmaps %llu bytes and gives %#llx", end->what,
		    bad.unmap.size, bits[0]);
	bits[0] = -1ULL;
	bad = good;
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &bad), 0, "an unmap with a bitmap again");
	if (bad.unmap.size || bits[0] != -1ULL)
		die("%s: an unmap of nothing unmaps %llu bytes and gives %#llx", end->what,
		    bad.unmap.size, bits[0]);
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP), 0, "STOP");
	expect(end, call(end, VFIO_IOMMU_UNMAP_DMA, &good), -EINVAL, "an unmap with a bitmap after STOP");
#undef BAD
}

/* Maps as much as goes. */
static void check_limit(struct end *end)
{
	__u32 avail = get_told(end).avail, done = 0;
	__u64 unmapped, iova = GPA;

	if (avail > LIMIT_WORTH_FINDING) {
		printf("%s has room for %u mappings: left out\n", end->what, avail);
		return;
	}
	while (done <= avail && do_map(end, READ_WRITE, memory, iova, PAGE) == 0) {
		done++;
		iova += 2 * PAGE;
	}
	expect(end, do_map(end, READ_WRITE, memory, iova, PAGE), -ENOSPC, "a map more than there may be");
	if (done != avail)
		die("%s: %u mappings could be made, and %u were said to be left", end->what, done, avail);
	expect(end, do_map(end, READ_WRITE, memory, GPA, PAGE), -EEXIST, "an overlap when all is full");
	expect(end, do_map(end, READ_WRITE, memory, RESERVED, PAGE), -ENOSPC, "a reserved IOVA when all is full");
	expect(end, do_map(end, READ_WRITE, by_value(PAGE), iova, PAGE), -ENOSPC, "no memory when all is full");
	expect(end, do_map(end, READ_WRITE, memory, iova, PAGE + 1), -EINVAL, "a bad size when all is full");
	expect(end, do_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, &unmapped), 0, "the unmap of all of them");
	if (unmapped != done * PAGE)
		die("%s: %llu bytes of %u pages were unmapped", end->what, unmapped, done);
	ok("%s takes %u mappings and no more", end->what, done);
}

static struct told check_end(struct end *end)
{
	struct told told;

	check_extensions(end);
	set_iommu(end, VFIO_TYPE1v2_IOMMU);
	check_extensions(end);
	told = check_info(end);
	check_map_arguments(end);
	check_overlaps(end);
	check_unmap_arguments(end);
	check_splits(end, false);
	check_dirty_arguments(end);
	check_bits(end);
	check_dirty_unmaps(end);
	check_limit(end);
	must_map(end, GPA, PAGE);
	remove_device(end);
	/* Without its last group it is as it was at first. */
	set_iommu(end, VFIO_TYPE1_IOMMU);
	must_unmap(end, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0, 0, "an unmap after the group left and came");
	expect(end, do_track(end, VFIO_IOMMU_DIRTY_PAGES_FLAG_START), -EACCES, "START (v1)");
	expect(end, call(end, VFIO_IOMMU_DIRTY_PAGES, NULL), -EACCES, "DIRTY_PAGES of NULL (v1)");
	check_splits(end, true);
	must_map(end, GPA, PAGE);
	close(end->fd);
	if (!end->is_node)
		ioctl(end->device->group, VFIO_GROUP_UNSET_CONTAINER);
	ok("%s: %u calls gave what type1 gives%s", end->what, end->checks,
	   end->overflows ? " (with EOVERFLOW for addresses that wrap)" : "");
	return told;
}

/* Fewer mappings than the kernel's own limit, so that it is quickly reached. */
static void set_entry_limit(const char *limit)
{
	int fd = open(ENTRY_LIMIT, O_WRONLY);

	if (fd < 0 || write(fd, limit, strlen(limit)) < 0)
		printf("the limit of mappings cannot be set: %s\n", strerror(errno));
	close(fd);
}

static void check_both(const char *node, struct device *device)
{
	struct told by_node, by_kernel;
	struct end end;

	if (device->is_edu)
		set_entry_limit("40");
	open_end(&end, node, device, true);
	by_node = check_end(&end);
	if (!device->is_edu)
		return;
	open_end(&end, node, device, false);
	by_kernel = check_end(&end);
	set_entry_limit("65535");
	if (memcmp(&by_node, &by_kernel, sizeof(by_node)))
		die("GET_INFO of the node and of the kernel differ: page sizes %#llx and %#llx, %u and %u ranges, %u and %u mappings, coherence %u and %u",
		    by_node.pgsizes, by_kernel.pgsizes, by_node.nr_ranges, by_kernel.nr_ranges,
		    by_node.avail, by_kernel.avail, by_node.coherent, by_kernel.coherent);
	ok("the kernel's container has the same page sizes, IOVA ranges, mappings left and coherence");
}

/* The number of the IOASID behind the container. */
static __u32 ioasid_of(int node, struct device *device)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = device->id };

	must(node, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
	return info.ioasid;
}

static void dma_works(struct device *device, __u32 ioasid, unsigned char *at, __u64 iova, __u32 seed)
{
	static unsigned char sent[1500], seen[1500];

	fill(at, PAGE, seed);
	if (!device_reads(device, ioasid, iova + 3, seen, sizeof(seen)))
		die("%s cannot read. %s", device->name, explanation(device->node));
	must_equal(seen, at + 3, sizeof(seen), device->name);
	fill(sent, sizeof(sent), seed + 1);
	if (!device_writes(device, ioasid, iova + 1, sent, sizeof(sent)))
		die("%s cannot write. %s", device->name, explanation(device->node));
	must_equal(at + 1, sent, sizeof(sent), device->name);
}

static void close_device(struct device *device)
{
	if (!device->is_edu)
		return;
	munmap((void *)device->registers, region(device->fd, VFIO_PCI_BAR0_REGION_INDEX).size);
	close(device->fd);
}

/* One device, and a second that comes when something is mapped. */
static void check_dma(const char *node, struct device *a, struct device *b)
{
	unsigned char *private = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct end end;
	long before, between, after;
	__u32 ioasid;

	open_end(&end, node, a, true);
	bind_device(a, end.fd);
	expect(&end, call(&end, VFIO_SET_IOMMU, by_value(VFIO_TYPE1v2_IOMMU)), 0, "SET_IOMMU");
	ioasid = ioasid_of(end.fd, a);
	before = pinned_pages();
	must_map(&end, GPA, SIZE);
	between = pinned_pages();
	expect(&end, do_map(&end, READ_WRITE, private, GPA + SIZE, PAGE), 0, "a map of private memory");
	dma_works(a, ioasid, memory, GPA, 1);
	dma_works(a, ioasid, private, GPA + SIZE, 3);
	ok("%s reads and writes what was mapped by VFIO_IOMMU_MAP_DMA", a->name);
	if (b) {
		bind_device(b, end.fd);
		if (ioasid_of(end.fd, b) != ioasid)
			die("%s is not attached with its bind", b->name);
		after = pinned_pages();
		if (a->is_edu && before >= 0 &&
		    (between - before != SIZE / PAGE || after - between != 1))
			die("%ld pages were pinned, and %ld with the second device",
			    between - before, after - between);
		dma_works(b, ioasid, memory, GPA, 5);
		dma_works(b, ioasid, private, GPA + SIZE, 7);
		ok("%s, bound later, reaches the same", b->name);
		close_device(b);
		must(end.fd, IOASID_UNBIND_DEVICE, by_value(b->id), "UNBIND_DEVICE");
		dma_works(a, ioasid, memory, GPA, 9);
		ok("%s goes on when %s is unbound", a->name, b->name);
	}
	must_unmap(&end, 0, GPA, SIZE, SIZE, "the unmap");
	if (!a->is_edu && device_reads(a, ioasid, GPA, private, PAGE))
		die("%s reads what is not mapped any more", a->name);
	close_device(a);
	close(end.fd);
}

/* Two that are there before SET_IOMMU. */
static void check_two(const char *node, struct device *a, struct device *b)
{
	struct end end;
	long before, after;

	open_end(&end, node, a, true);
	add_device(&end);
	end.device = b;
	add_device(&end);
	a->node = b->node = end.fd;
	expect(&end, call(&end, VFIO_SET_IOMMU, by_value(VFIO_TYPE1v2_IOMMU)), 0, "SET_IOMMU with two");
	if (ioasid_of(end.fd, a) != ioasid_of(end.fd, b))
		die("the two are attached to different IOASIDs");
	before = pinned_pages();
	must_map(&end, GPA, SIZE);
	after = pinned_pages();
	if (a->is_edu && before >= 0 && after - before != SIZE / PAGE)
		die("%ld pages were pinned for two devices instead of %lu", after - before, SIZE / PAGE);
	if (a->is_edu) {
		a->registers = open_edu(a->group, a->name, &a->fd);
		b->registers = open_edu(b->group, b->name, &b->fd);
	}
	dma_works(a, ioasid_of(end.fd, a), memory, GPA, 11);
	dma_works(b, ioasid_of(end.fd, b), memory, GPA, 13);
	ok("two that were bound before SET_IOMMU share what is pinned");
	/* Beside it there may be other IOASIDs. */
	detach(end.fd, b->id, ioasid_of(end.fd, b));
	close_device(a);
	close_device(b);
	must(end.fd, IOASID_UNBIND_DEVICE, by_value(a->id), "UNBIND_DEVICE");
	must(end.fd, IOASID_UNBIND_DEVICE, by_value(b->id), "UNBIND_DEVICE");
	check_unset(&end);
	close(end.fd);
}

/*
 * Two groups share a table, and a device of one is open, when SET_IOMMU would have them share that
 * of a third: all stays as it is, and each reaches everything.
 */
static void check_three(const char *node, struct device *a, struct device *b, struct device *c)
{
	struct device *all[] = { a, b, c };
	struct ioasid_bind_device bind_data = {
		.argsz = sizeof(bind_data),
		.flags = IOASID_BIND_VFIO_GROUP | IOASID_BIND_SHARE,
	};
	struct end end;
	long before, after;

	open_end(&end, node, a, true);
	add_device(&end);
	end.device = b;
	add_device(&end);
	prepare_device(c);
	bind_data.fd = c->group;
	bind_data.with = b->id;
	strcpy(bind_data.name, c->name);
	must(end.fd, IOASID_BIND_DEVICE, &bind_data, "BIND_DEVICE with SHARE");
	c->id = bind_data.device;
	c->window = shared_memory(PAGE);
	b->registers = open_edu(b->group, b->name, &b->fd);
	expect(&end, call(&end, VFIO_SET_IOMMU, by_value(VFIO_TYPE1v2_IOMMU)), 0, "SET_IOMMU with three");
	a->registers = open_edu(a->group, a->name, &a->fd);
	c->registers = open_edu(c->group, c->name, &c->fd);
	before = pinned_pages();
	must_map(&end, GPA, SIZE);
	after = pinned_pages();
	if (before >= 0 && after - before != 2 * SIZE / PAGE)
		die("%ld pages were pinned for two tables", after - before);
	for (int i = 0; i < 3; i++) {
		all[i]->node = end.fd;
		dma_works(all[i], ioasid_of(end.fd, all[i]), memory, GPA, 15 + 2 * i);
	}
	for (int i = 0; i < 3; i++) {
		close_device(all[i]);
		must(end.fd, IOASID_UNBIND_DEVICE, by_value(all[i]->id), "UNBIND_DEVICE");
		if (i < 2)
			dma_works(c, ioasid_of(end.fd, c), memory, GPA, 25 + 2 * i);
	}
	if (before >= 0 && pinned_pages() != before)
		die("%ld pages stay pinned", pinned_pages() - before);
	ok("groups of which a device is open before SET_IOMMU keep their table, and reach everything");
	close(end.fd);
}

int main(int argc, char **argv)
{
	struct device a, b, c;
	bool has_b, has_c;
	int next = 2;

	if (argc < 3)
		die("usage: container NODE DEVICE-A [DEVICE-B [DEVICE-C]]");
	next += take_device(argv + next, &a);
	has_b = argc > next;
	if (has_b)
		next += take_device(argv + next, &b);
	has_c = argc > next;
	if (has_c)
		take_device(argv + next, &c);
	memory = shared_memory(SIZE);
	check_both(argv[1], &a);
	check_dma(argv[1], &a, has_b ? &b : NULL);
	if (has_b)
		check_two(argv[1], &a, &b);
	if (has_c)
		check_three(argv[1], &a, &b, &c);
	return 0;
}
