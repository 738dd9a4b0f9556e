/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the programs here share: calling the node, telling what went wrong, and memory that
 * devices may reach. A program prints one line that begins with "ok:" for each thing that it
 * has shown, and ends at the first thing that is not as it should be.
 */
#ifndef TEST_COMMON_H
#define TEST_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <ioasid.h>

/* Exit status of a program that cannot show anything here, and says why. */
#define EXIT_SKIPPED	77

#define PAGE		4096UL
#define KIB		1024UL
#define MIB		(1024UL * KIB)
#define GIB		(1024UL * MIB)

#define PRINTF		__attribute__((format(printf, 1, 2), unused))

PRINTF static void ok(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("ok: ");
	vprintf(format, arguments);
	printf("\n");
	fflush(stdout);
	va_end(arguments);
}

static inline void say_on_stderr(const char *format, va_list arguments)
{
	fflush(stdout);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
}

/* Says what is not as it should be, and ends. */
PRINTF __attribute__((noreturn)) static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	say_on_stderr(format, arguments);
	exit(EXIT_FAILURE);
}

/* Says why nothing can be shown here, and ends. */
PRINTF __attribute__((noreturn)) static void skip(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	say_on_stderr(format, arguments);
	exit(EXIT_SKIPPED);
}

/* The sentence with which the node explains this thread's last failure, or "". */
static inline const char *explanation(int node)
{
	static __thread char text[1024];
	struct ioasid_error query = {
		.argsz = sizeof(query),
		.text = (uintptr_t)text,
		.text_len = sizeof(text),
	};

	if (ioctl(node, IOASID_GET_ERROR, &query) < 0)
		text[0] = '\0';
	return text;
}

/* An argument that is passed by value instead of in a structure. */
static inline void *by_value(uint64_t value)
{
	return (void *)(uintptr_t)value;
}

/*
 * Does a command that has to succeed, and gives its result. Otherwise says what was being done
 * and why it failed, and ends.
 */
static inline int must(int node, unsigned long command, const void *argument, const char *doing)
{
	int result = ioctl(node, command, argument);

	if (result < 0) {
		const char *reason = strerror(errno);

		die("%s failed: %s. %s", doing, reason, explanation(node));
	}
	return result;
}

/* Does a command that has to fail with `error`, and to be explained. */
static inline void must_refuse(int node, unsigned long command, const void *argument, int error,
			       const char *doing)
{
	int result = ioctl(node, command, argument);
	int got = errno;
	const char *why;

	if (result >= 0)
		die("%s succeeded, and had to fail with: %s", doing, strerror(error));
	why = explanation(node);
	if (got != error)
		die("%s failed with \"%s\" instead of \"%s\". %s", doing, strerror(got),
		    strerror(error), why);
	if (!*why)
		die("%s failed as it should, but was not explained", doing);
	ok("%s is refused (%s): %s", doing, strerror(error), why);
}

static inline int open_node(const char *path)
{
	int node = open(path, O_RDWR | O_CLOEXEC);

	if (node < 0)
		die("cannot open %s: %s", path, strerror(errno));
	return node;
}

static inline bool has_extension(int node, unsigned int extension)
{
	return must(node, IOASID_CHECK_EXTENSION, by_value(extension), "CHECK_EXTENSION") == 1;
}

/* ------------------------------------------------------------------ */
/* The commands of section 5.1, one function each                       */
/* ------------------------------------------------------------------ */

static inline __u32 alloc_ioasid(int node)
{
	return must(node, IOASID_ALLOC, NULL, "ALLOC");
}

static inline void free_ioasid(int node, __u32 ioasid)
{
	must(node, IOASID_FREE, by_value(ioasid), "FREE");
}

static inline struct ioasid_attach_device attachment(__u32 device, __u32 ioasid)
{
	struct ioasid_attach_device at_data = {
		.argsz = sizeof(at_data),
		.device = device,
		.ioasid = ioasid,
	};

	return at_data;
}

static inline void attach(int node, __u32 device, __u32 ioasid)
{
	struct ioasid_attach_device at_data = attachment(device, ioasid);

	must(node, IOASID_ATTACH_DEVICE, &at_data, "ATTACH_DEVICE");
}

static inline void detach(int node, __u32 device, __u32 ioasid)
{
	struct ioasid_attach_device at_data = attachment(device, ioasid);

	must(node, IOASID_DETACH_DEVICE, &at_data, "DETACH_DEVICE");
}

static inline struct ioasid_map_dma mapping(__u32 ioasid, __u64 iova, const void *memory,
					    size_t size, __u32 flags)
{
	struct ioasid_map_dma dma_map = {
		.argsz = sizeof(dma_map),
		.flags = flags,
		.ioasid = ioasid,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	return dma_map;
}

#define MAP_BOTH	(IOASID_MAP_READ | IOASID_MAP_WRITE)

static inline void map(int node, __u32 ioasid, __u64 iova, const void *memory, size_t size,
		       __u32 flags)
{
	struct ioasid_map_dma dma_map = mapping(ioasid, iova, memory, size, flags);

	must(node, IOASID_MAP_DMA, &dma_map, "MAP_DMA");
}

/* Unmaps what lies in the range and gives how many bytes that were. */
static inline __u64 unmap(int node, __u32 ioasid, __u64 iova, __u64 size)
{
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap),
		.ioasid = ioasid,
		.iova = iova,
		.size = size,
	};

	must(node, IOASID_UNMAP_DMA, &dma_unmap, "UNMAP_DMA");
	return dma_unmap.size;
}

static inline struct ioasid_info get_info(int node, __u32 ioasid)
{
	struct ioasid_info info = { .argsz = sizeof(info), .ioasid = ioasid };

	must(node, IOASID_GET_INFO, &info, "GET_INFO");
	return info;
}

/* ------------------------------------------------------------------ */
/* Simulated devices                                                    */
/* ------------------------------------------------------------------ */

static inline struct ioasid_bind_device simulated(const char *name, __u64 cookie)
{
	struct ioasid_bind_device bind_data = {
		.argsz = sizeof(bind_data),
		.flags = IOASID_BIND_SIMULATED,
		.fd = -1,
		.cookie = cookie,
	};

	if (strlen(name) >= sizeof(bind_data.name))
		die("%s is too long for the name of a device", name);
	strcpy(bind_data.name, name);
	return bind_data;
}

static inline __u32 bind_simulated(int node, const char *name, __u64 cookie)
{
	struct ioasid_bind_device bind_data = simulated(name, cookie);

	/* The kernel tells the daemon of the end of an earlier open when it gets round to it. */
	for (int tries = 0; tries < 500; tries++) {
		if (!ioctl(node, IOASID_BIND_DEVICE, &bind_data))
			return bind_data.device;
		if (errno != EBUSY)
			break;
		usleep(10000);
	}
	must(node, IOASID_BIND_DEVICE, &bind_data, "BIND_DEVICE");
	return bind_data.device;
}

/* Has a simulated device do DMA. Gives 0, or the errno with `done` short of `size`. */
static inline int simulated_dma(int node, __u32 device, __u32 direction, __u64 iova, void *data,
				size_t size, size_t *done)
{
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma),
		.flags = direction,
		.device = device,
		.iova = iova,
		.data = (uintptr_t)data,
		.size = size,
	};
	int error = ioctl(node, IOASID_SIM_DMA, &dma) < 0 ? errno : 0;

	if (done)
		*done = dma.done;
	return error;
}

/* ------------------------------------------------------------------ */
/* Memory                                                               */
/* ------------------------------------------------------------------ */

/*
 * Memory of a memfd of its own, shared, zero, readable and writable. The descriptor stays open: a
 * daemon that runs without privilege finds a program's memory through its descriptors only.
 */
static inline void *shared_memory(size_t size)
{
	int fd = memfd_create("ioasid-test", MFD_CLOEXEC);
	void *memory;

	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot make a memfd of %zu bytes: %s", size, strerror(errno));
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		die("cannot map a memfd of %zu bytes: %s", size, strerror(errno));
	return memory;
}

/* Fills memory with bytes that differ from place to place and from seed to seed. */
static inline void fill(void *memory, size_t size, __u32 seed)
{
	unsigned char *bytes = memory;
	__u32 state = seed * 2654435761U + 1;

	for (size_t i = 0; i < size; i++) {
		state = state * 1664525U + 1013904223U;
		bytes[i] = state >> 24;
	}
}

static inline bool all_bytes_are(const void *memory, size_t size, unsigned char value)
{
	const unsigned char *bytes = memory;

	for (size_t i = 0; i < size; i++)
		if (bytes[i] != value)
			return false;
	return true;
}

/* Ends unless the two are equal, saying where they differ first. */
static inline void must_equal(const void *got, const void *expected, size_t size, const char *what)
{
	const unsigned char *a = got, *b = expected;

	for (size_t i = 0; i < size; i++)
		if (a[i] != b[i])
			die("%s: byte %zu of %zu is %#x instead of %#x", what, i, size, a[i], b[i]);
}

/* ------------------------------------------------------------------ */
/* Time and numbers                                                     */
/* ------------------------------------------------------------------ */

static inline double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static inline void sleep_ms(long ms)
{
	struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static inline unsigned long number(const char *text)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 0);
	if (errno || *end || end == text)
		die("%s is no number", text);
	return value;
}

/* How many pages are pinned on this machine; -1 where the kernel does not tell. */
static inline long pinned_pages(void)
{
	int refresh = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC);
	FILE *vmstat = fopen("/proc/vmstat", "re");
	long acquired = -1, released = -1;
	char line[128];

	/* Each processor counts for itself; reading this adds it all up. */
	if (refresh >= 0) {
		if (read(refresh, line, sizeof(line)) < 0)
			line[0] = '\0';
		close(refresh);
	}
	while (vmstat && fgets(line, sizeof(line), vmstat)) {
		sscanf(line, "nr_foll_pin_acquired %ld", &acquired);
		sscanf(line, "nr_foll_pin_released %ld", &released);
	}
	if (vmstat)
		fclose(vmstat);
	return acquired < 0 || released < 0 ? -1 : acquired - released;
}

#endif /* TEST_COMMON_H */
