/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * long-map NODE DEVICE OTHER-DEVICE [MIB]
 *
 * A map that takes long (MIB of memory, default 512, shared and private), seen from outside:
 *
 * - GET_INFO answers at once meanwhile, and tells how far it is
 * - another IOASID of the same context is used meanwhile (for another context, see two-programs)
 * - a program that is killed in the middle dies soon, and leaves neither a mapping nor a pin
 *
 * Devices are written as in device.h; simulated ones pin nothing, so that nothing takes long.
 */
#include "device.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define GPA		0x40000000UL	/* where the long map goes */
#define OTHER_GPA	0x100000UL
#define TIME_TO_DIE	20.0		/* seconds; emulated machines are slow */

static struct device device, other;
static __u32 ioasid, other_ioasid;
static int node;
static size_t size;
static atomic_int finished;

static void pins_must_return_to(long before, const char *when)
{
	double give_up = now() + TIME_TO_DIE;

	while (pinned_pages() > before) {
		if (now() > give_up)
			die("%s: %ld pages are still pinned", when, pinned_pages() - before);
		sleep_ms(50);
	}
}

static void *memory_of(bool is_private)
{
	int flags = is_private ? MAP_PRIVATE : MAP_SHARED;
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("no memory of %zu bytes: %s", size, strerror(errno));
	/* In small pages, so that it takes long. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	return memory;
}

static void *map_long(void *memory)
{
	map(node, ioasid, GPA, memory, size, MAP_BOTH);
	atomic_store(&finished, 1);
	return NULL;
}

/* Uses another IOASID of the same context while the map is under way. */
static void others_go_on(const char *kind, void *memory)
{
	unsigned long looks = 0, others = 0;
	__u64 last = 0, steps = 0;
	void *page = shared_memory(PAGE);
	pthread_t mapper;

	atomic_store(&finished, 0);
	if (pthread_create(&mapper, NULL, map_long, memory))
		die("cannot start a thread");
	while (!atomic_load(&finished)) {
		struct ioasid_info info = get_info(node, ioasid);

		if (!info.work_total)
			continue;
		if (info.work_total != size || info.work_done > size || info.work_done < last)
			die("GET_INFO tells of %llu of %llu bytes after %llu of %zu",
			    info.work_done, info.work_total, last, size);
		steps += info.work_done > last;
		last = info.work_done;
		looks++;
		map(node, other_ioasid, OTHER_GPA, page, PAGE, MAP_BOTH);
		unmap(node, other_ioasid, OTHER_GPA, PAGE);
		/* Still under way: so the other IOASID did not wait for it. */
		others += get_info(node, ioasid).work_total != 0;
		free_ioasid(node, alloc_ioasid(node));
	}
	pthread_join(mapper, NULL);
	if (get_info(node, ioasid).work_total)
		die("GET_INFO tells of work when there is none");
	if (!looks || !others)
		die("%s: the map of %zu MiB was over too soon to show anything", kind, size / MIB);
	if (!steps)
		die("%s: no progress was told in %lu looks", kind, looks);
	if (unmap(node, ioasid, GPA, size) != size)
		die("UNMAP_DMA did not unmap everything");
	ok("%s: during one map, progress was seen %llu times in %lu looks, and another IOASID was mapped and unmapped %lu times",
	   kind, steps, looks, others);
}

/* The context is the parent's too, so that nothing is released when the child dies. */
static void killed_in_the_middle(const char *kind, bool is_private)
{
	long before = pinned_pages();
	double killed;
	pid_t child;
	int status;

	fflush(stdout);
	child = fork();
	if (!child) {
		void *memory = memory_of(is_private);

		map(node, ioasid, GPA, memory, size, MAP_BOTH);
		_exit(0);
	}
	while (get_info(node, ioasid).work_done == 0)
		if (waitpid(child, &status, WNOHANG))
			die("%s: the map of %zu MiB was over too soon to be killed", kind,
			    size / MIB);
	kill(child, SIGKILL);
	killed = now();
	while (!waitpid(child, &status, WNOHANG)) {
		if (now() - killed > TIME_TO_DIE)
			die("%s: the program has not died %g s after SIGKILL", kind, TIME_TO_DIE);
		sleep_ms(10);
	}
	if (!WIFSIGNALED(status))
		die("%s: the program ended by itself", kind);
	killed = now() - killed;
	/* The daemon may still be undoing it. */
	while (get_info(node, ioasid).work_total)
		sleep_ms(10);
	if (get_info(node, ioasid).nr_mappings)
		die("%s: a killed program has left a mapping", kind);
	pins_must_return_to(before, "after a program was killed while it mapped");
	ok("%s: killed in the middle of a map, the program is dead after %.1f s, and nothing is left",
	   kind, killed);
}

int main(int argc, char **argv)
{
	long before = pinned_pages();
	int next = 2;

	if (argc < 4)
		die("usage: long-map NODE DEVICE OTHER-DEVICE [MIB]");
	next += take_device(argv + next, &device);
	next += take_device(argv + next, &other);
	size = (argc > next ? number(argv[next]) : 512) * MIB;
	if (!device.is_edu)
		skip("simulated devices pin nothing: no map takes long");
	node = open_node(argv[1]);
	bind_device(&device, node);
	bind_device(&other, node);
	ioasid = alloc_ioasid(node);
	other_ioasid = alloc_ioasid(node);
	attach(node, device.id, ioasid);
	attach(node, other.id, other_ioasid);

	for (int is_private = 0; is_private < 2; is_private++) {
		const char *kind = is_private ? "private memory" : "shared memory";
		void *memory = memory_of(is_private);

		others_go_on(kind, memory);
		munmap(memory, size);
		killed_in_the_middle(kind, is_private);
	}
	pins_must_return_to(before, "at the end");
	return 0;
}
