/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * moving NODE DEVICE-A DEVICE-B [--without-registers]
 *
 * Open, running devices move between IOASIDs, and a second one is attached to an IOASID that has
 * mappings, of every kind of memory. The devices are written as in device.h, and have a group
 * each.
 *
 * Rules: a device that was moved reaches what its new IOASID maps, right away, and nothing else;
 * detached, it reaches nothing. Files move whoever mapped them. Private memory can be pinned for
 * another device by its own process alone, and only while it is still there: if it cannot, the
 * attach is refused as a whole, the device stays unattached, and everything else stays as it is.
 * (Simulated devices pin nothing: their DMA faults instead.)
 *
 * --without-registers: do not map the registers of DEVICE-B for DEVICE-A.
 */
#include "device.h"

#include <sys/wait.h>

#define FIRST_IOVA	0x100000UL
#define IOVA_STEP	0x400000UL
#define HUGE_SIZE	(2 * MIB)
#define SIZE		(12 * PAGE)
#define MAX_KINDS	16

/* The register of an edu device that reads back as the complement of what was written. */
#define EDU_LIVENESS	0x04

struct kind {
	const char *name;
	unsigned char *look;		/* where the program sees the bytes; NULL for registers */
	const volatile void *memory;	/* what is mapped, unless it is a file */
	int fd;				/* the file that is mapped, or -1 */
	size_t size;
	struct device *registers_of;
	__u64 iova;
};

static struct device a, b;
static int node;
static struct kind kinds[MAX_KINDS];
static unsigned int nr_kinds;
static __u32 seed;
static bool without_registers;
static int heard;		/* a pipe from the other process, while there is one */

/* ------------------------------------------------------------------ */
/* Kinds of memory                                                      */
/* ------------------------------------------------------------------ */

static struct kind *add_kind(const char *name, const volatile void *memory, size_t size)
{
	struct kind *kind = &kinds[nr_kinds];

	if (nr_kinds == MAX_KINDS)
		die("too many kinds");
	*kind = (struct kind){
		.name = name,
		.look = (unsigned char *)memory,
		.memory = memory,
		.fd = -1,
		.size = size,
		.iova = FIRST_IOVA + nr_kinds * IOVA_STEP,
	};
	nr_kinds++;
	return kind;
}

static unsigned char *private_memory(size_t size, int flags)
{
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	fill(memory, size, ++seed);
	return memory;
}

static void add_file(const char *name, size_t size, unsigned int flags, bool by_descriptor)
{
	int fd = memfd_create("moving", MFD_CLOEXEC | flags);
	unsigned char *look;
	struct kind *kind;

	if (fd < 0 || ftruncate(fd, size) < 0) {
		printf("skipped: %s: %s\n", name, strerror(errno));
		return;
	}
	look = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (look == MAP_FAILED) {
		printf("skipped: %s: %s\n", name, strerror(errno));
		close(fd);
		return;
	}
	fill(look, size, ++seed);
	kind = add_kind(name, look, size);
	if (by_descriptor)
		kind->fd = fd;
}

static void map_kind(__u32 ioasid, const struct kind *kind)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, kind->iova, (const void *)kind->memory,
						kind->size, MAP_BOTH);
	char what[128];

	if (kind->fd >= 0) {
		dma_map.flags |= IOASID_MAP_FILE;
		dma_map.fd = kind->fd;
		dma_map.vaddr = 0;
	}
	snprintf(what, sizeof(what), "MAP_DMA of %s", kind->name);
	must(node, IOASID_MAP_DMA, &dma_map, what);
}

static void make_kinds(void)
{
	unsigned char *memory;
	int fd;

	add_file("a memfd", SIZE, 0, false);
	if (has_extension(node, IOASID_EXT_FILE_MEMORY))
		add_file("a file by its descriptor", SIZE, 0, true);
	add_file("shared huge pages", HUGE_SIZE, MFD_HUGETLB, false);
	if (!has_extension(node, IOASID_EXT_PRIVATE_MEMORY))
		return;
	add_kind("private memory", private_memory(SIZE, 0), SIZE);
	memory = private_memory(HUGE_SIZE, MAP_HUGETLB);
	if (memory)
		add_kind("private huge pages", memory, HUGE_SIZE);
	else
		printf("skipped: private huge pages: %s\n", strerror(errno));
	memory = private_memory(3 * PAGE, 0);
	fd = memfd_create("moving", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, PAGE) < 0 ||
	    mmap(memory + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
		    MAP_FAILED)
		die("cannot make memory of two kinds: %s", strerror(errno));
	add_kind("private, shared and private memory in one range", memory, 3 * PAGE);
	if (a.is_edu && !without_registers) {
		struct kind *kind = add_kind("the registers of another device", b.registers, PAGE);

		kind->look = NULL;
		kind->registers_of = &b;
	}
}

/* ------------------------------------------------------------------ */
/* DMA                                                                  */
/* ------------------------------------------------------------------ */

static void reaches_registers(struct device *device, __u32 ioasid, const struct kind *kind,
			      const char *when)
{
	__u32 value = 0x01010101 * (++seed & 0x7f), seen = 0;

	/* A device that reads its own registers while it is busy is a thing of its own. */
	if (kind->registers_of == device)
		return;
	device_writes(device, ioasid, kind->iova + EDU_LIVENESS, &value, sizeof(value));
	if (read32(kind->registers_of->registers, EDU_LIVENESS) != ~value)
		die("%s: the device does not write %s", when, kind->name);
	device_reads(device, ioasid, kind->iova + EDU_LIVENESS, &seen, sizeof(seen));
	if (seen != ~value)
		die("%s: the device does not read %s", when, kind->name);
}

/* The device reads what the program wrote, and the program sees what the device writes. */
static void reaches(struct device *device, __u32 ioasid, const struct kind *kind, const char *when)
{
	size_t size = 600, from = PAGE - 200, to = kind->size - PAGE - 300;
	unsigned char sent[600], seen[600] = { 0 };
	char what[160];

	if (!kind->look) {
		reaches_registers(device, ioasid, kind, when);
		return;
	}
	snprintf(what, sizeof(what), "%s, %s", when, kind->name);
	fill(kind->look + from, size, ++seed);
	if (!device_reads(device, ioasid, kind->iova + from, seen, size))
		die("%s: DMA read failed. %s", what, explanation(node));
	must_equal(seen, kind->look + from, size, what);
	fill(sent, size, ++seed);
	if (!device_writes(device, ioasid, kind->iova + to, sent, size))
		die("%s: DMA write failed. %s", what, explanation(node));
	must_equal(kind->look + to, sent, size, what);
}

static void reaches_all(struct device *device, __u32 ioasid, const char *when)
{
	for (unsigned int i = 0; i < nr_kinds; i++)
		reaches(device, ioasid, &kinds[i], when);
	ok("%s, the device reaches all %u kinds", when, nr_kinds);
}

/* Has the device write to each kind, with which it must not come through. */
static void reaches_nothing(struct device *device, const char *when)
{
	static const unsigned char sent[64] = "to where nothing is";
	unsigned char before[64];

	for (unsigned int i = 0; i < nr_kinds; i++) {
		const struct kind *kind = &kinds[i];
		bool written;

		if (!kind->look)
			continue;
		memcpy(before, kind->look, sizeof(before));
		if (device->is_edu) {
			edu_write(device->registers, kind->iova, 0, sizeof(sent));
			written = false;
		} else {
			written = device_writes(device, 0, kind->iova, sent, sizeof(sent));
		}
		if (written || memcmp(before, kind->look, sizeof(before)))
			die("%s, the device still reaches %s", when, kind->name);
		if (device->is_edu && i == 2)
			break;
	}
	ok("%s, the device reaches nothing", when);
}

/* The edu device's buffer gets bytes that would be seen. */
static void arm(struct device *device, __u32 ioasid)
{
	unsigned char bytes[64];

	if (!device->is_edu)
		return;
	fill(bytes, sizeof(bytes), ++seed);
	device->loaded = false;
	memcpy(device->window, bytes, sizeof(bytes));
	map(node, ioasid, WINDOW_IOVA, device->window, PAGE, IOASID_MAP_READ);
	edu_read(device->registers, WINDOW_IOVA, 0, sizeof(bytes));
	unmap(node, ioasid, WINDOW_IOVA, PAGE);
}

/* ------------------------------------------------------------------ */
/* Moves                                                                */
/* ------------------------------------------------------------------ */

static void same_contents(__u32 ioasid, const struct ioasid_info *before, const char *when)
{
	struct ioasid_info info = get_info(node, ioasid);

	if (info.nr_mappings != before->nr_mappings || info.mapped_bytes != before->mapped_bytes ||
	    info.locked_bytes != before->locked_bytes || info.locked_used != before->locked_used)
		die("%s, the IOASID holds %llu mappings of %llu bytes, %llu locked, instead of %llu of "
		    "%llu, %llu locked", when, info.nr_mappings, info.mapped_bytes,
		    info.locked_bytes, before->nr_mappings, before->mapped_bytes,
		    before->locked_bytes);
}

/*
 * Away to an IOASID with other memory at the same place, and back. With registered memory about,
 * what is mapped besides it is files by their descriptors.
 */
static void away_and_back(__u32 home, __u32 away, bool registered)
{
	struct ioasid_info before = get_info(node, home);
	unsigned int in_between = nr_kinds;
	struct kind other;

	arm(&a, home);
	detach(node, a.id, home);
	reaches_nothing(&a, "detached");
	same_contents(home, &before, "after the detach");

	/* What is mapped while no device is attached has to be there for the next. */
	add_file("a memfd mapped while no device was there", SIZE, 0, registered);
	map_kind(home, &kinds[in_between]);
	if (has_extension(node, IOASID_EXT_PRIVATE_MEMORY) && !registered) {
		add_kind("private memory mapped while no device was there",
			 private_memory(SIZE, 0), SIZE);
		map_kind(home, &kinds[in_between + 1]);
	}

	attach(node, a.id, away);
	add_file("what the other IOASID maps", SIZE, 0, registered);
	other = kinds[--nr_kinds];
	other.iova = kinds[0].iova;
	map_kind(away, &other);
	reaches(&a, away, &other, "moved to another IOASID");
	unmap(node, away, other.iova, other.size);
	detach(node, a.id, away);
	attach(node, a.id, home);
	reaches_all(&a, home, "moved to another IOASID and back");

	before = get_info(node, home);
	for (int i = 0; i < 10; i++) {
		detach(node, a.id, home);
		attach(node, a.id, away);
		detach(node, a.id, away);
		attach(node, a.id, home);
	}
	same_contents(home, &before, "after ten moves");
	reaches_all(&a, home, "after ten moves");
}

static void a_second_device(__u32 home)
{
	struct ioasid_info before = get_info(node, home);

	attach(node, b.id, home);
	same_contents(home, &before, "with a second device");
	reaches_all(&b, home, "attached to an IOASID that has mappings");
	reaches_all(&a, home, "with a second device beside it");
	arm(&a, home);
	detach(node, a.id, home);
	reaches_nothing(&a, "detached while the other stays");
	reaches_all(&b, home, "left alone by the other device");
	attach(node, a.id, home);
	detach(node, b.id, home);
	reaches_all(&a, home, "attached again, and left alone by the other device");
}

/* ------------------------------------------------------------------ */
/* Memory that does not move                                            */
/* ------------------------------------------------------------------ */

static __u32 attached_to(const struct device *device)
{
	struct ioasid_device_info info = { .argsz = sizeof(info), .device = device->id };

	must(node, IOASID_GET_DEVICE_INFO, &info, "GET_DEVICE_INFO");
	return info.ioasid;
}

/* The attach has to be refused as a whole. The explanation names the process, if there is one. */
static void attach_is_refused(const struct device *device, __u32 ioasid, pid_t process,
			      const char *why)
{
	struct ioasid_attach_device at_data = attachment(device->id, ioasid);
	struct ioasid_info before = get_info(node, ioasid);
	char what[160], number[16];

	snprintf(what, sizeof(what), "ATTACH_DEVICE with %s", why);
	must_refuse(node, IOASID_ATTACH_DEVICE, &at_data, EFAULT, what);
	snprintf(number, sizeof(number), "%d", process);
	if (process && !strstr(explanation(node), number))
		die("the explanation does not name process %d", process);
	if (attached_to(device))
		die("%s was refused, and the device is attached to %u", what, attached_to(device));
	same_contents(ioasid, &before, "after the refused attach");
}

/*
 * A process of its own maps a kind, and waits until it is told to end. Kinds of private memory
 * it makes itself.
 */
static pid_t mapper(__u32 ioasid, struct kind *kind, bool private, int *hold)
{
	int told[2], held[2];
	pid_t child;
	char byte;

	if (pipe2(told, O_CLOEXEC) < 0 || pipe2(held, O_CLOEXEC) < 0)
		die("no pipes: %s", strerror(errno));
	fflush(stdout);
	child = fork();
	if (!child) {
		close(held[1]);
		if (private) {
			kind->memory = kind->look = private_memory(kind->size, 0);
			fill(kind->look, kind->size, 70);
		}
		map_kind(ioasid, kind);
		if (write(told[1], "x", 1) != 1)
			_exit(1);
		/* Asked to attach device B to what this process has mapped. */
		if (read(held[0], &byte, 1) == 1) {
			attach(node, b.id, ioasid);
			if (write(told[1], "x", 1) != 1 || read(held[0], &byte, 1))
				_exit(1);
		}
		_exit(0);
	}
	close(told[1]);
	close(held[0]);
	if (child < 0 || read(told[0], &byte, 1) != 1)
		die("another process cannot map %s", kind->name);
	*hold = held[1];
	heard = told[0];
	return child;
}

static void end(pid_t child, int hold)
{
	int status;

	close(hold);
	close(heard);
	if (waitpid(child, &status, 0) < 0 || status)
		die("the other process has failed");
}

/* What the device sees of private memory of another process. */
static bool sees_theirs(struct device *device, __u32 ioasid, const struct kind *kind)
{
	unsigned char expected[64], seen[64] = { 0 };

	fill(expected, sizeof(expected), 70);
	return device_reads(device, ioasid, kind->iova, seen, sizeof(seen)) &&
	       !memcmp(seen, expected, sizeof(seen));
}

static void files_move_without_their_mapper(__u32 home)
{
	struct kind kind = kinds[0];
	pid_t child;
	int hold;

	kind.name = "a memfd that an ended process has mapped";
	kind.iova = FIRST_IOVA + MAX_KINDS * IOVA_STEP;
	child = mapper(home, &kind, false, &hold);
	end(child, hold);
	reaches(&a, home, &kind, "where it was");
	detach(node, a.id, home);
	attach(node, a.id, home);
	reaches(&a, home, &kind, "moved");
	attach(node, b.id, home);
	reaches(&b, home, &kind, "with a second device");
	detach(node, b.id, home);
	unmap(node, home, kind.iova, kind.size);
	ok("a memfd moves although the process that mapped it has ended");
}

static void private_memory_stays(__u32 home, __u32 away)
{
	struct kind theirs = { .name = "private memory of another process", .fd = -1, .size = SIZE };
	pid_t child;
	int hold;
	char byte;

	theirs.iova = FIRST_IOVA + MAX_KINDS * IOVA_STEP;
	child = mapper(home, &theirs, true, &hold);
	if (!sees_theirs(&a, home, &theirs))
		die("the device does not reach private memory of another process");
	if (!b.is_edu) {
		attach(node, b.id, home);
		if (!sees_theirs(&b, home, &theirs))
			die("a second simulated device does not reach it");
		detach(node, b.id, home);
		end(child, hold);
		if (sees_theirs(&a, home, &theirs))
			die("DMA to memory of a process that has ended did not fault");
		ok("simulated DMA to memory of a process that has ended faults: %s",
		   explanation(node));
		unmap(node, home, theirs.iova, theirs.size);
		return;
	}
	attach_is_refused(&b, home, child, "private memory of a process that is not the caller");
	reaches_all(&a, home, "after the refusal");

	end(child, hold);
	if (!sees_theirs(&a, home, &theirs))
		die("the device lost private memory when its process ended");
	ok("what an ended process had mapped stays with the device that has it");
	attach_is_refused(&b, home, child, "private memory of a process that has ended");
	reaches_all(&a, home, "after the refusal for another device");
	detach(node, a.id, home);
	attach_is_refused(&a, home, child, "private memory of a process that has ended");
	attach(node, a.id, away);
	map_kind(away, &kinds[0]);
	reaches(&a, away, &kinds[0], "at another IOASID after the refusal");
	unmap(node, away, kinds[0].iova, kinds[0].size);
	detach(node, a.id, away);
	unmap(node, home, theirs.iova, theirs.size);
	attach(node, a.id, home);
	reaches_all(&a, home, "after what could not move was unmapped");

	/* The process itself can attach a device to what it has mapped. */
	detach(node, a.id, home);
	attach(node, a.id, away);
	child = mapper(away, &theirs, true, &hold);
	attach_is_refused(&b, away, child, "private memory of a process that is not the caller");
	if (write(hold, "x", 1) != 1 || read(heard, &byte, 1) != 1)
		die("the process that owns the memory cannot attach the device");
	if (!sees_theirs(&b, away, &theirs))
		die("the device does not reach what the process mapped that attached it");
	ok("the process that has mapped it can attach another device to it");
	end(child, hold);
	detach(node, b.id, away);
	unmap(node, away, theirs.iova, theirs.size);
	detach(node, a.id, away);
	attach(node, a.id, home);
}

/* The program's own memory that was pinned, and is not there any more. */
static void memory_that_is_gone(__u32 home)
{
	__u64 iova = FIRST_IOVA + MAX_KINDS * IOVA_STEP;
	unsigned char *memory = private_memory(SIZE, 0);
	int fd = memfd_create("moving", MFD_CLOEXEC);

	map(node, home, iova, memory, SIZE, MAP_BOTH);
	munmap(memory, SIZE);
	attach_is_refused(&b, home, 0, "private memory that was unmapped in the middle of others");
	reaches_all(&a, home, "after the refusal for another device");
	detach(node, a.id, home);
	attach_is_refused(&a, home, 0, "private memory that was unmapped");
	unmap(node, home, iova, SIZE);
	attach(node, a.id, home);
	reaches_all(&a, home, "after what was gone was unmapped");

	if (fd < 0 || ftruncate(fd, SIZE) < 0)
		die("cannot make a memfd: %s", strerror(errno));
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	map(node, home, iova, memory, SIZE, MAP_BOTH);
	if (ftruncate(fd, PAGE) < 0)
		die("ftruncate failed: %s", strerror(errno));
	attach_is_refused(&b, home, 0, "a file that was cut short");
	reaches_all(&a, home, "after the refusal for another device");
	if (ftruncate(fd, SIZE) < 0)
		die("ftruncate failed: %s", strerror(errno));
	attach(node, b.id, home);
	detach(node, b.id, home);
	unmap(node, home, iova, SIZE);
	munmap(memory, SIZE);
	close(fd);
	ok("a file that is whole again moves");
}

/* ------------------------------------------------------------------ */
/* Registered memory                                                    */
/* ------------------------------------------------------------------ */

static void registration(unsigned long command, const volatile void *memory, size_t size,
			 const char *what)
{
	struct ioasid_register_memory range = {
		.argsz = sizeof(range),
		.vaddr = (uintptr_t)memory,
		.size = size,
	};

	must(node, command, &range, what);
}

static void registered_memory_moves(__u32 home, __u32 away)
{
	bool private = has_extension(node, IOASID_EXT_PRIVATE_MEMORY);

	nr_kinds = 0;
	add_file("a registered memfd", SIZE, 0, false);
	add_file("registered huge pages", HUGE_SIZE, MFD_HUGETLB, false);
	if (private)
		add_kind("registered private memory", private_memory(SIZE, 0), SIZE);
	for (unsigned int i = 0; i < nr_kinds; i++)
		registration(IOASID_REGISTER_MEMORY, kinds[i].memory, kinds[i].size, kinds[i].name);
	if (a.is_edu)
		registration(IOASID_REGISTER_MEMORY, a.window, PAGE, "the window of device A");
	if (b.is_edu)
		registration(IOASID_REGISTER_MEMORY, b.window, PAGE, "the window of device B");
	add_file("a file by its descriptor, beside registered memory", SIZE, 0, true);
	for (unsigned int i = 0; i < nr_kinds; i++)
		map_kind(home, &kinds[i]);
	reaches_all(&a, home, "with registered memory");
	away_and_back(home, away, true);
	a_second_device(home);
}

int main(int argc, char **argv)
{
	int next = 2;
	__u32 home, away;

	if (argc < 4)
		die("usage: moving NODE DEVICE-A DEVICE-B [--without-registers]");
	next += take_device(argv + next, &a);
	next += take_device(argv + next, &b);
	without_registers = argv[next] && !strcmp(argv[next], "--without-registers");
	if (next + without_registers != argc || a.is_edu != b.is_edu)
		die("name two devices, both simulated or both edu");
	node = open_node(argv[1]);
	bind_device(&a, node);
	bind_device(&b, node);
	home = alloc_ioasid(node);
	away = alloc_ioasid(node);
	attach(node, a.id, home);
	/* What an IOASID that has had a device holds, it keeps without one too. */
	attach(node, b.id, away);
	detach(node, b.id, away);

	make_kinds();
	for (unsigned int i = 0; i < nr_kinds; i++)
		map_kind(home, &kinds[i]);
	reaches_all(&a, home, "at first");
	away_and_back(home, away, false);
	a_second_device(home);
	files_move_without_their_mapper(home);
	if (has_extension(node, IOASID_EXT_PRIVATE_MEMORY)) {
		private_memory_stays(home, away);
		if (a.is_edu)
			memory_that_is_gone(home);
	}
	unmap(node, home, FIRST_IOVA, EDU_IOVA_LAST + 1 - FIRST_IOVA);

	if (has_extension(node, IOASID_EXT_REGISTER_MEMORY))
		registered_memory_moves(home, away);
	else
		printf("skipped: registered memory: the node has none\n");
	return 0;
}
