//! Registered memory: which ranges of a program's memory it may map, and which of them are in use.

use std::collections::BTreeMap;

use crate::space::Charge;
use crate::{Context, Error, MemoryId, Owner, Plan, Range};

/// A registered range, kept under its owner and first address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registration {
    last: u64,
    memory: MemoryId,
    /// The mappings made from it, and the holds.
    users: u64,
    generation: u64,
}

/// The registered ranges. Those of one owner do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registrations {
    ranges: BTreeMap<(Owner, u64), Registration>,
}

/// A registration as a plan knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    owner: Owner,
    range: Range,
    generation: u64,
}

/// The registrations that mappings are made from, each with the number of mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources(Vec<(Source, u64)>);

impl Sources {
    /// Counts one mapping more.
    pub(crate) fn add(&mut self, source: Source) {
        self.0.push((source, 1));
    }

    /// Counts one mapping more if it is made from the registration that was counted last. Says
    /// whether it is: neighbours mostly are.
    fn add_to_last(&mut self, owner: Owner, range: Range) -> bool {
        match self.0.last_mut() {
            Some((last, count)) if last.owner == owner && last.range.contains(range) => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Source, u64)> {
        self.0.iter().copied()
    }
}

/// Where memory lies in registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// What was registered.
    pub memory: MemoryId,
    /// Where that is in the program.
    pub range: Range,
    /// Where in it the memory begins, bytes.
    pub offset: u64,
}

/// Keeps the registered memory that a plan maps from being unregistered while the plan is carried
/// out. Give it to [`Context::let_go`] when the plan is committed or abandoned.
#[derive(Debug)]
#[must_use = "until it is let go, the memory cannot be unregistered"]
pub struct Hold(Sources);

impl Registrations {
    /// The registration of `owner` with the highest start up to `last`.
    fn below(&self, owner: Owner, last: u64) -> Option<(u64, &Registration)> {
        let (&(_, start), found) = self.ranges.range((owner, 0)..=(owner, last)).next_back()?;
        Some((start, found))
    }

    fn overlapping(&self, owner: Owner, range: Range) -> Option<Range> {
        let (start, found) = self.below(owner, range.last())?;
        Range::new(start, found.last).filter(|registered| registered.last() >= range.start())
    }

    fn containing(&self, owner: Owner, range: Range) -> Option<(u64, &Registration)> {
        self.below(owner, range.start()).filter(|(_, found)| range.last() <= found.last)
    }

    /// Whether a registration is still there.
    pub(crate) fn has(&self, source: Source) -> bool {
        let found = self.ranges.get(&(source.owner, source.range.start()));
        found.is_some_and(|found| found.generation == source.generation)
    }

    /// Mappings were made from registrations, or a hold taken.
    pub(crate) fn use_sources(&mut self, sources: &Sources) {
        for (source, count) in sources.iter() {
            if let Some(found) = self.source_mut(source) {
                found.users += count;
            }
        }
    }

    fn unuse_sources(&mut self, sources: &Sources) {
        for (source, count) in sources.iter() {
            if let Some(found) = self.source_mut(source) {
                found.users -= count;
            }
        }
    }

    fn source_mut(&mut self, source: Source) -> Option<&mut Registration> {
        let found = self.ranges.get_mut(&(source.owner, source.range.start()));
        found.filter(|found| found.generation == source.generation)
    }

    /// A mapping is gone that was made from registered memory at `vaddr`. The registration is
    /// there, as it was in use.
    pub(crate) fn unuse(&mut self, owner: Owner, vaddr: u64) {
        if let Some((_, found)) = self.ranges.range_mut((owner, 0)..=(owner, vaddr)).next_back() {
            found.users -= 1;
        }
    }

    /// Forgets all; says what was registered.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = MemoryId> + use<> {
        std::mem::take(&mut self.ranges).into_values().map(|found| found.memory)
    }
}

/// Commands on registered memory. Whoever gives them charges registered memory: its size, once.
impl Context {
    /// Whether memory could be registered, before anything is known of it. Its alignment is not
    /// looked at.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Wraps`], [`Error::RegisteredOverlap`],
    /// [`Error::TooManyRegistered`].
    pub fn check_register(&self, owner: Owner, vaddr: u64, size: u64) -> Result<(), Error> {
        let range = memory_range(vaddr, size)?;
        if let Some(registered) = self.registrations.overlapping(owner, range) {
            return Err(Error::RegisteredOverlap { range, registered });
        }
        let max = self.limits.max_registered;
        if self.registrations.ranges.len() >= max as usize {
            return Err(Error::TooManyRegistered { max });
        }
        Ok(())
    }

    /// Registers memory of a program (`IOASID_REGISTER_MEMORY`). From now on memory is mapped from
    /// registered ranges only. What is mapped stays mapped and charged as it is. Nothing else has
    /// this `memory`.
    ///
    /// # Errors
    /// Those of [`check_register`](Self::check_register).
    pub fn register(
        &mut self,
        owner: Owner,
        vaddr: u64,
        size: u64,
        memory: MemoryId,
    ) -> Result<(), Error> {
        self.check_register(owner, vaddr, size)?;
        let last = memory_range(vaddr, size)?.last();
        let generation = self.next_generation();
        let registration = Registration { last, memory, users: 0, generation };
        self.registrations.ranges.insert((owner, vaddr), registration);
        Ok(())
    }

    /// Undoes the registration of exactly this range (`IOASID_UNREGISTER_MEMORY`); says which
    /// memory it was.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Wraps`], [`Error::NotRegistered`];
    /// [`Error::RegisteredInUse`] while a mapping made from it exists or is [held](Self::hold).
    pub fn unregister(&mut self, owner: Owner, vaddr: u64, size: u64) -> Result<MemoryId, Error> {
        let range = memory_range(vaddr, size)?;
        let found = self.registrations.ranges.get(&(owner, vaddr));
        let Some(&Registration { memory, users, .. }) = found.filter(|r| r.last == range.last())
        else {
            return Err(Error::NotRegistered { range });
        };
        if users > 0 {
            return Err(Error::RegisteredInUse { range, by: self.user_of(owner, range) });
        }
        self.registrations.ranges.remove(&(owner, vaddr));
        Ok(memory)
    }

    /// The registered memory that a range lies in; `None` while nothing at all is registered in
    /// this context.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Wraps`]; [`Error::OutsideRegistered`] if something is
    /// registered, by whomever, and the range is not inside one registered range of `owner`.
    pub fn registered(
        &self,
        owner: Owner,
        vaddr: u64,
        size: u64,
    ) -> Result<Option<Registered>, Error> {
        let source = self.source(owner, vaddr, size)?;
        Ok(source.map(|(_, registered)| registered))
    }

    /// The registered ranges with their memory, and how many mappings made from each there are,
    /// counting those that are [held](Self::hold).
    pub fn registrations(&self) -> impl Iterator<Item = (Owner, Range, MemoryId, u64)> {
        self.registrations.ranges.iter().filter_map(|(&(owner, start), found)| {
            Some((owner, Range::new(start, found.last)?, found.memory, found.users))
        })
    }

    /// Keeps the registered memory that `plan` maps, if any, from being unregistered until it is
    /// [let go](Self::let_go). For plans that are carried out while other commands are given.
    ///
    /// # Errors
    /// [`Error::StalePlan`].
    pub fn hold(&mut self, plan: &Plan) -> Result<Hold, Error> {
        self.check(plan)?;
        self.registrations.use_sources(&plan.basis.sources);
        Ok(Hold(plan.basis.sources.clone()))
    }

    /// Ends a [`hold`](Self::hold).
    pub fn let_go(&mut self, hold: Hold) {
        self.registrations.unuse_sources(&hold.0);
    }

    /// What [`registered`](Self::registered) finds, and its registration.
    pub(crate) fn source(
        &self,
        owner: Owner,
        vaddr: u64,
        size: u64,
    ) -> Result<Option<(Source, Registered)>, Error> {
        let range = memory_range(vaddr, size)?;
        if self.registrations.ranges.is_empty() {
            return Ok(None);
        }
        let found = self.registrations.containing(owner, range);
        let (start, found) = found.ok_or(Error::OutsideRegistered { range })?;
        let whole = Range::new(start, found.last).expect("registered memory is never empty");
        let source = Source { owner, range: whole, generation: found.generation };
        let offset = vaddr - start;
        Ok(Some((source, Registered { memory: found.memory, range: whole, offset })))
    }

    /// Counts the registration of memory that must be registered.
    pub(crate) fn add_source(
        &self,
        sources: &mut Sources,
        owner: Owner,
        vaddr: u64,
        size: u64,
    ) -> Result<(), Error> {
        let range = memory_range(vaddr, size)?;
        if !sources.add_to_last(owner, range) {
            let found = self.source(owner, vaddr, size)?;
            let (source, _) = found.ok_or(Error::OutsideRegistered { range })?;
            sources.add(source);
        }
        Ok(())
    }

    /// One of those that use registered memory, for a message.
    fn user_of(&self, owner: Owner, range: Range) -> String {
        let mut mappings = self.spaces.iter().flat_map(|(&ioasid, space)| {
            space.iter(Range::ALL).map(move |(mapped, mapping)| (ioasid, mapped, mapping))
        });
        let user = mappings.find(|(_, _, mapping)| {
            mapping.charge == Charge::Registered
                && mapping.owner == owner
                && (range.start()..=range.last()).contains(&mapping.vaddr)
        });
        match user {
            Some((ioasid, mapped, _)) => {
                format!("IOASID {ioasid} maps memory of it at the IOVAs {mapped}: unmap that first")
            }
            None => "memory of it is being mapped: try again".to_owned(),
        }
    }
}

fn memory_range(vaddr: u64, size: u64) -> Result<Range, Error> {
    if size == 0 {
        return Err(Error::ZeroSize);
    }
    Range::from_size(vaddr, size).ok_or(Error::Wraps { what: "vaddr", start: vaddr, size })
}
