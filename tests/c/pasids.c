/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * pasids NODE DEVICE OTHER
 * pasids NODE --vfio ADDRESS:GROUP
 *
 * Sections 5.5 and 5.7 of the proposal with simulated devices, in its order of calls: a device
 * whose DMA with a PASID has an address space of its own, and a PASID table that the guest keeps in
 * its memory. The tables are encoded here as the specifications have them, and not as the daemon
 * reads them. After every step DEVICE is asked what it reaches, with the PASID in question, with
 * another and with none; OTHER stays at the parent and must notice nothing.
 *
 * With a real device: all of this is refused with EOPNOTSUPP, and says why.
 */
#include "reach.h"

#include <pthread.h>
#include <stdatomic.h>

#define GUEST		(8 * MIB)
#define TABLES		(4 * MIB)	/* where in the guest's memory the tables are */
#define GPASID1		0x15U
#define GPASID2		0x16U
#define PASID_LAST	0xfffffU
#define GVA		0x7f0000000UL	/* where the guest's programs have what is shown */
#define DATA(n)		((n) * 4 * PAGE)

static int ioasid_fd;
static struct device dev1, dev2;
static __u32 gpa_ioasid;

/* ------------------------------------------------------------------ */
/* DMA                                                                  */
/* ------------------------------------------------------------------ */

#define UNTAGGED	(-1L)

static int tagged_dma(long pasid, __u32 flags, __u64 iova, void *data, size_t size)
{
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma),
		.flags = flags | (pasid < 0 ? 0 : IOASID_SIM_DMA_PASID),
		.device = dev1.id,
		.iova = iova,
		.data = (uintptr_t)data,
		.size = size,
		.pasid = pasid < 0 ? 0 : pasid,
	};

	return ioctl(ioasid_fd, IOASID_SIM_DMA, &dma) < 0 ? errno : 0;
}

/* What the device reaches there is the guest's memory at `offset`, in both directions. */
static void sees(long pasid, __u64 iova, size_t offset, const char *when)
{
	unsigned char bytes[SAMPLE];
	int error;

	fill(guest + offset, SAMPLE, ++next_seed);
	error = tagged_dma(pasid, IOASID_SIM_DMA_READ, iova, bytes, SAMPLE);
	if (error)
		die("%s: PASID %ld cannot read at %#llx: %s. %s", when, pasid, iova,
		    strerror(error), explanation(ioasid_fd));
	must_equal(bytes, guest + offset, SAMPLE, when);
	fill(bytes, SAMPLE, ++next_seed);
	memcpy(before, guest, guest_size);
	error = tagged_dma(pasid, IOASID_SIM_DMA_WRITE, iova, bytes, SAMPLE);
	if (error)
		die("%s: PASID %ld cannot write at %#llx: %s", when, pasid, iova, strerror(error));
	memcpy(before + offset, bytes, SAMPLE);
	must_equal(guest, before, guest_size, when);
}

static void misses(long pasid, __u64 iova, const char *when)
{
	unsigned char bytes[SAMPLE] = { 0 };
	int error = tagged_dma(pasid, IOASID_SIM_DMA_READ, iova, bytes, SAMPLE);

	if (error != EIO || !all_bytes_are(bytes, SAMPLE, 0))
		die("%s: PASID %ld reads at %#llx (%s)", when, pasid, iova, strerror(error));
	memcpy(before, guest, guest_size);
	error = tagged_dma(pasid, IOASID_SIM_DMA_WRITE, iova, bytes, SAMPLE);
	if (error != EIO)
		die("%s: PASID %ld writes at %#llx (%s)", when, pasid, iova, strerror(error));
	must_equal(guest, before, guest_size, when);
}

static void other_is_well(const char *when)
{
	reaches(&dev2, DATA(3), DATA(3), MAP_BOTH, when);
	faults(&dev2, GVA, when);
}

/* ------------------------------------------------------------------ */
/* Calls                                                                */
/* ------------------------------------------------------------------ */

static struct ioasid_attach_device at_pasid(__u32 ioasid, __u32 pasid)
{
	struct ioasid_attach_device at_data = attachment(dev1.id, ioasid);

	at_data.flags = IOASID_ATTACH_USER_PASID;
	at_data.user_pasid = pasid;
	return at_data;
}

static void attach_pasid(__u32 ioasid, __u32 pasid)
{
	struct ioasid_attach_device at_data = at_pasid(ioasid, pasid);

	must(ioasid_fd, IOASID_ATTACH_DEVICE, &at_data, "ATTACH_DEVICE with a PASID");
}

static void detach_pasid(__u32 ioasid, __u32 pasid)
{
	struct ioasid_attach_device at_data = at_pasid(ioasid, pasid);

	must(ioasid_fd, IOASID_DETACH_DEVICE, &at_data, "DETACH_DEVICE with a PASID");
}

static void refuse_pasid(unsigned long command, __u32 ioasid, __u32 pasid, int error,
			 const char *what)
{
	struct ioasid_attach_device at_data = at_pasid(ioasid, pasid);

	must_refuse(ioasid_fd, command, &at_data, error, what);
}

static struct ioasid_bind_pasid_table pasid_table(__u32 ioasid, __u32 format, __u64 addr,
						  __u32 pasid_bits)
{
	struct ioasid_bind_pasid_table bind_data = {
		.argsz = sizeof(bind_data),
		.ioasid = ioasid,
		.format = format,
		.addr = addr,
		.pasid_bits = pasid_bits,
	};

	return bind_data;
}

static void bind_pasids(__u32 ioasid, __u32 format, __u64 addr, __u32 pasid_bits)
{
	struct ioasid_bind_pasid_table bind_data = pasid_table(ioasid, format, addr, pasid_bits);

	must(ioasid_fd, IOASID_BIND_PASID_TABLE, &bind_data, "BIND_PASID_TABLE");
}

static void unbind_pasids(__u32 ioasid)
{
	struct ioasid_bind_pasid_table bind_data = pasid_table(ioasid, 0, 0, 0);

	must(ioasid_fd, IOASID_UNBIND_PASID_TABLE, &bind_data, "UNBIND_PASID_TABLE");
}

static void refuse_table(unsigned long command, struct ioasid_bind_pasid_table bind_data,
			 int error, const char *what)
{
	must_refuse(ioasid_fd, command, &bind_data, error, what);
}

static void stands(__u32 ioasid, __u32 devices, __u32 children, const char *when)
{
	struct ioasid_info info = get_info(ioasid_fd, ioasid);

	if (info.nr_devices != devices || info.nr_children != children)
		die("%s: IOASID %u has %u devices and %u children instead of %u and %u", when,
		    ioasid, info.nr_devices, info.nr_children, devices, children);
}

/*
 * Nothing has a number but what the program was given: no command knows of other IOASIDs and
 * devices.
 */
static void nothing_else_is_there(const __u32 *known, size_t nr_known, const char *when)
{
	for (__u32 id = 1; id < 200; id++) {
		struct ioasid_info info = { .argsz = sizeof(info), .ioasid = id };
		struct ioasid_map_dma dma_map = mapping(id, 0, guest, PAGE, MAP_BOTH);
		struct ioasid_unmap_dma dma_unmap = {
			.argsz = sizeof(dma_unmap), .ioasid = id, .size = PAGE,
		};
		struct ioasid_bind_pgtable table = page_table(id, IOASID_FORMAT_X86_4LEVEL, 0, 48);
		struct ioasid_bind_pgtable no_table = page_table(id, 0, 0, 0);
		struct ioasid_bind_pasid_table pasids =
			pasid_table(id, IOASID_PASID_FORMAT_VTD, 0, 6);
		struct ioasid_bind_pasid_table no_pasids = pasid_table(id, 0, 0, 0);
		struct ioasid_invalidate_cache drop = invalidation(id, 0, 0);
		struct ioasid_dirty dirty = {
			.argsz = sizeof(dirty), .flags = IOASID_DIRTY_START, .ioasid = id,
		};
		struct ioasid_op op = { .op = IOASID_OP_UNMAP, .size = PAGE };
		struct ioasid_vector vector = {
			.argsz = sizeof(vector), .ioasid = id, .ops = (uintptr_t)&op, .nr_ops = 1,
		};
		struct ioasid_attach_device to = attachment(dev1.id, id);
		struct ioasid_attach_device to_pasid = at_pasid(id, 0x777);
		const struct {
			unsigned long command;
			const void *argument;
		} calls[] = {
			{ IOASID_GET_INFO, &info }, { IOASID_MAP_DMA, &dma_map },
			{ IOASID_UNMAP_DMA, &dma_unmap }, { IOASID_FREE, by_value(id) },
			{ IOASID_CREATE_NESTING, by_value(id) }, { IOASID_BIND_PGTABLE, &table },
			{ IOASID_UNBIND_PGTABLE, &no_table }, { IOASID_BIND_PASID_TABLE, &pasids },
			{ IOASID_UNBIND_PASID_TABLE, &no_pasids },
			{ IOASID_INVALIDATE_CACHE, &drop }, { IOASID_DIRTY, &dirty },
			{ IOASID_VECTOR, &vector }, { IOASID_ATTACH_DEVICE, &to },
			{ IOASID_DETACH_DEVICE, &to }, { IOASID_ATTACH_DEVICE, &to_pasid },
			{ IOASID_DETACH_DEVICE, &to_pasid },
		};
		size_t n;

		for (n = 0; n < nr_known && known[n] != id; n++)
			;
		if (n < nr_known)
			continue;
		for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
			if (ioctl(ioasid_fd, calls[i].command, calls[i].argument) >= 0 ||
			    errno != ENOENT)
				die("%s: call %zu on IOASID %u: %s. %s", when, i, id,
				    strerror(errno), explanation(ioasid_fd));
	}
	for (__u32 id = 1; id < 200; id++) {
		struct ioasid_device_info info = { .argsz = sizeof(info), .device = id };
		struct ioasid_attach_device at_data = attachment(id, gpa_ioasid);
		struct ioasid_attach_device at_tagged = at_data;
		struct ioasid_bind_device share = simulated("sim3", 0);
		struct ioasid_sim_dma dma = {
			.argsz = sizeof(dma), .flags = IOASID_SIM_DMA_READ, .device = id,
			.data = (uintptr_t)before, .size = 1,
		};
		const struct {
			unsigned long command;
			const void *argument;
		} calls[] = {
			{ IOASID_GET_DEVICE_INFO, &info }, { IOASID_ATTACH_DEVICE, &at_data },
			{ IOASID_DETACH_DEVICE, &at_data }, { IOASID_ATTACH_DEVICE, &at_tagged },
			{ IOASID_DETACH_DEVICE, &at_tagged }, { IOASID_UNBIND_DEVICE, by_value(id) },
			{ IOASID_BIND_DEVICE, &share }, { IOASID_SIM_DMA, &dma },
		};

		at_tagged.flags = IOASID_ATTACH_USER_PASID;
		share.flags |= IOASID_BIND_SHARE;
		share.with = id;
		if (id == dev1.id || id == dev2.id)
			continue;
		for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
			if (ioctl(ioasid_fd, calls[i].command, calls[i].argument) >= 0 ||
			    errno != ENOENT)
				die("%s: call %zu on device %u: %s. %s", when, i, id,
				    strerror(errno), explanation(ioasid_fd));
	}
}

/* ------------------------------------------------------------------ */
/* Tables, in the guest's memory                                        */
/* ------------------------------------------------------------------ */

static size_t tables_used;

static __u64 new_table(size_t size, size_t alignment)
{
	size_t at = (TABLES + tables_used + alignment - 1) / alignment * alignment;

	tables_used = at + size - TABLES;
	if (TABLES + tables_used > GUEST)
		die("there is no room for so many tables");
	memset(guest + at, 0, size);
	return at;
}

static void put(__u64 gpa, __u64 value)
{
	__atomic_store_n((__u64 *)(guest + gpa), value, __ATOMIC_RELEASE);
}

static __u64 get(__u64 gpa)
{
	return __atomic_load_n((__u64 *)(guest + gpa), __ATOMIC_ACQUIRE);
}

enum stage { X86, X86_5, VTD_3, VTD_4, ARM_4K, ARM_64K };

static unsigned int levels_of(enum stage stage)
{
	return stage == X86_5 ? 5 : stage == VTD_3 || stage == ARM_64K ? 3 : 4;
}

static unsigned int page_shift_of(enum stage stage)
{
	return stage == ARM_64K ? 16 : 12;
}

/* An entry that leads to a table, or to a page: present and writable, as in page-tables.c. */
static __u64 pointer(enum stage stage, __u64 gpa, bool page)
{
	switch (stage) {
	case X86:
	case X86_5:
		return gpa | 0x27 | (page ? 0x40 : 0);
	case VTD_3:
	case VTD_4:
		return gpa | 0x3;
	default:
		return gpa | (page ? 0x743 : 0x3);
	}
}

/* Where in the page table at `root` the entry is of the page at `iova`. */
static __u64 leaf_of(enum stage stage, __u64 root, __u64 iova)
{
	unsigned int shift = page_shift_of(stage);

	for (unsigned int level = levels_of(stage) - 1;; level--) {
		__u64 index = iova >> (shift + level * (shift - 3)) & ((1UL << (shift - 3)) - 1);
		__u64 entry = root + index * 8;

		if (!level)
			return entry;
		if (!get(entry))
			put(entry, pointer(stage, new_table(1UL << shift, 1UL << shift), false));
		root = get(entry) & ~((1UL << shift) - 1);
	}
}

static void show(enum stage stage, __u64 root, __u64 iova, __u64 gpa)
{
	put(leaf_of(stage, root, iova), pointer(stage, gpa, true));
}

static __u64 new_root(enum stage stage)
{
	return new_table(1UL << page_shift_of(stage), 1UL << page_shift_of(stage));
}

/* A page table that shows one page. */
static __u64 one_page(enum stage stage, __u64 iova, __u64 gpa)
{
	__u64 root = new_root(stage);

	show(stage, root, iova, gpa);
	return root;
}

/*
 * PASID tables. `entry` gives where the entry of a PASID is, with tables made as needed; `fill`
 * writes the one that has a page table.
 */
struct pasid_format {
	__u32 number;
	const char *name;
	size_t root_size;		/* of a table of 20 bits; 0 where that is too large */
	__u64 (*entry)(__u64 table, __u32 pasid);
	void (*fill)(__u64 entry, enum stage stage, __u64 root);
	enum stage stages[4];
	unsigned int nr_stages;
};

/* VT-d 9.5: PASID directory entry: present, and the address of a table of 64 entries. */
static __u64 vtd_entry(__u64 table, __u32 pasid)
{
	__u64 first = table + pasid / 64 * 8;

	if (!get(first))
		put(first, new_table(PAGE, PAGE) | 1);
	return (get(first) & ~0xfffUL) + pasid % 64 * 64;
}

/*
 * VT-d 9.6: bit 0 present, 8:6 PGTT (1 first stage, 2 second, 4 pass-through), 4:2 address width
 * of the second stage (1, 2: 3, 4 levels), 63:12 its root; in the third word 3:2 the mode of the
 * first stage (0, 1: 4, 5 levels) and 63:12 its root. The second word has the domain.
 */
static void vtd_fill(__u64 entry, enum stage stage, __u64 root)
{
	bool second = stage == VTD_3 || stage == VTD_4;

	put(entry, 0);
	put(entry + 8, 0x1234);
	put(entry + 16, second ? 0 : root | (stage == X86_5) << 2 | 1);
	put(entry, second ? root | (stage == VTD_3 ? 1 : 2) << 2 | 2 << 6 | 1 : 1 << 6 | 1);
}

/*
 * SMMUv3 5.4: V in bit 31, AA64 in 41, T0SZ in 5:0, TG0 in 7:6 (0: 4 KiB, 1: 64 KiB), A, R, S in
 * 45:43, ASID in 63:48, EPD1 in 30; inner and outer attributes in 13:8. TTB0 in the second word.
 */
static void arm_fill(__u64 entry, enum stage stage, __u64 root)
{
	__u64 t0sz = stage == ARM_64K ? 16 : 16, tg0 = stage == ARM_64K;

	put(entry, 0);
	put(entry + 8, root);
	put(entry, t0sz | tg0 << 6 | 0x35UL << 8 | 1UL << 30 | 1UL << 31 | 2UL << 32 | 1UL << 41 |
	    7UL << 43 | 0x42UL << 48);
}

static __u64 arm_linear(__u64 table, __u32 pasid)
{
	return table + pasid * 64UL;
}

/* SMMUv3 5.4.1: V in bit 0, and the address of a table. */
static __u64 arm_two_levels(__u64 table, __u32 pasid, __u32 each, size_t alignment)
{
	__u64 first = table + pasid / each * 8;

	if (!get(first))
		put(first, new_table(each * 64UL, alignment) | 1);
	return (get(first) & ~0xfffUL) + pasid % each * 64;
}

static __u64 arm_4k(__u64 table, __u32 pasid)
{
	return arm_two_levels(table, pasid, 64, PAGE);
}

static __u64 arm_64k(__u64 table, __u32 pasid)
{
	return arm_two_levels(table, pasid, 1024, 16 * PAGE);
}

static const struct pasid_format formats[] = {
	{ IOASID_PASID_FORMAT_VTD, "VT-d scalable mode", 128 * KIB, vtd_entry, vtd_fill,
	  { X86, X86_5, VTD_3, VTD_4 }, 4 },
	{ IOASID_PASID_FORMAT_ARM_CD, "Arm, in a row", 0, arm_linear, arm_fill,
	  { ARM_4K, ARM_64K }, 2 },
	{ IOASID_PASID_FORMAT_ARM_CD_4K, "Arm, tables of 4 KiB", 128 * KIB, arm_4k, arm_fill,
	  { ARM_4K, ARM_64K }, 2 },
	{ IOASID_PASID_FORMAT_ARM_CD_64K, "Arm, tables of 64 KiB", 8 * KIB, arm_64k, arm_fill,
	  { ARM_4K, ARM_64K }, 2 },
};
#define NR_FORMATS	(sizeof(formats) / sizeof(*formats))
#define VTD		(&formats[0])
#define VTD_PASSES	(4 << 6 | 1)

static void invalidate_pasids(__u32 ioasid, __u64 first, __u64 count)
{
	invalidate(ioasid_fd, ioasid, first, count);
}

/* ------------------------------------------------------------------ */
/* 5.5: guest SVA                                                       */
/* ------------------------------------------------------------------ */

static void vsva(void)
{
	__u64 gva_pgtable1, gva_pgtable2;
	__u32 gva_ioasid, second, giova_ioasid;

	tables_used = 0;
	gva_pgtable1 = one_page(X86, GVA, DATA(1));
	gva_pgtable2 = one_page(X86, GVA, DATA(2));

	/* After boots: make GVA space nested on GPA space */
	gva_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	misses(GPASID1, GVA, "before the attach");

	/* Attach dev1 to the new address space and specify vPASID */
	attach_pasid(gva_ioasid, GPASID1);
	misses(GPASID1, GVA, "attached");
	misses(GPASID1, DATA(1), "a PASID of a child does not reach the parent");
	sees(UNTAGGED, DATA(1), DATA(1), "attached");

	/* Bind guest I/O page table */
	bind_pgtable(ioasid_fd, gva_ioasid, IOASID_FORMAT_X86_4LEVEL, gva_pgtable1, 48);
	sees(GPASID1, GVA, DATA(1), "bound");
	misses(GPASID1, DATA(1), "bound");
	misses(GPASID2, GVA, "another PASID");
	misses(UNTAGGED, GVA, "no PASID");
	sees(UNTAGGED, DATA(1), DATA(1), "no PASID");
	stands(gva_ioasid, 1, 0, "gva_ioasid");
	stands(gpa_ioasid, 2, 1, "gpa_ioasid");
	ok("5.5: DMA with a PASID goes by the page table of its address space, DMA without it as before");

	/* A second one, and the same address space under two PASIDs. */
	second = create_nesting(ioasid_fd, gpa_ioasid);
	attach_pasid(second, GPASID2);
	bind_pgtable(ioasid_fd, second, IOASID_FORMAT_X86_4LEVEL, gva_pgtable2, 48);
	attach_pasid(gva_ioasid, 0);
	attach_pasid(gva_ioasid, PASID_LAST);
	stands(gva_ioasid, 1, 0, "a device with three PASIDs");
	for (int round = 0; round < 3; round++) {
		sees(GPASID1, GVA, DATA(1), "the first");
		sees(GPASID2, GVA, DATA(2), "the second");
		sees(0, GVA, DATA(1), "PASID 0 is not the absence of one");
		sees(PASID_LAST, GVA, DATA(1), "20 bits");
		misses(UNTAGGED, GVA, "no PASID");
		show(X86, gva_pgtable2, GVA + PAGE, DATA(5));
		misses(GPASID2, GVA + PAGE, "not invalidated");
		invalidate(ioasid_fd, second, GVA + PAGE, PAGE);
		sees(GPASID2, GVA + PAGE, DATA(5), "invalidated");
		misses(GPASID1, GVA + PAGE, "another page table");
		put(leaf_of(X86, gva_pgtable2, GVA + PAGE), 0);
		invalidate(ioasid_fd, second, 0, 0);
	}
	other_is_well("5.5");
	ok("5.5: PASIDs from 0 to 2^20 - 1 have one address space each, or share one");

	nothing_else_is_there((__u32[]){ gpa_ioasid, gva_ioasid, second }, 3, "5.5");
	ok("5.5: nothing else has a number");

	/* What the parent does to its mapping shows under the PASID at once. */
	unmap(ioasid_fd, gpa_ioasid, 0, GUEST);
	misses(GPASID1, GVA, "the parent maps nothing");
	map(ioasid_fd, gpa_ioasid, 0, guest, GUEST, MAP_BOTH);
	sees(GPASID1, GVA, DATA(1), "the parent maps again");

	refuse_pasid(IOASID_ATTACH_DEVICE, gva_ioasid, GPASID1, EBUSY, "attaching a PASID twice");
	refuse_pasid(IOASID_ATTACH_DEVICE, second, GPASID1, EBUSY, "attaching a PASID elsewhere too");
	refuse_pasid(IOASID_ATTACH_DEVICE, gpa_ioasid, PASID_LAST + 1, EINVAL, "a PASID of 21 bits");
	refuse_pasid(IOASID_ATTACH_DEVICE, gpa_ioasid, ~0U, EINVAL, "a PASID of 32 bits");
	refuse_pasid(IOASID_DETACH_DEVICE, gva_ioasid, 7, ENOENT, "detaching what is not attached");
	refuse_pasid(IOASID_DETACH_DEVICE, second, GPASID1, ENOENT, "detaching it elsewhere");
	refuse_pasid(IOASID_DETACH_DEVICE, gpa_ioasid, GPASID1, ENOENT,
		     "detaching it from the parent, to which it was not attached");
	refuse_pasid(IOASID_ATTACH_DEVICE, 4000, 7, ENOENT, "a PASID and no such IOASID");
	{
		struct ioasid_attach_device at_data = at_pasid(gva_ioasid, 7);

		at_data.flags = 0;
		must_refuse(ioasid_fd, IOASID_ATTACH_DEVICE, &at_data, EINVAL,
			    "user_pasid without its flag");
		at_data = at_pasid(gva_ioasid, 7);
		at_data.device = 4000;
		must_refuse(ioasid_fd, IOASID_ATTACH_DEVICE, &at_data, ENOENT,
			    "a PASID of no device");
	}
	must_refuse(ioasid_fd, IOASID_FREE, by_value(gva_ioasid), EBUSY,
		    "freeing what a PASID is attached to");
	if (tagged_dma(PASID_LAST + 1, IOASID_SIM_DMA_READ, GVA, before, 1) != EINVAL)
		die("DMA with 21 bits of PASID is not refused");

	/* An address space that is no child takes PASIDs too. */
	giova_ioasid = alloc_ioasid(ioasid_fd);
	attach_pasid(giova_ioasid, 9);
	map(ioasid_fd, giova_ioasid, GVA, guest + DATA(6), PAGE, MAP_BOTH);
	sees(9, GVA, DATA(6), "an address space that is no child");
	misses(9, DATA(6), "an address space that is no child");
	stands(giova_ioasid, 1, 0, "by PASID alone");

	/* DMA without a PASID goes on by itself, and back. */
	detach(ioasid_fd, dev1.id, gpa_ioasid);
	misses(UNTAGGED, DATA(1), "detached");
	sees(GPASID1, GVA, DATA(1), "the device itself is detached");
	sees(9, GVA, DATA(6), "the device itself is detached");
	stands(gpa_ioasid, 1, 2, "dev1 is there under no name of its own");
	{
		__u32 third = create_nesting(ioasid_fd, gpa_ioasid);

		refuse_pasid(IOASID_ATTACH_DEVICE, third, 11, EINVAL,
			     "a PASID to a child on which its device is not");
		misses(11, GVA, "refused");
		free_ioasid(ioasid_fd, third);
	}
	must_refuse(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(dev1.id), EBUSY,
		    "unbinding a device whose PASIDs are attached");
	attach(ioasid_fd, dev1.id, gpa_ioasid);

	/* A PASID that was attached to the parent first goes back there. */
	attach_pasid(gpa_ioasid, 12);
	sees(12, DATA(1), DATA(1), "a PASID at the parent");
	attach_pasid(gva_ioasid, 12);
	sees(12, GVA, DATA(1), "and at the child");
	refuse_pasid(IOASID_DETACH_DEVICE, gpa_ioasid, 12, EBUSY, "detaching the parent first");
	detach_pasid(gva_ioasid, 12);
	sees(12, DATA(1), DATA(1), "at the parent again");
	detach_pasid(gpa_ioasid, 12);
	misses(12, DATA(1), "nowhere");

	detach_pasid(gva_ioasid, GPASID1);
	misses(GPASID1, GVA, "detached");
	misses(GPASID1, DATA(1), "detached, it does not fall to the parent");
	sees(0, GVA, DATA(1), "another PASID of the same space");
	detach_pasid(giova_ioasid, 9);
	free_ioasid(ioasid_fd, giova_ioasid);
	detach_pasid(gva_ioasid, 0);
	detach_pasid(gva_ioasid, PASID_LAST);
	free_ioasid(ioasid_fd, gva_ioasid);
	sees(GPASID2, GVA, DATA(2), "the other space");
	detach_pasid(second, GPASID2);
	free_ioasid(ioasid_fd, second);
	stands(gpa_ioasid, 2, 0, "after 5.5");
	ok("5.5: detached, a PASID reaches nothing");
}

/* PASIDs below two levels of nesting, and devices that share their group. */
static void nested_deeper(void)
{
	__u32 child = create_nesting(ioasid_fd, gpa_ioasid), grandchild;

	attach(ioasid_fd, dev1.id, child);
	map_child(ioasid_fd, child, 16 * MIB, DATA(4), 8 * PAGE, MAP_BOTH);
	grandchild = create_nesting(ioasid_fd, child);
	attach_pasid(grandchild, 5);
	map_child(ioasid_fd, grandchild, GVA, 16 * MIB + PAGE, PAGE, IOASID_MAP_READ | IOASID_MAP_WRITE);
	sees(5, GVA, DATA(4) + PAGE, "two levels");
	stands(grandchild, 1, 0, "two levels");
	stands(child, 1, 1, "two levels");
	detach_pasid(grandchild, 5);
	misses(5, GVA, "two levels, detached");
	misses(5, 16 * MIB, "two levels, detached");
	free_ioasid(ioasid_fd, grandchild);
	detach(ioasid_fd, dev1.id, child);
	free_ioasid(ioasid_fd, child);
	ok("a PASID's address space may be nested deeper");
}

static void shared_group(const char *name)
{
	struct ioasid_bind_device share = simulated(name, 0);

	share.flags |= IOASID_BIND_SHARE;
	share.with = dev1.id;
	must(ioasid_fd, IOASID_BIND_DEVICE, &share, "BIND_DEVICE with SHARE");
	attach(ioasid_fd, share.device, gpa_ioasid);
	refuse_pasid(IOASID_ATTACH_DEVICE, gpa_ioasid, 5, EBUSY,
		     "a PASID of a device that shares its group");
	refuse_pasid(IOASID_ATTACH_DEVICE, 4000, 5, ENOENT, "the same, and no such IOASID");
	misses(5, DATA(1), "refused");
	sees(UNTAGGED, DATA(1), DATA(1), "refused");
	detach(ioasid_fd, share.device, gpa_ioasid);
	must(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(share.device), "UNBIND_DEVICE");
	attach_pasid(gpa_ioasid, 5);
	sees(5, DATA(1), DATA(1), "alone in its group again");
	detach_pasid(gpa_ioasid, 5);
}

/* ------------------------------------------------------------------ */
/* 5.7: BIND_PASID_TABLE                                                */
/* ------------------------------------------------------------------ */

static __u32 pasidtbl_ioasid;

static void format_is(const struct pasid_format *format, __u64 table, const char *when)
{
	struct ioasid_info info = get_info(ioasid_fd, pasidtbl_ioasid);

	if (!(info.flags & IOASID_INFO_PASID_TABLE) != !format ||
	    !(info.flags & IOASID_INFO_MAP_DMA) != !!format ||
	    info.format != (format ? format->number : 0) || info.format_addr != table)
		die("%s: flags %#x, format %u at %#llx", when, info.flags, info.format,
		    info.format_addr);
	if (info.pasid_formats != 0x1e)
		die("%s: the formats are %#llx", when, info.pasid_formats);
}

static void table_in_format(const struct pasid_format *format, enum stage stage, __u32 bits)
{
	__u32 pasid = GPASID1, far = (1U << bits) - 1, next = GPASID1 + 1;
	size_t step = 1UL << page_shift_of(stage);
	__u64 table, first, second, entry;
	size_t a = 16 * PAGE, b = 32 * PAGE, c = 48 * PAGE;

	tables_used = 0;
	table = new_table(format->root_size ?: 64UL << bits, 64 * KIB);
	first = one_page(stage, GVA, a);
	second = one_page(stage, GVA, b);
	show(stage, second, GVA + step, c);

	sees(UNTAGGED, a, a, "before pasidtbl_ioasid");
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, format->number, table, bits);
	format_is(format, table, "bound");
	misses(UNTAGGED, a, "no PASID");
	misses(UNTAGGED, GVA, "no PASID");
	misses(pasid, GVA, "no entry");

	/* An entry is read when DMA first uses it: what was not there before has not been kept. */
	entry = format->entry(table, pasid);
	format->fill(entry, stage, first);
	format->fill(format->entry(table, far), stage, second);
	sees(pasid, GVA, a, "an entry");
	misses(pasid, GVA + step, "an entry");
	misses(pasid, a, "an entry");
	sees(far, GVA, b, "the last entry");
	sees(far, GVA + step, c, "the last entry");
	misses(next, GVA, "the next entry");
	if (far < PASID_LAST)
		misses(far + 1, GVA, "behind the table");
	misses(PASID_LAST ^ pasid, GVA, "far behind");
	misses(UNTAGGED, GVA, "no PASID");
	stands(gpa_ioasid, 2, 1, "what was read has no number");
	stands(pasidtbl_ioasid, 1, 0, "what was read has no number");
	other_is_well("a PASID table");

	/* A change has no effect before the invalidation: of the entry, */
	format->fill(entry, stage, second);
	sees(pasid, GVA, a, "an entry that has changed");
	invalidate_pasids(pasidtbl_ioasid, next, 1);
	invalidate_pasids(pasidtbl_ioasid, 0, pasid);
	sees(pasid, GVA, a, "invalidated beside it");
	invalidate_pasids(pasidtbl_ioasid, pasid, 1);
	sees(pasid, GVA, b, "invalidated");
	/* of the page table that it names, under one PASID and the other, */
	show(stage, second, GVA + step, a);
	sees(pasid, GVA + step, c, "a page table that has changed");
	invalidate_pasids(pasidtbl_ioasid, pasid, 1);
	sees(pasid, GVA + step, a, "invalidated");
	sees(far, GVA + step, c, "not invalidated");
	invalidate_pasids(pasidtbl_ioasid, 0, 0);
	sees(far, GVA + step, a, "all is invalidated");
	/* and of one that is not present any more. */
	sees(pasid, GVA, b, "read again");
	put(entry, 0);
	sees(pasid, GVA, b, "an entry that is gone");
	invalidate_pasids(pasidtbl_ioasid, pasid, PASID_LAST);
	misses(pasid, GVA, "an entry that is gone, invalidated");
	sees(far, GVA, b, "the other entry");

	/* What entries lead to follows the parent at once. */
	unmap(ioasid_fd, gpa_ioasid, 0, GUEST);
	misses(far, GVA, "the parent maps nothing");
	map(ioasid_fd, gpa_ioasid, 0, guest, GUEST, MAP_BOTH);
	sees(far, GVA, b, "the parent maps again");

	/* To be read again, after detach and attach, and after unbind and bind. */
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	misses(far, GVA, "detached");
	sees(UNTAGGED, a, a, "detached");
	format->fill(format->entry(table, far), stage, first);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	sees(far, GVA, a, "attached again");
	unbind_pasids(pasidtbl_ioasid);
	format_is(NULL, 0, "unbound");
	misses(far, GVA, "unbound");
	misses(UNTAGGED, a, "unbound: a child that maps nothing");
	bind_pasids(pasidtbl_ioasid, format->number, table, bits);
	sees(far, GVA, a, "bound again");
	unbind_pasids(pasidtbl_ioasid);
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	sees(UNTAGGED, a, a, "after all");
}

/* The sequence of 5.7, with what it does under a table that is bound. */
static void pasid_table_and_attached(void)
{
	__u64 gpa_pasid_table, gva_pgtable1, other;
	__u32 gva_ioasid;

	tables_used = 0;
	gpa_pasid_table = new_table(VTD->root_size, PAGE);
	gva_pgtable1 = one_page(X86, GVA, DATA(1));
	other = one_page(X86, GVA, DATA(2));
	vtd_fill(vtd_entry(gpa_pasid_table, GPASID1), X86, other);
	vtd_fill(vtd_entry(gpa_pasid_table, GPASID2), X86, other);
	put(vtd_entry(gpa_pasid_table, 3), VTD_PASSES);

	/* Attach dev1 to pasidtbl_ioasid */
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	/* Bind PASID table */
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, gpa_pasid_table, 20);
	sees(GPASID1, GVA, DATA(2), "by its entry");
	sees(GPASID2, GVA, DATA(2), "by its entry");

	/* A pass-through entry. */
	sees(3, DATA(2), DATA(2), "a pass-through entry");
	misses(3, GVA, "a pass-through entry");
	put(vtd_entry(gpa_pasid_table, 3), 0);
	sees(3, DATA(2), DATA(2), "a pass-through entry that is gone");
	/* It is not the program's to detach. */
	refuse_pasid(IOASID_DETACH_DEVICE, gpa_ioasid, 3, ENOENT, "detaching an entry's PASID");
	refuse_pasid(IOASID_DETACH_DEVICE, pasidtbl_ioasid, GPASID1, ENOENT,
		     "detaching an entry's PASID");
	invalidate_pasids(pasidtbl_ioasid, 3, 1);
	misses(3, DATA(2), "a pass-through entry, invalidated");

	stands(gpa_ioasid, 2, 1, "entries have no number");
	nothing_else_is_there((__u32[]){ gpa_ioasid, pasidtbl_ioasid }, 2, "5.7");

	/* vIOMMU detects a new GVA I/O space created */
	gva_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	/* Attach dev1 to the new address space, with gpasid1 */
	attach_pasid(gva_ioasid, GPASID1);
	misses(GPASID1, GVA, "attached");
	/* Bind guest I/O page table */
	bind_pgtable(ioasid_fd, gva_ioasid, IOASID_FORMAT_X86_4LEVEL, gva_pgtable1, 48);
	sees(GPASID1, GVA, DATA(1), "what is attached goes before the entry");
	sees(GPASID2, GVA, DATA(2), "the other by its entry");
	invalidate_pasids(pasidtbl_ioasid, 0, 0);
	sees(GPASID1, GVA, DATA(1), "all is invalidated");
	show(X86, gva_pgtable1, GVA, DATA(7));
	sees(GPASID1, GVA, DATA(1), "a change in gva_pgtable1");
	invalidate(ioasid_fd, gva_ioasid, 0, 0);
	sees(GPASID1, GVA, DATA(7), "a change in gva_pgtable1, invalidated");
	must_refuse(ioasid_fd, IOASID_FREE, by_value(gva_ioasid), EBUSY, "freeing gva_ioasid");
	nothing_else_is_there((__u32[]){ gpa_ioasid, pasidtbl_ioasid, gva_ioasid }, 3, "5.7");

	detach_pasid(gva_ioasid, GPASID1);
	free_ioasid(ioasid_fd, gva_ioasid);
	sees(GPASID1, GVA, DATA(2), "by its entry again");
	ok("5.7: a PASID that is attached goes before its entry, and falls back to it");

	must_refuse(ioasid_fd, IOASID_FREE, by_value(gpa_ioasid), EBUSY, "freeing gpa_ioasid");
	must_refuse(ioasid_fd, IOASID_FREE, by_value(pasidtbl_ioasid), EBUSY,
		    "freeing what a PASID table is bound to, with a device");
	must_refuse(ioasid_fd, IOASID_UNBIND_DEVICE, by_value(dev1.id), EBUSY, "unbinding dev1");
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);

	/* FREE takes the bound table with it. */
	free_ioasid(ioasid_fd, pasidtbl_ioasid);
	pasidtbl_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	format_is(NULL, 0, "a new child");
	misses(GPASID1, GVA, "a new child");
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
}

static void malformed(void)
{
	__u64 table, root, entry, nowhere = 64 * MIB;
	const __u64 absent[] = {
		0,				/* not present */
		3 << 6 | 1,			/* nested: not what a PASID table here can mean */
		0 << 6 | 1, 5 << 6 | 1, 7 << 6 | 1,	/* no PGTT that there is */
	};

	tables_used = 0;
	table = new_table(VTD->root_size, PAGE);
	root = one_page(X86, GVA, DATA(1));
	entry = vtd_entry(table, GPASID1);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, table, 10);
	for (size_t i = 0; i < sizeof(absent) / sizeof(*absent); i++) {
		vtd_fill(entry, X86, root);
		put(entry, absent[i]);
		misses(GPASID1, GVA, "an entry that is none");
		vtd_fill(entry, X86, root);
		sees(GPASID1, GVA, DATA(1), "what was not there was not kept");
		invalidate_pasids(pasidtbl_ioasid, GPASID1, 1);
	}
	/* A page table, and a table of entries, where the parent maps nothing. */
	vtd_fill(entry, X86, nowhere);
	misses(GPASID1, GVA, "a page table that is nowhere");
	invalidate_pasids(pasidtbl_ioasid, 0, 0);
	put(table, nowhere | 1);
	misses(GPASID1, GVA, "an entry that is nowhere");
	put(table, ~0UL);
	misses(GPASID1, GVA, "a directory of ones");
	unbind_pasids(pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, nowhere, 20);
	misses(GPASID1, GVA, "a directory that is nowhere");
	unbind_pasids(pasidtbl_ioasid);
	/* The table at the end of addresses. */
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_ARM_CD, -64UL, 20);
	misses(PASID_LAST, GVA, "a directory at the end of addresses");
	misses(0, GVA, "a directory at the end of addresses");
	unbind_pasids(pasidtbl_ioasid);
	/* A page table that leads to itself. */
	table = new_table(PAGE, PAGE);
	for (unsigned int i = 0; i < 512; i++)
		put(table + i * 8, table | 0x27);
	root = new_table(VTD->root_size, PAGE);
	vtd_fill(vtd_entry(root, 1), X86, table);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, root, 10);
	{
		int error = tagged_dma(1, IOASID_SIM_DMA_READ, 0x5000000, before, 1);

		if (error != ENOSPC)
			die("a page table that leads to itself: %s", strerror(error));
		ok("a page table that leads to itself (%s): %s", strerror(error),
		   explanation(ioasid_fd));
	}
	vtd_fill(vtd_entry(root, 1), X86, one_page(X86, GVA, DATA(1)));
	sees(1, GVA, DATA(1), "what could not be read was not kept");
	unbind_pasids(pasidtbl_ioasid);
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	stands(gpa_ioasid, 2, 1, "after malformed tables");
	ok("5.7: entries that nobody could mean are none");
}

static void refused_tables(void)
{
	struct ioasid_bind_pasid_table bind_data;
	struct ioasid_invalidate_cache inv_data;
	struct ioasid_map_dma dma_map;
	struct ioasid_bind_pgtable pgtable = page_table(pasidtbl_ioasid, IOASID_FORMAT_X86_4LEVEL,
							TABLES, 48);
	__u32 fresh = create_nesting(ioasid_fd, gpa_ioasid), unused = alloc_ioasid(ioasid_fd);

	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
#define BIND(...)	IOASID_BIND_PASID_TABLE, pasid_table(__VA_ARGS__)
	refuse_table(BIND(4000, 1, TABLES, 10), ENOENT, "a PASID table for no IOASID");
	refuse_table(BIND(unused, 1, TABLES, 10), ENODEV, "a PASID table without a device");
	refuse_table(BIND(gpa_ioasid, 1, TABLES, 10), EINVAL, "a PASID table on no child");
	refuse_table(BIND(pasidtbl_ioasid, 1, TABLES, 0), EINVAL, "pasid_bits 0");
	refuse_table(BIND(pasidtbl_ioasid, 1, TABLES, 21), EINVAL, "pasid_bits 21");
	refuse_table(BIND(pasidtbl_ioasid, 1, TABLES, ~0U), EINVAL, "pasid_bits 2^32 - 1");
	refuse_table(BIND(pasidtbl_ioasid, 1, TABLES + 2048, 10), EINVAL, "a misaligned table");
	refuse_table(BIND(pasidtbl_ioasid, 2, TABLES + 32, 10), EINVAL, "a misaligned table of Arm");
	refuse_table(BIND(pasidtbl_ioasid, 0, TABLES, 10), EOPNOTSUPP, "format 0");
	refuse_table(BIND(pasidtbl_ioasid, 5, TABLES, 10), EOPNOTSUPP, "format 5");
#undef BIND
	bind_data = pasid_table(pasidtbl_ioasid, 1, TABLES, 10);
	bind_data.flags = 1;
	refuse_table(IOASID_BIND_PASID_TABLE, bind_data, EINVAL, "an unknown flag");
	bind_data = pasid_table(pasidtbl_ioasid, 1, TABLES, 10);
	bind_data.__reserved = 1;
	refuse_table(IOASID_BIND_PASID_TABLE, bind_data, EINVAL, "a reserved field");
	bind_data = pasid_table(pasidtbl_ioasid, 1, TABLES, 10);
	bind_data.argsz--;
	refuse_table(IOASID_BIND_PASID_TABLE, bind_data, EINVAL, "a short argsz");
	refuse_table(IOASID_UNBIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 0, 0, 0), ENOENT,
		     "unbinding nothing");
	refuse_table(IOASID_UNBIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 1, 0, 0), EINVAL,
		     "unbinding with a format");

	/* What is mapped, or bound, excludes it, and the other way round. */
	map_child(ioasid_fd, pasidtbl_ioasid, GVA, 0, PAGE, MAP_BOTH);
	refuse_table(IOASID_BIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 1, TABLES, 10), EBUSY,
		     "a PASID table where something is mapped");
	unmap(ioasid_fd, pasidtbl_ioasid, GVA, PAGE);
	bind_pgtable(ioasid_fd, pasidtbl_ioasid, IOASID_FORMAT_X86_4LEVEL, TABLES, 48);
	refuse_table(IOASID_BIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 1, TABLES, 10), EBUSY,
		     "a PASID table where a page table is bound");
	refuse_table(IOASID_UNBIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 0, 0, 0), ENOENT,
		     "unbinding a PASID table where a page table is bound");
	unbind_pgtable(ioasid_fd, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, TABLES, 10);
	refuse_table(IOASID_BIND_PASID_TABLE, pasid_table(pasidtbl_ioasid, 1, TABLES, 10), EBUSY,
		     "a second PASID table");
	must_refuse(ioasid_fd, IOASID_BIND_PGTABLE, &pgtable, EBUSY,
		    "a page table where a PASID table is bound");
	pgtable = page_table(pasidtbl_ioasid, 0, 0, 0);
	must_refuse(ioasid_fd, IOASID_UNBIND_PGTABLE, &pgtable, ENOENT,
		    "unbinding a page table where a PASID table is bound");
	dma_map = mapping(pasidtbl_ioasid, GVA, NULL, PAGE, MAP_BOTH);
	must_refuse(ioasid_fd, IOASID_MAP_DMA, &dma_map, EBUSY,
		    "mapping where a PASID table is bound");
	{
		struct ioasid_unmap_dma dma_unmap = {
			.argsz = sizeof(dma_unmap), .ioasid = pasidtbl_ioasid, .size = PAGE,
		};

		must_refuse(ioasid_fd, IOASID_UNMAP_DMA, &dma_unmap, EBUSY,
			    "unmapping where a PASID table is bound");
	}
	inv_data = invalidation(pasidtbl_ioasid, 0, 0);
	inv_data.size = 1;
	must_refuse(ioasid_fd, IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "ALL with a range");
	inv_data = invalidation(pasidtbl_ioasid, 1, ~0UL);
	inv_data.iova = 2;
	must_refuse(ioasid_fd, IOASID_INVALIDATE_CACHE, &inv_data, EOVERFLOW, "a range that wraps");
	unbind_pasids(pasidtbl_ioasid);
	inv_data = invalidation(pasidtbl_ioasid, 0, 0);
	must_refuse(ioasid_fd, IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "nothing is bound");
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	free_ioasid(ioasid_fd, fresh);
	free_ioasid(ioasid_fd, unused);
}

/* More PASIDs than are kept at a time, each with a page table of its own. */
static void many(void)
{
	enum { NR = 400 };
	__u64 table, entries[NR], roots[NR];
	__u32 deeper;

	tables_used = 0;
	table = new_table(VTD->root_size, PAGE);
	for (__u32 i = 0; i < NR; i++) {
		/* They lie close together, and far apart. */
		entries[i] = vtd_entry(table, i < NR / 2 ? i : PASID_LAST - 37 * i);
		/* One path to the leaf is enough for all: only the root differs. */
		roots[i] = i % 8 ? roots[i - i % 8] : one_page(X86, GVA, DATA(i / 8 + 1));
		vtd_fill(entries[i], X86, roots[i]);
	}
	/* The table may lie below two levels of nesting as well. */
	deeper = create_nesting(ioasid_fd, gpa_ioasid);
	attach(ioasid_fd, dev1.id, deeper);
	map_child(ioasid_fd, deeper, 0, 0, GUEST, MAP_BOTH);
	free_ioasid(ioasid_fd, pasidtbl_ioasid);
	pasidtbl_ioasid = create_nesting(ioasid_fd, deeper);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, table, 20);
	for (int round = 0; round < 2; round++)
		for (__u32 i = 0; i < NR; i++)
			sees(i < NR / 2 ? i : PASID_LAST - 37 * i, GVA, DATA(i / 8 + 1), "many");
	stands(gpa_ioasid, 2, 1, "many PASIDs");
	stands(deeper, 1, 1, "many PASIDs");
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	free_ioasid(ioasid_fd, pasidtbl_ioasid);
	detach(ioasid_fd, dev1.id, deeper);
	free_ioasid(ioasid_fd, deeper);
	pasidtbl_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	ok("5.7: %d PASIDs, with a table in an address space that is itself nested", NR);

	/* By attaching, as many as the context may have devices. */
	{
		__u32 attached = 0;
		int error = 0;

		for (; attached < 1000 && !error; attached++) {
			struct ioasid_attach_device at_data = at_pasid(gpa_ioasid, attached);

			if (ioctl(ioasid_fd, IOASID_ATTACH_DEVICE, &at_data) < 0)
				error = errno;
		}
		attached -= !!error;
		if (attached < 200 || (error && error != ENOSPC))
			die("after %u PASIDs: %s", attached, strerror(error));
		for (__u32 pasid = 0; pasid < attached; pasid++) {
			if (pasid % 16 == 0)
				sees(pasid, DATA(2), DATA(2), "many attached");
			detach_pasid(gpa_ioasid, pasid);
			if (pasid % 16 == 0)
				misses(pasid, DATA(2), "many detached");
		}
		ok("%u PASIDs of a device are attached at a time", attached);
	}
	stands(gpa_ioasid, 2, 1, "many PASIDs detached");
}

/* ------------------------------------------------------------------ */
/* At the same time                                                     */
/* ------------------------------------------------------------------ */

static atomic_bool over;
static atomic_ulong transfers;

/* DMA goes where an entry leads or led: the two pages of `guest` that are filled with 1 and 2. */
static void *keeps_reading(void *argument)
{
	unsigned char bytes[SAMPLE];

	(void)argument;
	while (!over) {
		int error = tagged_dma(GPASID1, IOASID_SIM_DMA_READ, GVA, bytes, SAMPLE);

		if (error)
			die("DMA fails while entries are invalidated: %s. %s", strerror(error),
			    explanation(ioasid_fd));
		if (!all_bytes_are(bytes, SAMPLE, 1) && !all_bytes_are(bytes, SAMPLE, 2))
			die("DMA goes elsewhere while entries are invalidated: byte %#x", bytes[0]);
		transfers++;
	}
	return NULL;
}

static void at_the_same_time(void)
{
	pthread_t threads[3];
	__u64 table, first, second;
	double end = now() + 1.5;
	unsigned long rounds = 0;

	tables_used = 0;
	table = new_table(VTD->root_size, PAGE);
	first = one_page(X86, GVA, DATA(1));
	second = one_page(X86, GVA, DATA(2));
	memset(guest + DATA(1), 1, PAGE);
	memset(guest + DATA(2), 2, PAGE);
	/* Where DMA goes that is translated by the parent alone. */
	map(ioasid_fd, gpa_ioasid, GVA, before, PAGE, MAP_BOTH);
	vtd_fill(vtd_entry(table, GPASID1), X86, first);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, table, 20);
	for (int i = 0; i < 3; i++)
		if (pthread_create(&threads[i], NULL, keeps_reading, NULL))
			die("no thread");
	while (now() < end) {
		put(vtd_entry(table, GPASID1) + 16, (++rounds & 1 ? second : first) | 1);
		invalidate_pasids(pasidtbl_ioasid, GPASID1, 1);
	}
	over = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	unbind_pasids(pasidtbl_ioasid);
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	unmap(ioasid_fd, gpa_ioasid, GVA, PAGE);
	ok("%lu transfers while an entry was changed and invalidated %lu times", transfers, rounds);
}

/* ------------------------------------------------------------------ */
/* Faults                                                               */
/* ------------------------------------------------------------------ */

static struct ioasid_fault next_fault(void)
{
	struct ioasid_fault fault;

	if (read(ioasid_fd, &fault, sizeof(fault)) != sizeof(fault))
		die("no record of a fault: %s", strerror(errno));
	return fault;
}

static void drop_faults(void)
{
	struct ioasid_fault records[16];

	while (read(ioasid_fd, records, sizeof(records)) > 0)
		;
}

/* A guest's page fault under a PASID: the record has it, the entry is made, the DMA goes on. */
static void recoverable(void)
{
	unsigned char bytes[SAMPLE] = { 0 };
	struct ioasid_sim_dma dma = {
		.argsz = sizeof(dma),
		.flags = IOASID_SIM_DMA_READ | IOASID_SIM_DMA_PASID | IOASID_SIM_DMA_RECOVERABLE,
		.device = dev1.id,
		.iova = GVA,
		.data = (uintptr_t)bytes,
		.size = SAMPLE,
		.pasid = GPASID1,
	};
	struct ioasid_complete_fault answer = { .argsz = sizeof(answer) };
	struct ioasid_fault fault;
	__u64 table;

	drop_faults();
	tables_used = 0;
	table = new_table(VTD->root_size, PAGE);
	attach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	bind_pasids(pasidtbl_ioasid, IOASID_PASID_FORMAT_VTD, table, 20);
	must(ioasid_fd, IOASID_SIM_DMA, &dma, "SIM_DMA");
	fault = next_fault();
	if (!dma.fault || fault.id != dma.fault || fault.pasid != GPASID1 ||
	    fault.flags != (IOASID_FAULT_READ | IOASID_FAULT_RECOVERABLE | IOASID_FAULT_PASID) ||
	    fault.ioasid != pasidtbl_ioasid || fault.address != GVA || fault.device != dev1.id)
		die("the record is of fault %u, PASID %u, IOASID %u, flags %#x", fault.id,
		    fault.pasid, fault.ioasid, fault.flags);
	vtd_fill(vtd_entry(table, GPASID1), X86, one_page(X86, GVA, DATA(1)));
	fill(guest + DATA(1), SAMPLE, ++next_seed);
	answer.id = fault.id;
	must(ioasid_fd, IOASID_COMPLETE_FAULT, &answer, "COMPLETE_FAULT");
	dma.flags |= IOASID_SIM_DMA_CONTINUE;
	must(ioasid_fd, IOASID_SIM_DMA, &dma, "SIM_DMA");
	if (dma.done != SAMPLE || dma.fault)
		die("the DMA does not go on");
	must_equal(bytes, guest + DATA(1), SAMPLE, "the DMA that went on");
	unbind_pasids(pasidtbl_ioasid);
	detach(ioasid_fd, dev1.id, pasidtbl_ioasid);
	misses(8, GVA, "nowhere");
	fault = next_fault();
	if (fault.ioasid || fault.pasid != 8 || !(fault.flags & IOASID_FAULT_PASID))
		die("a PASID that is attached to nothing faults in IOASID %u", fault.ioasid);
	drop_faults();
	ok("5.6: faults with a PASID are told of under the PASID table's IOASID, and repaired");
}

/* ------------------------------------------------------------------ */
/* Real devices                                                         */
/* ------------------------------------------------------------------ */

static void real_device(void)
{
	__u32 child, other;
	struct ioasid_info info;

	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	child = create_nesting(ioasid_fd, gpa_ioasid);
	other = alloc_ioasid(ioasid_fd);
	refuse_pasid(IOASID_ATTACH_DEVICE, child, GPASID1, EOPNOTSUPP, "a PASID of a real device");
	refuse_pasid(IOASID_ATTACH_DEVICE, gpa_ioasid, GPASID1, EOPNOTSUPP, "the same at a parent");
	refuse_pasid(IOASID_ATTACH_DEVICE, other, GPASID1, EOPNOTSUPP, "the same at an empty IOASID");
	if (!strstr(explanation(ioasid_fd), "one table"))
		die("the reason is not said: %s", explanation(ioasid_fd));
	refuse_pasid(IOASID_ATTACH_DEVICE, 4000, GPASID1, ENOENT, "the same at no IOASID");
	refuse_pasid(IOASID_ATTACH_DEVICE, child, PASID_LAST + 1, EINVAL, "a PASID of 21 bits");
	refuse_pasid(IOASID_DETACH_DEVICE, gpa_ioasid, GPASID1, ENOENT, "detaching a PASID");
	attach(ioasid_fd, dev1.id, child);
	refuse_table(IOASID_BIND_PASID_TABLE,
		     pasid_table(child, IOASID_PASID_FORMAT_VTD, TABLES, 10), EOPNOTSUPP,
		     "a PASID table under a real device");
	if (!strstr(explanation(ioasid_fd), "one table"))
		die("the reason is not said: %s", explanation(ioasid_fd));
	info = get_info(ioasid_fd, child);
	if (info.pasid_formats || info.flags & IOASID_INFO_PASID_TABLE)
		die("GET_INFO speaks of PASID tables: %#llx", info.pasid_formats);
	ok("real devices have no PASIDs here");
}

int main(int arguments, char **argument)
{
	int next = 2;

	if (arguments < 3)
		die("usage: pasids NODE DEVICE OTHER | pasids NODE --vfio ADDRESS:GROUP");
	ioasid_fd = open(argument[1], O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (ioasid_fd < 0)
		die("cannot open %s: %s", argument[1], strerror(errno));
	make_guest(GUEST);
	next += take_device(argument + next, &dev1);
	bind_device(&dev1, ioasid_fd);
	if (dev1.is_edu) {
		real_device();
		return EXIT_SUCCESS;
	}
	if (!has_extension(ioasid_fd, IOASID_EXT_USER_PASID_TABLE))
		die("there are simulated devices, but USER_PASID_TABLE is 0");
	take_device(argument + next, &dev2);
	bind_device(&dev2, ioasid_fd);
	gpa_ioasid = alloc_ioasid(ioasid_fd);
	attach(ioasid_fd, dev1.id, gpa_ioasid);
	attach(ioasid_fd, dev2.id, gpa_ioasid);
	map(ioasid_fd, gpa_ioasid, 0, guest, GUEST, MAP_BOTH);

	vsva();
	nested_deeper();
	shared_group("sim3");
	/* Make vPASID space nested on GPA space */
	pasidtbl_ioasid = create_nesting(ioasid_fd, gpa_ioasid);
	for (size_t f = 0; f < NR_FORMATS; f++) {
		for (unsigned int s = 0; s < formats[f].nr_stages; s++) {
			table_in_format(&formats[f], formats[f].stages[s], 6);
			table_in_format(&formats[f], formats[f].stages[s], 11);
			if (formats[f].root_size)
				table_in_format(&formats[f], formats[f].stages[s], 20);
		}
		ok("5.7: PASID tables: %s", formats[f].name);
	}
	pasid_table_and_attached();
	malformed();
	refused_tables();
	many();
	recoverable();
	at_the_same_time();
	other_is_well("after everything");
	stands(gpa_ioasid, 2, 1, "after everything");

	/* Everything is given back, in order and by the close. */
	free_ioasid(ioasid_fd, pasidtbl_ioasid);
	attach_pasid(gpa_ioasid, 1);
	close(ioasid_fd);
	ioasid_fd = open_node(argument[1]);
	for (int tries = 0;; tries++) {
		struct ioasid_bind_device bind_data = simulated(dev1.name, 0);

		if (!ioctl(ioasid_fd, IOASID_BIND_DEVICE, &bind_data))
			break;
		if (errno != EBUSY || tries > 500)
			die("the device is not free after the close: %s", strerror(errno));
		sleep_ms(10);
	}
	ok("the close lets go of everything");
	return EXIT_SUCCESS;
}
