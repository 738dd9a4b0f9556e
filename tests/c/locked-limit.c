/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * locked-limit NODE DEVICE-A DEVICE-B
 *
 * What is mapped is locked memory, of which a program may have as much as its RLIMIT_MEMLOCK says.
 * The devices are written as in device.h, and have a group each. Started as root, it makes the
 * calls as user 65534.
 *
 * Rules: what one IOASID maps is charged once, however often it is mapped there and however many
 * devices see it; another IOASID is charged for again; registered memory once, wherever it is
 * mapped; registers not at all. Nothing is left of a charge when a map fails, or when what was
 * mapped is unmapped or its open is closed. Over the limit is ENOMEM, with a sentence that says
 * how much is used and how much there may be. CAP_IPC_LOCK lifts the limit, and not the count.
 */
#include "device.h"

#include <grp.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define NOBODY		65534
#define LIMIT		(4 * MIB)
#define GPA		0x1000000UL
#define OTHER_GPA	0x2000000UL
#define THIRD_GPA	0x3000000UL

static struct device a, b;
static int node;
static __u32 first, second;

/* ------------------------------------------------------------------ */
/* What is charged                                                      */
/* ------------------------------------------------------------------ */

static void must_be_charged(__u64 used, __u64 in_first, __u64 in_second, const char *when)
{
	struct ioasid_info info = get_info(node, first), other = get_info(node, second);

	if (info.locked_used != used || other.locked_used != used ||
	    info.locked_bytes != in_first || other.locked_bytes != in_second)
		die("%s, %llu bytes are locked, %llu and %llu for the IOASIDs, instead of %llu, "
		    "%llu and %llu", when, info.locked_used, info.locked_bytes,
		    other.locked_bytes, used, in_first, in_second);
	ok("%s, %llu KiB are locked, %llu and %llu for the IOASIDs", when, used / KIB,
	   in_first / KIB, in_second / KIB);
}

/* A charge that somebody else's close takes back soon. */
static void will_be_charged(__u64 used, const char *when)
{
	double give_up = now() + 10;

	while (get_info(node, first).locked_used != used) {
		if (now() > give_up)
			die("10 s %s, %llu bytes are locked instead of %llu", when,
			    get_info(node, first).locked_used, used);
		sleep_ms(10);
	}
	ok("%s, %llu KiB are locked", when, used / KIB);
}

/* The sentence has to name what is used and what may be. */
static void says_how_much(__u64 used, __u64 limit)
{
	char number[32];
	const char *why = explanation(node);

	snprintf(number, sizeof(number), "%llu", used);
	if (!strstr(why, number))
		die("the explanation does not say that %s bytes are used: %s", number, why);
	snprintf(number, sizeof(number), "%llu", limit);
	if (!strstr(why, number))
		die("the explanation does not say that %s bytes are the limit: %s", number, why);
}

static void map_is_refused(__u32 ioasid, __u64 iova, const void *memory, size_t size, int error,
			   const char *what)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, memory, size, MAP_BOTH);

	must_refuse(node, IOASID_MAP_DMA, &dma_map, error, what);
}

static int memfd(size_t size)
{
	int fd = memfd_create("locked-limit", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot make a memfd of %zu bytes: %s", size, strerror(errno));
	return fd;
}

static unsigned char *private_memory(size_t size)
{
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("no memory: %s", strerror(errno));
	/* The kernel charges huge pages as a whole when a part of one is registered. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	return memory;
}

/* ------------------------------------------------------------------ */
/* Shared memory                                                        */
/* ------------------------------------------------------------------ */

static void up_to_the_limit(unsigned char *memory)
{
	map(node, first, GPA, memory, 3 * MIB, MAP_BOTH);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with 3 MiB mapped");
	map_is_refused(first, OTHER_GPA, memory + 3 * MIB, MIB + PAGE, ENOMEM,
		       "MAP_DMA of a page more than the limit leaves");
	says_how_much(3 * MIB, LIMIT);
	must_be_charged(3 * MIB, 3 * MIB, 0, "after a map that was refused");
	map(node, first, OTHER_GPA, memory + 3 * MIB, MIB, MAP_BOTH);
	must_be_charged(LIMIT, LIMIT, 0, "with as much as the limit allows");
	map_is_refused(second, GPA, memory, PAGE, ENOMEM,
		       "MAP_DMA of one page over the limit in another IOASID");
	says_how_much(LIMIT, LIMIT);
	unmap(node, first, OTHER_GPA, MIB);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with 1 MiB unmapped");
}

static void again_and_elsewhere(unsigned char *memory)
{
	/* The same bytes a second time, and 512 KiB more. */
	map(node, first, OTHER_GPA, memory + 2 * MIB, MIB + 512 * KIB, MAP_BOTH);
	must_be_charged(3 * MIB + 512 * KIB, 3 * MIB + 512 * KIB, 0,
			"with 1 MiB of it mapped twice, and 512 KiB more");
	map(node, second, GPA, memory, 512 * KIB, MAP_BOTH);
	must_be_charged(LIMIT, 3 * MIB + 512 * KIB, 512 * KIB,
			"with 512 KiB of it in another IOASID too");
	unmap(node, first, GPA, 3 * MIB);
	must_be_charged(2 * MIB, MIB + 512 * KIB, 512 * KIB,
			"with one of two mappings of the same bytes unmapped");
	unmap(node, second, GPA, 512 * KIB);
	unmap(node, first, OTHER_GPA, MIB + 512 * KIB);
	must_be_charged(0, 0, 0, "with all unmapped");
}

static void two_devices(unsigned char *memory)
{
	map(node, first, GPA, memory, 3 * MIB, MAP_BOTH);
	detach(node, b.id, second);
	attach(node, b.id, first);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with two devices at the IOASID");
	map(node, first, OTHER_GPA, memory + 3 * MIB, MIB, MAP_BOTH);
	must_be_charged(LIMIT, LIMIT, 0, "with more mapped for the two devices");
	detach(node, a.id, first);
	detach(node, b.id, first);
	must_be_charged(LIMIT, LIMIT, 0, "with no device at the IOASID");
	attach(node, a.id, first);
	attach(node, b.id, second);
	unmap(node, first, GPA, 3 * MIB);
	unmap(node, first, OTHER_GPA, MIB);
	must_be_charged(0, 0, 0, "with all unmapped again");
}

static void map_file(__u32 ioasid, __u64 iova, int fd, __u64 offset, size_t size)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, by_value(offset), size, MAP_BOTH);

	dma_map.flags |= IOASID_MAP_FILE;
	dma_map.fd = fd;
	must(node, IOASID_MAP_DMA, &dma_map, "MAP_DMA of a file by its descriptor");
}

static void files(void)
{
	int fd = memfd(6 * MIB), same = dup(fd), other = memfd(MIB);
	struct ioasid_map_dma too_much;

	map_file(first, GPA, fd, 0, 2 * MIB);
	must_be_charged(2 * MIB, 2 * MIB, 0, "with 2 MiB of a file");
	map_file(first, OTHER_GPA, same, MIB, 2 * MIB);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with 1 MiB more of it, by another descriptor");
	map_file(second, GPA, other, 0, MIB);
	must_be_charged(LIMIT, 3 * MIB, MIB, "with 1 MiB of another file elsewhere");
	too_much = mapping(first, THIRD_GPA, by_value(3 * MIB), PAGE, IOASID_MAP_READ);
	too_much.flags |= IOASID_MAP_FILE;
	too_much.fd = fd;
	must_refuse(node, IOASID_MAP_DMA, &too_much, ENOMEM, "MAP_DMA of one more page of the file");
	says_how_much(LIMIT, LIMIT);
	unmap(node, second, GPA, MIB);
	unmap(node, first, GPA, OTHER_GPA + 2 * MIB - GPA);
	must_be_charged(0, 0, 0, "with the files unmapped");
	close(fd);
	close(same);
	close(other);
}

static void failures_cost_nothing(unsigned char *memory)
{
	unsigned char *holes = shared_memory(2 * MIB);

	munmap(holes + MIB, PAGE);
	map_is_refused(first, GPA, holes, 2 * MIB, EFAULT, "MAP_DMA of memory with a hole");
	must_be_charged(0, 0, 0, "after memory with a hole");
	map(node, first, GPA, memory, MIB, MAP_BOTH);
	map_is_refused(first, GPA + MIB - PAGE, memory + MIB, MIB, EEXIST,
		       "MAP_DMA of where something is mapped");
	must_be_charged(MIB, MIB, 0, "after a map of where something is mapped");
	unmap(node, first, GPA, MIB);
	munmap(holes, 2 * MIB);
}

/* ------------------------------------------------------------------ */
/* Registered memory                                                    */
/* ------------------------------------------------------------------ */

static int registration(unsigned long command, const void *memory, size_t size)
{
	struct ioasid_register_memory range = {
		.argsz = sizeof(range),
		.vaddr = (uintptr_t)memory,
		.size = size,
	};

	return ioctl(node, command, &range) < 0 ? errno : 0;
}

static void must_register(unsigned long command, const void *memory, size_t size)
{
	if (registration(command, memory, size))
		die("%s failed: %s", command == IOASID_REGISTER_MEMORY ? "REGISTER_MEMORY" :
		    "UNREGISTER_MEMORY", explanation(node));
}

static void registered(unsigned char *memory)
{
	if (!has_extension(node, IOASID_EXT_REGISTER_MEMORY)) {
		printf("skipped: registered memory: the node has none\n");
		return;
	}
	must_register(IOASID_REGISTER_MEMORY, memory, 3 * MIB);
	must_be_charged(3 * MIB, 0, 0, "with 3 MiB registered");
	map(node, first, GPA, memory, 2 * MIB, MAP_BOTH);
	map(node, first, OTHER_GPA, memory, 3 * MIB, MAP_BOTH);
	map(node, second, GPA, memory + MIB, 2 * MIB, MAP_BOTH);
	must_be_charged(3 * MIB, 0, 0, "with that mapped three times");
	if (registration(IOASID_REGISTER_MEMORY, memory + 3 * MIB, MIB + PAGE) != ENOMEM)
		die("more than the limit can be registered");
	ok("REGISTER_MEMORY of more than the limit leaves is refused: %s", explanation(node));
	says_how_much(3 * MIB, LIMIT);
	must_be_charged(3 * MIB, 0, 0, "after a registration that was refused");
	must_register(IOASID_REGISTER_MEMORY, memory + 3 * MIB, MIB);
	must_be_charged(LIMIT, 0, 0, "with as much registered as the limit allows");
	unmap(node, second, GPA, 2 * MIB);
	unmap(node, first, GPA, 2 * MIB);
	unmap(node, first, OTHER_GPA, 3 * MIB);
	must_be_charged(LIMIT, 0, 0, "with nothing mapped");
	must_register(IOASID_UNREGISTER_MEMORY, memory, 3 * MIB);
	must_be_charged(MIB, 0, 0, "with 3 MiB unregistered");
	must_register(IOASID_UNREGISTER_MEMORY, memory + 3 * MIB, MIB);
	must_be_charged(0, 0, 0, "with all unregistered");
}

/* ------------------------------------------------------------------ */
/* Private memory                                                       */
/* ------------------------------------------------------------------ */

/* What the kernel itself has charged to this program, bytes. */
static unsigned long kernel_charged(void)
{
	FILE *status = fopen("/proc/self/status", "re");
	unsigned long kib = 0;
	char line[256];

	while (status && fgets(line, sizeof(line), status))
		sscanf(line, "VmLck: %lu kB", &kib);
	if (status)
		fclose(status);
	return kib * KIB;
}

/* The device sees what the program has, and the program what the device writes. */
static void reaches(struct device *device, unsigned char *memory, const char *what)
{
	unsigned char sent[100], seen[100] = { 0 };

	fill(memory, sizeof(seen), 1);
	if (!device_reads(device, first, GPA, seen, sizeof(seen)))
		die("%s: DMA read failed. %s", what, explanation(node));
	must_equal(seen, memory, sizeof(seen), what);
	fill(sent, sizeof(sent), 2);
	if (!device_writes(device, first, GPA + PAGE, sent, sizeof(sent)))
		die("%s: DMA write failed. %s", what, explanation(node));
	must_equal(memory + PAGE, sent, sizeof(sent), what);
}

/*
 * The kernel charges the program itself for private memory, once for each group; that is more than
 * the program has to do with, and must not show.
 */
static void private_kind(void)
{
	unsigned char *memory = private_memory(5 * MIB);

	if (!has_extension(node, IOASID_EXT_PRIVATE_MEMORY)) {
		printf("skipped: private memory: the node cannot map it\n");
		return;
	}
	map(node, first, GPA, memory, 3 * MIB, MAP_BOTH);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with 3 MiB of private memory");
	map_is_refused(first, OTHER_GPA, memory + 3 * MIB, MIB + PAGE, ENOMEM,
		       "MAP_DMA of more private memory than the limit leaves");
	says_how_much(3 * MIB, LIMIT);
	must_be_charged(3 * MIB, 3 * MIB, 0, "after the refusal");

	detach(node, b.id, second);
	attach(node, b.id, first);
	must_be_charged(3 * MIB, 3 * MIB, 0, "with a second group for the private memory");
	reaches(&a, memory, "private memory of two groups, by the first device");
	reaches(&b, memory, "private memory of two groups, by the second device");
	map(node, first, OTHER_GPA, memory + 3 * MIB, MIB, MAP_BOTH);
	must_be_charged(LIMIT, LIMIT, 0, "with as much private memory as the limit allows");
	map_is_refused(first, THIRD_GPA, memory + LIMIT, PAGE, ENOMEM,
		       "MAP_DMA of one page over the limit for two groups");
	says_how_much(LIMIT, LIMIT);
	if (a.is_edu)
		printf("the kernel itself has charged %lu KiB for %lu\n", kernel_charged() / KIB,
		       LIMIT / KIB);
	unmap(node, first, GPA, 3 * MIB);
	unmap(node, first, OTHER_GPA, MIB);
	must_be_charged(0, 0, 0, "with all private memory unmapped");
	if (kernel_charged())
		die("with all private memory unmapped, the kernel still charges %lu bytes",
		    kernel_charged());
	detach(node, b.id, first);
	attach(node, b.id, second);

	if (has_extension(node, IOASID_EXT_REGISTER_MEMORY)) {
		must_register(IOASID_REGISTER_MEMORY, memory, 3 * MIB);
		map(node, first, GPA, memory, 3 * MIB, MAP_BOTH);
		must_be_charged(3 * MIB, 0, 0, "with 3 MiB of private memory registered and mapped");
		unmap(node, first, GPA, 3 * MIB);
		must_register(IOASID_UNREGISTER_MEMORY, memory, 3 * MIB);
		must_be_charged(0, 0, 0, "with the private memory unregistered");
	}
	munmap(memory, 5 * MIB);
}

/* ------------------------------------------------------------------ */
/* Opens and processes                                                  */
/* ------------------------------------------------------------------ */

/* What is locked through another open counts as well, until that is closed. */
static void another_open(int other, unsigned char *memory)
{
	struct ioasid_register_memory range = {
		.argsz = sizeof(range),
		.vaddr = (uintptr_t)memory,
		.size = 2 * MIB,
	};

	if (ioctl(other, IOASID_REGISTER_MEMORY, &range) < 0)
		die("REGISTER_MEMORY at another open: %s", explanation(other));
	must_be_charged(2 * MIB, 0, 0, "with 2 MiB registered at another open");
	map_is_refused(first, GPA, memory, 3 * MIB, ENOMEM,
		       "MAP_DMA of more than another open leaves");
	says_how_much(2 * MIB, LIMIT);
	close(other);
	will_be_charged(0, "after the close of the other open");
}

/* Detaches and unbinds a device. */
static void give_back(struct device *device, __u32 ioasid)
{
	detach(node, device->id, ioasid);
	if (device->is_edu) {
		munmap((void *)device->registers,
		       region(device->fd, VFIO_PCI_BAR0_REGION_INDEX).size);
		close(device->fd);
	}
	must(node, IOASID_UNBIND_DEVICE, by_value(device->id), "UNBIND_DEVICE");
}

/* Device B goes to another open, with what it maps there; closing that takes the charge back. */
static void closing_with_mappings(int other, unsigned char *memory)
{
	__u32 ioasid;

	give_back(&b, second);
	bind_device(&b, other);
	ioasid = alloc_ioasid(other);
	attach(other, b.id, ioasid);
	map(other, ioasid, GPA, memory, 3 * MIB, MAP_BOTH);
	must_be_charged(3 * MIB, 0, 0, "with 3 MiB mapped at another open");
	close(other);
	will_be_charged(0, "after the close of an open that mapped them");
}

static void locked_by_an_ordinary_user(int spare_nodes[2])
{
	unsigned char *memory = shared_memory(6 * MIB);
	struct ioasid_info info;

	bind_device(&a, node);
	bind_device(&b, node);
	first = alloc_ioasid(node);
	second = alloc_ioasid(node);
	attach(node, a.id, first);
	attach(node, b.id, second);
	info = get_info(node, first);
	if (info.locked_limit != LIMIT)
		die("GET_INFO gives %llu as the limit instead of %lu", info.locked_limit, LIMIT);
	must_be_charged(0, 0, 0, "at first");

	up_to_the_limit(memory);
	again_and_elsewhere(memory);	/* begins with the 3 MiB that are left */
	two_devices(memory);
	if (has_extension(node, IOASID_EXT_FILE_MEMORY))
		files();
	failures_cost_nothing(memory);
	registered(memory);
	private_kind();
	if (has_extension(node, IOASID_EXT_REGISTER_MEMORY))
		another_open(spare_nodes[0], memory);
	closing_with_mappings(spare_nodes[1], memory);
}

/* Whoever has CAP_IPC_LOCK has no limit, but is counted. */
static void locked_by_root(const char *path)
{
	struct ioasid_info info;

	node = open_node(path);
	bind_device(&a, node);
	first = alloc_ioasid(node);
	attach(node, a.id, first);
	info = get_info(node, first);
	if (info.locked_limit != ~0ULL)
		die("GET_INFO gives %llu as root's limit", info.locked_limit);
	map(node, first, GPA, shared_memory(4 * LIMIT), 4 * LIMIT, MAP_BOTH);
	info = get_info(node, first);
	if (info.locked_used != 4 * LIMIT || info.locked_bytes != 4 * LIMIT)
		die("with %lu bytes mapped, %llu are charged, %llu to the IOASID", 4 * LIMIT,
		    info.locked_used, info.locked_bytes);
	unmap(node, first, GPA, 4 * LIMIT);
	give_back(&a, first);
	ok("root may lock %lu MiB with a limit of %lu", 4 * LIMIT / MIB, LIMIT / MIB);
}

/* Goes on in a child, which alone then has the nodes open. */
static void run_as_child(int spare_nodes[2])
{
	pid_t child;
	int status;

	fflush(stdout);
	child = fork();
	if (!child)
		return;
	close(spare_nodes[0]);
	close(spare_nodes[1]);
	if (child < 0 || waitpid(child, &status, 0) < 0)
		die("cannot start a process: %s", strerror(errno));
	exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

int main(int argc, char **argv)
{
	struct rlimit limit = { .rlim_cur = LIMIT, .rlim_max = LIMIT };
	bool is_root = geteuid() == 0;
	int spare_nodes[2], next = 2, status;
	pid_t child;

	if (argc < 4)
		die("usage: locked-limit NODE DEVICE-A DEVICE-B");
	next += take_device(argv + next, &a);
	next += take_device(argv + next, &b);
	if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0)
		skip("cannot set RLIMIT_MEMLOCK to %lu: %s", LIMIT, strerror(errno));
	if (is_root) {
		fflush(stdout);
		child = fork();
		if (!child) {
			locked_by_root(argv[1]);
			return 0;
		}
		if (child < 0 || waitpid(child, &status, 0) < 0 || status)
			die("root's part has failed");
	}
	/* What only root may open is opened now. */
	prepare_device(&a);
	prepare_device(&b);
	node = open_node(argv[1]);
	for (int i = 0; i < 2; i++)
		spare_nodes[i] = open_node(argv[1]);
	run_as_child(spare_nodes);
	if (is_root && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
			setresuid(NOBODY, NOBODY, NOBODY) < 0))
		skip("cannot become user %d: %s; start this as an ordinary user", NOBODY,
		     strerror(errno));
	locked_by_an_ordinary_user(spare_nodes);
	return 0;
}
