//! What files of every kind need.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens a regular file to read it. Does not wait for the other end of a pipe, as plain opening does.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    }
}

/// Makes sure that a file that was just made or renamed is in its directory after a power cut.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_opened_and_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let regular = dir.path().join("regular");
        std::fs::write(&regular, "text").unwrap();
        assert!(open_regular(&regular).is_ok());
        let kind = |path: &Path| open_regular(path).unwrap_err().kind();
        assert_eq!(kind(&dir.path().join("missing")), io::ErrorKind::NotFound);
        assert!(open_regular(dir.path()).is_err());
        #[cfg(unix)]
        {
            let pipe = dir.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            assert!(made.unwrap().success());
            assert_eq!(kind(&pipe), io::ErrorKind::InvalidInput);
        }
    }
}
