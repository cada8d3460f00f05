//! The text of the shipped PTX.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lzma_rust2::LzmaReader;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/ptx")
}

/// The names of all texts, for example `sm_80/decode`.
pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for arch in fs::read_dir(folder()).expect("the folder of all texts") {
        let arch = arch.expect("a folder").path();
        for file in fs::read_dir(&arch).expect("a folder") {
            let path = file.expect("a file").path();
            let path = path.strip_prefix(folder()).expect("it is in there").to_str().expect("a name");
            names.push(path.strip_suffix(".ptx.lzma").expect("nothing else").to_owned());
        }
    }
    names.sort();
    names
}

/// A text by its name, which is decompressed once.
pub(crate) fn text(name: &str) -> &'static str {
    static TEXTS: Mutex<BTreeMap<String, &'static str>> = Mutex::new(BTreeMap::new());
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.entry(name.to_owned()).or_insert_with(|| {
        let archive = fs::read(folder().join(format!("{name}.ptx.lzma"))).expect("a text of that name");
        let mut text = String::new();
        let mut reader = LzmaReader::new_mem_limit(&archive[..], u32::MAX, None).expect("an archive");
        reader.read_to_string(&mut text).expect("a whole archive");
        text.leak()
    })
}

/// The head of a text and one of its entries, without the others, which would take time to parse.
pub(crate) fn entry(name: &str, entry: &str) -> String {
    const ENTRY: &str = ".visible .entry ";
    let (head, entries) = text(name).split_once(ENTRY).expect("an entry");
    let found = entries.split(ENTRY).find(|text| text.starts_with(&format!("{entry}(")));
    format!("{head}{ENTRY}{}", found.unwrap_or_else(|| panic!("{name} has no {entry}")))
}
