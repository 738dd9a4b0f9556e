/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * rfc-samples SECTION DEVICE [DEVICE2 [MIB]]
 *
 * The samples of the proposal, sections 5.1 to 5.3, word for word as far as C allows: they name
 * the fields as the proposal does, and their ioctls are those of VFIO device descriptors, opened
 * by name. Stock kernels do not have these: `ioasid-run` makes them work.
 *
 *   rfc-samples 5.1 /dev/vfio/devices/dev1
 *   rfc-samples 5.2 /dev/vfio/devices/dev1 /dev/vfio/devices/dev2
 *
 * What the proposal left open and a program has to add: argsz in every structure, and which
 * access a mapping allows. The guest's memory is at 0x40000000, 1 GiB or MIB of it.
 */
#include "common.h"

#define mode	(O_RDWR | O_CLOEXEC)
#define KB	KIB
#define HVA	0x40000000UL

static size_t guest_memory = GIB;
static int ioasid_fd, device_fd1, device_fd2;
static int gpa_ioasid, giova_ioasid;

static int open_path(const char *path)
{
	int fd = open(path, mode);

	if (fd < 0)
		die("cannot open %s: %s", path, strerror(errno));
	return fd;
}

/* ioctl() of the samples, which do not look at the result. */
static int checked(int result, const char *what)
{
	if (result < 0 && errno == ENOTTY)
		die("%s: the kernel does not know it on this descriptor; run under ioasid-run",
		    what);
	if (result < 0)
		die("%s: %s. %s", what, strerror(errno), explanation(ioasid_fd));
	return result;
}
#define ioctl(fd, command, ...)	checked((ioctl)(fd, command, ##__VA_ARGS__), #command)

/* 5.1. A simple example */
static void simple_example(const char *dev1)
{
	struct vfio_attach_ioasid at_data;
	struct ioasid_map_dma dma_map;
	int device_fd;

	/* Bind device to IOASID fd */
	device_fd = open_path(dev1);
	ioasid_fd = open("/dev/ioasid", mode);
	ioctl(device_fd, VFIO_BIND_IOASID_FD, ioasid_fd);

	/* Attach device to IOASID */
	gpa_ioasid = ioctl(ioasid_fd, IOASID_ALLOC);
	at_data = (struct vfio_attach_ioasid){ .argsz = sizeof(at_data), .ioasid = gpa_ioasid };
	ioctl(device_fd, VFIO_ATTACH_IOASID, &at_data);

	/* Setup GPA mapping */
	dma_map = (struct ioasid_map_dma){
		.argsz	= sizeof(dma_map),
		.flags	= IOASID_MAP_READ | IOASID_MAP_WRITE,
		.ioasid	= gpa_ioasid,
		.iova	= 0,		/* GPA */
		.vaddr	= 0x40000000,	/* HVA */
		.size	= guest_memory,
	};
	ioctl(ioasid_fd, IOASID_DMA_MAP, &dma_map);
	ok("5.1: the guest's memory is mapped for %s", dev1);
}

/* What 5.2 and 5.3 have in common: two devices in one address space. */
static void two_devices(const char *dev1, const char *dev2, bool preregister)
{
	struct ioasid_register_memory mem_info;
	struct vfio_attach_ioasid at_data;
	struct ioasid_map_dma dma_map;

	device_fd1 = open_path(dev1);
	device_fd2 = open_path(dev2);
	ioasid_fd = open("/dev/ioasid", mode);
	ioctl(device_fd1, VFIO_BIND_IOASID_FD, ioasid_fd);
	ioctl(device_fd2, VFIO_BIND_IOASID_FD, ioasid_fd);

	/* pre-register the virtual address range for accounting */
	if (preregister && ioctl(ioasid_fd, IOASID_CHECK_EXTENSION, IOASID_EXT_REGISTER_MEMORY)) {
		mem_info = (struct ioasid_register_memory){
			.argsz = sizeof(mem_info), .vaddr = 0x40000000, .size = guest_memory
		};
		ioctl(ioasid_fd, IOASID_REGISTER_MEMORY, &mem_info);
	}

	/* Attach dev1 and dev2 to gpa_ioasid */
	gpa_ioasid = ioctl(ioasid_fd, IOASID_ALLOC);
	at_data = (struct vfio_attach_ioasid){ .argsz = sizeof(at_data), .ioasid = gpa_ioasid };
	ioctl(device_fd1, VFIO_ATTACH_IOASID, &at_data);
	ioctl(device_fd2, VFIO_ATTACH_IOASID, &at_data);

	/* Setup GPA mapping */
	dma_map = (struct ioasid_map_dma){
		.argsz	= sizeof(dma_map),
		.flags	= IOASID_MAP_READ | IOASID_MAP_WRITE,
		.ioasid	= gpa_ioasid,
		.iova	= 0,		/* GPA */
		.vaddr	= 0x40000000,	/* HVA */
		.size	= guest_memory,
	};
	ioctl(ioasid_fd, IOASID_DMA_MAP, &dma_map);
}

/* 5.2. Multiple IOASIDs (no nesting) */
static void multiple_ioasids(const char *dev1, const char *dev2)
{
	struct vfio_attach_ioasid at_data;
	struct ioasid_map_dma dma_map;

	two_devices(dev1, dev2, true);

	/* After boot, guest enables an GIOVA space for dev2 */
	giova_ioasid = ioctl(ioasid_fd, IOASID_ALLOC);

	/* First detach dev2 from previous address space */
	at_data = (struct vfio_attach_ioasid){ .argsz = sizeof(at_data), .ioasid = gpa_ioasid };
	ioctl(device_fd2, VFIO_DETACH_IOASID, &at_data);

	/* Then attach dev2 to the new address space */
	at_data = (struct vfio_attach_ioasid){ .argsz = sizeof(at_data), .ioasid = giova_ioasid };
	ioctl(device_fd2, VFIO_ATTACH_IOASID, &at_data);

	/* Setup a shadow DMA mapping according to vIOMMU
	 * GIOVA (0x2000) -> GPA (0x1000) -> HVA (0x40001000)
	 */
	dma_map = (struct ioasid_map_dma){
		.argsz	= sizeof(dma_map),
		.flags	= IOASID_MAP_READ | IOASID_MAP_WRITE,
		.ioasid	= giova_ioasid,
		.iova	= 0x2000,	/* GIOVA */
		.vaddr	= 0x40001000,	/* HVA */
		.size	= 4*KB,
	};
	ioctl(ioasid_fd, IOASID_DMA_MAP, &dma_map);
	ok("5.2: %s has moved to an address space of its own", dev2);
}

/* 5.3. IOASID nesting (software) */
static void software_nesting(const char *dev1, const char *dev2)
{
	struct vfio_attach_ioasid at_data;
	struct ioasid_map_dma dma_map;

	two_devices(dev1, dev2, false);

	/* After boots */
	/* Make GIOVA space nested on GPA space */
	giova_ioasid = ioctl(ioasid_fd, IOASID_CREATE_NESTING,
				gpa_ioasid);

	/* Attach dev2 to the new address space (child)
	 * Note dev2 is still attached to gpa_ioasid (parent)
	 */
	at_data = (struct vfio_attach_ioasid){ .argsz = sizeof(at_data), .ioasid = giova_ioasid };
	ioctl(device_fd2, VFIO_ATTACH_IOASID, &at_data);

	/* Setup a GIOVA->GPA mapping for giova_ioasid, which will be
	 * merged by the kernel with GPA->HVA mapping of gpa_ioasid
	 * to form a shadow mapping.
	 */
	dma_map = (struct ioasid_map_dma){
		.argsz	= sizeof(dma_map),
		.flags	= IOASID_MAP_READ | IOASID_MAP_WRITE,
		.ioasid	= giova_ioasid,
		.iova	= 0x2000,	/* GIOVA */
		.vaddr	= 0x1000,	/* GPA */
		.size	= 4*KB,
	};
	ioctl(ioasid_fd, IOASID_DMA_MAP, &dma_map);
	ok("5.3: %s has an address space nested on the guest's", dev2);
}

/* An attach with a PASID of the user, for the fields' names (section 5.5). */
static inline struct vfio_attach_ioasid user_pasid_attachment(__u32 gva_ioasid, __u32 gpasid1)
{
	return (struct vfio_attach_ioasid){
		.argsz		= sizeof(struct vfio_attach_ioasid),
		.ioasid		= gva_ioasid,
		.flag		= IOASID_ATTACH_USER_PASID,
		.user_pasid	= gpasid1,
	};
}

/* A page table of the user, for the fields' names (section 5.4). */
static inline struct ioasid_bind_pgtable user_page_table(__u32 giova_ioasid, __u64 giova_pgtable)
{
	return (struct ioasid_bind_pgtable){
		.argsz	= sizeof(struct ioasid_bind_pgtable),
		.ioasid	= giova_ioasid,
		.addr	= giova_pgtable,
	};
}

int main(int argc, char **argv)
{
	const char *section = argc > 2 ? argv[1] : "";
	int fd = memfd_create("guest", MFD_CLOEXEC);

	if (argc > 4)
		guest_memory = number(argv[4]) * MIB;
	if (fd < 0 || ftruncate(fd, guest_memory) < 0 ||
	    mmap((void *)HVA, guest_memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
		 fd, 0) != (void *)HVA)
		die("cannot make the guest's memory at %#lx: %s", HVA, strerror(errno));

	if (!strcmp(section, "5.1"))
		simple_example(argv[2]);
	else if (!strcmp(section, "5.2") && argc > 3)
		multiple_ioasids(argv[2], argv[3]);
	else if (!strcmp(section, "5.3") && argc > 3)
		software_nesting(argv[2], argv[3]);
	else
		die("usage: rfc-samples 5.1|5.2|5.3 DEVICE [DEVICE2 [MIB]]");
	return 0;
}
