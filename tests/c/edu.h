/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * QEMU's `edu` PCI device (1234:11e8; QEMU, docs/specs/edu.rst): it copies between memory and a
 * buffer of 4096 bytes of its own. Its addresses have 28 bits, a transfer takes about 100 ms,
 * and whether a transfer reached memory shows in nothing but the bytes.
 */
#ifndef TEST_EDU_H
#define TEST_EDU_H

#include "vfio.h"

#define EDU_BUFFER	0x40000UL	/* the buffer's address in the device */
/* One byte less than the buffer has: QEMU 7.2 ends, instead, when a transfer reaches the last. */
#define EDU_TRANSFER_MAX	4095UL
#define EDU_IOVA_LAST	0x0fffffffUL	/* the highest IOVA that it can use */

#define EDU_IDENTITY	0x00
#define EDU_DMA_SOURCE	0x80
#define EDU_DMA_DEST	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_COMMAND	0x98
#define EDU_DMA_START		1
#define EDU_DMA_TO_MEMORY	2

/* Opens a bound edu device and gives its registers. */
static inline volatile void *open_edu(int group, const char *address, int *device_fd)
{
	volatile void *registers;

	*device_fd = open_device(group, address);
	check_pci_id(*device_fd, 0x1234, 0x11e8, "edu device");
	enable_bus_master(*device_fd);
	registers = map_bar0(*device_fd);
	if ((read32(registers, EDU_IDENTITY) & 0xffff) != 0x00ed)
		die("the registers of %s identify themselves as %#x", address,
		    read32(registers, EDU_IDENTITY));
	return registers;
}

static inline void edu_transfer(volatile void *registers, __u64 source, __u64 destination,
				size_t count, __u64 direction)
{
	size_t offset = (direction & EDU_DMA_TO_MEMORY ? source : destination) - EDU_BUFFER;
	double give_up = now() + 30;

	if (offset + count > EDU_TRANSFER_MAX)
		die("%zu bytes at %zu do not fit into the edu device's buffer", count, offset);
	write64(registers, EDU_DMA_SOURCE, source);
	write64(registers, EDU_DMA_DEST, destination);
	write64(registers, EDU_DMA_COUNT, count);
	write64(registers, EDU_DMA_COMMAND, EDU_DMA_START | direction);
	while (read64(registers, EDU_DMA_COMMAND) & EDU_DMA_START) {
		if (now() > give_up)
			die("the edu device has not finished a transfer in 30 s");
		sleep_ms(2);
	}
}

/* The device reads memory at `iova` into its buffer at `offset`. */
static inline void edu_read(volatile void *registers, __u64 iova, size_t offset, size_t count)
{
	edu_transfer(registers, iova, EDU_BUFFER + offset, count, 0);
}

/* The device writes its buffer from `offset` to memory at `iova`. */
static inline void edu_write(volatile void *registers, __u64 iova, size_t offset, size_t count)
{
	edu_transfer(registers, EDU_BUFFER + offset, iova, count, EDU_DMA_TO_MEMORY);
}

#endif /* TEST_EDU_H */
