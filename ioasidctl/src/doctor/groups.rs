//! IOMMU groups: which devices they have, who holds them, and whether a program can use them.

use std::path::Path;

use serde::Serialize;

use super::host::Host;

/// A device of a group.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    /// Its name on its bus: for PCI, the address.
    pub(crate) name: String,
    /// Its PCI vendor and device number.
    pub(crate) id: Option<String>,
    /// What it is, in a word, by its PCI class.
    pub(crate) kind: Option<&'static str>,
    /// The kernel driver that holds it.
    pub(crate) driver: Option<String>,
}

/// What a program can do with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// A VFIO driver holds a device and nothing stands in the way.
    Ready,
    /// A VFIO driver holds a device, but another driver holds another.
    Blocked,
    /// No driver holds anything.
    Free,
    /// Kernel drivers hold it, for the host.
    Host,
}

/// An IOMMU group.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    /// Its number.
    pub(crate) group: u32,
    /// What can be done with it.
    pub(crate) state: State,
    /// Its devices.
    pub(crate) devices: Vec<Device>,
}

impl Device {
    /// Whether a VFIO driver holds it: vfio-pci, or one for a special device (mlx5_vfio_pci).
    pub(crate) fn on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(|driver| driver.contains("vfio"))
    }

    /// Whether its driver makes the group not viable. Those of bridges and stubs do no DMA and do
    /// not (Linux: the drivers with `driver_managed_dma`); nor does having no driver.
    pub(crate) fn blocks(&self) -> bool {
        match self.driver.as_deref() {
            None | Some("pci-stub" | "pcieport") => false,
            Some(_) => !self.on_vfio(),
        }
    }
}

/// Every group of the host, by number.
pub(crate) fn read(host: &Host) -> Vec<Group> {
    let directory = Path::new("/sys/kernel/iommu_groups");
    let mut groups: Vec<_> = host
        .names(directory)
        .iter()
        .filter_map(|name| {
            let group = name.parse().ok()?;
            let devices = directory.join(name).join("devices");
            let devices: Vec<_> = host
                .names(&devices)
                .into_iter()
                .map(|name| device(host, &devices.join(&name), name))
                .collect();
            Some(Group { group, state: state(&devices), devices })
        })
        .collect();
    groups.sort_by_key(|group| group.group);
    groups
}

fn device(host: &Host, path: &Path, name: String) -> Device {
    let attribute = |file: &str| {
        let text = host.text(path.join(file))?;
        Some(text.trim_start_matches("0x").to_owned())
    };
    let id = attribute("vendor").zip(attribute("device"));
    Device {
        name,
        id: id.map(|(vendor, device)| format!("{vendor}:{device}")),
        kind: attribute("class").and_then(|class| kind(&class)),
        driver: host.link_name(path.join("driver")),
    }
}

/// A word for a PCI class (PCI Code and ID Assignment, base classes).
fn kind(class: &str) -> Option<&'static str> {
    Some(match class.get(..2)? {
        "01" => "storage",
        "02" => "network",
        "03" => "display",
        "04" => "multimedia",
        "05" => "memory",
        "06" => "bridge",
        "07" => "communication",
        "08" => "system",
        "09" => "input",
        "0c" => "serial bus",
        "0d" => "wireless",
        "10" => "encryption",
        "12" => "accelerator",
        _ => return None,
    })
}

fn state(devices: &[Device]) -> State {
    match (devices.iter().any(Device::on_vfio), devices.iter().any(Device::blocks)) {
        (true, false) => State::Ready,
        (true, true) => State::Blocked,
        (false, true) => State::Host,
        (false, false) => match devices.iter().any(|device| device.driver.is_some()) {
            true => State::Host,
            false => State::Free,
        },
    }
}
