//! Arguments that the commands of `elf encoder` share.

use clap::{Args, ValueEnum};
use elf_lm::encoder::{EncoderSizes, FeedForward};
use tch::Kind;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FeedForwardName {
    Relu,
    GatedGelu,
}

/// The sizes of an encoder.
#[derive(Debug, Args)]
pub struct SizeArgs {
    /// Channels of a latent (C).
    #[arg(long, default_value_t = 128)]
    d_model: i64,
    /// Channels per attention head.
    #[arg(long, default_value_t = 32)]
    d_kv: i64,
    /// Inner width of the feed-forward layers.
    #[arg(long, default_value_t = 256)]
    d_ff: i64,
    /// Number of blocks.
    #[arg(long, default_value_t = 2)]
    num_layers: i64,
    /// Number of attention heads.
    #[arg(long, default_value_t = 4)]
    num_heads: i64,
    /// The kind of feed-forward layer.
    #[arg(long, value_enum, default_value = "relu")]
    feed_forward: FeedForwardName,
}

impl SizeArgs {
    /// As the library takes them.
    pub fn sizes(&self) -> EncoderSizes {
        let Self { d_model, d_kv, d_ff, num_layers, num_heads, .. } = *self;
        let feed_forward = match self.feed_forward {
            FeedForwardName::Relu => FeedForward::Relu,
            FeedForwardName::GatedGelu => FeedForward::GatedGelu,
        };
        EncoderSizes { d_model, d_kv, d_ff, num_layers, num_heads, feed_forward }
    }
}

/// The kind of the numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoredAs {
    Bf16,
    F32,
}

impl StoredAs {
    /// As libtorch names it.
    pub fn kind(self) -> Kind {
        match self {
            StoredAs::Bf16 => Kind::BFloat16,
            StoredAs::F32 => Kind::Float,
        }
    }
}

/// The command that runs, as a shell reads it.
pub fn this_command() -> String {
    command_line(std::env::args().skip(1))
}

/// A command as a shell reads it.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@+%".contains(c);
    let words = args.map(|arg| match !arg.is_empty() && arg.chars().all(plain) {
        true => arg,
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    });
    std::iter::once("elf".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let args = ["encoder", "train", "--data-note", "Debian's, see there", "--text", "a.parquet:de"];
        let line = command_line(args.iter().map(ToString::to_string));
        assert_eq!(line, r"elf encoder train --data-note 'Debian'\''s, see there' --text a.parquet:de");
    }
}
