/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What a device reaches at an IOVA, for programs that look after every step: bytes in both
 * directions, or a fault. What devices reach is a piece of one memory, the guest's, so that what
 * went astray is seen too.
 *
 * An edu device tells nothing about faults. Its buffer is loaded once, with the bytes that it writes
 * from then on; what it reads gets to other places of its buffer, and from there to a window. So
 * whatever an edu device shows has to map that window (map_window, map_window_below) while it is
 * asked what it reads.
 */
#ifndef TEST_REACH_H
#define TEST_REACH_H

#include "device.h"

#include <pthread.h>

#define SAMPLE		64UL		/* bytes of one transfer */
#define BUFFER_SENT	0		/* in the buffer of an edu device: what it writes, */
#define BUFFER_READ	1024		/* what it has read, */
#define BUFFER_KEPT	2048		/* and where it reads to what it must not reach */

static unsigned char *guest;		/* the memory of the guest */
static size_t guest_size;
static unsigned char *before;		/* what it held before a device was asked */
static unsigned char *window;		/* of all edu devices, at WINDOW_IOVA */
static unsigned char loaded[PAGE];	/* what their buffers were loaded with */
static __u32 next_seed;

static inline void make_guest(size_t size)
{
	guest = shared_memory(size);
	before = shared_memory(size);
	window = shared_memory(PAGE);
	guest_size = size;
	fill(guest, size, ++next_seed);
	fill(loaded, sizeof(loaded), ++next_seed);
}

/* Maps the window of a device in an IOASID that is no child; simulated devices need none. */
static inline void map_window(const struct device *device, __u32 ioasid)
{
	if (device->is_edu)
		map(device->node, ioasid, WINDOW_IOVA, window, PAGE, MAP_BOTH);
}

/* Maps it in a child whose parent maps it. */
static inline void map_window_below(const struct device *device, __u32 child)
{
	if (device->is_edu)
		map(device->node, child, WINDOW_IOVA, (void *)WINDOW_IOVA, PAGE, MAP_BOTH);
}

/* Loads the buffer of an edu device, which shows its window. */
static inline void load(const struct device *device)
{
	if (!device->is_edu)
		return;
	memcpy(window, loaded, PAGE);
	edu_read(device->registers, WINDOW_IOVA, 0, EDU_TRANSFER_MAX);
}

/* What of a buffer has changed goes through the window; it has to be there. */
static inline void see_buffer(const struct device *device, size_t at, unsigned char *seen,
			      const char *when)
{
	memset(window, 0xff, PAGE);
	edu_write(device->registers, WINDOW_IOVA, at, SAMPLE);
	memcpy(seen, window, SAMPLE);
	if (all_bytes_are(seen, SAMPLE, 0xff))
		die("%s: %s does not reach its window", when, device->name);
}

static inline void must_read(const struct device *device, __u64 iova, size_t offset,
			     const char *when)
{
	unsigned char seen[SAMPLE] = { 0 };
	int error;

	fill(guest + offset, SAMPLE, ++next_seed);
	if (device->is_edu) {
		edu_read(device->registers, iova, BUFFER_READ, SAMPLE);
		see_buffer(device, BUFFER_READ, seen, when);
	} else {
		error = simulated_dma(device->node, device->id, IOASID_SIM_DMA_READ, iova, seen,
				      SAMPLE, NULL);
		if (error)
			die("%s: %s cannot read at %#llx: %s. %s", when, device->name, iova,
			    strerror(error), explanation(device->node));
	}
	if (memcmp(seen, guest + offset, SAMPLE))
		die("%s: what %s reads at %#llx is not what the guest has at %#zx", when,
		    device->name, iova, offset);
}

static inline void must_not_read(const struct device *device, __u64 iova, const char *when)
{
	unsigned char seen[SAMPLE];
	int error;

	if (device->is_edu) {
		edu_read(device->registers, iova, BUFFER_KEPT, SAMPLE);
		see_buffer(device, BUFFER_KEPT, seen, when);
		/* QEMU puts zeroes where a read has faulted. */
		if (!all_bytes_are(seen, SAMPLE, 0) && memcmp(seen, loaded + BUFFER_KEPT, SAMPLE))
			die("%s: %s has read something at %#llx", when, device->name, iova);
		return;
	}
	error = simulated_dma(device->node, device->id, IOASID_SIM_DMA_READ, iova, seen, SAMPLE,
			      NULL);
	if (error != EIO)
		die("%s: %s reads at %#llx (%s)", when, device->name, iova, strerror(error));
}

/* The device writes at `iova`; gives what it wrote, and 0 or the errno that it reports. */
static inline int write_sample(const struct device *device, __u64 iova, unsigned char *sent)
{
	if (device->is_edu) {
		memcpy(sent, loaded + BUFFER_SENT, SAMPLE);
		edu_write(device->registers, iova, BUFFER_SENT, SAMPLE);
		return 0;
	}
	fill(sent, SAMPLE, ++next_seed);
	return simulated_dma(device->node, device->id, IOASID_SIM_DMA_WRITE, iova, sent, SAMPLE,
			     NULL);
}

static inline void must_write(const struct device *device, __u64 iova, size_t offset,
			      const char *when)
{
	unsigned char sent[SAMPLE];
	int error;

	memcpy(before, guest, guest_size);
	error = write_sample(device, iova, sent);
	if (error)
		die("%s: %s cannot write at %#llx: %s. %s", when, device->name, iova,
		    strerror(error), explanation(device->node));
	if (memcmp(guest + offset, sent, SAMPLE))
		die("%s: what %s writes at %#llx does not get to %#zx of the guest", when,
		    device->name, iova, offset);
	/* What an edu device writes is always the same: it must not stay. */
	memcpy(guest + offset, before + offset, SAMPLE);
	if (memcmp(guest, before, guest_size))
		die("%s: what %s writes at %#llx also changes other memory", when, device->name,
		    iova);
}

static inline void must_not_write(const struct device *device, __u64 iova, const char *when)
{
	unsigned char sent[SAMPLE];
	int error;

	memcpy(before, guest, guest_size);
	error = write_sample(device, iova, sent);
	if (!device->is_edu && error != EIO)
		die("%s: %s writes at %#llx (%s)", when, device->name, iova, strerror(error));
	if (memcmp(guest, before, guest_size))
		die("%s: what %s writes at %#llx gets to the guest's memory", when, device->name,
		    iova);
}

/*
 * The device has exactly the rights `prot` (of IOASID_MAP_*) at `iova`, and what it reaches there
 * is at `offset` of the guest's memory.
 *
 * Linux gives every entry that it makes for VT-d the bit that stands for present in one kind of
 * table and for reading in the other: what may be written can be read too.
 */
static inline void reaches(const struct device *device, __u64 iova, size_t offset, __u32 prot,
			   const char *when)
{
	if (prot & IOASID_MAP_READ)
		must_read(device, iova, offset, when);
	else if (!device->is_edu || !(prot & IOASID_MAP_WRITE))
		must_not_read(device, iova, when);
	if (prot & IOASID_MAP_WRITE)
		must_write(device, iova, offset, when);
	else
		must_not_write(device, iova, when);
}

/* DMA there faults, in both directions. */
static inline void faults(const struct device *device, __u64 iova, const char *when)
{
	reaches(device, iova, 0, 0, when);
}

/* The same of a device that reaches nothing at all, its window neither. */
static inline void reaches_nothing(const struct device *device, __u64 iova, const char *when)
{
	must_not_write(device, iova, when);
	if (!device->is_edu)
		must_not_read(device, iova, when);
}

/* ------------------------------------------------------------------ */
/* Nested address spaces                                                */
/* ------------------------------------------------------------------ */

static inline __u32 create_nesting(int node, __u32 parent)
{
	return must(node, IOASID_CREATE_NESTING, by_value(parent), "CREATE_NESTING");
}

/* What a child maps is at an address of its parent. */
static inline void map_child(int node, __u32 child, __u64 iova, __u64 at, size_t size, __u32 prot)
{
	map(node, child, iova, (void *)(uintptr_t)at, size, prot);
}

static inline struct ioasid_bind_pgtable page_table(__u32 ioasid, __u32 format, __u64 addr,
						    __u32 addr_width)
{
	struct ioasid_bind_pgtable bind_data = {
		.argsz = sizeof(bind_data),
		.ioasid = ioasid,
		.format = format,
		.addr = addr,
		.addr_width = addr_width,
	};

	return bind_data;
}

static inline void bind_pgtable(int node, __u32 ioasid, __u32 format, __u64 addr, __u32 addr_width)
{
	struct ioasid_bind_pgtable bind_data = page_table(ioasid, format, addr, addr_width);

	must(node, IOASID_BIND_PGTABLE, &bind_data, "BIND_PGTABLE");
}

static inline void unbind_pgtable(int node, __u32 ioasid)
{
	struct ioasid_bind_pgtable bind_data = page_table(ioasid, 0, 0, 0);

	must(node, IOASID_UNBIND_PGTABLE, &bind_data, "UNBIND_PGTABLE");
}

static inline struct ioasid_invalidate_cache invalidation(__u32 ioasid, __u64 iova, __u64 size)
{
	struct ioasid_invalidate_cache inv_data = {
		.argsz = sizeof(inv_data),
		.flags = size ? 0 : IOASID_INVALIDATE_ALL,
		.ioasid = ioasid,
		.iova = iova,
		.size = size,
	};

	return inv_data;
}

/* Says that the table has changed in a range; with size 0, anywhere. */
static inline void invalidate(int node, __u32 ioasid, __u64 iova, __u64 size)
{
	struct ioasid_invalidate_cache inv_data = invalidation(ioasid, iova, size);

	must(node, IOASID_INVALIDATE_CACHE, &inv_data, "INVALIDATE_CACHE");
}

#endif /* TEST_REACH_H */
