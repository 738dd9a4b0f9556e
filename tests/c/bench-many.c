/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * bench-many vector NODE ADDRESS GROUP OTHER-GROUP
 * bench-many move NODE ADDRESS GROUP OTHER-GROUP
 *
 * Times what changes many mappings at once, beside the same done with VFIO directly, taking turns;
 * prints lines of a name and a median in nanoseconds. scripts/bench runs it.
 *
 * vector: 512 maps of 4 KiB of registered shared memory in one IOASID_VECTOR; 512 maps directly.
 * move: a device goes from one IOASID to another, which maps 1000 times 4 KiB of shared memory
 *   (detach and attach); directly, everything is unmapped and 1000 times 4 KiB are mapped.
 */
#include "vfio.h"

#define ROUNDS	41
#define IOVA	0x10000000UL
#define VECTOR	512
#define MAPPINGS	1000

static unsigned char *memory;
static int node, container;

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void map_directly(size_t count)
{
	struct vfio_iommu_type1_dma_map dma_map = {
		.argsz = sizeof(dma_map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.size = PAGE,
	};

	for (size_t i = 0; i < count; i++) {
		dma_map.vaddr = (uintptr_t)memory + i * PAGE;
		dma_map.iova = IOVA + 2 * i * PAGE;
		if (ioctl(container, VFIO_IOMMU_MAP_DMA, &dma_map) < 0)
			die("VFIO cannot map: %s", strerror(errno));
	}
}

static void unmap_directly(void)
{
	struct vfio_iommu_type1_dma_unmap dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.flags = VFIO_DMA_UNMAP_FLAG_ALL,
	};

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &dma_unmap) < 0)
		die("VFIO cannot unmap: %s", strerror(errno));
}

static void vector(__u32 ioasid)
{
	static struct ioasid_op ops[VECTOR];
	struct ioasid_vector all = {
		.argsz = sizeof(all),
		.ioasid = ioasid,
		.nr_ops = VECTOR,
		.ops = (uintptr_t)ops,
	};

	for (size_t i = 0; i < VECTOR; i++)
		ops[i] = (struct ioasid_op){
			.op = IOASID_OP_MAP,
			.flags = MAP_BOTH,
			.vaddr = (uintptr_t)memory + i * PAGE,
			.iova = IOVA + 2 * i * PAGE,
			.size = PAGE,
		};
	must(node, IOASID_VECTOR, &all, "VECTOR");
	if (all.nr_done != VECTOR)
		die("VECTOR did %u of %u operations", all.nr_done, VECTOR);
}

static void unmap_all(__u32 ioasid)
{
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.flags = IOASID_UNMAP_ALL,
		.ioasid = ioasid,
	};

	must(node, IOASID_UNMAP_DMA, &dma_unmap, "UNMAP_DMA of all");
}

static void report(const char *name, double *seconds)
{
	qsort(seconds, ROUNDS, sizeof(*seconds), by_size);
	printf("%s %.0f\n", name, seconds[ROUNDS / 2] * 1e9);
}

int main(int argc, char **argv)
{
	static double through[ROUNDS], directly[ROUNDS];
	int group, memfd;
	__u32 device, from, to;
	size_t size = MAPPINGS * PAGE;
	double begin;

	if (argc != 6 || (strcmp(argv[1], "vector") && strcmp(argv[1], "move")))
		die("usage: see the head of tests/c/bench-many.c");
	memfd = memfd_create("bench", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, size) < 0)
		die("no memory: %s", strerror(errno));
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (memory == MAP_FAILED)
		die("no memory: %s", strerror(errno));
	memset(memory, 1, size);
	node = open_node(argv[2]);
	device = bind_group(node, open_group(argv[4]), argv[3], 0);
	from = alloc_ioasid(node);
	attach(node, device, from);
	group = open_group(argv[5]);
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (container < 0 || ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0 ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		die("no container for the group: %s", strerror(errno));

	if (!strcmp(argv[1], "vector")) {
		struct ioasid_register_memory range = {
			.argsz = sizeof(range), .vaddr = (uintptr_t)memory, .size = size,
		};

		must(node, IOASID_REGISTER_MEMORY, &range, "REGISTER_MEMORY");
		for (int i = -2; i < ROUNDS; i++) {
			begin = now();
			vector(from);
			if (i >= 0)
				through[i] = now() - begin;
			unmap_all(from);
			begin = now();
			map_directly(VECTOR);
			if (i >= 0)
				directly[i] = now() - begin;
			unmap_directly();
		}
	} else {
		to = alloc_ioasid(node);
		detach(node, device, from);
		attach(node, device, to);
		for (size_t i = 0; i < MAPPINGS; i++)
			map(node, to, IOVA + 2 * i * PAGE, memory + i * PAGE, PAGE, MAP_BOTH);
		detach(node, device, to);
		attach(node, device, from);
		map(node, from, IOVA, memory, PAGE, MAP_BOTH);
		map_directly(MAPPINGS);
		for (int i = -2; i < ROUNDS; i++) {
			begin = now();
			detach(node, device, from);
			attach(node, device, to);
			if (i >= 0)
				through[i] = now() - begin;
			detach(node, device, to);
			attach(node, device, from);
			begin = now();
			unmap_directly();
			map_directly(MAPPINGS);
			if (i >= 0)
				directly[i] = now() - begin;
		}
	}
	report("through", through);
	report("direct", directly);
	return 0;
}
