//! One hardware table and the devices that DMA through it: a group.

use crate::{Cookie, DeviceId, Geometry, Ioasid};

/// A bound device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) name: String,
    pub(crate) cookie: Cookie,
    /// It is attached to what its table shows.
    pub(crate) attached: bool,
}

/// The hardware table of a group. That one table cannot show two address spaces is the reason
/// why the devices of a group cannot be attached to different ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) geometry: Geometry,
    pub(crate) simulated: bool,
    /// The bound devices of the group; at least one.
    pub(crate) devices: Vec<Device>,
    /// What it shows: something if and only if one of the devices is attached.
    pub(crate) shows: Option<Ioasid>,
    /// It may hold something other than what it shows.
    pub(crate) broken: bool,
    /// Changes with everything above.
    pub(crate) generation: u64,
}

impl Table {
    /// The devices that are attached, or those that are not.
    pub(crate) fn attached(&self, attached: bool) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(move |device| device.attached == attached)
    }

    /// Of a table that shows something: some devices are attached and others are not.
    pub(crate) fn is_partial(&self) -> bool {
        self.attached(false).next().is_some()
    }

    /// Among the attached devices there is none but `device`.
    pub(crate) fn is_last_attached(&self, device: DeviceId) -> bool {
        self.attached(true).all(|attached| attached.id == device)
    }
}

/// The names of devices for a message: `"a"`, `"b"`.
pub(crate) fn names<'a>(devices: impl Iterator<Item = &'a Device>) -> String {
    let quoted: Vec<String> = devices.map(|device| format!("\"{}\"", device.name)).collect();
    quoted.join(", ")
}
