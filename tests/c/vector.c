/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * vector NODE DEVICE [COUNT]
 *
 * IOASID_VECTOR: many maps and unmaps in one call. DEVICE is written as in device.h.
 *
 * Rules: operations are done in order, each as MAP_DMA or UNMAP_DMA would; the first that fails
 * ends the call with its errno and explanation, nr_done says how many were done before it, and
 * these stay done; memory of any kind can be in one call; on a child, addresses are the parent's.
 * What is wrong with the call itself is found before anything is done.
 *
 * COUNT (default 4): how many times 2048 pages are mapped and unmapped, at the end, to say what
 * that costs in one call and in many.
 */
#include "reach.h"

#define GUEST		(16 * MIB)
#define IOVA		(32 * MIB)

static int node;
static struct device device;
static __u32 ioasid;
static struct ioasid_op ops[IOASID_VECTOR_MAX + 1];

static struct ioasid_op map_op(__u64 iova, const void *memory, size_t size, __u32 flags)
{
	struct ioasid_op op = {
		.op = IOASID_OP_MAP,
		.flags = flags,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	return op;
}

static struct ioasid_op unmap_op(__u64 iova, size_t size)
{
	struct ioasid_op op = { .op = IOASID_OP_UNMAP, .iova = iova, .size = size };

	return op;
}

static struct ioasid_op unmap_all_op(void)
{
	struct ioasid_op op = { .op = IOASID_OP_UNMAP, .flags = IOASID_UNMAP_ALL };

	return op;
}

static struct ioasid_vector vector_of(__u32 count)
{
	struct ioasid_vector vector = {
		.argsz = sizeof(vector),
		.ioasid = ioasid,
		.nr_ops = count,
		.ops = (uintptr_t)ops,
		.nr_done = 0xdead,
	};

	return vector;
}

static void must_do(__u32 count, const char *what)
{
	struct ioasid_vector vector = vector_of(count);

	must(node, IOASID_VECTOR, &vector, what);
	if (vector.nr_done != count)
		die("%s: %u of %u operations were done", what, vector.nr_done, count);
}

/* The call has to end with `error` after `done` operations, and the op structures stay as they are. */
static void must_stop(__u32 count, __u32 done, int error, const char *what)
{
	static struct ioasid_op as_given[IOASID_VECTOR_MAX + 1];
	struct ioasid_vector vector = vector_of(count);

	memcpy(as_given, ops, sizeof(ops));
	must_refuse(node, IOASID_VECTOR, &vector, error, what);
	if (vector.nr_done != done)
		die("%s: nr_done is %u instead of %u", what, vector.nr_done, done);
	must_equal((unsigned char *)ops, (unsigned char *)as_given, sizeof(ops), "the operations");
}

static void holds(__u64 mappings, __u64 bytes, const char *when)
{
	struct ioasid_info info = get_info(node, ioasid);
	__u64 of_the_window = device.is_edu;

	if (info.nr_mappings != mappings + of_the_window ||
	    info.mapped_bytes != bytes + of_the_window * PAGE || info.work_total)
		die("%s: the IOASID holds %llu mappings of %llu bytes", when, info.nr_mappings,
		    info.mapped_bytes);
}

static void clear(void)
{
	unmap(node, ioasid, IOVA, 64 * MIB);
	holds(0, 0, "after everything was unmapped");
}

/* ------------------------------------------------------------------ */

static void in_order(void)
{
	/* Each makes sense only after those before it. */
	ops[0] = map_op(IOVA, guest, 4 * PAGE, MAP_BOTH);
	ops[1] = unmap_op(IOVA, 4 * PAGE);
	ops[2] = map_op(IOVA, guest + 8 * PAGE, 2 * PAGE, MAP_BOTH);
	ops[3] = map_op(IOVA + 2 * PAGE, guest + 16 * PAGE, 2 * PAGE, IOASID_MAP_READ);
	ops[4] = unmap_op(IOVA + 8 * PAGE, PAGE);	/* nothing, which is no error */
	must_do(5, "VECTOR of maps and unmaps of the same place");
	reaches(&device, IOVA, 8 * PAGE, MAP_BOTH, "what was mapped second");
	reaches(&device, IOVA + 2 * PAGE, 16 * PAGE, IOASID_MAP_READ, "a read-only mapping");
	faults(&device, IOVA + 4 * PAGE, "behind them");
	holds(2, 4 * PAGE, "after a vector");
	ops[0] = unmap_op(IOVA, 4 * PAGE);
	ops[1] = map_op(IOVA + 4 * PAGE, guest, PAGE, MAP_BOTH);
	must_do(2, "VECTOR");
	faults(&device, IOVA, "unmapped by a vector");
	reaches(&device, IOVA + 4 * PAGE, 0, MAP_BOTH, "mapped by the same");
	clear();
	ok("operations are done in order, and each as it would be by itself");
}

static void stops_at_the_first_failure(void)
{
	for (__u32 i = 0; i < 8; i++)
		ops[i] = map_op(IOVA + i * PAGE, guest + i * PAGE, PAGE, MAP_BOTH);
	ops[5] = map_op(IOVA + 3 * PAGE, guest, PAGE, MAP_BOTH);
	must_stop(8, 5, EEXIST, "VECTOR over a mapping of its own");
	holds(5, 5 * PAGE, "after a vector that has stopped");
	reaches(&device, IOVA + 3 * PAGE, 3 * PAGE, MAP_BOTH, "done before the failure");
	reaches(&device, IOVA + 4 * PAGE, 4 * PAGE, MAP_BOTH, "done before the failure");
	faults(&device, IOVA + 6 * PAGE, "not done after the failure");
	/* The rest, from nr_done on, can be done. */
	memmove(ops, ops + 6, 2 * sizeof(*ops));
	must_do(2, "VECTOR of the rest");
	reaches(&device, IOVA + 7 * PAGE, 7 * PAGE, MAP_BOTH, "the rest");
	clear();

	ops[0] = map_op(IOVA, guest, PAGE, 0);
	must_stop(2, 0, EINVAL, "VECTOR whose first operation fails");
	holds(0, 0, "after a vector that has done nothing");
	ops[0] = map_op(IOVA, guest, 4 * PAGE, MAP_BOTH);
	ops[1] = unmap_op(IOVA + PAGE, PAGE);
	must_stop(2, 1, EINVAL, "VECTOR that splits a mapping");
	ops[0] = unmap_op(IOVA, 4 * PAGE);
	ops[1] = map_op(IOVA, (void *)PAGE, PAGE, MAP_BOTH);
	must_stop(2, 1, EFAULT, "VECTOR of memory that is not there");
	ops[0] = map_op(IOVA, guest, PAGE, MAP_BOTH);
	ops[1] = map_op(IOVA + 1, guest, PAGE, MAP_BOTH);
	must_stop(2, 1, EINVAL, "VECTOR of an IOVA that is not aligned");
	ops[0] = unmap_op(IOVA, PAGE);
	ops[1] = map_op(-PAGE, guest, 2 * PAGE, MAP_BOTH);
	must_stop(2, 1, EOVERFLOW, "VECTOR of IOVAs that wrap");
	holds(0, 0, "after failures");
	ok("the first failure ends a vector; what was done before stays done, and is counted");
}

/* Of an operation: what it is not, and fields that it does not use. */
static void wrong_operations(void)
{
	struct { const char *what; struct ioasid_op op; int error; } wrong[] = {
		{ "VECTOR of an unknown operation", map_op(IOVA, guest, PAGE, MAP_BOTH), EINVAL },
		{ "VECTOR of operation 0", map_op(IOVA, guest, PAGE, MAP_BOTH), EINVAL },
		{ "VECTOR with a reserved field", map_op(IOVA, guest, PAGE, MAP_BOTH), EINVAL },
		{ "VECTOR of a map with an unknown flag", map_op(IOVA, guest, PAGE, 0x103), EINVAL },
		{ "VECTOR of a map with an unused fd", map_op(IOVA, guest, PAGE, MAP_BOTH), EINVAL },
		{ "VECTOR of a map of no descriptor", map_op(IOVA + PAGE, NULL, PAGE, 7), EBADF },
		{ "VECTOR of an unmap with an unknown flag", unmap_op(IOVA, PAGE), EINVAL },
		{ "VECTOR of an unmap with DIRTY", unmap_op(IOVA, PAGE), EINVAL },
		{ "VECTOR of an unmap with vaddr", unmap_op(IOVA, PAGE), EINVAL },
		{ "VECTOR of an unmap with fd", unmap_op(IOVA, PAGE), EINVAL },
		{ "VECTOR of an unmap of nothing", unmap_op(IOVA, 0), EINVAL },
		{ "VECTOR of an unmap of all, with a range", unmap_all_op(), EINVAL },
	};

	wrong[0].op.op = 3;
	wrong[1].op.op = 0;
	wrong[2].op.__reserved = 1;
	wrong[4].op.fd = 3;
	wrong[5].op.fd = 1000;
	wrong[6].op.flags = 1 << 7;
	wrong[7].op.flags = IOASID_UNMAP_DIRTY;
	wrong[8].op.vaddr = PAGE;
	wrong[9].op.fd = 3;
	wrong[11].op.size = PAGE;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		ops[0] = map_op(IOVA, guest, PAGE, MAP_BOTH);
		ops[1] = wrong[i].op;
		ops[2] = map_op(IOVA + 2 * PAGE, guest, PAGE, MAP_BOTH);
		must_stop(3, 1, wrong[i].error, wrong[i].what);
		holds(1, PAGE, wrong[i].what);
		clear();
	}
}

/* What is wrong with the call itself: nothing is done. */
static void wrong_calls(void)
{
	struct ioasid_vector vector;
	unsigned char *page;

	for (__u32 i = 0; i <= IOASID_VECTOR_MAX; i++)
		ops[i] = map_op(IOVA + i * PAGE, guest + i * PAGE, PAGE, MAP_BOTH);
	vector = vector_of(0);
	must_refuse(node, IOASID_VECTOR, &vector, EINVAL, "VECTOR of no operations");
	vector = vector_of(IOASID_VECTOR_MAX + 1);
	must_refuse(node, IOASID_VECTOR, &vector, EINVAL, "VECTOR of too many operations");
	vector = vector_of(-1);
	must_refuse(node, IOASID_VECTOR, &vector, EINVAL, "VECTOR of 2^32 - 1 operations");
	vector = vector_of(1);
	vector.flags = 1;
	must_refuse(node, IOASID_VECTOR, &vector, EINVAL, "VECTOR with an unknown flag");
	vector = vector_of(1);
	vector.__reserved = 1;
	must_refuse(node, IOASID_VECTOR, &vector, EINVAL, "VECTOR with its reserved field");
	vector = vector_of(1);
	vector.ioasid = 12345;
	must_refuse(node, IOASID_VECTOR, &vector, ENOENT, "VECTOR on no IOASID");
	vector = vector_of(1);
	vector.ioasid = alloc_ioasid(node);
	must_refuse(node, IOASID_VECTOR, &vector, ENODEV, "VECTOR on an IOASID without a device");
	free_ioasid(node, vector.ioasid);
	vector = vector_of(1);
	vector.ops = PAGE;
	must_refuse(node, IOASID_VECTOR, &vector, EFAULT, "VECTOR of operations that are nowhere");

	/* Only the first of two operations is all in memory. */
	page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || munmap(page + PAGE, PAGE) < 0)
		die("mmap failed: %s", strerror(errno));
	page += PAGE - sizeof(*ops) - 8;
	memcpy(page, ops, sizeof(*ops));
	vector = vector_of(2);
	vector.ops = (uintptr_t)page;
	must_refuse(node, IOASID_VECTOR, &vector, EFAULT, "VECTOR of operations half of which are nowhere");
	holds(0, 0, "after calls that are wrong");

	/* A vector that cannot be told how much was done is not begun. */
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	vector = vector_of(1);
	memcpy(page, &vector, sizeof(vector));
	mprotect(page, PAGE, PROT_READ);
	must_refuse(node, IOASID_VECTOR, page, EFAULT, "VECTOR that cannot be written");
	holds(0, 0, "after a vector that cannot be written");
	ok("a call that is wrong is refused before anything is done");
}

static void as_many_as_may_be(void)
{
	for (__u32 i = 0; i < IOASID_VECTOR_MAX; i++)
		ops[i] = map_op(IOVA + i * PAGE, guest + (IOASID_VECTOR_MAX - 1 - i) * PAGE, PAGE,
				MAP_BOTH);
	must_do(IOASID_VECTOR_MAX, "VECTOR of as many operations as may be");
	holds(IOASID_VECTOR_MAX, IOASID_VECTOR_MAX * PAGE, "after as many operations as may be");
	reaches(&device, IOVA, (IOASID_VECTOR_MAX - 1) * PAGE, MAP_BOTH, "the first of many");
	reaches(&device, IOVA + (IOASID_VECTOR_MAX - 1) * PAGE, 0, MAP_BOTH, "the last of many");
	/* Unmap-all in the middle; what follows finds an empty address space. */
	ops[0] = unmap_op(IOVA, PAGE);
	ops[1] = map_op(IOVA, guest, PAGE, MAP_BOTH);
	ops[2] = unmap_all_op();
	ops[3] = map_op(IOVA, guest + 5 * PAGE, PAGE, MAP_BOTH);
	ops[4] = map_op(WINDOW_IOVA, window, PAGE, MAP_BOTH);
	must_do(device.is_edu ? 5 : 4, "VECTOR that unmaps all");
	holds(1, PAGE, "after unmap-all in the middle of a vector");
	reaches(&device, IOVA, 5 * PAGE, MAP_BOTH, "mapped after unmap-all");
	faults(&device, IOVA + PAGE, "unmapped by unmap-all");
	clear();
	ok("%u operations in one call, and an unmap-all among others", IOASID_VECTOR_MAX);
}

/* Memory of every kind in one call: private, shared, files by their descriptors. */
static void every_kind(void)
{
	unsigned char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("vector", MFD_CLOEXEC);
	unsigned char expected[SAMPLE], seen[SAMPLE], *file;
	__u32 nr = 0, nr_private = 0;

	if (fd < 0 || ftruncate(fd, 2 * PAGE) < 0)
		die("cannot make a memfd: %s", strerror(errno));
	file = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (private == MAP_FAILED || file == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	fill(private, 4 * PAGE, 91);
	fill(file, 2 * PAGE, 92);

	ops[nr++] = map_op(IOVA, guest, PAGE, MAP_BOTH);
	if (has_extension(node, IOASID_EXT_PRIVATE_MEMORY)) {
		ops[nr++] = map_op(IOVA + PAGE, private, 2 * PAGE, MAP_BOTH);
		nr_private = 2;
	}
	ops[nr] = map_op(IOVA + 3 * PAGE, (void *)PAGE, PAGE, MAP_BOTH | IOASID_MAP_FILE);
	ops[nr++].fd = fd;
	ops[nr++] = map_op(IOVA + 4 * PAGE, guest + 4 * PAGE, PAGE, MAP_BOTH);
	if (nr_private)
		ops[nr++] = map_op(IOVA + 5 * PAGE, private + 3 * PAGE, PAGE, IOASID_MAP_READ);
	must_do(nr, "VECTOR of memory of every kind");
	holds(nr, (3 + nr_private + !!nr_private) * PAGE, "memory of every kind");
	reaches(&device, IOVA, 0, MAP_BOTH, "shared memory");
	reaches(&device, IOVA + 4 * PAGE, 4 * PAGE, MAP_BOTH, "shared memory after other kinds");
	for (int i = 0; i < 3; i++) {
		static const __u64 at[] = { 3 * PAGE, 2 * PAGE, 5 * PAGE };
		const unsigned char *memory[] = { file + PAGE, private + PAGE, private + 3 * PAGE };

		if (i && !nr_private)
			break;
		memcpy(expected, memory[i], SAMPLE);
		if (device.is_edu) {
			edu_read(device.registers, IOVA + at[i], BUFFER_READ, SAMPLE);
			see_buffer(&device, BUFFER_READ, seen, "memory of every kind");
		} else if (simulated_dma(node, device.id, IOASID_SIM_DMA_READ, IOVA + at[i], seen,
					 SAMPLE, NULL)) {
			die("DMA to memory of every kind: %s", explanation(node));
		}
		must_equal(seen, expected, SAMPLE, "memory of every kind");
	}

	/* A failure behind private memory: it is seen by a thread that is led, and by others. */
	clear();
	ops[nr++] = map_op(IOVA, guest, PAGE, MAP_BOTH);
	must_stop(nr, nr - 1, EEXIST, "VECTOR that fails after memory of every kind");
	holds(nr - 1, (3 + nr_private + !!nr_private) * PAGE, "memory of every kind, and a failure");
	reaches(&device, IOVA + 4 * PAGE, 4 * PAGE, MAP_BOTH, "done before the failure");
	/* And memory that is gone in the middle. */
	if (nr_private) {
		clear();
		munmap(private + PAGE, PAGE);
		must_stop(nr - 1, 1, EFAULT, "VECTOR of private memory that is not all there");
		holds(1, PAGE, "private memory that is not there");
	}
	clear();
	munmap(private, 4 * PAGE);
	munmap(file, 2 * PAGE);
	close(fd);
	ok("shared memory, private memory and files in one call%s",
	   nr_private ? "" : " (skipped: private memory)");
}

static void on_a_child(void)
{
	__u32 parent = ioasid;

	map(node, parent, IOVA, guest, GUEST, MAP_BOTH);
	ioasid = create_nesting(node, parent);
	attach(node, device.id, ioasid);
	ops[0] = map_op(IOVA + 64 * PAGE, (void *)IOVA, PAGE, MAP_BOTH);
	ops[1] = map_op(IOVA + 65 * PAGE, (void *)(IOVA + 5 * PAGE), PAGE, IOASID_MAP_READ);
	ops[2] = map_op(WINDOW_IOVA, (void *)WINDOW_IOVA, PAGE, MAP_BOTH);
	must_do(2 + device.is_edu, "VECTOR on a child");
	reaches(&device, IOVA + 64 * PAGE, 0, MAP_BOTH, "a child's mapping");
	reaches(&device, IOVA + 65 * PAGE, 5 * PAGE, IOASID_MAP_READ, "a child's mapping");
	faults(&device, IOVA, "what only the parent maps");
	ops[0] = unmap_op(IOVA + 64 * PAGE, PAGE);
	ops[1] = map_op(IOVA + 64 * PAGE, NULL, PAGE, MAP_BOTH | IOASID_MAP_FILE);
	must_stop(2, 1, EINVAL, "VECTOR of a file on a child");
	faults(&device, IOVA + 64 * PAGE, "unmapped in a child");
	detach(node, device.id, ioasid);
	free_ioasid(node, ioasid);
	ioasid = parent;
	clear();
	ok("on a child, addresses are the parent's");
}

/* What one call costs, and many. */
static void compare(unsigned long count)
{
	double in_one = 0, in_many = 0, begin;

	for (unsigned long round = 0; round < count; round++) {
		for (__u32 i = 0; i < IOASID_VECTOR_MAX; i++)
			ops[i] = map_op(IOVA + i * PAGE, guest + i * PAGE, PAGE, MAP_BOTH);
		begin = now();
		must_do(IOASID_VECTOR_MAX, "VECTOR");
		for (__u32 i = 0; i < IOASID_VECTOR_MAX; i++)
			ops[i] = unmap_op(IOVA + i * PAGE, PAGE);
		must_do(IOASID_VECTOR_MAX, "VECTOR");
		in_one += now() - begin;
		if (round)
			continue;
		begin = now();
		for (__u32 i = 0; i < IOASID_VECTOR_MAX; i++)
			map(node, ioasid, IOVA + i * PAGE, guest + i * PAGE, PAGE, MAP_BOTH);
		for (__u32 i = 0; i < IOASID_VECTOR_MAX; i++)
			unmap(node, ioasid, IOVA + i * PAGE, PAGE);
		in_many = now() - begin;
	}
	holds(0, 0, "after many vectors");
	ok("a map and an unmap of a page take %.1f us in a vector, %.1f us by themselves",
	   in_one / count / IOASID_VECTOR_MAX * 1e6, in_many / IOASID_VECTOR_MAX * 1e6);
}

int main(int argc, char **argv)
{
	unsigned long count = 4;
	int next = 2;

	if (argc < 3)
		die("usage: vector NODE DEVICE [COUNT]");
	next += take_device(argv + next, &device);
	if (argv[next])
		count = number(argv[next++]);
	if (next != argc || !count)
		die("usage: vector NODE DEVICE [COUNT]");
	make_guest(GUEST);
	node = open_node(argv[1]);
	bind_device(&device, node);
	if (!has_extension(node, IOASID_EXT_VECTOR))
		skip("the node takes no vectors");
	ioasid = alloc_ioasid(node);
	attach(node, device.id, ioasid);
	map_window(&device, ioasid);
	load(&device);

	in_order();
	stops_at_the_first_failure();
	wrong_operations();
	wrong_calls();
	as_many_as_may_be();
	every_kind();
	if (has_extension(node, IOASID_EXT_NESTING))
		on_a_child();
	compare(count);
	return 0;
}
