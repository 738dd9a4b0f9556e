/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * rfc-flows DEVICE-1 DEVICE-2
 *
 * The flows of section 5 of the proposal, 5.1 to 5.4, with its own ioctls on device descriptors and
 * in its order of calls: rfc-samples with real devices behind it. After every step both devices are
 * asked what they reach. flows.c has the same on the node's device plane, and goes further into
 * what the steps leave open; here what matters is who takes the calls.
 *
 * A device is the PCI address of an edu device, alone in its group. It is opened by name, as
 * /dev/vfio/devices/ADDRESS, which stock kernels do not have: `ioasid-run` makes it work. What the
 * proposal does not speak of is shown as well: a device that is given back, in the order that a
 * kernel asks for, and calls that cannot be right.
 */
#include "reach.h"

#define GUEST		(4 * MIB)	/* in the proposal, 1 GB */
#define HVA		0x40000000UL

static int ioasid_fd;
static struct device dev1, dev2;
static __u32 gpa_ioasid, giova_ioasid;

/* ------------------------------------------------------------------ */
/* The proposal's ioctls on device descriptors                          */
/* ------------------------------------------------------------------ */

static struct device open_by_name(const char *address)
{
	struct device device = { .is_edu = true, .group = -1, .node = -1 };
	char path[sizeof("/dev/vfio/devices/") + IOASID_NAME_LEN];

	if (strlen(address) >= sizeof(device.name))
		die("%s is no PCI address", address);
	strcpy(device.name, address);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", address);
	device.fd = open(path, O_RDWR | O_CLOEXEC);
	if (device.fd < 0)
		die("cannot open %s: %s; run under ioasid-run", path, strerror(errno));
	return device;
}

/* Calls that concern a device are explained by the node too, but not to this thread. */
static void device_call(const struct device *device, unsigned long command, void *argument,
			const char *doing)
{
	if (ioctl(device->fd, command, argument) < 0)
		die("%s of %s: %s", doing, device->name, strerror(errno));
}

static void device_refuses(const struct device *device, unsigned long command, void *argument,
			   int error, const char *doing)
{
	if (ioctl(device->fd, command, argument) >= 0)
		die("%s succeeded, and had to fail with: %s", doing, strerror(error));
	if (errno != error)
		die("%s failed with \"%s\" instead of \"%s\"", doing, strerror(errno),
		    strerror(error));
	ok("%s is refused (%s)", doing, strerror(error));
}

static void bind_fd(struct device *device)
{
	device_call(device, VFIO_BIND_IOASID_FD, by_value(ioasid_fd), "VFIO_BIND_IOASID_FD");
	device->node = ioasid_fd;
	/* From here on it is VFIO's own descriptor of the device. */
	check_pci_id(device->fd, 0x1234, 0x11e8, "edu device");
	enable_bus_master(device->fd);
	device->registers = map_bar0(device->fd);
}

static struct vfio_attach_ioasid attach_data(__u32 ioasid)
{
	return (struct vfio_attach_ioasid){ .argsz = sizeof(struct vfio_attach_ioasid),
					    .ioasid = ioasid };
}

static void attach_fd(const struct device *device, __u32 ioasid)
{
	struct vfio_attach_ioasid at_data = attach_data(ioasid);

	device_call(device, VFIO_ATTACH_IOASID, &at_data, "VFIO_ATTACH_IOASID");
}

static void detach_fd(const struct device *device, __u32 ioasid)
{
	struct vfio_attach_ioasid at_data = attach_data(ioasid);

	device_call(device, VFIO_DETACH_IOASID, &at_data, "VFIO_DETACH_IOASID");
}

static void drop_registers(struct device *device)
{
	munmap((void *)(uintptr_t)device->registers,
	       region(device->fd, VFIO_PCI_BAR0_REGION_INDEX).size);
	device->registers = NULL;
}

/* As programs end: descriptors are closed, in whichever order. */
static void close_all(void)
{
	struct device *devices[] = { &dev1, &dev2 };

	for (size_t i = 0; i < 2; i++) {
		if (devices[i]->registers)
			drop_registers(devices[i]);
		if (devices[i]->fd >= 0)
			close(devices[i]->fd);
		devices[i]->fd = -1;
	}
	close(ioasid_fd);
}

/* ------------------------------------------------------------------ */
/* Memory                                                               */
/* ------------------------------------------------------------------ */

/* The guest's memory, at the address that it has in the proposal. */
static void make_guest_at_hva(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	make_guest(GUEST);
	munmap(guest, guest_size);
	if (fd < 0 || ftruncate(fd, guest_size) < 0)
		die("cannot make the guest's memory: %s", strerror(errno));
	guest = mmap((void *)HVA, guest_size, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	if (guest != (void *)HVA)
		die("cannot make the guest's memory at %#lx: %s", HVA, strerror(errno));
	fill(guest, guest_size, ++next_seed);
}

/* dma_map of the samples, all of the guest's memory; and the window of the devices. */
static void map_guest(void)
{
	struct ioasid_map_dma dma_map = {
		.argsz	= sizeof(dma_map),
		.flags	= MAP_BOTH,
		.ioasid	= gpa_ioasid,
		.iova	= 0,		/* GPA */
		.vaddr	= 0x40000000,	/* HVA */
		.size	= guest_size,
	};

	map_window(&dev1, gpa_ioasid);
	must(ioasid_fd, IOASID_DMA_MAP, &dma_map, "IOASID_DMA_MAP");
}

static void reaches_guest(const struct device *device, const char *when)
{
	reaches(device, 0, 0, MAP_BOTH, when);
	reaches(device, guest_size - SAMPLE, guest_size - SAMPLE, MAP_BOTH, when);
	must_not_write(device, guest_size, when);
}

/* ------------------------------------------------------------------ */
/* 5.1. A simple example                                                */
/* ------------------------------------------------------------------ */

static void simple_example(const char *address)
{
	struct vfio_attach_ioasid at_data;

	/* Bind device to IOASID fd */
	dev1 = open_by_name(address);
	ioasid_fd = open_node("/dev/ioasid");
	bind_fd(&dev1);

	/* Attach device to IOASID */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach_fd(&dev1, gpa_ioasid);
	map_window(&dev1, gpa_ioasid);
	load(&dev1);
	unmap(ioasid_fd, gpa_ioasid, WINDOW_IOVA, PAGE);
	must_not_write(&dev1, 0, "5.1, before anything is mapped");

	/* Setup GPA mapping */
	map_guest();
	reaches_guest(&dev1, "5.1");
	ok("5.1: a device reaches the guest's memory at guest-physical addresses");

	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(ioasid_fd), EBUSY,
		       "VFIO_BIND_IOASID_FD a second time");
	device_refuses(&dev1, VFIO_UNBIND_IOASID_FD, by_value(ioasid_fd), EBUSY,
		       "VFIO_UNBIND_IOASID_FD of an attached device");
	at_data = attach_data(gpa_ioasid);
	device_refuses(&dev1, VFIO_ATTACH_IOASID, &at_data, EBUSY,
		       "VFIO_ATTACH_IOASID a second time");
	at_data = attach_data(12345);
	device_refuses(&dev1, VFIO_DETACH_IOASID, &at_data, ENOENT,
		       "VFIO_DETACH_IOASID from what is no IOASID");
	at_data = attach_data(gpa_ioasid);
	at_data.argsz = 4;
	device_refuses(&dev1, VFIO_DETACH_IOASID, &at_data, EINVAL,
		       "VFIO_DETACH_IOASID with a short argsz");
	device_refuses(&dev1, VFIO_DETACH_IOASID, NULL, EFAULT,
		       "VFIO_DETACH_IOASID without a structure");
	at_data = attach_data(gpa_ioasid);
	at_data.flag = IOASID_ATTACH_USER_PASID;
	at_data.user_pasid = 5;
	device_refuses(&dev1, VFIO_ATTACH_IOASID, &at_data, EOPNOTSUPP,
		       "VFIO_ATTACH_IOASID with a PASID");
	reaches(&dev1, 0x1000, 0x1000, MAP_BOTH, "5.1, after refusals");

	detach_fd(&dev1, gpa_ioasid);
	must_not_write(&dev1, 0, "5.1, detached");
	attach_fd(&dev1, gpa_ioasid);
	reaches(&dev1, 0x1000, 0x1000, MAP_BOTH, "5.1, attached again");
	detach_fd(&dev1, gpa_ioasid);
	ok("5.1: detached, the device reaches nothing; attached again, what is mapped");

	/* The descriptor stays; the device is given back, and taken again. */
	drop_registers(&dev1);
	device_call(&dev1, VFIO_UNBIND_IOASID_FD, by_value(ioasid_fd), "VFIO_UNBIND_IOASID_FD");
	bind_fd(&dev1);
	attach_fd(&dev1, gpa_ioasid);
	load(&dev1);
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.1, bound again");
	ok("5.1: a device that was given back can be bound again by the same descriptor");
	close_all();
}

/* ------------------------------------------------------------------ */
/* 5.2. Multiple IOASIDs (no nesting)                                   */
/* ------------------------------------------------------------------ */

static void open_both(const char *address1, const char *address2)
{
	dev1 = open_by_name(address1);
	dev2 = open_by_name(address2);
	ioasid_fd = open_node("/dev/ioasid");
	bind_fd(&dev1);
	bind_fd(&dev2);
}

/* Both attached, and the guest's memory mapped. */
static void both_at_gpa(const char *when)
{
	/* Attach dev1 and dev2 to gpa_ioasid */
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach_fd(&dev1, gpa_ioasid);
	attach_fd(&dev2, gpa_ioasid);

	/* Setup GPA mapping */
	map_guest();
	load(&dev1);
	load(&dev2);
	reaches_guest(&dev1, when);
	reaches_guest(&dev2, when);
}

static void preregister(void *memory, size_t size)
{
	struct ioasid_register_memory mem_info = {
		.argsz = sizeof(mem_info), .vaddr = (uintptr_t)memory, .size = size,
	};

	must(ioasid_fd, IOASID_REGISTER_MEMORY, &mem_info, "IOASID_REGISTER_MEMORY");
}

static void multiple_ioasids(const char *address1, const char *address2)
{
	open_both(address1, address2);

	/* pre-register the virtual address range for accounting */
	preregister((void *)0x40000000, guest_size);
	preregister(window, PAGE);
	both_at_gpa("5.2");

	/* After boot, guest enables an GIOVA space for dev2 */
	giova_ioasid = alloc_ioasid(ioasid_fd);

	/* First detach dev2 from previous address space */
	detach_fd(&dev2, gpa_ioasid);
	must_not_write(&dev2, 0x1000, "5.2, detached");

	/* Then attach dev2 to the new address space */
	attach_fd(&dev2, giova_ioasid);
	map_window(&dev2, giova_ioasid);

	/* Setup a shadow DMA mapping according to vIOMMU
	 * GIOVA (0x2000) -> GPA (0x1000) -> HVA (0x40001000)
	 */
	map(ioasid_fd, giova_ioasid, 0x2000, (void *)0x40001000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.2, the shadow mapping");
	faults(&dev2, 0x1000, "5.2, in front of the shadow mapping");
	must_not_write(&dev2, 0x3000, "5.2, behind the shadow mapping");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.2, the device that has stayed");
	ok("5.2: a device has moved to an address space of its own; the other has not noticed");
	close_all();
}

/* ------------------------------------------------------------------ */
/* 5.3. IOASID nesting (software)                                       */
/* ------------------------------------------------------------------ */

static void software_nesting(const char *address1, const char *address2)
{
	struct vfio_attach_ioasid at_data;

	/* The flow before guest boots is same as 5.2 */
	open_both(address1, address2);
	both_at_gpa("5.3");

	/* After boots */
	/* Make GIOVA space nested on GPA space */
	giova_ioasid = create_nesting(ioasid_fd, gpa_ioasid);

	/* Attach dev2 to the new address space (child)
	 * Note dev2 is still attached to gpa_ioasid (parent)
	 */
	attach_fd(&dev2, giova_ioasid);
	must_not_write(&dev2, 0x1000, "5.3, in an empty child");
	at_data = attach_data(gpa_ioasid);
	device_refuses(&dev2, VFIO_DETACH_IOASID, &at_data, EBUSY,
		       "VFIO_DETACH_IOASID from the parent of its IOASID");

	/* Setup a GIOVA->GPA mapping for giova_ioasid, which will be
	 * merged by the kernel with GPA->HVA mapping of gpa_ioasid
	 * to form a shadow mapping.
	 */
	map_window_below(&dev2, giova_ioasid);
	map_child(ioasid_fd, giova_ioasid, 0x2000, 0x1000, 4 * KIB, MAP_BOTH);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.3, the shadow mapping");
	faults(&dev2, 0x1000, "5.3, in front of the shadow mapping");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.3, the device at the parent");
	ok("5.3: child and parent together give one mapping; the device at the parent has not "
	   "noticed");
}

/* ------------------------------------------------------------------ */
/* 5.4. IOASID nesting (hardware)                                       */
/* ------------------------------------------------------------------ */

#define GIOVA_PGTABLE	0x100000UL	/* guest-physical: four levels, and a second last one */

/* The guest maps a page in its page table of four levels, as x86 has it; gpa 0 unmaps it. */
static void guest_maps(__u64 giova, __u64 gpa)
{
	__u64 *root = (void *)(guest + GIOVA_PGTABLE), *table = root;

	for (unsigned int level = 3; level; level--) {
		unsigned int next = level == 1 && giova >> 21 ? 4 : 4 - level;

		table[giova >> (12 + 9 * level) & 511] = (GIOVA_PGTABLE + next * PAGE) | 7;
		table = root + next * (PAGE / sizeof(*root));
	}
	table[giova >> 12 & 511] = gpa ? gpa | 7 : 0;
}

/* Goes on where 5.3 has ended: both devices are attached to the guest's memory. */
static void hardware_nesting(void)
{
	/* After boots */
	/* Make GIOVA space nested on GPA space */
	detach_fd(&dev2, giova_ioasid);
	free_ioasid(ioasid_fd, giova_ioasid);
	giova_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	memset(guest + GIOVA_PGTABLE, 0, 5 * PAGE);
	guest_maps(0x2000, 0x1000);
	guest_maps(WINDOW_IOVA, WINDOW_IOVA);

	/* Attach dev2 to the new address space (child)
	 * Note dev2 is still attached to gpa_ioasid (parent)
	 */
	attach_fd(&dev2, giova_ioasid);
	must_not_write(&dev2, 0x2000, "5.4, before the bind");

	/* Bind guest I/O page table */
	bind_pgtable(ioasid_fd, giova_ioasid, IOASID_FORMAT_X86_4LEVEL, GIOVA_PGTABLE, 48);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.4");
	faults(&dev2, 0x1000, "5.4, what the guest does not map");

	/* Invalidate IOTLB when required */
	guest_maps(0x2000, 0x9000);
	reaches(&dev2, 0x2000, 0x1000, MAP_BOTH, "5.4, before the invalidation");
	invalidate(ioasid_fd, giova_ioasid, 0x2000, 4 * KIB);
	reaches(&dev2, 0x2000, 0x9000, MAP_BOTH, "5.4, after the invalidation");
	reaches(&dev1, 0x2000, 0x2000, MAP_BOTH, "5.4, the device at the parent");
	ok("5.4: the guest's own page table translates for the device, as of its invalidation");

	/* Everything can be given back, in order. */
	detach_fd(&dev2, giova_ioasid);
	free_ioasid(ioasid_fd, giova_ioasid);
	reaches(&dev2, 0, 0, MAP_BOTH, "when the child is gone");
	detach_fd(&dev2, gpa_ioasid);
	detach_fd(&dev1, gpa_ioasid);
	must_not_write(&dev1, 0, "detached at the end");
	free_ioasid(ioasid_fd, gpa_ioasid);
	close_all();
	ok("all is given back");
}

/* ------------------------------------------------------------------ */
/* Calls that cannot be right                                           */
/* ------------------------------------------------------------------ */

static void refusals(const char *address)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct vfio_attach_ioasid at_data;
	int fd;

	dev1 = open_by_name(address);
	ioasid_fd = open_node("/dev/ioasid");
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(-1), EBADF,
		       "VFIO_BIND_IOASID_FD to no descriptor");
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(1000), EBADF,
		       "VFIO_BIND_IOASID_FD to a descriptor that is not open");
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(null), EINVAL,
		       "VFIO_BIND_IOASID_FD to another file");
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(dev1.fd), EINVAL,
		       "VFIO_BIND_IOASID_FD to the device itself");
	at_data = attach_data(gpa_ioasid);
	device_refuses(&dev1, VFIO_ATTACH_IOASID, &at_data, EINVAL,
		       "VFIO_ATTACH_IOASID of a device that is not bound");
	device_refuses(&dev1, VFIO_UNBIND_IOASID_FD, by_value(ioasid_fd), EINVAL,
		       "VFIO_UNBIND_IOASID_FD of a device that is not bound");
	fd = dev1.fd;
	dev1.fd = null;
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(ioasid_fd), ENOTTY,
		       "VFIO_BIND_IOASID_FD on what is no device");
	dev1.fd = 1000;
	device_refuses(&dev1, VFIO_BIND_IOASID_FD, by_value(ioasid_fd), EBADF,
		       "VFIO_BIND_IOASID_FD on a descriptor that is not open");
	dev1.fd = fd;
	bind_fd(&dev1);
	ok("after all that, the device can be bound");
	close(null);
	close_all();
}

int main(int argc, char **argv)
{
	if (argc != 3)
		die("usage: rfc-flows DEVICE-1 DEVICE-2");
	dev2.fd = -1;
	make_guest_at_hva();
	simple_example(argv[1]);
	multiple_ioasids(argv[1], argv[2]);
	software_nesting(argv[1], argv[2]);
	hardware_nesting();
	refusals(argv[1]);
	return 0;
}
