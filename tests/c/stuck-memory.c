/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * stuck-memory NODE
 *
 * A program decides what lies behind an address, and when it can be read. Here nothing ever
 * answers for the page of an argument (userfaultfd), so that whoever reads it waits.
 *
 * Rules: such a call delays no other; its program can be killed; and its open is released.
 */
#include "common.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define CALLERS	3

/* A page that is never there: reading it waits for a fault handler that does not exist. */
static void *stuck_page(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0)
		skip("no userfaultfd here: %s", strerror(errno));
	range.range.start = (uintptr_t)page;
	range.range.len = PAGE;
	if (page == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		die("cannot register a page: %s", strerror(errno));
	return page;
}

/* Calls with an argument that cannot be read, and tells its parent just before. */
static void call_and_wait(const char *path, int told)
{
	int node = open_node(path);
	void *page = stuck_page();

	if (write(told, "x", 1) != 1)
		die("the parent is gone");
	ioctl(node, IOASID_MAP_DMA, page);
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t callers[CALLERS];
	int pipes[2], node;
	double begin;

	if (argc != 2)
		die("usage: stuck-memory NODE");
	if (pipe(pipes) < 0)
		die("no pipe: %s", strerror(errno));
	for (int i = 0; i < CALLERS; i++) {
		char told;

		callers[i] = fork();
		if (callers[i] == 0)
			call_and_wait(argv[1], pipes[1]);
		/* A child that cannot show anything here ends without telling. */
		if (poll(&(struct pollfd){ .fd = pipes[0], .events = POLLIN }, 1, 2000) != 1)
			skip("no userfaultfd here");
		if (read(pipes[0], &told, 1) != 1)
			die("a caller did not start");
	}
	sleep_ms(300);

	begin = now();
	node = open_node(argv[1]);
	for (int i = 0; i < 100; i++)
		free_ioasid(node, alloc_ioasid(node));
	ok("%d calls wait for memory that never comes, and 200 others took %.0f ms", CALLERS,
	   (now() - begin) * 1000);

	for (int i = 0; i < CALLERS; i++) {
		int status;

		if (waitpid(callers[i], &status, WNOHANG) != 0)
			die("a caller did not wait");
		kill(callers[i], SIGKILL);
		begin = now();
		while (waitpid(callers[i], &status, WNOHANG) == 0) {
			if (now() - begin > 10)
				die("a killed caller is still there after 10 s");
			sleep_ms(1);
		}
		if (!WIFSIGNALED(status))
			die("a caller ended by itself");
	}
	ok("the waiting programs could be killed");
	free_ioasid(node, alloc_ioasid(node));
	ok("the node goes on serving");
	return 0;
}
