//! Keys and values of batches whose rows have clean tokens of different numbers, as one batch.

use elf_core::{Memory, Result};
use tch::Tensor;

/// The memory of the rows of all `memories`. Shorter ones get keys and values of zero before their own, which are hidden.
pub(crate) fn join(memories: &[&Memory]) -> Result<Memory> {
    let known = |memory: &Memory| memory.layers.first().map_or(0, |[keys, _]| keys.size()[1]);
    let longest = memories.iter().map(|memory| known(memory)).max().unwrap_or(0);
    let joined = |part: &dyn Fn(&Memory) -> Tensor| -> Result<Tensor> {
        let parts: Vec<Tensor> = memories.iter().map(|memory| part(memory)).collect();
        if memories.iter().all(|memory| known(memory) == longest) {
            return Ok(Tensor::f_cat(&parts, 0)?);
        }
        let rows: i64 = parts.iter().map(|part| part.size()[0]).sum();
        let all = Tensor::f_zeros([rows, longest, parts[0].size()[2]], (parts[0].kind(), parts[0].device()))?;
        let mut row = 0;
        for part in &parts {
            let (rows, tokens, _) = part.size3()?;
            all.f_narrow(0, row, rows)?.f_narrow(1, longest - tokens, tokens)?.f_copy_(part)?;
            row += rows;
        }
        Ok(all)
    };
    let masks = memories
        .iter()
        .map(|memory| memory.mask.f_pad([longest - known(memory), 0], "constant", f64::NEG_INFINITY))
        .collect::<Result<Vec<_>, _>>()?;
    let layers = 0..memories.first().map_or(0, |memory| memory.layers.len());
    let layer = |i: usize| {
        let part = |place: usize| joined(&move |memory| memory.layers[i][place].shallow_clone());
        Ok([part(0)?, part(1)?])
    };
    Ok(Memory {
        layers: layers.map(layer).collect::<Result<_>>()?,
        mask: Tensor::f_cat(&masks, 0)?,
        first: memories.iter().flat_map(|memory| memory.first.iter().copied()).collect(),
    })
}
