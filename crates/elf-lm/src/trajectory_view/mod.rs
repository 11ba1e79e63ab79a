//! Texts that form, drawn in a browser: for the server's page, and for any other page.
//!
//! [`SCRIPT`] defines the function `drawTrajectory(element, frames)` and nothing else; [`STYLE`] has its styles, all of
//! them below the class `elf-trajectory`. Frames are the events of `POST /v1/trajectories`. Neither loads anything or
//! needs inline styles, so that a strict content security policy allows them with a nonce.

/// The script.
pub const SCRIPT: &str = include_str!("trajectory.js");

/// The styles.
pub const STYLE: &str = include_str!("trajectory.css");
