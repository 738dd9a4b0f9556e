/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * memory-kinds NODE DEVICE [--unprivileged] [--peer ADDRESS:GROUP] [--disk DIRECTORY]
 *
 * Which memory of a program devices can reach. Of each kind that works, bytes are compared in
 * the directions that it allows; of each that does not, the error and that it is explained.
 * DEVICE is written as in device.h.
 *
 * Rules: devices reach the very bytes that the program sees, whether it has touched them before
 * or not, and whatever kinds one range crosses; they may do to memory what the program may do to
 * it, and no more; and what the program does to its own mapping later takes nothing from them. A
 * file that is named by a descriptor needs no mapping, and the descriptor says what is permitted;
 * what else of the file is mapped makes no difference, and nothing is left of it with the last
 * mapping.
 * Registers are reached while their device is bound to the same open, and it stays bound for as
 * long as they are mapped.
 *
 * --unprivileged: the daemon runs without privilege, and so finds shared memory only through a
 * descriptor that the program has open. Other shared memory must be refused.
 * --peer: another edu device, in a group of its own, whose registers DEVICE is to reach.
 * --disk: a directory on a disk (ext4, xfs), where a file can be made.
 */
#include "device.h"

#include <linux/magic.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#define GPA		0x100000UL
#define KEPT		0x8000000UL	/* where something stays mapped meanwhile */
#define HUGE_SIZE	(2 * MIB)
#define MOVED		1500UL		/* bytes in each transfer */
#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

static struct device device;
static __u32 ioasid;
static unsigned int failures, skipped;
static bool unprivileged;	/* is the daemon */

PRINTF static void failed(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("FAILED: ");
	vprintf(format, arguments);
	printf("\n");
	fflush(stdout);
	va_end(arguments);
	failures++;
}

PRINTF static void cannot_show(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("skipped: ");
	vprintf(format, arguments);
	printf("\n");
	fflush(stdout);
	va_end(arguments);
	skipped++;
}

/* What is to be mapped: memory of the program, or of a file that is open. */
struct range {
	const void *memory;
	bool is_file;
	int fd;
	__u64 offset;
	size_t size;
};

static struct range memory_range(const void *memory, size_t size)
{
	return (struct range){ .memory = memory, .size = size };
}

static struct range file_range(int fd, __u64 offset, size_t size)
{
	return (struct range){ .is_file = true, .fd = fd, .offset = offset, .size = size };
}

/* Tries to map; gives the errno. */
static int try_range(struct range range, __u32 flags)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, range.memory, range.size, flags);

	if (range.is_file) {
		dma_map.flags |= IOASID_MAP_FILE;
		dma_map.fd = range.fd;
		dma_map.vaddr = range.offset;
	}
	return ioctl(device.node, IOASID_MAP_DMA, &dma_map) < 0 ? errno : 0;
}

static int try_map(const void *memory, size_t size, __u32 flags)
{
	return try_range(memory_range(memory, size), flags);
}

static void must_unmap(size_t size)
{
	__u64 unmapped = unmap(device.node, ioasid, GPA, size);

	if (unmapped != size)
		failed("UNMAP_DMA gave %llu bytes instead of %zu", unmapped, size);
}

/*
 * Maps a range and moves bytes in each direction of `flags`, at each of the places. `look` is
 * where the program sees the same bytes: the range itself, or another mapping of it. Reading comes
 * first, so that memory which is not to be touched before the device does is mapped for WRITE alone.
 */
static void works_at(const char *kind, struct range range, unsigned char *look, __u32 flags,
		     const size_t *places, size_t nr_places)
{
	unsigned char sent[MOVED], seen[MOVED];
	int error = try_range(range, flags);

	if (error) {
		failed("%s: MAP_DMA gave \"%s\": %s", kind, strerror(error),
		       explanation(device.node));
		return;
	}
	for (size_t i = 0; i < nr_places; i++) {
		if (flags & IOASID_MAP_READ) {
			memset(seen, 0, sizeof(seen));
			if (!device_reads(&device, ioasid, GPA + places[i], seen, sizeof(seen)) ||
			    memcmp(seen, look + places[i], sizeof(seen))) {
				failed("%s: at %zu the device read other bytes than the program has",
				       kind, places[i]);
				break;
			}
		}
		if (flags & IOASID_MAP_WRITE) {
			fill(sent, sizeof(sent), 100 + i);
			if (!device_writes(&device, ioasid, GPA + places[i], sent, sizeof(sent)) ||
			    memcmp(look + places[i], sent, sizeof(sent))) {
				failed("%s: at %zu the program has other bytes than the device wrote",
				       kind, places[i]);
				break;
			}
		}
		if (i == nr_places - 1)
			ok("%s works", kind);
	}
	must_unmap(range.size);
}

/* At the first and at the last page. */
static void range_works(const char *kind, struct range range, unsigned char *look, __u32 flags)
{
	size_t places[] = { 100, range.size - PAGE + 100 };

	works_at(kind, range, look, flags, places, range.size > PAGE ? 2 : 1);
}

static void works(const char *kind, unsigned char *memory, unsigned char *look, size_t size,
		  __u32 flags)
{
	range_works(kind, memory_range(memory, size), look, flags);
}

static void range_is_refused(const char *kind, struct range range, __u32 flags, int error)
{
	int got = try_range(range, flags);
	const char *why = got ? explanation(device.node) : "";

	if (got != error)
		failed("%s: MAP_DMA gave \"%s\" instead of \"%s\": %s", kind, strerror(got),
		       strerror(error), why);
	else if (!*why)
		failed("%s is refused as it should be, but this was not explained", kind);
	else
		ok("%s is refused (%s): %s", kind, strerror(got), why);
	if (!got)
		must_unmap(range.size);
}

static void is_refused(const char *kind, const void *memory, size_t size, __u32 flags, int error)
{
	range_is_refused(kind, memory_range(memory, size), flags, error);
}

/* Private memory, with the given places in it. */
static void private_works_at(const char *kind, unsigned char *memory, size_t size, __u32 flags,
			     const size_t *places, size_t nr_places)
{
	if (has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		works_at(kind, memory_range(memory, size), memory, flags, places, nr_places);
	else
		is_refused(kind, memory, size, flags, EOPNOTSUPP);
}

static void private_works(const char *kind, unsigned char *memory, size_t size, __u32 flags)
{
	size_t places[] = { 100, size - PAGE + 100 };

	private_works_at(kind, memory, size, flags, places, size > PAGE ? 2 : 1);
}

/* Memory at an address of any alignment, with the pages that it lies in. */
static void unaligned_works(const char *kind, unsigned char *begin, size_t size)
{
	unsigned char *first = (unsigned char *)((uintptr_t)begin & ~(PAGE - 1));
	unsigned char *end = begin + size;
	size_t whole = ((end - first) + PAGE - 1) & ~(PAGE - 1);
	size_t places[] = { begin - first, end - first - MOVED };

	private_works_at(kind, first, whole, MAP_BOTH, places, 2);
}

/* Shared memory of which the program has no descriptor. */
static void works_without_descriptor(const char *kind, unsigned char *memory, size_t size)
{
	if (unprivileged)
		is_refused(kind, memory, size, MAP_BOTH, EOPNOTSUPP);
	else
		works(kind, memory, memory, size, MAP_BOTH);
}

/* ------------------------------------------------------------------ */
/* Making memory                                                        */
/* ------------------------------------------------------------------ */

static unsigned char *map_file(int fd, size_t size, int protection, int flags)
{
	unsigned char *memory = mmap(NULL, size, protection, flags, fd, 0);

	if (memory == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	return memory;
}

static int memfd(size_t size, unsigned int flags)
{
	int fd = memfd_create("memory-kinds", MFD_CLOEXEC | flags);
	unsigned char *memory;

	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot make a memfd: %s", strerror(errno));
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	fill(memory, size, 5);
	munmap(memory, size);
	return fd;
}

/* A file on tmpfs, opened for reading and writing. */
static int tmpfs_file(size_t size, char path[64])
{
	unsigned char *memory;
	int fd;

	strcpy(path, "/dev/shm/memory-kinds-XXXXXX");
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot make a file in /dev/shm: %s", strerror(errno));
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	fill(memory, size, 6);
	munmap(memory, size);
	return fd;
}

/* ------------------------------------------------------------------ */
/* The kinds                                                            */
/* ------------------------------------------------------------------ */

static void shared_kinds(void)
{
	size_t size = 64 * KIB;
	unsigned char *memory;
	char path[64];
	int fd;

	fd = memfd(size, 0);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	works("a memfd", memory, memory, size, MAP_BOTH);
	works("a memfd that devices may only read", memory, memory, size, IOASID_MAP_READ);
	works("a memfd that devices may only write", memory, memory, size, IOASID_MAP_WRITE);
	works("a piece in the middle of a memfd", memory + 3 * PAGE, memory + 3 * PAGE, 5 * PAGE,
	      MAP_BOTH);
	munmap(memory, size);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 7 * PAGE);
	works("a memfd that the program maps from an offset", memory, memory, 4 * PAGE, MAP_BOTH);
	munmap(memory, 4 * PAGE);
	close(fd);

	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
	fill(memory, size, 7);
	works_without_descriptor("shared anonymous memory", memory, size);
	munmap(memory, size);

	fd = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
	memory = fd < 0 ? (void *)-1 : shmat(fd, NULL, 0);
	if (memory == (void *)-1) {
		cannot_show("System V shared memory: %s", strerror(errno));
	} else {
		shmctl(fd, IPC_RMID, NULL);
		fill(memory, size, 8);
		works_without_descriptor("System V shared memory", memory, size);
		shmdt(memory);
	}

	fd = tmpfs_file(size, path);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	works("a file on tmpfs", memory, memory, size, MAP_BOTH);
	unlink(path);
	works("a file without a name any more", memory, memory, size, MAP_BOTH);
	munmap(memory, size);
	close(fd);
}

/* Devices may do to memory what the program may do to it, and no more. */
static void read_only_sources(void)
{
	size_t size = 8 * PAGE;
	char path[64];
	unsigned char *memory, *writable;
	int fd = tmpfs_file(size, path), read_only;

	read_only = open(path, O_RDONLY | O_CLOEXEC);
	unlink(path);
	if (read_only < 0)
		die("cannot open %s again: %s", path, strerror(errno));
	memory = map_file(read_only, size, PROT_READ, MAP_SHARED);
	works("a file opened read-only, for reading,", memory, memory, size, IOASID_MAP_READ);
	is_refused("a file opened read-only, for writing,", memory, size, IOASID_MAP_WRITE, EPERM);
	is_refused("a file opened read-only, for both,", memory, size, MAP_BOTH, EPERM);
	munmap(memory, size);
	memory = map_file(fd, size, PROT_READ, MAP_SHARED);
	is_refused("a read-only mapping of a writable file, for writing,", memory, size,
		   IOASID_MAP_WRITE, EPERM);
	munmap(memory, size);
	close(read_only);
	close(fd);

	fd = memfd(size, MFD_ALLOW_SEALING);
	writable = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0) {
		cannot_show("a sealed memfd: %s", strerror(errno));
	} else {
		memory = map_file(fd, size, PROT_READ, MAP_SHARED);
		is_refused("a memfd with F_SEAL_FUTURE_WRITE, for writing,", memory, size,
			   IOASID_MAP_WRITE, EPERM);
		is_refused("one that was mapped writable before the seal, for writing,", writable,
			   size, IOASID_MAP_WRITE, EPERM);
		works("one, for reading,", memory, memory, size, IOASID_MAP_READ);
		munmap(memory, size);
	}
	munmap(writable, size);
	close(fd);
}

/* What compilers and the C library give a program. */
static void program_memory(void)
{
	static const size_t sizes[] = { 3000, 40 * KIB, 300 * KIB, 5 * MIB };
	static unsigned char data[3 * PAGE] = { 1, 2, 3 }, bss[3 * PAGE];
	static const unsigned char constant[3 * PAGE] = { 4, 5, 6 };
	const size_t in_constant[] = { PAGE + 8 };
	unsigned char stack[5000], *memory;
	char what[64];
	size_t whole;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		memory = malloc(sizes[i]);
		if (!memory)
			die("no memory");
		fill(memory, sizes[i], 30 + i);
		snprintf(what, sizeof(what), "%zu bytes of malloc", sizes[i]);
		unaligned_works(what, memory, sizes[i]);
		free(memory);
	}
	fill(stack, sizeof(stack), 40);
	unaligned_works("an array on the stack", stack, sizeof(stack));
	unaligned_works("an array in .data", data, sizeof(data));
	unaligned_works("an array in .bss that nobody has touched", bss, sizeof(bss));
	memory = (unsigned char *)((uintptr_t)constant & ~(PAGE - 1));
	whole = (constant - memory + sizeof(constant) + PAGE - 1) & ~(PAGE - 1);
	private_works_at("a constant array, for reading,", memory, whole, IOASID_MAP_READ, in_constant,
			 1);

	/* Whoever calls sbrk besides malloc gets memory that malloc leaves alone. */
	if ((uintptr_t)sbrk(0) % PAGE)
		sbrk(PAGE - (uintptr_t)sbrk(0) % PAGE);
	memory = sbrk(8 * PAGE);
	if (memory == (void *)-1) {
		cannot_show("the area behind brk: %s", strerror(errno));
		return;
	}
	fill(memory, 8 * PAGE, 41);
	private_works("the area behind brk", memory, 8 * PAGE, MAP_BOTH);
}

/* Bytes of huge pages in the mapping at an address, as the kernel accounts for them. */
static unsigned long huge_bytes(const void *memory)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long start, end, kib, found = 0;
	bool here = false;
	char line[512];

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (uintptr_t)memory && (uintptr_t)memory < end;
		else if (here && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
			found = kib * KIB;
	}
	if (smaps)
		fclose(smaps);
	return found;
}

static void private_huge_pages(void)
{
	unsigned char *area, *memory;
	char what[96];

	area = map_file(-1, 3 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	memory = (unsigned char *)(((uintptr_t)area + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));
	if (madvise(memory, HUGE_SIZE, MADV_HUGEPAGE) < 0) {
		cannot_show("transparent huge pages: %s", strerror(errno));
	} else {
		fill(memory, HUGE_SIZE, 12);
		snprintf(what, sizeof(what), "private memory for huge pages, of which there are %lu KiB,",
			 huge_bytes(memory) / KIB);
		private_works(what, memory, HUGE_SIZE, MAP_BOTH);
		private_works("a part of it", memory + 5 * PAGE, 9 * PAGE, MAP_BOTH);
	}
	munmap(area, 3 * HUGE_SIZE);

	memory = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (memory == MAP_FAILED) {
		cannot_show("private hugetlb memory: %s", strerror(errno));
		return;
	}
	private_works("private hugetlb memory that nobody has touched", memory, HUGE_SIZE,
		      IOASID_MAP_WRITE);
	fill(memory, HUGE_SIZE, 13);
	private_works("private hugetlb memory", memory, HUGE_SIZE, MAP_BOTH);
	private_works("a part of a private huge page", memory + 100 * PAGE, 7 * PAGE, MAP_BOTH);
	munmap(memory, HUGE_SIZE);
}

/* A private mapping of a file is the program's own copy: the file never sees what devices write. */
static void private_file(void)
{
	size_t size = 8 * PAGE;
	unsigned char *memory, *look;
	static unsigned char before[8 * PAGE];
	char path[64];
	int fd = tmpfs_file(size, path), read_only = open(path, O_RDONLY | O_CLOEXEC);

	unlink(path);
	look = map_file(fd, size, PROT_READ, MAP_SHARED);
	memcpy(before, look, size);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	memory[0] ^= 1;		/* the first page is now the program's own copy */
	private_works("a private mapping of a file, for reading,", memory, size, IOASID_MAP_READ);
	private_works("a private mapping of a file", memory, size, MAP_BOTH);
	munmap(memory, size);
	memory = map_file(read_only, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	private_works("a private mapping of a file that is open for reading only", memory, size,
		      IOASID_MAP_WRITE);
	munmap(memory, size);
	if (memcmp(look, before, size))
		failed("a device has written to a file through private mappings of it");
	else
		ok("the file behind private mappings is never written");
	munmap(look, size);
	close(read_only);
	close(fd);
}

/*
 * Memory that devices only read is still the program's to write. That it was not touched before
 * makes no difference: the zero page or the file's page that is behind it at first must not be
 * what devices go on reading.
 */
static void written_later(const char *kind, unsigned char *memory, size_t size)
{
	unsigned char seen[64];
	int error = try_map(memory, size, IOASID_MAP_READ);

	if (error) {
		failed("%s: MAP_DMA gave \"%s\": %s", kind, strerror(error),
		       explanation(device.node));
		return;
	}
	fill(memory, size, 50);
	if (!device_reads(&device, ioasid, GPA + size - PAGE, seen, sizeof(seen)) ||
	    memcmp(seen, memory + size - PAGE, sizeof(seen)))
		failed("%s: the device does not read what the program wrote after the map", kind);
	else
		ok("%s: the device reads what the program wrote after the map", kind);
	must_unmap(size);
}

static void private_kinds(void)
{
	size_t size = 8 * PAGE;
	char path[64];
	unsigned char *memory;
	int fd;

	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	private_works("private anonymous memory that nobody has touched", memory, size,
		      IOASID_MAP_WRITE);
	fill(memory, size, 11);
	private_works("private anonymous memory", memory, size, MAP_BOTH);
	if (mprotect(memory, size, PROT_READ) < 0)
		die("mprotect failed: %s", strerror(errno));
	private_works("private memory that the program may only read, for reading,", memory, size,
		      IOASID_MAP_READ);
	is_refused("private memory that the program may only read, for writing,", memory, size,
		   IOASID_MAP_WRITE, EPERM);
	is_refused("private memory that the program may only read, for both,", memory, size,
		   MAP_BOTH, EPERM);
	if (mprotect(memory, size, PROT_NONE) < 0)
		die("mprotect failed: %s", strerror(errno));
	is_refused("private memory that the program may not even read", memory, size,
		   IOASID_MAP_READ, EFAULT);
	munmap(memory, size);

	private_file();
	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		return;
	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	written_later("private memory that nobody had touched", memory, size);
	munmap(memory, size);
	fd = tmpfs_file(size, path);
	unlink(path);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	written_later("a private mapping of a file", memory, size);
	munmap(memory, size);
	close(fd);
}

/* Puts new memory at a place that is taken. */
static void put(void *place, size_t size, int flags, int fd)
{
	if (mmap(place, size, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd, 0) == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
}

/* Ranges of several kinds; transfers cross from each to the next. */
static void crossing_ranges(void)
{
	size_t part = 4 * PAGE, size = 3 * part;
	const size_t places[] = { 100, part - 700, 2 * part - 700, size - MOVED };
	unsigned char *area, *memory;
	int fd = memfd(part, 0);

	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	fill(memory, size, 60);
	put(memory + part, part, MAP_SHARED, fd);
	private_works_at("private memory, a memfd and private memory", memory, size, MAP_BOTH, places,
			 4);
	if (madvise(memory, part, MADV_DONTDUMP) < 0)
		die("madvise failed: %s", strerror(errno));
	put(memory + part, part, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	put(memory + 2 * part, part, MAP_PRIVATE, fd);
	private_works_at("neighbours that are all private, one of them a file's", memory, size,
			 MAP_BOTH, places, 4);
	put(memory + part, part, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_STACK, -1);
	private_works_at("neighbours of which one grows down as a stack does", memory, size, MAP_BOTH,
			 places, 4);
	put(memory + part, part, MAP_SHARED, fd);
	put(memory + 2 * part, part, MAP_SHARED | MAP_ANONYMOUS, -1);
	if (!unprivileged)
		private_works_at("private memory, a memfd and shared anonymous memory", memory, size,
				 MAP_BOTH, places, 4);
	munmap(memory, size);
	close(fd);

	/* Huge pages in the middle. */
	area = map_file(-1, 3 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	memory = (unsigned char *)(((uintptr_t)area + 8 * PAGE + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));
	for (int i = 0; i < 2; i++) {
		const size_t crossing[] = { 100, 8 * PAGE - 700, 8 * PAGE + HUGE_SIZE - 700 };
		int huge = i ? memfd_create("memory-kinds-huge", MFD_CLOEXEC | MFD_HUGETLB) : -1;
		int flags = i ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;

		if ((i && (huge < 0 || ftruncate(huge, HUGE_SIZE) < 0)) ||
		    mmap(memory, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_FIXED | flags, huge, 0) ==
			    MAP_FAILED) {
			cannot_show("private memory beside huge pages: %s", strerror(errno));
		} else {
			private_works_at(i ? "private memory, shared huge pages and private memory" :
					     "private memory, private huge pages and private memory",
					 memory - 8 * PAGE, HUGE_SIZE + 9 * PAGE, MAP_BOTH, crossing,
					 3);
		}
		if (huge >= 0)
			close(huge);
	}
	munmap(area, 3 * HUGE_SIZE);
}

/* Memory that consists of several mappings, or is not there. */
static void pieces_and_holes(void)
{
	size_t half = 8 * PAGE;
	unsigned char *memory = map_file(-1, 2 * half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	int first = memfd(half, 0), second = memfd(half, 0);

	put(memory, half, MAP_SHARED, first);
	is_refused("memory that nobody can access, behind a memfd,", memory, 2 * half, MAP_BOTH,
		   EFAULT);
	put(memory + half, half, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	private_works("a range of shared and private memory", memory, 2 * half, MAP_BOTH);
	put(memory + half, half, MAP_SHARED, second);
	works("a range of two memfds", memory, memory, 2 * half, MAP_BOTH);
	/* One page missing in the middle. */
	munmap(memory + half, PAGE);
	is_refused("a range with a hole in it", memory, 2 * half, MAP_BOTH, EFAULT);
	munmap(memory, 2 * half);
	is_refused("a range where nothing is", memory, half, MAP_BOTH, EFAULT);
	close(first);
	close(second);
}

/* ------------------------------------------------------------------ */
/* Files by descriptor                                                  */
/* ------------------------------------------------------------------ */

static void file_works(const char *kind, int fd, __u64 offset, size_t size, unsigned char *look,
		       __u32 flags)
{
	range_works(kind, file_range(fd, offset, size), look, flags);
}

static void file_is_refused(const char *kind, int fd, __u64 offset, size_t size, __u32 flags,
			    int error)
{
	range_is_refused(kind, file_range(fd, offset, size), flags, error);
}

/* A descriptor of something that is no memory. */
static void no_memory_behind(const char *kind, int fd)
{
	if (fd < 0) {
		cannot_show("%s by its descriptor: %s", kind, strerror(errno));
		return;
	}
	file_is_refused(kind, fd, 0, PAGE, IOASID_MAP_READ, EOPNOTSUPP);
	close(fd);
}

static void file_descriptors_of_others(void)
{
	int pair[2];

	no_memory_behind("a directory by its descriptor", open("/", O_RDONLY | O_CLOEXEC));
	no_memory_behind("/dev/null by its descriptor", open("/dev/null", O_RDWR | O_CLOEXEC));
	no_memory_behind("the node by its descriptor", dup(device.node));
	if (pipe2(pair, O_CLOEXEC) < 0)
		die("no pipe: %s", strerror(errno));
	close(pair[1]);
	no_memory_behind("a pipe by its descriptor", pair[0]);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		die("no sockets: %s", strerror(errno));
	close(pair[1]);
	no_memory_behind("a socket by its descriptor", pair[0]);
	if (device.is_edu)
		no_memory_behind("a VFIO device by its descriptor", dup(device.fd));
}

static void files_by_descriptor(void)
{
	size_t size = 64 * KIB;
	unsigned char *look;
	struct ioasid_map_dma dma_map;
	char path[64];
	int fd, other;

	if (!has_extension(device.node, IOASID_EXT_FILE_MEMORY)) {
		cannot_show("files by descriptor: the node cannot map them");
		return;
	}
	fd = memfd(size, 0);
	look = map_file(fd, size, PROT_READ, MAP_SHARED);
	file_works("a memfd by its descriptor", fd, 0, size, look, MAP_BOTH);
	file_works("a piece of it", fd, 5 * PAGE, 3 * PAGE, look + 5 * PAGE, MAP_BOTH);
	file_is_refused("a piece that ends behind the file", fd, size - PAGE, 2 * PAGE, MAP_BOTH,
			EFAULT);
	file_is_refused("a piece that begins behind the file", fd, size, PAGE, MAP_BOTH, EFAULT);
	file_is_refused("a misaligned piece", fd, PAGE / 2, PAGE, MAP_BOTH, EINVAL);
	file_is_refused("an offset that wraps", fd, -PAGE, 2 * PAGE, MAP_BOTH, EOVERFLOW);
	file_is_refused("an offset that no file has", fd, 1UL << 63, PAGE, MAP_BOTH, EFAULT);
	dma_map = mapping(ioasid, GPA, look, PAGE, IOASID_MAP_READ);
	dma_map.fd = fd;
	if (ioctl(device.node, IOASID_MAP_DMA, &dma_map) == 0 || errno != EINVAL)
		failed("a descriptor without IOASID_MAP_FILE is not refused with EINVAL");
	else
		ok("a descriptor without IOASID_MAP_FILE is refused: %s", explanation(device.node));
	munmap(look, size);
	close(fd);
	file_is_refused("a descriptor that is closed", fd, 0, PAGE, MAP_BOTH, EBADF);
	file_is_refused("the descriptor -1", -1, 0, PAGE, MAP_BOTH, EBADF);

	fd = tmpfs_file(size, path);
	look = map_file(fd, size, PROT_READ, MAP_SHARED);
	file_works("a file on tmpfs by its descriptor", fd, 0, size, look, MAP_BOTH);
	other = open(path, O_RDONLY | O_CLOEXEC);
	file_works("a descriptor that may only read, for reading,", other, PAGE, size - PAGE,
		   look + PAGE, IOASID_MAP_READ);
	file_is_refused("a descriptor that may only read, for writing,", other, 0, size,
			IOASID_MAP_WRITE, EPERM);
	file_is_refused("a descriptor that may only read, for both,", other, 0, size, MAP_BOTH, EPERM);
	close(other);
	other = open(path, O_PATH | O_CLOEXEC);
	unlink(path);
	no_memory_behind("a file that is only named (O_PATH)", other);
	file_works("a file without a name any more by its descriptor", fd, 0, size, look, MAP_BOTH);
	munmap(look, size);
	close(fd);
	file_descriptors_of_others();

	fd = memfd(size, MFD_ALLOW_SEALING);
	look = map_file(fd, size, PROT_READ, MAP_SHARED);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0) {
		cannot_show("a sealed memfd by its descriptor: %s", strerror(errno));
	} else {
		file_works("a sealed memfd by its descriptor, for reading,", fd, 0, size, look,
			   IOASID_MAP_READ);
		file_is_refused("a sealed memfd by its descriptor, for writing,", fd, 0, size,
				IOASID_MAP_WRITE, EPERM);
	}
	munmap(look, size);
	close(fd);
}

/* Maps a page of a file, and leaves it mapped until it is unkept. */
static void keep_page(int fd, __u64 offset)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, KEPT, NULL, PAGE, MAP_BOTH);

	dma_map.flags |= IOASID_MAP_FILE;
	dma_map.fd = fd;
	dma_map.vaddr = offset;
	must(device.node, IOASID_MAP_DMA, &dma_map, "MAP_DMA of a page of a file");
}

static void unkeep_page(void)
{
	if (unmap(device.node, ioasid, KEPT, PAGE) != PAGE)
		failed("the page that stayed mapped is not any more");
}

static void kept_page_works(const unsigned char *look)
{
	unsigned char sent[MOVED], seen[MOVED];

	fill(sent, sizeof(sent), 80);
	if (!device_writes(&device, ioasid, KEPT, sent, sizeof(sent)) ||
	    memcmp(look, sent, sizeof(sent)) ||
	    !device_reads(&device, ioasid, KEPT, seen, sizeof(seen)) ||
	    memcmp(seen, sent, sizeof(sent)))
		failed("a page of a file is reached no more, since more of the file was mapped");
	else
		ok("a page of a file is reached as before, whatever else of it was mapped");
}

static void pieces_of_one_file(void)
{
	size_t size = 64 * KIB;
	int fd = memfd(size, MFD_ALLOW_SEALING), other = memfd(size, 0);
	unsigned char *look;

	if (!has_extension(device.node, IOASID_EXT_FILE_MEMORY))
		return;
	if (ftruncate(fd, 2 * size) < 0)
		die("ftruncate failed: %s", strerror(errno));
	look = map_file(fd, 2 * size, PROT_READ, MAP_SHARED);
	if (ftruncate(fd, size) < 0)
		die("ftruncate failed: %s", strerror(errno));
	keep_page(fd, 3 * PAGE);
	file_works("a second piece of a file", fd, 8 * PAGE, 3 * PAGE, look + 8 * PAGE, MAP_BOTH);
	file_works("a third, for reading,", fd, 5 * PAGE, 3 * PAGE, look + 5 * PAGE,
		   IOASID_MAP_READ);
	file_works("the same page twice", fd, 3 * PAGE, PAGE, look + 3 * PAGE, MAP_BOTH);
	file_works("all of a file of which a page is mapped", fd, 0, size, look, MAP_BOTH);
	file_is_refused("a piece behind the end of such a file", fd, size, PAGE, MAP_BOTH, EFAULT);
	if (ftruncate(fd, 2 * size) < 0)
		die("ftruncate failed: %s", strerror(errno));
	file_works("what such a file got since", fd, size + PAGE, 2 * PAGE, look + size + PAGE,
		   MAP_BOTH);
	kept_page_works(look + 3 * PAGE);

	/* Only what is mapped keeps it from being sealed. */
	munmap(look, 2 * size);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0 || errno != EBUSY)
		failed("a file that a device may write can be sealed against writing");
	unkeep_page();
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0)
		failed("with the last mapping something is left of the file: %s", strerror(errno));
	else
		ok("with the last mapping nothing is left of the file: it can be sealed");
	file_is_refused("the sealed file, for writing,", fd, 0, PAGE, MAP_BOTH, EPERM);
	close(fd);

	fd = memfd(size, MFD_ALLOW_SEALING);
	look = map_file(fd, size, PROT_READ, MAP_SHARED);
	keep_page(fd, 0);
	file_works("a second piece of a file that will be sealed", fd, 8 * PAGE, 3 * PAGE,
		   look + 8 * PAGE, MAP_BOTH);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0)
		die("F_SEAL_FUTURE_WRITE: %s", strerror(errno));
	file_is_refused("a piece of a file sealed since, for writing,", fd, 8 * PAGE, PAGE, MAP_BOTH,
			EPERM);
	file_works("one, for reading,", fd, 8 * PAGE, 3 * PAGE, look + 8 * PAGE, IOASID_MAP_READ);
	kept_page_works(look);

	/* The same number, another file. */
	munmap(look, size);
	look = map_file(other, size, PROT_READ, MAP_SHARED);
	if (dup2(other, fd) < 0)
		die("dup2 failed: %s", strerror(errno));
	file_works("a descriptor that stood for another file before", fd, 8 * PAGE, 3 * PAGE,
		   look + 8 * PAGE, MAP_BOTH);
	unkeep_page();
	munmap(look, size);
	close(fd);
	close(other);
}

static void huge_file_works(const char *kind, int fd)
{
	unsigned char *memory = MAP_FAILED;
	char what[96];

	if (fd < 0 || ftruncate(fd, 2 * HUGE_SIZE) < 0) {
		cannot_show("%s: %s", kind, strerror(errno));
		return;
	}
	memory = mmap(NULL, 2 * HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		cannot_show("%s: none are free (vm.nr_hugepages)", kind);
		return;
	}
	fill(memory, 2 * HUGE_SIZE, 9);
	works(kind, memory, memory, 2 * HUGE_SIZE, MAP_BOTH);
	snprintf(what, sizeof(what), "a part of %s", kind);
	works(what, memory + HUGE_SIZE - 2 * PAGE, memory + HUGE_SIZE - 2 * PAGE, 5 * PAGE, MAP_BOTH);
	if (has_extension(device.node, IOASID_EXT_FILE_MEMORY)) {
		snprintf(what, sizeof(what), "%s by its descriptor", kind);
		file_works(what, fd, 0, 2 * HUGE_SIZE, memory, MAP_BOTH);
		snprintf(what, sizeof(what), "a part of %s by its descriptor", kind);
		file_works(what, fd, HUGE_SIZE + 9 * PAGE, 5 * PAGE, memory + HUGE_SIZE + 9 * PAGE,
			   MAP_BOTH);
		keep_page(fd, 3 * PAGE);
		snprintf(what, sizeof(what), "a second part of %s", kind);
		file_works(what, fd, HUGE_SIZE - 2 * PAGE, 5 * PAGE, memory + HUGE_SIZE - 2 * PAGE,
			   MAP_BOTH);
		kept_page_works(memory + 3 * PAGE);
		unkeep_page();
		snprintf(what, sizeof(what), "a piece behind the end of %s", kind);
		file_is_refused(what, fd, 2 * HUGE_SIZE - PAGE, 2 * PAGE, MAP_BOTH, EFAULT);
	}
	munmap(memory, 2 * HUGE_SIZE);
}

static void huge_files(void)
{
	char path[] = "/dev/hugepages/memory-kinds-XXXXXX";
	struct statfs statfs_data;
	int fd = memfd_create("memory-kinds-huge", MFD_CLOEXEC | MFD_HUGETLB);

	huge_file_works("a memfd of huge pages", fd);
	close(fd);
	if (statfs("/dev/hugepages", &statfs_data) < 0 || statfs_data.f_type != HUGETLBFS_MAGIC) {
		cannot_show("a file on hugetlbfs: /dev/hugepages is none");
		return;
	}
	fd = mkostemp(path, O_CLOEXEC);
	unlink(path);
	huge_file_works("a file on hugetlbfs", fd);
	close(fd);
}

/* Whether the kernel pins files on disk to be written: not from 6.5 on (mm/gup.c). */
static bool pins_files_on_disk(void)
{
	struct utsname name;
	unsigned int major = 0, minor = 0;

	uname(&name);
	sscanf(name.release, "%u.%u", &major, &minor);
	return major < 6 || (major == 6 && minor < 5);
}

static void file_on_disk(const char *directory)
{
	size_t size = 16 * PAGE;
	struct statfs statfs_data;
	unsigned char *memory, *look;
	char path[256];
	int fd, other;

	if (!directory) {
		cannot_show("a file on disk: no --disk was given");
		return;
	}
	snprintf(path, sizeof(path), "%s/memory-kinds-XXXXXX", directory);
	if (statfs(directory, &statfs_data) < 0 ||
	    (statfs_data.f_type != EXT4_SUPER_MAGIC && statfs_data.f_type != XFS_SUPER_MAGIC)) {
		cannot_show("a file on disk: %s is on no ext4 or xfs", directory);
		return;
	}
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot make a file in %s: %s", directory, strerror(errno));
	other = open(path, O_RDONLY | O_CLOEXEC);
	unlink(path);
	look = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	fill(look, size, 14);
	memory = map_file(other, size, PROT_READ, MAP_SHARED);
	works("a file on disk that is open for reading only, for reading,", memory, look, size,
	      IOASID_MAP_READ);
	is_refused("a file on disk that is open for reading only, for writing,", memory, size,
		   IOASID_MAP_WRITE, EPERM);
	works("a file on disk, for reading,", look, look, size, IOASID_MAP_READ);
	file_works("a file on disk by a descriptor that may only read", other, 0, size, look,
		   IOASID_MAP_READ);
	if (!device.is_edu || pins_files_on_disk()) {
		works("a file on disk", look, look, size, MAP_BOTH);
		file_works("a file on disk by its descriptor", fd, 0, size, look, MAP_BOTH);
	} else {
		is_refused("a file on disk, for writing,", look, size, MAP_BOTH, EFAULT);
		file_is_refused("a file on disk by its descriptor, for writing,", fd, 0, size, MAP_BOTH,
				EFAULT);
	}
	munmap(memory, size);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	private_works("a private mapping of a file on disk", memory, size, MAP_BOTH);
	munmap(memory, size);
	munmap(look, size);
	close(other);
	close(fd);
}

/* What happens to the program's own mapping, or the file, later. */
static void memory_that_goes(void)
{
	size_t size = 8 * PAGE;
	int fd = memfd(size, 0);
	unsigned char *memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	unsigned char *look = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	unsigned char sent[512], seen[512];
	int error;

	error = try_map(memory, size, MAP_BOTH);
	if (error) {
		failed("a memfd with two mappings: %s", explanation(device.node));
		return;
	}
	munmap(memory, size);
	fill(sent, sizeof(sent), 21);
	if (!device_writes(&device, ioasid, GPA + PAGE, sent, sizeof(sent)) ||
	    memcmp(look + PAGE, sent, sizeof(sent)))
		failed("the device lost the memory when the program unmapped it");
	else
		ok("what the program unmaps itself stays mapped for the device");

	/* A file that shrinks under the mapping: pinned pages stay, simulated DMA faults. */
	if (ftruncate(fd, PAGE) < 0)
		die("ftruncate failed: %s", strerror(errno));
	if (device_reads(&device, ioasid, GPA + 4 * PAGE, seen, sizeof(seen))) {
		if (device.is_edu)
			ok("a file that shrinks is no harm");
		else
			failed("simulated DMA to memory behind the end of its file did not fault");
	} else {
		ok("DMA to where the file no longer is faults: %s", explanation(device.node));
	}
	if (!device_reads(&device, ioasid, GPA, seen, sizeof(seen)) ||
	    memcmp(seen, look, sizeof(seen)))
		failed("the part of the file that is left is no longer reached");
	must_unmap(size);
	munmap(look, size);

	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED);
	is_refused("memory behind the end of its file", memory, size, MAP_BOTH, EFAULT);
	munmap(memory, size);
	close(fd);
}

/* Private memory that the program has unmapped: what is pinned stays with the device. */
static void private_memory_that_goes(void)
{
	size_t size = 8 * PAGE;
	unsigned char sent[512], seen[512], *memory;
	int error;

	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		return;
	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	fill(memory, size, 22);
	error = try_map(memory, size, MAP_BOTH);
	if (error) {
		failed("private memory that will go: %s", explanation(device.node));
		return;
	}
	munmap(memory, size);
	fill(sent, sizeof(sent), 22);
	if (!device_reads(&device, ioasid, GPA, seen, sizeof(seen))) {
		if (device.is_edu)
			failed("the device lost private memory when the program unmapped it");
		else
			ok("simulated DMA to private memory that is gone faults: %s",
			   explanation(device.node));
	} else if (memcmp(seen, sent, sizeof(sent))) {
		failed("private memory that the program unmapped has other bytes for the device");
	} else {
		fill(sent, sizeof(sent), 23);
		memset(seen, 0, sizeof(seen));
		device_writes(&device, ioasid, GPA + PAGE, sent, sizeof(sent));
		device_reads(&device, ioasid, GPA + PAGE, seen, sizeof(seen));
		if (memcmp(seen, sent, sizeof(sent)))
			failed("the device cannot write private memory that the program unmapped");
		else
			ok("private memory that the program unmaps itself stays with the device");
	}
	must_unmap(size);
}

/* A program that does not let itself be looked into. A daemon with privilege does it all the same. */
static void guarded_program(void)
{
	size_t size = 4 * PAGE;
	unsigned char *memory;
	const char *why;
	int error;

	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		return;
	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	fill(memory, size, 24);
	if (prctl(PR_SET_DUMPABLE, 0) < 0)
		die("prctl failed: %s", strerror(errno));
	error = try_map(memory, size, MAP_BOTH);
	why = error ? explanation(device.node) : "";
	if (!error)
		must_unmap(size);
	if (!error || !unprivileged)
		private_works("private memory of a program that is not dumpable", memory, size,
			      MAP_BOTH);
	else if (!*why)
		failed("private memory of a program that may not be traced: \"%s\", unexplained",
		       strerror(error));
	else
		ok("private memory of a program that may not be traced is refused (%s): %s",
		   strerror(error), why);
	prctl(PR_SET_DUMPABLE, 1);
	munmap(memory, size);
}

/* ------------------------------------------------------------------ */
/* Registers of devices                                                 */
/* ------------------------------------------------------------------ */

/* A register of the edu device that reads back as the complement of what was written. */
#define EDU_LIVENESS	0x04

/* The device writes a register of the peer, and reads its identification. */
static void registers_work(const char *kind, volatile void *registers, __u32 value)
{
	__u32 seen = 0, expected = 0x010000ed;

	if (!device_writes(&device, ioasid, GPA + EDU_LIVENESS, &value, sizeof(value)) ||
	    (registers && read32(registers, EDU_LIVENESS) != ~value))
		failed("%s: the peer did not get what the device wrote", kind);
	else if (!device_reads(&device, ioasid, GPA + EDU_LIVENESS, &seen, sizeof(seen)) ||
		 seen != ~value)
		failed("%s: the device reads %#x instead of %#x", kind, seen, ~value);
	else if (!device_reads(&device, ioasid, GPA + EDU_IDENTITY, &seen, sizeof(seen)) ||
		 seen != expected)
		failed("%s: the device takes the peer for a %#x", kind, seen);
	else
		ok("%s are reached in both directions", kind);
}

static void unbind_while_registers_are_mapped(struct device *peer, size_t size)
{
	__u32 again;

	munmap((void *)peer->registers, size);
	close(peer->fd);
	must_refuse(peer->node, IOASID_UNBIND_DEVICE, by_value(peer->id), EBUSY,
		    "UNBIND_DEVICE of a device whose registers another one reaches");
	registers_work("registers of a device that the program has closed", NULL, 0x0badcafe);
	must_unmap(PAGE);
	again = ioctl(peer->node, IOASID_UNBIND_DEVICE, by_value(peer->id));
	if (again)
		failed("UNBIND_DEVICE after the unmap: %s", explanation(peer->node));
	else
		ok("after the unmap the device can be given away");
}

/* A device of another context is not ours to reach, however its registers are at hand. */
static void registers_of_strangers(const char *path, struct device *peer, size_t size)
{
	bind_device(peer, open_node(path));
	is_refused("the registers of a device of another open", (const void *)peer->registers, PAGE,
		   MAP_BOTH, EOPNOTSUPP);
	munmap((void *)peer->registers, size);
	close(peer->fd);
	must(peer->node, IOASID_UNBIND_DEVICE, by_value(peer->id), "UNBIND_DEVICE");
	close(peer->node);
}

static void peer_to_peer(const char *path, struct device *peer)
{
	volatile void *fresh;
	size_t size;
	int error;

	prepare_device(peer);
	bind_device(peer, device.node);
	size = region(peer->fd, VFIO_PCI_BAR0_REGION_INDEX).size;
	if (!device.is_edu) {
		is_refused("registers, for a simulated device,", (const void *)peer->registers, PAGE,
			   MAP_BOTH, EOPNOTSUPP);
		return;
	}
	error = try_map((const void *)peer->registers, PAGE, MAP_BOTH);
	if (error) {
		failed("registers of another device: MAP_DMA gave \"%s\": %s", strerror(error),
		       explanation(device.node));
		return;
	}
	registers_work("registers of another device", peer->registers, 0x12345678);
	must_unmap(PAGE);

	fresh = map_bar0(peer->fd);
	error = try_map((const void *)fresh, PAGE, MAP_BOTH);
	if (error) {
		failed("registers that the program has not touched: MAP_DMA gave \"%s\": %s",
		       strerror(error), explanation(device.node));
	} else {
		registers_work("registers that the program has not touched", peer->registers,
			       0x5a5a0ff0);
		must_unmap(PAGE);
	}
	munmap((void *)fresh, size);

	error = try_map((const void *)peer->registers, size, MAP_BOTH);
	if (error) {
		failed("all registers of another device: %s", explanation(device.node));
	} else {
		if (get_info(device.node, ioasid).locked_bytes)
			failed("registers are charged as locked memory");
		registers_work("all registers of another device", peer->registers, 0x600df00d);
		must_unmap(size);
	}
	error = try_map((const void *)peer->registers, PAGE, IOASID_MAP_READ);
	if (error) {
		failed("registers, for reading: %s", explanation(device.node));
	} else {
		__u32 value = 0x31415926, before = read32(peer->registers, EDU_LIVENESS);

		device_writes(&device, ioasid, GPA + EDU_LIVENESS, &value, sizeof(value));
		if (read32(peer->registers, EDU_LIVENESS) != before)
			failed("the device writes registers that it may only read");
		else
			ok("registers that are mapped for reading are not written");
		must_unmap(PAGE);
	}

	error = try_map((const void *)peer->registers, PAGE, MAP_BOTH);
	if (error) {
		failed("registers once more: %s", explanation(device.node));
		return;
	}
	unbind_while_registers_are_mapped(peer, size);
	registers_of_strangers(path, peer, size);
}

int main(int argc, char **argv)
{
	struct device peer = { .node = -1 };
	const char *disk = NULL;
	int next = 2;

	if (argc < 3)
		die("usage: memory-kinds NODE DEVICE [--unprivileged] [--peer ADDRESS:GROUP] "
		    "[--disk DIRECTORY]");
	next += take_device(argv + next, &device);
	for (; next < argc; next++) {
		if (!strcmp(argv[next], "--unprivileged")) {
			unprivileged = true;
		} else if (!strcmp(argv[next], "--peer") && next + 1 < argc) {
			char *as_device[] = { "--vfio", argv[++next], NULL };

			take_device(as_device, &peer);
		} else if (!strcmp(argv[next], "--disk") && next + 1 < argc) {
			disk = argv[++next];
		} else {
			die("%s is no option", argv[next]);
		}
	}
	bind_device(&device, open_node(argv[1]));
	ioasid = alloc_ioasid(device.node);
	attach(device.node, device.id, ioasid);
	if (!has_extension(device.node, IOASID_EXT_SHARED_MEMORY))
		die("the node says that it cannot map shared memory");
	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		cannot_show("private memory: the node cannot map it (IOASID_EXT_PRIVATE_MEMORY is 0)");

	shared_kinds();
	huge_files();
	read_only_sources();
	private_kinds();
	program_memory();
	private_huge_pages();
	crossing_ranges();
	pieces_and_holes();
	files_by_descriptor();
	pieces_of_one_file();
	file_on_disk(disk);
	memory_that_goes();
	private_memory_that_goes();
	guarded_program();
	if (peer.is_edu)
		peer_to_peer(argv[1], &peer);
	else
		cannot_show("registers of a device: no --peer was given");

	if (get_info(device.node, ioasid).nr_mappings)
		failed("mappings are left over");
	printf("%u failed, %u skipped\n", failures, skipped);
	return failures ? EXIT_FAILURE : 0;
}
