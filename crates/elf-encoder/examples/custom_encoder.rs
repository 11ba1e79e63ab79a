//! A text encoder of one's own, whole, in one file. Runs in a second, without any download:
//!
//! ```text
//! cargo run --release -p elf-encoder --example custom_encoder
//! ```
//!
//! This one is the simplest that can work: a fixed table of random vectors, one for each token, mixed with its left
//! neighbour. Whatever implements [`TextEncoder`] can stand in T5's place: latents are measured, normalised and handed on.

use elf_core::{Init, ParamBuilder, ParamSet, Weight};
use elf_encoder::{EncoderMask, LatentMoments, Result, TextEncoder, check_ids};
use tch::{Device, Kind, Tensor};

/// A table of vectors `[V, C]`.
struct TokenTable {
    params: ParamSet,
    table: Weight,
}

impl TokenTable {
    fn new(vocab_size: i64, dim: i64, seed: u64) -> Result<Self> {
        let mut b = ParamBuilder::seeded(seed, Device::Cpu);
        let std = (dim as f64).powf(-0.5);
        let table = b.tensor("table", &[vocab_size, dim], Init::Normal(std))?;
        Ok(Self { params: b.finish(), table })
    }
}

impl TextEncoder for TokenTable {
    fn dim(&self) -> i64 {
        self.table.master().size()[1]
    }

    fn vocab_size(&self) -> i64 {
        self.table.master().size()[0]
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn encode_flops(&self, _tokens: u64) -> u64 {
        0
    }

    fn describe(&self) -> String {
        format!("a table of {} random vectors of {} channels", self.vocab_size(), self.dim())
    }

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        check_ids(ids, self.vocab_size())?;
        tch::no_grad(|| {
            let table = self.table.master();
            let own = Tensor::f_embedding(table, &ids.f_to_device(table.device())?, -1, false, false)?;
            let left = own.f_roll([1], [1])?;
            // A neighbour counts only where the mask lets its column be seen: a condition must not see its target.
            let seen = match mask {
                EncoderMask::None => Tensor::f_ones(ids.size(), (Kind::Float, own.device()))?,
                EncoderMask::Columns(columns) => columns.f_to_kind(Kind::Float)?.f_roll([1], [1])?,
                EncoderMask::Pairs(pairs) => pairs.f_to_kind(Kind::Float)?.f_roll([1], [2])?.f_diagonal(0, 1, 2)?,
            };
            let first = Tensor::f_ones_like(&seen)?;
            let _ = first.f_narrow(1, 0, 1)?.f_zero_()?;
            Ok(own + left * (seen * first * 0.5).f_unsqueeze(-1)?)
        })
    }
}

fn main() -> Result<()> {
    let encoder = TokenTable::new(100, 16, 0)?;
    let ids = Tensor::arange(24, (Kind::Int64, Device::Cpu)).view([2, 12]);
    let valid = Tensor::ones([2, 12], (Kind::Float, Device::Cpu));
    let latents = encoder.encode(&ids, EncoderMask::Columns(&valid))?;

    // What a flow learns is normalised; this is how the numbers are found for an encoder that nobody has measured.
    let mut moments = LatentMoments::new(16);
    moments.add(&latents, &valid)?;
    let stats = moments.overall()?;
    let normalised = stats.normalise(&latents)?;
    println!("latents {:?}, mean {:?}, standard deviation {:?}", latents.size(), stats.mean(), stats.std());
    println!("normalised: standard deviation {:.3}", normalised.std(true).double_value(&[]));

    // An id that is not there is refused, as the trait asks.
    let foreign = Tensor::from_slice(&[7i64, 100]).view([1, 2]);
    println!(
        "id 100: {}",
        encoder.encode(&foreign, EncoderMask::None).map(|_| "accepted".to_owned()).unwrap_or_else(|e| e.to_string())
    );
    Ok(())
}
