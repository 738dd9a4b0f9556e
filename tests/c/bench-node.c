/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * bench-node noop NODE
 * bench-node struct NODE SIMULATED
 * bench-node pair NODE OTHER-NODE SIMULATED
 * bench-node node NODE ADDRESS GROUP SIZE
 * bench-node vfio GROUP SIZE
 * bench-node costs NODE ADDRESS GROUP OTHER-GROUP
 * bench-node costs NODE SIMULATED
 * bench-node large NODE ADDRESS GROUP OTHER-GROUP SIZE
 *
 * Times one thing, many times over, and prints the median in nanoseconds. scripts/bench runs it
 * and sets the figures against each other.
 *
 * noop: an ioctl without argument (CHECK_EXTENSION).
 * struct: an ioctl with a structure that is read and written (GET_DEVICE_INFO).
 * pair: the same on two nodes, taking turns, so that both see the same machine; two medians.
 * node: MAP_DMA and UNMAP_DMA of SIZE bytes of a memfd, in huge pages from 2 MiB on.
 * vfio: the same, directly on a VFIO container.
 * costs: MAP_DMA alone, of 4 KiB of each kind, beside an ioctl without argument and beside VFIO
 *   directly, all taking turns; lines of a name and a median. With a simulated device, without VFIO.
 * large: the same for SIZE bytes of private memory, in few rounds: in pages of 4 KiB, then in
 *   transparent huge pages, as far as there are any.
 */
#include "vfio.h"

#define ARRAY_LEN(array) (int)(sizeof(array) / sizeof((array)[0]))

#define WARM_UP		50
#define ROUNDS		1000
#define IOVA		0x10000000UL

struct bench {
	int fd;		/* of the node, or of a container */
	__u32 device;
	__u32 ioasid;
	void *memory;
	size_t size;
};

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *seconds)
{
	qsort(seconds, ROUNDS, sizeof(*seconds), by_size);
	return seconds[ROUNDS / 2];
}

/* Times one or two benches, which take turns. */
static void report(void (*once)(const struct bench *), const struct bench *benches, int count)
{
	static double seconds[2][ROUNDS];

	for (int i = -WARM_UP; i < ROUNDS; i++) {
		for (int which = 0; which < count; which++) {
			double begin = now();

			once(&benches[which]);
			if (i >= 0)
				seconds[which][i] = now() - begin;
		}
	}
	for (int which = 0; which < count; which++)
		printf("%.0f\n", median(seconds[which]) * 1e9);
}

static void noop(const struct bench *bench)
{
	has_extension(bench->fd, IOASID_EXT_MAP_TYPE1V2);
}

static void structure(const struct bench *bench)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = bench->device };

	must(bench->fd, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
}

static void map_and_unmap(const struct bench *bench)
{
	map(bench->fd, bench->ioasid, IOVA, bench->memory, bench->size, MAP_BOTH);
	unmap(bench->fd, bench->ioasid, IOVA, bench->size);
}

static void map_and_unmap_directly(const struct bench *bench)
{
	struct vfio_iommu_type1_dma_map dma_map = {
		.argsz = sizeof(dma_map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)bench->memory,
		.iova = IOVA,
		.size = bench->size,
	};
	struct vfio_iommu_type1_dma_unmap dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.iova = IOVA,
		.size = bench->size,
	};

	if (ioctl(bench->fd, VFIO_IOMMU_MAP_DMA, &dma_map) < 0 ||
	    ioctl(bench->fd, VFIO_IOMMU_UNMAP_DMA, &dma_unmap) < 0)
		die("VFIO cannot map or unmap: %s", strerror(errno));
}

static void *memory_of(size_t size)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | (size >= 2 * MIB ? MFD_HUGETLB : 0));
	void *memory;

	if (fd < 0 || ftruncate(fd, size) < 0)
		skip("no memory of %zu bytes: %s", size, strerror(errno));
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		skip("no memory of %zu bytes: %s", size, strerror(errno));
	memset(memory, 1, size);
	return memory;
}

static int container_of(int group)
{
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);

	if (container < 0 || ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0 ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		die("no container for the group: %s", strerror(errno));
	return container;
}

/* ------------------------------------------------------------------ */
/* MAP_DMA alone, by kind of memory                                     */
/* ------------------------------------------------------------------ */

struct kinds {
	int node, container;
	int memfd, known;	/* files; of the second, something else is mapped all the time */
	__u32 ioasid;
	unsigned char *shared, *private, *huge;
	size_t size;
};

struct kind {
	const char *name;
	void (*map)(const struct kinds *kinds);
	void (*unmap)(const struct kinds *kinds);	/* is not timed */
};

static void nothing(const struct kinds *kinds)
{
	(void)kinds;
}

static void call_nothing(const struct kinds *kinds)
{
	has_extension(kinds->node, IOASID_EXT_MAP_TYPE1V2);
}

static void map_directly(const struct kinds *kinds, void *memory)
{
	struct vfio_iommu_type1_dma_map dma_map = {
		.argsz = sizeof(dma_map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = IOVA,
		.size = kinds->size,
	};

	if (ioctl(kinds->container, VFIO_IOMMU_MAP_DMA, &dma_map) < 0)
		die("VFIO cannot map: %s", strerror(errno));
}

static void map_shared_directly(const struct kinds *kinds)
{
	map_directly(kinds, kinds->shared);
}

static void map_private_directly(const struct kinds *kinds)
{
	map_directly(kinds, kinds->private);
}

static void map_huge_directly(const struct kinds *kinds)
{
	map_directly(kinds, kinds->huge);
}

static void unmap_directly(const struct kinds *kinds)
{
	struct vfio_iommu_type1_dma_unmap dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.iova = IOVA,
		.size = kinds->size,
	};

	if (ioctl(kinds->container, VFIO_IOMMU_UNMAP_DMA, &dma_unmap) < 0 ||
	    dma_unmap.size != kinds->size)
		die("VFIO cannot unmap: %s", strerror(errno));
}

static void map_shared(const struct kinds *kinds)
{
	map(kinds->node, kinds->ioasid, IOVA, kinds->shared, kinds->size, MAP_BOTH);
}

static void map_private(const struct kinds *kinds)
{
	map(kinds->node, kinds->ioasid, IOVA, kinds->private, kinds->size, MAP_BOTH);
}

static void map_huge(const struct kinds *kinds)
{
	map(kinds->node, kinds->ioasid, IOVA, kinds->huge, kinds->size, MAP_BOTH);
}

static void map_piece(const struct kinds *kinds, int fd, __u64 offset, __u64 iova)
{
	struct ioasid_map_dma dma_map = {
		.argsz = sizeof(dma_map),
		.flags = MAP_BOTH | IOASID_MAP_FILE,
		.ioasid = kinds->ioasid,
		.fd = fd,
		.vaddr = offset,
		.iova = iova,
		.size = kinds->size,
	};

	must(kinds->node, IOASID_MAP_DMA, &dma_map, "MAP_DMA of a file");
}

static void map_file(const struct kinds *kinds)
{
	map_piece(kinds, kinds->memfd, 0, IOVA);
}

static void map_known_file(const struct kinds *kinds)
{
	map_piece(kinds, kinds->known, 0, IOVA);
}

static void unmap_it(const struct kinds *kinds)
{
	if (unmap(kinds->node, kinds->ioasid, IOVA, kinds->size) != kinds->size)
		die("UNMAP_DMA did not unmap everything");
}

static void do_register(const struct kinds *kinds, unsigned long command, void *memory)
{
	struct ioasid_register_memory memory_range = {
		.argsz = sizeof(memory_range),
		.vaddr = (uintptr_t)memory,
		.size = kinds->size,
	};

	must(kinds->node, command, &memory_range, "REGISTER_MEMORY");
}

/* With something registered, which the third maps. */
static const struct kind quick_kinds[] = {
	{ "direct", map_shared_directly, unmap_directly },
	{ "no-argument", call_nothing, nothing },
	{ "registered", map_shared, unmap_it },
	{ "file", map_file, unmap_it },
	{ "file-known", map_known_file, unmap_it },
};

static const struct kind slow_kinds[] = {
	{ "shared", map_shared, unmap_it },
	{ "private", map_private, unmap_it },
};

static const struct kind large_kinds[] = {
	{ "direct", map_private_directly, unmap_directly },
	{ "private", map_private, unmap_it },
	{ "direct-huge", map_huge_directly, unmap_directly },
	{ "private-huge", map_huge, unmap_it },
};

static void report_kinds(const struct kinds *kinds, const struct kind *list, int count, int rounds)
{
	static double seconds[ARRAY_LEN(quick_kinds)][ROUNDS];

	for (int i = -rounds / 20 - 1; i < rounds; i++) {
		for (int which = 0; which < count; which++) {
			double begin;

			begin = now();
			list[which].map(kinds);
			if (i >= 0)
				seconds[which][i] = now() - begin;
			list[which].unmap(kinds);
		}
	}
	for (int which = 0; which < count; which++) {
		qsort(seconds[which], rounds, sizeof(seconds[which][0]), by_size);
		printf("%s %.0f\n", list[which].name, seconds[which][rounds / 2] * 1e9);
	}
}

static unsigned char *private_memory(size_t size, int advice)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned char *memory = mmap(NULL, size + 2 * MIB, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (memory == MAP_FAILED)
		die("no memory of %zu bytes: %s", size, strerror(errno));
	memory += -(uintptr_t)memory % (2 * MIB);
	madvise(memory, size, advice);
	memset(memory, 1, size);
	return memory;
}

static int file_of(size_t size)
{
	int fd = memfd_create("bench", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, size) < 0)
		die("no memory of %zu bytes: %s", size, strerror(errno));
	return fd;
}

static void prepare_kinds(struct kinds *kinds, int argc, char **argv, size_t size)
{
	__u32 device;

	kinds->size = size;
	kinds->memfd = file_of(size);
	kinds->known = file_of(2 * size);
	kinds->shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_of(size), 0);
	kinds->private = private_memory(size, MADV_NOHUGEPAGE);
	kinds->huge = private_memory(size, MADV_HUGEPAGE);
	if (kinds->shared == MAP_FAILED)
		die("no memory of %zu bytes: %s", size, strerror(errno));
	if (size == PAGE)
		memset(kinds->shared, 1, size);
	kinds->node = open_node(argv[2]);
	device = argc == 4 ? bind_simulated(kinds->node, argv[3], 0) :
			     bind_group(kinds->node, open_group(argv[4]), argv[3], 0);
	kinds->ioasid = alloc_ioasid(kinds->node);
	attach(kinds->node, device, kinds->ioasid);
	if (argc > 5)
		kinds->container = container_of(open_group(argv[5]));
}

int main(int argc, char **argv)
{
	struct kinds kinds;
	struct bench bench = { .fd = -1 };

	if (argc == 3 && !strcmp(argv[1], "noop")) {
		bench.fd = open_node(argv[2]);
		report(noop, &bench, 1);
	} else if (argc == 4 && !strcmp(argv[1], "struct")) {
		bench.fd = open_node(argv[2]);
		bench.device = bind_simulated(bench.fd, argv[3], 0);
		report(structure, &bench, 1);
	} else if (argc == 5 && !strcmp(argv[1], "pair")) {
		struct bench pair[2];

		for (int which = 0; which < 2; which++) {
			pair[which].fd = open_node(argv[2 + which]);
			pair[which].device = bind_simulated(pair[which].fd, argv[4], 0);
		}
		report(structure, pair, 2);
	} else if (argc == 6 && !strcmp(argv[1], "node")) {
		bench.size = number(argv[5]);
		bench.memory = memory_of(bench.size);
		bench.fd = open_node(argv[2]);
		bench.device = bind_group(bench.fd, open_group(argv[4]), argv[3], 0);
		bench.ioasid = alloc_ioasid(bench.fd);
		attach(bench.fd, bench.device, bench.ioasid);
		report(map_and_unmap, &bench, 1);
	} else if (argc == 4 && !strcmp(argv[1], "vfio")) {
		bench.size = number(argv[3]);
		bench.memory = memory_of(bench.size);
		bench.fd = container_of(open_group(argv[2]));
		report(map_and_unmap_directly, &bench, 1);
	} else if ((argc == 4 || argc == 6) && !strcmp(argv[1], "costs")) {
		int skipped = argc == 4;

		prepare_kinds(&kinds, argc, argv, PAGE);
		do_register(&kinds, IOASID_REGISTER_MEMORY, kinds.shared);
		map_piece(&kinds, kinds.known, PAGE, 2 * IOVA);
		report_kinds(&kinds, quick_kinds + skipped, ARRAY_LEN(quick_kinds) - skipped, ROUNDS);
		do_register(&kinds, IOASID_UNREGISTER_MEMORY, kinds.shared);
		report_kinds(&kinds, slow_kinds, ARRAY_LEN(slow_kinds), ROUNDS);
	} else if (argc == 7 && !strcmp(argv[1], "large")) {
		prepare_kinds(&kinds, argc, argv, number(argv[6]));
		report_kinds(&kinds, large_kinds, ARRAY_LEN(large_kinds), 11);
	} else {
		die("usage: see the head of tests/c/bench-node.c");
	}
	return 0;
}
