//! The findings: one function for each thing that is looked at.

use std::collections::BTreeMap;
use std::path::Path;

use super::groups::{self, Group, State};
use super::host::{Host, Module};
use super::{Daemon, Finding, Level, Report};

/// Where the modules to load at boot are named.
const MODULES_LOAD: &str = "/etc/modules-load.d/ioasid.conf";
/// CAP_IPC_LOCK of capability.h: exempts from RLIMIT_MEMLOCK.
const CAP_IPC_LOCK: u32 = 14;
/// Locked memory below which a warning is due: the smallest guest that does something useful.
const MEMLOCK_SMALL: u64 = 64 << 20;

/// Looks at everything.
pub(crate) fn examine(host: &Host, node: &Path, daemon: &Daemon) -> Report {
    let groups = groups::read(host);
    let iommu_on = !host.names("/sys/class/iommu").is_empty();
    let mut findings = vec![kernel(host), cuse(host), fuse(host), iommu(host, iommu_on)];
    if iommu_on {
        findings.push(interrupt_remapping(host));
    }
    findings.push(vfio(host));
    findings.extend(group_findings(host, &groups, iommu_on));
    findings.extend([memlock(host), yama(host)]);
    findings.extend(launcher(host));
    let hardware = ["iommu", "vfio"].iter().all(|topic| {
        findings.iter().any(|finding| finding.topic == *topic && finding.level == Level::Ok)
    });
    findings.extend(node_findings(host, node, daemon, hardware));
    if simulated_only(daemon) {
        excuse_hardware(&mut findings);
    }
    Report { findings, groups }
}

fn finding(topic: &'static str, level: Level, text: impl Into<String>) -> Finding {
    Finding { topic, level, text: text.into(), mend: Vec::new() }
}

impl Finding {
    fn mend(mut self, lines: &[impl AsRef<str>]) -> Finding {
        self.mend.extend(lines.iter().map(|line| line.as_ref().to_owned()));
        self
    }
}

/// Whether the daemon serves simulated devices and means to serve no others.
fn simulated_only(daemon: &Daemon) -> bool {
    let Daemon::Answers(extensions) = daemon else { return false };
    let has = |name| extensions.get(name) == Some(&1);
    has("SIMULATED") && !has("VFIO")
}

/// What lacks for real devices is no problem to who uses simulated ones.
fn excuse_hardware(findings: &mut [Finding]) {
    const HARDWARE: &[&str] = &["iommu", "interrupts", "vfio", "group", "yama"];
    for finding in findings.iter_mut().filter(|finding| HARDWARE.contains(&finding.topic)) {
        finding.level = finding.level.min(Level::Warning);
    }
}

fn kernel(host: &Host) -> Finding {
    let release = host.release();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        let text = format!("the kernel's release, `{release}`, is not understood");
        return finding("kernel", Level::Warning, text);
    };
    if (major, minor) < (5, 6) {
        let text = format!(
            "Linux {release} is too old: the daemon takes descriptors with pidfd_getfd, which is in \
             5.6 and later (and 5.0 to 5.3 crash in CUSE)"
        );
        return finding("kernel", Level::Problem, text)
            .mend(&["# install the kernel of Debian 12 or later"]);
    }
    finding("kernel", Level::Ok, format!("Linux {release}"))
}

/// What to do about a module that this kernel lacks.
fn other_kernel(module: &str) -> [String; 2] {
    [
        format!("# Debian's own kernel has {module}; install it and boot it:"),
        "apt install linux-image-$(dpkg --print-architecture)".into(),
    ]
}

fn load(modules: &str) -> [String; 2] {
    let lines = modules.replace(' ', "\\n");
    [format!("modprobe -a {modules}"), format!("printf '{lines}\\n' >> {MODULES_LOAD}")]
}

fn cuse(host: &Host) -> Finding {
    let usable_fuse = host.exists("/dev/fuse");
    // Without CUSE the daemon can still make its node as a FUSE file.
    let missing = if usable_fuse { Level::Warning } else { Level::Problem };
    let instead = if usable_fuse {
        "; without it the daemon can only serve a FUSE file (--transport fuse)"
    } else {
        ""
    };
    // Before it is loaded, /dev/cuse is a placeholder that loads it.
    match (host.module("cuse"), host.exists("/dev/cuse")) {
        (Module::Loaded, true) => finding("cuse", Level::Ok, "the module is loaded"),
        (Module::Available, true) => {
            finding("cuse", Level::Ok, "the module is loaded when the daemon opens /dev/cuse")
        }
        (Module::Loaded, false) => {
            let text = format!("the module is loaded, but there is no /dev/cuse{instead}");
            finding("cuse", missing, text).mend(&["mknod -m 600 /dev/cuse c 10 203"])
        }
        (Module::Available, false) => {
            let text = format!("the module is not loaded{instead}");
            finding("cuse", missing, text).mend(&load("cuse"))
        }
        (Module::Absent, true) => finding("cuse", Level::Ok, "/dev/cuse is there"),
        (Module::Absent, false) => {
            let text = format!("this kernel has no CUSE{instead}");
            finding("cuse", missing, text).mend(&other_kernel("cuse"))
        }
    }
}

fn fuse(host: &Host) -> Finding {
    match (host.exists("/dev/fuse"), host.module("fuse")) {
        (true, _) => finding("fuse", Level::Ok, "/dev/fuse is there"),
        (false, Module::Absent) => {
            finding("fuse", Level::Warning, "this kernel has no FUSE").mend(&other_kernel("fuse"))
        }
        (false, _) => {
            finding("fuse", Level::Warning, "there is no /dev/fuse").mend(&["modprobe fuse"])
        }
    }
}

/// Whose IOMMU a machine would have.
#[derive(Clone, Copy, PartialEq)]
enum Maker {
    Intel,
    Amd,
    Other,
}

fn maker(host: &Host) -> Maker {
    let cpu = host.text("/proc/cpuinfo").unwrap_or_default();
    if cpu.contains("GenuineIntel") {
        Maker::Intel
    } else if cpu.contains("AuthenticAMD") || cpu.contains("HygonGenuine") {
        Maker::Amd
    } else {
        Maker::Other
    }
}

fn iommu(host: &Host, on: bool) -> Finding {
    if on {
        let units = host.names("/sys/class/iommu").len();
        let groups = host.names("/sys/kernel/iommu_groups").len();
        if groups == 0 {
            let text = "an IOMMU is on, but no device is in an IOMMU group";
            return finding("iommu", Level::Problem, text)
                .mend(&["# see what the kernel says: dmesg | grep -i -e DMAR -e AMD-Vi -e iommu"]);
        }
        let s = if units == 1 { "" } else { "s" };
        let text = format!("on: {units} unit{s}, {groups} groups");
        return finding("iommu", Level::Ok, text);
    }
    let command_line = host.command_line();
    let off = command_line.iter().find(|word| {
        ["iommu=off", "intel_iommu=off", "amd_iommu=off", "iommu=soft"].contains(&word.as_str())
    });
    if let Some(word) = off {
        let text = format!("off: the kernel's command line has {word}");
        let edit = format!("# remove {word} from GRUB_CMDLINE_LINUX* in /etc/default/grub; then:");
        return finding("iommu", Level::Problem, text).mend(&[&edit, "update-grub", "reboot"]);
    }
    let (table, parameter, firmware) = match maker(host) {
        Maker::Intel => ("DMAR", "intel_iommu=on", "VT-d (Intel Virtualization for Directed I/O)"),
        Maker::Amd => ("IVRS", "amd_iommu=on", "IOMMU (AMD-Vi)"),
        Maker::Other => {
            let text = "there is none that the kernel uses";
            return finding("iommu", Level::Problem, text)
                .mend(&["# see what the kernel says: dmesg | grep -i -e iommu -e smmu"]);
        }
    };
    if host.exists(Path::new("/sys/firmware/acpi/tables").join(table)) {
        // AMD's is on unless it was turned off; Intel's depends on the kernel's configuration.
        let set = command_line.iter().any(|word| word.starts_with(parameter));
        if maker(host) == Maker::Intel && !set {
            let text =
                format!("the machine has one (ACPI table {table}), but the kernel left it off");
            let edit =
                format!("# add {parameter} to GRUB_CMDLINE_LINUX in /etc/default/grub; then:");
            return finding("iommu", Level::Problem, text).mend(&[&edit, "update-grub", "reboot"]);
        }
        let text =
            format!("the machine has one (ACPI table {table}), but the kernel could not use it");
        return finding("iommu", Level::Problem, text)
            .mend(&["# see what the kernel says: dmesg | grep -i -e DMAR -e AMD-Vi -e iommu"]);
    }
    let text = format!("there is none: the firmware shows no ACPI table {table}");
    let virtual_machine = host
        .text("/proc/cpuinfo")
        .is_some_and(|cpu| cpu.split_whitespace().any(|flag| flag == "hypervisor"));
    let what = if virtual_machine {
        "# this is a virtual machine: its host must give it an IOMMU (QEMU: -device intel-iommu)"
            .into()
    } else {
        format!("# turn on {firmware} in the firmware's setup")
    };
    finding("iommu", Level::Problem, text).mend(&[what])
}

/// Interrupt remapping, by what the kernel does with the interrupts in use: chips of remapped ones
/// are called `IR-...` (arch/x86/kernel/apic, drivers/iommu). Without any, VFIO refuses groups.
fn interrupt_remapping(host: &Host) -> Finding {
    const TOPIC: &str = "interrupts";
    let interrupts = host.text("/proc/interrupts").unwrap_or_default();
    let chips: Vec<_> = interrupts.split_whitespace().collect();
    if chips.iter().any(|chip| chip.starts_with("IR-")) {
        return finding(TOPIC, Level::Ok, "interrupt remapping is on");
    }
    let parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    if host.text(parameter).as_deref() == Some("Y") {
        let text = "interrupt remapping is off and vfio_iommu_type1 allows that: a program with a \
                    device can send any interrupt to the host";
        return finding(TOPIC, Level::Warning, text)
            .mend(&["# for trusted programs only; elsewhere turn on interrupt remapping"]);
    }
    if !chips.iter().any(|chip| *chip == "IO-APIC" || chip.starts_with("PCI-MSI")) {
        let text =
            "whether there is interrupt remapping is unknown (/proc/interrupts does not say)";
        return finding(TOPIC, Level::Ok, text);
    }
    let word = host
        .command_line()
        .into_iter()
        .find(|word| ["intremap=off", "nointremap"].contains(&word.as_str()));
    // DMAR: 36 bytes of ACPI header, the address width, then flags, of which bit 0 is INTR_REMAP
    // (VT-d specification, 8.1).
    let offered = host
        .bytes("/sys/firmware/acpi/tables/DMAR")
        .and_then(|table| Some(table.get(37)? & 1 != 0));
    let why = match (&word, offered) {
        (Some(word), _) => format!("the kernel's command line has {word}"),
        (None, Some(false)) => "the platform does not offer it".into(),
        (None, Some(true)) => "the platform offers it, but the kernel did not turn it on".into(),
        (None, None) => "the reason is unknown".into(),
    };
    let text = format!("interrupt remapping is off ({why}): VFIO refuses to use a group");
    let first = match word {
        Some(word) => format!("# remove {word} from /etc/default/grub, update-grub, reboot"),
        None => "# look for interrupt remapping or x2APIC in the firmware's setup".into(),
    };
    finding(TOPIC, Level::Problem, text).mend(&[
        &first,
        "# where every program is trusted, in a laboratory for instance, do without:",
        "echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        "echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' > /etc/modprobe.d/ioasid.conf",
    ])
}

fn vfio(host: &Host) -> Finding {
    let modules = ["vfio_pci", "vfio_iommu_type1"].map(|name| (name, host.module(name)));
    if let Some((name, _)) = modules.iter().find(|(_, module)| *module == Module::Absent) {
        let text = format!("this kernel has no {name}");
        return finding("vfio", Level::Problem, text).mend(&other_kernel(name));
    }
    let unloaded: Vec<_> = modules
        .iter()
        .filter(|(_, module)| *module == Module::Available)
        .map(|(name, _)| *name)
        .collect();
    if !unloaded.is_empty() {
        let unloaded = unloaded.join(" ");
        let text = format!("not loaded: {unloaded}");
        return finding("vfio", Level::Warning, text).mend(&load(&unloaded));
    }
    if !host.exists("/dev/vfio/vfio") {
        let text = "the modules are loaded, but there is no /dev/vfio/vfio: this is a container, or \
                    the kernel has no VFIO containers";
        return finding("vfio", Level::Problem, text);
    }
    finding("vfio", Level::Ok, "vfio_pci and vfio_iommu_type1 are loaded")
}

/// The commands that give a PCI device to vfio-pci, until the next boot.
fn to_vfio(address: &str, has_driver: bool) -> Vec<String> {
    let device = format!("/sys/bus/pci/devices/{address}");
    let mut commands =
        vec!["modprobe vfio-pci".into(), format!("echo vfio-pci > {device}/driver_override")];
    if has_driver {
        commands.push(format!("echo {address} > {device}/driver/unbind"));
    }
    commands.push(format!("echo {address} > /sys/bus/pci/drivers_probe"));
    commands
}

fn group_findings(host: &Host, groups: &[Group], iommu_on: bool) -> Vec<Finding> {
    let mut findings: Vec<_> =
        groups.iter().filter(|group| group.state == State::Blocked).map(blocked).collect();
    for group in groups.iter().filter(|group| group.state == State::Ready) {
        let names: Vec<_> = group
            .devices
            .iter()
            .filter(|device| device.on_vfio())
            .map(|device| device.name.as_str())
            .collect();
        let node = format!("/dev/vfio/{}", group.group);
        let text = format!("{} is ready: {}", group.group, names.join(", "));
        findings.push(if !host.exists(&node) {
            finding("group", Level::Warning, format!("{text}, but there is no {node}"))
        } else if host.accessible(&node) {
            finding("group", Level::Ok, text)
        } else {
            let grant = format!("chown USER {node}    # until the next boot; a udev rule to stay:");
            let rule = format!(
                "echo 'SUBSYSTEM==\"vfio\", KERNEL==\"{}\", OWNER=\"USER\"' >> \
                 /etc/udev/rules.d/70-ioasid-vfio.rules",
                group.group
            );
            finding("group", Level::Warning, format!("{text}, but you may not open {node}"))
                .mend(&[&grant, &rule])
        });
    }
    if findings.is_empty() && iommu_on {
        let candidate = groups
            .iter()
            .filter(|group| group.state == State::Free)
            .flat_map(|group| &group.devices)
            .find(|device| device.kind.is_some_and(|kind| kind != "bridge"));
        let mut none = finding("group", Level::Warning, "no device is on vfio-pci");
        match candidate {
            Some(device) => {
                let kind = device.kind.unwrap_or_default();
                none.mend.push(format!("# {} ({kind}) has no driver; to use it:", device.name));
                none.mend.extend(to_vfio(&device.name, false));
            }
            None => {
                none.mend.push("# for a device that the host can do without:".into());
                none.mend.extend(to_vfio("ADDRESS", true));
            }
        }
        findings.push(none);
    }
    findings
}

fn blocked(group: &Group) -> Finding {
    let mut mend = Vec::new();
    let mut holders = Vec::new();
    for device in group.devices.iter().filter(|device| device.blocks()) {
        let driver = device.driver.as_deref().unwrap_or_default();
        let kind = device.kind.map(|kind| format!(", {kind}")).unwrap_or_default();
        holders.push(format!("{driver} holds {}{kind}", device.name));
        mend.push(format!("# if the host can do without {}:", device.name));
        mend.extend(to_vfio(&device.name, true));
    }
    let text = format!("{} is not viable: {}", group.group, holders.join("; "));
    Finding { topic: "group", level: Level::Problem, text, mend }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        n if n >= 1 << 30 && n.is_multiple_of(1 << 30) => format!("{} GiB", n >> 30),
        n if n >= 1 << 20 => format!("{} MiB", n >> 20),
        n => format!("{} KiB", n >> 10),
    }
}

fn memlock(host: &Host) -> Finding {
    const TOPIC: &str = "memlock";
    if host.capable(CAP_IPC_LOCK) {
        let text = "you may lock any amount of memory (CAP_IPC_LOCK)";
        return finding(TOPIC, Level::Ok, text);
    }
    match host.locked_memory() {
        None => finding(TOPIC, Level::Warning, "the limit on locked memory is unknown"),
        Some((None, _)) => finding(TOPIC, Level::Ok, "locked memory is not limited"),
        Some((Some(limit), _)) if limit >= MEMLOCK_SMALL => {
            finding(TOPIC, Level::Ok, format!("you may lock {} of memory", bytes(limit)))
        }
        Some((Some(limit), hard)) => {
            let text = format!(
                "you may lock only {} of memory, and what devices can reach is charged against that",
                bytes(limit)
            );
            let mut finding = finding(TOPIC, Level::Warning, text);
            if hard.is_none_or(|hard| hard > limit) {
                finding.mend.push("ulimit -l $(ulimit -H -l)    # in your own shell".into());
            }
            finding.mend(&[
                "echo 'USER - memlock unlimited' > /etc/security/limits.d/ioasid.conf    # then log in again",
                "# for a service: LimitMEMLOCK=infinity in its unit",
            ])
        }
    }
}

fn yama(host: &Host) -> Finding {
    const TOPIC: &str = "yama";
    match host.text("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
        None => finding(TOPIC, Level::Ok, "the kernel has no Yama"),
        Some("3") => {
            let text = "ptrace_scope is 3: the daemon may not take a descriptor from a program \
                        (pidfd_getfd), so that no VFIO group can be bound and no file be mapped by \
                        its descriptor; nor can private memory be mapped";
            finding(TOPIC, Level::Problem, text).mend(&[
                "# 3 cannot be lowered while the kernel runs; find where it is set:",
                "grep -rs ptrace_scope /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d",
                "echo 'kernel.yama.ptrace_scope = 2' > /etc/sysctl.d/99-ioasid.conf && reboot",
            ])
        }
        Some(scope) => finding(TOPIC, Level::Ok, format!("ptrace_scope is {scope}")),
    }
}

/// Whether ioasid-run can work, and for whom; nothing where Yama is in its way, as in others'.
fn launcher(host: &Host) -> Option<Finding> {
    const TOPIC: &str = "ioasid-run";
    let is = |file: &str, value: &str| {
        host.text(format!("/proc/sys/{file}")).is_some_and(|text| text == value)
    };
    if is("kernel/yama/ptrace_scope", "3") {
        return None;
    }
    let actions = host.text("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if !actions.split(' ').any(|action| action == "user_notif") {
        let text = "it cannot work: the kernel has no seccomp user notification (Linux 5.9)";
        return Some(finding(TOPIC, Level::Warning, text));
    }
    let forbidden = [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    Some(match forbidden.into_iter().find(|(file, value, _)| is(file, value)) {
        Some((file, value, mend)) => {
            let name = file.replace('/', ".");
            let text = format!(
                "it works for root only: others may not make user namespaces ({name} is {value})"
            );
            finding(TOPIC, Level::Warning, text).mend(&[format!("sysctl -w {mend}")])
        }
        None => finding(TOPIC, Level::Ok, "unmodified programs can be run by anybody"),
    })
}

fn node_findings(host: &Host, node: &Path, daemon: &Daemon, hardware: bool) -> Vec<Finding> {
    const TOPIC: &str = "node";
    let name = node.display();
    let launch = Launch(node);
    // To look at a file whose daemon hangs would be to hang too.
    if matches!(daemon, Daemon::Hangs) {
        return vec![daemon_finding(daemon, &launch, hardware)];
    }
    if !host.exists(node) {
        // A FUSE file whose daemon is gone is there, but cannot be looked at.
        if let Daemon::Fails(why) = daemon
            && !why.contains("ENOENT")
        {
            return vec![finding(TOPIC, Level::Problem, why).mend(&launch.restart())];
        }
        let text = format!("there is no {name}: the daemon does not run");
        return vec![finding(TOPIC, Level::Problem, text).mend(&launch.start())];
    }
    if !host.accessible(node) {
        let text = format!("{name} is there, but you may not open it");
        let mend = [
            "# let the members of a group use it, kvm for instance:",
            "echo 'SUBSYSTEM==\"cuse\", KERNEL==\"ioasid\", GROUP=\"kvm\", MODE=\"0660\"' > \
             /etc/udev/rules.d/70-ioasid.rules",
            "udevadm control --reload && udevadm trigger --subsystem-match=cuse",
            "adduser USER kvm    # then log in again",
        ];
        return vec![finding(TOPIC, Level::Problem, text).mend(&mend)];
    }
    let present = finding(TOPIC, Level::Ok, format!("{name} is there, and you may open it"));
    vec![present, daemon_finding(daemon, &launch, hardware)]
}

/// How the daemon of a node is started: for the usual node its defaults do, any other is somebody's
/// own.
struct Launch<'a>(&'a Path);

impl Launch<'_> {
    fn is_system(&self) -> bool {
        self.0 == Path::new("/dev/ioasid")
    }

    fn start(&self) -> Vec<String> {
        match self.is_system() {
            true => vec!["cused".into()],
            false => vec![format!("cused --transport fuse --path {}", self.0.display())],
        }
    }

    fn restart(&self) -> Vec<String> {
        let mut lines = vec!["# end the daemon if it still runs; then:".to_owned()];
        if !self.is_system() {
            lines.push(format!("umount {}", self.0.display()));
        }
        lines.extend(self.start());
        lines
    }
}

/// What the daemon says; `hardware` is whether this host could serve VFIO devices.
fn daemon_finding(daemon: &Daemon, launch: &Launch<'_>, hardware: bool) -> Finding {
    const TOPIC: &str = "daemon";
    match daemon {
        Daemon::NotAsked => finding(TOPIC, Level::Ok, "not asked"),
        Daemon::Fails(why) => finding(TOPIC, Level::Problem, why).mend(&launch.restart()),
        Daemon::Hangs => {
            finding(TOPIC, Level::Problem, "it runs, but does not answer").mend(&launch.restart())
        }
        Daemon::Answers(extensions) => answers(extensions, launch, hardware),
    }
}

fn answers(extensions: &BTreeMap<String, u64>, launch: &Launch<'_>, hardware: bool) -> Finding {
    const TOPIC: &str = "daemon";
    let has = |name: &str| extensions.get(name) == Some(&1);
    let list = |wanted: bool| -> String {
        let names: Vec<_> =
            extensions.keys().filter(|name| has(name) == wanted).map(String::as_str).collect();
        if names.is_empty() { "nothing".into() } else { names.join(", ") }
    };
    let text = format!("it answers; it has {}; it has not {}", list(true), list(false));
    if !has("VFIO") && !has("SIMULATED") {
        let text = format!("{text}: no device of any kind can be bound");
        return finding(TOPIC, Level::Problem, text).mend(&launch.restart());
    }
    if !has("VFIO") && hardware {
        let text = format!("{text}: it serves no VFIO devices, though this host could");
        return finding(TOPIC, Level::Warning, text).mend(&launch.restart());
    }
    finding(TOPIC, Level::Ok, text)
}
