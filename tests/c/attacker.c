/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * attacker NODE DEVICE [TRIES]
 *
 * Tries to have a device write to a file that the program may only read. One thread flips what
 * is mapped at an address between a file of the program's own and that file; another maps the
 * address for devices to write, and has the device (written as in device.h) write there. The
 * daemon that looks first and opens afterwards loses this race; the file must never change in
 * TRIES (default 2000) tries.
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

static char protected_path[64];
static unsigned char original[PAGE];
static unsigned char *target;		/* the address whose mapping flips */
static int own_fd, protected_fd;
static atomic_bool stop;
static atomic_ulong flips;

static void map_at_target(int fd, int protection)
{
	if (mmap(target, PAGE, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
}

static void pause_briefly(unsigned int *state)
{
	*state = *state * 1664525U + 1013904223U;
	for (volatile unsigned int i = *state >> 20; i; i--)
		;
}

static void *flip(void *unused)
{
	unsigned int state = 1;

	(void)unused;
	while (!atomic_load(&stop)) {
		map_at_target(own_fd, PROT_READ | PROT_WRITE);
		pause_briefly(&state);
		map_at_target(protected_fd, PROT_READ);
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

/* Half of the attack is done with a file as the program's own memory, half with a memfd. */
static void attack(const char *path, struct device *device, int node, unsigned long tries)
{
	unsigned long mapped = 0, refused = 0, refusals[256] = { 0 };
	unsigned char *protected;
	char own_path[] = "/dev/shm/attacker-own-XXXXXX";
	int own_file = mkostemp(own_path, O_CLOEXEC);
	int own_memfd = memfd_create("attacker-own", MFD_CLOEXEC);
	__u32 ioasid;
	pthread_t flipper;

	if (own_file < 0 || own_memfd < 0 || ftruncate(own_file, PAGE) < 0 ||
	    ftruncate(own_memfd, PAGE) < 0)
		die("cannot make memory of our own: %s", strerror(errno));
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
	for (int half = 0; half < 2; half++) {
		own_fd = half ? own_memfd : own_file;
		map_at_target(own_fd, PROT_READ | PROT_WRITE);
		atomic_store(&stop, false);
		if (pthread_create(&flipper, NULL, flip, NULL))
			die("cannot start a thread");
		for (unsigned long try = half; try < tries; try += 2) {
			struct ioasid_map_dma dma_map = mapping(ioasid, GPA, target, PAGE,
								IOASID_MAP_WRITE);

			if (ioctl(node, IOASID_MAP_DMA, &dma_map) < 0) {
				refused++;
				refusals[errno & 0xff]++;
				continue;
			}
			mapped++;
			device_writes(device, ioasid, GPA, MARKER, sizeof(MARKER));
			must_be_unchanged(protected, try);
			unmap(node, ioasid, GPA, PAGE);
		}
		atomic_store(&stop, true);
		pthread_join(flipper, NULL);
	}
	must_be_unchanged(protected, tries);
	unlink(own_path);

	printf("%lu tries: %lu mapped, %lu refused, while the mapping flipped %lu times\n", tries,
	       mapped, refused, atomic_load(&flips));
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
