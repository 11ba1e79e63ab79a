//! Texts that are generated block after block, each block read before the next is generated.

use elf_core::Noise;
use tch::{Device, Kind, Tensor};

use super::host_reading::HostReading;
use super::{Batch, Cost, Generated, Generator, Request, Surroundings};
use crate::blocks::{BlockBatch, BlockNoise, PrefixContext, Remembered};
use crate::sampling_observer::{Frame, SamplingObserver, Step};
use crate::{Error, Reading, Reencode, Result};

/// A block of all rows.
#[derive(Clone, Copy)]
struct Block {
    /// Its number among those that are written, from 0.
    number: usize,
    /// How many are written at most.
    count: usize,
    /// Its first position.
    first: i64,
    /// Its positions.
    width: i64,
}

impl Block {
    /// One past its last position.
    fn end(&self) -> i64 {
        self.first + self.width
    }
}

/// The texts of a batch, as far as they are written.
struct Draft {
    /// Token ids, `[B, S]`.
    ids: Tensor,
    /// Their log-probabilities, `[B, S]`.
    log_probs: Tensor,
    /// The latents that they were read from, `[B, S, C]`.
    z: Tensor,
    /// Which rows have ended.
    ended: Vec<bool>,
    /// Clean latents of the finished blocks and of the condition.
    blocks: BlockBatch,
    /// What the network and the guide have computed of the prefix of the last block, as far as it is one of the next.
    remembered: [Remembered; 2],
    cost: Cost,
}

impl Draft {
    fn new(batch: &Batch, size: i64, device: Device) -> Result<Self> {
        let (b, s, c) = batch.z0.size3()?;
        let fill = batch.request.end.unwrap_or(0);
        let rows = batch.rows as u64;
        Ok(Self {
            ids: Tensor::f_full([b, s], fill, (Kind::Int64, device))?,
            log_probs: Tensor::f_zeros([b, s], (Kind::Float, device))?,
            z: batch.z0.f_zeros_like()?,
            ended: vec![false; batch.rows],
            blocks: BlockBatch::new([b, s, c], size, batch.condition.as_ref(), device)?,
            remembered: Default::default(),
            cost: Cost { rows, passes: 0, context_passes: 0, trace_passes: 0, positions: 0 },
        })
    }

    /// Takes over a block that was read from latents `z` `[B, width, C]`.
    fn write(&mut self, block: Block, reading: &Reading, z: &Tensor) -> Result<()> {
        for (all, part) in [(&self.ids, &reading.ids), (&self.log_probs, &reading.log_probs), (&self.z, z)] {
            all.f_narrow(1, block.first, block.width)?.f_copy_(part)?;
        }
        self.cost.positions += self.cost.rows * block.width as u64;
        Ok(())
    }

    /// All that is written of the first `rows` rows, on the host.
    fn on_host(&self, rows: usize) -> Result<HostReading> {
        let reading = Reading { ids: self.ids.shallow_clone(), log_probs: self.log_probs.shallow_clone() };
        HostReading::of(&reading, &self.z, rows)
    }

    /// The first `rows` rows with an unfinished block, a reading `[B, width]` of latents `x` `[B, width, C]`.
    fn with_unfinished(&self, block: Block, reading: &Reading, x: &Tensor, rows: usize) -> Result<HostReading> {
        let all = Reading { ids: self.ids.copy(), log_probs: self.log_probs.copy() };
        for (all, part) in [(&all.ids, &reading.ids), (&all.log_probs, &reading.log_probs)] {
            all.f_narrow(1, block.first, block.width)?.f_copy_(part)?;
        }
        HostReading::of(&all, x, rows)
    }

    /// Notes which rows have ended in `block`, given all `ids` `[B, S]` on the CPU, and reports those that were asked for.
    fn note_ends(
        &mut self,
        block: Block,
        ids: &Tensor,
        request: &Request,
        observer: &mut dyn SamplingObserver,
    ) -> Result<()> {
        let Some(end) = request.end else { return Ok(()) };
        let here = ids.f_narrow(1, block.first, block.width)?.f_eq(end)?;
        // The positions of a condition may hold anything.
        let own = self.blocks.generated(block.first, block.width)?;
        let ends: Vec<bool> = here.f_logical_and(&own)?.f_any_dim(1, false)?.try_into()?;
        for (row, ended) in self.ended.iter_mut().enumerate() {
            if ends[row] && !*ended {
                *ended = true;
                if row < request.seeds.len() {
                    observer.finished(row, &Vec::<i64>::try_from(ids.f_get(row as i64)?)?);
                }
            }
        }
        Ok(())
    }
}

impl Generator<'_> {
    /// Generates a batch in blocks of `size` tokens.
    pub(super) fn run_in_blocks(
        &self,
        batch: Batch,
        size: i64,
        noise: &mut dyn Noise,
        observer: &mut dyn SamplingObserver,
    ) -> Result<Generated> {
        let request = batch.request;
        let Some(reencoding) = request.reencoding else {
            let reason = "each block is encoded before the next one is generated, and there is no text encoder";
            return Err(Error::setting("block_size", reason));
        };
        let asked = request.seeds.len();
        let mut draft = Draft::new(&batch, size, self.device)?;
        let spans = draft.blocks.spans(request.length).collect::<Vec<_>>();
        for (number, &(first, width)) in spans.iter().enumerate() {
            let block = Block { number, count: spans.len(), first, width };
            self.write_block(&batch, &mut draft, block, noise, observer)?;
            let ids = draft.ids.f_to_device(Device::Cpu)?;
            draft.note_ends(block, &ids, request, observer)?;
            if number + 1 == spans.len() || draft.ended.iter().all(|&ended| ended) {
                break;
            }
            let latents = reencoding.latents(&ids, block.end() as usize)?;
            draft.blocks.write(&draft.ids, &latents, block.end(), batch.condition.as_ref())?;
        }
        let HostReading { ids, log_probs } = draft.on_host(asked)?;
        let open = draft.ended.iter().zip(&ids).enumerate().filter(|(_, (ended, _))| !**ended);
        open.for_each(|(row, (_, ids))| observer.finished(row, ids));
        let z = match &batch.condition {
            Some(condition) => condition.pin(&draft.z)?,
            None => draft.z,
        };
        Ok(Generated { z: z.f_narrow(0, 0, asked as i64)?, ids, log_probs, cost: draft.cost })
    }

    /// Carries a block from noise to clean latents, given the blocks before it, and reads its words.
    fn write_block(
        &self,
        batch: &Batch,
        draft: &mut Draft,
        block: Block,
        noise: &mut dyn Noise,
        observer: &mut dyn SamplingObserver,
    ) -> Result<()> {
        let Block { number, count, first, width } = block;
        let (s, asked) = (batch.request.length, batch.request.seeds.len());
        let prefix = draft.blocks.prefix(first, width)?;
        let [own, weak] = std::mem::take(&mut draft.remembered).map(|earlier| PrefixContext::new(&prefix, earlier));
        let condition = batch.condition.as_ref().map(|condition| condition.span(first, width)).transpose()?;
        let surroundings = Surroundings { condition: condition.as_ref(), own: Some(&own), weak: Some(&weak) };
        let mut noise = BlockNoise { inner: noise, first };
        let decoder = self.decoder(Some(&own));
        let start = batch.z0.f_narrow(1, first, width)?;
        let (steps, finished_rows) = (self.times.len() - 1, draft.ended.iter().take(asked).filter(|&&e| e).count());
        let (mut trace_passes, mut show_end) = (0, false);
        let (end, passes) = self.carry(start, &surroundings, &mut noise, |i, state| {
            let (done, t) = (number * steps + i + 1, self.times[i + 1]);
            let step = Step { done, steps: count * steps, t, block: number, blocks: count, finished_rows };
            let (wanted, last) = (observer.step(&step).shows_frame(&step)?, i + 1 == steps);
            show_end |= wanted && last;
            if let (true, Some(x)) = (wanted && !last, &state.x) {
                let reading = decoder.read(x, condition.as_ref())?;
                trace_passes += 1;
                let t = (first as f64 + width as f64 * self.times[i]) / s as f64;
                let HostReading { ids, log_probs } = draft.with_unfinished(block, &reading, x, asked)?;
                observer.frame(Frame { t, ids, log_probs });
            }
            Ok(())
        })?;
        let reading = self.words(&decoder, &end, condition.as_ref(), &mut noise)?;
        draft.write(block, &reading, &end)?;
        draft.cost.passes += passes + 1;
        draft.cost.trace_passes += trace_passes;
        draft.cost.context_passes += own.passes() + weak.passes();
        if draft.blocks.is_lasting(first) && batch.request.reencoding.is_some_and(Reencode::are_final) {
            draft.remembered = [own, weak].map(PrefixContext::into_remembered);
        }
        let position = |t: &f64| ((t * s as f64).ceil() as i64).clamp(1, s);
        // What precedes the first block is the condition: it has no frame of its own.
        let after = if number == 0 { 0 } else { first };
        show_end |= batch.request.trace.iter().any(|t| (after + 1..=block.end()).contains(&position(t)));
        if show_end {
            let HostReading { ids, log_probs } = draft.on_host(asked)?;
            observer.frame(Frame { t: block.end() as f64 / s as f64, ids, log_probs });
        }
        Ok(())
    }
}
