//! One call of each operation, in the form asked for. What is changed in place is returned.

use elf_core::{Noise, Seeded};
use elf_kernels::{AdamStep, Heads, MomentumStep, Turned, lists, plain};
use tch::{Kind, TchError, Tensor};

/// Which code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// What the program runs on the tensors' device.
    Own,
    /// The form made of libtorch's operations.
    Plain,
}

type Outputs = Result<Vec<Tensor>, TchError>;
pub(super) type Run = fn(&[Tensor], Form) -> Outputs;

const EPS: f64 = 1e-6;
const SCALE: f64 = 0.125;
const MOMENTUM: MomentumStep = MomentumStep { decay: 0.95, ahead: 0.9, now: 0.2 };
const ADAM: AdamStep =
    AdamStep { b1: 0.9, b2: 0.99, eps: 1e-8, of_first: 1.3, of_grad: 0.4, of_second: 2.0, lr: 0.1, keep: 0.9 };
const STEP: f64 = -0.3;
const WEIGHT: f64 = 0.1;

/// One of two functions of the same type.
macro_rules! by_form {
    ($form:expr, $name:ident) => {
        match $form {
            Form::Own => elf_kernels::$name,
            Form::Plain => plain::$name,
        }
    };
}

/// The same tensors, all lists after one another.
fn joined(lists: &[&[Tensor]]) -> Vec<Tensor> {
    lists.iter().copied().flatten().map(Tensor::shallow_clone).collect()
}

fn halves(x: &[Tensor]) -> (&[Tensor], &[Tensor]) {
    x.split_at(x.len() / 2)
}

pub(super) fn rms_norm(x: &[Tensor], form: Form) -> Outputs {
    Ok(vec![by_form!(form, rms_norm)(&x[0], &x[1], EPS, x[0].kind())?])
}

pub(super) fn swiglu(x: &[Tensor], form: Form) -> Outputs {
    Ok(vec![by_form!(form, swiglu)(&x[0])?])
}

pub(super) fn heads(x: &[Tensor], form: Form) -> Outputs {
    let how = Heads { q_weight: &x[1], k_weight: &x[2], cos: &x[3], sin: &x[4], eps: EPS, q_scale: SCALE };
    let Turned { q, k, v } = by_form!(form, heads)(&x[0], &how)?;
    Ok(vec![q, k, v])
}

/// Libtorch's attention, which GPUs take, against the products written out.
pub(super) fn attention(x: &[Tensor], form: Form) -> Outputs {
    if form == Form::Plain {
        return Ok(vec![plain::attend(&(&x[0] * SCALE), &x[1], &x[2], None)?]);
    }
    let (q, k, v) = (x[0].f_unsqueeze(0)?, x[1].f_unsqueeze(0)?, x[2].f_unsqueeze(0)?);
    let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, SCALE, false)?;
    Ok(vec![mixed.f_squeeze_dim(0)?])
}

pub(super) fn cross_entropy(x: &[Tensor], form: Form) -> Outputs {
    let mut logits = x[0].shallow_clone();
    let (losses, slope) = by_form!(form, cross_entropy)(&mut logits, &x[1], &x[2], Some(&x[3]), true)?;
    Ok([losses, logits].into_iter().chain(slope).collect())
}

pub(super) fn softmax(x: &[Tensor], form: Form) -> Outputs {
    Ok(vec![by_form!(form, softmax)(&x[0], Some(&x[1]))?])
}

pub(super) fn attend(x: &[Tensor], form: Form) -> Outputs {
    Ok(vec![by_form!(form, attend)(&(&x[0] * SCALE), &x[1], &x[2], Some(&x[3]))?])
}

/// Draws by counter, in the shape of the input and on its device, by one form or the other.
pub(super) fn draws(x: &[Tensor], _: Form) -> Outputs {
    let keys = (0..x[0].size()[0] as u64).collect();
    let mut noise = Seeded::new(keys, x[0].device());
    let torch = |error: elf_core::Error| TchError::Kind(error.to_string());
    elf_kernels::on_gpu_path(|| {
        let shape = x[0].size();
        Ok(vec![noise.normal("n", &shape).map_err(torch)?, noise.uniform("u", &shape).map_err(torch)?])
    })
}

pub(super) fn momentum(x: &[Tensor], form: Form) -> Outputs {
    let mut m = x[0].shallow_clone();
    let (update, sum) = by_form!(form, momentum)(&mut m, &x[1], MOMENTUM, Kind::Float)?;
    Ok(vec![m, update, sum])
}

pub(super) fn add_scaled(x: &[Tensor], form: Form) -> Outputs {
    by_form!(form, add_scaled)(&mut x[0].shallow_clone(), &x[1], STEP)?;
    Ok(joined(&[&x[..1]]))
}

pub(super) fn adam(x: &[Tensor], form: Form) -> Outputs {
    let [mut p, mut m, mut v] = [0, 2, 3].map(|at| x[at].shallow_clone());
    by_form!(form, adam)(&mut p, &x[1], &mut m, &mut v, ADAM)?;
    Ok(vec![p, m, v])
}

pub(super) fn list_momentum(x: &[Tensor], form: Form) -> Outputs {
    let (m, g) = halves(x);
    let one = |(m, g): (&Tensor, &Tensor)| Ok(plain::momentum(&mut m.shallow_clone(), g, MOMENTUM, Kind::Float)?.0);
    let updates = match form {
        Form::Own => lists::momentum(m, g, MOMENTUM)?,
        Form::Plain => m.iter().zip(g).map(one).collect::<Outputs>()?,
    };
    Ok(joined(&[m, &updates]))
}

pub(super) fn list_add_scaled(x: &[Tensor], form: Form) -> Outputs {
    let (p, d) = halves(x);
    match form {
        Form::Own => lists::add_scaled(p, d, STEP)?,
        Form::Plain => {
            p.iter().zip(d).try_for_each(|(p, d)| plain::add_scaled(&mut p.shallow_clone(), d, STEP))?;
        }
    }
    Ok(joined(&[p]))
}

pub(super) fn list_adam(x: &[Tensor], form: Form) -> Outputs {
    let (first, second) = halves(x);
    let ((p, g), (m, v)) = (halves(first), halves(second));
    if form == Form::Own {
        lists::adam(p, g, m, v, ADAM)?;
    } else {
        for i in 0..p.len() {
            let [mut p, mut m, mut v] = [&p[i], &m[i], &v[i]].map(Tensor::shallow_clone);
            plain::adam(&mut p, &g[i], &mut m, &mut v, ADAM)?;
        }
    }
    Ok(joined(&[p, m, v]))
}

pub(super) fn list_lerp(x: &[Tensor], form: Form) -> Outputs {
    let (p, q) = halves(x);
    match form {
        Form::Own => lists::lerp(p, q, WEIGHT)?,
        Form::Plain => p.iter().zip(q).try_for_each(|(p, q)| p.shallow_clone().f_lerp_(q, WEIGHT).map(drop))?,
    }
    Ok(joined(&[p]))
}

/// Norms, a product with one number, and zeros.
pub(super) fn list_norms(x: &[Tensor], form: Form) -> Outputs {
    let (scaled, zeroed) = halves(x);
    let norms = match form {
        Form::Own => lists::norms(scaled)?,
        Form::Plain => Tensor::f_stack(&scaled.iter().map(Tensor::f_norm).collect::<Outputs>()?, 0)?,
    };
    let factor = norms.f_get(0)?.f_reciprocal()?;
    if form == Form::Own {
        lists::scale(scaled, &factor)?;
        lists::zero(zeroed)?;
    } else {
        scaled.iter().try_for_each(|p| p.shallow_clone().f_mul_(&factor).map(drop))?;
        zeroed.iter().try_for_each(|p| p.shallow_clone().f_zero_().map(drop))?;
    }
    Ok(joined(&[&[norms], scaled, zeroed]))
}
