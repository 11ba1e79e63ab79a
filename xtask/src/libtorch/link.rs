//! The link between the workspace and a libtorch: a small file of cargo's configuration, included
//! by the one under version control, so that plain cargo commands work after set-up.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const FILE: &str = ".cargo/libtorch.toml";

/// The contents of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// The folder that `LIBTORCH` is set to.
    pub libtorch: PathBuf,
    text: String,
}

impl Link {
    /// Whether the file is complete for this folder: the variable for the build, and the run path.
    pub fn is_for(&self, libtorch: &Path) -> bool {
        let Some(root) = libtorch.to_str() else {
            return false;
        };
        let [_, flag] = run_path_flags(root);
        self.libtorch == libtorch && self.text.contains(&toml_string(&flag)) && self.text.contains("rustdocflags = ")
    }
}

/// Reads the link, if there is one of the form that [`write()`] gives it.
pub fn read(workspace: &Path) -> Option<Link> {
    let text = fs::read_to_string(workspace.join(FILE)).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("LIBTORCH = "))?;
    // The strings that we write are valid JSON as well.
    let libtorch: String = serde_json::from_str(value).ok()?;
    Some(Link { libtorch: libtorch.into(), text })
}

/// Writes the link aside and renames it into place; returns its path.
///
/// # Errors
/// If the folder's path cannot be used in a linker's command line, or the file cannot be written.
pub fn write(workspace: &Path, libtorch: &Path) -> Result<PathBuf> {
    let shown = libtorch.display();
    let Some(root) = libtorch.to_str() else {
        bail!("the path {shown} is not UTF-8; move libtorch to another folder");
    };
    if root.contains([',', ':', '$']) || root.contains(char::is_control) {
        bail!(
            "the path {shown} has a comma, a colon, a dollar sign or a control character, which no \
             run path can have; move libtorch to another folder (ELF_CACHE_DIR names that of our cache)"
        );
    }
    let [first, second] = run_path_flags(root);
    let text = format!(
        "# Written by `cargo xtask setup`: where libtorch lies, and the run path of our programs.\n\
         # Delete this file to have it sought again.\n\
         [env]\nLIBTORCH = {}\n\n[build]\nrustflags = [{first}, {second}]\n\
         # Examples in documentation are programs too.\n\
         rustdocflags = [{first}, {second}]\n",
        toml_string(root),
        first = toml_string(&first),
        second = toml_string(&second),
    );
    let path = workspace.join(FILE);
    elf_files::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}

/// The flags for rustc that let our programs find the libraries at run time.
pub fn run_path_flags(libtorch: &str) -> [String; 2] {
    ["-C".to_owned(), format!("link-arg=-Wl,-rpath,{libtorch}/lib")]
}

/// A basic string of TOML. JSON's escapes are TOML's; control characters do not get here.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for root in ["/opt/torch", "/a b/it's \"here\"/back\\slash/ü"] {
            let workspace = tempfile::tempdir().unwrap();
            assert_eq!(read(workspace.path()), None);
            let file = write(workspace.path(), Path::new(root)).unwrap();
            let link = read(workspace.path()).unwrap();
            assert_eq!(link.libtorch, Path::new(root));
            assert!(link.is_for(Path::new(root)));
            assert!(!link.is_for(Path::new("/elsewhere")));
            assert!(fs::read_to_string(file).unwrap().contains("[build]"));
        }
    }

    #[test]
    fn a_link_without_its_run_path_is_not_complete() {
        let workspace = tempfile::tempdir().unwrap();
        let file = write(workspace.path(), Path::new("/opt/torch")).unwrap();
        fs::write(file, "[env]\nLIBTORCH = \"/opt/torch\"\n").unwrap();
        let link = read(workspace.path()).unwrap();
        assert_eq!(link.libtorch, Path::new("/opt/torch"));
        assert!(!link.is_for(Path::new("/opt/torch")));
    }

    #[test]
    fn paths_that_a_linker_would_cut_are_refused() {
        let workspace = tempfile::tempdir().unwrap();
        for root in ["/a,b", "/a:b", "/$ORIGIN", "/a\nb"] {
            let message = write(workspace.path(), Path::new(root)).unwrap_err().to_string();
            assert!(message.contains("move libtorch"), "{message}");
            assert_eq!(read(workspace.path()), None);
        }
    }
}
