/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * page-tables NODE DEVICE OTHER [SECONDS]
 *
 * BIND_PGTABLE, INVALIDATE_CACHE and UNBIND_PGTABLE with page tables of every format, which this
 * program encodes by itself: as the specifications have it, and not as the daemon reads it. DEVICE
 * is at the child that a table is bound to, OTHER stays at the parent and must notice nothing. After
 * every step DEVICE is asked what it reaches. The devices are written as in device.h, and have a
 * group each.
 *
 * Rules: leaves of each size and right translate; a change has no effect until it is
 * invalidated, and has from then on, while everything else stays in place; what leaves lead to
 * follows the parent at once; a table may lie in memory of any kind; a table that nobody could
 * mean is refused in bounded time, or is a hole, and harms nobody.
 *
 * SECONDS (default 4): how long a table changes while it is bound, invalidated and used.
 */
#include "reach.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

/* Guest-physical: where the guest's memory, the tables and other tables are. */
#define MEMORY_GPA	(16 * MIB)
#define MEMORY		(4 * MIB)
#define TABLES_GPA	(64 * MIB)
#define TABLES		(2 * MIB)
#define NOWHERE		(128 * MIB)
/* The IOVA of small pages, and at the parent a hole. */
#define SMALL		(2 * MIB)

#define READ_ONLY	IOASID_MAP_READ
#define WRITE_ONLY	IOASID_MAP_WRITE

static int node;
static struct device device, other;
static __u32 parent, child;
static bool thorough;			/* a simulated device has the time for everything */

/* ------------------------------------------------------------------ */
/* Formats                                                              */
/* ------------------------------------------------------------------ */

/* Levels count from 0, the table whose entries are for the smallest pages. */
struct format {
	__u32 number;
	__u32 addr_width;
	const char *name;
	unsigned int page_shift;
	unsigned int levels;
	__u64 (*table)(__u64 gpa, unsigned int level);		/* of the table that it leads to */
	__u64 (*leaf)(__u64 gpa, unsigned int level, __u32 prot);
	bool write_only;		/* the format has pages that can only be written */
};

/* Intel SDM 4.5: present, writable, user; accessed and dirty; page size; execute disable. */
static __u64 x86_table(__u64 gpa, unsigned int level)
{
	(void)level;
	return gpa | 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5;
}

static __u64 x86_leaf(__u64 gpa, unsigned int level, __u32 prot)
{
	return gpa | 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1ULL << 63 |
	       (prot & IOASID_MAP_WRITE ? 1 << 1 : 0) | (level ? 1 << 7 : 0);
}

/* VT-d 9.8: read, write; page size; snoop. */
static __u64 vtd_table(__u64 gpa, unsigned int level)
{
	(void)level;
	return gpa | 1 << 0 | 1 << 1;
}

static __u64 vtd_leaf(__u64 gpa, unsigned int level, __u32 prot)
{
	return gpa | (prot & IOASID_MAP_READ ? 1 << 0 : 0) |
	       (prot & IOASID_MAP_WRITE ? 1 << 1 : 0) | 1 << 11 | (level ? 1 << 7 : 0);
}

/* AMD IOMMU 2.2.3: present, next level (11:9, the tables' levels count from 1), FC, IR, IW. */
static __u64 amd_table(__u64 gpa, unsigned int level)
{
	return gpa | 1 << 0 | (__u64)(level + 1) << 9 | 1ULL << 61 | 1ULL << 62;
}

static __u64 amd_leaf(__u64 gpa, unsigned int level, __u32 prot)
{
	(void)level;
	return gpa | 1 << 0 | 1ULL << 60 | (prot & IOASID_MAP_READ ? 1ULL << 61 : 0) |
	       (prot & IOASID_MAP_WRITE ? 1ULL << 62 : 0);
}

/* Arm ARM D8.3: table or page, or block; AP[2:1], inner shareable, access flag, PXN, UXN. */
static __u64 arm_table(__u64 gpa, unsigned int level)
{
	(void)level;
	return gpa | 3;
}

static __u64 arm_leaf(__u64 gpa, unsigned int level, __u32 prot)
{
	return gpa | (level ? 1 : 3) | 1 << 6 | (prot & IOASID_MAP_WRITE ? 0 : 1 << 7) | 3 << 8 |
	       1 << 10 | 3ULL << 53;
}

static const struct format formats[] = {
	{ IOASID_FORMAT_X86_4LEVEL, 48, "x86, 4 levels", 12, 4, x86_table, x86_leaf, false },
	{ IOASID_FORMAT_VTD_SECOND, 39, "VT-d second stage, 3 levels", 12, 3, vtd_table, vtd_leaf,
	  true },
	{ IOASID_FORMAT_ARM_LPAE_4K, 39, "Arm, 4 KiB, 3 levels", 12, 3, arm_table, arm_leaf, false },
	{ IOASID_FORMAT_AMD_V1, 48, "AMD, 4 levels", 12, 4, amd_table, amd_leaf, true },
	/* Simulated devices have the time for these too. */
	{ IOASID_FORMAT_X86_5LEVEL, 57, "x86, 5 levels", 12, 5, x86_table, x86_leaf, false },
	{ IOASID_FORMAT_VTD_SECOND, 48, "VT-d second stage, 4 levels", 12, 4, vtd_table, vtd_leaf,
	  true },
	{ IOASID_FORMAT_VTD_SECOND, 57, "VT-d second stage, 5 levels", 12, 5, vtd_table, vtd_leaf,
	  true },
	{ IOASID_FORMAT_AMD_V1, 39, "AMD, 3 levels", 12, 3, amd_table, amd_leaf, true },
	{ IOASID_FORMAT_AMD_V1, 57, "AMD, 5 levels", 12, 5, amd_table, amd_leaf, true },
	{ IOASID_FORMAT_AMD_V1, 64, "AMD, 6 levels", 12, 6, amd_table, amd_leaf, true },
	{ IOASID_FORMAT_ARM_LPAE_4K, 48, "Arm, 4 KiB, 4 levels", 12, 4, arm_table, arm_leaf, false },
	{ IOASID_FORMAT_ARM_LPAE_4K, 33, "Arm, 4 KiB, 33 bits", 12, 3, arm_table, arm_leaf, false },
	{ IOASID_FORMAT_ARM_LPAE_64K, 48, "Arm, 64 KiB, 3 levels", 16, 3, arm_table, arm_leaf, false },
	{ IOASID_FORMAT_ARM_LPAE_64K, 42, "Arm, 64 KiB, 2 levels", 16, 2, arm_table, arm_leaf, false },
};
#define NR_FORMATS	(sizeof(formats) / sizeof(*formats))
#define NR_BRIEF	3		/* what real devices are tried with */

static unsigned int shift_of(const struct format *format, unsigned int level)
{
	return format->page_shift + level * (format->page_shift - 3);
}

static __u64 size_of(const struct format *format, unsigned int level)
{
	return 1ULL << shift_of(format, level);
}

/* ------------------------------------------------------------------ */
/* Tables                                                               */
/* ------------------------------------------------------------------ */

static unsigned char *tables;		/* at TABLES_GPA; the root comes first */
static size_t tables_used;

static __u64 *at_gpa(__u64 gpa)
{
	if (gpa < TABLES_GPA || gpa >= TABLES_GPA + TABLES)
		die("no table is at %#llx", gpa);
	return (__u64 *)(tables + (gpa - TABLES_GPA));
}

static __u64 new_table(const struct format *format)
{
	size_t size = size_of(format, 0);
	__u64 gpa = TABLES_GPA + tables_used;

	tables_used += size;
	if (tables_used > TABLES)
		die("there is no room for so many tables");
	memset(at_gpa(gpa), 0, size);
	return gpa;
}

static void begin_table(const struct format *format)
{
	tables_used = 0;
	new_table(format);
}

/* Which tables this program has made: what an entry leads to is not decoded. */
static struct made {
	__u64 *entry;
	__u64 gpa;
} made[64];
static unsigned int nr_made;

/* The entry for `iova` in a table of `level`, which is made if it does not exist. */
static __u64 *entry_of(const struct format *format, __u64 iova, unsigned int level)
{
	__u64 gpa = TABLES_GPA;

	if (tables_used == size_of(format, 0))
		nr_made = 0;
	for (unsigned int at = format->levels - 1;; at--) {
		__u64 mask = (1ULL << (format->page_shift - 3)) - 1;
		__u64 *entry = at_gpa(gpa) + (iova >> shift_of(format, at) & mask);
		unsigned int i;

		if (at == level)
			return entry;
		for (i = 0; i < nr_made && made[i].entry != entry; i++)
			;
		if (i == nr_made) {
			if (nr_made == sizeof(made) / sizeof(*made))
				die("too many tables");
			made[nr_made++] = (struct made){ entry, new_table(format) };
			*entry = format->table(made[i].gpa, at - 1);
		}
		gpa = made[i].gpa;
	}
}

/* Entries are written at once, as guests do. */
static void set(__u64 *entry, __u64 value)
{
	__atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static void set_leaf(const struct format *format, __u64 iova, unsigned int level, __u64 gpa,
		     __u32 prot)
{
	set(entry_of(format, iova, level), format->leaf(gpa, level, prot));
}

static void set_hole(const struct format *format, __u64 iova, unsigned int level)
{
	set(entry_of(format, iova, level), 0);
}

/* Where edu devices see their window, by the smallest page around it. */
static void set_window(const struct format *format)
{
	__u64 at = WINDOW_IOVA & ~(size_of(format, 0) - 1);

	if (device.is_edu)
		set_leaf(format, at, 0, at, MAP_BOTH);
}

static void bind(const struct format *format)
{
	bind_pgtable(node, child, format->number, TABLES_GPA, format->addr_width);
}

static void other_is_well(const char *when)
{
	reaches(&other, MEMORY_GPA + 5 * PAGE, 5 * PAGE, MAP_BOTH, when);
	faults(&other, SMALL, when);
}

static void refuse(unsigned long command, const void *argument, int error, const char *what)
{
	must_refuse(node, command, argument, error, what);
}

static void holds(const struct format *format, __u64 leaves, const char *when)
{
	struct ioasid_info info = get_info(node, child);

	leaves += device.is_edu && format;
	if (info.nr_mappings != leaves)
		die("%s: there are %llu mappings instead of %llu", when, info.nr_mappings, leaves);
	if (info.format != (format ? format->number : 0) ||
	    info.format_addr != (format ? TABLES_GPA : 0))
		die("%s: table of format %u at %#llx", when, info.format, info.format_addr);
	if (!(info.flags & IOASID_INFO_MAP_DMA) == !format)
		die("%s: flags %#x do not say whether MAP_DMA works", when, info.flags);
	if (!(info.flags & IOASID_INFO_SHADOW) || info.locked_bytes)
		die("%s: flags %#x, %llu bytes charged", when, info.flags, info.locked_bytes);
}

/* ------------------------------------------------------------------ */
/* Leaves, and changes                                                  */
/* ------------------------------------------------------------------ */

/*
 * A superpage of 2 MiB has the first 2 MiB of the guest's memory and lies within the 28 bits of edu
 * devices; that of 512 MiB (Arm with 64 KiB) has to be far above.
 */
static __u64 super_iova(const struct format *format)
{
	return format->page_shift == 16 ? 512 * MIB : 8 * MIB;
}

/* Where in the superpage the guest's memory begins. */
static __u64 super_inside(const struct format *format)
{
	return format->page_shift == 16 ? MEMORY_GPA : 0;
}

static __u64 small_page(const struct format *format, unsigned int n)
{
	return SMALL + n * size_of(format, 0);
}

static size_t memory_page(const struct format *format, unsigned int n)
{
	return n * size_of(format, 0);
}

static void set_small(const struct format *format, unsigned int n, unsigned int page, __u32 prot)
{
	set_leaf(format, small_page(format, n), 0, MEMORY_GPA + memory_page(format, page), prot);
}

static __u64 set_super(const struct format *format)
{
	set_leaf(format, super_iova(format), 1, MEMORY_GPA - super_inside(format), MAP_BOTH);
	return super_iova(format) + super_inside(format);
}

static void leaves_of_each_size(const struct format *format)
{
	__u64 page = size_of(format, 0), super;
	__u64 nr = 3 + format->write_only;

	begin_table(format);
	set_window(format);
	set_small(format, 0, 1, MAP_BOTH);
	set_small(format, 1, 3, READ_ONLY);
	if (format->write_only)
		set_small(format, 3, 6, WRITE_ONLY);
	super = set_super(format);
	reaches_nothing(&device, SMALL, "before the bind");
	bind(format);
	holds(format, nr, "bound");

	reaches(&device, SMALL, page, MAP_BOTH, "a small page");
	reaches(&device, SMALL + page - SAMPLE, 2 * page - SAMPLE, MAP_BOTH, "the end of it");
	reaches(&device, small_page(format, 1), 3 * page, READ_ONLY, "a read-only page");
	faults(&device, small_page(format, 2), "a hole behind pages");
	faults(&device, SMALL - page, "a hole in front of pages");
	if (format->write_only)
		reaches(&device, small_page(format, 3), 6 * page, WRITE_ONLY, "a write-only page");
	reaches(&device, super, 0, MAP_BOTH, "a superpage");
	reaches(&device, super + 2 * MIB - SAMPLE, 2 * MIB - SAMPLE, MAP_BOTH, "its end");
	if (format->page_shift == 12)
		faults(&device, super + 2 * MIB, "behind a superpage");
	else
		reaches(&device, super + MEMORY - SAMPLE, MEMORY - SAMPLE, MAP_BOTH, "512 MiB");
	ok("%s: small pages and superpages, with their rights", format->name);
}

/* The entry changes to another page, goes, and comes, each with and without an invalidation. */
static void changes_count_when_invalidated(const struct format *format)
{
	__u64 page = size_of(format, 0), super = super_iova(format) + super_inside(format);

	set_small(format, 0, 9, MAP_BOTH);
	reaches(&device, SMALL, page, MAP_BOTH, "changed, and not invalidated");
	invalidate(node, child, small_page(format, 1), page);
	reaches(&device, SMALL, page, MAP_BOTH, "changed, and something else invalidated");
	invalidate(node, child, SMALL + page / 2, 1);
	reaches(&device, SMALL, 9 * page, MAP_BOTH, "changed, and one of its bytes invalidated");

	set_hole(format, SMALL, 0);
	set_small(format, 2, 11, MAP_BOTH);
	reaches(&device, SMALL, 9 * page, MAP_BOTH, "gone, and not invalidated");
	faults(&device, small_page(format, 2), "new, and not invalidated");
	invalidate(node, child, SMALL, page);
	faults(&device, SMALL, "gone, and invalidated");
	faults(&device, small_page(format, 2), "new, and something else invalidated");
	invalidate(node, child, 0, 0);
	reaches(&device, small_page(format, 2), 11 * page, MAP_BOTH, "new, and all invalidated");
	reaches(&device, small_page(format, 1), 3 * page, READ_ONLY, "the same all the time");
	reaches(&device, super, 0, MAP_BOTH, "the same all the time");

	/* Rights alone. */
	set_small(format, 1, 3, MAP_BOTH);
	invalidate(node, child, small_page(format, 1), page);
	reaches(&device, small_page(format, 1), 3 * page, MAP_BOTH, "no longer read-only");
	set_small(format, 2, 11, READ_ONLY);
	invalidate(node, child, small_page(format, 2), page);
	reaches(&device, small_page(format, 2), 11 * page, READ_ONLY, "now read-only");
	holds(format, 3 + format->write_only, "after changes");
	ok("%s: a change counts when it is invalidated, by a range or all, and not before",
	   format->name);
}

static atomic_bool watches;
static __u64 watched;
static atomic_ulong looks;

/* A simulated device reads from a page that stays as it is; an edu device does so in between. */
static void *watch(void *unused)
{
	unsigned char seen[SAMPLE];

	(void)unused;
	while (watches) {
		int error = simulated_dma(node, device.id, IOASID_SIM_DMA_READ, watched, seen, SAMPLE,
					  NULL);

		if (error)
			die("what has not changed faults during an invalidation: %s",
			    explanation(node));
		looks++;
	}
	return NULL;
}

/* A superpage becomes as many small pages, a few of them different, and back. */
static void superpages_become_small(const struct format *format)
{
	__u64 page = size_of(format, 0), super = super_iova(format), inside = super_inside(format);
	__u64 *entry = entry_of(format, super, 1), table = new_table(format);
	unsigned int nr = page / sizeof(__u64);
	bool watches_it = !device.is_edu;
	pthread_t watcher;

	looks = 0;
	watched = small_page(format, 1);
	watches = watches_it;
	if (watches_it && pthread_create(&watcher, NULL, watch, NULL))
		die("cannot start a thread");

	for (unsigned int i = 0; i < nr; i++)
		at_gpa(table)[i] = format->leaf(MEMORY_GPA - inside + i * page, 0, MAP_BOTH);
	at_gpa(table)[inside / page + 5] = 0;
	at_gpa(table)[inside / page + 6] =
		format->leaf(MEMORY_GPA + memory_page(format, 20), 0, READ_ONLY);
	set(entry, format->table(table, 0));
	reaches(&device, super + inside + 5 * page, 5 * page, MAP_BOTH, "still a superpage");
	/* Not less than what was one entry is read anew. */
	invalidate(node, child, super + inside + 6 * page, page);
	faults(&device, super + inside + 5 * page, "a hole where a superpage was");
	reaches(&device, super + inside + 6 * page, 20 * page, READ_ONLY, "another small page");
	reaches(&device, super + inside + 7 * page, 7 * page, MAP_BOTH, "the page beside it");
	reaches(&device, super + inside + 2 * MIB - SAMPLE, 2 * MIB - SAMPLE, MAP_BOTH,
		"the end of the small pages");
	holds(format, 3 + format->write_only + nr - 2, "a superpage as small pages");

	set_super(format);
	reaches(&device, super + inside + 6 * page, 20 * page, READ_ONLY, "still small pages");
	invalidate(node, child, super + inside + 9 * page, 1);
	reaches(&device, super + inside + 5 * page, 5 * page, MAP_BOTH, "a superpage again");
	reaches(&device, super + inside + 6 * page, 6 * page, MAP_BOTH, "a superpage again");
	holds(format, 3 + format->write_only, "a superpage again");

	if (watches_it) {
		double give_up = now() + 30;

		for (int i = 0; i < 200 || looks < 10; i++) {
			if (now() > give_up)
				die("only %lu looks during the invalidations", looks);
			set(entry, i % 2 ? format->leaf(MEMORY_GPA - inside, 1, MAP_BOTH) :
					   format->table(table, 0));
			set_small(format, 2, 11 + i % 2, MAP_BOTH);
			if (i % 3)
				invalidate(node, child, super, page);
			else
				invalidate(node, child, 0, 0);
		}
		set_super(format);
		set_small(format, 2, 11, READ_ONLY);
		invalidate(node, child, 0, 0);
		watches = false;
		pthread_join(watcher, NULL);
	}
	if (watches_it)
		ok("%s: superpage to small pages and back, while what has not changed is used (%lu times)",
		   format->name, looks);
	else
		ok("%s: superpage to small pages and back", format->name);
}

static void follows_the_parent(const struct format *format)
{
	__u64 page = size_of(format, 0), super = super_iova(format) + super_inside(format);
	unsigned char *spare = shared_memory(TABLES);

	unmap(node, parent, MEMORY_GPA, MEMORY);
	faults(&device, small_page(format, 1), "while the parent maps nothing");
	faults(&device, super, "while the parent maps nothing");
	map(node, parent, MEMORY_GPA, guest, MEMORY, READ_ONLY);
	reaches(&device, small_page(format, 1), 3 * page, READ_ONLY, "while the parent is read-only");
	reaches(&device, super + 7 * page, 7 * page, READ_ONLY, "while the parent is read-only");
	unmap(node, parent, MEMORY_GPA, MEMORY);
	/* In two pieces: a superpage leads to both. */
	map(node, parent, MEMORY_GPA + MIB, guest + MIB, MEMORY - MIB, MAP_BOTH);
	map(node, parent, MEMORY_GPA, guest, MIB, MAP_BOTH);
	reaches(&device, small_page(format, 1), 3 * page, MAP_BOTH, "as the parent maps it again");
	reaches(&device, super + MIB - SAMPLE, MIB - SAMPLE, MAP_BOTH, "as the parent maps it");
	reaches(&device, super + MIB, MIB, MAP_BOTH, "as the parent maps it");
	unmap(node, parent, MEMORY_GPA, MEMORY);
	map(node, parent, MEMORY_GPA, guest, MEMORY, MAP_BOTH);

	/* Other tables at the same place are read when something is invalidated, and then only. */
	unmap(node, parent, TABLES_GPA, TABLES);
	reaches(&device, small_page(format, 1), 3 * page, MAP_BOTH, "without its table");
	map(node, parent, TABLES_GPA, spare, TABLES, READ_ONLY);
	reaches(&device, small_page(format, 1), 3 * page, MAP_BOTH, "before another table is read");
	invalidate(node, child, small_page(format, 1), page);
	faults(&device, small_page(format, 1), "after another, empty table was read");
	reaches(&device, super, 0, MAP_BOTH, "where it was not read");
	unmap(node, parent, TABLES_GPA, TABLES);
	map(node, parent, TABLES_GPA, tables, TABLES, READ_ONLY);
	invalidate(node, child, 0, 0);
	reaches(&device, small_page(format, 1), 3 * page, MAP_BOTH, "with its own table again");
	munmap(spare, TABLES);
	ok("%s: what leaves lead to follows the parent at once, the table itself when invalidated",
	   format->name);
}

static void largest_pages(const struct format *format)
{
	__u64 size = size_of(format, 2);

	if (format->levels < 3)
		return;
	/* IOVA and guest-physical address are the same, windows included. */
	begin_table(format);
	set_leaf(format, 0, 2, 0, MAP_BOTH);
	invalidate(node, child, 0, 0);
	reaches(&device, MEMORY_GPA, 0, MAP_BOTH, "the largest page");
	reaches(&device, MEMORY_GPA + MEMORY - SAMPLE, MEMORY - SAMPLE, MAP_BOTH, "its middle");
	faults(&device, MEMORY_GPA + MEMORY, "where the parent maps nothing");
	reaches(&device, SMALL, 0, 0, "what was small before");
	ok("%s: a page of %llu GiB", format->name, size / GIB);
}

/* AMD's pages of other sizes: the entry repeats, and its address says the size. */
static void pages_of_any_size(const struct format *format)
{
	__u64 *entry = entry_of(format, SMALL, 0), sized = 7 << 9;

	if (format->number != IOASID_FORMAT_AMD_V1)
		return;
	begin_table(format);
	set_window(format);
	/* 16 KiB at the guest's page 4: bits 13:12 of the size, below a clear bit. */
	entry = entry_of(format, SMALL, 0);
	for (int i = 0; i < 4; i++)
		set(entry + i, format->leaf(MEMORY_GPA + 4 * PAGE, 0, MAP_BOTH) | sized | 1 << 12);
	/* 4 MiB in the level above: two entries. */
	entry = entry_of(format, 8 * MIB, 1);
	for (int i = 0; i < 2; i++)
		set(entry + i, format->leaf(MEMORY_GPA, 1, READ_ONLY) | sized | 0x1ff << 12);
	invalidate(node, child, 0, 0);
	holds(format, 2, "pages of 16 KiB and of 4 MiB");
	reaches(&device, SMALL, 4 * PAGE, MAP_BOTH, "a page of 16 KiB");
	reaches(&device, SMALL + 4 * PAGE - SAMPLE, 8 * PAGE - SAMPLE, MAP_BOTH, "its end");
	faults(&device, SMALL + 4 * PAGE, "behind it");
	reaches(&device, 8 * MIB, 0, READ_ONLY, "a page of 4 MiB");
	reaches(&device, 12 * MIB - SAMPLE, 4 * MIB - SAMPLE, READ_ONLY, "its end");
	/* One of the four says something else: for its part, that counts. */
	set(entry_of(format, SMALL, 0) + 2, 0);
	invalidate(node, child, SMALL + PAGE, 1);
	reaches(&device, SMALL, 4 * PAGE, MAP_BOTH, "a page that is torn");
	faults(&device, SMALL + 2 * PAGE, "the torn part");
	ok("%s: pages of 16 KiB and of 4 MiB", format->name);
}

static void unbound_again(const struct format *format)
{
	struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
							  format->addr_width);
	struct ioasid_bind_pgtable nothing = page_table(child, 0, 0, 0);
	struct ioasid_map_dma dma_map = mapping(child, 32 * MIB, (void *)MEMORY_GPA, PAGE, MAP_BOTH);
	struct ioasid_unmap_dma dma_unmap = {
		.argsz = sizeof(dma_unmap), .flags = IOASID_UNMAP_ALL, .ioasid = child,
	};
	struct ioasid_invalidate_cache inv_data = invalidation(child, 0, 0);

	refuse(IOASID_BIND_PGTABLE, &bind_data, EBUSY, "BIND_PGTABLE while one is bound");
	refuse(IOASID_MAP_DMA, &dma_map, EBUSY, "MAP_DMA while a table is bound");
	refuse(IOASID_UNMAP_DMA, &dma_unmap, EBUSY, "UNMAP_DMA while a table is bound");
	unbind_pgtable(node, child);
	reaches_nothing(&device, MEMORY_GPA, "after the unbind");
	reaches_nothing(&device, SMALL, "after the unbind");
	reaches_nothing(&device, super_iova(format) + super_inside(format), "after the unbind");
	holds(NULL, 0, "after the unbind");
	refuse(IOASID_UNBIND_PGTABLE, &nothing, ENOENT, "UNBIND_PGTABLE of nothing");
	refuse(IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "INVALIDATE_CACHE of nothing");
	must(node, IOASID_MAP_DMA, &dma_map, "MAP_DMA after the unbind");
	if (!device.is_edu)
		reaches(&device, 32 * MIB, 0, MAP_BOTH, "mapped after the unbind");
	refuse(IOASID_BIND_PGTABLE, &bind_data, EBUSY, "BIND_PGTABLE over mappings");
	must(node, IOASID_UNMAP_DMA, &dma_unmap, "UNMAP_DMA after the unbind");
	ok("%s: unbound, nothing is left, and mappings are possible", format->name);
}

static void one_format(const struct format *format)
{
	leaves_of_each_size(format);
	changes_count_when_invalidated(format);
	superpages_become_small(format);
	if (thorough || format == formats)
		follows_the_parent(format);
	largest_pages(format);
	pages_of_any_size(format);
	other_is_well(format->name);
	unbound_again(format);
}

/* ------------------------------------------------------------------ */
/* Arguments                                                            */
/* ------------------------------------------------------------------ */

static void wrong_arguments(void)
{
	const struct format *x86 = &formats[0];
	struct ioasid_bind_pgtable good = page_table(child, x86->number, TABLES_GPA, 48);
	struct ioasid_info info = get_info(node, child);
	struct ioasid_invalidate_cache inv_data;
	struct ioasid_bind_pgtable bad;
	__u64 all = 0;

	for (size_t i = 0; i < NR_FORMATS; i++)
		all |= 1ULL << formats[i].number;
	if (info.formats != all || get_info(node, parent).formats)
		die("the child takes formats %#llx, its parent %#llx", info.formats,
		    get_info(node, parent).formats);
	ok("a child lists the formats that it takes");

	begin_table(x86);
	set_small(x86, 0, 1, MAP_BOTH);
	for (__u32 number = 0; number < 70; number++) {
		bad = good;
		bad.format = number;
		if (number > 63 || !(all >> number & 1))
			refuse(IOASID_BIND_PGTABLE, &bad, EOPNOTSUPP, "BIND_PGTABLE of no format");
	}
	bad = good;
	bad.addr_width = 39;
	refuse(IOASID_BIND_PGTABLE, &bad, EINVAL, "BIND_PGTABLE of another width");
	bad = good;
	bad.addr += 8;
	refuse(IOASID_BIND_PGTABLE, &bad, EINVAL, "BIND_PGTABLE that is not aligned");
	bad = good;
	bad.addr = NOWHERE;
	refuse(IOASID_BIND_PGTABLE, &bad, EFAULT, "BIND_PGTABLE of a root that is nowhere");
	bad = good;
	bad.addr = 1ULL << 51;
	refuse(IOASID_BIND_PGTABLE, &bad, EFAULT, "BIND_PGTABLE of a root high above");
	bad = good;
	bad.ioasid = parent;
	refuse(IOASID_BIND_PGTABLE, &bad, EINVAL, "BIND_PGTABLE to what is no child");
	bad = good;
	bad.ioasid = 12345;
	refuse(IOASID_BIND_PGTABLE, &bad, ENOENT, "BIND_PGTABLE to no IOASID");
	bad = good;
	bad.ioasid = create_nesting(node, parent);
	refuse(IOASID_BIND_PGTABLE, &bad, ENODEV, "BIND_PGTABLE to a child that never had a device");
	free_ioasid(node, bad.ioasid);
	inv_data = invalidation(parent, 0, 0);
	refuse(IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "INVALIDATE_CACHE of what is no child");
	holds(NULL, 0, "after refusals");

	bind(x86);
	inv_data = invalidation(child, 0, 0);
	inv_data.iova = PAGE;
	refuse(IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "INVALIDATE_CACHE of all, with a range");
	inv_data = invalidation(child, 0, PAGE);
	inv_data.size = 0;
	refuse(IOASID_INVALIDATE_CACHE, &inv_data, EINVAL, "INVALIDATE_CACHE of no bytes");
	inv_data = invalidation(child, -PAGE, 2 * PAGE);
	refuse(IOASID_INVALIDATE_CACHE, &inv_data, EOVERFLOW, "INVALIDATE_CACHE that wraps");
	/* Where nothing can be mapped there is nothing to invalidate. */
	invalidate(node, child, -PAGE, PAGE);
	invalidate(node, child, 1ULL << 47, 1ULL << 47);
	invalidate(node, child, 0, -1ULL);
	unbind_pgtable(node, child);
}

/* ------------------------------------------------------------------ */
/* Hostile tables                                                       */
/* ------------------------------------------------------------------ */

/* Binds a table that means much work; gives whether it was taken. */
static bool in_bounded_time(const struct format *format, bool may_fit, const char *what)
{
	struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
							  format->addr_width);
	double begin = now(), seconds;
	bool bound = ioctl(node, IOASID_BIND_PGTABLE, &bind_data) >= 0;

	seconds = now() - begin;
	if (bound ? !may_fit : errno != ENOSPC)
		die("%s: %s. %s", what, bound ? "success" : strerror(errno), explanation(node));
	if (seconds > 60)
		die("%s took %.1f s", what, seconds);
	ok("%s: %s after %.3f s%s%s", what, bound ? "bound" : "refused", seconds, bound ? "" : ": ",
	   bound ? "" : explanation(node));
	if (!bound) {
		holds(NULL, 0, what);
		reaches_nothing(&device, SMALL, what);
	}
	other_is_well(what);
	return bound;
}

/* Every entry leads to the table that it is in, and so at the end to 2^9 leaves each. */
static void self_reference(void)
{
	const struct format *x86 = &formats[0];

	begin_table(x86);
	for (unsigned int i = 0; i < 512; i++)
		at_gpa(TABLES_GPA)[i] = x86->table(TABLES_GPA, 0);
	in_bounded_time(x86, false, "a table that leads to itself");
}

/*
 * A table for each level that leads 512 times to the next, the last of which is empty: with the
 * addresses that devices have today, just as many as are read.
 */
static const struct format *ways_to_nothing(void)
{
	const struct format *format;
	__u64 gpa[6];

	for (format = formats; format->number != IOASID_FORMAT_AMD_V1; format++)
		;
	begin_table(format);
	gpa[0] = TABLES_GPA;
	for (unsigned int level = 1; level < format->levels; level++)
		gpa[level] = new_table(format);
	for (unsigned int level = 0; level + 1 < format->levels; level++)
		for (unsigned int i = 0; i < 512; i++)
			at_gpa(gpa[level])[i] = format->table(gpa[level + 1],
							      format->levels - 2 - level);
	return format;
}

static void many_ways_to_nothing(void)
{
	const struct format *format = ways_to_nothing();

	if (in_bounded_time(format, true, "a table that leads to nothing in 2^18 ways")) {
		reaches_nothing(&device, SMALL, "a table that leads to nothing");
		unbind_pgtable(node, child);
	}
}

static atomic_bool walks;

static void *walk(void *argument)
{
	struct ioasid_bind_pgtable *bind_data = argument;

	must(node, IOASID_BIND_PGTABLE, bind_data, "BIND_PGTABLE in a thread");
	walks = false;
	return NULL;
}

/* How often an IOASID was mapped and unmapped while a walk went on. */
static unsigned int rounds_beside(int fd, __u32 ioasid)
{
	unsigned int rounds = 0;

	while (walks) {
		map(fd, ioasid, GIB, guest, PAGE, MAP_BOTH);
		unmap(fd, ioasid, GIB, PAGE);
		rounds++;
	}
	return rounds;
}

/* A walk that lasts delays commands on its own family only. */
static void walks_beside(void)
{
	const struct format *format = ways_to_nothing();
	struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
							  format->addr_width);
	unsigned int rounds, looks = 0;
	__u32 alone = alloc_ioasid(node);
	pthread_t thread;

	detach(node, other.id, parent);
	attach(node, other.id, alone);
	walks = true;
	if (pthread_create(&thread, NULL, walk, &bind_data))
		die("no thread");
	rounds = rounds_beside(node, alone);
	pthread_join(thread, NULL);
	unbind_pgtable(node, child);
	walks = true;
	if (pthread_create(&thread, NULL, walk, &bind_data))
		die("no thread");
	while (walks) {
		get_info(node, child);
		looks++;
	}
	pthread_join(thread, NULL);
	unbind_pgtable(node, child);
	if (rounds < 10 || looks < 10)
		die("beside a walk another IOASID was mapped %u times, and its own looked at %u times",
		    rounds, looks);
	detach(node, other.id, alone);
	free_ioasid(node, alone);
	attach(node, other.id, parent);
	ok("beside a walk another IOASID was mapped and unmapped %u times, its own looked at %u times",
	   rounds, looks);
}

/* Who is killed in a walk leaves nothing bound, and the walk ends with him. */
static void killed_in_a_walk(void)
{
	const struct format *format = ways_to_nothing();
	struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
							  format->addr_width);
	double begin = now(), whole, rest;
	pid_t program;

	must(node, IOASID_BIND_PGTABLE, &bind_data, "BIND_PGTABLE that lasts");
	whole = now() - begin;
	unbind_pgtable(node, child);
	program = fork();
	if (program < 0)
		die("cannot fork");
	if (!program) {
		ioctl(node, IOASID_BIND_PGTABLE, &bind_data);
		_exit(EXIT_FAILURE);
	}
	sleep_ms(whole * 1000 / 8);
	kill(program, SIGKILL);
	if (waitpid(program, NULL, 0) != program)
		die("waitpid");
	begin = now();
	map(node, parent, 2 * GIB, guest, PAGE, MAP_BOTH);
	rest = now() - begin;
	unmap(node, parent, 2 * GIB, PAGE);
	holds(NULL, 0, "after a kill");
	refuse(IOASID_UNBIND_PGTABLE, &(struct ioasid_bind_pgtable){
		.argsz = sizeof(bind_data), .ioasid = child,
	}, ENOENT, "UNBIND_PGTABLE of what a killed program wanted");
	if (rest > whole / 2)
		die("a walk of %.3f s went on for %.3f s after its program was killed", whole, rest);
	ok("a walk of %.3f s ends with its program: %.3f s later its parent is mapped", whole, rest);
}

/* Few superpages, but what the parent maps there is many pieces. */
static void many_pieces(void)
{
	const struct format *x86 = &formats[0];
	__u64 pieces = 2000, super = GIB;

	for (__u64 i = 0; i < pieces; i++)
		map(node, parent, super + 2 * i * PAGE, guest + i % 512 * PAGE, PAGE, MAP_BOTH);
	begin_table(x86);
	for (unsigned int i = 0; i < 400; i++)
		set_leaf(x86, i * GIB, 2, super, MAP_BOTH);
	in_bounded_time(x86, false, "400 superpages that lead to 2000 pieces each");
	for (__u64 i = 20; i < 400; i++)
		set_hole(x86, i * GIB, 2);
	bind(x86);
	reaches(&device, 19 * GIB + 2 * PAGE, PAGE, MAP_BOTH, "20 of them");
	unbind_pgtable(node, child);
	unmap(node, parent, super, GIB);
}

static void nowhere_and_garbage(void)
{
	__u64 state = 88172645463325252ULL;
	unsigned int bound = 0, full = 0;

	for (size_t i = 0; i < NR_FORMATS; i++) {
		const struct format *format = &formats[i];

		if (!thorough && i >= NR_BRIEF)
			break;
		begin_table(format);
		set_small(format, 0, 1, MAP_BOTH);
		set_leaf(format, small_page(format, 1), 0, NOWHERE, MAP_BOTH);
		set_leaf(format, small_page(format, 2), 0, 1ULL << 47, MAP_BOTH);
		set(entry_of(format, 64 * size_of(format, 1), 1), format->table(NOWHERE, 0));
		set_window(format);
		bind(format);
		faults(&device, small_page(format, 1), "a page that is nowhere");
		faults(&device, small_page(format, 2), "a page that is nowhere");
		faults(&device, 64 * size_of(format, 1) & EDU_IOVA_LAST, "a table that is nowhere");
		reaches(&device, SMALL, memory_page(format, 1), MAP_BOTH, "beside pages that are nowhere");
		unbind_pgtable(node, child);
	}
	ok("pages and tables that are nowhere are holes");

	for (int round = 0; round < (thorough ? 300 : 20); round++) {
		const struct format *format = &formats[round % NR_FORMATS];
		struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
								  format->addr_width);
		__u64 *words = (__u64 *)tables;
		unsigned char seen[SAMPLE];

		for (size_t i = 0; i < 16 * PAGE / sizeof(*words); i++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			words[i] = state;
			/* Most entries of most rounds lead somewhere. */
			if (round % 4)
				words[i] &= 0xfff0000000000fff;
			if (round % 4 == 1)
				words[i] |= TABLES_GPA | (state >> 20 & 0xf000);
			if (round % 4 == 2)
				words[i] |= MEMORY_GPA | (state >> 20 & 0x1ff000);
			if (round % 4 == 3)
				words[i] |= (i & 1 ? TABLES_GPA | (state >> 20 & 0xf000) : 0) | 7;
		}
		if (!ioctl(node, IOASID_BIND_PGTABLE, &bind_data)) {
			bound++;
			for (int i = 0; i < 50 && !device.is_edu; i++)
				simulated_dma(node, device.id, IOASID_SIM_DMA_READ, i * 7 * MIB,
					      seen, SAMPLE, NULL);
			invalidate(node, child, 0, 0);
			unbind_pgtable(node, child);
		} else if (errno == ENOSPC) {
			full++;
		} else {
			die("garbage gives \"%s\". %s", strerror(errno), explanation(node));
		}
		holds(NULL, 0, "after garbage");
	}
	other_is_well("after garbage");
	ok("tables full of garbage are bound (%u) or refused for their size (%u), and unbound", bound,
	   full);
}

/* ------------------------------------------------------------------ */
/* Tables that change all the time                                      */
/* ------------------------------------------------------------------ */

static atomic_bool changes;
static atomic_ulong nr_changes, nr_transfers, nr_faults;

/* Leaves of all kinds in one table, and now and then the table itself. */
static void *change_entries(void *argument)
{
	const struct format *format = argument;
	__u64 *entry = entry_of(format, SMALL, 0), *above = entry_of(format, SMALL, 1), table = *above;
	unsigned int seed = 1;

	while (changes) {
		unsigned int which = rand_r(&seed) % 500, page = rand_r(&seed) % 512;

		switch (rand_r(&seed) % 16) {
		case 0:
			set(above, format->leaf(MEMORY_GPA, 1, MAP_BOTH));
			break;
		case 1:
			set(above, 0);
			break;
		case 2 ... 5:
			set(above, table);
			break;
		case 6:
			set(entry + which, (__u64)rand_r(&seed) << 32 | rand_r(&seed));
			break;
		default:
			set(entry + which, format->leaf(MEMORY_GPA + page * PAGE, 0,
							page % 3 ? MAP_BOTH : READ_ONLY));
		}
		nr_changes++;
	}
	return (void *)(uintptr_t)table;
}

static void *use_entries(void *unused)
{
	unsigned char data[SAMPLE];
	unsigned int seed = 2;

	(void)unused;
	while (changes) {
		__u64 iova = SMALL + rand_r(&seed) % 512 * PAGE;
		__u32 direction = rand_r(&seed) % 2 ? IOASID_SIM_DMA_READ : IOASID_SIM_DMA_WRITE;
		int error = simulated_dma(node, device.id, direction, iova, data, SAMPLE, NULL);

		if (error && error != EIO)
			die("DMA through a table that changes: %s", strerror(error));
		nr_transfers++;
		nr_faults += error == EIO;
	}
	return NULL;
}

static void *bind_and_unbind(void *argument)
{
	const struct format *format = argument;
	struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
							  format->addr_width);
	struct ioasid_bind_pgtable nothing = page_table(child, 0, 0, 0);

	while (changes) {
		if (ioctl(node, IOASID_UNBIND_PGTABLE, &nothing) < 0 && errno != ENOENT)
			die("UNBIND_PGTABLE beside others: %s. %s", strerror(errno),
			    explanation(node));
		if (ioctl(node, IOASID_BIND_PGTABLE, &bind_data) < 0 && errno != EBUSY)
			die("BIND_PGTABLE beside others: %s. %s", strerror(errno), explanation(node));
		sleep_ms(3);
	}
	return NULL;
}

/* The table changes under the daemon, which invalidates, binds and unbinds all the while. */
static void always_changing(const struct format *format, double seconds, bool rebind)
{
	struct ioasid_invalidate_cache inv_data;
	pthread_t changer, user, binder;
	unsigned long invalidations = 0;
	double end = now() + seconds;
	void *table;

	begin_table(format);
	set_window(format);
	set_small(format, 0, 1, MAP_BOTH);
	bind(format);
	changes = true;
	nr_changes = nr_transfers = nr_faults = 0;
	if (pthread_create(&changer, NULL, change_entries, (void *)format) ||
	    (!device.is_edu && pthread_create(&user, NULL, use_entries, NULL)) ||
	    (rebind && pthread_create(&binder, NULL, bind_and_unbind, (void *)format)))
		die("cannot start threads");
	while (now() < end) {
		unsigned int which = invalidations % 7;

		inv_data = invalidation(child, SMALL + which * 64 * PAGE, which ? 64 * PAGE : 0);
		if (!which)
			inv_data.iova = 0;
		if (ioctl(node, IOASID_INVALIDATE_CACHE, &inv_data) < 0 &&
		    !(rebind && errno == EINVAL))
			die("INVALIDATE_CACHE of a table that changes: %s. %s", strerror(errno),
			    explanation(node));
		invalidations++;
	}
	changes = false;
	pthread_join(changer, &table);
	if (!device.is_edu)
		pthread_join(user, NULL);
	if (rebind) {
		struct ioasid_bind_pgtable bind_data = page_table(child, format->number, TABLES_GPA,
								  format->addr_width);

		pthread_join(binder, NULL);
		if (ioctl(node, IOASID_BIND_PGTABLE, &bind_data) < 0 && errno != EBUSY)
			die("BIND_PGTABLE after others: %s. %s", strerror(errno), explanation(node));
	}

	/* The final table is what counts in the end. */
	set(entry_of(format, SMALL, 1), (uintptr_t)table);
	for (unsigned int i = 0; i < 500; i++)
		set_hole(format, SMALL + i * PAGE, 0);
	set_small(format, 0, 33, MAP_BOTH);
	set_small(format, 499, 44, READ_ONLY);
	invalidate(node, child, 0, 0);
	holds(format, 2, "the final table");
	reaches(&device, SMALL, 33 * PAGE, MAP_BOTH, "the final table");
	reaches(&device, SMALL + 499 * PAGE, 44 * PAGE, READ_ONLY, "the final table");
	faults(&device, SMALL + PAGE, "the final table");
	unbind_pgtable(node, child);
	other_is_well("beside a table that changes");
	ok("%s%s: %lu changes, %lu invalidations, %lu transfers of which %lu faulted; the final table "
	   "counts", format->name, rebind ? ", bound and unbound" : "", nr_changes, invalidations,
	   nr_transfers, nr_faults);
}

/* ------------------------------------------------------------------ */

static void map_tables(void)
{
	/* To be walked, a table need only be readable. */
	map(node, parent, TABLES_GPA, tables, TABLES, READ_ONLY);
}

static void tables_in_private_memory(void)
{
	unsigned char *shared = tables;

	unmap(node, parent, TABLES_GPA, TABLES);
	tables = mmap(NULL, TABLES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (tables == MAP_FAILED)
		die("mmap failed: %s", strerror(errno));
	map_tables();
	leaves_of_each_size(&formats[0]);
	changes_count_when_invalidated(&formats[0]);
	unbound_again(&formats[0]);
	unmap(node, parent, TABLES_GPA, TABLES);
	munmap(tables, TABLES);
	tables = shared;
	map_tables();
	ok("tables in private memory are walked as well");
}

int main(int argc, char **argv)
{
	double seconds = 4;
	int next = 2;

	if (argc < 4)
		die("usage: page-tables NODE DEVICE OTHER [SECONDS]");
	next += take_device(argv + next, &device);
	next += take_device(argv + next, &other);
	if (argv[next])
		seconds = number(argv[next++]);
	if (next != argc || device.is_edu != other.is_edu)
		die("name two devices, both simulated or both edu");
	thorough = !device.is_edu;
	make_guest(MEMORY);
	tables = shared_memory(TABLES);

	node = open_node(argv[1]);
	bind_device(&device, node);
	bind_device(&other, node);
	if (!has_extension(node, IOASID_EXT_USER_PAGE_TABLE))
		skip("the node does not walk page tables of programs");
	parent = alloc_ioasid(node);
	attach(node, device.id, parent);
	attach(node, other.id, parent);
	map_window(&device, parent);
	load(&device);
	load(&other);
	map(node, parent, MEMORY_GPA, guest, MEMORY, MAP_BOTH);
	map_tables();
	child = create_nesting(node, parent);
	attach(node, device.id, child);

	wrong_arguments();
	for (size_t i = 0; i < (thorough ? NR_FORMATS : NR_BRIEF); i++)
		one_format(&formats[i]);
	if (has_extension(node, IOASID_EXT_PRIVATE_MEMORY))
		tables_in_private_memory();
	self_reference();
	many_ways_to_nothing();
	if (thorough) {
		many_pieces();
		walks_beside();
		killed_in_a_walk();
	}
	nowhere_and_garbage();
	always_changing(&formats[0], seconds / 2, false);
	always_changing(&formats[1], seconds / 2, true);

	detach(node, device.id, child);
	reaches(&device, MEMORY_GPA, 0, MAP_BOTH, "back at the parent");
	free_ioasid(node, child);
	ok("all is given back");
	return 0;
}
