//! Holds that `include/ioasid.h` and its Rust twin say the same, and that the header compiles by
//! itself wherever C and C++ programs may include it.
//!
//! A C compiler is the judge of the header: generated programs print what it makes of every
//! constant, structure and field. The compilers are `$CC` and `$CXX`, or `cc` and `c++`.

use ioasid_uapi::{self as uapi, cmd, errno, ext};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADER: &str = include_str!("../include/ioasid.h");
const TWIN: &str = include_str!("../src/lib.rs");
const INCLUDE_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// The include guard is no part of the interface.
const GUARD: &str = "IOASID_UAPI_H";
/// Second names that the header gives to a command, and that command.
const ALIASES: &[(&str, &str)] =
    &[("IOASID_DMA_MAP", "IOASID_MAP_DMA"), ("IOASID_DMA_UNMAP", "IOASID_UNMAP_DMA")];
/// Public constants of the Rust twin that stand for no `#define`.
const RUST_ONLY: &[&str] = &["ARGSZ_MAX", "STRUCTURES"];

/// A constant of the Rust twin under the name that the header must give it.
type Constant = (String, u64);

macro_rules! constants {
    ($($prefix:literal, $module:ident { $($name:ident)* })*) => {
        vec![$($((concat!($prefix, stringify!($name)).to_string(), $module::$name as u64),)*)*]
    };
}

/// Every constant of the Rust twin. That none is forgotten here is what
/// [`every_define_has_a_twin`] and [`every_rust_constant_is_compared`] hold.
fn constants() -> Vec<Constant> {
    let mut all: Vec<Constant> = constants! {
        "IOASID_", uapi {
            TYPE BASE INFO_SIZE_VER0 INFO_MAP_DMA INFO_NESTING INFO_SIMULATED MAP_READ MAP_WRITE MAP_FILE UNMAP_ALL
            INVALIDATE_ALL NAME_LEN BIND_VFIO_GROUP BIND_SIMULATED ATTACH_USER_PASID DEVICE_VFIO
            DEVICE_SIMULATED DEVICE_ATTACHED ERROR_ANY_THREAD SIM_DMA_READ SIM_DMA_WRITE SIM_DMA_MAX
            INFO_SIZE_VER1 INFO_SHADOW INFO_DIRTY INFO_TRACKING INFO_PASID_TABLE UNMAP_DIRTY UNMAP_SIZE_VER0
            FORMAT_X86_4LEVEL FORMAT_X86_5LEVEL FORMAT_VTD_SECOND FORMAT_AMD_V1
            FORMAT_ARM_LPAE_4K FORMAT_ARM_LPAE_64K PASID_FORMAT_VTD PASID_FORMAT_ARM_CD PASID_FORMAT_ARM_CD_4K PASID_FORMAT_ARM_CD_64K OP_MAP
            OP_UNMAP VECTOR_MAX DIRTY_START DIRTY_STOP DIRTY_READ DIRTY_PAGES_MAX BIND_SHARE BIND_SIZE_VER0
            FAULT_READ FAULT_WRITE FAULT_RECOVERABLE FAULT_BEST_EFFORT FAULT_PASID
            FAULT_REASON_UNKNOWN FAULT_REASON_NOT_MAPPED FAULT_REASON_PERMISSION
            FAULT_REASON_MEMORY FAULTS_MAX RESPONSE_SUCCESS RESPONSE_RETRY RESPONSE_FAIL
            SIM_DMA_PASID SIM_DMA_RECOVERABLE SIM_DMA_CONTINUE SIM_DMA_SIZE_VER0
            LIST_IOASIDS LIST_DEVICES LIST_MAPPINGS LIST_MAX
        }
        "IOASID_EXT_", ext {
            MAP_TYPE1V2 NESTING USER_PAGE_TABLE USER_PASID_TABLE MULTIDEV_GROUP DIRTY_TRACKING
            REGISTER_MEMORY SHARED_MEMORY PRIVATE_MEMORY VFIO SIMULATED FILE_MEMORY
            VECTOR FAULTS RECOVERABLE_FAULTS SHARED_TABLE CONTAINER
        }
        "IOASID_", cmd {
            CHECK_EXTENSION REGISTER_MEMORY UNREGISTER_MEMORY ALLOC FREE GET_INFO MAP_DMA UNMAP_DMA
            CREATE_NESTING BIND_PGTABLE UNBIND_PGTABLE BIND_PASID_TABLE UNBIND_PASID_TABLE
            INVALIDATE_CACHE BIND_DEVICE UNBIND_DEVICE ATTACH_DEVICE DETACH_DEVICE GET_DEVICE_INFO
            GET_ERROR SIM_DMA VECTOR DIRTY COMPLETE_FAULT SET_FAULT_EVENTFD LIST
        }
        "", cmd {
            VFIO_BIND_IOASID_FD VFIO_UNBIND_IOASID_FD VFIO_ATTACH_IOASID VFIO_DETACH_IOASID
        }
    };
    for (alias, name) in ALIASES {
        let value = all.iter().find(|(n, _)| n == name).expect("an alias names a command").1;
        all.push((alias.to_string(), value));
    }
    all
}

/// The errno values of the Rust twin; C has them in `<errno.h>`.
fn errnos() -> Vec<Constant> {
    constants! {
        "", errno {
            EPERM ENOENT EINTR EIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV EINVAL
            ENOTTY ENOSPC EOVERFLOW EMSGSIZE EOPNOTSUPP EADDRINUSE
        }
    }
}

#[test]
fn the_header_compiles_alone_and_beside_vfio() {
    let after = "#include <linux/vfio.h>\n#include <ioasid.h>\n";
    let before = "#include <ioasid.h>\n#include <linux/vfio.h>\n";
    let alone = "#include <ioasid.h>\n";
    let twice = "#include <ioasid.h>\n#include <ioasid.h>\n";
    for language in [Language::C99, Language::C11, Language::Cxx17] {
        for (case, includes) in
            [("alone", alone), ("after-vfio", after), ("before-vfio", before), ("twice", twice)]
        {
            let source = format!("{includes}int main(void) {{ return 0; }}\n");
            compile(language, &format!("include-{case}"), &source);
        }
    }
}

#[test]
fn c_and_rust_agree_on_every_number() {
    let mut expected: Vec<Constant> = constants();
    expected.extend(errnos());
    // The header spells these out, so that <linux/vfio.h> need not be included.
    expected.extend([("VFIO_TYPE".into(), b';'.into()), ("VFIO_BASE".into(), 100)]);

    let mut body = String::new();
    for (name, _) in &expected {
        writeln!(body, "\tprintf(\"{name} %llu\\n\", (unsigned long long)({name}));").unwrap();
    }
    for (language, printed) in run_in_both("constants", &body) {
        for (name, value) in &expected {
            assert_eq!(printed.get(name.as_str()), Some(value), "{name} in {language:?}");
        }
    }
}

#[test]
fn c_and_rust_agree_on_every_structure() {
    let mut expected = BTreeMap::new();
    let mut body = String::new();
    let mut print = |key: String, expression: String, value: usize| {
        writeln!(body, "\tprintf(\"{key} %llu\\n\", (unsigned long long){expression});").unwrap();
        expected.insert(key, value as u64);
    };
    for s in uapi::STRUCTURES {
        let tag = s.name;
        print(tag.to_string(), format!("sizeof(struct {tag})"), s.size);
        for &(field, offset, size) in s.fields {
            let one = format!("((struct {tag} *)0)->{field}");
            print(format!("{tag}.{field}@"), format!("offsetof(struct {tag}, {field})"), offset);
            print(format!("{tag}.{field}#"), format!("sizeof({one})"), size);
        }
    }
    for (language, printed) in run_in_both("structures", &body) {
        for (key, value) in &expected {
            assert_eq!(
                printed.get(key),
                Some(value),
                "{key} in {language:?} (@ is an offset, # a size)"
            );
        }
    }
}

#[test]
fn every_define_has_a_twin() {
    let in_header: BTreeSet<String> = defines(HEADER).into_iter().filter(|n| n != GUARD).collect();
    let in_rust: BTreeSet<String> = constants().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        in_header.symmetric_difference(&in_rust).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "these are defined on one side only"
    );
}

#[test]
fn every_rust_constant_is_compared() {
    let compared: BTreeSet<String> =
        constants().into_iter().chain(errnos()).map(|(name, _)| name).collect();
    for (module, name) in rust_constants(TWIN) {
        if RUST_ONLY.contains(&name.as_str()) {
            continue;
        }
        let c_name = match module.as_str() {
            "errno" => name.clone(),
            "cmd" if name.starts_with("VFIO_") => name.clone(),
            "" | "cmd" => format!("IOASID_{name}"),
            other => format!("IOASID_{}_{name}", other.to_uppercase()),
        };
        assert!(
            compared.contains(&c_name),
            "{module}::{name}: this test does not compare {c_name}"
        );
    }
}

#[test]
fn every_structure_has_a_twin_with_the_same_fields() {
    let in_header = structures(HEADER);
    let in_rust: BTreeMap<String, Vec<String>> = uapi::STRUCTURES
        .iter()
        .map(|s| (s.name.to_string(), s.fields.iter().map(|f| f.0.to_string()).collect()))
        .collect();
    assert_eq!(in_header, in_rust);
}

#[test]
fn no_structure_has_hidden_padding() {
    for s in uapi::STRUCTURES {
        let mut end = 0;
        for &(field, offset, size) in s.fields {
            assert_eq!(offset, end, "padding before {}.{field}", s.name);
            end = offset + size;
        }
        assert_eq!(end, s.size, "padding at the end of {}", s.name);
    }
}

#[test]
fn every_command_knows_its_name() {
    for (name, value) in constants() {
        let is_command = rust_constants(TWIN)
            .iter()
            .any(|(module, constant)| module == "cmd" && format!("IOASID_{constant}") == name);
        if is_command {
            assert_eq!(uapi::cmd::name(value as u32), Some(name.as_str()));
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Reading the two sources
// ---------------------------------------------------------------------------------------------

/// The header without its comments.
fn without_comments(header: &str) -> String {
    let mut rest = header;
    let mut code = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    code + rest
}

/// The names that the header defines.
fn defines(header: &str) -> Vec<String> {
    without_comments(header)
        .lines()
        .filter_map(|line| {
            line.strip_prefix("#define")?.split_whitespace().next().map(String::from)
        })
        .collect()
}

/// The structures that the header declares: tag, and the names of the fields in order.
fn structures(header: &str) -> BTreeMap<String, Vec<String>> {
    let code = without_comments(header);
    let mut found = BTreeMap::new();
    for part in code.split("struct ").skip(1) {
        let Some((tag, body)) = part.split_once('{') else { continue };
        let (body, _) = body.split_once('}').expect("a structure ends");
        let fields = body
            .split(';')
            .filter_map(|declaration| declaration.split_whitespace().last())
            .map(|name| name.split('[').next().expect("split gives one part").to_string())
            .collect();
        found.insert(tag.trim().to_string(), fields);
    }
    found
}

/// The public constants of the Rust twin: module ("" for the crate itself) and name. Those that
/// the `structures!` macro makes are indented differently and say themselves what they are.
fn rust_constants(source: &str) -> Vec<(String, String)> {
    let mut module = String::new();
    let mut found = Vec::new();
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("pub mod ") {
            module = rest.trim_end_matches(" {").to_string();
        } else if line == "}" {
            module.clear();
        }
        let line = if module.is_empty() { line } else { line.trim_start() };
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        if let Some((name, _)) = rest.split_once(':').filter(|(name, _)| !name.contains('(')) {
            found.push((module.clone(), name.to_string()));
        }
    }
    assert!(found.len() > 50, "the constants of src/lib.rs are no longer found");
    found
}

// ---------------------------------------------------------------------------------------------
// Asking the compilers
// ---------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
enum Language {
    C99,
    C11,
    Cxx17,
}

impl Language {
    fn compiler(self) -> Command {
        let (variable, default, standard) = match self {
            Self::C99 => ("CC", "cc", "-std=c99"),
            Self::C11 => ("CC", "cc", "-std=c11"),
            Self::Cxx17 => ("CXX", "c++", "-std=c++17"),
        };
        // As make does: the variable may hold arguments too.
        let line = std::env::var(variable).unwrap_or_else(|_| default.into());
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or(default));
        command.args(words).arg(standard);
        command
    }

    fn extension(self) -> &'static str {
        match self {
            Self::C99 | Self::C11 => "c",
            Self::Cxx17 => "cc",
        }
    }
}

/// Compiles a program with every warning an error and gives the path of the result.
fn compile(language: Language, name: &str, source: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join(format!("{name}-{language:?}"));
    let file = program.with_extension(language.extension());
    std::fs::write(&file, source).unwrap();
    let mut compiler = language.compiler();
    compiler
        .args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-I", INCLUDE_DIR, "-o"])
        .arg(&program)
        .arg(&file);
    let output = compiler.output().unwrap_or_else(|error| {
        panic!("{compiler:?} could not be started ({error}); set CC and CXX to compilers")
    });
    assert!(
        output.status.success(),
        "{compiler:?}:\n{}\n{source}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

/// Runs a program made of `body` in C and in C++ and gives the `NAME NUMBER` lines it printed.
fn run_in_both(name: &str, body: &str) -> Vec<(Language, BTreeMap<String, u64>)> {
    let source = format!(
        "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <linux/vfio.h>\n\
         #include <ioasid.h>\n\nint main(void)\n{{\n{body}\treturn 0;\n}}\n"
    );
    [Language::C99, Language::Cxx17]
        .into_iter()
        .map(|language| {
            let program = compile(language, name, &source);
            let output = Command::new(&program).output().unwrap();
            assert!(output.status.success(), "{} ended with {}", program.display(), output.status);
            let printed = String::from_utf8(output.stdout).unwrap();
            let numbers = printed
                .lines()
                .map(|line| {
                    let (key, value) = line.split_once(' ').unwrap();
                    (key.to_string(), value.parse().unwrap())
                })
                .collect();
            (language, numbers)
        })
        .collect()
}
