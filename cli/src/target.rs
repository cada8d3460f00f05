//! Files to write. A new file is written next to the old one and replaces it when it is complete: a full
//! disk, or a program that ends early, leaves the old file unchanged.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// The target of an output. Whether it can be written is checked, as far as possible, before the output is
/// computed.
#[derive(Debug)]
pub(crate) struct Target {
    named: PathBuf,
    destination: Destination,
}

#[derive(Debug)]
enum Destination {
    /// A file by its real path, with the metadata of the existing file, if there is one.
    File(PathBuf, Option<Metadata>),
    /// The file to which standard output was redirected, which has a position of its own.
    StandardOutput,
    /// A pipe, a device or a file without a name.
    Open(File),
}

impl Target {
    /// The target at a path, which must not be the same file as any of `others`: the files that are read, and
    /// the other files that are written.
    pub(crate) fn new(path: &Path, others: &[&Path]) -> Result<Self, String> {
        let refused = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        if let Some(other) = others.iter().find(|other| same_file(path, other)) {
            return Err(refused(&format!(
                "writing it would destroy {}, which is the same file",
                other.display()
            )));
        }
        let destination = Destination::of(path).map_err(|error| refused(&error))?;
        Ok(Self { named: path.into(), destination })
    }

    /// Writes the bytes, which replace what the target contained.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<(), String> {
        self.destination.write(bytes).map_err(|error| format!("{}: {error}", self.named.display()))
    }
}

impl Destination {
    fn of(path: &Path) -> io::Result<Self> {
        let old = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            old => Some(old?),
        };
        if same_file(path, Path::new("/dev/stdout")) {
            return Ok(Destination::StandardOutput);
        }
        let real = real_path(path)?;
        match old {
            Some(old) if !same_file(path, &real) => Ok(Destination::Open(old)),
            old => {
                // This file is made only to check that files can be created in the folder.
                beside(&real)?;
                Ok(Destination::File(real, old.map(|old| old.metadata()).transpose()?))
            }
        }
    }

    fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Destination::File(path, old) => {
                let mut new = beside(&path)?;
                new.write_all(bytes)?;
                if let Some(old) = old {
                    // The owner is set before the permissions, because setting it removes some of them. Only
                    // root may give files to others, so errors are ignored.
                    #[cfg(unix)]
                    {
                        use std::os::unix::fs::{MetadataExt, fchown};
                        let _ = fchown(new.as_file(), Some(old.uid()), Some(old.gid()));
                    }
                    new.as_file().set_permissions(old.permissions())?;
                }
                new.persist(path)?;
                Ok(())
            }
            Destination::StandardOutput => {
                let mut out = io::stdout();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Destination::Open(mut file) => {
                // A pipe cannot be truncated, so errors are ignored.
                let _ = file.set_len(0);
                file.write_all(bytes)
            }
        }
    }
}

/// A file in the same folder, with the permissions of any new file, that is removed unless it is given a
/// name.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chunkwise-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(path))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path with links followed, even where they lead to no file yet.
pub(crate) fn real_path(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        real => return real,
    }
    match (fs::read_link(path), path.file_name()) {
        (Ok(next), _) => real_path(&folder(path).join(next)),
        (_, Some(name)) => Ok(folder(path).canonicalize()?.join(name)),
        (_, None) => Err(ErrorKind::NotFound.into()),
    }
}

/// Whether two paths refer to the same regular file, or would if it existed.
fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(x), Ok(y)) => x.is_file() && y.is_file() && is_one(a, &x, b, &y),
        (Err(_), Err(_)) => real_path(a).is_ok_and(|real| real_path(b).is_ok_and(|other| real == other)),
        _ => false,
    }
}

#[cfg(unix)]
fn is_one(_: &Path, x: &Metadata, _: &Path, y: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (x.dev(), x.ino()) == (y.dev(), y.ino())
}

#[cfg(not(unix))]
fn is_one(a: &Path, _: &Metadata, b: &Path, _: &Metadata) -> bool {
    real_path(a).is_ok_and(|real| real_path(b).is_ok_and(|other| real == other))
}
