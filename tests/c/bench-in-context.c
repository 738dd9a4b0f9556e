/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * bench-in-context GROUP SIZE
 * bench-in-context --no-vfio SIZE
 *
 * Times ways to map SIZE bytes of another process's private memory into a VFIO container. VFIO
 * pins the memory of whoever calls it, so a thread of that process has to make the call. The ways
 * take turns, so that all see the same machine, and each prints a line:
 *
 *	NAME NANOSECONDS STOPS
 *
 * the median of a map and the unmap behind it, and how often the thread stopped for it.
 *
 * direct: this process maps private memory of its own.
 * descriptor-per-call: the thread, which waits for the answer to a call of its own, is stopped on
 *	its way out of the kernel and made to receive the container's descriptor, map, and close.
 * descriptor-kept: the same with a descriptor that was left with it, so that it only maps.
 * stepped-per-call, stepped-kept: the same two with one stop for each system call, behind it,
 *	in place of two. Not for every program: the kernel forgets that SIGTRAP was ignored.
 * helper-thread: a thread of the other process maps when a message asks for it, and answers.
 *
 * --no-vfio: the container is /dev/null, which refuses each map: what the ways cost by themselves.
 */
#include "vfio.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#define WARM_UP		20
#define ROUNDS		500
#define IOVA		0x10000000UL

/* What stops are called in a wait status. */
#define STOP_INTERRUPTED	(SIGTRAP | PTRACE_EVENT_STOP << 8)
#define STOP_AT_SYSCALL		(SIGTRAP | 0x80)
#define STOP_STEPPED		SIGTRAP

/* What injected system calls read and write. */
struct scratch {
	struct vfio_iommu_type1_dma_map dma_map;
	int ends[2];
	struct msghdr message;
	struct iovec content;
	char byte;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
};

static int container;
static int map_result;		/* of each map: 0, or -ENOTTY without VFIO */
static size_t size;
/* At one address in both processes, but each has its own. */
static void *memory;
static struct scratch *scratch;

static pid_t tracee;		/* its first thread is the one that is stopped */
static int pidfd, listener;	/* of the tracee, and of its calls that wait for an answer */
static int sockets[2];		/* to the helper thread; the second is the tracee's */

static struct seccomp_notif call;	/* which the tracee has made */
static struct user_regs_struct saved_registers;
static __u64 saved_mask;
static bool stepping;
static int stops;

static int map_now(const struct vfio_iommu_type1_dma_map *dma_map)
{
	return ioctl(container, VFIO_IOMMU_MAP_DMA, dma_map) < 0 ? -errno : 0;
}

static void *help(void *unused)
{
	struct vfio_iommu_type1_dma_map dma_map;
	int result;

	(void)unused;
	while (recv(sockets[1], &dma_map, sizeof(dma_map), 0) == sizeof(dma_map)) {
		result = map_now(&dma_map);
		if (send(sockets[1], &result, sizeof(result), 0) < 0)
			break;
	}
	return NULL;
}

/*
 * Has each ioctl of this thread wait for an answer of the tracer, which meanwhile nothing but
 * death can end, as on a node of FUSE whose daemon has read the request. A notification of seccomp
 * stands for that, because it needs neither a node nor a daemon.
 */
static int redirect_ioctls(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = 4, .filter = code };
	int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			 SECCOMP_FILTER_FLAG_NEW_LISTENER |
			 SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);

	if (fd < 0)
		die("no notifications of seccomp: %s", strerror(errno));
	return fd;
}

__attribute__((noreturn)) static void be_traced(void)
{
	pthread_t helper;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(memory, 1, size);
	memset(scratch, 0, PAGE);
	if (pthread_create(&helper, NULL, help, NULL))
		die("cannot start a thread");
	fd = redirect_ioctls(); /* of this thread, not of the helper */
	if (send(sockets[1], &fd, sizeof(fd), 0) < 0)
		die("cannot send: %s", strerror(errno));
	for (;;) {
		int result = ioctl(-1, 0) < 0 ? -errno : 0;

		if (result != map_result)
			die("the caller got %d instead of the map's result", result);
	}
}

static long trace(int request, uintptr_t address, uintptr_t data)
{
	long result;

	errno = 0;
	result = ptrace(request, tracee, address, data);
	if (errno)
		die("ptrace request %#x failed: %s", request, strerror(errno));
	return result;
}

static void wait_for_stop(int expected)
{
	int status;

	if (waitpid(tracee, &status, __WALL) != tracee || !WIFSTOPPED(status) ||
	    status >> 8 != expected)
		die("wait status %#x instead of stop %#x", status, expected);
	stops++;
}

/* Answers the thread's call and has it stop before it runs an instruction of its own. */
static void stop(void)
{
	struct seccomp_notif_resp response = { .id = call.id, .error = -EIO };
	/* A step ends with SIGTRAP. If that is blocked, the kernel forgets what handles it. */
	__u64 mask = stepping ? ~(1UL << (SIGTRAP - 1)) : ~0UL;

	trace(PTRACE_SEIZE, 0,
	      PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP | PTRACE_O_EXITKILL);
	trace(PTRACE_INTERRUPT, 0, 0);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0)
		die("cannot answer the call: %s", strerror(errno));
	wait_for_stop(STOP_INTERRUPTED);
	trace(PTRACE_GETREGS, 0, (uintptr_t)&saved_registers);
	if ((int)saved_registers.rax != -EIO ||
	    (trace(PTRACE_PEEKTEXT, saved_registers.rip - 2, 0) & 0xffff) != 0x050f)
		die("the thread has not stopped behind its system call");
	trace(PTRACE_GETSIGMASK, sizeof(saved_mask), (uintptr_t)&saved_mask);
	trace(PTRACE_SETSIGMASK, sizeof(mask), (uintptr_t)&mask);
}

static void let_go(int result)
{
	saved_registers.rax = result;
	trace(PTRACE_SETREGS, 0, (uintptr_t)&saved_registers);
	trace(PTRACE_SETSIGMASK, sizeof(saved_mask), (uintptr_t)&saved_mask);
	trace(PTRACE_DETACH, 0, 0);
}

/* Runs the system call instruction that the thread stands behind once more, for another call. */
static int inject(long number, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d)
{
	struct user_regs_struct registers = saved_registers;

	registers.rip -= 2;
	registers.rax = number;
	registers.orig_rax = -1;
	registers.rdi = a;
	registers.rsi = b;
	registers.rdx = c;
	registers.r10 = d;
	trace(PTRACE_SETREGS, 0, (uintptr_t)&registers);
	if (stepping) {
		trace(PTRACE_SINGLESTEP, 0, 0);
		wait_for_stop(STOP_STEPPED);
	} else {
		trace(PTRACE_SYSCALL, 0, 0);
		wait_for_stop(STOP_AT_SYSCALL);
		trace(PTRACE_SYSCALL, 0, 0);
		wait_for_stop(STOP_AT_SYSCALL);
	}
	trace(PTRACE_GETREGS, 0, (uintptr_t)&registers);
	if ((long)registers.rax < 0 && number != SYS_ioctl)
		die("the injected call %ld failed: %s", number, strerror(-registers.rax));
	return registers.rax;
}

/* Between one place in both processes. */
static void copy(typeof(process_vm_readv) *transfer, void *place, size_t length)
{
	struct iovec range = { .iov_base = place, .iov_len = length };

	if (transfer(tracee, &range, 1, &range, 1, 0) != (ssize_t)length)
		die("cannot copy between the processes: %s", strerror(errno));
}

static struct vfio_iommu_type1_dma_map the_map(void)
{
	struct vfio_iommu_type1_dma_map dma_map = {
		.argsz = sizeof(dma_map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = IOVA,
		.size = size,
	};

	return dma_map;
}

static int direct(void)
{
	struct vfio_iommu_type1_dma_map dma_map = the_map();

	return map_now(&dma_map);
}

/* Gives it the container's descriptor, which becomes the one after its two ends of a socket. */
static void hand_over(const int *ends)
{
	struct msghdr *message = &scratch->message;
	int end = syscall(SYS_pidfd_getfd, pidfd, ends[0], 0);

	if (end < 0)
		die("cannot get the thread's socket: %s", strerror(errno));
	CMSG_FIRSTHDR(message)->cmsg_len = CMSG_LEN(sizeof(int));
	CMSG_FIRSTHDR(message)->cmsg_level = SOL_SOCKET;
	CMSG_FIRSTHDR(message)->cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(message)), &container, sizeof(container));
	if (sendmsg(end, message, 0) != 1)
		die("cannot send the container's descriptor: %s", strerror(errno));
	close(end);
	inject(SYS_recvmsg, ends[1], (uintptr_t)message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, 0);
	copy(process_vm_readv, &scratch->control, sizeof(scratch->control));
}

static int descriptor_per_call(void)
{
	int *ends = scratch->ends, fd, result;

	stop();
	scratch->dma_map = the_map();
	scratch->content = (struct iovec){ .iov_base = &scratch->byte, .iov_len = 1 };
	scratch->message = (struct msghdr){
		.msg_iov = &scratch->content,
		.msg_iovlen = 1,
		.msg_control = &scratch->control,
		.msg_controllen = sizeof(scratch->control),
	};
	copy(process_vm_writev, scratch, sizeof(*scratch));
	inject(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, (uintptr_t)ends);
	copy(process_vm_readv, ends, sizeof(scratch->ends));
	hand_over(ends);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&scratch->message)), sizeof(fd));
	result = inject(SYS_ioctl, fd, VFIO_IOMMU_MAP_DMA, (uintptr_t)&scratch->dma_map, 0);
	if (fd != ends[0] + 2 || ends[1] != ends[0] + 1)
		die("the descriptors %d, %d and %d are no range", ends[0], ends[1], fd);
	inject(SYS_close_range, ends[0], fd, 0, 0);
	let_go(result);
	return result;
}

static int descriptor_kept(void)
{
	int result;

	stop();
	scratch->dma_map = the_map();
	copy(process_vm_writev, &scratch->dma_map, sizeof(scratch->dma_map));
	result = inject(SYS_ioctl, container, VFIO_IOMMU_MAP_DMA, (uintptr_t)&scratch->dma_map, 0);
	let_go(result);
	return result;
}

static int helper_thread(void)
{
	struct vfio_iommu_type1_dma_map dma_map = the_map();
	int result;

	if (send(sockets[0], &dma_map, sizeof(dma_map), 0) < 0 ||
	    recv(sockets[0], &result, sizeof(result), 0) != sizeof(result))
		die("the helper does not answer: %s", strerror(errno));
	return result;
}

static struct way {
	const char *name;
	int (*map)(void);
	bool stops, steps;
	int stops_of_one;
	double seconds[ROUNDS];
} ways[] = {
	{ .name = "direct", .map = direct },
	{ .name = "descriptor-per-call", .map = descriptor_per_call, .stops = true },
	{ .name = "descriptor-kept", .map = descriptor_kept, .stops = true },
	{ .name = "stepped-per-call", .map = descriptor_per_call, .stops = true, .steps = true },
	{ .name = "stepped-kept", .map = descriptor_kept, .stops = true, .steps = true },
	{ .name = "helper-thread", .map = helper_thread },
};

/* What was mapped, whoever mapped it. */
static void take_back(void)
{
	struct vfio_iommu_type1_dma_unmap dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.iova = IOVA,
		.size = size,
	};
	int result = ioctl(container, VFIO_IOMMU_UNMAP_DMA, &dma_unmap) < 0 ? -errno : 0;

	if (result != map_result || dma_unmap.size != size)
		die("unmap gave %d and %llu bytes", result, dma_unmap.size);
}

static double time_of(struct way *way)
{
	double begin, end;
	int result;

	if (way->stops) {
		memset(&call, 0, sizeof(call));
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
			die("the thread calls no more: %s", strerror(errno));
	}
	stepping = way->steps;
	stops = 0;
	begin = now();
	result = way->map();
	take_back();
	end = now();
	if (result != map_result)
		die("%s: the map gave %d", way->name, result);
	if (way->stops_of_one && stops != way->stops_of_one)
		die("%s: %d stops, before %d", way->name, stops, way->stops_of_one);
	way->stops_of_one = stops;
	return end - begin;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void measure(void)
{
	const size_t count = sizeof(ways) / sizeof(*ways);

	for (int i = -WARM_UP; i < ROUNDS; i++) {
		for (struct way *way = ways; way < ways + count; way++) {
			double seconds = time_of(way);

			if (i >= 0)
				way->seconds[i] = seconds;
		}
	}
	for (struct way *way = ways; way < ways + count; way++) {
		qsort(way->seconds, ROUNDS, sizeof(*way->seconds), by_size);
		printf("%s %.0f %d\n", way->name, way->seconds[ROUNDS / 2] * 1e9,
		       way->stops_of_one);
	}
}

/* In huge pages from 2 MiB on, if the kernel has any, with the scratch page behind it. */
static void get_memory(void)
{
	uintptr_t at = (uintptr_t)mmap(NULL, size + 4 * MIB, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == (uintptr_t)MAP_FAILED)
		die("no memory of %zu bytes: %s", size, strerror(errno));
	memory = (void *)((at + 2 * MIB - 1) & -(2 * MIB));
	scratch = memory + size;
	if (size >= 2 * MIB)
		madvise(memory, size, MADV_HUGEPAGE);
}

static int container_of(int group)
{
	int fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(group, VFIO_GROUP_SET_CONTAINER, &fd) < 0 ||
	    ioctl(fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		die("no container for the group: %s", strerror(errno));
	return fd;
}

int main(int argc, char **argv)
{
	int fd;

	if (argc != 3)
		die("usage: bench-in-context GROUP|--no-vfio SIZE");
	if (geteuid() != 0)
		skip("only root may suspend another process's seccomp filter");
	if (!strcmp(argv[1], "--no-vfio")) {
		container = open_node("/dev/null");
		map_result = -ENOTTY;
	} else {
		container = container_of(open_group(argv[1]));
	}
	size = number(argv[2]);
	get_memory();
	alarm(240); /* if the other process dies, its calls may be waited for in vain */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
		die("no sockets: %s", strerror(errno));

	/* Both touch the memory only from here on, so that nothing of it is shared. */
	tracee = fork();
	if (tracee < 0)
		die("cannot fork: %s", strerror(errno));
	if (!tracee)
		be_traced();
	memset(memory, 1, size);
	pidfd = syscall(SYS_pidfd_open, tracee, 0);
	if (pidfd < 0 || recv(sockets[0], &fd, sizeof(fd), 0) != sizeof(fd))
		die("the other process does not start: %s", strerror(errno));
	listener = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (listener < 0)
		die("cannot get the other process's calls: %s", strerror(errno));

	measure();
	kill(tracee, SIGKILL);
	waitpid(tracee, NULL, 0);
	return 0;
}
