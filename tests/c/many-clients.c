/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * many-clients NODE COUNT DEVICE...
 *
 * COUNT processes at once, each with its own open of the node, contend for a few simulated
 * devices (their names). Each takes turns with a device, does DMA to its own memory and must see
 * nobody else's bytes.
 */
#include "common.h"

#include <sys/wait.h>

#define GPA		0x200000UL
#define SIZE		(16 * PAGE)
#define TURNS		4
#define PATIENCE	120.0	/* seconds to wait for a device that others hold */

/* Binds whichever of the devices is free first. */
static __u32 bind_any(int node, int nr_devices, char **names, unsigned int first)
{
	double give_up = now() + PATIENCE;

	for (unsigned int i = first;; i++) {
		struct ioasid_bind_device bind_data = simulated(names[i % nr_devices], 0);

		if (ioctl(node, IOASID_BIND_DEVICE, &bind_data) == 0)
			return bind_data.device;
		if (errno != EBUSY)
			die("BIND_DEVICE failed: %s. %s", strerror(errno), explanation(node));
		if (now() > give_up)
			die("no device became free in %.0f s", PATIENCE);
		sleep_ms(1);
	}
}

static void client(const char *path, unsigned int which, int nr_devices, char **names)
{
	unsigned char *memory = shared_memory(SIZE);
	static unsigned char expected[SIZE], seen[SIZE];
	int node = open_node(path);

	for (unsigned int turn = 0; turn < TURNS; turn++) {
		__u32 ioasid = alloc_ioasid(node);
		__u32 device = bind_any(node, nr_devices, names, which + turn);

		attach(node, device, ioasid);
		map(node, ioasid, GPA, memory, SIZE, MAP_BOTH);
		fill(expected, SIZE, which * TURNS + turn);
		if (simulated_dma(node, device, IOASID_SIM_DMA_WRITE, GPA, expected, SIZE, NULL))
			die("DMA write failed: %s", explanation(node));
		must_equal(memory, expected, SIZE, "what the device wrote");
		if (simulated_dma(node, device, IOASID_SIM_DMA_READ, GPA, seen, SIZE, NULL))
			die("DMA read failed: %s", explanation(node));
		must_equal(seen, expected, SIZE, "what the device read");
		unmap(node, ioasid, GPA, SIZE);
		detach(node, device, ioasid);
		must(node, IOASID_UNBIND_DEVICE, by_value(device), "UNBIND_DEVICE");
		free_ioasid(node, ioasid);
	}
}

int main(int argc, char **argv)
{
	unsigned int count, failed = 0;
	int status, start[2];
	double began;
	char nothing;

	if (argc < 4)
		die("usage: many-clients NODE COUNT DEVICE...");
	count = number(argv[2]);
	if (pipe(start) < 0)
		die("cannot make a pipe: %s", strerror(errno));
	for (unsigned int i = 0; i < count; i++) {
		pid_t child = fork();

		if (child < 0)
			die("cannot start client %u: %s", i, strerror(errno));
		if (!child) {
			close(start[1]);
			if (read(start[0], &nothing, 1) != 0)	/* ends when all are there */
				die("cannot wait for the others");
			client(argv[1], i, argc - 3, argv + 3);
			return 0;
		}
	}
	began = now();
	close(start[0]);
	close(start[1]);
	for (unsigned int i = 0; i < count; i++)
		if (wait(&status) < 0 || status)
			failed++;
	if (failed)
		die("%u of %u clients failed", failed, count);
	ok("%u clients took %u turns each with %d devices in %.1f s", count, TURNS, argc - 3,
	   now() - began);
	return 0;
}
