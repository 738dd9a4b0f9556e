//! What the engine itself costs, without hardware: time to map, unmap and look up with a given
//! number of mappings, and memory per mapping. The targets are 2 µs and 150 bytes at 10^6. Of nested
//! address spaces: time to compose a table, and to follow a change in it, for each mapping of 4 KiB;
//! the target is 3 µs at 10^6.

use std::alloc::{GlobalAlloc, Layout, System};
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use ioasid::{
    Bind, Context, Cookie, DeviceId, Entry, Geometry, GroupId, Hardware, Ioasid, Limits, Map,
    MapKind, MemoryId, Owner, PageSizes, Plan, Prot, Range, Unmap,
};

const PAGE: u64 = 0x1000;
const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// How many mappings one measurement changes.
const CHANGED: u64 = 1_000;

/// Counts the bytes that are allocated at a time.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to `System` unchanged, so that its guarantees hold; counting
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Tables that take every change and keep nothing.
struct Nothing;

impl Hardware for Nothing {
    type Error = Infallible;

    fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Infallible> {
        black_box((group, entry));
        Ok(())
    }

    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Infallible> {
        black_box((group, iova, size));
        Ok(())
    }

    fn clear(&mut self, group: GroupId) -> Result<(), Infallible> {
        black_box(group);
        Ok(())
    }
}

/// In which order mappings are made and named: one after the other, or all over the place.
#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Shuffled,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Shuffled => "shuffled",
        }
    }

    /// The n-th place of `count`, each of which comes up once. (`count` has no factor but 2 and
    /// 5, so that it has none in common with the multiplier.)
    fn place(self, n: u64, count: u64) -> u64 {
        match self {
            Self::Sequential => n,
            Self::Shuffled => n * 618_033_989 % count,
        }
    }
}

fn execute(context: &mut Context, plan: Plan) {
    black_box(context.execute(plan, &mut Nothing).expect("nothing refuses"));
}

/// The mapping for a place: a page, and a page free after it.
fn map_at(place: u64) -> Map {
    let (iova, vaddr, prot) = (place * 2 * PAGE, place * PAGE, Prot::READ_WRITE);
    Map { iova, size: PAGE, vaddr, prot, owner: Owner(1), kind: MapKind::Memory }
}

fn map(context: &mut Context, ioasid: Ioasid, place: u64) {
    let plan = context.plan_map(ioasid, map_at(place), MemoryId(place));
    execute(context, plan.expect("there is room"));
}

fn unmap(context: &mut Context, ioasid: Ioasid, place: u64) {
    let unmap = Unmap::Range { iova: place * 2 * PAGE, size: PAGE };
    let plan = context.plan_unmap(ioasid, unmap);
    execute(context, plan.expect("unmap is legal"));
}

/// A context with one attached device and nothing mapped.
fn empty() -> (Context, Ioasid) {
    let limits =
        Limits { max_ioasids: 2, max_devices: 1, max_mappings: u32::MAX, max_registered: 1 };
    let mut context = Context::new(limits);
    let ioasid = context.alloc().expect("alloc");
    let geometry = Geometry {
        pgsizes: PageSizes(PAGE),
        permitted: [Range::ALL].into_iter().collect(),
        max_mappings: u32::MAX,
    };
    let (group, name, cookie) = (GroupId(1), "device".to_owned(), Cookie(0));
    let bind = Bind { group, geometry, simulated: true, name, cookie };
    let device = context.bind(bind).expect("bind");
    let plan = context.plan_attach(device, ioasid);
    execute(&mut context, plan.expect("attach"));
    (context, ioasid)
}

/// A context with `count` mappings, made in `order`.
fn filled(count: u64, order: Order) -> (Context, Ioasid) {
    let (mut context, ioasid) = empty();
    for n in 0..count {
        map(&mut context, ioasid, order.place(n, count));
    }
    (context, ioasid)
}

/// Maps or unmaps `CHANGED` mappings of `count` and puts them back outside of the measurement.
fn change(
    criterion: &mut Criterion,
    name: &str,
    timed: fn(&mut Context, Ioasid, u64),
    back: fn(&mut Context, Ioasid, u64),
    starts_mapped: bool,
) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(CHANGED));
    for order in [Order::Sequential, Order::Shuffled] {
        for count in SIZES {
            let (mut context, ioasid) = filled(count, order);
            let mut round = 0;
            group.bench_function(BenchmarkId::new(order.name(), count), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        let places =
                            (round..round + CHANGED).map(|n| order.place(n % count, count));
                        let places: Vec<u64> = places.collect();
                        round += CHANGED;
                        let mut run = |step: fn(&mut Context, Ioasid, u64)| {
                            places.iter().for_each(|&place| step(&mut context, ioasid, place));
                        };
                        if !starts_mapped {
                            run(back);
                        }
                        let start = Instant::now();
                        run(timed);
                        total += start.elapsed();
                        if starts_mapped {
                            run(back);
                        }
                    }
                    total
                });
            });
        }
    }
    group.finish();
}

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look-up");
    for order in [Order::Sequential, Order::Shuffled] {
        for count in SIZES {
            let (context, ioasid) = filled(count, order);
            let mut n = 0;
            group.bench_function(BenchmarkId::new(order.name(), count), |bencher| {
                bencher.iter_batched(
                    || {
                        n += 1;
                        order.place(n % count, count) * 2 * PAGE + 0x123
                    },
                    |iova| context.translate(ioasid, black_box(iova)),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

/// Prints what a mapping takes of memory, and the mean of making and removing all of them.
fn memory() {
    for order in [Order::Sequential, Order::Shuffled] {
        for count in SIZES {
            let (mut context, ioasid) = empty();
            let before = ALLOCATED.load(Ordering::Relaxed);
            let start = Instant::now();
            (0..count).for_each(|n| map(&mut context, ioasid, order.place(n, count)));
            let mapping = start.elapsed();
            let bytes = (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / count as f64;
            let start = Instant::now();
            (0..count).for_each(|n| unmap(&mut context, ioasid, order.place(n, count)));
            let unmapping = start.elapsed();
            let mean = |time: Duration| time.as_nanos() as u64 / count;
            println!(
                "memory/{}/{count}: {bytes:.1} bytes a mapping; from empty {} ns to map, to empty \
                 {} ns to unmap, on average",
                order.name(),
                mean(mapping),
                mean(unmapping),
            );
        }
    }
}

/// A device that is attached to a child of an address space in which `PARENT` pages are mapped, in
/// pieces of `piece` pages.
struct Nested {
    context: Context,
    parent: Ioasid,
    child: Ioasid,
    device: DeviceId,
}

/// How many pages a child maps, and its parent.
const NESTED: u64 = 1_000_000;

impl Nested {
    fn new(piece: u64) -> Self {
        let (mut context, parent) = empty();
        let device = context.devices().next().expect("a device").id;
        for place in 0..NESTED / piece {
            let (iova, size) = (place * piece * PAGE, piece * PAGE);
            let map = Map { iova, size, ..map_at(place) };
            let plan = context.plan_map(parent, map, MemoryId(place));
            execute(&mut context, plan.expect("there is room"));
        }
        let child = context.create_nesting(parent).expect("a child");
        let mut nested = Self { context, parent, child, device };
        nested.attach();
        nested
    }

    /// With a child that maps every page of the parent, in `order`.
    fn filled(piece: u64, order: Order) -> Self {
        let mut nested = Self::new(piece);
        nested.detach();
        (0..NESTED).for_each(|n| nested.map(n, order));
        nested
    }

    fn attach(&mut self) {
        let plan = self.context.plan_attach(self.device, self.child);
        execute(&mut self.context, plan.expect("attach"));
    }

    fn detach(&mut self) {
        let plan = self.context.plan_detach(self.device, self.child);
        execute(&mut self.context, plan.expect("detach"));
    }

    fn map(&mut self, n: u64, order: Order) {
        let map = Map { vaddr: order.place(n, NESTED) * PAGE, iova: n * PAGE, ..map_at(0) };
        let plan = self.context.plan_map(self.child, map, MemoryId(0));
        execute(&mut self.context, plan.expect("there is room"));
    }

    fn unmap(&mut self, ioasid: Ioasid, n: u64) -> u64 {
        let plan = self.context.plan_unmap(ioasid, Unmap::Range { iova: n * PAGE, size: PAGE });
        let plan = plan.expect("unmap is legal");
        let changes = plan.changes().len() as u64;
        execute(&mut self.context, plan);
        changes
    }
}

fn nesting(criterion: &mut Criterion) {
    let parents = [("pages", 1), ("large", NESTED / 4)];
    let orders = [Order::Sequential, Order::Shuffled];
    let all = || parents.into_iter().flat_map(|parent| orders.map(|order| (parent, order)));
    let mut group = criterion.benchmark_group("nested");
    group.throughput(Throughput::Elements(NESTED));
    for ((name, piece), order) in all() {
        let mut nested = Nested::filled(piece, order);
        let id = BenchmarkId::new(format!("attach-over-{name}"), order.name());
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let start = Instant::now();
                    nested.attach();
                    total += start.elapsed();
                    nested.detach();
                }
                total
            });
        });
    }
    group.finish();
    // From nothing to all mapped and back, once: the numbers are large enough.
    for ((name, piece), order) in all() {
        let mut nested = Nested::new(piece);
        let mean = |time: Duration| time.as_nanos() as u64 / NESTED;
        let start = Instant::now();
        (0..NESTED).for_each(|n| nested.map(n, order));
        let mapping = start.elapsed();
        let mut parent = String::new();
        if piece == 1 {
            let places = NESTED / 2..NESTED / 2 + NESTED / 10;
            let start = Instant::now();
            let changes: u64 = places.map(|n| nested.unmap(nested.parent, n)).sum();
            let time = start.elapsed().as_nanos() as u64 / changes;
            parent = format!(", {time} ns to unmap one of the parent's");
        }
        let start = Instant::now();
        (0..NESTED).for_each(|n| assert!(nested.unmap(nested.child, n) <= 1));
        println!(
            "nested/below-an-attached-device-over-{name}/{}: {} ns to map a page, {} ns to unmap \
             it{parent}, on average",
            order.name(),
            mean(mapping),
            mean(start.elapsed()),
        );
    }
}

fn main() {
    memory();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1000))
        .configure_from_args();
    change(&mut criterion, "map", map, unmap, false);
    change(&mut criterion, "unmap", unmap, map, true);
    look_up(&mut criterion);
    nesting(&mut criterion);
    criterion.final_summary();
}
