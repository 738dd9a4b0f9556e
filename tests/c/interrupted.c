/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * interrupted NODE DEVICE [ROUNDS]
 *
 * A program that is hit by signals all the time, while it makes thousands of calls: each call
 * either gives the right result, or EINTR and has then changed nothing; and none hangs. DEVICE
 * is written as in device.h. Of the ROUNDS (default 500), half run with SA_RESTART.
 */
#include "device.h"

#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#define GPA		0x100000UL
#define SIZE		(16 * PAGE)
#define TIME_LIMIT	300.0	/* seconds, far beyond what the calls take */

static volatile sig_atomic_t signals;
static unsigned long calls, interrupted;

static void count(int signal)
{
	(void)signal;
	signals++;
}

/*
 * Does a command until it is not interrupted, and gives its result. A call that says EINTR must
 * leave its argument as it was; that it changed nothing else shows in the call being right
 * when it is repeated.
 */
static int call(int node, unsigned long command, void *argument, size_t size, const char *doing)
{
	unsigned char before[256];
	int result;

	if (size)
		memcpy(before, argument, size);
	for (;;) {
		calls++;
		result = ioctl(node, command, argument);
		if (result >= 0)
			return result;
		if (errno != EINTR)
			break;
		interrupted++;
		if (size && memcmp(before, argument, size))
			die("%s was interrupted and has changed its argument", doing);
	}
	die("%s gave \"%s\" under signals. %s", doing, strerror(errno), explanation(node));
}

static struct ioasid_info info(int node, __u32 ioasid)
{
	struct ioasid_info info = { .argsz = sizeof(info), .ioasid = ioasid };

	call(node, IOASID_GET_INFO, &info, sizeof(info), "GET_INFO");
	return info;
}

/* Simulated DMA in both directions, which are calls too. */
static void dma(int node, struct device *device, unsigned char *memory, __u32 seed)
{
	static unsigned char bytes[3000];
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma),
		.flags = IOASID_SIM_DMA_WRITE,
		.device = device->id,
		.iova = GPA + 2 * PAGE + 17,
		.data = (uintptr_t)bytes,
		.size = sizeof(bytes),
	};

	fill(bytes, sizeof(bytes), seed);
	call(node, IOASID_SIM_DMA, &dma, sizeof(dma), "SIM_DMA");
	must_equal(memory + 2 * PAGE + 17, bytes, sizeof(bytes), "what the device wrote");
	dma.flags = IOASID_SIM_DMA_READ;
	dma.done = 0;
	memset(bytes, 0, sizeof(bytes));
	call(node, IOASID_SIM_DMA, &dma, sizeof(dma), "SIM_DMA");
	must_equal(bytes, memory + 2 * PAGE + 17, sizeof(bytes), "what the device read");
}

static __u32 one_round(int node, struct device *device, __u32 ioasid, unsigned char *memory,
		       __u32 seed)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.ioasid = ioasid,
		.iova = GPA,
		.size = SIZE,
	};
	struct ioasid_attach_device at_data;
	__u32 other;

	/* Something that an EINTR could have left half done would be refused when repeated. */
	call(node, IOASID_MAP_DMA, &dma_map, sizeof(dma_map), "MAP_DMA");
	if (info(node, ioasid).nr_mappings != 1)
		die("there are %llu mappings after MAP_DMA", info(node, ioasid).nr_mappings);
	if (!device->is_edu)
		dma(node, device, memory, seed);
	other = call(node, IOASID_ALLOC, NULL, 0, "ALLOC");
	at_data = attachment(device->id, ioasid);
	call(node, IOASID_DETACH_DEVICE, &at_data, sizeof(at_data), "DETACH_DEVICE");
	call(node, IOASID_ATTACH_DEVICE, &at_data, sizeof(at_data), "ATTACH_DEVICE");
	call(node, IOASID_UNMAP_DMA, &dma_unmap, sizeof(dma_unmap), "UNMAP_DMA");
	if (dma_unmap.size != SIZE)
		die("UNMAP_DMA gave %llu bytes", dma_unmap.size);
	if (info(node, ioasid).nr_mappings)
		die("there is a mapping after UNMAP_DMA");
	call(node, IOASID_FREE, by_value(other), 0, "FREE");
	return other;
}

/* An ALLOC that said EINTR must not have made an IOASID: every number but ours is free. */
static void check_ids(int node, __u32 ioasid, __u32 highest)
{
	struct ioasid_info info = { .argsz = sizeof(info) };

	for (__u32 id = 1; id <= highest + 8; id++) {
		info.ioasid = id;
		if (id != ioasid && (ioctl(node, IOASID_GET_INFO, &info) == 0 || errno != ENOENT))
			die("IOASID %u is left over", id);
	}
}

static void worker(const char *path, struct device *device, unsigned long rounds)
{
	struct itimerval often = { .it_interval.tv_usec = 170, .it_value.tv_usec = 170 };
	struct itimerval never = { .it_value.tv_usec = 0 };
	struct sigaction action = { .sa_handler = count };
	int node = open_node(path);
	unsigned char *memory = shared_memory(SIZE);
	__u32 ioasid, highest = 0;

	bind_device(device, node);
	ioasid = alloc_ioasid(node);
	attach(node, device->id, ioasid);
	for (int half = 0; half < 2; half++) {
		action.sa_flags = half ? SA_RESTART : 0;
		sigaction(SIGALRM, &action, NULL);
		sigaction(SIGUSR1, &action, NULL);
		setitimer(ITIMER_REAL, &often, NULL);
		for (unsigned long round = half; round < rounds; round += 2) {
			__u32 id = one_round(node, device, ioasid, memory, round);

			if (id > highest)
				highest = id;
		}
	}
	setitimer(ITIMER_REAL, &never, NULL);
	signal(SIGUSR1, SIG_IGN);
	check_ids(node, ioasid, highest);
	printf("%lu calls under %d signals: %lu were interrupted and repeated\n", calls,
	       (int)signals, interrupted);
	if (!signals)
		die("no signal arrived: nothing was shown");
	ok("every call was right or was interrupted, and none was half done");
}

int main(int argc, char **argv)
{
	struct device device;
	double give_up = now() + TIME_LIMIT;
	int status, next = 2;
	pid_t child;

	if (argc < 3)
		die("usage: interrupted NODE DEVICE [ROUNDS]");
	next += take_device(argv + next, &device);
	signal(SIGUSR1, SIG_IGN);	/* until the child has its handler */
	child = fork();
	if (!child) {
		worker(argv[1], &device, argc > next ? number(argv[next]) : 500);
		return 0;
	}
	if (child < 0)
		die("cannot fork: %s", strerror(errno));
	/* The storm, and the watch over the child. */
	while (waitpid(child, &status, WNOHANG) == 0) {
		kill(child, SIGUSR1);
		usleep(90);
		if (now() > give_up) {
			kill(child, SIGKILL);
			sleep_ms(2000);
			die("a call has hung for %.0f s, and the program %s be killed", TIME_LIMIT,
			    waitpid(child, &status, WNOHANG) == child ? "could" : "cannot");
		}
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}
