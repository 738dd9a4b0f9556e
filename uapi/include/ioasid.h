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
 * open(2) gives EACCES also where the administrator's policy refuses the user, and EMFILE when the
 * user has the node open as often as one user may.
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
 *   EIO         the hardware, or the backend that drives it, failed unexpectedly; or it did so
 *               before, and what an I/O page table holds is unknown since: see DETACH_DEVICE
 *
 * After a failed command the context is exactly as it was before. Every failure has a
 * sentence that explains it: see IOASID_GET_ERROR. (Where the daemon cannot reach a program's
 * memory, the kernel copies for it. The kernel then refuses bad pointers by itself, without a
 * sentence, and finds that an output cannot be written only after the command was done, unless
 * the daemon can at least look for that.)
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
#define IOASID_EXT_VECTOR		13	/* IOASID_VECTOR */
#define IOASID_EXT_FAULTS		14	/* fault records by read() */
#define IOASID_EXT_RECOVERABLE_FAULTS	15	/* COMPLETE_FAULT: devices that wait and retry */
#define IOASID_EXT_SHARED_TABLE		16	/* BIND_DEVICE with IOASID_BIND_SHARE */
#define IOASID_EXT_CONTAINER		17	/* the ioctls of a VFIO container */

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
 *   ENOSPC      the context has as many registered ranges as it may have, or it or the user who
 *               opened it as much registered memory
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
 * formats: bit n stands for the page-table format n that BIND_PGTABLE takes on this IOASID,
 * pasid_formats likewise for BIND_PASID_TABLE; both are 0 if it is not a child. format and
 * format_addr say what is bound at the moment, IOASID_INFO_PASID_TABLE which of the two it is.
 *
 * argsz may also be IOASID_INFO_SIZE_VER0 or IOASID_INFO_SIZE_VER1.
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
	__aligned_u64 formats;		/* out: page-table formats that can be bound */
	__aligned_u64 pasid_formats;	/* out: PASID-table formats that can be bound */
	__aligned_u64 format_addr;	/* out: where the bound table's root is, in the parent */
	__u32 format;			/* out: the format of the bound table, 0 for none */
	__u32 depth;			/* out: IOASIDs above it, 0 for one that is no child */
};
#define IOASID_INFO_SIZE_VER0	64	/* up to mapped_bytes, as in the first version */
#define IOASID_INFO_SIZE_VER1	104	/* up to work_total */
#define IOASID_INFO_MAP_DMA	(1U << 0)	/* is driven by MAP_DMA and UNMAP_DMA */
#define IOASID_INFO_NESTING	(1U << 1)	/* CREATE_NESTING works on it */
#define IOASID_INFO_SIMULATED	(1U << 2)	/* its devices are simulated */
#define IOASID_INFO_SHADOW	(1U << 3)	/* it is a child, and its tables are shadows: the daemon
						 * composes what it and its parents map */
#define IOASID_INFO_DIRTY	(1U << 4)	/* dirty pages can be tracked */
#define IOASID_INFO_TRACKING	(1U << 5)	/* dirty pages are being tracked */
#define IOASID_INFO_PASID_TABLE	(1U << 6)	/* what is bound is a PASID table */
#define IOASID_GET_INFO	_IO(IOASID_TYPE, IOASID_BASE + 5)

/*
 * IOASID_MAP_DMA - let the attached devices reach memory of the program
 *
 * On a child (see CREATE_NESTING), vaddr is an address in the parent's address space, fd and
 * MAP_FILE are not used, and no memory is looked at, pinned or charged: what the parent maps
 * there, now and later, is what devices reach, with the rights that both mappings give.
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
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE); a table of the program
 *               is bound to the IOASID; or the memory is private and the program is being
 *               traced (by a debugger, strace)
 *   EINVAL      neither READ nor WRITE; size is zero; iova, vaddr or size is not a multiple
 *               of the smallest page size; the range lies outside the aperture
 *   EINVAL      MAP_FILE on a child
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
 *   ENOSPC      the IOASID, or a table of its hardware, is out of mappings. The table of a
 *               device that is attached to a child takes one for each piece that mappings of
 *               child and parents have in common
 *
 * Memory may be of any kind and of several in one range: private (malloc, stack), shared, huge
 * pages, files, and the registers of another device that is bound to this context. The memory
 * stays mapped until UNMAP_DMA, FREE or the close of the context, also when the program unmaps
 * it or ends. What is mapped is charged to the calling process's RLIMIT_MEMLOCK: registered
 * memory once, other memory once for each IOASID that maps it, however many devices it has,
 * registers not at all.
 *
 * IOASID_MAP_WRITE without READ keeps real devices from reading only where the platform does:
 * under Intel VT-d they can, since Linux lets devices read whatever it maps for them there.
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
 *         With IOASID_UNMAP_DIRTY, bitmap: where to write which of the pages of page_size
 *         bytes in the range were written by devices since they were last asked for; as for
 *         IOASID_DIRTY, and only while dirty pages are tracked. It cannot be used with ALL.
 *         Without it the three fields are zero.
 * Output: size: how many bytes were unmapped; 0 when there was nothing.
 * Return: 0.
 *
 * argsz may also be IOASID_UNMAP_SIZE_VER0.
 * Errors:
 *   ENOENT     no such IOASID in this context
 *   ENODEV     no device has been attached to it yet
 *   EBUSY      a device group is partly attached (see ATTACH_DEVICE); a table of the program
 *              is bound to the IOASID
 *   EINVAL     size is zero; iova or size is misaligned; the range begins or ends in the
 *              middle of a mapping; ALL with iova or size; DIRTY: see IOASID_DIRTY
 *   EOVERFLOW  iova + size wraps
 *   ENOSPC     what children map of it are more pieces than one command may remove: ALL has no
 *              such limit
 */
struct ioasid_unmap_dma {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 size;	/* in, out: bytes */
	__aligned_u64 page_size;	/* with DIRTY: bytes that a bit stands for */
	__aligned_u64 bitmap;		/* with DIRTY: address of the bitmap */
	__aligned_u64 bitmap_size;	/* with DIRTY: its size, bytes */
};
#define IOASID_UNMAP_SIZE_VER0	32	/* up to size, as in the first version */
#define IOASID_UNMAP_ALL	(1U << 0)
#define IOASID_UNMAP_DIRTY	(1U << 1)
#define IOASID_UNMAP_DMA	_IO(IOASID_TYPE, IOASID_BASE + 7)

/* The proposal's samples spell the two like this. */
#define IOASID_DMA_MAP		IOASID_MAP_DMA
#define IOASID_DMA_UNMAP	IOASID_UNMAP_DMA

/*
 * IOASID_CREATE_NESTING - make an I/O address space whose addresses are translated again
 * by another one
 *
 * The child translates into the parent's address space, and a child can be a parent. It is
 * filled by MAP_DMA (whose vaddr is then the parent's), or bound to a table of the program.
 * Where the parent maps nothing, devices find a hole until it does. A device is attached to the
 * parent first, and then to the child. There is no hardware nesting behind this: what the
 * tables of devices hold is composed by the daemon (IOASID_INFO_SHADOW).
 *
 * Argument: the parent IOASID, by value.
 * Return:   the new child IOASID, a positive number.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   ENODEV      no device has been attached to the parent yet
 *   EBUSY       a device group is partly attached to the parent (see ATTACH_DEVICE)
 *   ENOSPC      the context has as many IOASIDs as it may have
 */
#define IOASID_CREATE_NESTING	_IO(IOASID_TYPE, IOASID_BASE + 8)

/*
 * IOASID_BIND_PGTABLE - have a child IOASID translate by a page table of the program
 * IOASID_UNBIND_PGTABLE - undo that; every field but argsz and ioasid is zero
 *
 * The table lies in memory that the parent maps; all addresses in it are the parent's. It is
 * read when it is bound and when INVALIDATE_CACHE says that it has changed, and at no other
 * time: a change needs an invalidation, also one that only adds an entry (as under a virtual
 * IOMMU in caching mode), and likewise when the parent maps the table itself elsewhere. What
 * the entries lead to follows the parent at once. Accessed and dirty bits are not written.
 *
 * An entry that is malformed, or that leads out of what the parent maps, is a hole, as
 * hardware would fault there; so is what lies outside the permitted IOVA ranges. Each leaf
 * takes a mapping.
 *
 * | format                       | addr_width     |                                          |
 * |------------------------------|----------------|------------------------------------------|
 * | IOASID_FORMAT_X86_4LEVEL     | 48             | x86-64, VT-d first stage                 |
 * | IOASID_FORMAT_X86_5LEVEL     | 57             | the same with five levels                |
 * | IOASID_FORMAT_VTD_SECOND     | 39, 48, 57     | VT-d second stage                        |
 * | IOASID_FORMAT_AMD_V1         | 39, 48, 57, 64 | AMD I/O page table, 3 to 6 levels        |
 * | IOASID_FORMAT_ARM_LPAE_4K    | 25 to 48       | Arm long descriptors, stage 1, 4 KiB     |
 * | IOASID_FORMAT_ARM_LPAE_64K   | 25 to 48       | the same with 64 KiB                     |
 *
 * Input: ioasid, a child; addr, where the table's root is in the parent's address space;
 *        format and addr_width.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context; UNBIND: nothing is bound
 *   ENODEV      no device has been attached to it yet
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE); a table is bound
 *               already, or something is mapped by MAP_DMA
 *   EINVAL      the IOASID is not a child (nested on another); addr_width does not suit the
 *               format; addr is not aligned
 *   EFAULT      the parent maps nothing at addr
 *   ENOSPC      the table has more leaves than the IOASID, or a table of its hardware, may
 *               hold, or too many tables
 *   EOPNOTSUPP  the format is none of IOASID_FORMAT_*
 */
struct ioasid_bind_pgtable {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 ioasid;
	__u32 format;		/* IOASID_FORMAT_* */
	__aligned_u64 addr;
	__u32 addr_width;	/* bits of an input address */
	__u32 __reserved;
};
#define IOASID_FORMAT_X86_4LEVEL	1
#define IOASID_FORMAT_X86_5LEVEL	2
#define IOASID_FORMAT_VTD_SECOND	3
#define IOASID_FORMAT_AMD_V1		4
#define IOASID_FORMAT_ARM_LPAE_4K	5
#define IOASID_FORMAT_ARM_LPAE_64K	6
#define IOASID_BIND_PGTABLE	_IO(IOASID_TYPE, IOASID_BASE + 9)
#define IOASID_UNBIND_PGTABLE	_IO(IOASID_TYPE, IOASID_BASE + 10)

/*
 * IOASID_BIND_PASID_TABLE - have a child IOASID stand for a PASID table of the program
 * IOASID_UNBIND_PASID_TABLE - undo that; every field but argsz and ioasid is zero
 *
 * DMA of an attached device that is tagged with a PASID is translated by the page table which
 * the PASID's entry names, and then by the parent. Entries and page tables are read when DMA
 * first needs them; what was read is used until INVALIDATE_CACHE drops it, or until others need the
 * room (64 PASIDs of a table are kept). DMA without a PASID reaches nothing.
 *
 * | format                       |                                                          |
 * |------------------------------|----------------------------------------------------------|
 * | IOASID_PASID_FORMAT_VTD      | VT-d scalable mode: PASID directory and tables            |
 * | IOASID_PASID_FORMAT_ARM_CD   | Arm SMMUv3: context descriptors in a row                  |
 * | ..._ARM_CD_4K, ..._ARM_CD_64K | the same in two levels, with tables of 4 or 64 KiB       |
 *
 * VFIO type1 has one table for a device and cannot tell DMA apart by PASID: with real devices
 * this is refused with EOPNOTSUPP, as is user_pasid of ATTACH_DEVICE. (The proposal's
 * KVM_MAP_PASID, which would translate the PASIDs of a guest's instructions, needs a change of
 * the kernel's KVM and does not exist on any.)
 *
 * Input: ioasid, a child; addr, where the table is in the parent's address space; format;
 *        pasid_bits, the log2 of its number of entries, 1 to 20.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context; UNBIND: nothing is bound
 *   ENODEV      no device has been attached to it yet
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE); a table is bound
 *               already, or something is mapped by MAP_DMA
 *   EINVAL      the IOASID is not a child (nested on another); pasid_bits is 0 or more than 20;
 *               addr is not aligned
 *   EOPNOTSUPP  IOASID_EXT_USER_PASID_TABLE is 0; the IOASID has real devices; the format is
 *               none of IOASID_PASID_FORMAT_*
 */
struct ioasid_bind_pasid_table {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 ioasid;
	__u32 format;		/* IOASID_PASID_FORMAT_* */
	__aligned_u64 addr;
	__u32 pasid_bits;
	__u32 __reserved;
};
#define IOASID_PASID_FORMAT_VTD		1
#define IOASID_PASID_FORMAT_ARM_CD	2
#define IOASID_PASID_FORMAT_ARM_CD_4K	3
#define IOASID_PASID_FORMAT_ARM_CD_64K	4
#define IOASID_BIND_PASID_TABLE		_IO(IOASID_TYPE, IOASID_BASE + 11)
#define IOASID_UNBIND_PASID_TABLE	_IO(IOASID_TYPE, IOASID_BASE + 12)

/*
 * IOASID_INVALIDATE_CACHE - say that a bound table has changed
 *
 * A page table is read anew, all of it or what translates the range; entries that are as they
 * were stay in place while devices work. Of a PASID table, all that was read is dropped, or
 * what was read for the PASIDs iova to iova + size - 1.
 *
 * Input: ioasid, a child with a bound table; either IOASID_INVALIDATE_ALL with iova and size
 *        zero, or a range.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   ENODEV      no device has been attached to it yet
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE)
 *   EINVAL      nothing is bound to the IOASID; ALL with a range; size is zero without ALL
 *   EOVERFLOW   iova + size wraps
 *   ENOSPC      as for BIND_PGTABLE; what was read before stays in force
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
/* Beyond the proposal: many operations at once, and dirty pages         */
/* ------------------------------------------------------------------ */

/*
 * IOASID_VECTOR - execute many MAP_DMA and UNMAP_DMA on one IOASID, in order
 *
 * The first operation that fails ends it; those before it stay done.
 *
 * Input:  ioasid; ops: address of struct ioasid_op[nr_ops]; nr_ops, at most
 *         IOASID_VECTOR_MAX.
 * Output: nr_done: how many operations were done. It is written also when the call fails.
 *         The op structures are not written.
 * Return: 0 if all were done, otherwise the error of operation nr_done.
 * Errors:
 *   ENOENT  no such IOASID in this context
 *   EINVAL  nr_ops is 0 or more than IOASID_VECTOR_MAX; op is none of IOASID_OP_*, or fields
 *           that it does not use are not zero
 *   and those of the operations
 */
struct ioasid_op {
	__u32 op;		/* IOASID_OP_* */
	__u32 flags;		/* as in MAP_DMA and UNMAP_DMA; not IOASID_UNMAP_DIRTY */
	__s32 fd;		/* as in MAP_DMA */
	__u32 __reserved;
	__aligned_u64 vaddr;	/* as in MAP_DMA */
	__aligned_u64 iova;
	__aligned_u64 size;	/* bytes */
};
#define IOASID_OP_MAP		1
#define IOASID_OP_UNMAP		2
struct ioasid_vector {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 ioasid;
	__u32 nr_ops;
	__aligned_u64 ops;
	__u32 nr_done;		/* out */
	__u32 __reserved;
};
#define IOASID_VECTOR_MAX	2048
#define IOASID_VECTOR		_IO(IOASID_TYPE, IOASID_BASE + 14)

/*
 * IOASID_DIRTY - which pages of an I/O address space were written by devices
 *
 * Exactly one flag. IOASID_DIRTY_START: tracks from now on. IOASID_DIRTY_STOP: does no more,
 * and forgets what it knows. IOASID_DIRTY_READ: writes a bitmap of the range and clears what it
 * said: bit n is set if any byte of the page at iova + n * page_size was written since it was
 * last asked for; bits are counted from the lowest of the first byte (little endian).
 *
 * What devices write through a child is written in the parents too. Simulated devices are
 * tracked exactly. VFIO type1 knows no better than that every page it has pinned may have been
 * written, and says so each time.
 *
 * What cannot be written to the bitmap is not cleared. Where the kernel copies (see the head of
 * this file) for a program that the daemon cannot reach, the daemon never knows: for such a program
 * READ and UNMAP_DIRTY clear nothing, and say of pages again what they have said.
 *
 * Input: ioasid. READ: [iova, iova + size), mapped or not; page_size, the smallest page size of
 *        the IOASID; bitmap and bitmap_size: room for one bit a page,
 *        rounded up to 8 bytes.
 * Return: 0.
 * Errors:
 *   ENOENT      no such IOASID in this context
 *   ENODEV      no device has been attached to it yet
 *   EBUSY       a device group is partly attached (see ATTACH_DEVICE)
 *   EINVAL      none or several of the flags; START with fields that are not zero; READ without
 *               tracking; page_size is not the smallest of the IOASID; iova or size is not
 *               aligned, or size is 0; bitmap_size is too small; more than
 *               IOASID_DIRTY_PAGES_MAX pages
 *   EOVERFLOW   iova + size wraps
 *   EOPNOTSUPP  IOASID_EXT_DIRTY_TRACKING is 0; a device of the IOASID cannot
 */
struct ioasid_dirty {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 size;		/* bytes */
	__aligned_u64 page_size;	/* bytes that a bit stands for */
	__aligned_u64 bitmap;		/* address */
	__aligned_u64 bitmap_size;	/* bytes */
};
#define IOASID_DIRTY_START	(1U << 0)
#define IOASID_DIRTY_STOP	(1U << 1)
#define IOASID_DIRTY_READ	(1U << 2)
#define IOASID_DIRTY_PAGES_MAX	(1U << 25)	/* that can be asked for at a time */
#define IOASID_DIRTY		_IO(IOASID_TYPE, IOASID_BASE + 15)

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
 * With IOASID_BIND_SHARE beside one of them, the group shares the I/O page table (of a VFIO group,
 * the container) of the device `with`, of the same kind and bound before: what is mapped is pinned
 * and entered once. From then on the groups are one: their devices can be attached only to the same
 * IOASID, which refuses commands while some are attached and others are not. The new group must have
 * no container and no bound device yet (so none of its devices is open), and suit what the device
 * `with` is attached to and what is mapped there. Each group can be unbound without the others, which
 * go on as before.
 *
 * Input:  fd, name (ends with a zero byte), cookie: any number, which will be given back in
 *         whatever is reported about the device; with IOASID_BIND_SHARE, with; otherwise 0.
 * Output: device: its number in this context.
 * Return: 0.
 *
 * argsz may also be IOASID_BIND_SIZE_VER0.
 * Errors:
 *   EINVAL      none or both of the kinds; fd and kind do not fit; name is empty or has no
 *               end; fd is open but no VFIO group; `with` without SHARE; SHARE: one group is
 *               simulated and the other is not, their IOMMUs differ, or the new one cannot use an
 *               IOVA that is mapped
 *   EBADF       fd is no open descriptor of the program
 *   ENOENT      the group has no such device; there is no such simulated device; SHARE: there
 *               is no device `with` in this context
 *   EBUSY       the device is bound already, or its group belongs to another user; SHARE: the
 *               group has a table of its own already
 *   EACCES      the administrator's policy does not let who opened the node have this device
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
	__u32 with;		/* with IOASID_BIND_SHARE: a device whose table is shared */
	__u32 __reserved;
};
#define IOASID_BIND_SIZE_VER0	88	/* up to name, as in the first version */
#define IOASID_BIND_VFIO_GROUP	(1U << 0)
#define IOASID_BIND_SIMULATED	(1U << 1)
#define IOASID_BIND_SHARE	(1U << 2)
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
 * To attach a device to a child, attach it to the parent first. From then on the child
 * translates its DMA; when it is detached from the child, the parent does again.
 *
 * Input: device, ioasid; with IOASID_ATTACH_USER_PASID, user_pasid: only DMA tagged with it.
 *        Each PASID of a device is attached by itself; to a child also where only the device,
 *        and not the PASID, is attached to the parent. It goes before an entry of a PASID table.
 * Return: 0.
 * Errors:
 *   ENOENT      no such device or IOASID in this context
 *   EBUSY       the device is attached already, or another device of its group is attached
 *               to another IOASID; user_pasid with a device that shares its group
 *   EINVAL      the IOASID is nested on one that the device is not attached to
 *   EINVAL      the device's page sizes do not suit the devices, or the mappings, that the
 *               IOASID has; no IOVA is permitted for all of its devices; user_pasid without
 *               the flag, or with more than 20 bits
 *   EADDRINUSE  the IOASID maps IOVAs that this device cannot use
 *   ENOSPC      the device's table cannot hold as many mappings as the IOASID has
 *   EFAULT      memory that the IOASID maps cannot be pinned any more: private memory of a
 *               process that has ended, or is not the calling one, or was unmapped there
 *   ENOMEM      the kernel's own RLIMIT_MEMLOCK check of private memory
 *   EOPNOTSUPP  user_pasid with a real device: VFIO type1 has one table for a device
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
 * Of an IOASID whose commands fail with EIO, as the table of a device could not be restored after
 * a failure, the device is detached from that and from all children at once, if the IOASID is
 * the one that it was attached to first. The table is cleared with the last device of it.
 *
 * Input: as for IOASID_ATTACH_DEVICE.
 * Return: 0.
 * Errors:
 *   ENOENT  no such device or IOASID in this context; the device is not attached to it
 *   EBUSY   the device is attached to a child of the IOASID
 *   ENOSPC  the device's table cannot hold what the IOASID's parent maps
 *   EFAULT  nor can memory be pinned for it that the parent maps: see ATTACH_DEVICE
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
/* Faults                                                               */
/* ------------------------------------------------------------------ */

/*
 * read() of the node gives records of DMA faults, as many whole ones as there is room for;
 * less room than for one is EINVAL. When there are none, it waits for one, or gives EAGAIN with
 * O_NONBLOCK; poll() tells, and so does an eventfd (IOASID_SET_FAULT_EVENTFD). Each record is read
 * once. A signal ends the waiting with EINTR, also one whose handler has SA_RESTART. Where
 * IOASID_EXT_FAULTS is 0, read() gives EOPNOTSUPP.
 *
 * A record with IOASID_FAULT_RECOVERABLE tells of a device that waits: answer it with
 * IOASID_COMPLETE_FAULT. Others tell of DMA that has failed. Of real devices the daemon knows
 * only what the kernel writes to its log (IOASID_FAULT_BEST_EFFORT): late, and most of many
 * faults that come at once are suppressed.
 *
 * A context keeps up to IOASID_FAULTS_MAX records that were not read, and as many recoverable
 * faults that were not completed. Beyond that, recoverable faults are failed at once, and all are
 * counted in the field `lost` of the next record that is read. When a device is detached, its
 * recoverable faults are failed. The record of a fault that was completed or failed before it was
 * read is gone.
 */
struct ioasid_fault {
	__u32 flags;		/* IOASID_FAULT_* */
	__u32 ioasid;		/* that translates for the device; 0 if it is attached to none */
	__aligned_u64 address;	/* the IOVA */
	__aligned_u64 cookie;	/* of the device, as given to BIND_DEVICE */
	__u32 device;
	__u32 reason;		/* IOASID_FAULT_REASON_* */
	__u32 id;		/* for IOASID_COMPLETE_FAULT; 0 if it cannot be completed */
	__u32 pasid;		/* with IOASID_FAULT_PASID */
	__u32 lost;		/* records that were lost since the last one was read */
	__u32 __reserved;
};
#define IOASID_FAULT_READ		(1U << 0)	/* the device wanted to read */
#define IOASID_FAULT_WRITE		(1U << 1)	/* the device wanted to write */
#define IOASID_FAULT_RECOVERABLE	(1U << 2)	/* the device waits for an answer */
#define IOASID_FAULT_BEST_EFFORT	(1U << 3)	/* from the kernel's log */
#define IOASID_FAULT_PASID		(1U << 4)	/* the DMA was tagged with pasid */
#define IOASID_FAULT_REASON_UNKNOWN	0
#define IOASID_FAULT_REASON_NOT_MAPPED	1	/* nothing is mapped there */
#define IOASID_FAULT_REASON_PERMISSION	2	/* it is mapped, but not for this direction */
#define IOASID_FAULT_REASON_MEMORY	3	/* the memory behind the mapping is gone */
#define IOASID_FAULTS_MAX		256

/*
 * IOASID_COMPLETE_FAULT - answer a recoverable fault
 *
 * Input: id, from the record; response. IOASID_RESPONSE_SUCCESS: the device repeats its access,
 *        which fails for good if there is still nothing, and is then reported as a fault that is
 *        not recoverable. IOASID_RESPONSE_RETRY: the same, but if there is still nothing it
 *        reports anew. IOASID_RESPONSE_FAIL: the access fails.
 * Return: 0.
 * Errors:
 *   ENOENT  no fault of this id waits for an answer
 *   EINVAL  response is none of IOASID_RESPONSE_*
 */
struct ioasid_complete_fault {
	__u32 argsz;
	__u32 flags;		/* none defined */
	__u32 id;
	__u32 response;
};
#define IOASID_RESPONSE_SUCCESS	0
#define IOASID_RESPONSE_RETRY	1
#define IOASID_RESPONSE_FAIL	2
#define IOASID_COMPLETE_FAULT	_IO(IOASID_TYPE, IOASID_BASE + 21)

/*
 * IOASID_SET_FAULT_EVENTFD - have an eventfd signalled for every new record
 *
 * One whose counter is full holds nothing up.
 *
 * Argument: the eventfd, by value; -1 for none from now on.
 * Return:   0.
 * Errors:
 *   EBADF   it is no open descriptor of the program
 *   EINVAL  it is no eventfd
 *   EPERM   the daemon may not take the descriptor
 */
#define IOASID_SET_FAULT_EVENTFD	_IO(IOASID_TYPE, IOASID_BASE + 22)

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
/* What an open of the node holds                                       */
/* ------------------------------------------------------------------ */

/*
 * IOASID_LIST - which IOASIDs and devices there are, and what an IOASID maps
 *
 * For who looks at a context that another program has made, on a descriptor that he inherited or
 * duplicated; GET_INFO and GET_DEVICE_INFO tell the rest. Nothing is changed, and nothing is waited
 * for: what a command in another thread is about to map is listed once it is mapped.
 *
 * Exactly one flag. IOASID_LIST_IOASIDS: items are __u32, the IOASIDs. IOASID_LIST_DEVICES: __u32,
 * the device numbers. IOASID_LIST_MAPPINGS: struct ioasid_mapping, what `ioasid` maps; of an IOASID
 * to which a page table is bound, what was read from it. All in ascending order.
 *
 * Input: start: the lowest number, or of mappings the lowest iova, to be listed; items: where to
 *        write the list, and nr: for how many there is room, at most IOASID_LIST_MAX. With nr 0,
 *        items is not used. ioasid with LIST_MAPPINGS, otherwise 0.
 * Output: nr: how many there are from start on. With EMSGSIZE, as many of them as there was room for
 *         are written, so that a long list can be read in several calls.
 * Return: 0.
 * Errors:
 *   ENOENT    MAPPINGS: no such IOASID in this context
 *   EINVAL    none or several of the flags; nr is more than IOASID_LIST_MAX; ioasid without
 *             LIST_MAPPINGS; a start of more than 32 bits with the others
 *   EMSGSIZE  nr was too small (and not 0); nr now says how many there are
 */
struct ioasid_list {
	__u32 argsz;
	__u32 flags;
	__u32 ioasid;
	__u32 nr;		/* in: room; out: how many there are */
	__aligned_u64 start;
	__aligned_u64 items;	/* address */
};
struct ioasid_mapping {
	__aligned_u64 iova;
	__aligned_u64 size;	/* bytes */
	__aligned_u64 vaddr;	/* as given to MAP_DMA */
	__u32 flags;		/* as given to MAP_DMA: IOASID_MAP_* */
	__u32 __reserved;	/* 0 */
};
#define IOASID_LIST_IOASIDS	(1U << 0)
#define IOASID_LIST_DEVICES	(1U << 1)
#define IOASID_LIST_MAPPINGS	(1U << 2)
#define IOASID_LIST_MAX		1024
#define IOASID_LIST	_IO(IOASID_TYPE, IOASID_BASE + 25)

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
 * With IOASID_SIM_DMA_PASID, the DMA is tagged with `pasid`. With IOASID_SIM_DMA_RECOVERABLE, a
 * fault does not fail the call: done is less than size, `fault` is the id of the record, and
 * the device waits for IOASID_COMPLETE_FAULT. The DMA goes on with a call for the rest that
 * has IOASID_SIM_DMA_CONTINUE too, and `fault`, and begins where it stopped. Without RECOVERABLE,
 * a fault is reported as one that is not recoverable.
 *
 * Input:  device, iova, size (at most IOASID_SIM_DMA_MAX), data; pasid and fault with their
 *         flags, otherwise 0.
 * Output: done: how many bytes the device transferred before it met a fault; fault: that at which
 *         it waits now, or 0.
 * Return: 0.
 *
 * argsz may also be IOASID_SIM_DMA_SIZE_VER0.
 * Errors:
 *   ENOENT      no such device in this context; CONTINUE: it does not wait with this fault
 *   EOPNOTSUPP  the device is not simulated
 *   EINVAL      none or both of the flags READ and WRITE; size is zero or too large; pasid or
 *               fault without its flag; pasid has more than 20 bits; CONTINUE without
 *               RECOVERABLE, or with another iova, direction or PASID than it stopped with
 *   EOVERFLOW   iova + size or data + size wraps
 *   EAGAIN      CONTINUE: the fault is not completed yet
 *   ENOSPC      PASID: the page table that the PASID's entry names is too large, as for
 *               BIND_PGTABLE, or the context has as many devices and PASIDs as it may have
 *   EIO         a DMA fault: at iova + done nothing is mapped, or not for this direction, or
 *               the memory behind it is gone. RECOVERABLE: only if too many faults are kept
 *               already. CONTINUE: the fault was completed with IOASID_RESPONSE_FAIL, or with
 *               SUCCESS and there is still nothing, or the device was detached
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
	__u32 pasid;
	__u32 fault;		/* in, out */
};
#define IOASID_SIM_DMA_SIZE_VER0	48	/* up to done, as in the first version */
#define IOASID_SIM_DMA_READ	(1U << 0)
#define IOASID_SIM_DMA_WRITE	(1U << 1)
#define IOASID_SIM_DMA_PASID	(1U << 2)
#define IOASID_SIM_DMA_RECOVERABLE	(1U << 3)
#define IOASID_SIM_DMA_CONTINUE	(1U << 4)
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

/* ------------------------------------------------------------------ */
/* The node as a VFIO container                                         */
/* ------------------------------------------------------------------ */

/*
 * With IOASID_EXT_CONTAINER, an open of the node also takes the ioctls of a VFIO container, those of
 * /dev/vfio/vfio in <linux/vfio.h>: VFIO_GET_API_VERSION, VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU
 * (VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU), VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA,
 * VFIO_IOMMU_UNMAP_DMA and VFIO_IOMMU_DIRTY_PAGES. Their results and errors are VFIO type1's and not
 * those of this header: for one, EINVAL for reserved IOVAs, for addresses that wrap, and before
 * VFIO_SET_IOMMU. Not served are VFIO_UPDATE_VADDR and VFIO_TYPE1_NESTING_IOMMU, of which
 * VFIO_CHECK_EXTENSION does not tell either. A bitmap of dirty pages has at most
 * IOASID_DIRTY_PAGES_MAX bits, as VFIO_IOMMU_GET_INFO says; simulated devices are tracked exactly.
 *
 * Groups come by BIND_DEVICE, as VFIO_GROUP_SET_CONTAINER takes no descriptor of this node.
 * VFIO_SET_IOMMU makes an IOASID and attaches every device that is attached to none; what is bound
 * afterwards is attached at once. VFIO groups share one I/O page table as with IOASID_BIND_SHARE,
 * unless a device of a further group has been opened before VFIO_SET_IOMMU. UNBIND_DEVICE detaches a
 * device of the container by itself; with the last, the IOASID and all that is mapped go, and
 * VFIO_SET_IOMMU can be called again.
 *
 * The IOASID is as any other (GET_DEVICE_INFO says which), and there may be others beside it.
 */

#endif /* IOASID_UAPI_H */
