//! What the daemon is told: options of the command line over a TOML file over defaults.

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use serde::Deserialize;

use crate::argument::Access;
use crate::backend::simulated::{DeviceConfig, Simulator};
use crate::policy::{Policy, PolicyConfig};

/// The daemon behind /dev/ioasid.
///
/// It makes the node, keeps the I/O address spaces of the programs that open it, and has the
/// hardware follow through VFIO. It runs in the foreground until SIGTERM or SIGINT.
#[derive(Debug, Default, Parser)]
#[command(version, about, long_about)]
pub struct Options {
    /// Read settings from this TOML file; options override them.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say whether the settings are good, and exit.
    #[arg(long)]
    pub check_config: bool,
    /// How the node is made; auto takes CUSE where /dev/cuse exists, else a FUSE file.
    #[arg(long, value_name = "KIND")]
    pub transport: Option<Transport>,
    /// With CUSE: the name of the node under /dev.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// With CUSE: the device's major number; 0 lets the kernel choose.
    #[arg(long, value_name = "N")]
    pub major: Option<u32>,
    /// With CUSE: the device's minor number.
    #[arg(long, value_name = "N")]
    pub minor: Option<u32>,
    /// With a FUSE file: where the node is placed.
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// With a FUSE file: the node's permissions, octal. (With CUSE they are a udev rule's job.)
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Offer this many simulated devices, sim0 and on, beside those of the file.
    #[arg(long, value_name = "COUNT")]
    pub simulated: Option<u32>,
    /// How much is told: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<log::LevelFilter>,
    /// How arguments of programs are read: directly, or always by the kernel's retry.
    #[arg(long, value_name = "WAY")]
    pub argument_access: Option<Access>,
    /// Write a line to this inherited descriptor, and close it, once the node is there.
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<RawFd>,
}

/// How the node is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// CUSE where /dev/cuse exists, else a FUSE file.
    #[default]
    Auto,
    /// A character device, made with CUSE.
    Cuse,
    /// A file, served by FUSE.
    Fuse,
}

/// File permissions, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(pub u32);

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("{text:?} is no octal permission such as 0660")),
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The settings, as the TOML file has them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// How the node is made.
    pub transport: Transport,
    /// CUSE: the name under /dev.
    pub name: String,
    /// CUSE: device numbers; major 0 lets the kernel choose.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// FUSE file: where it is placed.
    pub path: PathBuf,
    /// FUSE file: its permissions.
    pub mode: Mode,
    /// How much is told.
    pub log_level: log::LevelFilter,
    /// How arguments of programs are read.
    pub argument_access: Access,
    /// What one program may use.
    pub limits: Limits,
    /// Who may do what.
    pub policy: PolicyConfig,
    /// Simulated devices.
    pub simulated: Vec<DeviceConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transport: Transport::Auto,
            name: "ioasid".into(),
            major: 0,
            minor: 0,
            path: "/dev/ioasid".into(),
            mode: Mode(0o600),
            log_level: log::LevelFilter::Info,
            argument_access: Access::Direct,
            limits: Limits::default(),
            policy: PolicyConfig::default(),
            simulated: Vec::new(),
        }
    }
}

/// What one open of the node and one user may use, and how many calls are served at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// I/O address spaces.
    pub ioasids: u32,
    /// Bound devices.
    pub devices: u32,
    /// Mappings in one I/O address space.
    pub mappings: u32,
    /// Registered ranges of memory at a time.
    pub registered: u32,
    /// Bytes of registered memory.
    pub registered_bytes: u64,
    /// Opens of one user at a time.
    pub opens_per_user: u64,
    /// Bytes of registered memory of one user, all opens together.
    pub registered_bytes_per_user: u64,
    /// Calls in progress on one open; a further one gets EBUSY.
    pub calls: usize,
    /// Threads that serve all calls; each call in progress needs one.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ioasids: 4096,
            devices: 256,
            mappings: 1 << 20,
            registered: 4096,
            registered_bytes: 1 << 40,
            opens_per_user: 4096,
            registered_bytes_per_user: 1 << 42,
            calls: 64,
            threads: 256,
        }
    }
}

impl Config {
    /// The settings that the options lead to.
    ///
    /// # Errors
    /// The sentence that says what is wrong, and where.
    pub fn load(options: &Options) -> anyhow::Result<Self> {
        let mut config = match &options.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        config.apply(options);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("the configuration {} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))
    }

    fn apply(&mut self, options: &Options) {
        fn set<T: Clone>(field: &mut T, option: &Option<T>) {
            if let Some(value) = option {
                field.clone_from(value);
            }
        }
        set(&mut self.transport, &options.transport);
        set(&mut self.name, &options.name);
        set(&mut self.major, &options.major);
        set(&mut self.minor, &options.minor);
        set(&mut self.path, &options.path);
        set(&mut self.mode, &options.mode);
        set(&mut self.log_level, &options.log_level);
        set(&mut self.argument_access, &options.argument_access);
        let count = options.simulated.unwrap_or(0);
        self.simulated.extend((0..count).map(DeviceConfig::plain));
    }

    fn check(&self) -> anyhow::Result<()> {
        Simulator::new(&self.simulated).map_err(anyhow::Error::msg)?;
        Policy::new(&self.policy).map_err(anyhow::Error::msg)?;
        let Limits { ioasids, devices, mappings, registered, calls, threads, .. } = self.limits;
        let Limits { registered_bytes, opens_per_user, registered_bytes_per_user, .. } =
            self.limits;
        if [ioasids, devices, mappings, registered].contains(&0)
            || [registered_bytes, opens_per_user, registered_bytes_per_user].contains(&0)
            || [calls, threads].contains(&0)
        {
            bail!("limits: each must be at least 1");
        }
        if !(2..=4096).contains(&threads) {
            bail!("limits: threads must be 2 to 4096");
        }
        if !self.path.is_absolute() {
            bail!("path: {} is not absolute", self.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_override_the_file() {
        let mut config: Config = toml::from_str("name = \"a\"\nmode = \"0660\"").expect("good");
        config.apply(&Options { name: Some("b".into()), ..Options::default() });
        assert_eq!((config.name.as_str(), config.mode), ("b", Mode(0o660)));
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        let error = toml::from_str::<Config>("nmae = \"a\"").expect_err("unknown key");
        assert!(error.to_string().contains("nmae"), "{error}");
    }

    #[test]
    fn simulated_devices_come_from_file_and_option() {
        let text = "[[simulated]]\nname = \"odd\"\ngroup = 9\nreserved = [[0x1000, 0x1fff]]\n";
        let mut config: Config = toml::from_str(text).expect("good");
        config.apply(&Options { simulated: Some(2), ..Options::default() });
        let names: Vec<_> = config.simulated.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["odd", "sim0", "sim1"]);
        config.check().expect("good");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        let check = |text: &str| {
            toml::from_str::<Config>(text)
                .expect("well-formed")
                .check()
                .expect_err(text)
                .to_string()
        };
        assert!(check("[limits]\nioasids = 0").contains("limits"));
        assert!(check("path = \"x\"").contains("absolute"));
        let overlapping = "[[simulated]]\nname = \"d\"\ngroup = 0\nreserved = [[0, 1], [1, 2]]";
        assert!(check(overlapping).contains("simulated device d"));
        assert!(check("[limits]\nopens-per-user = 0").contains("limits"));
        assert!(check("[policy]\nallow = [\"no-such-user\"]").contains("no-such-user"));
        let small = "[[simulated]]\nname = \"d\"\ngroup = 0\npage-sizes = [512]";
        assert!(check(small).contains("page-sizes"));
    }
}
