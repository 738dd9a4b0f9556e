//! One hardware table and the devices that DMA through it: a group.

use crate::{Cookie, DeviceId, Geometry, Ioasid};

/// A bound device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) name: String,
    pub(crate) cookie: Cookie,
    /// To how many IOASIDs of its table's path it is attached.
    pub(crate) level: usize,
}

/// The hardware table of a group. That one table cannot show two address spaces is the reason
/// why the devices of a group cannot be attached to different ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) geometry: Geometry,
    pub(crate) simulated: bool,
    /// The bound devices of the group; at least one.
    pub(crate) devices: Vec<Device>,
    /// What its devices are attached to, each nested on the one before. It shows the last. As long
    /// as the highest level of its devices.
    pub(crate) path: Vec<Ioasid>,
    /// How many entries it holds, if what it shows is a child.
    pub(crate) held: usize,
    /// It may hold something other than what it shows.
    pub(crate) broken: bool,
    /// Changes with everything above.
    pub(crate) generation: u64,
}

impl Table {
    /// The address space that it shows.
    pub(crate) fn shows(&self) -> Option<Ioasid> {
        self.path.last().copied()
    }

    /// It shows one that is nested on another.
    pub(crate) fn shows_child(&self) -> bool {
        self.path.len() > 1
    }

    /// What is nested on `ioasid`, in the path: nothing if that is shown or not in the path.
    pub(crate) fn below(&self, ioasid: Ioasid) -> &[Ioasid] {
        let place = self.path.iter().position(|&member| member == ioasid);
        place.map_or(&[], |place| &self.path[place + 1..])
    }

    /// Its devices that are attached to `ioasid`, or those that are not.
    pub(crate) fn devices_of(
        &self,
        ioasid: Ioasid,
        attached: bool,
    ) -> impl Iterator<Item = &Device> {
        let place = self.path.iter().position(|&member| member == ioasid);
        let is_attached = move |device: &Device| place.is_some_and(|place| device.level > place);
        self.devices.iter().filter(move |device| is_attached(device) == attached)
    }

    /// Some devices are attached to `ioasid` and others are not.
    pub(crate) fn is_partial(&self, ioasid: Ioasid) -> bool {
        self.devices_of(ioasid, true).next().is_some()
            && self.devices_of(ioasid, false).next().is_some()
    }

    /// What a device is attached to, each nested on the one before.
    pub(crate) fn path_of(&self, device: &Device) -> &[Ioasid] {
        &self.path[..device.level]
    }

    /// The highest level of the devices other than `device`.
    pub(crate) fn level_without(&self, device: DeviceId) -> usize {
        let others = self.devices.iter().filter(|other| other.id != device);
        others.map(|other| other.level).max().unwrap_or(0)
    }
}

/// The names of devices for a message: `"a"`, `"b"`.
pub(crate) fn names<'a>(devices: impl Iterator<Item = &'a Device>) -> String {
    let quoted: Vec<String> = devices.map(|device| format!("\"{}\"", device.name)).collect();
    quoted.join(", ")
}
