//! Secret keys in files. A key is never shown.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use data_encoding::HEXLOWER;
use iroh::SecretKey;
use zeroize::Zeroizing;

/// No key is longer; what is, is some other file.
const MAX_LEN: u64 = 1024;

/// The key in `path`, which is made with a new key if there is none.
pub(super) fn load_or_create(path: &Path) -> anyhow::Result<SecretKey> {
    match File::open(path) {
        Ok(file) => load(file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(error) => Err(error).with_context(|| {
            format!(
                "the key file {} cannot be opened; make it readable, or give another",
                path.display()
            )
        }),
    }
}

fn load(file: File, path: &Path) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    let unreadable = || format!("the key file {shown} cannot be read; give a file with a key");
    check_access(&file, path).with_context(unreadable)??;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_LEN)
        .read_to_string(&mut text)
        .with_context(unreadable)?;
    // The parser's error might quote the text.
    text.trim().parse().map_err(|_| {
        anyhow!(
            "the key file {shown} has no key in it (64 hexadecimal digits); give another name to have a new one made"
        )
    })
}

#[cfg(unix)]
fn check_access(file: &File, path: &Path) -> io::Result<anyhow::Result<()>> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(if metadata.permissions().mode() & 0o077 == 0 {
        Ok(())
    } else {
        let path = path.display();
        Err(anyhow!(
            "the key file {path} can be read by others; take that away with `chmod 600 {path}`"
        ))
    })
}

#[cfg(not(unix))]
fn check_access(_: &File, _: &Path) -> io::Result<anyhow::Result<()>> {
    Ok(Ok(()))
}

fn create(path: &Path) -> anyhow::Result<SecretKey> {
    let key = SecretKey::generate();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).with_context(|| {
        format!(
            "the key file {} cannot be made; give another place for it",
            path.display()
        )
    })?;
    let mut text = Zeroizing::new(HEXLOWER.encode(&*Zeroizing::new(key.to_bytes())));
    text.push('\n');
    if let Err(error) = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
    {
        // Half a key is no key.
        let _ = std::fs::remove_file(path);
        bail!("the key file {} cannot be written: {error}", path.display());
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = load_or_create(&path).unwrap();
        let read = load_or_create(&path).unwrap();
        assert_eq!(made.public(), read.public());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        load_or_create(&path).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = format!("{:#}", load_or_create(&path).unwrap_err());
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("empty", b"".as_slice()),
            ("words", b"not a key at all"),
            ("binary", &[0xff; 32]),
            ("long", &[b'a'; 5000]),
        ] {
            let path = dir.path().join(name);
            let key = load_or_create(&path).unwrap();
            drop(key);
            std::fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", load_or_create(&path).unwrap_err());
            assert!(error.contains("key file"), "{error}");
            assert!(!error.contains("not a key at all"), "{error}");
        }
        assert!(load_or_create(dir.path()).is_err());
    }
}
