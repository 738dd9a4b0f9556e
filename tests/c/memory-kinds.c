/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * memory-kinds NODE DEVICE [--unprivileged]
 *
 * Which memory of a program devices can reach. Of each kind that works, bytes are compared in
 * the directions that it allows; of each that does not, the error. DEVICE is written as in
 * device.h.
 *
 * --unprivileged: the daemon runs without privilege, and so finds memory only through a
 * descriptor that the program has open. Other memory must be refused.
 */
#include "device.h"

#include <sys/ipc.h>
#include <sys/shm.h>

#define GPA		0x100000UL
#define HUGE_SIZE	(2 * MIB)

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

/* Tries to map; gives the errno. */
static int try_map(const void *memory, size_t size, __u32 flags)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, size, flags);

	return ioctl(device.node, IOASID_MAP_DMA, &dma_map) < 0 ? errno : 0;
}

static void must_unmap(size_t size)
{
	__u64 unmapped = unmap(device.node, ioasid, GPA, size);

	if (unmapped != size)
		failed("UNMAP_DMA gave %llu bytes instead of %zu", unmapped, size);
}

/*
 * Maps `memory` and moves bytes in each direction of `flags`, at the first and at the last page.
 * `look` is where the program sees the same bytes: `memory` itself, or another mapping of it.
 */
static void works(const char *kind, unsigned char *memory, unsigned char *look, size_t size,
		  __u32 flags)
{
	unsigned char sent[1500], seen[1500];
	size_t places[] = { 100, size - PAGE + 100 };
	int error = try_map(memory, size, flags);

	if (error) {
		failed("%s: MAP_DMA gave \"%s\": %s", kind, strerror(error),
		       explanation(device.node));
		return;
	}
	for (int i = 0; i < 2; i++) {
		if (flags & IOASID_MAP_READ) {
			memset(seen, 0, sizeof(seen));
			if (!device_reads(&device, ioasid, GPA + places[i], seen, sizeof(seen)) ||
			    memcmp(seen, look + places[i], sizeof(seen))) {
				failed("%s: the device read other bytes than the program has",
				       kind);
				break;
			}
		}
		if (flags & IOASID_MAP_WRITE) {
			fill(sent, sizeof(sent), 100 + i);
			if (!device_writes(&device, ioasid, GPA + places[i], sent, sizeof(sent)) ||
			    memcmp(look + places[i], sent, sizeof(sent))) {
				failed("%s: the program has other bytes than the device wrote",
				       kind);
				break;
			}
		}
		if (i == 1)
			ok("%s works", kind);
	}
	must_unmap(size);
}

static void is_refused(const char *kind, const void *memory, size_t size, __u32 flags, int error)
{
	int got = try_map(memory, size, flags);

	if (got == error)
		ok("%s is refused (%s): %s", kind, strerror(got), explanation(device.node));
	else
		failed("%s: MAP_DMA gave \"%s\" instead of \"%s\": %s", kind, strerror(got),
		       strerror(error), got ? explanation(device.node) : "");
	if (!got)
		must_unmap(size);
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

static void huge_pages(void)
{
	int fd = memfd_create("memory-kinds-huge", MFD_CLOEXEC | MFD_HUGETLB);
	unsigned char *memory;

	if (fd < 0 || ftruncate(fd, HUGE_SIZE) < 0) {
		cannot_show("huge pages: %s", strerror(errno));
		return;
	}
	memory = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		cannot_show("huge pages: none are free (vm.nr_hugepages)");
		close(fd);
		return;
	}
	fill(memory, HUGE_SIZE, 9);
	works("a memfd of huge pages", memory, memory, HUGE_SIZE, MAP_BOTH);
	works("a part of a huge page", memory + 17 * PAGE, memory + 17 * PAGE, 5 * PAGE, MAP_BOTH);
	munmap(memory, HUGE_SIZE);
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

static void private_kinds(void)
{
	size_t size = 8 * PAGE;
	char path[64];
	unsigned char *memory;
	int fd;

	memory = map_file(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	fill(memory, size, 11);
	if (has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		works("private anonymous memory", memory, memory, size, MAP_BOTH);
	else
		is_refused("private anonymous memory", memory, size, MAP_BOTH, EOPNOTSUPP);
	munmap(memory, size);

	fd = tmpfs_file(size, path);
	unlink(path);
	memory = map_file(fd, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	memory[0] ^= 1;		/* the first page is now the program's own copy */
	if (has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY)) {
		works("a private mapping of a file", memory, memory, size, MAP_BOTH);
	} else {
		is_refused("a private mapping of a file", memory, size, MAP_BOTH, EOPNOTSUPP);
		is_refused("the same, for reading,", memory, size, IOASID_MAP_READ, EOPNOTSUPP);
	}
	munmap(memory, size);
	close(fd);
}

/* Memory that consists of several mappings, or is not there. */
static void pieces_and_holes(void)
{
	size_t half = 8 * PAGE;
	unsigned char *memory = map_file(-1, 2 * half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	int first = memfd(half, 0), second = memfd(half, 0);
	int private_error = has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY) ? 0 : EOPNOTSUPP;

	if (mmap(memory, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, first, 0) ==
	    MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	is_refused("memory that nobody can access, behind a memfd,", memory, 2 * half, MAP_BOTH,
		   private_error ? private_error : EFAULT);
	if (mmap(memory + half, half, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	if (private_error)
		is_refused("a range of shared and private memory", memory, 2 * half, MAP_BOTH,
			   private_error);
	else
		works("a range of shared and private memory", memory, memory, 2 * half, MAP_BOTH);
	if (mmap(memory + half, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, second, 0) ==
	    MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	works("a range of two memfds", memory, memory, 2 * half, MAP_BOTH);
	/* One page missing in the middle. */
	munmap(memory + half, PAGE);
	is_refused("a range with a hole in it", memory, 2 * half, MAP_BOTH, EFAULT);
	munmap(memory, 2 * half);
	is_refused("a range where nothing is", memory, half, MAP_BOTH, EFAULT);
	close(first);
	close(second);
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

static void device_memory(void)
{
	if (!device.is_edu) {
		cannot_show("registers of a device: a simulated device has none");
		return;
	}
	if (has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		cannot_show("registers of a device: not without another device that uses them");
	else
		is_refused("the registers of a device", (const void *)device.registers, PAGE,
			   MAP_BOTH, EOPNOTSUPP);
}

int main(int argc, char **argv)
{
	int next = 2;

	if (argc < 3)
		die("usage: memory-kinds NODE DEVICE [--unprivileged]");
	next += take_device(argv + next, &device);
	unprivileged = argc > next && !strcmp(argv[next], "--unprivileged");
	bind_device(&device, open_node(argv[1]));
	ioasid = alloc_ioasid(device.node);
	attach(device.node, device.id, ioasid);
	if (!has_extension(device.node, IOASID_EXT_SHARED_MEMORY))
		die("the node says that it cannot map shared memory");

	shared_kinds();
	huge_pages();
	read_only_sources();
	private_kinds();
	pieces_and_holes();
	memory_that_goes();
	device_memory();

	if (get_info(device.node, ioasid).nr_mappings)
		failed("mappings are left over");
	printf("%u failed, %u skipped\n", failures, skipped);
	return failures ? EXIT_FAILURE : 0;
}
