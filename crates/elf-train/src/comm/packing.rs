//! Packing of small tensors, which are sent as one.

use tch::{Kind, Tensor};

use crate::Result;

/// Largest size of a pack; a larger tensor is sent alone. Large enough that the fixed cost of an operation is
/// negligible, small enough that several operations run at the same time. PyTorch uses the same value.
pub const PACK_BYTES: usize = 25 << 20;

fn bytes(t: &Tensor) -> usize {
    t.numel() * t.kind().elt_size_in_bytes()
}

/// The packs, each a list of indices of tensors of one kind and one owner, in order, up to [`PACK_BYTES`].
pub(super) fn packs(tensors: &[Tensor], owners: &[u64]) -> Vec<Vec<usize>> {
    let mut packs: Vec<(u64, Kind, usize, Vec<usize>)> = Vec::new();
    for (i, t) in tensors.iter().enumerate() {
        let owner = owners.get(i).copied().unwrap_or(0);
        let open = packs.iter_mut().rev().find(|(o, kind, ..)| *o == owner && *kind == t.kind());
        match open {
            Some((.., filled, members)) if *filled + bytes(t) <= PACK_BYTES => {
                *filled += bytes(t);
                members.push(i);
            }
            _ => packs.push((owner, t.kind(), bytes(t), vec![i])),
        }
    }
    packs.into_iter().map(|(.., members)| members).collect()
}

/// The members of a pack as one flat tensor: a single contiguous tensor itself, a copy otherwise.
pub(super) fn packed(tensors: &[Tensor], pack: &[usize]) -> Result<Tensor> {
    if let [only] = pack
        && tensors[*only].is_contiguous()
    {
        return Ok(tensors[*only].f_detach()?.f_view([-1])?);
    }
    let flat = pack.iter().map(|&i| Ok(tensors[i].f_detach()?.f_reshape([-1])?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&flat, 0)?)
}

/// Copies the numbers of a flat tensor back into the tensors that [`packed`] took them from.
pub(super) fn unpack(flat: &Tensor, tensors: &[Tensor], pack: &[usize]) -> Result<()> {
    let mut from = 0;
    for &i in pack {
        let n = tensors[i].numel() as i64;
        let part = flat.f_narrow(0, from, n)?.f_view_as(&tensors[i])?;
        from += n;
        if part.data_ptr() != tensors[i].data_ptr() {
            tensors[i].f_detach()?.f_copy_(&part)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn packing_and_unpacking_give_everything_back() {
        let options = (Kind::Float, Device::Cpu);
        let tensors: Vec<Tensor> =
            (0..5).map(|i| Tensor::arange(6 * (i + 1), options).view([2, -1]) + i as f64).collect();
        let gap = Tensor::arange(12, options).view([3, 4]).transpose(0, 1);
        let tensors: Vec<Tensor> = tensors.into_iter().chain([gap]).collect();
        let before: Vec<Tensor> = tensors.iter().map(|t| t.copy()).collect();
        let owners = [0, 1, 0, 1, 0, 2];
        let packs = packs(&tensors, &owners);
        assert_eq!(packs, [vec![0, 2, 4], vec![1, 3], vec![5]]);
        for pack in &packs {
            let mut flat = packed(&tensors, pack).unwrap();
            flat += 1.0;
            unpack(&flat, &tensors, pack).unwrap();
        }
        for (t, b) in tensors.iter().zip(&before) {
            assert!(t.equal(&(b + 1.0)));
        }
    }

    #[test]
    fn kinds_and_full_packs_are_apart() {
        let large = || Tensor::zeros([(PACK_BYTES / 8) as i64 + 1], (Kind::Float, Device::Cpu));
        let half = Tensor::zeros([2], (Kind::BFloat16, Device::Cpu));
        assert_eq!(packs(&[large(), half, large(), large()], &[0; 4]), [vec![0], vec![1], vec![2], vec![3]]);
    }
}
