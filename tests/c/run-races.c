/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * run-races DEVICE-A GROUP-A DEVICE-B GROUP-B TEST...
 *
 * Under ioasid-run: whatever a program does with the descriptors of an intercepted call, and whoever is
 * killed, the call gives an errno, and a descriptor is never another device than the program opened.
 * Devices are two PCI addresses of vfio-pci, each alone in its group. TESTs:
 *
 *   arguments   bad descriptors, bad structures, calls in the wrong state; what may be done after all
 *   duplicates  all duplicates of a descriptor become the device, each closed on exec as before
 *   groups      a group of the program itself, with a container and with IOASIDs
 *   races       another thread closes, duplicates and opens meanwhile
 *   killed      a program is killed in the middle, many times
 *   orphaned    the supervisor is killed
 */
#include "vfio.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static const char *device[2], *group[2];
static unsigned long long bar0[2];	/* where the registers of each are */

static void expect(int result, int error, const char *what)
{
	if (error ? result >= 0 || errno != error : result < 0)
		die("%s gives \"%s\" instead of \"%s\"", what,
		    result < 0 ? strerror(errno) : "success", error ? strerror(error) : "success");
}

static int open_placeholder(int which, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", device[which]);
	return open(path, flags);
}

static int must_open(int which)
{
	int fd = open_placeholder(which, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("the placeholder of %s cannot be opened: %s", device[which], strerror(errno));
	return fd;
}

static int open_ioasid(void)
{
	int fd = open("/dev/ioasid", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("/dev/ioasid cannot be opened: %s", strerror(errno));
	return fd;
}

static int bind_fd(int fd, int node)
{
	return ioctl(fd, VFIO_BIND_IOASID_FD, node);
}

static int attach_fd(int fd, unsigned long command, __u32 ioasid)
{
	struct vfio_attach_ioasid data = { .argsz = sizeof(data), .ioasid = ioasid };

	return ioctl(fd, command, &data);
}

/* Which device a descriptor is: 0 or 1; -1 for none. By where its registers are. */
static int which_device(int fd)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	struct vfio_region_info config = {
		.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	__u32 bar = 0;

	if (ioctl(fd, VFIO_DEVICE_GET_INFO, &info) < 0 ||
	    ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &config) < 0 ||
	    pread(fd, &bar, sizeof(bar), config.offset + PCI_BASE_ADDRESS_0) != sizeof(bar))
		return -1;
	for (int i = 0; i < 2; i++)
		if ((bar & ~15U) == (__u32)bar0[i])
			return i;
	die("descriptor %d is a device with its registers at %#x, which is neither", fd, bar);
}

static void must_be(int fd, int which, const char *what)
{
	if (which_device(fd) != which)
		die("%s is device %d instead of %d", what, which_device(fd), which);
}

static void find_bars(void)
{
	for (int i = 0; i < 2; i++) {
		char path[128];
		FILE *file;

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", device[i]);
		file = fopen(path, "r");
		if (!file || fscanf(file, "%llx", &bar0[i]) != 1 || !bar0[i])
			die("%s has no BAR 0", device[i]);
		fclose(file);
	}
	if (bar0[0] == bar0[1])
		die("the devices cannot be told apart");
}

/* ---------------------------------------------------------------- arguments */

static void arguments(void)
{
	struct { struct vfio_attach_ioasid data; __u32 tail; } long_data = {
		.data = { .argsz = sizeof(long_data) },
	};
	int node = open_ioasid(), other = open_ioasid(), null = open("/dev/null", O_RDWR);
	int placeholder = must_open(0), path = open_placeholder(0, O_PATH);
	int read_only = open_placeholder(0, O_RDONLY), ioasid;

	/* Descriptors that are none, and descriptors of something else */
	expect(bind_fd(-1, node), EBADF, "BIND on -1");
	expect(bind_fd(1000, node), EBADF, "BIND on a descriptor that is not open");
	expect(bind_fd(path, node), EBADF, "BIND on a descriptor of O_PATH");
	expect(bind_fd(null, node), ENOTTY, "BIND on /dev/null");
	expect(bind_fd(node, node), EINVAL, "BIND on the node");
	expect(bind_fd(read_only, node), EACCES, "BIND on what was opened to read");
	expect(bind_fd(placeholder, -1), EBADF, "BIND to -1");
	expect(bind_fd(placeholder, 1000), EBADF, "BIND to a descriptor that is not open");
	expect(bind_fd(placeholder, null), EINVAL, "BIND to /dev/null");
	expect(bind_fd(placeholder, placeholder), EINVAL, "BIND to a placeholder");

	/* A placeholder is no device */
	expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, 1), EINVAL, "ATTACH before BIND");
	expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, node), EINVAL, "UNBIND before BIND");
	expect(ioctl(placeholder, VFIO_DEVICE_RESET), ENOTTY, "a device's command before BIND");
	expect(write(placeholder, "x", 1), ENOSPC, "write() before BIND");

	expect(bind_fd(placeholder, node), 0, "BIND");
	must_be(placeholder, 0, "what was bound");
	expect(bind_fd(placeholder, node), EBUSY, "BIND again");
	expect(bind_fd(placeholder, other), EBUSY, "BIND to another open of the node");
	expect(bind_fd(read_only, node), EACCES, "BIND on what was opened to read, once more");

	/* Structures */
	ioasid = ioctl(node, IOASID_ALLOC);
	long_data.data.ioasid = ioasid;
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, NULL), EFAULT, "ATTACH of NULL");
	long_data.data.argsz = 15;
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, &long_data), EINVAL, "ATTACH with a short argsz");
	long_data.data.argsz = 4097;
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, &long_data), E2BIG, "ATTACH with a huge argsz");
	long_data.data.argsz = sizeof(long_data);
	long_data.tail = 1;
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, &long_data), E2BIG, "ATTACH with an unknown tail");
	long_data.tail = 0;
	long_data.data.flag = 1U << 31;
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, &long_data), EINVAL, "ATTACH with an unknown flag");
	long_data.data.flag = 0;
	expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, 12345), ENOENT, "ATTACH to no IOASID");
	expect(attach_fd(placeholder, VFIO_DETACH_IOASID, ioasid), ENOENT, "DETACH of what is not attached");
	expect(ioctl(placeholder, VFIO_ATTACH_IOASID, &long_data), 0, "ATTACH with a tail of zeroes");
	expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, ioasid), EBUSY, "ATTACH again");
	expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, node), EBUSY, "UNBIND while attached");
	expect(attach_fd(placeholder, VFIO_DETACH_IOASID, ioasid), 0, "DETACH");
	expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, other), EINVAL, "UNBIND from another open");
	expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, -1), EBADF, "UNBIND from -1");
	must_be(placeholder, 0, "after refused unbinds it");

	/* With its registers mapped a device stays, and stays the same */
	{
		struct vfio_region_info bar = region(placeholder, VFIO_PCI_BAR0_REGION_INDEX);
		volatile void *registers = map_bar0(placeholder);

		expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, node), EBUSY,
		       "UNBIND with mapped registers");
		must_be(placeholder, 0, "after a refused unbind it");
		expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, ioasid), 0, "ATTACH after that");
		expect(attach_fd(placeholder, VFIO_DETACH_IOASID, ioasid), 0, "DETACH after that");
		munmap((void *)registers, bar.size);
	}
	expect(ioctl(placeholder, VFIO_UNBIND_IOASID_FD, node), 0, "UNBIND");
	if (which_device(placeholder) != -1)
		die("after UNBIND the descriptor is a device");
	expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, ioasid), EINVAL, "ATTACH after UNBIND");
	expect(bind_fd(placeholder, other), 0, "BIND to another open after UNBIND");
	must_be(placeholder, 0, "what was bound again");

	/* The context is gone: so is the binding, and the device can be bound anew */
	close(other);
	errno = 0;
	if (attach_fd(placeholder, VFIO_ATTACH_IOASID, ioasid) >= 0 ||
	    (errno != EBADF && errno != EINVAL))
		die("ATTACH after the context was closed gives \"%s\"", strerror(errno));
	close(placeholder);
	placeholder = must_open(0);
	expect(bind_fd(placeholder, node), 0, "BIND after the context of before was closed");
	must_be(placeholder, 0, "what was bound then");
	close(placeholder);
	close(node);
	ok("bad descriptors, bad structures and wrong states get their errnos");
}

/* --------------------------------------------------------------- duplicates */

static void duplicates(void)
{
	int node = open_ioasid(), one = must_open(0), other = must_open(1), again = must_open(0);
	int two = dup(one), three = fcntl(one, F_DUPFD_CLOEXEC, 100), status;
	const struct { int fd, cloexec; } all[] = { { one, 1 }, { two, 0 }, { three, 1 } };
	pid_t child;

	expect(bind_fd(two, node), 0, "BIND on a duplicate");
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		must_be(all[i].fd, 0, "a duplicate");
		if (fcntl(all[i].fd, F_GETFD) != (all[i].cloexec ? FD_CLOEXEC : 0))
			die("a duplicate has other descriptor flags than before");
	}
	if (which_device(other) != -1 || which_device(again) != -1)
		die("other opens of placeholders became devices");
	expect(bind_fd(again, node), EBUSY, "BIND of another open of the same placeholder");
	expect(bind_fd(other, node), 0, "BIND of the other device");
	must_be(other, 1, "the other device");
	child = fork();
	if (!child) {
		int ioasid = ioctl(node, IOASID_ALLOC);

		must_be(two, 0, "an inherited descriptor");
		expect(attach_fd(two, VFIO_ATTACH_IOASID, ioasid), 0, "ATTACH in a child");
		expect(attach_fd(three, VFIO_DETACH_IOASID, ioasid), 0, "DETACH on a duplicate in a child");
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || status)
		die("the child failed");
	expect(ioctl(three, VFIO_UNBIND_IOASID_FD, node), 0, "UNBIND on a duplicate");
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (which_device(all[i].fd) != -1)
			die("after UNBIND a duplicate is a device");
	must_be(other, 1, "the other device");
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		close(all[i].fd);
	close(again), close(other), close(node);
	ok("all duplicates of a descriptor become the device, and no other descriptor does");
}

/* ------------------------------------------------------------------- groups */

/* The supervisor lets go of a group that it has opened within a second after the program has closed
 * what it was bound to. */
static void await_group(const char *number)
{
	char path[64];
	int fd, tries;

	snprintf(path, sizeof(path), "/dev/vfio/%s", number);
	for (tries = 0; tries < 50; tries++) {
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0 || errno != EBUSY)
			break;
		usleep(100 * 1000);
	}
	if (fd >= 0)
		close(fd);
}

static void groups(void)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), node = open_ioasid();
	int group_fd, other_group, null = open("/dev/null", O_RDWR), none = -1, fd, placeholder, ioasid;

	await_group(group[0]);
	await_group(group[1]);
	group_fd = open_group(group[0]);
	other_group = open_group(group[1]);
	if (ioctl(container, IOASID_CHECK_EXTENSION, IOASID_EXT_CONTAINER) != 1)
		die("/dev/vfio/vfio is not the node");
	expect(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &none), EBADF, "SET_CONTAINER of -1");
	expect(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, NULL), EFAULT, "SET_CONTAINER of NULL");
	/* The kernel's own answer, which is not the same on all. */
	if (ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &null) >= 0 ||
	    (errno != EINVAL && errno != EBADFD))
		die("SET_CONTAINER of /dev/null gives \"%s\"", strerror(errno));
	expect(ioctl(group_fd, VFIO_GROUP_UNSET_CONTAINER), EINVAL, "UNSET_CONTAINER without any");
	expect(ioctl(null, VFIO_GROUP_SET_CONTAINER, &container), ENOTTY, "SET_CONTAINER on /dev/null");
	expect(ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, device[0]), EINVAL, "GET_DEVICE_FD without a container");

	/* As today's programs do, with two groups in one container */
	expect(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container), 0, "SET_CONTAINER");
	expect(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container), EINVAL, "SET_CONTAINER again");
	expect(ioctl(group_fd, VFIO_GROUP_GET_STATUS, &status), 0, "GET_STATUS");
	if (!(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET))
		die("GET_STATUS does not tell of the container");
	expect(ioctl(other_group, VFIO_GROUP_SET_CONTAINER, &container), 0, "SET_CONTAINER of a second group");
	expect(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), 0, "SET_IOMMU");
	expect(ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, "0000:ff:1f.7"), ENODEV, "GET_DEVICE_FD of no device");
	expect(ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, device[1]), ENODEV, "GET_DEVICE_FD of another group");
	fd = open_device(group_fd, device[0]);
	must_be(fd, 0, "the device of the group");
	if (fcntl(fd, F_GETFD) != FD_CLOEXEC)
		die("a device's descriptor is not closed on exec");
	expect(ioctl(group_fd, VFIO_GROUP_UNSET_CONTAINER), EBUSY, "UNSET_CONTAINER with an open device");
	close(fd);
	expect(ioctl(group_fd, VFIO_GROUP_UNSET_CONTAINER), 0, "UNSET_CONTAINER");
	expect(ioctl(other_group, VFIO_GROUP_UNSET_CONTAINER), 0, "UNSET_CONTAINER of the second group");
	expect(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), EINVAL, "SET_IOMMU without a group");
	ok("two groups of the program join a container and leave it");

	/* The container is not used, and /dev/ioasid put in its place */
	expect(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &node), 0, "SET_CONTAINER of the node");
	fd = open_device(group_fd, device[0]);
	ioasid = ioctl(node, IOASID_ALLOC);
	expect(attach_fd(fd, VFIO_ATTACH_IOASID, ioasid), 0, "ATTACH of a group's device");
	expect(attach_fd(fd, VFIO_DETACH_IOASID, ioasid), 0, "DETACH of a group's device");
	close(fd);
	expect(ioctl(group_fd, VFIO_GROUP_UNSET_CONTAINER), 0, "UNSET_CONTAINER of the node");
	/* and by the device's name, while the program has its group open */
	placeholder = must_open(0);
	expect(bind_fd(placeholder, node), 0, "BIND with the program's own group");
	must_be(placeholder, 0, "what was bound");
	expect(attach_fd(placeholder, VFIO_ATTACH_IOASID, ioasid), 0, "ATTACH");
	close(placeholder);
	close(node), close(container), close(group_fd), close(other_group), close(null);
	ok("a group of the program is used with IOASIDs, by itself and by its device's name");
}

/* -------------------------------------------------------------------- races */

static _Atomic int contested, stop, opened_other, bound_other;
static int race_node;

/* Takes the descriptor away under a call, opens the other device instead, binds that. */
static void *disturb(void *unused)
{
	unsigned int round = 0;

	while (!stop) {
		int fd = contested, got, twin;

		if (fd < 0)
			continue;
		twin = round++ & 1 ? dup(fd) : -1;
		close(fd);
		got = open_placeholder(1, O_RDWR);
		if (got >= 0) {
			opened_other++;
			if (bind_fd(got, race_node) == 0) {
				bound_other++;
				must_be(got, 1, "what the other thread bound");
			}
			close(got);
		}
		if (twin >= 0)
			close(twin);
		contested = -1;
	}
	return unused;
}

static void races(void)
{
	int errors[256] = { 0 }, won = 0;
	time_t end = time(NULL) + 10;
	pthread_t thread;

	contested = -1;
	pthread_create(&thread, NULL, disturb, NULL);
	for (int round = 0; round < 200 || time(NULL) < end; round++) {
		int fd = must_open(0), result;

		race_node = open_ioasid();
		contested = fd;
		for (volatile int wait = rand() % 2000; wait > 0; wait--)
			;
		result = bind_fd(fd, race_node);
		if (result < 0)
			errors[errno & 255]++;
		else
			won++;
		while (contested >= 0)
			;
		close(fd);
		close(race_node);
	}
	stop = 1;
	pthread_join(thread, NULL);
	for (int error = 0; error < 256; error++)
		if (errors[error] && error != EBADF && error != EBUSY && error != EINVAL)
			die("%d calls gave \"%s\"", errors[error], strerror(error));
	for (int fd = 3; fd < 64; fd++)
		if (which_device(fd) >= 0)
			close(fd);
	if (!won && !bound_other)
		die("nothing was ever bound");
	ok("%d binds won against close, %d gave EBADF and %d EBUSY; of %d opened meanwhile %d were bound, rightly",
	   won, errors[EBADF], errors[EBUSY], opened_other, bound_other);
}

/* ------------------------------------------------------------------- killed */

static void killed(void)
{
	int node = -1, fd;

	for (int round = 0; round < 30; round++) {
		pid_t child = fork();

		if (!child) {
			for (;;) {
				node = open_ioasid();
				fd = must_open(round & 1);
				bind_fd(fd, node);
				attach_fd(fd, VFIO_ATTACH_IOASID, ioctl(node, IOASID_ALLOC));
				close(fd);
				close(node);
			}
		}
		usleep(5000 + rand() % 40000);
		kill(child, SIGKILL);
		if (waitpid(child, NULL, 0) != child)
			die("a killed child does not end");
	}
	/* What they held is let go, at the latest a moment later. */
	for (int which = 0; which < 2; which++) {
		node = open_ioasid();
		fd = must_open(which);
		for (int wait = 0; bind_fd(fd, node) < 0; wait++) {
			if (wait > 100)
				die("after kills, BIND gives \"%s\"", strerror(errno));
			usleep(50000);
		}
		must_be(fd, which, "what was bound after kills");
		close(fd), close(node);
	}
	ok("killed in the middle of calls, a program leaves nothing behind that hinders others");
}

/* ----------------------------------------------------------------- orphaned */

/* The process that serves ours: named like the launcher, and without a filter. */
static pid_t supervisor(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	pid_t found = 0;

	while ((entry = readdir(proc))) {
		char path[300], text[64] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		file = *entry->d_name >= '1' && *entry->d_name <= '9' ? fopen(path, "r") : NULL;
		if (!file)
			continue;
		if (fgets(text, sizeof(text), file) && !strcmp(text, "ioasid-run\n"))
			found = atoi(entry->d_name);
		fclose(file);
	}
	closedir(proc);
	return found;
}

static void *bind_all_the_time(void *unused)
{
	int node = open_ioasid(), fd = must_open(1);

	for (;;) {
		if (bind_fd(fd, node) < 0 && errno == ENOSYS)
			return unused;
		ioctl(fd, VFIO_UNBIND_IOASID_FD, node);
	}
}

static void orphaned(void)
{
	int node = open_ioasid(), fd = must_open(0), ioasid = ioctl(node, IOASID_ALLOC);
	pid_t pid = supervisor();
	pthread_t thread;

	if (!pid)
		die("there is no supervisor");
	expect(bind_fd(fd, node), 0, "BIND");
	expect(attach_fd(fd, VFIO_ATTACH_IOASID, ioasid), 0, "ATTACH");
	pthread_create(&thread, NULL, bind_all_the_time, NULL);
	usleep(100000);
	kill(pid, SIGKILL);
	alarm(10);		/* nothing may hang */
	pthread_join(thread, NULL);
	expect(attach_fd(fd, VFIO_DETACH_IOASID, ioasid), ENOSYS, "DETACH without a supervisor");
	expect(bind_fd(-1, node), ENOSYS, "BIND without a supervisor");
	alarm(0);
	must_be(fd, 0, "without a supervisor, the device");
	expect(ioctl(node, IOASID_CHECK_EXTENSION, IOASID_EXT_CONTAINER), 0, "the node without a supervisor");
	ok("without its supervisor a program gets ENOSYS at once, and goes on with what it has");
}

int main(int argc, char **argv)
{
	const struct { const char *name; void (*run)(void); } tests[] = {
		{ "arguments", arguments }, { "duplicates", duplicates }, { "groups", groups },
		{ "races", races }, { "killed", killed }, { "orphaned", orphaned },
	};

	if (argc < 6)
		die("usage: run-races DEVICE-A GROUP-A DEVICE-B GROUP-B TEST...");
	for (int i = 0; i < 2; i++) {
		device[i] = argv[1 + 2 * i];
		group[i] = argv[2 + 2 * i];
	}
	find_bars();
	for (int i = 5; i < argc; i++) {
		size_t n = 0;

		while (n < sizeof(tests) / sizeof(*tests) && strcmp(tests[n].name, argv[i]))
			n++;
		if (n == sizeof(tests) / sizeof(*tests))
			die("there is no test %s", argv[i]);
		tests[n].run();
	}
	return 0;
}
