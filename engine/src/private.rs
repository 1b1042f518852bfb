//! Files and folders that are their owner's alone: what holds payloads or secrets.
//!
//! - What is made here has mode 0600, and a folder 0700, whatever the umask.
//! - A symbolic link in the place of a file is not followed: reading fails, and [`write()`] puts a file in its
//!   place. Whoever may put one there would otherwise choose what is read or overwritten. The folders
//!   above may be links: where a data folder lies is its operator's choice.
//! - [`write()`] leaves the old file or the new one, whole, also after a kill or a power cut.
//!
//! This keeps other users of the machine out. It does not look whose a file is: who can put files into a
//! folder of the engine's is kept from it by the folder's mode.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// What everyone else than the owner may do.
const OTHERS: u32 = 0o077;
/// The longest file that is read as a whole: secrets are far shorter.
const READ_BYTES_MAX: u64 = 64 * 1024;

/// Makes a file that is not there yet, for writing.
///
/// # Errors
/// When there is something in its place, or the folder takes none.
pub fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(FILE_MODE);
    let file = options.open(path)?;
    // A umask may have taken the owner's own rights.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// Makes a folder and those above it, where they are missing.
///
/// # Errors
/// When one of them cannot be made.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let mut folder = DirBuilder::new();
    folder.recursive(true).mode(FOLDER_MODE).create(path)
}

/// Opens a file as `options` say, unless something else than a file stands in its place.
///
/// # Errors
/// What opening says, or that there is a symbolic link or no file.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Without waiting for the other end, should a pipe stand there.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = options.mode(FILE_MODE).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a symbolic link, which is not followed here; put the file itself in its place",
        ),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no file; put one in its place",
        )),
    }
}

/// Reads a short text.
///
/// # Errors
/// When there is none, it is no text, or stands behind a symbolic link.
pub fn read(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|_| {
        let what = "it is no text; put the text that belongs there in its place";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// Reads a short file.
///
/// # Errors
/// When there is none, or it stands behind a symbolic link.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path, OpenOptions::new().read(true))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file whole, in the place of what stands there.
///
/// # Errors
/// When the folder does not take it; then what stood there still does.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // What a kill left of an earlier one.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = create_new(&fresh).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        // The name has to survive a power cut too.
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

/// Takes everyone else's rights to a file or a folder, and gives the mode that it had where they had any.
/// A file behind a symbolic link is left as it is; a folder's link is followed.
///
/// # Errors
/// When it is not there, or this user may not.
pub fn tighten(path: &Path) -> io::Result<Option<u32>> {
    let about = std::fs::symlink_metadata(path)?;
    let about = match about.is_symlink() {
        true => std::fs::metadata(path)?,
        false => about,
    };
    let mode = about.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(None);
    }
    let closed = Permissions::from_mode(mode & !OTHERS);
    if about.is_dir() {
        std::fs::set_permissions(path, closed)?;
    } else {
        open(path, OpenOptions::new().read(true))?.set_permissions(closed)?;
    }
    Ok(Some(mode))
}

/// Has what the engine keeps be its owner's alone, should an earlier version or somebody's hand have left it
/// open, and says so in the log: what lay open may have been read.
pub(crate) fn close_to_others(path: &Path) {
    match tighten(path) {
        Ok(None) => {}
        Ok(Some(mode)) => tracing::warn!(
            path = %path.display(),
            mode = format!("{mode:04o}"),
            "it was open to other users of this machine and is its owner's alone from now on; what it holds may have been read"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            path = %path.display(),
            %error,
            "other users of this machine may be able to read it, and that cannot be changed; have its owner do `chmod go-rwx`"
        ),
    }
}

/// Says in the log where others may put files into the data folder. It is not changed: it may be a folder
/// that holds other things too, and what the engine keeps in it is closed to others by itself. A volume whose
/// group is the process's own is how containers are given one.
pub(crate) fn warn_of_open_folder(path: &Path) {
    const EVERYONE_WRITES: u32 = 0o002;
    const GROUP_WRITES: u32 = 0o020;
    const STICKY: u32 = 0o1000;
    // A process's folder under /proc has its user and group.
    let (Ok(about), Ok(own)) = (std::fs::metadata(path), std::fs::metadata("/proc/self")) else {
        return;
    };
    let mode = about.permissions().mode() & 0o7777;
    let by_group = mode & GROUP_WRITES != 0 && about.gid() != own.gid();
    if (mode & EVERYONE_WRITES != 0 || by_group) && mode & STICKY == 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format!("{mode:04o}"),
            "other users of this machine may put files into the data folder and take the engine's away; `chmod go-w` closes it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }

    #[test]
    fn what_is_written_is_its_owners_alone_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "an older one, which lay open").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!((read(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = create_new(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        create_folder(&folder.path().join("a/b")).unwrap();
        for made in ["a", "a/b"] {
            assert_eq!(mode(&folder.path().join(made)), 0o700, "{made}");
        }
        // What a kill left of an earlier write is in nobody's way.
        std::fs::write(folder.path().join("secret.new"), "ha").unwrap();
        write(&path, b"newer").unwrap();
        assert_eq!(read(&path).unwrap(), "newer");
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (folder.path().join("elsewhere"), folder.path().join("link"));
        std::fs::write(&elsewhere, "another's").unwrap();
        std::fs::set_permissions(&elsewhere, Permissions::from_mode(0o644)).unwrap();
        symlink(&elsewhere, &link).unwrap();
        let error = read(&link).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert!(tighten(&link).is_err());
        assert_eq!(mode(&elsewhere), 0o644);
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
        write(&link, b"ours").unwrap();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "another's");
        assert!(!std::fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn what_lies_open_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "x").unwrap();
        for (before, told, after) in [
            (0o666, Some(0o666), 0o600),
            (0o640, Some(0o640), 0o600),
            (0o400, None, 0o400),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            assert_eq!(tighten(&path).unwrap(), told);
            assert_eq!(mode(&path), after);
        }
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(tighten(&inner).unwrap(), Some(0o755));
        assert_eq!((mode(&inner), tighten(&inner).unwrap()), (0o700, None));
    }
}
