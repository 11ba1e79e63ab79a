//! Purposes of a reference.

/// The purpose of a reference, which decides the kind of the repository and the files that are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A text encoder: `config.json`, weights, and `tokenizer.json` and `latent_stats.json` if there are any. Gives a folder.
    Encoder,
    /// A GPT-2 that judges text: `config.json`, `tokenizer.json`, weights. Gives a folder.
    Gpt2,
    /// `tokenizer.json`. Gives the file.
    Tokenizer,
    /// A data set, from a data set repository: its Parquet files, or else its Arrow, JSON-lines or text files; of a reference to a
    /// split, the files with the split's name. Gives a folder, the file that was named, or the path of a split in its folder.
    Dataset,
    /// The one file that was named, from a model repository. Gives the file.
    File,
    /// A trained model: a run's plan, tokenizer and latest checkpoint; or the latest `checkpoint_N` and the settings in its folder;
    /// or weights with `config.json`, the guide of `sampling.yml`, and the encoder if it is a folder of the repository; or the only
    /// file of weights. Gives a folder, or a file if there is only one.
    ElfCheckpoint,
}

impl What {
    /// `model` or `dataset`.
    pub(crate) fn repository_kind(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            _ => "model",
        }
    }

    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Encoder => "a text encoder",
            Self::Gpt2 => "a GPT-2",
            Self::Tokenizer => "a tokenizer",
            Self::Dataset => "a data set",
            Self::File => "a file",
            Self::ElfCheckpoint => "a trained model",
        }
    }
}
