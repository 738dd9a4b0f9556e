/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * attacker NODE DEVICE [TRIES]
 *
 * Tries to have a device write to a file that the program may only read. One thread flips what
 * is mapped at an address between memory of the program's own (a file, a memfd, private memory)
 * and that file (shared and private, to be read, and private to be written, which is a copy);
 * another maps the address for devices to write, and has the device (written as in device.h) write
 * there. The daemon that looks first and opens afterwards loses this race.
 *
 * Rule: the file never changes, in TRIES (default 2000) tries. An edu device is slow: it writes in
 * some of the tries only, and the others show in the file if it was mapped to be written.
 *
 * Started as root, it makes the file root's, and attacks as user 65534.
 */
#include "device.h"

#include <grp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define GPA		0x100000UL
#define NOBODY		65534
#define MARKER		"written by a device"

/* How often an edu device writes. */
#define EDU_WRITES	60

/* One way in which memory can lie at the address. */
struct kind {
	const char *name;
	int *fd;
	int protection;
	int flags;
};

static char protected_path[64];
static unsigned char original[PAGE];
static unsigned char *target;		/* the address whose mapping flips */
static int own_file, own_memfd, protected_fd, none = -1;
static atomic_bool stop;
static atomic_ulong flips;

static const struct kind own_kinds[] = {
	{ "a file of its own", &own_file, PROT_READ | PROT_WRITE, MAP_SHARED },
	{ "a memfd of its own", &own_memfd, PROT_READ | PROT_WRITE, MAP_SHARED },
	{ "private memory", &none, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS },
};

static const struct kind protected_kinds[] = {
	{ "the file, shared", &protected_fd, PROT_READ, MAP_SHARED },
	{ "the file, private", &protected_fd, PROT_READ, MAP_PRIVATE },
	{ "the file, as a private copy", &protected_fd, PROT_READ | PROT_WRITE, MAP_PRIVATE },
};

#define KINDS	3

static void put(const struct kind *kind)
{
	if (mmap(target, PAGE, kind->protection, kind->flags | MAP_FIXED, *kind->fd, 0) ==
	    MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
}

static unsigned int any(unsigned int *state)
{
	*state = *state * 1664525U + 1013904223U;
	return *state >> 16;
}

/* Of every order of magnitude alike; the long ones leave the processor to the daemon. */
static void pause_briefly(unsigned int *state)
{
	unsigned int length = any(state) >> (any(state) % 16);
	struct timespec time = { .tv_nsec = length };

	if (length > 1024)
		nanosleep(&time, NULL);
	else
		for (volatile unsigned int i = length; i; i--)
			;
}

static void *flip(void *unused)
{
	unsigned int state = 1;

	(void)unused;
	while (!atomic_load(&stop)) {
		put(&own_kinds[any(&state) % KINDS]);
		pause_briefly(&state);
		put(&protected_kinds[any(&state) % KINDS]);
		pause_briefly(&state);
		atomic_fetch_add(&flips, 1);
	}
	return NULL;
}

static void must_be_unchanged(const unsigned char *protected, unsigned long try)
{
	if (memcmp(protected, original, PAGE))
		die("the device has written to a file that this program may only read, in try %lu",
		    try);
}

/* Without a race: what may be mapped to be written, and what may not. */
static void one_by_one(struct device *device, __u32 ioasid, const unsigned char *protected)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, target, PAGE, IOASID_MAP_WRITE);
	bool has_private = has_extension(device->node, IOASID_EXT_PRIVATE_MEMORY);

	for (int i = 0; i < 2 * KINDS; i++) {
		const struct kind *kind = i < KINDS ? &own_kinds[i] : &protected_kinds[i - KINDS];
		bool may = kind->protection & PROT_WRITE;

		if (kind->flags & MAP_PRIVATE && !has_private)
			continue;
		put(kind);
		if (!may) {
			must_refuse(device->node, IOASID_MAP_DMA, &dma_map, EPERM, kind->name);
			continue;
		}
		must(device->node, IOASID_MAP_DMA, &dma_map, kind->name);
		if (!device_writes(device, ioasid, GPA, MARKER, sizeof(MARKER)) ||
		    memcmp(target, MARKER, sizeof(MARKER)))
			die("the device does not write to %s", kind->name);
		unmap(device->node, ioasid, GPA, PAGE);
		must_be_unchanged(protected, 0);
		ok("the device writes to %s", kind->name);
	}
}

static void attack(const char *path, struct device *device, int node, unsigned long tries)
{
	unsigned long mapped = 0, refused = 0, written = 0, refusals[256] = { 0 };
	unsigned long between = device->is_edu ? tries / EDU_WRITES + 1 : 1;
	unsigned int state = 2;
	char own_path[] = "/dev/shm/attacker-own-XXXXXX";
	double began;
	unsigned char *protected;
	__u32 ioasid;
	pthread_t flipper;

	own_file = mkostemp(own_path, O_CLOEXEC);
	own_memfd = memfd_create("attacker-own", MFD_CLOEXEC);
	if (own_file < 0 || own_memfd < 0 || ftruncate(own_file, PAGE) < 0 ||
	    ftruncate(own_memfd, PAGE) < 0)
		die("cannot make memory of our own: %s", strerror(errno));
	unlink(own_path);
	protected_fd = open(protected_path, O_RDONLY | O_CLOEXEC);
	if (protected_fd < 0 || open(protected_path, O_RDWR) >= 0)
		die("%s is not read-only for user %d", protected_path, getuid());
	protected = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, protected_fd, 0);
	target = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (protected == MAP_FAILED || target == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));

	if (node < 0)
		node = open_node(path);
	bind_device(device, node);
	ioasid = alloc_ioasid(node);
	attach(node, device->id, ioasid);
	one_by_one(device, ioasid, protected);

	began = now();
	if (pthread_create(&flipper, NULL, flip, NULL))
		die("cannot start a thread");
	for (unsigned long try = 0; try < tries; try++) {
		struct ioasid_map_dma dma_map = mapping(ioasid, GPA, target, PAGE, IOASID_MAP_WRITE);

		pause_briefly(&state);
		if (ioctl(node, IOASID_MAP_DMA, &dma_map) < 0) {
			refused++;
			refusals[errno & 0xff]++;
			continue;
		}
		if (mapped++ % between == 0) {
			device_writes(device, ioasid, GPA, MARKER, sizeof(MARKER));
			written++;
		}
		must_be_unchanged(protected, try);
		unmap(node, ioasid, GPA, PAGE);
	}
	atomic_store(&stop, true);
	pthread_join(flipper, NULL);
	must_be_unchanged(protected, tries);

	printf("%lu tries in %.1f s: %lu mapped, %lu of them written, %lu refused, while the mapping flipped %lu times\n",
	       tries, now() - began, mapped, written, refused, atomic_load(&flips));
	for (int error = 0; error < 256; error++)
		if (refusals[error])
			printf("  %lu times: %s\n", refusals[error], strerror(error));
	if (!mapped || !refused)
		die("the race was never run: nothing was %s", mapped ? "refused" : "mapped");
	ok("the file that user %d may only read was never written", getuid());
}

static void become_nobody(void)
{
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		skip("cannot become user %d: %s; start this as an ordinary user", NOBODY,
		     strerror(errno));
}

int main(int argc, char **argv)
{
	struct device device;
	unsigned char now_there[PAGE];
	bool is_root = geteuid() == 0;
	int fd, status, node = -1, next = 2;
	pid_t child;

	if (argc < 3)
		die("usage: attacker NODE DEVICE [TRIES]");
	next += take_device(argv + next, &device);

	strcpy(protected_path, "/dev/shm/attacker-protected-XXXXXX");
	fd = mkostemp(protected_path, O_CLOEXEC);
	fill(original, PAGE, 3);
	if (fd < 0 || write(fd, original, PAGE) != PAGE || fchmod(fd, 0444) < 0)
		die("cannot make the file to attack: %s", strerror(errno));
	/* What only root may open is given to the attacker, as an administrator would. */
	prepare_device(&device);
	if (is_root && !access(argv[1], F_OK)) {
		fflush(stdout);
		child = fork();
		if (!child) {
			become_nobody();
			_exit(open(argv[1], O_RDWR) < 0);
		}
		if (waitpid(child, &status, 0) < 0 || WEXITSTATUS(status) == EXIT_SKIPPED) {
			unlink(protected_path);
			return EXIT_SKIPPED;
		}
		if (status) {
			printf("user %d may not open %s: it gets the node already open\n", NOBODY,
			       argv[1]);
			node = open_node(argv[1]);
		}
	}

	fflush(stdout);
	child = fork();
	if (!child) {
		if (is_root)
			become_nobody();
		attack(argv[1], &device, node, argc > next ? number(argv[next]) : 2000);
		return 0;
	}
	if (child < 0 || waitpid(child, &status, 0) < 0)
		die("cannot run the attack: %s", strerror(errno));
	unlink(protected_path);
	if (pread(fd, now_there, PAGE, 0) != PAGE || memcmp(now_there, original, PAGE))
		die("the file has changed");
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}
