//! Secret keys in files. A key is never shown.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use anyhow::{Context, anyhow, bail, ensure};
use data_encoding::HEXLOWER;
use iroh::SecretKey;
use zeroize::Zeroizing;

use super::file::{open_regular, sync_dir};

/// No key is longer, in bytes; what is, is some other file.
const MAX_LEN: usize = 1024;

/// The key in `path`, which is made with a new key if there is none.
pub(super) fn load_or_create(path: &Path) -> anyhow::Result<SecretKey> {
    match open_regular(path) {
        Ok(file) => load(&file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(error) => Err(error).with_context(|| {
            format!(
                "the key file {} cannot be opened; make it readable, or give another",
                path.display()
            )
        }),
    }
}

fn load(file: &File, path: &Path) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    let unreadable = || format!("the key file {shown} cannot be read; give a file with a key");
    check_access(file, path).with_context(unreadable)??;
    // Of one size from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new([0; MAX_LEN + 1]);
    let len = read_up_to(file, bytes.as_mut()).with_context(unreadable)?;
    let text = bytes.get(..len).filter(|_| len <= MAX_LEN);
    // The parser's error might quote the text.
    text.and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok())
        .ok_or_else(|| {
            anyhow!(
                "the key file {shown} has no key in it (64 hexadecimal digits); give another name to have a new one made"
            )
        })
}

/// Says how much was read.
fn read_up_to(mut file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(unix)]
fn check_access(file: &File, path: &Path) -> io::Result<anyhow::Result<()>> {
    use std::os::unix::fs::PermissionsExt;

    Ok(if file.metadata()?.permissions().mode() & 0o077 == 0 {
        Ok(())
    } else {
        let path = path.display();
        Err(anyhow!(
            "the key file {path} is open to others; take that away with `chmod 600 {path}`, or have a new key made if somebody may have read it"
        ))
    })
}

#[cfg(not(unix))]
fn check_access(_: &File, _: &Path) -> io::Result<anyhow::Result<()>> {
    Ok(Ok(()))
}

fn create(path: &Path) -> anyhow::Result<SecretKey> {
    let shown = path.display();
    ensure!(
        !path.is_symlink(),
        "the key file {shown} is a symbolic link that leads nowhere; remove it, or give another place for the key"
    );
    let key = SecretKey::generate();
    let mut options = OpenOptions::new();
    // Not through a link that somebody lays now.
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).with_context(|| {
        format!("the key file {shown} cannot be made; give another place for it")
    })?;
    let bytes = Zeroizing::new(key.to_bytes());
    let mut text = Zeroizing::new([b'\n'; 65]);
    let (digits, _) = text.split_at_mut(64);
    HEXLOWER.encode_mut(&*bytes, digits);
    let written = file
        .write_all(&*text)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_dir(path));
    if let Err(error) = written {
        // Half a key is no key.
        let _ = std::fs::remove_file(path);
        bail!("the key file {shown} cannot be written: {error}");
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &Path) -> String {
        format!("{:#}", load_or_create(path).unwrap_err())
    }

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = load_or_create(&path).unwrap();
        let read = load_or_create(&path).unwrap();
        assert_eq!(made.to_bytes(), read.to_bytes());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", HEXLOWER.encode(&made.to_bytes())));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_is_open_to_others_in_any_way_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        load_or_create(&path).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        let set = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for bit in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
            set(0o600 | bit);
            let error = error(&path);
            let advice = format!("chmod 600 {}", path.display());
            assert!(error.contains(&advice), "{error}");
            assert_eq!(mode(), 0o600 | bit, "it is left as it is");
        }
        for mode in [0o600, 0o400, 0o700] {
            set(mode);
            assert!(load_or_create(&path).is_ok());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_leads_to_a_key_and_none_is_made_through_one() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let dir = tempfile::tempdir().unwrap();
        let (key, link) = (dir.path().join("key"), dir.path().join("link"));
        symlink(&key, &link).unwrap();
        let dangling = error(&link);
        assert!(dangling.contains("leads nowhere"), "{dangling}");
        assert!(!key.exists());
        let made = load_or_create(&key).unwrap();
        assert_eq!(load_or_create(&link).unwrap().public(), made.public());
        // What it leads to is what counts.
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(error(&link).contains("chmod 600"));
        let around = dir.path().join("around");
        symlink(&around, &around).unwrap();
        assert!(error(&around).contains("cannot be opened"));
    }

    #[test]
    fn what_is_no_key_is_refused_and_neither_quoted_nor_changed() {
        let dir = tempfile::tempdir().unwrap();
        let key = load_or_create(&dir.path().join("good")).unwrap();
        let key = HEXLOWER.encode(&key.to_bytes());
        let (half, twice) = (&key[..32], key.repeat(2));
        let after = format!("{key}{}", " ".repeat(MAX_LEN));
        let comment = format!("# mine\n{key}\n");
        for (name, bytes) in [
            ("empty", "".as_bytes()),
            ("words", b"not a key at all"),
            ("binary", &[0xff; 32]),
            ("long", &[b'a'; 5000]),
            ("half", half.as_bytes()),
            ("twice", twice.as_bytes()),
            ("something after it", after.as_bytes()),
            ("something before it", comment.as_bytes()),
        ] {
            let path = dir.path().join(name);
            drop(load_or_create(&path).unwrap());
            std::fs::write(&path, bytes).unwrap();
            let error = error(&path);
            assert!(error.contains("has no key in it"), "{name}: {error}");
            for secret in ["not a key at all", half, "aaaa"] {
                assert!(!error.contains(secret), "{name}: {error}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}");
        }
        assert!(error(dir.path()).contains("not a regular file"));
    }
}
