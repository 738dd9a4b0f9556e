/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * dirty NODE DEVICE
 *
 * Which pages devices have written: IOASID_DIRTY, and UNMAP_DMA with a bitmap. A simulated device
 * is tracked to the page. Of a real one VFIO type1 says that every page which it has pinned may have
 * been written, each time anew. The device is written as in device.h.
 */
#include "device.h"

#include <pthread.h>

#define IOVA	0x100000UL
#define OTHER	0x400000UL		/* where a child maps, and a second mapping is */
#define PAGES	200UL
#define SIZE	(PAGES * PAGE)
#define WORDS	8			/* room for 512 pages */
#define ROUNDS	500
#define NONE	((struct bits){ { 0 } })

struct bits {
	__u64 word[WORDS];
};

static int node;
static struct device device;
static unsigned char *memory;

static struct ioasid_dirty order(__u32 ioasid, __u32 flags, __u64 iova, __u64 size, struct bits *bits)
{
	struct ioasid_dirty dirty = { .argsz = sizeof(dirty), .flags = flags, .ioasid = ioasid };

	if (flags == IOASID_DIRTY_READ) {
		dirty.iova = iova;
		dirty.size = size;
		dirty.page_size = PAGE;
		dirty.bitmap = (uintptr_t)bits;
		dirty.bitmap_size = (size / PAGE + 63) / 64 * 8;
	}
	return dirty;
}

static void track(__u32 ioasid, bool on)
{
	struct ioasid_dirty dirty = order(ioasid, on ? IOASID_DIRTY_START : IOASID_DIRTY_STOP, 0, 0, NULL);

	must(node, IOASID_DIRTY, &dirty, on ? "DIRTY_START" : "DIRTY_STOP");
	if (!(get_info(node, ioasid).flags & IOASID_INFO_TRACKING) == on)
		die("GET_INFO does not tell whether pages are tracked");
}

static void add(struct bits *bits, unsigned long first, unsigned long last)
{
	for (unsigned long bit = first; bit <= last; bit++)
		bits->word[bit / 64] |= 1ULL << bit % 64;
}

static struct bits pages(unsigned long first, unsigned long last)
{
	struct bits bits = NONE;

	add(&bits, first, last);
	return bits;
}

/* What may have been written of a range whose pages `first` to `last` are mapped. */
static struct bits expected(struct bits exactly, unsigned long first, unsigned long last)
{
	return device.is_edu ? pages(first, last) : exactly;
}

static void same(const struct bits *got, struct bits wanted, __u64 size, const char *what)
{
	size_t bytes = (size / PAGE + 63) / 64 * 8;

	for (unsigned long bit = 0; bit < 8 * bytes; bit++)
		if ((got->word[bit / 64] ^ wanted.word[bit / 64]) >> bit % 64 & 1)
			die("%s: page %lu is %sset", what, bit,
			    wanted.word[bit / 64] >> bit % 64 & 1 ? "not " : "");
	if (!all_bytes_are((const unsigned char *)got + bytes, sizeof(*got) - bytes, 0xaa))
		die("%s: what lies behind the bitmap was written", what);
}

static void reads(__u32 ioasid, __u64 iova, __u64 size, struct bits wanted, const char *what)
{
	struct bits got;
	struct ioasid_dirty dirty = order(ioasid, IOASID_DIRTY_READ, iova, size, &got);

	memset(&got, 0xaa, sizeof(got));
	must(node, IOASID_DIRTY, &dirty, what);
	same(&got, wanted, size, what);
}

/* Unmaps with a bitmap. Gives how many bytes were unmapped. */
static __u64 unmaps(__u32 ioasid, __u64 iova, __u64 size, struct bits wanted, const char *what)
{
	struct bits got;
	struct ioasid_unmap_dma unmap = {
		.argsz = sizeof(unmap),
		.flags = IOASID_UNMAP_DIRTY,
		.ioasid = ioasid,
		.iova = iova,
		.size = size,
		.page_size = PAGE,
		.bitmap = (uintptr_t)&got,
		.bitmap_size = (size / PAGE + 63) / 64 * 8,
	};

	memset(&got, 0xaa, sizeof(got));
	must(node, IOASID_UNMAP_DMA, &unmap, what);
	same(&got, wanted, size, what);
	return unmap.size;
}

static void writes(__u32 ioasid, __u64 iova, size_t size)
{
	static unsigned char bytes[PAGE];

	while (size) {
		size_t most = EDU_TRANSFER_MAX < PAGE ? EDU_TRANSFER_MAX : PAGE;
		size_t part = size < most ? size : most;

		if (!device_writes(&device, ioasid, iova, bytes, part))
			die("the device cannot write at %#llx. %s", (unsigned long long)iova,
			    explanation(node));
		iova += part;
		size -= part;
	}
}

static __u32 attached(void)
{
	__u32 ioasid = alloc_ioasid(node);

	attach(node, device.id, ioasid);
	return ioasid;
}

static void give_back(__u32 ioasid)
{
	detach(node, device.id, ioasid);
	free_ioasid(node, ioasid);
}

/* Read-and-clear, to the page, at the edges of words and of the range. */
static void check_reads(void)
{
	static unsigned char seen[64];
	__u32 ioasid = attached();
	struct bits bits = NONE;

	map(node, ioasid, IOVA, memory, SIZE, MAP_BOTH);
	writes(ioasid, IOVA, 1);
	track(ioasid, true);
	track(ioasid, true);
	reads(ioasid, IOVA, SIZE, expected(NONE, 0, PAGES - 1), "what was written before the start");
	if (!device_reads(&device, ioasid, IOVA + PAGE, seen, sizeof(seen)))
		die("the device cannot read. %s", explanation(node));
	reads(ioasid, IOVA, SIZE, expected(NONE, 0, PAGES - 1), "what was read only");
	writes(ioasid, IOVA, 1);
	writes(ioasid, IOVA + 63 * PAGE + 4000, 200);
	writes(ioasid, IOVA + 128 * PAGE - 1, 1);
	writes(ioasid, IOVA + SIZE - 1, 1);
	add(&bits, 0, 0);
	add(&bits, 63, 64);
	add(&bits, 127, 127);
	add(&bits, PAGES - 1, PAGES - 1);
	/* A part of the mapping, and none of the rest is taken. */
	reads(ioasid, IOVA + 64 * PAGE, PAGE, expected(pages(0, 0), 0, 0), "one page");
	reads(ioasid, IOVA + 65 * PAGE, 62 * PAGE, expected(NONE, 0, 61), "pages between");
	bits.word[1] &= ~1ULL;
	reads(ioasid, IOVA, SIZE, expected(bits, 0, PAGES - 1), "the others");
	reads(ioasid, IOVA, SIZE, expected(NONE, 0, PAGES - 1), "the same again");
	/* Beyond the mapping on both sides. */
	writes(ioasid, IOVA + PAGE, 10);
	reads(ioasid, IOVA - 100 * PAGE, 400 * PAGE, expected(pages(101, 101), 100, 100 + PAGES - 1),
	      "a range around the mapping");
	reads(ioasid, 1UL << 60, PAGE, NONE, "a range outside the aperture");
	/* STOP forgets. */
	writes(ioasid, IOVA + 2 * PAGE, 10);
	track(ioasid, false);
	track(ioasid, false);
	writes(ioasid, IOVA + 3 * PAGE, 10);
	track(ioasid, true);
	reads(ioasid, IOVA, SIZE, expected(NONE, 0, PAGES - 1), "what was written before a new start");
	give_back(ioasid);
	ok("pages that were written are told once, and no others");
}

static void check_faulting(void)
{
	unsigned char bytes[3 * PAGE] = { 0 };
	__u32 ioasid = attached();
	size_t done = 0;

	map(node, ioasid, IOVA, memory, 2 * PAGE, MAP_BOTH);
	map(node, ioasid, IOVA + 3 * PAGE, memory, PAGE, IOASID_MAP_READ);
	track(ioasid, true);
	if (simulated_dma(node, device.id, IOASID_SIM_DMA_WRITE, IOVA + PAGE + 100, bytes,
			  sizeof(bytes), &done) != EIO || done != PAGE - 100)
		die("a write into nothing moved %zu bytes", done);
	if (simulated_dma(node, device.id, IOASID_SIM_DMA_WRITE, IOVA + 3 * PAGE, bytes, 1, &done) != EIO)
		die("a write to read-only memory got through");
	reads(ioasid, IOVA, 8 * PAGE, pages(1, 1), "what was written before a fault");
	give_back(ioasid);
	ok("of DMA that faults only what was moved is told");
}

static void check_unmaps(void)
{
	struct ioasid_op ops[] = { {
		.op = IOASID_OP_UNMAP, .iova = IOVA, .size = 4 * PAGE,
	}, {
		.op = IOASID_OP_MAP, .flags = MAP_BOTH, .vaddr = (uintptr_t)memory, .iova = OTHER, .size = PAGE,
	} };
	struct ioasid_vector vector = {
		.argsz = sizeof(vector), .nr_ops = 2, .ops = (uintptr_t)ops,
	};
	__u32 ioasid = attached();

	track(ioasid, true);
	map(node, ioasid, IOVA, memory, 4 * PAGE, MAP_BOTH);
	map(node, ioasid, IOVA + 6 * PAGE, memory, PAGE, MAP_BOTH);
	writes(ioasid, IOVA + 2 * PAGE, 1);
	if (unmaps(ioasid, IOVA - PAGE, 70 * PAGE,
		   device.is_edu ? (struct bits){ { 0x9e } } : pages(3, 3), "an unmap") != 5 * PAGE)
		die("an unmap with a bitmap does not tell how much it unmapped");
	reads(ioasid, IOVA - PAGE, 70 * PAGE, NONE, "what was told by an unmap");
	if (unmaps(ioasid, IOVA, PAGE, NONE, "an unmap of nothing"))
		die("an unmap of nothing unmaps something");
	map(node, ioasid, IOVA, memory, 4 * PAGE, MAP_BOTH);
	reads(ioasid, IOVA, 4 * PAGE, expected(NONE, 0, 3), "a new mapping");
	/* Unmaps that ask for nothing lose nothing. */
	writes(ioasid, IOVA + PAGE, 1);
	unmap(node, ioasid, IOVA, 4 * PAGE);
	reads(ioasid, IOVA, 4 * PAGE, expected(pages(1, 1), 0, 3), "what was unmapped");
	reads(ioasid, IOVA, 4 * PAGE, NONE, "the same again");
	map(node, ioasid, IOVA, memory, 4 * PAGE, MAP_BOTH);
	writes(ioasid, IOVA + 3 * PAGE, 1);
	vector.ioasid = ioasid;
	must(node, IOASID_VECTOR, &vector, "VECTOR");
	writes(ioasid, OTHER, 1);
	reads(ioasid, IOVA, 4 * PAGE, expected(pages(3, 3), 0, 3), "what VECTOR unmapped");
	reads(ioasid, OTHER, PAGE, pages(0, 0), "what VECTOR mapped");
	give_back(ioasid);
	ok("unmaps lose nothing of what was written");
}

static void refuses(struct ioasid_dirty dirty, int error, const char *what)
{
	must_refuse(node, IOASID_DIRTY, &dirty, error, what);
}

static void check_errors(void)
{
	struct bits bits = NONE;
	void *readable = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	__u32 ioasid = alloc_ioasid(node);
	struct ioasid_dirty good = order(ioasid, IOASID_DIRTY_READ, IOVA, 65 * PAGE, &bits), bad;
	struct ioasid_dirty start = order(ioasid, IOASID_DIRTY_START, 0, 0, NULL);
	struct ioasid_unmap_dma unmap = {
		.argsz = sizeof(unmap), .flags = IOASID_UNMAP_DIRTY, .ioasid = ioasid, .iova = IOVA,
		.size = SIZE, .page_size = PAGE, .bitmap = (uintptr_t)&bits, .bitmap_size = 32,
	}, wrong;

	if (readable == MAP_FAILED)
		die("mmap");
	refuses(start, ENODEV, "START before a device is attached");
	refuses(good, ENODEV, "READ before a device is attached");
	attach(node, device.id, ioasid);
	map(node, ioasid, IOVA, memory, SIZE, MAP_BOTH);
	refuses(good, EINVAL, "READ without tracking");
	must_refuse(node, IOASID_UNMAP_DMA, &unmap, EINVAL, "UNMAP with a bitmap without tracking");
	track(ioasid, true);
	writes(ioasid, IOVA + 5 * PAGE, 1);
#define BAD(base, change, error, what) do { bad = base; bad.change; refuses(bad, error, what); } while (0)
	BAD(good, ioasid = 0x7fffffff, ENOENT, "READ of no IOASID");
	BAD(start, ioasid = 0x7fffffff, ENOENT, "START of no IOASID");
	BAD(start, flags = 0, EINVAL, "no flag");
	BAD(start, flags = IOASID_DIRTY_START | IOASID_DIRTY_STOP, EINVAL, "two flags");
	BAD(start, flags = 1 << 3, EINVAL, "an unknown flag");
	BAD(start, __reserved = 1, EINVAL, "START with a reserved field");
	BAD(start, iova = PAGE, EINVAL, "START with an iova");
	BAD(start, size = PAGE, EINVAL, "START with a size");
	BAD(start, page_size = PAGE, EINVAL, "START with a page_size");
	BAD(start, bitmap = PAGE, EINVAL, "START with a bitmap");
	BAD(start, bitmap_size = 8, EINVAL, "START with a bitmap_size");
	BAD(start, argsz = sizeof(bad) - 1, EINVAL, "START with a short argsz");
	BAD(good, page_size = 0, EINVAL, "READ with page_size 0");
	BAD(good, page_size = 2 * PAGE, EINVAL, "READ with a page_size that is none");
	BAD(good, page_size = 2 * MIB, EINVAL, "READ with another page_size");
	BAD(good, iova = IOVA + 1, EINVAL, "READ at a misaligned iova");
	BAD(good, size = PAGE + 1, EINVAL, "READ of a misaligned size");
	BAD(good, size = 0, EINVAL, "READ of nothing");
	BAD(good, bitmap_size = 15, EINVAL, "READ with a bitmap_size that is too small");
	BAD(good, size = (IOASID_DIRTY_PAGES_MAX + 1ULL) * PAGE, EINVAL, "READ of too many pages");
	BAD(good, iova = -PAGE, EOVERFLOW, "READ of what wraps");
	BAD(good, bitmap = PAGE, EFAULT, "READ to nowhere");
	BAD(good, bitmap = (uintptr_t)readable, EFAULT, "READ to where nothing can be written");
	wrong = unmap;
	wrong.bitmap_size = 31;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EINVAL, "UNMAP with a bitmap that is too small");
	wrong = unmap;
	wrong.page_size = 2 * MIB;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EINVAL, "UNMAP with another page_size");
	wrong = unmap;
	wrong.flags |= IOASID_UNMAP_ALL;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EINVAL, "UNMAP of all with a bitmap");
	wrong = unmap;
	wrong.flags = 0;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EINVAL, "UNMAP with a bitmap and without the flag");
	wrong = unmap;
	wrong.size -= PAGE;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EINVAL, "UNMAP of a part with a bitmap");
	wrong = unmap;
	wrong.bitmap = PAGE;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EFAULT, "UNMAP with a bitmap nowhere");
	wrong.bitmap = (uintptr_t)readable;
	must_refuse(node, IOASID_UNMAP_DMA, &wrong, EFAULT, "UNMAP with a bitmap that cannot be written");
	if (get_info(node, ioasid).nr_mappings != 1)
		die("a refused UNMAP has unmapped something");
	/* Nothing was taken by what was refused. */
	reads(ioasid, IOVA, SIZE, expected(pages(5, 5), 0, PAGES - 1), "what was written before");
	munmap(readable, PAGE);
	give_back(ioasid);
	ok("a refused command takes nothing of what was written");
}

static void check_nesting(void)
{
	__u32 parent = attached(), child, grandchild;

	map(node, parent, IOVA, memory, 100 * PAGE, MAP_BOTH);
	child = must(node, IOASID_CREATE_NESTING, by_value(parent), "CREATE_NESTING");
	attach(node, device.id, child);
	map(node, child, OTHER, (void *)(IOVA + 10 * PAGE), 8 * PAGE, MAP_BOTH);
	track(parent, true);
	track(child, true);
	writes(child, OTHER + 2 * PAGE, 1);
	reads(child, OTHER, 8 * PAGE, expected(pages(2, 2), 0, 7), "the child's");
	/* What one was told is not taken from the other. */
	reads(parent, IOVA, 100 * PAGE, expected(pages(12, 12), 10, 17), "the parent's");
	writes(child, OTHER + 3 * PAGE, 1);
	reads(parent, IOVA, 100 * PAGE, expected(pages(13, 13), 10, 17), "the parent's first");
	reads(child, OTHER, 8 * PAGE, expected(pages(3, 3), 0, 7), "the child's after it");
	reads(child, IOVA, 100 * PAGE, NONE, "the parent's addresses in the child");

	/* Two levels, of which the middle one does not ask. */
	track(child, false);
	grandchild = must(node, IOASID_CREATE_NESTING, by_value(child), "CREATE_NESTING");
	attach(node, device.id, grandchild);
	map(node, grandchild, IOVA, (void *)(OTHER + 4 * PAGE), 2 * PAGE, MAP_BOTH);
	writes(grandchild, IOVA + PAGE, 1);
	reads(parent, IOVA, 100 * PAGE, expected(pages(15, 15), 10, 17), "through two children");

	/* What was written through a child is known when that maps it no more. */
	writes(grandchild, IOVA, 1);
	unmap(node, grandchild, IOVA, 2 * PAGE);
	reads(parent, IOVA, 100 * PAGE, expected(pages(14, 14), 14, 15), "through what was unmapped");
	detach(node, device.id, grandchild);
	free_ioasid(node, grandchild);
	writes(child, OTHER + 7 * PAGE, 1);
	detach(node, device.id, child);
	free_ioasid(node, child);
	reads(parent, IOVA, 100 * PAGE, expected(pages(17, 17), 0, 99), "through what is gone");
	give_back(parent);
	ok("what is written through a child is told of the parent too, and to each by itself");
}

static void check_attaching(void)
{
	__u32 one = attached(), other;

	/* Tracking goes on without a device, and comes to one that is attached later. */
	map(node, one, IOVA, memory, 4 * PAGE, MAP_BOTH);
	track(one, true);
	writes(one, IOVA, 1);
	detach(node, device.id, one);
	reads(one, IOVA, 4 * PAGE, expected(pages(0, 0), 0, 3), "after the device left");
	reads(one, IOVA, 4 * PAGE, NONE, "without a device");
	attach(node, device.id, one);
	writes(one, IOVA + PAGE, 1);
	reads(one, IOVA, 4 * PAGE, expected(pages(1, 1), 0, 3), "after the device came back");
	/* A move: each IOASID keeps its own. */
	writes(one, IOVA + 2 * PAGE, 1);
	detach(node, device.id, one);
	other = attached();
	map(node, other, IOVA, memory + 8 * PAGE, 4 * PAGE, MAP_BOTH);
	writes(other, IOVA + 3 * PAGE, 1);
	track(other, true);
	writes(other, IOVA, 1);
	reads(one, IOVA, 4 * PAGE, expected(pages(2, 2), 0, 3), "what the device left");
	reads(other, IOVA, 4 * PAGE, expected(pages(0, 0), 0, 3), "where the device went");
	detach(node, device.id, other);
	attach(node, device.id, one);
	track(other, false);
	writes(one, IOVA + 3 * PAGE, 1);
	reads(one, IOVA, 4 * PAGE, expected(pages(3, 3), 0, 3), "tracking that ended elsewhere");
	free_ioasid(node, other);
	give_back(one);
	ok("tracking follows devices that are attached and moved");
}

static void check_pasid(void)
{
	struct ioasid_attach_device at_data;
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma), .flags = IOASID_SIM_DMA_WRITE | IOASID_SIM_DMA_PASID,
		.device = device.id, .iova = IOVA + PAGE, .size = 1, .pasid = 7,
		.data = (uintptr_t)memory,
	};
	__u32 plain = attached(), tagged = alloc_ioasid(node);

	at_data = attachment(device.id, tagged);
	at_data.flags = IOASID_ATTACH_USER_PASID;
	at_data.user_pasid = 7;
	must(node, IOASID_ATTACH_DEVICE, &at_data, "ATTACH_DEVICE with a PASID");
	map(node, plain, IOVA, memory, 4 * PAGE, MAP_BOTH);
	map(node, tagged, IOVA, memory, 4 * PAGE, MAP_BOTH);
	track(plain, true);
	track(tagged, true);
	must(node, IOASID_SIM_DMA, &dma, "SIM_DMA with a PASID");
	reads(plain, IOVA, 4 * PAGE, NONE, "the IOASID without the PASID");
	reads(tagged, IOVA, 4 * PAGE, pages(1, 1), "the IOASID of the PASID");
	must(node, IOASID_DETACH_DEVICE, &at_data, "DETACH_DEVICE with a PASID");
	free_ioasid(node, tagged);
	give_back(plain);
	ok("DMA with a PASID is told of the IOASID of the PASID");
}

/* The device writes without end, as fast as it goes, into what is mapped and unmapped meanwhile. */
static volatile bool stop;

static void *writer(void *nothing)
{
	unsigned char byte = 0;

	while (!stop) {
		byte++;
		simulated_dma(node, device.id, IOASID_SIM_DMA_WRITE, IOVA, &byte, 1, NULL);
	}
	return nothing;
}

/* What was written is told by the unmap, or was not written. */
static void check_race(void)
{
	__u32 ioasid = attached();
	pthread_t thread[2];
	unsigned int written = 0;

	track(ioasid, true);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&thread[i], NULL, writer, NULL))
			die("no thread");
	for (int i = 0; i < ROUNDS; i++) {
		struct bits bits = NONE;
		struct ioasid_unmap_dma unmap = {
			.argsz = sizeof(unmap), .flags = IOASID_UNMAP_DIRTY, .ioasid = ioasid,
			.iova = IOVA, .size = PAGE, .page_size = PAGE,
			.bitmap = (uintptr_t)&bits, .bitmap_size = 8,
		};

		memory[0] = 0;
		map(node, ioasid, IOVA, memory, PAGE, MAP_BOTH);
		for (int spin = 0; spin < i % 50; spin++)
			sched_yield();
		must(node, IOASID_UNMAP_DMA, &unmap, "UNMAP with a bitmap");
		if (memory[0] && !bits.word[0])
			die("round %d: the device wrote, and the unmap does not tell", i);
		reads(ioasid, IOVA, PAGE, NONE, "after the unmap");
		written += bits.word[0];
	}
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	give_back(ioasid);
	ok("no write comes between an unmap and its bitmap (%u of %d were in time)", written, ROUNDS);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		die("usage: dirty NODE DEVICE");
	take_device(argv + 2, &device);
	node = open_node(argv[1]);
	if (!has_extension(node, IOASID_EXT_DIRTY_TRACKING))
		skip("the node tracks no dirty pages");
	memory = shared_memory(SIZE);
	bind_device(&device, node);
	check_reads();
	check_unmaps();
	check_errors();
	check_nesting();
	check_attaching();
	if (!device.is_edu) {
		check_faulting();
		check_pasid();
		check_race();
	}
	return 0;
}
