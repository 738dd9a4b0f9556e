/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * in-context NODE DEVICE [OTHER-DEVICE] [ROW]...
 * in-context NODE DEVICE --until-error
 *
 * Private memory is mapped by the calling thread itself, which the daemon leads through a few
 * system calls of its own. Each row is a rule about what else may happen to that program
 * meanwhile, and what it finds afterwards. Without a ROW, all are run. DEVICE is an edu device, as
 * in device.h; so is OTHER-DEVICE, with which another program goes on while the first is stuck.
 *
 * Each row runs in a process of its own with a time limit, and when it has ended no page may stay
 * pinned: nobody else on the machine may pin any meanwhile.
 *
 * --until-error: maps and unmaps until a call fails, because somebody ends the daemon. Says "ready"
 * when it begins, and ends with 0 if at that moment the calls have told the truth: what was
 * mapped is reached by the device, what was not is not.
 */
#include "device.h"

#if !defined(__x86_64__)
int main(void)
{
	skip("registers and stacks are looked at on x86-64 only");
}
#else

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define GPA		0x100000UL
#define SIZE		(8 * PAGE)
#define DESCRIPTORS	1024

static const char *path;	/* of the node */
static struct device device, other_device;
static bool has_other;
static __u32 ioasid;

/* ------------------------------------------------------------------ */
/* What the rows share                                                  */
/* ------------------------------------------------------------------ */

/* A context of the calling process, with the device attached. */
static void set_up(void)
{
	bind_device(&device, open_node(path));
	ioasid = alloc_ioasid(device.node);
	attach(device.node, device.id, ioasid);
	if (!has_extension(device.node, IOASID_EXT_PRIVATE_MEMORY))
		skip("the node does not map private memory");
}

/* The same without the device's registers, for those that need no DMA. */
static void set_up_quickly(void)
{
	device.node = open_node(path);
	device.id = bind_group(device.node, device.group, device.name, 0);
	ioasid = alloc_ioasid(device.node);
	attach(device.node, device.id, ioasid);
}

static unsigned char *anonymous(size_t size, int protection, int flags)
{
	unsigned char *memory = mmap(NULL, size, protection,
				     MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (memory == MAP_FAILED)
		die("cannot map %zu bytes: %s", size, strerror(errno));
	return memory;
}

static unsigned char *private_memory(__u32 seed)
{
	unsigned char *memory = anonymous(SIZE, PROT_READ | PROT_WRITE, 0);

	fill(memory, SIZE, seed);
	return memory;
}

/* Maps; gives the errno. */
static int try_map_at(__u64 iova, const void *memory)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, memory, SIZE, MAP_BOTH);

	return ioctl(device.node, IOASID_MAP_DMA, &dma_map) < 0 ? errno : 0;
}

static int try_map(const void *memory)
{
	return try_map_at(GPA, memory);
}

/* Maps with no error but none, whatever the explanation. */
static void must_map_at(__u64 iova, const void *memory)
{
	int error = try_map_at(iova, memory);

	if (error)
		die("MAP_DMA of private memory gave \"%s\": %s", strerror(error),
		    explanation(device.node));
}

static void must_unmap_at(__u64 iova)
{
	__u64 unmapped = unmap(device.node, ioasid, iova, SIZE);

	if (unmapped != SIZE)
		die("UNMAP_DMA gave %llu bytes instead of %lu", unmapped, SIZE);
}

static void map_and_unmap(const void *memory)
{
	must_map_at(GPA, memory);
	must_unmap_at(GPA);
}

static __u64 unmap_everything(void)
{
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.flags = IOASID_UNMAP_ALL,
		.ioasid = ioasid,
	};

	must(device.node, IOASID_UNMAP_DMA, &dma_unmap, "UNMAP_DMA of everything");
	return dma_unmap.size;
}

static void must_be_empty(const char *when)
{
	struct ioasid_info info = get_info(device.node, ioasid);

	if (info.nr_mappings || info.mapped_bytes)
		die("%s, there are %llu mappings of %llu bytes", when, info.nr_mappings,
		    info.mapped_bytes);
}

/* The device reaches `memory`, which is mapped at `iova`, in both directions. */
static void must_reach(unsigned char *memory, __u64 iova, __u32 seed)
{
	unsigned char sent[500], seen[500];
	size_t place = SIZE - PAGE + 77;

	fill(memory + place, sizeof(seen), seed);
	device_reads(&device, ioasid, iova + place, seen, sizeof(seen));
	must_equal(seen, memory + place, sizeof(seen), "what the device read");
	fill(sent, sizeof(sent), seed + 1);
	device_writes(&device, ioasid, iova + 77, sent, sizeof(sent));
	must_equal(memory + 77, sent, sizeof(sent), "what the device wrote");
}

/* Which descriptors are open. */
static void list_descriptors(bool open[DESCRIPTORS])
{
	for (int fd = 0; fd < DESCRIPTORS; fd++)
		open[fd] = fcntl(fd, F_GETFD) >= 0;
}

static void must_have_descriptors(const bool before[DESCRIPTORS])
{
	bool open[DESCRIPTORS];

	list_descriptors(open);
	for (int fd = 0; fd < DESCRIPTORS; fd++)
		if (open[fd] != before[fd])
			die("descriptor %d is %s", fd, open[fd] ? "left over" : "gone");
}

static __u64 blocked_signals(void)
{
	__u64 mask = 0;

	if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, sizeof(mask)) < 0)
		die("rt_sigprocmask failed: %s", strerror(errno));
	return mask;
}

static void sleep_us(long us)
{
	struct timespec time = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 };

	nanosleep(&time, NULL);
}

static pid_t fork_child(void)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child < 0)
		die("cannot fork: %s", strerror(errno));
	return child;
}

static bool has_ended(pid_t child, int *status, double seconds)
{
	double give_up = now() + seconds;
	pid_t waited;

	while ((waited = waitpid(child, status, WNOHANG)) == 0) {
		if (now() > give_up)
			return false;
		sleep_us(500);
	}
	if (waited != child)
		die("waitpid failed: %s", strerror(errno));
	return true;
}

/* Waits for a child to end, which has to be soon. */
static int end_of(pid_t child, double seconds, const char *who)
{
	int status;

	if (!has_ended(child, &status, seconds))
		die("%s is still there after %.0f s", who, seconds);
	return status;
}

static void must_succeed(pid_t child, double seconds, const char *who)
{
	int status = end_of(child, seconds, who);

	if (status)
		die("%s ended with wait status %#x", who, status);
}

static void make_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC) < 0)
		die("no pipe: %s", strerror(errno));
}

static void tell(int fd)
{
	if (write(fd, "x", 1) != 1)
		die("cannot write to a pipe: %s", strerror(errno));
}

static void await_told(int fd)
{
	char told;

	if (read(fd, &told, 1) != 1)
		die("the other process has ended");
}

static pthread_t start_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, run, argument);

	if (error)
		die("cannot start a thread: %s", strerror(error));
	return thread;
}

/* Pages pinned for devices, on the whole machine. */
static long pins(void)
{
	long pinned = pinned_pages();

	if (pinned == -1)
		die("/proc/vmstat does not say how many pages are pinned");
	return pinned;
}

static bool is_taken(int group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };

	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0)
		die("the group has no status: %s", strerror(errno));
	return status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET;
}

/* The last close of the node is served a moment later: waits until all of it is given back. */
static bool is_given_back(long pinned_before, double seconds)
{
	double give_up = now() + seconds;

	while (is_taken(device.group) || pins() != pinned_before) {
		if (now() > give_up)
			return false;
		sleep_ms(5);
	}
	return true;
}

static void must_be_given_back(long pinned_before, double seconds)
{
	if (!is_given_back(pinned_before, seconds))
		die("with everything closed, %ld pages are still pinned and the group is %s",
		    pins() - pinned_before,
		    is_taken(device.group) ? "taken" : "free");
}

/* ------------------------------------------------------------------ */
/* Signals                                                              */
/* ------------------------------------------------------------------ */

#define QUEUED	300

static volatile sig_atomic_t handled, handled_twice;
static volatile bool was_handled[QUEUED];

static void count_queued(int signal, siginfo_t *info, void *context)
{
	int value = info->si_value.sival_int;

	(void)signal;
	(void)context;
	if (value < 0 || value >= QUEUED || was_handled[value])
		handled_twice++;
	else
		was_handled[value] = true;
	handled++;
}

static void handle_queued(int flags)
{
	struct sigaction action = { .sa_sigaction = count_queued, .sa_flags = SA_SIGINFO | flags };

	if (sigaction(SIGRTMIN, &action, NULL) < 0)
		die("sigaction failed: %s", strerror(errno));
	handled = handled_twice = 0;
	memset((void *)was_handled, 0, sizeof(was_handled));
}

static void queue(pid_t whom, int value)
{
	if (sigqueue(whom, SIGRTMIN, (union sigval){ .sival_int = value }) < 0)
		die("sigqueue failed: %s", strerror(errno));
}

/* Sends all of them to its parent, a few at a time, at random moments. */
__attribute__((noreturn)) static void storm(unsigned int seed)
{
	pid_t parent = getppid();

	srandom(seed);
	for (int value = 0; value < QUEUED;) {
		for (int burst = random() % 8; burst >= 0 && value < QUEUED; burst--)
			queue(parent, value++);
		sleep_us(random() % 15000);
	}
	_exit(0);
}

static void must_have_handled_all(const char *when)
{
	if (handled != QUEUED || handled_twice)
		die("%s: of %d signals %d were handled, %d of these twice", when, QUEUED,
		    (int)handled, (int)handled_twice);
}

/* None is lost, and no call is ended by them. */
static void signals(void)
{
	unsigned char *memory = private_memory(1);
	bool before[DESCRIPTORS];
	__u64 mask;

	set_up();
	list_descriptors(before);
	for (int pass = 0; pass < 2; pass++) {
		const char *how = pass ? "with SA_RESTART" : "without SA_RESTART";
		unsigned long maps = 0;
		pid_t sender;
		int status;

		handle_queued(pass ? SA_RESTART : 0);
		sender = fork_child();
		if (!sender)
			storm(pass + 7);
		mask = blocked_signals();
		while (waitpid(sender, &status, WNOHANG) == 0) {
			map_and_unmap(memory);
			maps++;
			if (blocked_signals() != mask)
				die("a map has changed the signal mask");
		}
		if (status)
			die("the sender ended with wait status %#x", status);
		must_have_handled_all(how);
		must_have_descriptors(before);
		must_be_empty("after the last unmap");
		must_map_at(GPA, memory);
		must_reach(memory, GPA, pass);
		must_unmap_at(GPA);
		ok("%d signals %s hit %lu maps: none was lost, no map failed", QUEUED, how, maps);
	}

	/* Blocked signals stay away until the program itself lets them come. */
	handle_queued(0);
	mask = blocked_signals();
	mask |= 1ULL << (SIGRTMIN - 1);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
	for (int value = 0; value < QUEUED; value++)
		queue(getpid(), value);
	for (int i = 0; i < 5; i++)
		map_and_unmap(memory);
	if (handled || blocked_signals() != mask)
		die("a map has let %d blocked signals through", (int)handled);
	mask &= ~(1ULL << (SIGRTMIN - 1));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
	must_have_handled_all("after they were blocked");
	ok("%d blocked signals waited until the program wanted them", QUEUED);
}

/* ------------------------------------------------------------------ */
/* Stopping and killing                                                 */
/* ------------------------------------------------------------------ */

/* Between processes. */
struct shared {
	volatile unsigned long rounds;
	volatile bool end;
};

static struct shared *shared_state(void)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

__attribute__((noreturn)) static void map_until_told(struct shared *shared)
{
	unsigned char *memory = private_memory(2);

	while (!shared->end) {
		must_map_at(GPA, memory);
		if (shared->rounds % 100 == 50)
			must_reach(memory, GPA, shared->rounds);
		must_unmap_at(GPA);
		shared->rounds++;
	}
	must_be_empty("after the last unmap");
	exit(0);
}

static void await_state(pid_t child, int options, bool (*is_it)(int), const char *what)
{
	double give_up = now() + 20;
	int status;
	pid_t waited;

	while ((waited = waitpid(child, &status, options | WNOHANG)) == 0) {
		if (now() > give_up)
			die("the program has not %s for 20 s", what);
		sleep_us(300);
	}
	if (waited != child || !is_it(status))
		die("the program has not %s: wait status %#x", what, status);
}

static bool is_stopped(int status)
{
	return WIFSTOPPED(status);
}

static bool is_continued(int status)
{
	return WIFCONTINUED(status);
}

/* A program that is told to stop does, at whatever moment, and goes on as if nothing had been. */
static void job_control(void)
{
	struct shared *shared = shared_state();
	unsigned long stopped_at;
	int stops = 120;
	pid_t child;

	set_up();
	child = fork_child();
	if (!child)
		map_until_told(shared);
	srandom(3);
	while (shared->rounds < 3)
		sleep_ms(1);
	for (int i = 0; i < stops; i++) {
		sleep_us(random() % 9000);
		kill(child, i % 4 ? SIGSTOP : SIGTSTP);
		await_state(child, WUNTRACED, is_stopped, "stopped");
		stopped_at = shared->rounds;
		sleep_ms(i % 10 ? 2 : 40);
		if (shared->rounds != stopped_at)
			die("a stopped program goes on mapping");
		kill(child, SIGCONT);
		await_state(child, WCONTINUED, is_continued, "gone on");
	}
	/* A stop that is taken back before it began. */
	for (int i = 0; i < stops; i++) {
		sleep_us(random() % 3000);
		kill(child, SIGSTOP);
		kill(child, SIGCONT);
	}
	stopped_at = shared->rounds;
	for (double give_up = now() + 20; shared->rounds < stopped_at + 3; sleep_ms(1))
		if (now() > give_up)
			die("after SIGCONT the program stays where it was");
	shared->end = true;
	must_succeed(child, 20, "the program that was stopped");
	ok("%d stops and %d shorter ones: every one of %lu maps was right", stops, stops,
	   shared->rounds);
}

__attribute__((noreturn)) static void map_forever(int told, struct shared *shared)
{
	unsigned char *memory = private_memory(4);

	tell(told);
	for (;;) {
		map_and_unmap(memory);
		shared->rounds++;
	}
}

static void must_be_killed_by(pid_t child, int signal)
{
	int status;

	kill(child, signal);
	status = end_of(child, 10, "a killed program");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != signal)
		die("a program that got signal %d ended with wait status %#x", signal, status);
}

/* A program can be killed at every moment, and what it has mapped does not stay. */
static void killed(void)
{
	long before = pins();
	struct shared *shared = shared_state();
	int pipes[2], children = 100;

	make_pipe(pipes);
	srandom(5);
	for (int i = 0; i < children; i++) {
		pid_t child = fork_child();

		if (!child) {
			set_up_quickly();
			map_forever(pipes[1], shared);
		}
		await_told(pipes[0]);
		sleep_us(random() % 30000);
		must_be_killed_by(child, i % 2 ? SIGKILL : SIGTERM);
		must_be_given_back(before, 10);
	}
	ok("%d programs were killed in the midst of %lu maps, and nothing stayed", children,
	   shared->rounds);
}

/* The same for a context that outlives the program that was killed. */
static void killed_in_a_shared_context(void)
{
	struct shared *shared = shared_state();
	unsigned char *memory = private_memory(6);
	int pipes[2], children = 200, left = 0;
	long before;

	make_pipe(pipes);
	set_up();
	before = pins();
	srandom(6);
	for (int i = 0; i < children; i++) {
		pid_t child = fork_child();
		__u64 unmapped;

		if (!child)
			map_forever(pipes[1], shared);
		await_told(pipes[0]);
		sleep_us(random() % 30000);
		must_be_killed_by(child, i % 2 ? SIGKILL : SIGTERM);
		unmapped = unmap_everything();
		if (unmapped != 0 && unmapped != SIZE)
			die("of a killed program, %llu bytes were mapped", unmapped);
		left += unmapped != 0;
		must_be_empty("after UNMAP_ALL");
		must_map_at(GPA, memory);
		if (i % 40 == 0)
			must_reach(memory, GPA, i);
		must_unmap_at(GPA);
		if (pins() != before)
			die("%ld pages stay pinned", pins() - before);
	}
	ok("%d programs of one context were killed in the midst of %lu maps: %d had something "
	   "mapped, nothing else was left", children, shared->rounds, left);
}

/* ------------------------------------------------------------------ */
/* Programs that are watched or confined                                */
/* ------------------------------------------------------------------ */

static void must_ptrace(int request, pid_t whom)
{
	if (ptrace(request, whom, 0, 0) < 0)
		die("ptrace request %#x failed: %s", request, strerror(errno));
}

/* A traced program is told so. Its shared memory needs nobody to lead it. */
static void traced(void)
{
	unsigned char *memory = private_memory(8), *shared = shared_memory(SIZE);
	int to_child[2], to_parent[2], status;
	pid_t tracer = getpid(), child;
	char expected[32];

	make_pipe(to_child);
	make_pipe(to_parent);
	set_up();
	child = fork_child();
	if (!child) {
		struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);

		map_and_unmap(memory);
		tell(to_parent[1]);
		await_told(to_child[0]);
		must_refuse(device.node, IOASID_MAP_DMA, &dma_map, EBUSY,
			    "private memory of a traced program");
		snprintf(expected, sizeof(expected), "process %d ", tracer);
		if (!strstr(explanation(device.node), expected))
			die("the explanation does not name %s", expected);
		must_be_empty("after a refused map");
		map_and_unmap(shared);
		tell(to_parent[1]);
		await_told(to_child[0]);
		must_map_at(GPA, memory);
		must_reach(memory, GPA, 1);
		must_unmap_at(GPA);
		exit(0);
	}
	await_told(to_parent[0]);
	must_ptrace(PTRACE_SEIZE, child);
	tell(to_child[1]);
	await_told(to_parent[0]);
	must_ptrace(PTRACE_INTERRUPT, child);
	if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status))
		die("the traced program does not stop: wait status %#x", status);
	must_ptrace(PTRACE_DETACH, child);
	tell(to_child[1]);
	must_succeed(child, 20, "the program that was traced");
	ok("shared memory of a traced program is mapped, and its private memory afterwards");
}

#define ALLOW_CALL(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), \
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Whatever is not here kills the program: also what the daemon leads it through. */
static void confine(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW_CALL(ioctl),
		ALLOW_CALL(write),
		ALLOW_CALL(clock_gettime),
		ALLOW_CALL(clock_nanosleep),
		ALLOW_CALL(exit_group),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		die("cannot install a seccomp filter: %s", strerror(errno));
}

/* A filter does not stand in the way, and is in force again afterwards. */
static void confined(void)
{
	int pipes[2], status, ends[2];
	unsigned char *memory = private_memory(9);
	char told;
	pid_t child;

	make_pipe(pipes);
	set_up();
	child = fork_child();
	if (!child) {
		confine();
		for (int i = 0; i < 20; i++) {
			if (try_map(memory))
				_exit(50);
			if (i == 10)
				must_reach(memory, GPA, 1);
			must_unmap_at(GPA);
		}
		tell(pipes[1]);
		syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, ends);
		_exit(51);
	}
	close(pipes[1]);
	status = end_of(child, 30, "the confined program");
	if (read(pipes[0], &told, 1) != 1)
		die("the confined program could not map: wait status %#x", status);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
		die("a forbidden call after a map ended with wait status %#x", status);
	must_be_empty("after the program's last unmap");
	ok("a program with a seccomp filter maps private memory, and the filter stays in force");
}

/* Nor does it matter who it is, and that nobody may look into it. */
static void undumpable(void)
{
	unsigned char *memory;
	pid_t child;

	set_up();
	child = fork_child();
	if (!child) {
		struct rlimit enough = { .rlim_cur = 64 * MIB, .rlim_max = 64 * MIB };

		setrlimit(RLIMIT_MEMLOCK, &enough);
		if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
			die("cannot become another user: %s", strerror(errno));
		if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
			die("prctl failed: %s", strerror(errno));
		memory = private_memory(10);
		must_map_at(GPA, memory);
		must_reach(memory, GPA, 1);
		must_unmap_at(GPA);
		if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
			die("the program has become dumpable");
		exit(0);
	}
	must_succeed(child, 20, "the undumpable program");
	ok("an undumpable program of another user maps private memory");
}

/* ------------------------------------------------------------------ */
/* execve                                                               */
/* ------------------------------------------------------------------ */

#define NEW_PROGRAM	"--new-program"
#define NEW_STATUS	43

static void *map_in_a_loop(void *argument)
{
	__u64 iova = (uintptr_t)argument;
	unsigned char *memory = private_memory(iova);

	for (;;) {
		must_map_at(iova, memory);
		must_unmap_at(iova);
	}
	return NULL;
}

/* The new program: nothing of its past may show. */
__attribute__((noreturn)) static void be_new(void)
{
	if (blocked_signals()) {
		fprintf(stderr, "in-context: the new program blocks signals: %llx\n",
			blocked_signals());
		_exit(1);
	}
	for (int fd = 3; fd < DESCRIPTORS; fd++) {
		if (fcntl(fd, F_GETFD) >= 0) {
			fprintf(stderr, "in-context: the new program has descriptor %d\n", fd);
			_exit(1);
		}
	}
	_exit(NEW_STATUS);
}

static void *execute_soon(void *argument)
{
	long us = (uintptr_t)argument;
	char *const arguments[] = { "in-context", NEW_PROGRAM, NULL };

	sleep_us(us);
	execv("/proc/self/exe", arguments);
	die("execve failed: %s", strerror(errno));
}

/* Another thread of the program executes a new one, at whatever moment. */
static void executes(void)
{
	int rounds = 100, left = 0;

	set_up_quickly();
	srandom(11);
	for (int i = 0; i < rounds; i++) {
		uintptr_t delay = 1000 + random() % 12000;
		int threads = 1 + i % 3, status;
		pid_t child = fork_child();

		if (!child) {
			for (int n = 0; n < threads; n++)
				start_thread(map_in_a_loop, by_value(GPA + n * MIB));
			/* The first thread executes, or maps until another one does. */
			if (i % 2) {
				execute_soon(by_value(delay));
			} else {
				start_thread(execute_soon, by_value(delay));
				map_in_a_loop(by_value(GPA + threads * MIB));
			}
		}
		status = end_of(child, 20, "a program that was replaced by another");
		if (!WIFEXITED(status) || WEXITSTATUS(status) != NEW_STATUS)
			die("in round %d the new program ended with wait status %#x", i, status);
		left += unmap_everything() > 0;
		must_be_empty("after UNMAP_ALL");
	}
	ok("%d programs that were mapping executed another: all of those ran; %d had left "
	   "something mapped", rounds, left);
}

/* ------------------------------------------------------------------ */
/* How a program calls                                                  */
/* ------------------------------------------------------------------ */

#define NR_IOCTL_32	54	/* arch/x86/entry/syscalls/syscall_32.tbl */

static int ioctl32(int fd, __u32 command, __u32 argument)
{
	int result;

	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(NR_IOCTL_32), "b"(fd), "c"(command), "d"(argument)
		     : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static void no_int80(int signal)
{
	(void)signal;
	_exit(EXIT_SKIPPED);
}

/* The other way into the kernel is refused, and nothing else comes of it. */
static void by_32_bit_call(void)
{
	unsigned char *memory = anonymous(SIZE, PROT_READ | PROT_WRITE, MAP_32BIT);
	struct ioasid_map_dma *dma_map =
		(void *)anonymous(PAGE, PROT_READ | PROT_WRITE, MAP_32BIT);
	bool before[DESCRIPTORS];
	int result;

	signal(SIGSEGV, no_int80);
	if (ioctl32(-1, 0, 0) == -ENOSYS)
		skip("this kernel does not run 32-bit programs");
	signal(SIGSEGV, SIG_DFL);
	set_up();
	list_descriptors(before);
	*dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);
	for (int i = 0; i < 20; i++) {
		result = ioctl32(device.node, IOASID_MAP_DMA, (uintptr_t)dma_map);
		if (result != -EOPNOTSUPP)
			die("MAP_DMA through int 0x80 gave %d instead of EOPNOTSUPP", result);
	}
	if (!*explanation(device.node))
		die("MAP_DMA through int 0x80 was refused, but not explained");
	must_be_empty("after refused maps");
	must_have_descriptors(before);
	fill(memory, SIZE, 1);
	must_map_at(GPA, memory);
	must_reach(memory, GPA, 2);
	must_unmap_at(GPA);
	ok("a call through int 0x80 is refused, and the program goes on");
}

/* ioctl with another stack pointer. */
static long ioctl_on_stack(const void *stack, int fd, unsigned long command, const void *argument)
{
	register long result asm("rax") = SYS_ioctl;

	asm volatile("mov %%rsp, %%rbx\n\t"
		     "mov %[stack], %%rsp\n\t"
		     "syscall\n\t"
		     "mov %%rbx, %%rsp"
		     : "+a"(result)
		     : "D"((long)fd), "S"(command), "d"(argument), [stack] "r"(stack)
		     : "rbx", "rcx", "r11", "memory", "cc");
	return result;
}

static void map_on_stack(const void *stack, const void *memory, const char *where)
{
	/* Not on the stack itself, of which nothing may be changed. */
	static struct ioasid_map_dma dma_map;
	long result;

	for (int i = 0; i < 10; i++) {
		dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);
		result = ioctl_on_stack(stack, device.node, IOASID_MAP_DMA, &dma_map);
		if (result)
			die("MAP_DMA %s gave %ld", where, result);
		must_unmap_at(GPA);
	}
}

/* Nothing below the stack pointer is touched, nor above. */
static void small_stacks(void)
{
	unsigned char *memory = private_memory(12);
	unsigned char *stack = anonymous(2 * PAGE, PROT_READ | PROT_WRITE, 0);
	static unsigned char expected[2 * PAGE];

	set_up();
	fill(stack, 2 * PAGE, 13);
	memcpy(expected, stack, 2 * PAGE);
	/* First, so that this is also where the process gets its scratch memory. */
	mprotect(stack, PAGE, PROT_NONE);
	map_on_stack(stack + PAGE, memory, "at the last byte of a stack");
	must_equal(stack + PAGE, expected + PAGE, PAGE, "a stack with a guard page");
	mprotect(stack, PAGE, PROT_READ | PROT_WRITE);
	must_equal(stack, expected, PAGE, "the guard page");
	ok("a map on a stack that has no byte left changes none");

	for (size_t place = PAGE - 256; place <= PAGE + 256; place += 128) {
		map_on_stack(stack + place, memory, "above another stack");
		must_equal(stack, expected, 2 * PAGE, "two stacks side by side");
	}
	ok("a map on a stack beside another changes neither");
	map_on_stack(by_value(0x10), memory, "without a stack");
	ok("a map works without any stack");
	must_map_at(GPA, memory);
	must_reach(memory, GPA, 3);
	must_unmap_at(GPA);
}

/* The registers that a system call does not change. */
struct registers {
	__u64 rax, rdi, rsi, rdx, r10, r8, r9;
	__u64 rbx, rbp, r12, r13, r14, r15;
	__u64 reserved;
	unsigned char xmm[16][16];
};

/* Loads them all, makes system call rax and stores them again. */
void call_with(struct registers *registers);

asm(".pushsection .text\n"
    ".type call_with, @function\n"
    "call_with:\n"
    "	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
    "	push %rdi\n"
    "	movups 112(%rdi), %xmm0\n	movups 128(%rdi), %xmm1\n"
    "	movups 144(%rdi), %xmm2\n	movups 160(%rdi), %xmm3\n"
    "	movups 176(%rdi), %xmm4\n	movups 192(%rdi), %xmm5\n"
    "	movups 208(%rdi), %xmm6\n	movups 224(%rdi), %xmm7\n"
    "	movups 240(%rdi), %xmm8\n	movups 256(%rdi), %xmm9\n"
    "	movups 272(%rdi), %xmm10\n	movups 288(%rdi), %xmm11\n"
    "	movups 304(%rdi), %xmm12\n	movups 320(%rdi), %xmm13\n"
    "	movups 336(%rdi), %xmm14\n	movups 352(%rdi), %xmm15\n"
    "	mov 0(%rdi), %rax\n	mov 16(%rdi), %rsi\n	mov 24(%rdi), %rdx\n"
    "	mov 32(%rdi), %r10\n	mov 40(%rdi), %r8\n	mov 48(%rdi), %r9\n"
    "	mov 56(%rdi), %rbx\n	mov 64(%rdi), %rbp\n	mov 72(%rdi), %r12\n"
    "	mov 80(%rdi), %r13\n	mov 88(%rdi), %r14\n	mov 96(%rdi), %r15\n"
    "	mov 8(%rdi), %rdi\n"
    "	syscall\n"
    "	mov (%rsp), %rcx\n"
    "	mov %rax, 0(%rcx)\n	mov %rdi, 8(%rcx)\n	mov %rsi, 16(%rcx)\n"
    "	mov %rdx, 24(%rcx)\n	mov %r10, 32(%rcx)\n	mov %r8, 40(%rcx)\n"
    "	mov %r9, 48(%rcx)\n	mov %rbx, 56(%rcx)\n	mov %rbp, 64(%rcx)\n"
    "	mov %r12, 72(%rcx)\n	mov %r13, 80(%rcx)\n	mov %r14, 88(%rcx)\n"
    "	mov %r15, 96(%rcx)\n"
    "	movups %xmm0, 112(%rcx)\n	movups %xmm1, 128(%rcx)\n"
    "	movups %xmm2, 144(%rcx)\n	movups %xmm3, 160(%rcx)\n"
    "	movups %xmm4, 176(%rcx)\n	movups %xmm5, 192(%rcx)\n"
    "	movups %xmm6, 208(%rcx)\n	movups %xmm7, 224(%rcx)\n"
    "	movups %xmm8, 240(%rcx)\n	movups %xmm9, 256(%rcx)\n"
    "	movups %xmm10, 272(%rcx)\n	movups %xmm11, 288(%rcx)\n"
    "	movups %xmm12, 304(%rcx)\n	movups %xmm13, 320(%rcx)\n"
    "	movups %xmm14, 336(%rcx)\n	movups %xmm15, 352(%rcx)\n"
    "	pop %rdi\n	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n"
    "	pop %rbx\n"
    "	ret\n"
    ".size call_with, . - call_with\n"
    ".popsection\n");

_Static_assert(offsetof(struct registers, r15) == 96 && offsetof(struct registers, xmm) == 112,
	       "as in call_with");

/* Of all registers, a map changes only those that every system call does. */
static void registers(void)
{
	unsigned char *memory = private_memory(14);
	struct registers before, after;
	int rounds = 50;

	set_up_quickly();
	for (int i = 0; i < rounds; i++) {
		struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);

		fill(&before, sizeof(before), i);
		before.rax = SYS_ioctl;
		before.rdi = device.node;
		before.rsi = IOASID_MAP_DMA;
		before.rdx = (uintptr_t)&dma_map;
		after = before;
		call_with(&after);
		if (after.rax)
			die("MAP_DMA gave %lld", (long long)after.rax);
		after.rax = before.rax;
		must_equal(&after, &before, sizeof(before), "the registers after a map");
		must_unmap_at(GPA);
	}
	ok("%d maps changed no register", rounds);
}

/* ------------------------------------------------------------------ */
/* Descriptors and room                                                 */
/* ------------------------------------------------------------------ */

/* With as many descriptors free as the map needs it works, and else it is refused. */
static void no_descriptors_left(void)
{
	unsigned char *memory = private_memory(15);
	struct rlimit limit;
	bool before[DESCRIPTORS];
	int last[4], used = 0, fd;

	set_up();
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = 64;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		die("setrlimit failed: %s", strerror(errno));
	while ((fd = dup(STDERR_FILENO)) >= 0)
		last[used++ % 4] = fd;
	for (int spare = 0; spare < 4; spare++) {
		struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);
		char doing[64];

		list_descriptors(before);
		if (spare < 3) {
			snprintf(doing, sizeof(doing), "a map with room for %d descriptors", spare);
			must_refuse(device.node, IOASID_MAP_DMA, &dma_map, ENOMEM, doing);
		} else {
			map_and_unmap(memory);
		}
		must_have_descriptors(before);
		must_be_empty("with too little room for descriptors");
		close(last[spare]);
	}
	must_map_at(GPA, memory);
	must_unmap_at(GPA);
	ok("with room for 3 descriptors a map works; none is left over");
}

static void no_memory_left(void)
{
	unsigned char *memory = private_memory(16);
	pid_t child;

	set_up();
	child = fork_child();
	if (!child) {
		struct ioasid_map_dma dma_map = mapping(ioasid, GPA, memory, SIZE, MAP_BOTH);
		struct rlimit limit, little;
		bool before[DESCRIPTORS];

		list_descriptors(before);
		getrlimit(RLIMIT_AS, &limit);
		little = limit;
		little.rlim_cur = PAGE;
		setrlimit(RLIMIT_AS, &little);
		must_refuse(device.node, IOASID_MAP_DMA, &dma_map, ENOMEM,
			    "a map with no room in the address space");
		must_have_descriptors(before);
		must_be_empty("with no room in the address space");
		setrlimit(RLIMIT_AS, &limit);
		must_map_at(GPA, memory);
		must_reach(memory, GPA, 1);
		must_unmap_at(GPA);
		/* What a map needs beyond the first is there now. */
		setrlimit(RLIMIT_AS, &little);
		map_and_unmap(memory);
		exit(0);
	}
	must_succeed(child, 20, "the program without memory");
	ok("with room in the address space again, the map works");
}

#define CHURNED	40

static volatile bool churn_ends;
static unsigned long churns;

struct churned {
	int fd;		/* or -1 */
	ino_t inode;
};

static ino_t inode_of(int fd)
{
	struct stat stat;

	if (fstat(fd, &stat) < 0)
		die("descriptor %d of another thread was closed: %s", fd, strerror(errno));
	return stat.st_ino;
}

/* Opens and closes at random, and finds each descriptor as it was opened. */
static void *churn(void *unused)
{
	struct churned own[CHURNED];
	unsigned int seed = 17;

	(void)unused;
	for (int i = 0; i < CHURNED; i++)
		own[i].fd = -1;
	while (!churn_ends) {
		struct churned *one = &own[rand_r(&seed) % CHURNED];

		churns++;
		if (one->fd < 0) {
			/* Each with an inode of its own, unlike eventfd and the like. */
			one->fd = memfd_create("churned", MFD_CLOEXEC);
			if (one->fd < 0)
				die("no memfd: %s", strerror(errno));
			one->inode = inode_of(one->fd);
		} else {
			if (inode_of(one->fd) != one->inode)
				die("descriptor %d of another thread is another file", one->fd);
			if (close(one->fd) < 0)
				die("descriptor %d was closed by somebody else", one->fd);
			one->fd = -1;
		}
	}
	for (int i = 0; i < CHURNED; i++) {
		if (own[i].fd < 0)
			continue;
		if (inode_of(own[i].fd) != own[i].inode || close(own[i].fd) < 0)
			die("descriptor %d is not what it was", own[i].fd);
	}
	return NULL;
}

/* What another thread opens at the same time stays its own. */
static void descriptor_churn(void)
{
	unsigned char *memory = private_memory(18);
	bool before[DESCRIPTORS];
	pthread_t thread;
	int maps = 500;

	set_up_quickly();
	list_descriptors(before);
	thread = start_thread(churn, NULL);
	for (int i = 0; i < maps; i++)
		map_and_unmap(memory);
	churn_ends = true;
	pthread_join(thread, NULL);
	must_have_descriptors(before);
	ok("%d maps beside a thread that opened and closed %lu descriptors: none was lost, none "
	   "is left over", maps, churns);
}

#define TRAPS	8

static int traps[TRAPS][2];

/*
 * A thread whose descriptors are not those of its process. From Linux 6.9 on the daemon can reach
 * them; before, the thread is refused.
 */
static void *map_with_own_descriptors(void *memory)
{
	bool before[DESCRIPTORS];
	int error;

	if (unshare(CLONE_FILES) < 0)
		die("unshare failed: %s", strerror(errno));
	/* What is free here is in the process the way to somebody else. */
	for (int i = 0; i < 2 * TRAPS; i++)
		close(traps[i / 2][i % 2]);
	list_descriptors(before);
	for (int i = 0; i < 5; i++) {
		error = try_map(memory);
		if (error == EOPNOTSUPP && *explanation(device.node)) {
			if (i == 0)
				ok("a thread with descriptors of its own is refused: %s",
				   explanation(device.node));
			must_have_descriptors(before);
			continue;
		}
		if (error) {
			printf("a thread with descriptors of its own got \"%s\": %s\n",
			       strerror(error), explanation(device.node));
			return memory;
		}
		if (i == 0) {
			must_reach(memory, GPA, 1);
			ok("a thread with descriptors of its own maps private memory");
		}
		must_unmap_at(GPA);
		must_have_descriptors(before);
	}
	return NULL;
}

static void must_be_silent(const char *when)
{
	char byte;

	for (int i = 0; i < 2 * TRAPS; i++)
		if (recv(traps[i / 2][i % 2], &byte, 1, 0) >= 0 || errno != EAGAIN)
			die("%s, something was sent over a socket of another thread", when);
}

static void own_descriptors(void)
{
	unsigned char *memory = private_memory(19);
	const int kind = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
	bool before[DESCRIPTORS];
	void *failed;

	set_up();
	for (int i = 0; i < TRAPS; i++)
		if (socketpair(AF_UNIX, kind, 0, traps[i]) < 0)
			die("no socket pair: %s", strerror(errno));
	list_descriptors(before);
	pthread_join(start_thread(map_with_own_descriptors, memory), &failed);
	must_be_silent("after a map");
	if (failed)
		die("a thread with descriptors of its own cannot map");
	must_have_descriptors(before);
	must_be_empty("after the thread's last unmap");
	map_and_unmap(memory);
}

/* ------------------------------------------------------------------ */
/* Memory                                                               */
/* ------------------------------------------------------------------ */

/* A child maps its own memory, not its parent's, and devices reach it when it is gone. */
static void forked(void)
{
	unsigned char *memory = private_memory(20), own[SIZE], expected[SIZE];
	unsigned char seen[500], sent[500];
	long before;
	pid_t child;

	set_up();
	map_and_unmap(memory);
	before = pins();
	memcpy(own, memory, SIZE);
	child = fork_child();
	if (!child) {
		fill(memory, SIZE, 21);
		must_map_at(GPA, memory);
		must_reach(memory, GPA, 22);
		fill(memory, SIZE, 23);
		exit(0);
	}
	must_succeed(child, 20, "the child");
	if (get_info(device.node, ioasid).nr_mappings != 1)
		die("what a child mapped has gone with it");
	fill(expected, SIZE, 23);
	device_reads(&device, ioasid, GPA + 3 * PAGE, seen, sizeof(seen));
	must_equal(seen, expected + 3 * PAGE, sizeof(seen), "the memory of the child that ended");
	fill(sent, sizeof(sent), 24);
	device_writes(&device, ioasid, GPA + 4 * PAGE, sent, sizeof(sent));
	device_reads(&device, ioasid, GPA + 4 * PAGE, seen, sizeof(seen));
	must_equal(seen, sent, sizeof(sent), "what the device wrote there");
	must_equal(memory, own, SIZE, "the parent's memory");
	if (pins() != before + (long)(SIZE / PAGE))
		die("%ld pages are pinned for the child that ended", pins() - before);
	must_unmap_at(GPA);
	if (pins() != before)
		die("after UNMAP_DMA, %ld pages are pinned", pins() - before);
	ok("memory of a child is mapped until it is unmapped, also when the child has ended");
}

/* What the program takes away from itself, it does not take away from the device. */
static void unmapped_by_the_program(void)
{
	unsigned char *memory = private_memory(25), expected[SIZE], seen[500], sent[500];
	unsigned char *again;

	set_up();
	memcpy(expected, memory, SIZE);
	must_map_at(GPA, memory);
	munmap(memory, SIZE);
	again = mmap(memory, SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (again == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	device_reads(&device, ioasid, GPA + 5 * PAGE, seen, sizeof(seen));
	must_equal(seen, expected + 5 * PAGE, sizeof(seen), "memory that the program unmapped");
	fill(sent, sizeof(sent), 26);
	device_writes(&device, ioasid, GPA + 5 * PAGE, sent, sizeof(sent));
	device_reads(&device, ioasid, GPA + 5 * PAGE, seen, sizeof(seen));
	must_equal(seen, sent, sizeof(sent), "what the device wrote there");
	if (!all_bytes_are(again, SIZE, 0))
		die("the device has written to memory that was never mapped for it");
	must_unmap_at(GPA);
	ok("what the program unmaps itself stays mapped for the device");
}

/* Memory for whose pages nobody ever cares. */
static unsigned char *memory_that_never_comes(void)
{
	unsigned char *memory = anonymous(SIZE, PROT_READ | PROT_WRITE, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)memory, .len = SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0)
		skip("no userfaultfd here: %s", strerror(errno));
	if (ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		die("cannot register memory: %s", strerror(errno));
	return memory;
}

#define NEVER_WAITS	3	/* exit status */

static int never_told;

static void *register_what_never_comes(void *memory)
{
	struct ioasid_register_memory register_data = {
		.argsz = sizeof(register_data),
		.vaddr = (uintptr_t)memory,
		.size = SIZE,
	};

	tell(never_told);
	if (ioctl(device.node, IOASID_REGISTER_MEMORY, &register_data) == 0)
		die("memory that never comes was registered");
	if (errno == EFAULT)
		_exit(NEVER_WAITS);
	die("REGISTER_MEMORY of memory that never comes gave \"%s\": %s", strerror(errno),
	    explanation(device.node));
}

/*
 * A program that is stuck while it is led; with `closes`, it closes the node meanwhile. Gives 0 if
 * this kernel does not wait for such memory.
 */
static pid_t stuck_program(bool closes)
{
	int pipes[2], status;
	pid_t child;

	make_pipe(pipes);
	child = fork_child();
	if (!child) {
		unsigned char *memory = memory_that_never_comes();

		set_up_quickly();
		never_told = pipes[1];
		start_thread(register_what_never_comes, memory);
		sleep_ms(500);
		if (closes)
			close(device.node);
		pause();
	}
	close(pipes[1]);
	await_told(pipes[0]);
	close(pipes[0]);
	if (!has_ended(child, &status, 1))
		return child;
	if (status != NEVER_WAITS << 8)
		die("a program that waits for memory ended with wait status %#x", status);
	return 0;
}

/*
 * Mapping does not wait for such memory, because VFIO pins without ever letting go of the mmap
 * lock; registering does on some kernels. Nobody else waits for it, and the program can be killed.
 */
static void memory_never_comes(void)
{
	long before = pins();
	double begin;
	int status;
	pid_t child;

	child = fork_child();
	if (!child) {
		struct ioasid_map_dma dma_map;

		set_up_quickly();
		dma_map = mapping(ioasid, GPA, memory_that_never_comes(), SIZE, MAP_BOTH);
		must_refuse(device.node, IOASID_MAP_DMA, &dma_map, EFAULT,
			    "a map of memory that never comes");
		must_be_empty("after a refused map");
		exit(has_extension(device.node, IOASID_EXT_REGISTER_MEMORY) ? 0 : EXIT_SKIPPED);
	}
	status = end_of(child, 10, "a program that maps memory that never comes");
	must_be_given_back(before, 10);
	if (status == EXIT_SKIPPED << 8)
		return;
	if (status)
		die("a program with memory that never comes ended with wait status %#x", status);

	child = stuck_program(false);
	if (!child) {
		must_be_given_back(before, 10);
		ok("nor does this kernel wait when such memory is registered");
		return;
	}
	if (has_other) {
		pid_t other = fork_child();

		if (!other) {
			device = other_device;
			set_up();
			for (int i = 0; i < 20; i++)
				map_and_unmap(private_memory(i));
			exit(0);
		}
		must_succeed(other, 20, "another program");
		ok("while a program waits for memory that never comes, another one maps");
	}
	begin = now();
	kill(child, SIGKILL);
	status = end_of(child, 5, "a killed program that waits for memory");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("a killed program ended with wait status %#x", status);
	must_be_given_back(before, 10);
	ok("it could be killed, and %.0f ms later all was given back", (now() - begin) * 1000);

	child = stuck_program(true);
	begin = now();
	status = end_of(child, 30, "a program that closed the node while it was being led");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("a program that closed the node ended with wait status %#x", status);
	must_be_given_back(before, 10);
	ok("one that closed the node was ended after %.1f s, and all was given back",
	   now() - begin);
}

/* ------------------------------------------------------------------ */
/* The end of the daemon                                                */
/* ------------------------------------------------------------------ */

/* Whether the device reads at the IOVA what is in memory. Takes no call of the node. */
static bool is_reached(const unsigned char *memory)
{
	unsigned char *window = device.window;

	memset(window, 0, PAGE);
	edu_read(device.registers, WINDOW_IOVA, 0, 500);
	edu_read(device.registers, GPA + PAGE, 0, 500);
	edu_write(device.registers, WINDOW_IOVA, 0, 500);
	return !memcmp(window, memory + PAGE, 500);
}

static void until_error(void)
{
	unsigned char *memory = private_memory(30);
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.iova = GPA,
		.size = SIZE,
	};
	unsigned long rounds = 0;
	int error;

	set_up();
	dma_unmap.ioasid = ioasid;
	map(device.node, ioasid, WINDOW_IOVA, device.window, PAGE, MAP_BOTH);
	must_map_at(GPA, memory);
	if (!is_reached(memory))
		die("the device does not reach what was mapped");
	must_unmap_at(GPA);
	if (is_reached(memory))
		die("the device reaches what was unmapped");
	printf("ready\n");
	fflush(stdout);
	for (;; rounds++) {
		error = try_map(memory);
		if (error) {
			if (is_reached(memory))
				die("a map failed (%s), and the device reaches the memory",
				    strerror(error));
			printf("after %lu rounds a map failed: %s\n", rounds, strerror(error));
			return;
		}
		dma_unmap.size = SIZE;
		if (ioctl(device.node, IOASID_UNMAP_DMA, &dma_unmap) < 0) {
			error = errno;
			/* An unmap that was in progress may have been done, or not. */
			if (error != ECONNABORTED && !is_reached(memory))
				die("a map succeeded, and the device does not reach the memory");
			printf("after %lu rounds an unmap failed: %s\n", rounds, strerror(error));
			return;
		}
	}
}

/* ------------------------------------------------------------------ */

struct row {
	const char *name;
	void (*run)(void);
	double limit;		/* seconds, far beyond what it takes */
};

static const struct row rows[] = {
	{ "signals", signals, 120 },
	{ "job-control", job_control, 120 },
	{ "killed", killed, 180 },
	{ "killed-shared", killed_in_a_shared_context, 180 },
	{ "traced", traced, 60 },
	{ "confined", confined, 60 },
	{ "undumpable", undumpable, 60 },
	{ "executes", executes, 100 },
	{ "32-bit", by_32_bit_call, 60 },
	{ "small-stacks", small_stacks, 60 },
	{ "registers", registers, 60 },
	{ "no-descriptors", no_descriptors_left, 60 },
	{ "no-memory", no_memory_left, 60 },
	{ "churn", descriptor_churn, 120 },
	{ "own-descriptors", own_descriptors, 60 },
	{ "forked", forked, 60 },
	{ "unmapped", unmapped_by_the_program, 60 },
	{ "never-comes", memory_never_comes, 90 },
};

#define ROWS	(sizeof(rows) / sizeof(rows[0]))

/* Gives the exit status of the row. */
static int run_row(const struct row *row)
{
	long before = pins();
	double begin = now();
	int status;
	pid_t child = fork_child();

	if (!child) {
		setpgid(0, 0);
		row->run();
		exit(0);
	}
	setpgid(child, child);
	if (!has_ended(child, &status, row->limit)) {
		kill(-child, SIGKILL);
		die("%s: hangs after %.0f s, and %s be killed", row->name, row->limit,
		    has_ended(child, &status, 20) ? "could" : "cannot");
	}
	kill(-child, SIGKILL);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
	if (!is_given_back(before, 20)) {
		fprintf(stderr, "in-context: %s has left %ld pinned pages\n", row->name,
			pins() - before);
		status = EXIT_FAILURE;
	}
	printf("%s: %s (%.1f s)\n", row->name,
	       status == 0 ? "passed" : status == EXIT_SKIPPED ? "skipped" : "FAILED",
	       now() - begin);
	return status;
}

static bool is_wanted(const struct row *row, char **names)
{
	bool wanted = !*names;

	for (; *names; names++)
		wanted |= !strcmp(*names, row->name);
	return wanted;
}

int main(int argc, char **argv)
{
	unsigned int passed = 0, failed = 0, skipped = 0;
	int next = 2;

	if (argc == 2 && !strcmp(argv[1], NEW_PROGRAM))
		be_new();
	if (argc < 3)
		die("usage: in-context NODE DEVICE [OTHER-DEVICE] [ROW]...");
	path = argv[1];
	next += take_device(argv + next, &device);
	has_other = argv[next] && !strcmp(argv[next], "--vfio");
	if (has_other)
		next += take_device(argv + next, &other_device);
	if (!device.is_edu || (has_other && !other_device.is_edu))
		skip("no caller is led for a simulated device");
	/* So that new programs get none. */
	for (int fd = 3; fd < DESCRIPTORS; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	prepare_device(&device);
	if (has_other)
		prepare_device(&other_device);

	if (argv[next] && !strcmp(argv[next], "--until-error")) {
		until_error();
		return 0;
	}
	for (size_t i = 0; i < ROWS; i++) {
		if (!is_wanted(&rows[i], argv + next))
			continue;
		switch (run_row(&rows[i])) {
		case 0:
			passed++;
			break;
		case EXIT_SKIPPED:
			skipped++;
			break;
		default:
			failed++;
		}
	}
	printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
	if (failed)
		return EXIT_FAILURE;
	return passed ? 0 : skipped ? EXIT_SKIPPED : EXIT_FAILURE;
}
#endif
