//! The doctor on fake hosts: a directory in place of `/`.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::groups::State;
use super::host::Host;
use super::*;

/// A host that is a directory, gone with this value.
struct Fake(PathBuf);

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Fake {
    fn empty() -> Fake {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ioasidctl-doctor-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&root).unwrap();
        Fake(root)
    }

    /// A Debian 12 machine with VT-d and one device on vfio-pci, with nothing to complain about.
    fn healthy() -> Fake {
        let fake = Fake::empty();
        fake.file("/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        fake.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n");
        fake.file("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n");
        fake.file("/proc/interrupts", "   0:  40  IR-IO-APIC   2-edge   timer\n");
        fake.file("/proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n");
        fake.memlock("unlimited", "unlimited");
        fake.file("/proc/sys/kernel/yama/ptrace_scope", "1\n");
        fake.file("/proc/sys/kernel/seccomp/actions_avail", "kill_process user_notif allow\n");
        fake.file("/proc/sys/user/max_user_namespaces", "31000\n");
        for module in ["cuse", "fuse", "vfio_pci", "vfio_iommu_type1"] {
            fake.file(&format!("/sys/module/{module}/refcnt"), "0\n");
        }
        fake.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
        for node in ["/dev/cuse", "/dev/fuse", "/dev/vfio/vfio", "/dev/vfio/5", "/dev/ioasid"] {
            fake.file(node, "");
        }
        fake.file("/sys/class/iommu/dmar0/uevent", "");
        fake.file("/sys/firmware/acpi/tables/DMAR", &"\u{1}".repeat(48));
        fake.device(5, "0000:00:03.0", "0x020000", Some("vfio-pci"));
        fake.device(6, "0000:00:1f.2", "0x010601", Some("ahci"));
        fake
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    fn memlock(&self, soft: &str, hard: &str) {
        let head = "Limit                     Soft Limit           Hard Limit           Units\n";
        let line = format!("Max locked memory         {soft:<20} {hard:<20} bytes\n");
        self.file("/proc/self/limits", &format!("{head}{line}"));
    }

    fn device(&self, group: u32, address: &str, class: &str, driver: Option<&str>) {
        let device = format!("/sys/devices/pci0000:00/{address}");
        self.file(&format!("{device}/class"), &format!("{class}\n"));
        self.file(&format!("{device}/vendor"), "0x8086\n");
        self.file(&format!("{device}/device"), "0x10d3\n");
        if let Some(driver) = driver {
            let target = format!("../../../bus/pci/drivers/{driver}");
            symlink(target, self.path(&format!("{device}/driver"))).unwrap();
        }
        let devices = format!("/sys/kernel/iommu_groups/{group}/devices");
        std::fs::create_dir_all(self.path(&devices)).unwrap();
        let target = format!("../../../../devices/pci0000:00/{address}");
        symlink(target, self.path(&format!("{devices}/{address}"))).unwrap();
    }

    fn examine(&self) -> Report {
        self.examine_with(&daemon(&["VFIO", "SHARED_MEMORY", "MAP_TYPE1V2"]))
    }

    fn examine_with(&self, daemon: &Daemon) -> Report {
        checks::examine(&Host::new(&self.0), Path::new("/dev/ioasid"), daemon)
    }
}

fn daemon(has: &[&str]) -> Daemon {
    let all = crate::commands::EXTENSIONS;
    let answers: BTreeMap<_, _> =
        all.iter().map(|(name, _)| ((*name).to_owned(), u64::from(has.contains(name)))).collect();
    Daemon::Answers(answers)
}

impl Report {
    #[track_caller]
    fn of(&self, topic: &str) -> &Finding {
        let mut found = self.findings.iter().filter(|finding| finding.topic == topic);
        let first = found.next().unwrap_or_else(|| panic!("nothing about {topic}: {self:#?}"));
        assert!(found.next().is_none(), "more than one about {topic}: {self:#?}");
        first
    }

    #[track_caller]
    fn expect(&self, topic: &str, level: Level, text: &str) -> String {
        let finding = self.of(topic);
        assert_eq!(finding.level, level, "{finding:#?}");
        assert!(finding.text.contains(text), "{finding:#?}");
        finding.mend.join("\n")
    }

    /// All is well but this.
    #[track_caller]
    fn expect_only(&self, topic: &str, level: Level, text: &str) -> String {
        for finding in self.findings.iter().filter(|finding| finding.topic != topic) {
            assert_eq!(finding.level, Level::Ok, "{finding:#?}");
        }
        self.expect(topic, level, text)
    }
}

#[test]
fn a_healthy_host_is_usable_without_a_word() {
    let report = Fake::healthy().examine();
    for finding in &report.findings {
        assert_eq!(finding.level, Level::Ok, "{finding:#?}");
        assert!(finding.mend.is_empty(), "{finding:#?}");
    }
    assert_eq!(report.groups[0].state, State::Ready);
    assert_eq!(report.groups[0].devices[0].id.as_deref(), Some("8086:10d3"));
    assert_eq!(report.groups[0].devices[0].kind, Some("network"));
    assert_eq!(report.groups[1].state, State::Host);
    assert!(render::text(&report, false).ends_with("usable: 0 problems, 0 warnings\n"));
}

#[test]
fn without_an_iommu_the_firmware_is_to_blame_when_it_shows_no_table() {
    let fake = Fake::healthy();
    fake.remove("/sys/class/iommu/dmar0");
    fake.remove("/sys/kernel/iommu_groups");
    fake.remove("/sys/firmware/acpi/tables/DMAR");
    let report = fake.examine();
    let mend = report.expect_only("iommu", Level::Problem, "no ACPI table DMAR");
    assert!(mend.contains("VT-d"), "{mend}");
    fake.file("/proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t: fpu hypervisor lahf_lm\n");
    let mend = fake.examine().expect("iommu", Level::Problem, "no ACPI table DMAR");
    assert!(mend.contains("virtual machine"), "{mend}");
    assert!(!report.findings.iter().any(|finding| finding.topic == "interrupts"));
    assert!(render::text(&report, false).contains("not usable: 1 problem, 0 warnings"));
}

#[test]
fn an_iommu_that_the_kernel_left_off_is_turned_on_by_its_command_line() {
    let fake = Fake::healthy();
    fake.remove("/sys/class/iommu/dmar0");
    let mend = fake.examine().expect("iommu", Level::Problem, "the kernel left it off");
    assert!(mend.contains("intel_iommu=on") && mend.contains("update-grub"), "{mend}");

    fake.file("/proc/cmdline", "quiet intel_iommu=off\n");
    let mend = fake.examine().expect("iommu", Level::Problem, "has intel_iommu=off");
    assert!(mend.contains("remove intel_iommu=off"), "{mend}");

    fake.file("/proc/cmdline", "quiet\n");
    fake.file("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\n");
    fake.examine().expect("iommu", Level::Problem, "no ACPI table IVRS");
}

#[test]
fn interrupt_remapping_is_judged_by_the_interrupts_in_use() {
    let fake = Fake::healthy();
    fake.file("/proc/interrupts", "   0:  40  IO-APIC   2-edge   timer\n");
    let mend = fake.examine().expect_only("interrupts", Level::Problem, "did not turn it on");
    assert!(mend.contains("allow_unsafe_interrupts"), "{mend}");

    fake.file("/sys/firmware/acpi/tables/DMAR", &"\0".repeat(48));
    fake.examine().expect("interrupts", Level::Problem, "does not offer it");

    fake.file("/proc/cmdline", "quiet intremap=off\n");
    let mend = fake.examine().expect("interrupts", Level::Problem, "has intremap=off");
    assert!(mend.contains("remove intremap=off"), "{mend}");

    fake.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    fake.examine().expect("interrupts", Level::Warning, "any interrupt");

    fake.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
    fake.file("/proc/interrupts", " 11:  40  GICv3  27 Level  arch_timer\n");
    fake.examine().expect("interrupts", Level::Ok, "unknown");
}

#[test]
fn a_sibling_held_by_a_kernel_driver_blocks_the_group() {
    let fake = Fake::healthy();
    fake.device(5, "0000:00:03.1", "0x020000", Some("e1000e"));
    let report = fake.examine();
    let mend =
        report.expect_only("group", Level::Problem, "5 is not viable: e1000e holds 0000:00:03.1");
    let expected = "\
# if the host can do without 0000:00:03.1:
modprobe vfio-pci
echo vfio-pci > /sys/bus/pci/devices/0000:00:03.1/driver_override
echo 0000:00:03.1 > /sys/bus/pci/devices/0000:00:03.1/driver/unbind
echo 0000:00:03.1 > /sys/bus/pci/drivers_probe";
    assert_eq!(mend, expected);
    assert_eq!(report.groups[0].state, State::Blocked);
    let text = render::text(&report, false);
    let rows: Vec<_> = text.lines().filter(|line| line.contains("8086:10d3")).collect();
    assert!(rows[0].ends_with("blocked") && rows[0].starts_with("5 "), "{text}");
    assert!(rows[1].ends_with("stands in the way") && rows[1].starts_with("  "), "{text}");
}

#[test]
fn bridges_stubs_and_siblings_without_a_driver_do_not_block() {
    let fake = Fake::healthy();
    fake.device(5, "0000:00:01.0", "0x060400", Some("pcieport"));
    fake.device(5, "0000:00:03.1", "0x020000", None);
    fake.device(5, "0000:00:03.2", "0x020000", Some("pci-stub"));
    fake.device(5, "0000:00:03.3", "0x020000", Some("mlx5_vfio_pci"));
    let report = fake.examine();
    report.expect("group", Level::Ok, "5 is ready: 0000:00:03.0, 0000:00:03.3");
    assert_eq!(report.groups[0].state, State::Ready);
}

#[test]
fn with_no_device_on_vfio_pci_a_free_one_is_proposed() {
    let fake = Fake::healthy();
    fake.remove("/sys/kernel/iommu_groups/5");
    let mend = fake.examine().expect_only("group", Level::Warning, "no device is on vfio-pci");
    assert!(mend.contains("/ADDRESS/driver/unbind"), "{mend}");
    fake.device(7, "0000:00:00.0", "0x060000", None);
    fake.device(8, "0000:00:04.0", "0x030000", None);
    let mend = fake.examine().expect("group", Level::Warning, "no device is on vfio-pci");
    assert!(mend.contains("0000:00:04.0 (display)") && !mend.contains("unbind"), "{mend}");
}

#[test]
fn what_ioasid_run_needs_is_looked_at() {
    let fake = Fake::healthy();
    fake.examine().expect("ioasid-run", Level::Ok, "by anybody");
    fake.file("/proc/sys/user/max_user_namespaces", "0\n");
    let mend = fake.examine().expect_only("ioasid-run", Level::Warning, "root only");
    assert!(mend.contains("user.max_user_namespaces=10000"), "{mend}");
    fake.file("/proc/sys/kernel/seccomp/actions_avail", "kill_process allow\n");
    fake.examine().expect_only("ioasid-run", Level::Warning, "user notification");
}

#[test]
fn yama_3_is_a_problem_and_no_yama_is_none() {
    let fake = Fake::healthy();
    fake.file("/proc/sys/kernel/yama/ptrace_scope", "3\n");
    let mend = fake.examine().expect_only("yama", Level::Problem, "pidfd_getfd");
    assert!(mend.contains("reboot"), "{mend}");
    fake.remove("/proc/sys/kernel/yama/ptrace_scope");
    fake.examine().expect("yama", Level::Ok, "no Yama");
}

#[test]
fn cuse_that_is_not_loaded_is_a_matter_of_modprobe() {
    let fake = Fake::healthy();
    fake.remove("/dev/cuse");
    fake.remove("/sys/module/cuse");
    let list = "kernel/fs/fuse/cuse.ko: kernel/fs/fuse/fuse.ko\n";
    fake.file("/lib/modules/6.1.0-28-amd64/modules.dep", list);
    let mend = fake.examine().expect_only("cuse", Level::Warning, "not loaded");
    assert!(mend.starts_with("modprobe -a cuse\n"), "{mend}");
    // Debian's udev makes the node at boot; opening it loads the module.
    fake.file("/dev/cuse", "");
    fake.examine().expect("cuse", Level::Ok, "opens /dev/cuse");
}

#[test]
fn without_cuse_there_is_fuse_and_without_both_there_is_nothing() {
    let fake = Fake::healthy();
    fake.remove("/dev/cuse");
    fake.remove("/sys/module/cuse");
    let mend = fake.examine().expect_only("cuse", Level::Warning, "this kernel has no CUSE");
    assert!(mend.contains("linux-image"), "{mend}");
    fake.remove("/dev/fuse");
    fake.remove("/sys/module/fuse");
    let report = fake.examine();
    report.expect("cuse", Level::Problem, "no CUSE");
    report.expect("fuse", Level::Warning, "no FUSE");
}

#[test]
fn modules_are_found_under_either_spelling() {
    let fake = Fake::healthy();
    fake.remove("/sys/module/vfio_pci");
    let list = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n";
    fake.file("/lib/modules/6.1.0-28-amd64/modules.dep", list);
    let mend = fake.examine().expect_only("vfio", Level::Warning, "not loaded: vfio_pci");
    assert!(mend.contains("modprobe -a vfio_pci"), "{mend}");
    fake.file("/lib/modules/6.1.0-28-amd64/modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko");
    fake.examine().expect("vfio", Level::Ok, "loaded");
    fake.remove("/lib/modules");
    fake.examine().expect("vfio", Level::Problem, "no vfio_pci");
}

#[test]
fn a_small_limit_on_locked_memory_is_a_warning() {
    let fake = Fake::healthy();
    fake.memlock("8388608", "8388608");
    let mend = fake.examine().expect_only("memlock", Level::Warning, "only 8 MiB");
    assert!(mend.contains("limits.d") && !mend.contains("ulimit"), "{mend}");
    fake.memlock("8388608", "unlimited");
    let mend = fake.examine().expect("memlock", Level::Warning, "only 8 MiB");
    assert!(mend.contains("ulimit -l"), "{mend}");
    fake.memlock("17179869184", "unlimited");
    fake.examine().expect("memlock", Level::Ok, "16 GiB");
    fake.memlock("65536", "65536");
    fake.file("/proc/self/status", "CapEff:\t0000000000004000\n");
    fake.examine().expect("memlock", Level::Ok, "CAP_IPC_LOCK");
}

#[test]
fn kernels_without_pidfd_getfd_are_too_old() {
    let fake = Fake::healthy();
    for (release, level) in [
        ("5.4.0-1-amd64", Level::Problem),
        ("4.19.0-27-amd64", Level::Problem),
        ("5.6.0", Level::Ok),
        ("6.12.9-amd64", Level::Ok),
        ("10.0", Level::Ok),
        ("custom", Level::Warning),
    ] {
        fake.file("/proc/sys/kernel/osrelease", release);
        assert_eq!(fake.examine().of("kernel").level, level, "{release}");
    }
}

#[test]
fn a_missing_node_means_that_the_daemon_does_not_run() {
    let fake = Fake::healthy();
    fake.remove("/dev/ioasid");
    let why = "/dev/ioasid: ENOENT: there is no such node".to_owned();
    let report = fake.examine_with(&Daemon::Fails(why));
    let mend = report.expect_only("node", Level::Problem, "does not run");
    assert_eq!(mend, "cused");
}

#[test]
fn a_node_of_ones_own_is_started_where_it_was() {
    let fake = Fake::healthy();
    let gone = Daemon::Fails("/tmp/node: ENOENT: there is no such node".into());
    let report = checks::examine(&Host::new(&fake.0), Path::new("/tmp/node"), &gone);
    let mend = report.expect_only("node", Level::Problem, "no /tmp/node");
    assert_eq!(mend, "cused --transport fuse --path /tmp/node");
}

#[test]
fn a_daemon_that_fails_or_hangs_is_a_problem() {
    let fake = Fake::healthy();
    let gone = "/dev/ioasid: ENODEV: the daemon behind it is gone".to_owned();
    let report = fake.examine_with(&Daemon::Fails(gone.clone()));
    report.expect_only("daemon", Level::Problem, "is gone");
    fake.examine_with(&Daemon::Hangs).expect_only("daemon", Level::Problem, "does not answer");
    fake.examine_with(&daemon(&[])).expect_only("daemon", Level::Problem, "no device of any kind");
    let report = fake.examine_with(&daemon(&["SIMULATED"]));
    report.expect_only("daemon", Level::Warning, "though this host could");
    // A FUSE mount without its daemon cannot even be looked at.
    fake.remove("/dev/ioasid");
    fake.examine_with(&Daemon::Fails(gone)).expect_only("node", Level::Problem, "is gone");
}

#[test]
fn who_uses_simulated_devices_needs_no_hardware() {
    let fake = Fake::healthy();
    fake.remove("/sys/class/iommu/dmar0");
    fake.remove("/sys/kernel/iommu_groups");
    fake.remove("/dev/vfio");
    let report = fake.examine_with(&daemon(&["SIMULATED"]));
    report.expect("iommu", Level::Warning, "left it off");
    report.expect("vfio", Level::Warning, "no /dev/vfio/vfio");
    assert_eq!(report.worst(), Level::Warning);
    assert_eq!(fake.examine_with(&daemon(&["SIMULATED", "VFIO"])).worst(), Level::Problem);
}

#[test]
fn the_answer_of_the_daemon_is_read_from_check() {
    let answer = br#"{"extensions":{"VFIO":1,"NESTING":0}}"#;
    let Daemon::Answers(extensions) = understand(answer, b"") else { panic!() };
    assert_eq!(extensions["VFIO"], 1);
    let Daemon::Fails(why) = understand(b"", br#"{"error":"it is gone","status":3}"#) else {
        panic!()
    };
    assert_eq!(why, "it is gone");
}

#[test]
fn colour_is_only_there_when_asked_for_and_columns_stay() {
    let fake = Fake::healthy();
    fake.device(5, "0000:00:03.1", "0x020000", Some("e1000e"));
    let report = fake.examine();
    let plain = render::text(&report, false);
    assert!(!plain.contains('\x1b'));
    let mut coloured = render::text(&report, true);
    assert!(coloured.contains("\x1b[1;31mproblem"));
    for code in ["\x1b[32m", "\x1b[33m", "\x1b[1;31m", "\x1b[2m", "\x1b[0m"] {
        coloured = coloured.replace(code, "");
    }
    assert_eq!(coloured, plain);
}
