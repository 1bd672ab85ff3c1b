//! What every kernel takes of a multiprocessor, as the assembler said when it was compiled: `cuda/registers.txt`. A
//! kernel that spills registers where it did not, or takes more of them, is noticed. `UPDATE_DOCS=1` writes the table.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::path::Path;

/// Of one kernel on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    registers: u32,
    spilled: u32,
    shared: u32,
}

/// The number that stands before `unit`.
fn number(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len());
    before.and_then(|before| before.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

fn parse(said: &str) -> BTreeMap<(String, String), Needs> {
    let (mut table, mut at) = (BTreeMap::<_, Needs>::new(), None);
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            at = Some((quoted.next().unwrap().to_owned(), quoted.nth(1).unwrap().to_owned()));
        } else if let Some(at) = &at {
            let needs = table.entry(at.clone()).or_default();
            if line.contains("spill stores") {
                needs.spilled = number(line, " bytes spill stores") + number(line, " bytes spill loads");
            } else if line.contains("Used ") {
                (needs.registers, needs.shared) = (number(line, " registers"), number(line, " bytes smem"));
            }
        }
    }
    table
}

#[test]
fn kernels_take_what_the_table_says() {
    let said = std::fs::read_to_string(Path::new(env!("OUT_DIR")).join("ptxas.txt")).unwrap();
    let table = parse(&said);
    assert!(table.len() >= 40, "the assembler said nothing: {said}");
    // Products of warpgroups that wait for each other are no warning to the compiler.
    assert!(!said.contains("serialized"), "products are serialised: {said}");
    let mut text =
        String::from("kernel                              target    registers  spilled bytes  static shared bytes\n");
    for ((kernel, target), needs) in &table {
        let Needs { registers, spilled, shared } = needs;
        text += &format!("{kernel:<35} {target:<9} {registers:>9} {spilled:>14} {shared:>20}\n");
        assert_eq!(*spilled, 0, "{kernel} spills registers on {target}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/registers.txt");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{} is not what the assembler says; UPDATE_DOCS=1 writes it:\n{text}", path.display());
}

#[test]
fn what_the_assembler_says_is_understood() {
    let said = "ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
                ptxas info    : Function properties for a\n    \
                8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                ptxas info    : Used 12 registers, used 1 barriers, 128 bytes smem, 372 bytes cmem[0]\n";
    let needs = Needs { registers: 12, spilled: 16, shared: 128 };
    assert_eq!(parse(said), BTreeMap::from([(("a".to_owned(), "sm_80".to_owned()), needs)]));
}
