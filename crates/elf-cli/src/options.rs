//! What options of all commands have in common.

use crate::{numbers, standard_streams};

/// A command whose options, and those of its subcommands, take numbers and `-` as all of this program do.
pub fn in_common(command: clap::Command) -> clap::Command {
    standard_streams::understood_by(numbers::understood_by(command))
}
