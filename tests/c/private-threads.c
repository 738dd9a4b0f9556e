/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * private-threads NODE DEVICE [SECONDS]
 *
 * Sixteen threads of one program map and unmap private memory of their own, all at once, for
 * SECONDS (default 60), while another thread sends them signals. No call may fail, no signal be
 * lost, and nothing be left over. DEVICE is written as in device.h.
 */
#include "device.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#define THREADS		16
#define SIZE		(4 * PAGE)
#define DESCRIPTORS	1024

struct thread {
	pthread_t thread;
	__u64 iova;
	unsigned char *memory;
	unsigned long maps;
	unsigned long sent;
	atomic_ulong handled;
};

static struct device device;
static __u32 ioasid;
static struct thread threads[THREADS];
static __thread struct thread *self;
static atomic_bool ends, last_sent;
static atomic_uint begun;

/* Counted only if it comes to the thread that it was sent to. */
static void count(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	if (self && info->si_value.sival_ptr == self)
		atomic_fetch_add(&self->handled, 1);
}

static void *map_and_unmap(void *argument)
{
	struct thread *thread = argument;

	self = thread;
	begun++;
	while (!ends) {
		fill(thread->memory, 64, thread->maps);
		map(device.node, ioasid, thread->iova, thread->memory, SIZE, MAP_BOTH);
		if (unmap(device.node, ioasid, thread->iova, SIZE) != SIZE)
			die("UNMAP_DMA has not unmapped what this thread has mapped");
		thread->maps++;
	}
	/* Stay until all signals have been sent; they are handled before the thread ends. */
	while (!last_sent)
		sleep_ms(1);
	return NULL;
}

/* A few signals to each thread in turn: so many at once that some come in each phase of a map. */
static void *send_signals(void *unused)
{
	unsigned int seed = 1;

	(void)unused;
	while (!ends) {
		struct thread *thread = &threads[rand_r(&seed) % THREADS];

		for (int burst = rand_r(&seed) % 4; burst >= 0; burst--) {
			union sigval value = { .sival_ptr = thread };
			int error = pthread_sigqueue(thread->thread, SIGRTMIN, value);

			if (error)
				die("pthread_sigqueue failed: %s", strerror(error));
			thread->sent++;
		}
		usleep(rand_r(&seed) % 5000);
	}
	last_sent = true;
	return NULL;
}

static unsigned int open_descriptors(void)
{
	unsigned int open = 0;

	for (int fd = 0; fd < DESCRIPTORS; fd++)
		open += fcntl(fd, F_GETFD) >= 0;
	return open;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
	unsigned long maps = 0, least = -1UL, sent = 0;
	unsigned int before;
	pthread_t sender;
	int next = 2, seconds = 60;

	if (argc < 3)
		die("usage: private-threads NODE DEVICE [SECONDS]");
	next += take_device(argv + next, &device);
	if (argc > next)
		seconds = number(argv[next]);
	bind_device(&device, open_node(argv[1]));
	ioasid = alloc_ioasid(device.node);
	attach(device.node, device.id, ioasid);
	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		skip("the node does not map private memory");

	sigaction(SIGRTMIN, &action, NULL);
	before = open_descriptors();
	for (int i = 0; i < THREADS; i++) {
		struct thread *thread = &threads[i];

		thread->iova = (i + 1) * MIB;
		thread->memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (thread->memory == MAP_FAILED)
			die("mmap failed: %s", strerror(errno));
		if (pthread_create(&thread->thread, NULL, map_and_unmap, thread))
			die("cannot start a thread");
	}
	/* A signal that comes before a thread knows itself would not be counted. */
	while (begun < THREADS)
		sleep_ms(1);
	if (pthread_create(&sender, NULL, send_signals, NULL))
		die("cannot start a thread");
	for (double give_up = now() + seconds; now() < give_up;)
		sleep_ms(50);
	ends = true;
	pthread_join(sender, NULL);
	for (int i = 0; i < THREADS; i++) {
		struct thread *thread = &threads[i];

		pthread_join(thread->thread, NULL);
		if (thread->handled != thread->sent)
			die("thread %d has handled %lu signals of %lu", i, thread->handled,
			    thread->sent);
		maps += thread->maps;
		sent += thread->sent;
		if (thread->maps < least)
			least = thread->maps;
	}
	if (open_descriptors() != before)
		die("there are %u descriptors in place of %u", open_descriptors(), before);
	if (get_info(device.node, ioasid).nr_mappings)
		die("mappings are left over");
	if (!least)
		die("a thread has never mapped anything in %d s", seconds);
	ok("%d threads have mapped private memory %lu times (%lu at least each) under %lu signals, "
	   "of which none was lost", THREADS, maps, least, sent);
	return 0;
}
