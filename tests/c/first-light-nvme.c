/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * first-light-nvme NODE ADDRESS GROUP
 *
 * The flow of section 5.1 of the proposal with an NVMe controller on VFIO, driven by the program
 * itself. Device to memory: the controller identifies itself and reads a block into mapped
 * pages. Memory to device: it fetches its commands from mapped pages, and compares a block
 * of its own with mapped memory, byte for byte, which leaves the drive as it is.
 *
 * Registers and commands are those of the NVM Express Base Specification 1.4; the sections
 * are named below.
 */
#include "vfio.h"

/* Above 4 GiB, so that all of the address is seen to count */
#define GPA		0x140000000UL

/* One page each, in this order, for: */
enum { ADMIN_SQ, ADMIN_CQ, IO_SQ, IO_CQ, IDENTIFY, DATA, NR_PAGES };
#define SIZE		(NR_PAGES * PAGE)

/* Section 3.1: controller registers */
#define REG_CAP		0x00
#define REG_CC		0x14
#define REG_CSTS	0x1c
#define REG_AQA		0x24
#define REG_ASQ		0x28
#define REG_ACQ		0x30
#define REG_DOORBELLS	0x1000

#define CC_ENABLE	1U
#define CC_ENTRY_SIZES	(6U << 16 | 4U << 20)	/* 64 bytes a command, 16 a completion */
#define CSTS_READY	1U
#define CSTS_FATAL	2U

/* Sections 5 and 6: opcodes */
#define ADMIN_CREATE_SQ	0x01
#define ADMIN_CREATE_CQ	0x05
#define ADMIN_IDENTIFY	0x06
#define IO_READ		0x02
#define IO_COMPARE	0x05
#define STATUS_COMPARE_FAILED	0x285	/* media error, compare failure */

#define ENTRIES		16U

struct command {
	__u32 opcode_and_id;
	__u32 namespace;
	__u64 reserved;
	__u64 metadata;
	__u64 data, data2;
	__u32 dword10, dword11, dword12, dword13, dword14, dword15;
};
_Static_assert(sizeof(struct command) == 64, "section 4.2");

struct completion {
	__u32 result;
	__u32 reserved;
	__u16 sq_head, sq_id;
	__u16 command_id;
	__u16 status;			/* bit 0 is the phase */
};
_Static_assert(sizeof(struct completion) == 16, "section 4.6");

struct queue {
	struct command *commands;
	volatile struct completion *completions;
	unsigned int id, tail, head, phase;
};

struct nvme {
	volatile void *registers;
	unsigned char *memory;
	size_t doorbell_stride;
	struct queue admin, io;
};

static unsigned char *page(const struct nvme *nvme, int which)
{
	return nvme->memory + which * PAGE;
}

static __u64 page_iova(int which)
{
	return GPA + which * PAGE;
}

static struct queue make_queue(const struct nvme *nvme, unsigned int id, int sq, int cq)
{
	struct queue queue = {
		.commands = (struct command *)page(nvme, sq),
		.completions = (struct completion *)page(nvme, cq),
		.id = id,
		.phase = 1,
	};

	return queue;
}

static size_t doorbell(const struct nvme *nvme, const struct queue *queue, bool completion)
{
	return REG_DOORBELLS + (2 * queue->id + completion) * nvme->doorbell_stride;
}

/* Submits one command, waits for it and gives its status, 0 for success. */
static unsigned int submit(const struct nvme *nvme, struct queue *queue, struct command command)
{
	volatile struct completion *completion = &queue->completions[queue->head];
	double give_up = now() + 30;
	unsigned int status;

	command.opcode_and_id |= (queue->tail + 1) << 16;
	queue->commands[queue->tail] = command;
	queue->tail = (queue->tail + 1) % ENTRIES;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	write32(nvme->registers, doorbell(nvme, queue, false), queue->tail);

	while ((completion->status & 1) != queue->phase) {
		if (read32(nvme->registers, REG_CSTS) & CSTS_FATAL)
			die("the controller reports a fatal error: its DMA does not work");
		if (now() > give_up)
			die("the controller has not answered in 30 s: its DMA does not work");
		sleep_ms(1);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	status = completion->status >> 1 & 0x7ff;
	if (completion->command_id != command.opcode_and_id >> 16)
		die("the controller answered command %u instead of %u", completion->command_id,
		    command.opcode_and_id >> 16);
	queue->head = (queue->head + 1) % ENTRIES;
	if (!queue->head)
		queue->phase = !queue->phase;
	write32(nvme->registers, doorbell(nvme, queue, true), queue->head);
	return status;
}

static void must_submit(const struct nvme *nvme, struct queue *queue, struct command command,
			const char *doing)
{
	unsigned int status = submit(nvme, queue, command);

	if (status)
		die("%s failed with status %#x", doing, status);
}

static void wait_ready(const struct nvme *nvme, __u32 ready)
{
	double give_up = now() + 30;

	while ((read32(nvme->registers, REG_CSTS) & CSTS_READY) != ready) {
		if (now() > give_up)
			die("the controller did not become %s", ready ? "ready" : "idle");
		sleep_ms(1);
	}
}

/* Section 7.6.1: initialization. The controller reads and writes nothing before this. */
static void enable(struct nvme *nvme)
{
	write32(nvme->registers, REG_CC, 0);
	wait_ready(nvme, 0);
	nvme->doorbell_stride = 4UL << (read64(nvme->registers, REG_CAP) >> 32 & 0xf);
	nvme->admin = make_queue(nvme, 0, ADMIN_SQ, ADMIN_CQ);
	write32(nvme->registers, REG_AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	write64(nvme->registers, REG_ASQ, page_iova(ADMIN_SQ));
	write64(nvme->registers, REG_ACQ, page_iova(ADMIN_CQ));
	write32(nvme->registers, REG_CC, CC_ENTRY_SIZES | CC_ENABLE);
	wait_ready(nvme, 1);
}

static void disable(const struct nvme *nvme)
{
	write32(nvme->registers, REG_CC, 0);
	wait_ready(nvme, 0);
}

/* Section 5.15: identify, the controller or a namespace. */
static void identify(struct nvme *nvme, __u32 namespace, __u32 what)
{
	struct command command = {
		.opcode_and_id = ADMIN_IDENTIFY,
		.namespace = namespace,
		.data = page_iova(IDENTIFY),
		.dword10 = what,
	};

	memset(page(nvme, IDENTIFY), 0xee, PAGE);
	must_submit(nvme, &nvme->admin, command, "Identify");
}

/* Sections 5.3 and 5.4: a pair of queues for reading and comparing. */
static void make_io_queues(struct nvme *nvme)
{
	struct command cq = {
		.opcode_and_id = ADMIN_CREATE_CQ,
		.data = page_iova(IO_CQ),
		.dword10 = (ENTRIES - 1) << 16 | 1,
		.dword11 = 1,			/* one contiguous piece, no interrupts */
	};
	struct command sq = {
		.opcode_and_id = ADMIN_CREATE_SQ,
		.data = page_iova(IO_SQ),
		.dword10 = (ENTRIES - 1) << 16 | 1,
		.dword11 = 1 << 16 | 1,		/* completions go to queue 1 */
	};

	nvme->io = make_queue(nvme, 1, IO_SQ, IO_CQ);
	must_submit(nvme, &nvme->admin, cq, "Create I/O Completion Queue");
	must_submit(nvme, &nvme->admin, sq, "Create I/O Submission Queue");
}

/* The first page of the drive: read into, or compared with, the page DATA. */
static struct command on_first_page(unsigned int opcode, unsigned int blocks)
{
	struct command command = {
		.opcode_and_id = opcode,
		.namespace = 1,
		.data = page_iova(DATA),
		.dword12 = blocks - 1,
	};

	return command;
}

static void device_to_memory(struct nvme *nvme)
{
	char serial[21], model[41];

	identify(nvme, 0, 1);
	memcpy(serial, page(nvme, IDENTIFY) + 4, 20);
	memcpy(model, page(nvme, IDENTIFY) + 24, 40);
	serial[20] = model[40] = '\0';
	for (const char *c = serial; *c; c++)
		if (*c < ' ' || *c > '~')
			die("the serial number is no text: Identify did not reach the memory");
	ok("the controller wrote who it is: model \"%.*s\", serial number \"%.*s\"",
	   (int)strcspn(model, " "), model, (int)strcspn(serial, " "), serial);
}

/* How many blocks make a page. */
static unsigned int blocks_per_page(struct nvme *nvme)
{
	const unsigned char *info = page(nvme, IDENTIFY);
	unsigned int format, shift;

	identify(nvme, 1, 0);
	format = info[26] & 0xf;
	shift = info[128 + 4 * format + 2];
	if (shift < 9 || shift > 12)
		die("blocks of 2^%u bytes do not suit this program", shift);
	return PAGE >> shift;
}

static void memory_to_device(struct nvme *nvme)
{
	unsigned int blocks = blocks_per_page(nvme), status;
	unsigned char *data = page(nvme, DATA);

	make_io_queues(nvme);
	/* Whatever the drive holds, one of two fillings differs from it. */
	memset(data, 0xa5, PAGE);
	must_submit(nvme, &nvme->io, on_first_page(IO_READ, blocks), "Read");
	if (all_bytes_are(data, PAGE, 0xa5)) {
		memset(data, 0x5a, PAGE);
		must_submit(nvme, &nvme->io, on_first_page(IO_READ, blocks), "Read");
		if (all_bytes_are(data, PAGE, 0x5a))
			die("Read succeeded and the memory has not changed");
	}
	ok("the controller wrote a page of the drive to memory");

	must_submit(nvme, &nvme->io, on_first_page(IO_COMPARE, blocks), "Compare");
	ok("it read the page back from memory and found it equal to the drive's");
	for (size_t offset = 0; offset < PAGE; offset += 1365) {
		data[offset] ^= 0x40;
		status = submit(nvme, &nvme->io, on_first_page(IO_COMPARE, blocks));
		if ((status & 0x3ff) != (STATUS_COMPARE_FAILED & 0x3ff))
			die("Compare with byte %zu changed gave status %#x", offset, status);
		data[offset] ^= 0x40;
	}
	ok("with any one byte changed it finds a difference");
}

int main(int argc, char **argv)
{
	struct nvme nvme;
	int ioasid_fd, group, device_fd;
	__u32 dev1, gpa_ioasid;

	if (argc != 4)
		die("usage: first-light-nvme NODE ADDRESS GROUP");

	/* Bind device to IOASID fd */
	group = open_group(argv[3]);
	ioasid_fd = open_node(argv[1]);
	dev1 = bind_group(ioasid_fd, group, argv[2], 0);
	device_fd = open_device(group, argv[2]);
	enable_bus_master(device_fd);
	nvme.registers = map_bar0(device_fd);

	/* Attach device to IOASID */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1, gpa_ioasid);

	/* Setup GPA mapping */
	nvme.memory = shared_memory(SIZE);
	map(ioasid_fd, gpa_ioasid, GPA, nvme.memory, SIZE, MAP_BOTH);

	enable(&nvme);
	ok("the controller is ready; its queues are in the program's memory");
	device_to_memory(&nvme);
	memory_to_device(&nvme);
	disable(&nvme);

	unmap(ioasid_fd, gpa_ioasid, GPA, SIZE);
	detach(ioasid_fd, dev1, gpa_ioasid);
	ok("unmapped and detached");
	return 0;
}
