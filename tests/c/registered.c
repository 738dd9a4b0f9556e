/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * registered NODE DEVICE [--unprivileged] [--disk DIRECTORY]
 *
 * Memory that is registered before it is mapped. DEVICE is written as in device.h.
 *
 * Rules: registered ranges of a process do not overlap, and are unregistered as they were
 * registered, when nothing in them is mapped. Once there is one, memory is mapped from inside one
 * of them only; files by their descriptors are mapped as ever. A range belongs to the process that
 * registered it, and not to its children. It is pinned from its registration until it is
 * unregistered, or the node is closed: what the process does to its mapping of a file makes no
 * difference. What cannot be pinned, or what the program itself may not write, is not registered.
 *
 * --unprivileged: the daemon runs without privilege, and so may itself not lock much.
 * --disk: a directory on a disk (ext4, xfs), where a file can be made.
 */
#include "device.h"

#include <sys/ptrace.h>
#include <sys/wait.h>

#define GPA		0x100000UL
#define SIZE		(16 * PAGE)
#define HUGE_SIZE	(2 * MIB)
#define MUCH		(256 * MIB)
#define NOT_MUCH	(2 * MIB)	/* RLIMIT_MEMLOCK is 8 MiB in most places */
#define WATCHED		(32 * MIB)	/* to be told from what else happens on the machine */
#define BETWEEN		0x100000UL	/* from one IOVA to the next */

static struct device device;
static int node;
static __u32 ioasid;
static bool has_private, unprivileged;

static struct ioasid_register_memory range(const volatile void *memory, size_t size)
{
	struct ioasid_register_memory range = {
		.argsz = sizeof(range),
		.vaddr = (uintptr_t)memory,
		.size = size,
	};

	return range;
}

static void register_memory(int on, const volatile void *memory, size_t size, const char *what)
{
	struct ioasid_register_memory to_register = range(memory, size);
	char doing[128];

	snprintf(doing, sizeof(doing), "REGISTER_MEMORY of %s", what);
	must(on, IOASID_REGISTER_MEMORY, &to_register, doing);
}

static void unregister(int on, const volatile void *memory, size_t size, const char *what)
{
	struct ioasid_register_memory to_unregister = range(memory, size);
	char doing[128];

	snprintf(doing, sizeof(doing), "UNREGISTER_MEMORY of %s", what);
	must(on, IOASID_UNREGISTER_MEMORY, &to_unregister, doing);
}

static void register_is_refused(const volatile void *memory, size_t size, int error,
				const char *what)
{
	struct ioasid_register_memory to_register = range(memory, size);
	char doing[128];

	snprintf(doing, sizeof(doing), "REGISTER_MEMORY of %s", what);
	must_refuse(node, IOASID_REGISTER_MEMORY, &to_register, error, doing);
}

static void unregister_is_refused(const volatile void *memory, size_t size, int error,
				  const char *what)
{
	struct ioasid_register_memory to_unregister = range(memory, size);
	char doing[128];

	snprintf(doing, sizeof(doing), "UNREGISTER_MEMORY of %s", what);
	must_refuse(node, IOASID_UNREGISTER_MEMORY, &to_unregister, error, doing);
}

static void map_is_refused(const void *memory, size_t size, const char *what)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, size, MAP_BOTH);
	char doing[128];

	snprintf(doing, sizeof(doing), "MAP_DMA of %s", what);
	must_refuse(node, IOASID_MAP_DMA, &dma_map, EFAULT, doing);
}

static void map_file(__u64 iova, int fd, size_t size)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, NULL, size, MAP_BOTH);

	dma_map.flags |= IOASID_MAP_FILE;
	dma_map.fd = fd;
	must(node, IOASID_MAP_DMA, &dma_map, "MAP_DMA of a file by its descriptor");
}

static unsigned char *private_memory(size_t size)
{
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("no memory: %s", strerror(errno));
	return memory;
}

static unsigned char *map_again(int fd, size_t size)
{
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	return memory;
}

static int memfd(size_t size, unsigned int flags)
{
	int fd = memfd_create("registered", MFD_CLOEXEC | flags);

	if (fd < 0 || ftruncate(fd, size) < 0)
		return -1;
	return fd;
}

/* Bytes both ways at the first and at the last page of what is mapped. */
static void bytes_go_both_ways(__u64 iova, unsigned char *look, size_t size, const char *what)
{
	size_t places[] = { 30, size - PAGE + 30 };
	unsigned char sent[700], seen[700] = { 0 };

	for (int i = 0; i < 2; i++) {
		fill(look + places[i], sizeof(seen), 40 + i);
		if (!device_reads(&device, ioasid, iova + places[i], seen, sizeof(seen)))
			die("%s: DMA read failed. %s", what, explanation(node));
		must_equal(seen, look + places[i], sizeof(seen), what);
		fill(sent, sizeof(sent), 50 + i);
		if (!device_writes(&device, ioasid, iova + places[i], sent, sizeof(sent)))
			die("%s: DMA write failed. %s", what, explanation(node));
		must_equal(look + places[i], sent, sizeof(sent), what);
	}
	ok("%s is reached in both directions", what);
}

/* ------------------------------------------------------------------ */
/* Shapes and places                                                    */
/* ------------------------------------------------------------------ */

static void shapes(unsigned char *memory)
{
	struct ioasid_register_memory with_flags = range(memory, SIZE);

	register_is_refused(memory, 0, EINVAL, "no bytes");
	register_is_refused(memory + 8, PAGE, EINVAL, "misaligned memory");
	register_is_refused(memory, PAGE + 8, EINVAL, "a part of a page");
	register_is_refused(by_value(-PAGE), 2 * PAGE, EOVERFLOW, "a range that wraps");
	register_is_refused(by_value(0), PAGE, EFAULT, "memory that is not there");
	with_flags.flags = 1;
	must_refuse(node, IOASID_REGISTER_MEMORY, &with_flags, EINVAL,
		    "REGISTER_MEMORY with an unknown flag");
	unregister_is_refused(memory, SIZE, ENOENT, "what was never registered");
	unregister_is_refused(memory + 8, PAGE, EINVAL, "misaligned memory");
}

static void overlaps(unsigned char *memory)
{
	unsigned char *middle = memory + 4 * PAGE;

	register_memory(node, middle, 4 * PAGE, "a piece");
	register_is_refused(middle, 4 * PAGE, EEXIST, "the same again");
	register_is_refused(middle + PAGE, PAGE, EEXIST, "a part of it");
	register_is_refused(middle - PAGE, 2 * PAGE, EEXIST, "what ends in it");
	register_is_refused(middle + 3 * PAGE, 2 * PAGE, EEXIST, "what begins in it");
	register_is_refused(memory, 16 * PAGE, EEXIST, "all around it");
	register_memory(node, memory, 4 * PAGE, "the piece below");
	register_memory(node, middle + 4 * PAGE, 4 * PAGE, "the piece above");
	ok("neighbours do not overlap");

	map_is_refused(memory, 8 * PAGE, "a range over two registered ones");
	map_is_refused(middle + 4 * PAGE, 5 * PAGE, "what ends behind a registered range");
	unregister_is_refused(middle, PAGE, ENOENT, "a part of what was registered");
	unregister_is_refused(middle + PAGE, 3 * PAGE, ENOENT, "the rest of it");
	unregister_is_refused(memory, 8 * PAGE, ENOENT, "two registered ranges at once");
	unregister(node, middle, 4 * PAGE, "a piece");
	unregister_is_refused(middle, 4 * PAGE, ENOENT, "the same again");
	register_memory(node, middle, 4 * PAGE, "a piece once more");
	unregister(node, middle, 4 * PAGE, "a piece");
	unregister(node, memory, 4 * PAGE, "the piece below");
	unregister(node, middle + 4 * PAGE, 4 * PAGE, "the piece above");
	ok("ranges are unregistered as they were registered");
}

/* ------------------------------------------------------------------ */
/* Mapping                                                              */
/* ------------------------------------------------------------------ */

/* The window of an edu device has to be registered with the rest. */
static void register_window(void)
{
	if (device.is_edu)
		register_memory(node, device.window, PAGE, "the window of the device");
}

static void unregister_window(void)
{
	if (device.is_edu)
		unregister(node, device.window, PAGE, "the window of the device");
}

static void mapped_from(unsigned char *memory, unsigned char *look, size_t size, const char *what)
{
	char part[128];

	register_window();
	register_memory(node, memory, size, what);
	map(node, ioasid, GPA, memory, size, MAP_BOTH);
	bytes_go_both_ways(GPA, look, size, what);
	unregister_is_refused(memory, size, EBUSY, "what is mapped");
	map(node, ioasid, GPA + MUCH / 2, memory + size - 3 * PAGE, 3 * PAGE, MAP_BOTH);
	unmap(node, ioasid, GPA, size);
	unregister_is_refused(memory, size, EBUSY, "what is mapped in part");
	snprintf(part, sizeof(part), "the end of %s", what);
	bytes_go_both_ways(GPA + MUCH / 2, look + size - 3 * PAGE, 3 * PAGE, part);
	unmap(node, ioasid, GPA + MUCH / 2, 3 * PAGE);
	unregister(node, memory, size, what);
	unregister_window();
}

static void only_registered_memory_is_mapped(unsigned char *memory)
{
	unsigned char *other = shared_memory(SIZE), *look;
	int fd = memfd(SIZE, 0);

	map(node, ioasid, GPA, other, SIZE, MAP_BOTH);
	register_memory(node, memory, SIZE, "memory");
	if (unmap(node, ioasid, GPA, SIZE) != SIZE)
		die("what was mapped before the registration cannot be unmapped");
	map_is_refused(other, SIZE, "other memory");
	if (has_private)
		map_is_refused(private_memory(SIZE), SIZE, "other private memory");
	if (has_extension(node, IOASID_EXT_FILE_MEMORY)) {
		look = map_again(fd, SIZE);
		register_window();
		map_file(GPA, fd, SIZE);
		bytes_go_both_ways(GPA, look, SIZE,
				   "a file by its descriptor, beside registered memory,");
		unmap(node, ioasid, GPA, SIZE);
		munmap(look, SIZE);
		unregister_window();
	}
	unregister(node, memory, SIZE, "memory");
	map(node, ioasid, GPA, other, SIZE, MAP_BOTH);
	/* What was mapped before is no user of what is registered afterwards. */
	register_memory(node, other, SIZE, "what is mapped already");
	unregister(node, other, SIZE, "what was mapped before");
	unmap(node, ioasid, GPA, SIZE);
	ok("when all is unregistered, all can be mapped again");
	munmap(other, SIZE);
	close(fd);
}

/* What the program does to its own mapping changes nothing about what is registered. */
static void memory_that_goes(void)
{
	int fd = memfd(SIZE, 0);
	unsigned char *memory = map_again(fd, SIZE), *look = map_again(fd, SIZE), *private;
	struct ioasid_map_dma dma_map;
	unsigned char seen[16];

	register_window();
	register_memory(node, memory, SIZE, "a memfd");
	munmap(memory, SIZE);
	close(fd);
	map(node, ioasid, GPA, memory + 4 * PAGE, 8 * PAGE, MAP_BOTH);
	bytes_go_both_ways(GPA, look + 4 * PAGE, 8 * PAGE,
			   "a registered memfd that the program has unmapped");
	unmap(node, ioasid, GPA, 8 * PAGE);
	unregister(node, memory, SIZE, "a memfd that the program has unmapped");
	munmap(look, SIZE);
	if (has_private) {
		private = private_memory(SIZE);
		register_memory(node, private, SIZE, "private memory");
		munmap(private, SIZE);
		dma_map = mapping(ioasid, GPA, private, SIZE, MAP_BOTH);
		if (device.is_edu) {
			must_refuse(node, IOASID_MAP_DMA, &dma_map, EFAULT,
				    "MAP_DMA of registered private memory that was unmapped");
		} else if (!ioctl(node, IOASID_MAP_DMA, &dma_map)) {
			if (device_reads(&device, ioasid, GPA, seen, sizeof(seen)))
				die("simulated DMA reaches private memory that was unmapped");
			unmap(node, ioasid, GPA, SIZE);
			ok("simulated DMA to registered private memory that was unmapped faults");
		}
		unregister(node, private, SIZE, "private memory that the program has unmapped");
	}
	unregister_window();
	ok("what the program has unmapped can be unregistered");
}

/* ------------------------------------------------------------------ */
/* What cannot be registered                                            */
/* ------------------------------------------------------------------ */

static void what_may_not_be_written(void)
{
	int fd = memfd(SIZE, MFD_ALLOW_SEALING);
	unsigned char *memory = map_again(fd, SIZE);

	if (mprotect(memory, SIZE, PROT_READ) < 0)
		die("mprotect failed: %s", strerror(errno));
	register_is_refused(memory, SIZE, EPERM, "a memfd that the program may only read");
	munmap(memory, SIZE);
	memory = map_again(fd, SIZE);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0)
		register_is_refused(memory, SIZE, EPERM, "a memfd that was sealed");
	munmap(memory, SIZE);
	close(fd);
	if (!has_private)
		return;
	memory = private_memory(SIZE);
	munmap(memory + 5 * PAGE, PAGE);
	register_is_refused(memory, SIZE, EFAULT, "memory with a hole");
	munmap(memory, SIZE);
	memory = private_memory(SIZE);
	if (mprotect(memory + PAGE, PAGE, PROT_READ) < 0)
		die("mprotect failed: %s", strerror(errno));
	register_is_refused(memory, SIZE, EPERM, "private memory that the program may only read");
	if (mprotect(memory + PAGE, PAGE, PROT_NONE) < 0)
		die("mprotect failed: %s", strerror(errno));
	register_is_refused(memory, SIZE, EFAULT, "private memory that nobody can access");
	munmap(memory, SIZE);
}

static void what_cannot_be_pinned(const char *disk)
{
	unsigned char *memory;
	char path[256];
	int fd;

	if (disk) {
		snprintf(path, sizeof(path), "%s/registered-XXXXXX", disk);
		fd = mkostemp(path, O_CLOEXEC);
		unlink(path);
		if (fd < 0 || ftruncate(fd, SIZE) < 0)
			die("cannot make a file in %s: %s", disk, strerror(errno));
		memory = map_again(fd, SIZE);
		register_is_refused(memory, SIZE, EOPNOTSUPP, "a file on disk");
		munmap(memory, SIZE);
		close(fd);
	}
	if (device.is_edu)
		register_is_refused(device.registers, PAGE, EOPNOTSUPP, "the registers of a device");
}

/* While a debugger is at the program, nobody else can have it pin its private memory. */
static void while_being_traced(void)
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		unsigned char *shared = shared_memory(SIZE);

		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(0);
		register_is_refused(private_memory(SIZE), SIZE, EBUSY,
				    "private memory of a program that is being traced");
		register_memory(node, shared, SIZE, "a memfd of a program that is being traced");
		unregister(node, shared, SIZE, "a memfd of a program that is being traced");
		fflush(stdout);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || status)
		die("the traced program has failed");
}

/* ------------------------------------------------------------------ */
/* Children                                                             */
/* ------------------------------------------------------------------ */

static void children_inherit_nothing(unsigned char *memory)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, PAGE, MAP_BOTH);
	int status;
	pid_t child;

	register_memory(node, memory, SIZE, "the parent's memory");
	fflush(stdout);
	child = fork();
	if (!child) {
		must_refuse(node, IOASID_MAP_DMA, &dma_map, EFAULT,
			    "MAP_DMA by a child of what its parent has registered");
		unregister_is_refused(memory, SIZE, ENOENT,
				      "what the parent has registered, by a child,");
		register_memory(node, memory, SIZE, "the same memory of the child");
		map(node, ioasid, GPA, memory, PAGE, MAP_BOTH);
		unmap(node, ioasid, GPA, PAGE);
		unregister(node, memory, SIZE, "the same memory of the child");
		fflush(stdout);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || status)
		die("the child has failed");
	map(node, ioasid, GPA, memory, PAGE, MAP_BOTH);
	unmap(node, ioasid, GPA, PAGE);
	unregister(node, memory, SIZE, "the parent's memory");
	ok("parent and child each have their own registered ranges");

	/* What a process leaves registered stays so until the close. */
	fflush(stdout);
	child = fork();
	if (!child) {
		register_memory(node, memory, SIZE, "memory of a child that ends");
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || status)
		die("the child has failed");
	map_is_refused(shared_memory(PAGE), PAGE,
		       "other memory, after a process has ended that registered some,");
	unregister_is_refused(memory, SIZE, ENOENT, "what a child that has ended registered");
}

/* ------------------------------------------------------------------ */
/* Pins                                                                 */
/* ------------------------------------------------------------------ */

static void pins_return_to(long before, const char *when)
{
	double began = now();

	while (pinned_pages() > before + (long)(WATCHED / PAGE / 2)) {
		if (now() > began + 10)
			die("10 s after %s, %ld pages are pinned instead of %ld", when,
			    pinned_pages(), before);
		sleep_ms(20);
	}
	ok("%s lets go of the pages (seen after %.0f ms)", when, (now() - began) * 1e3);
}

static void pages_are_pinned(const char *path, unsigned char *memory, size_t size, const char *what)
{
	long before = pinned_pages(), during;
	int other = open_node(path);

	if (before < 0 || geteuid()) {
		printf("skipped: pins: %s\n", before < 0 ? "/proc/vmstat does not count them" :
		       "only root can have them counted at once");
		close(other);
		return;
	}
	register_memory(other, memory, size, what);
	during = pinned_pages();
	if (during - before < (long)(size / PAGE))
		die("%s has %lu pages, and %ld more than before are pinned", what, size / PAGE,
		    during - before);
	ok("%s of %lu pages: %ld more are pinned", what, size / PAGE, during - before);
	unregister(other, memory, size, what);
	pins_return_to(before, "UNREGISTER_MEMORY");
	register_memory(other, memory, size, what);
	close(other);
	pins_return_to(before, "close");
}

/* ------------------------------------------------------------------ */

static void a_lot_of_memory(void)
{
	size_t size = unprivileged ? NOT_MUCH : MUCH, most = size - size / 16;
	unsigned char *memory = shared_memory(size);
	struct ioasid_info info;
	double began = now(), registered, mapped;

	register_window();
	register_memory(node, memory, size, "a lot of memory");
	registered = now();
	for (int i = 0; i < 8; i++)
		map(node, ioasid, GPA + i * BETWEEN, memory + size - PAGE, PAGE, MAP_BOTH);
	for (int i = 0; i < 8; i++)
		unmap(node, ioasid, GPA + i * BETWEEN, PAGE);
	map(node, ioasid, GPA, memory, most, MAP_BOTH);
	mapped = now();
	info = get_info(node, ioasid);
	if (info.locked_bytes || info.locked_used < size)
		die("%zu registered bytes are mapped; %llu are locked, %llu for the IOASID", size,
		    info.locked_used, info.locked_bytes);
	bytes_go_both_ways(GPA, memory, most, "a lot of memory");
	unmap(node, ioasid, GPA, most);
	unregister(node, memory, size, "a lot of memory");
	unregister_window();
	munmap(memory, size);
	ok("%zu MiB registered in %.1f ms, and mapped in %.1f ms", size / MIB,
	   (registered - began) * 1e3, (mapped - registered) * 1e3);
}

static void huge_pages(void)
{
	int fd = memfd(2 * HUGE_SIZE, MFD_HUGETLB);
	unsigned char *memory = MAP_FAILED;

	if (fd >= 0)
		memory = mmap(NULL, 2 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		printf("skipped: huge pages: %s\n", strerror(errno));
		return;
	}
	mapped_from(memory, memory, 2 * HUGE_SIZE, "registered huge pages");
	mapped_from(memory + HUGE_SIZE - 5 * PAGE, memory + HUGE_SIZE - 5 * PAGE, 10 * PAGE,
		    "a registered part of huge pages");
	munmap(memory, 2 * HUGE_SIZE);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *disk = NULL;
	unsigned char *memory;
	int next = 2;

	if (argc < 3)
		die("usage: registered NODE DEVICE [--unprivileged] [--disk DIRECTORY]");
	next += take_device(argv + next, &device);
	for (; next < argc; next++) {
		if (!strcmp(argv[next], "--unprivileged"))
			unprivileged = true;
		else if (!strcmp(argv[next], "--disk") && next + 1 < argc)
			disk = argv[++next];
		else
			die("%s is no option", argv[next]);
	}
	node = open_node(argv[1]);
	if (!has_extension(node, IOASID_EXT_REGISTER_MEMORY)) {
		memory = shared_memory(PAGE);
		register_is_refused(memory, PAGE, EOPNOTSUPP, "memory, where none can be registered,");
		skip("the node cannot register memory");
	}
	has_private = has_extension(node, IOASID_EXT_PRIVATE_MEMORY);
	bind_device(&device, node);
	ioasid = alloc_ioasid(node);
	attach(node, device.id, ioasid);

	memory = shared_memory(SIZE);
	shapes(memory);
	overlaps(memory);
	mapped_from(memory, memory, SIZE, "a registered memfd");
	if (has_private) {
		unsigned char *private = private_memory(SIZE);

		mapped_from(private, private, SIZE, "registered private memory");
		/* A piece of each kind in one range. */
		if (mmap(private + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_FIXED | MAP_SHARED, memfd(4 * PAGE, 0), 0) == MAP_FAILED)
			die("mmap failed: %s", strerror(errno));
		mapped_from(private, private, SIZE, "a registered range of several kinds");
		munmap(private, SIZE);
	}
	huge_pages();
	only_registered_memory_is_mapped(memory);
	memory_that_goes();
	what_may_not_be_written();
	what_cannot_be_pinned(disk);
	if (has_private)
		while_being_traced();
	a_lot_of_memory();
	if (!unprivileged)
		pages_are_pinned(argv[1], shared_memory(WATCHED), WATCHED, "a memfd");
	if (has_private && !unprivileged) {
		unsigned char *private = private_memory(WATCHED);

		madvise(private, WATCHED, MADV_NOHUGEPAGE);
		pages_are_pinned(argv[1], private, WATCHED, "private memory");
	}
	children_inherit_nothing(memory);
	return 0;
}
