/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * bench-node noop NODE
 * bench-node struct NODE SIMULATED
 * bench-node pair NODE OTHER-NODE SIMULATED
 * bench-node node NODE ADDRESS GROUP SIZE
 * bench-node vfio GROUP SIZE
 *
 * Times one thing, many times over, and prints the median in nanoseconds. scripts/bench runs it
 * and sets the figures against each other.
 *
 * noop: an ioctl without argument (CHECK_EXTENSION).
 * struct: an ioctl with a structure that is read and written (GET_DEVICE_INFO).
 * pair: the same on two nodes, taking turns, so that both see the same machine; two medians.
 * node: MAP_DMA and UNMAP_DMA of SIZE bytes of a memfd, in huge pages from 2 MiB on.
 * vfio: the same, directly on a VFIO container.
 */
#include "vfio.h"

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

int main(int argc, char **argv)
{
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
	} else {
		die("usage: see the head of tests/c/bench-node.c");
	}
	return 0;
}
