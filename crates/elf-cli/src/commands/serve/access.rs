//! Who may use the server: keys, encryption, origins of web pages.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use clap::Args;
use elf_lm::serve::{Access, ApiKeys, Tls};

#[derive(Debug, Args)]
pub struct AccessArgs {
    /// A file of keys, one per line, one of which a client must send as `Authorization: Bearer KEY`. Read again on
    /// SIGHUP.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Serve everybody who reaches the address, without keys.
    #[arg(long, conflicts_with = "api_key_file")]
    no_auth: bool,
    /// An origin whose web pages may use the server, such as https://example.org, or * for any. May be repeated.
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    allow_origins: Vec<String>,
    /// The certificate of encrypted connections, with its chain, as PEM. Read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate, as PEM.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

impl AccessArgs {
    /// Reads the keys and the certificate.
    pub fn read(&self) -> Result<Access> {
        let keys = self.api_key_file.as_deref().map(ApiKeys::read).transpose()?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Tls::read(certificate, key)?),
            (Some(file), None) => bail!("--tls-cert {} needs --tls-key, the key of the certificate", file.display()),
            (None, Some(file)) => bail!("--tls-key {} needs --tls-cert, the certificate of the key", file.display()),
            (None, None) => None,
        };
        Ok(Access { keys, tls, origins: self.allow_origins.clone() })
    }

    /// Refuses an address that other machines reach, unless clients need a key or nobody is to need one.
    pub fn check_exposure(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() || self.api_key_file.is_some() || self.no_auth {
            return Ok(());
        }
        bail!(
            "--listen {address} can be reached from other machines, and no key is asked for: give keys with --api-key-file, \
             or let everybody in with --no-auth"
        )
    }
}

/// A flag that SIGHUP sets, if there is something to read again. Otherwise the signal ends the program like others. Call it
/// after [`stop_on_interrupt`](crate::progress::stop_on_interrupt), which takes the signal first.
pub fn reread_on_hangup(access: &Access) -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = Arc::clone(FLAG.get_or_init(Arc::default));
    #[cfg(unix)]
    if access.keys.is_some() || access.tls.is_some() {
        extern "C" fn set(_: libc::c_int) {
            if let Some(flag) = FLAG.get() {
                flag.store(true, Ordering::SeqCst);
            }
        }
        // SAFETY: the handler only stores into an atomic, which a signal handler may do; the flag was set up before.
        unsafe {
            libc::signal(libc::SIGHUP, set as extern "C" fn(libc::c_int) as libc::sighandler_t);
        }
    }
    flag
}
