//! What a walk through a page table costs, with memory that is a plain slice: per leaf in a full
//! table of 2^20 pages, and for a single page. The target is 100 ns per leaf.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ioasid::Range;
use ioasid::pgtable::{Budget, Format, Root, TableMemory, walk};

const LEAVES: u64 = 1 << 20;
/// Where the leaves lead.
const TARGET: u64 = 1 << 40;

/// Memory from address 0 on.
struct Slice(Vec<u8>);

impl TableMemory for Slice {
    type Error = Infallible;

    fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Infallible> {
        let start = address as usize;
        let Some(found) = self.0.get(start..start + buffer.len()) else { return Ok(false) };
        buffer.copy_from_slice(found);
        Ok(true)
    }
}

/// A table of `levels` levels with pages from IOVA 0 on. `table` makes an entry for a table of
/// the level that it is given, counted from 0.
fn full(
    page_shift: u32,
    levels: u32,
    leaf: impl Fn(u64) -> u64,
    table: impl Fn(u32, u64) -> u64,
) -> Slice {
    let page = 1u64 << page_shift;
    let (mut words, mut behind): (Vec<u64>, u64) = (vec![], 0);
    // The tables of each level, from the top, lie behind each other; the root is at 0.
    for level in (0..levels).rev() {
        let stride = page_shift - 3;
        let count = |level: u32| LEAVES.div_ceil(1 << (stride * (level + 1)));
        let entries = LEAVES.div_ceil(1 << (stride * level));
        behind += count(level) * page;
        words.extend((0..entries).map(|index| match level {
            0 => leaf(TARGET + index * page),
            _ => table(level - 1, behind + index * page),
        }));
        words.resize((behind / 8) as usize, 0);
    }
    Slice(words.into_iter().flat_map(u64::to_le_bytes).collect())
}

fn formats() -> [(Root, Slice); 4] {
    let arm = |address: u64| address | 0x443;
    let amd = |level: u32, address: u64| address | 3 << 61 | u64::from(level + 1) << 9 | 1;
    let root = |format, width| Root::new(format, 0, width).expect("a root of the format");
    [
        (root(Format::X86Level4, 48), full(12, 4, |target| target | 7, |_, address| address | 7)),
        (root(Format::VtdSecond, 48), full(12, 4, |target| target | 3, |_, address| address | 3)),
        (root(Format::AmdV1, 48), full(12, 4, |target| target | 3 << 61 | 1, amd)),
        (root(Format::ArmLpae64k, 48), full(16, 3, arm, |_, address| address | 3)),
    ]
}

fn walk_range(root: &Root, range: Range, memory: &mut Slice) -> u64 {
    let mut budget = Budget { tables: 1 << 20, leaves: 1 << 21 };
    let mut leaves = 0;
    let result = walk(root, range, memory, &mut budget, &mut |leaf| {
        black_box(leaf);
        leaves += 1;
    });
    result.expect("the budget is enough");
    leaves
}

fn walks(criterion: &mut Criterion) {
    let mut formats = formats();
    let mut group = criterion.benchmark_group("walk 2^20 leaves");
    group.throughput(Throughput::Elements(LEAVES));
    for (root, memory) in &mut formats {
        assert_eq!(walk_range(root, Range::ALL, memory), LEAVES);
        group.bench_function(BenchmarkId::from_parameter(root.format()), |bencher| {
            bencher.iter(|| walk_range(root, Range::ALL, memory));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("walk one page");
    for (root, memory) in &mut formats {
        let range = Range::new(0x1234_5000, 0x1234_5fff).expect("a range");
        assert_eq!(walk_range(root, range, memory), 1);
        group.bench_function(BenchmarkId::from_parameter(root.format()), |bencher| {
            bencher.iter(|| walk_range(root, black_box(range), memory));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1000))
        .configure_from_args();
    walks(&mut criterion);
    criterion.final_summary();
}
