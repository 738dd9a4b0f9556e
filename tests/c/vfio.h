/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The little of VFIO that a program with a bound PCI device does by itself: it opens the group,
 * gets the device's descriptor from it and maps the device's registers. There is no container
 * in it: binding to /dev/ioasid takes that place.
 */
#ifndef TEST_VFIO_H
#define TEST_VFIO_H

#include "common.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

/* Opens /dev/vfio/GROUP with the program's own rights. */
static inline int open_group(const char *group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("cannot open %s: %s", path, strerror(errno));
	if (ioctl(fd, VFIO_GROUP_GET_STATUS, &status) < 0)
		die("%s has no status: %s", path, strerror(errno));
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		die("%s is not viable: bind all of its devices to vfio-pci", path);
	return fd;
}

/* Binds the device of that PCI address in the group to the node. */
static inline __u32 bind_group(int node, int group, const char *address, __u64 cookie)
{
	struct ioasid_bind_device bind_data = {
		.argsz = sizeof(bind_data),
		.flags = IOASID_BIND_VFIO_GROUP,
		.fd = group,
		.cookie = cookie,
	};

	if (strlen(address) >= sizeof(bind_data.name))
		die("%s is too long for the name of a device", address);
	strcpy(bind_data.name, address);
	must(node, IOASID_BIND_DEVICE, &bind_data, "BIND_DEVICE");
	return bind_data.device;
}

/* The device's own descriptor; works once the device is bound. */
static inline int open_device(int group, const char *address)
{
	int fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);

	if (fd < 0)
		die("cannot get the device %s from its group: %s", address, strerror(errno));
	return fd;
}

static inline struct vfio_region_info region(int device_fd, __u32 index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	if (ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
		die("the device has no region %u: %s", index, strerror(errno));
	return info;
}

static inline __u16 read_config16(int device_fd, __u32 offset)
{
	struct vfio_region_info config = region(device_fd, VFIO_PCI_CONFIG_REGION_INDEX);
	__u16 value;

	if (pread(device_fd, &value, sizeof(value), config.offset + offset) != sizeof(value))
		die("cannot read the device's configuration space: %s", strerror(errno));
	return value;
}

/* Lets the device answer on its BARs and do DMA. */
static inline void enable_bus_master(int device_fd)
{
	struct vfio_region_info config = region(device_fd, VFIO_PCI_CONFIG_REGION_INDEX);
	__u16 command = read_config16(device_fd, PCI_COMMAND);

	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	if (pwrite(device_fd, &command, sizeof(command), config.offset + PCI_COMMAND) !=
	    sizeof(command))
		die("cannot enable bus mastering: %s", strerror(errno));
}

/* Ends unless the device is the one that the program knows how to drive. */
static inline void check_pci_id(int device_fd, __u16 vendor, __u16 id, const char *what)
{
	__u16 got_vendor = read_config16(device_fd, PCI_VENDOR_ID);
	__u16 got_id = read_config16(device_fd, PCI_DEVICE_ID);

	if (got_vendor != vendor || (id && got_id != id))
		die("%04x:%04x is no %s", got_vendor, got_id, what);
}

/* The registers of BAR 0, at full speed: no ioctl, no daemon, no kernel between. */
static inline volatile void *map_bar0(int device_fd)
{
	struct vfio_region_info bar = region(device_fd, VFIO_PCI_BAR0_REGION_INDEX);
	void *registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device_fd,
			       bar.offset);

	if (registers == MAP_FAILED)
		die("cannot map the device's registers: %s", strerror(errno));
	return registers;
}

static inline __u32 read32(volatile void *registers, size_t offset)
{
	return *(volatile __u32 *)((volatile char *)registers + offset);
}

static inline void write32(volatile void *registers, size_t offset, __u32 value)
{
	*(volatile __u32 *)((volatile char *)registers + offset) = value;
}

static inline __u64 read64(volatile void *registers, size_t offset)
{
	return *(volatile __u64 *)((volatile char *)registers + offset);
}

static inline void write64(volatile void *registers, size_t offset, __u64 value)
{
	*(volatile __u64 *)((volatile char *)registers + offset) = value;
}

#endif /* TEST_VFIO_H */
