/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR MIT */
/*
 * /dev/ioasid: I/O address spaces for devices that do DMA.
 *
 * The interface of "[RFC] /dev/ioasid uAPI proposal" (Kevin Tian, May 2021), with the
 * numbers and structures that the proposal left open.
 *
 * An open of /dev/ioasid is a context. It owns I/O address spaces (each named by an
 * IOASID, a number that means something in this context only), the devices that were
 * bound to it and everything that was mapped. Closing the last descriptor of the open
 * unmaps, unpins and releases all of it.
 *
 * The order of things: bind a device, allocate an IOASID, attach the device to it, map
 * memory. An IOASID takes no command before a device has been attached to it for the
 * first time.
 *
 * Conventions of every structure here:
 *   - `argsz` is sizeof the structure as the program was compiled. Shorter than the
 *     structure below: EINVAL, except that a structure which has grown is also taken in a
 *     size that it had before (NAME_SIZE_VERn): fields beyond that size are neither read nor
 *     written. Longer (a newer program): fine while the tail that this version does not know
 *     is zero, else E2BIG; more than 4096 is E2BIG.
 *   - `flags` and `flag`: bits that are not defined below give EINVAL.
 *   - Fields named __reserved must be zero, else EINVAL.
 *   - Structures grow only at their end.
 *
 * Errors that every command can give, and which are not repeated below:
 *   ENOTTY      unknown command
 *   EOPNOTSUPP  the command is known but this host, kernel or backend cannot do it, or the
 *               caller is a 32-bit program. CHECK_EXTENSION and GET_INFO say beforehand.
 *   EFAULT      the argument, or memory that it points to, cannot be read or written
 *   EINVAL      argsz too short, an unknown flag, a reserved field that is not zero
 *   E2BIG       argsz longer than known, with a tail that is not zero
 *   ENOMEM      the daemon has no memory left for this
 *   EBUSY       too many calls on this open of the node are in progress at once
 *   EINTR       a signal arrived before anything was changed; nothing was changed. A call that
 *               waits for its turn or pins memory is not ended by signals with a handler: the
 *               kernel runs the handler and begins the call again
 *   EIO         the hardware, or the backend that drives it, failed unexpectedly
 *
 * After a failed command the context is exactly as it was before. Every failure has a
 * sentence that explains it: see IOASID_GET_ERROR. (Where the daemon cannot reach a program's
 * memory, the kernel copies for it. The kernel then refuses bad pointers by itself, without a
 * sentence, and finds that an output cannot be written only after the command was done.)
 *
 * If several things are wrong, the first of these is reported: the argument cannot be read or
 * its results be written, argsz, flags and reserved fields, unknown ids, the state (no device
 * yet, a group partly attached), the shape of a range, its place, its conflicts; and last what
 * the memory itself is.
 *
 * Note for kernel people: ioctl numbers carry neither size nor direction, as in VFIO.
 */
#ifndef IOASID_UAPI_H
#define IOASID_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IOASID_TYPE	';'
#define IOASID_BASE	0xC0

/* ------------------------------------------------------------------ */
/* The fourteen commands of the proposal                               */
/* ------------------------------------------------------------------ */

/*
 * IOASID_CHECK_EXTENSION - does this node have an optional ability?
 *
 * Argument: one of IOASID_EXT_*, by value.
 * Return:   1 if it has, 0 if it has not or if the number is unknown.
 */
#define IOASID_CHECK_EXTENSION	_IO(IOASID_TYPE, IOASID_BASE + 0)

#define IOASID_EXT_MAP_TYPE1V2		1	/* MAP_DMA and UNMAP_DMA as VFIO type1 v2 */
#define IOASID_EXT_NESTING		2	/* CREATE_NESTING */
#define IOASID_EXT_USER_PAGE_TABLE	3	/* BIND_PGTABLE */
#define IOASID_EXT_USER_PASID_TABLE	4	/* BIND_PASID_TABLE, user_pasid on attach */
#define IOASID_EXT_MULTIDEV_GROUP	5	/* groups of several devices */
#define IOASID_EXT_DIRTY_TRACKING	6	/* which pages were written by devices */
#define IOASID_EXT_REGISTER_MEMORY	7	/* REGISTER_MEMORY */
#define IOASID_EXT_SHARED_MEMORY	8	/* MAP_DMA of memory that is mapped shared */
#define IOASID_EXT_PRIVATE_MEMORY	9	/* MAP_DMA of private and device memory */
#define IOASID_EXT_VFIO			10	/* BIND_DEVICE of a VFIO group */
#define IOASID_EXT_SIMULATED		11	/* BIND_DEVICE of simulated devices */
#define IOASID_EXT_FILE_MEMORY		12	/* MAP_DMA of a file by its descriptor */

/*
 * IOASID_REGISTER_MEMORY - pin memory and account for it once, before it is mapped
 * IOASID_UNREGISTER_MEMORY - undo that
 *
 * Registered memory stays in place and is charged to the program's RLIMIT_MEMLOCK once,
 * however many IOASIDs map it and however often; to map it is quicker. Once anything is
 * registered in a context, MAP_DMA takes only memory that lies in one registered range of the
 * calling process, or a file by its descriptor. Ranges belong to the process that registered
 * them; they last until they are unregistered or the context is closed, also when that process
 * ends or unmaps the memory.
 *
 * Input: vaddr, size: the program's own memory, which it may write. UNREGISTER takes exactly a
 *        range that was registered.
 * Return: 0.
 * Errors:
 *   EINVAL      size is zero; vaddr or size is not a multiple of the page size
 *   EOVERFLOW   vaddr + size wraps
 *   EEXIST      REGISTER: part of the range is registered already
 *   ENOENT      UNREGISTER: no such range was registered by this process
 *   EBUSY       UNREGISTER: something in the range is mapped. REGISTER: the program is being
 *               traced (see MAP_DMA)
 *   EFAULT      part of the memory is not mapped in the program, or cannot be pinned
 *   EPERM       the program itself cannot write part of the memory
 *   ENOMEM      it is more than RLIMIT_MEMLOCK leaves (see MAP_DMA)
 *   ENOSPC      the context has as many registered ranges as it may have
 *   EOPNOTSUPP  memory of this kind cannot be registered: a file on disk, the registers of a
 *               device; IOASID_EXT_REGISTER_MEMORY is 0
 */
struct ioasid_register_memory {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__aligned_u64 vaddr;
	__aligned_u64 size;	/* bytes */
};
#define IOASID_REGISTER_MEMORY		_IO(IOASID_TYPE, IOASID_BASE + 1)
#define IOASID_UNREGISTER_MEMORY	_IO(IOASID_TYPE, IOASID_BASE + 2)

/*
 * IOASID_ALLOC - make an empty I/O address space
 *
 * Argument: none; the register is not looked at.
 * Return:   the new IOASID, a positive number of this context.
 * Errors:
 *   ENOSPC  the context has as many IOASIDs as it may have
 */
#define IOASID_ALLOC	_IO(IOASID_TYPE, IOASID_BASE + 3)

/*
 * IOASID_FREE - remove an I/O address space and all that is mapped in it
 *
 * Argument: the IOASID, by value.
 * Return:   0.
 * Errors:
 *   ENOENT  no such IOASID in this context
 *   EBUSY   a device is attached to it, or it is the parent of another
 */
#define IOASID_FREE	_IO(IOASID_TYPE, IOASID_BASE + 4)

/* The first and the last address of a range of IOVAs. */
struct ioasid_iova_range {
	__aligned_u64 start;
	__aligned_u64 last;	/* inclusive */
};

/*
 * IOASID_GET_INFO - what an I/O address space can do and holds
 *
 * Input:  ioasid; ranges: where to write the list of permitted IOVA ranges, and
 *         nr_ranges: for how many there is room. With nr_ranges 0, ranges is not used.
 * Output: the rest, and in nr_ranges how many ranges there are. All are written also when
 *         the call fails with EMSGSIZE.
 * Return: 0.
 *
 * While a command works on the IOASID in another thread, work_total is how many bytes it will
 * map and work_done how many it has mapped; otherwise both are 0. GET_INFO never waits for it.
 *
 * argsz may also be IOASID_INFO_SIZE_VER0.
 * Errors:
 *   ENOENT    no such IOASID in this context
 *   ENODEV    no device has been attached to it yet, so that it has no properties
 *   EBUSY     a device group is partly attached (see ATTACH_DEVICE)
 *   EMSGSIZE  nr_ranges was too small (and not 0); nr_ranges now says how many there are
 */
struct ioasid_info {
	__u32 argsz;
	__u32 flags;		/* out: IOASID_INFO_* */
	__u32 ioasid;		/* in */
	__u32 parent;		/* out: the IOASID that it is nested on, 0 for none */
	__aligned_u64 pgsizes;	/* out: bitmap of page sizes, as in VFIO: bit n for 2^n bytes */
	__aligned_u64 ranges;	/* in: address of struct ioasid_iova_range[nr_ranges] */
	__u32 nr_ranges;	/* in: room; out: how many there are */
	__u32 nr_devices;	/* out: devices attached now */
	__u32 nr_children;	/* out: IOASIDs nested on this one */
	__u32 max_mappings;	/* out: mappings it may hold */
	__aligned_u64 nr_mappings;	/* out: mappings it holds */
	__aligned_u64 mapped_bytes;	/* out: bytes that they cover */
	__aligned_u64 locked_bytes;	/* out: bytes charged for what this IOASID maps */
	__aligned_u64 locked_used;	/* out: bytes charged to the calling process, over all */
	__aligned_u64 locked_limit;	/* out: its RLIMIT_MEMLOCK; all ones for no limit */
	__aligned_u64 work_done;	/* out: progress of a command on it, bytes */
	__aligned_u64 work_total;	/* out */
};
#define IOASID_INFO_SIZE_VER0	64	/* up to mapped_bytes, as in the first version */
#define IOASID_INFO_MAP_DMA	(1U << 0)	/* is driven by MAP_DMA and UNMAP_DMA */
#define IOASID_INFO_NESTING	(1U << 1)	/* CREATE_NESTING works on it */
#define IOASID_INFO_SIMULATED	(1U << 2)	/* its devices are simulated */
#define IOASID_GET_INFO	_IO(IOASID_TYPE, IOASID_BASE + 5)

/*
 * IOASID_MAP_DMA - let the attached devices reach memory of the program
 *
 * Input: ioasid; [iova, iova + size), the addresses that the devices will use; flags: what
 *        devices may do to it; vaddr, where the memory is in the program. With
 *        IOASID_MAP_FILE, the memory is that of the file open as `fd`, and vaddr is where in
 *        the file it begins; the file's descriptor, not the program's mappings, says what is
 *        permitted. Without, fd is 0.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   ENODEV      no device has been attached to it yet
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE); or the memory is
 *               private and the program is being traced (by a debugger, strace)
 *   EINVAL      neither READ nor WRITE; size is zero; iova, vaddr or size is not a multiple
 *               of the smallest page size; the range lies outside the aperture
 *   EOVERFLOW   iova + size or vaddr + size wraps
 *   EEXIST      part of the range is mapped already
 *   EADDRINUSE  part of the range is reserved by the platform (GET_INFO lists what is not)
 *   EFAULT      part of the memory is not mapped in the program, lies behind the end of its
 *               file, or cannot be pinned; it is not registered, while other memory is
 *   EBADF       MAP_FILE: fd is no open descriptor of the program
 *   EPERM       WRITE was asked for memory that the program itself cannot write
 *   ENOMEM      it is more than the program's RLIMIT_MEMLOCK leaves (programs with
 *               CAP_IPC_LOCK have no limit), or than the machine has
 *   EOPNOTSUPP  memory of this kind cannot be mapped: see IOASID_EXT_PRIVATE_MEMORY and
 *               IOASID_EXT_FILE_MEMORY
 *   ENOSPC      the IOASID, or a table of its hardware, is out of mappings
 *
 * Memory may be of any kind and of several in one range: private (malloc, stack), shared, huge
 * pages, files, and the registers of another device that is bound to this context. The memory
 * stays mapped until UNMAP_DMA, FREE or the close of the context, also when the program unmaps
 * it or ends. What is mapped is charged to the calling process's RLIMIT_MEMLOCK: registered
 * memory once, other memory once for each IOASID that maps it, however many devices it has,
 * registers not at all.
 *
 * Private memory is mapped by the calling thread itself, which the daemon leads through
 * VFIO_IOMMU_MAP_DMA on its way out of this ioctl. For that moment it is traced.
 */
struct ioasid_map_dma {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__s32 fd;		/* with IOASID_MAP_FILE; otherwise 0 */
	__aligned_u64 vaddr;	/* with IOASID_MAP_FILE, an offset in the file */
	__aligned_u64 iova;
	__aligned_u64 size;	/* bytes */
};
#define IOASID_MAP_READ		(1U << 0)	/* devices may read it */
#define IOASID_MAP_WRITE	(1U << 1)	/* devices may write it */
#define IOASID_MAP_FILE		(1U << 2)	/* the memory is a file's: see fd */
#define IOASID_MAP_DMA	_IO(IOASID_TYPE, IOASID_BASE + 6)

/*
 * IOASID_UNMAP_DMA - take memory away from devices again
 *
 * Input:  ioasid; [iova, iova + size): every mapping that lies in it is removed.
 *         With IOASID_UNMAP_ALL, every mapping there is; iova and size must be zero.
 * Output: size: how many bytes were unmapped; 0 when there was nothing.
 * Return: 0.
 * Errors:
 *   ENOENT     no such IOASID in this context
 *   ENODEV     no device has been attached to it yet
 *   EBUSY      a device group is partly attached (see ATTACH_DEVICE)
 *   EINVAL     size is zero; iova or size is misaligned; the range begins or ends in the
 *              middle of a mapping; ALL with iova or size
 *   EOVERFLOW  iova + size wraps
 */
struct ioasid_unmap_dma {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 size;	/* in, out: bytes */
};
#define IOASID_UNMAP_ALL	(1U << 0)
#define IOASID_UNMAP_DMA	_IO(IOASID_TYPE, IOASID_BASE + 7)

/* The proposal's samples spell the two like this. */
#define IOASID_DMA_MAP		IOASID_MAP_DMA
#define IOASID_DMA_UNMAP	IOASID_UNMAP_DMA

/*
 * IOASID_CREATE_NESTING - make an I/O address space whose addresses are translated again
 * by another one
 *
 * Argument: the parent IOASID, by value.
 * Return:   the new child IOASID, a positive number.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   ENODEV      no device has been attached to the parent yet
 *   EOPNOTSUPP  IOASID_EXT_NESTING is 0
 */
#define IOASID_CREATE_NESTING	_IO(IOASID_TYPE, IOASID_BASE + 8)

/*
 * IOASID_BIND_PGTABLE - have a child IOASID translate by a page table of the program
 * IOASID_UNBIND_PGTABLE - undo that; every field but argsz and ioasid is zero
 *
 * Input: ioasid, a child; addr, where the table's root is in the parent's address space;
 *        format and addr_width.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   EINVAL      the IOASID is not a child (nested on another)
 *   EOPNOTSUPP  IOASID_EXT_USER_PAGE_TABLE is 0
 */
struct ioasid_bind_pgtable {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 ioasid;
	__u32 format;		/* none defined yet: GET_INFO will list them */
	__aligned_u64 addr;
	__u32 addr_width;	/* bits of an input address */
	__u32 __reserved;
};
#define IOASID_BIND_PGTABLE	_IO(IOASID_TYPE, IOASID_BASE + 9)
#define IOASID_UNBIND_PGTABLE	_IO(IOASID_TYPE, IOASID_BASE + 10)

/*
 * IOASID_BIND_PASID_TABLE - have a child IOASID stand for a PASID table of the program
 * IOASID_UNBIND_PASID_TABLE - undo that; every field but argsz and ioasid is zero
 *
 * Input: ioasid, a child; addr, where the table is in the parent's address space; format;
 *        pasid_bits, the log2 of its number of entries.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   EINVAL      the IOASID is not a child (nested on another)
 *   EOPNOTSUPP  IOASID_EXT_USER_PASID_TABLE is 0
 */
struct ioasid_bind_pasid_table {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 ioasid;
	__u32 format;		/* none defined yet */
	__aligned_u64 addr;
	__u32 pasid_bits;
	__u32 __reserved;
};
#define IOASID_BIND_PASID_TABLE		_IO(IOASID_TYPE, IOASID_BASE + 11)
#define IOASID_UNBIND_PASID_TABLE	_IO(IOASID_TYPE, IOASID_BASE + 12)

/*
 * IOASID_INVALIDATE_CACHE - say that a bound table has changed
 *
 * Input: ioasid, a child with a bound table; either IOASID_INVALIDATE_ALL with iova and size
 *        zero, or a range.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   EINVAL      nothing is bound to the IOASID; ALL with a range; size is zero without ALL
 *   EOVERFLOW   iova + size wraps
 *   EOPNOTSUPP  neither kind of table can be bound on this host
 */
struct ioasid_invalidate_cache {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 size;
};
#define IOASID_INVALIDATE_ALL	(1U << 0)
#define IOASID_INVALIDATE_CACHE	_IO(IOASID_TYPE, IOASID_BASE + 13)

/* ------------------------------------------------------------------ */
/* The device plane: stock VFIO device descriptors know no IOASIDs      */
/* ------------------------------------------------------------------ */

#define IOASID_NAME_LEN		64

/*
 * IOASID_BIND_DEVICE - put a device under the control of this context
 *
 * Exactly one of the flags says what kind of device it is:
 *
 * IOASID_BIND_VFIO_GROUP: `fd` is a descriptor of the program, open on /dev/vfio/N with the
 *   program's own rights, and `name` is the name of a device of that group as
 *   VFIO_GROUP_GET_DEVICE_FD takes it (a PCI address such as "0000:00:03.0"). The group gets
 *   a container with its I/O page table, so that from now on the program can use
 *   VFIO_GROUP_GET_DEVICE_FD. A second device of the group is bound with the same group.
 * IOASID_BIND_SIMULATED: `name` is that of a simulated device; `fd` is -1.
 *
 * Input:  fd, name (ends with a zero byte), cookie: any number, which will be given back in
 *         whatever is reported about the device.
 * Output: device: its number in this context.
 * Return: 0.
 * Errors:
 *   EINVAL      none or both of the flags; fd and kind do not fit; name is empty or has no
 *               end; fd is open but no VFIO group
 *   EBADF       fd is no open descriptor of the program
 *   ENOENT      the group has no such device; there is no such simulated device
 *   EBUSY       the device is bound already, or its group belongs to another user
 *   EPERM       the group is not viable (a sibling device is held by a kernel driver), or the
 *               platform has no interrupt remapping, or the daemon may not take the fd
 *   ENOSPC      the context has as many devices as it may have
 *   EOPNOTSUPP  IOASID_EXT_VFIO or IOASID_EXT_SIMULATED is 0; the group has no IOMMU
 */
struct ioasid_bind_device {
	__u32 argsz;
	__u32 flags;
	__s32 fd;
	__u32 device;		/* out */
	__aligned_u64 cookie;
	char name[IOASID_NAME_LEN];
};
#define IOASID_BIND_VFIO_GROUP	(1U << 0)
#define IOASID_BIND_SIMULATED	(1U << 1)
#define IOASID_BIND_DEVICE	_IO(IOASID_TYPE, IOASID_BASE + 16)

/*
 * IOASID_UNBIND_DEVICE - give a device back
 *
 * Argument: the device number, by value.
 * Return:   0.
 * Errors:
 *   ENOENT  no such device in this context
 *   EBUSY   the device is attached to an IOASID, or (last device of a VFIO group) a device
 *           descriptor or a mapping of its registers is still open
 */
#define IOASID_UNBIND_DEVICE	_IO(IOASID_TYPE, IOASID_BASE + 17)

/*
 * IOASID_ATTACH_DEVICE - have the DMA of a device translated by an I/O address space
 *
 * What the IOASID maps already becomes visible to the device. A device of a group of several
 * shares its I/O page table with the others: while only some of the group's bound devices are
 * attached, the IOASID refuses commands with EBUSY.
 *
 * Input: device, ioasid; with IOASID_ATTACH_USER_PASID, user_pasid: only DMA tagged with it.
 * Return: 0.
 * Errors:
 *   ENOENT      no such device or IOASID in this context
 *   EBUSY       the device is attached already, or another device of its group is attached
 *               to another IOASID
 *   EINVAL      the device's page sizes do not suit the devices, or the mappings, that the
 *               IOASID has; no IOVA is permitted for all of its devices; user_pasid without
 *               the flag, or with more than 20 bits
 *   EADDRINUSE  the IOASID maps IOVAs that this device cannot use
 *   ENOSPC      the device's table cannot hold as many mappings as the IOASID has
 *   EFAULT      memory that the IOASID maps cannot be pinned any more: private memory of a
 *               process that has ended, or is not the calling one, or was unmapped there
 *   ENOMEM      the kernel's own RLIMIT_MEMLOCK check of private memory
 *   EOPNOTSUPP  user_pasid, and IOASID_EXT_USER_PASID_TABLE is 0
 */
struct ioasid_attach_device {
	__u32 argsz;
	__u32 flags;
	__u32 device;
	__u32 ioasid;
	__u32 user_pasid;
	__u32 __reserved;
};
#define IOASID_ATTACH_USER_PASID	(1U << 0)
#define IOASID_ATTACH_DEVICE	_IO(IOASID_TYPE, IOASID_BASE + 18)

/*
 * IOASID_DETACH_DEVICE - undo an attach; the device then reaches no memory
 *
 * The IOASID keeps its mappings for the devices that it has or will get.
 *
 * Input: as for IOASID_ATTACH_DEVICE.
 * Return: 0.
 * Errors:
 *   ENOENT  no such device or IOASID in this context; the device is not attached to it
 *   EBUSY   the device is attached to a child of the IOASID
 */
#define IOASID_DETACH_DEVICE	_IO(IOASID_TYPE, IOASID_BASE + 19)

/*
 * IOASID_GET_DEVICE_INFO - what a bound device is and can do
 *
 * Input:  device.
 * Output: the rest.
 * Return: 0.
 * Errors:
 *   ENOENT  no such device in this context
 */
struct ioasid_device_info {
	__u32 argsz;
	__u32 flags;		/* out: IOASID_DEVICE_* */
	__u32 device;		/* in */
	__u32 group;		/* out: number of its IOMMU group */
	__u32 ioasid;		/* out: the IOASID that it is attached to, 0 for none */
	__u32 max_mappings;	/* out: mappings that its I/O page table takes */
	__aligned_u64 cookie;	/* out: as given to BIND_DEVICE */
	__aligned_u64 pgsizes;	/* out: as in struct ioasid_info */
	__aligned_u64 aperture_start;	/* out: the lowest IOVA that it can use */
	__aligned_u64 aperture_last;	/* out: the highest */
	char name[IOASID_NAME_LEN];	/* out */
};
#define IOASID_DEVICE_VFIO	(1U << 0)
#define IOASID_DEVICE_SIMULATED	(1U << 1)
#define IOASID_DEVICE_ATTACHED	(1U << 2)
#define IOASID_GET_DEVICE_INFO	_IO(IOASID_TYPE, IOASID_BASE + 20)

/* ------------------------------------------------------------------ */
/* Explanations                                                        */
/* ------------------------------------------------------------------ */

/*
 * IOASID_GET_ERROR - why did my last command fail?
 *
 * Gives the explanation of the last command on this open that failed for the calling thread;
 * with IOASID_ERROR_ANY_THREAD, for any thread. It stays until the next failure replaces it;
 * GET_ERROR's own failures do not.
 *
 * Input:  text: where to write it; text_len: the room in bytes, with the zero byte at its end.
 *         With text_len 0, text is not used.
 * Output: command: the ioctl number that failed; error: its errno; text_len: the room that the
 *         text needs, with its zero byte. All are written also with EMSGSIZE.
 * Return: 0.
 * Errors:
 *   ENOENT    nothing has failed
 *   EMSGSIZE  text_len was too small (and not 0); nothing was written to text
 */
struct ioasid_error {
	__u32 argsz;
	__u32 flags;
	__u32 command;		/* out */
	__u32 error;		/* out */
	__aligned_u64 text;	/* in: address of char[text_len], UTF-8 */
	__u32 text_len;		/* in: room; out: room needed */
	__u32 __reserved;
};
#define IOASID_ERROR_ANY_THREAD	(1U << 0)
#define IOASID_GET_ERROR	_IO(IOASID_TYPE, IOASID_BASE + 24)

/* ------------------------------------------------------------------ */
/* Simulated devices                                                    */
/* ------------------------------------------------------------------ */

/*
 * IOASID_SIM_DMA - have a simulated device do DMA
 *
 * Exactly one flag. IOASID_SIM_DMA_READ: the device reads [iova, iova + size) through its I/O
 * page table, and what it read is written to `data`. IOASID_SIM_DMA_WRITE: the device writes
 * what is at `data` there.
 *
 * Input:  device, iova, size (at most IOASID_SIM_DMA_MAX), data.
 * Output: done: how many bytes the device transferred before it met a fault.
 * Return: 0.
 * Errors:
 *   ENOENT      no such device in this context
 *   EOPNOTSUPP  the device is not simulated
 *   EINVAL      none or both of the flags; size is zero or too large
 *   EOVERFLOW   iova + size or data + size wraps
 *   EIO         a DMA fault: at iova + done nothing is mapped, or not for this direction, or
 *               the memory behind it is gone
 */
struct ioasid_sim_dma {
	__u32 argsz;
	__u32 flags;
	__u32 device;
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 data;	/* address in the program */
	__aligned_u64 size;	/* bytes */
	__aligned_u64 done;	/* out: bytes */
};
#define IOASID_SIM_DMA_READ	(1U << 0)
#define IOASID_SIM_DMA_WRITE	(1U << 1)
#define IOASID_SIM_DMA_MAX	(1U << 16)
#define IOASID_SIM_DMA		_IO(IOASID_TYPE, IOASID_BASE + 32)

/* ------------------------------------------------------------------ */
/* The proposal's commands on other descriptors                         */
/* ------------------------------------------------------------------ */

/*
 * On VFIO device descriptors. Stock kernels do not have these: the kernel answers ENOTTY.
 * They are here for programs that are written to the proposal. On this node, use the
 * device plane above.
 *
 * VFIO_BIND_IOASID_FD, VFIO_UNBIND_IOASID_FD: the descriptor of /dev/ioasid, by value.
 * VFIO_ATTACH_IOASID, VFIO_DETACH_IOASID: struct vfio_attach_ioasid.
 */
struct vfio_attach_ioasid {
	__u32 argsz;
	__u32 flag;		/* IOASID_ATTACH_* */
	__u32 ioasid;
	__u32 user_pasid;
};
/* VFIO_TYPE and VFIO_BASE of <linux/vfio.h>, which need not be included. */
#define VFIO_BIND_IOASID_FD	_IO(';', 100 + 22)
#define VFIO_UNBIND_IOASID_FD	_IO(';', 100 + 23)
#define VFIO_ATTACH_IOASID	_IO(';', 100 + 24)
#define VFIO_DETACH_IOASID	_IO(';', 100 + 25)

#endif /* IOASID_UAPI_H */
