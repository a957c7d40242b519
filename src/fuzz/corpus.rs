//! The files under `tests/fuzz/corpus`.

use std::{fs, path::PathBuf};

/// Every input that is kept for a target. Its files of real inputs are held to be what the code makes now.
pub(super) fn all(name: &str, seeds: &[(&str, Vec<u8>)]) -> Vec<Vec<u8>> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fuzz/corpus", name]
        .iter()
        .collect();
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        fs::create_dir_all(&folder).expect("the folder is there");
        for (seed, bytes) in seeds {
            fs::write(folder.join(seed), bytes).expect("the corpus can be written");
        }
    }
    for (seed, bytes) in seeds {
        let kept = fs::read(folder.join(seed)).unwrap_or_default();
        assert!(
            kept == *bytes,
            "tests/fuzz/corpus/{name}/{seed} is of another format: run with UPDATE_CORPUS=1"
        );
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("tests/fuzz/corpus/{name}: {error}"))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    files.sort();
    let read = |path| fs::read(path).expect("a file");
    files.into_iter().map(read).collect()
}
