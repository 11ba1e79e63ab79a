//! Texts whose tokens are all generated together, as in the paper.

use elf_core::Noise;

use super::host_reading::HostReading;
use super::{Batch, Cost, Generated, Generator, Surroundings};
use crate::Result;
use crate::sampling_observer::{Frame, SamplingObserver, Step, steps_to_show};

impl Generator<'_> {
    /// Generates all tokens of a batch together.
    pub(super) fn run_at_once(
        &self,
        batch: Batch,
        noise: &mut dyn Noise,
        observer: &mut dyn SamplingObserver,
    ) -> Result<Generated> {
        let Batch { request, rows, condition, z0 } = batch;
        let (asked, condition) = (request.seeds.len(), condition.as_ref());
        let decoder = self.decoder(None);
        let shown = steps_to_show(&self.times, request.trace);
        let steps = shown.len();
        let (mut trace_passes, mut show_end) = (0, !request.trace.is_empty());
        let surroundings = Surroundings { condition, ..Surroundings::default() };
        let (end, passes) = self.carry(z0, &surroundings, noise, |i, state| {
            let step = Step { done: i + 1, steps, t: self.times[i + 1], block: 0, blocks: 1, finished_rows: 0 };
            let (wanted, last) = (observer.step(&step).shows_frame(&step)?, i + 1 == steps);
            show_end |= wanted && last;
            if let (true, Some(x)) = (shown[i] || wanted && !last, &state.x) {
                let HostReading { ids, log_probs } = HostReading::of(&decoder.read(x, condition)?, x, asked)?;
                trace_passes += 1;
                observer.frame(Frame { t: self.times[i], ids, log_probs });
            }
            Ok(())
        })?;
        let reading = self.words(&decoder, &end, condition, noise)?;
        let HostReading { ids, log_probs } = HostReading::of(&reading, &end, asked)?;
        if show_end {
            observer.frame(Frame { t: self.config.decode_at, ids: ids.clone(), log_probs: log_probs.clone() });
        }
        ids.iter().enumerate().for_each(|(row, ids)| observer.finished(row, ids));
        let positions = rows as u64 * request.length as u64;
        let cost = Cost { rows: rows as u64, passes: passes + 1, context_passes: 0, trace_passes, positions };
        Ok(Generated { z: end.f_narrow(0, 0, asked as i64)?, ids, log_probs, cost })
    }
}
