"""The network, training step and sampler of the paper in plain PyTorch, as a yardstick of speed for `cargo xtask rival`.

Written from the paper's equations in the way that its released code computes them: a training step has two passes over all rows
without gradients (the estimate for self-conditioning, and the guidance target's conditioned velocity), one pass with gradients, and
the logits of all positions. Weights and tokens are random. Prints one JSON object.
"""

import argparse, json, math, time

import torch
import torch.nn.functional as F
from torch import nn

SIGMA, DECODE_SIGMA, T_EPS = 2.0, 5.0, 0.05


class Block(nn.Module):
    def __init__(self, h, heads):
        super().__init__()
        inner = int(h * 4) * 2 // 3
        self.heads, d = heads, h // heads
        self.n1, self.n2, self.qn, self.kn = (nn.RMSNorm(n, eps=1e-6) for n in (h, h, d, d))
        self.qkv, self.proj = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.w12, self.w3 = nn.Linear(h, 2 * inner), nn.Linear(inner, h)

    def forward(self, x, cos, sin):
        b, n, h = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = turn(self.qn(q), cos, sin).to(v.dtype), turn(self.kn(k), cos, sin).to(v.dtype)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, h))
        gate, value = self.w12(self.n2(x)).chunk(2, -1)
        return x + self.w3(F.silu(gate) * value)


def turn(x, cos, sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Scalar(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.a, self.b = nn.Linear(256, h), nn.Linear(h, h)

    def forward(self, s):
        angles = s[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return self.b(F.silu(self.a(torch.cat((angles.cos(), angles.sin()), -1))))[:, None]


class Net(nn.Module):
    def __init__(self, c, h, depth, heads, v, seq):
        super().__init__()
        self.join, self.down, self.up = nn.Linear(2 * c, c), nn.Linear(c, 128, bias=False), nn.Linear(128, h)
        self.t, self.w = Scalar(h), Scalar(h)
        self.tokens = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, 4, h)) for _ in range(3))
        self.blocks = nn.ModuleList(Block(h, heads) for _ in range(depth))
        self.norm, self.out = nn.RMSNorm(h, eps=1e-6), nn.Linear(h, c)
        self.proj, self.unembed = nn.Linear(h, c), nn.Linear(c, v)
        angles = torch.arange(seq)[:, None] * 10000 ** (-torch.arange(0, h // heads, 2) / (h // heads))
        angles = torch.cat((torch.zeros(12, angles.shape[1]), angles))
        self.register_buffer("cos", angles.cos(), False)
        self.register_buffer("sin", angles.sin(), False)

    def forward(self, z, x_prev, t, w, gate, words, bf16):
        text = self.up(self.down(self.join(torch.cat((z, x_prev), -1))))
        t_tokens, w_tokens, mode = self.tokens
        x = torch.cat((t_tokens + self.t(t), w_tokens + self.w(w), mode * gate[:, None, None], text), 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
        x = x[:, 12:].float()
        return self.out(self.norm(x)), self.unembed(F.gelu(self.proj(x), approximate="tanh")) if words else None


class Encoder(nn.Module):
    """T5's encoder, its bias of relative positions left out."""

    def __init__(self, c, v, layers=6):
        super().__init__()
        self.words = nn.Embedding(v, c)
        linear = lambda a, b: nn.Linear(a, b, bias=False)
        part = lambda: nn.ModuleList((nn.RMSNorm(c), linear(c, 3 * c), linear(c, c), nn.RMSNorm(c), linear(c, 4 * c), linear(4 * c, c)))
        self.layers = nn.ModuleList(part() for _ in range(layers))

    def forward(self, ids, bf16):
        x = self.words(ids)
        b, n, c = x.shape
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for n1, qkv, o, n2, wi, wo in self.layers:
                q, k, v = qkv(n1(x)).view(b, n, 3, c // 64, 64).permute(2, 0, 3, 1, 4)
                x = x + o(F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(b, n, c))
                x = x + wo(F.relu(wi(n2(x))))
        return x.float()


def velocity(x, z, t):
    return (x - z) / (1 - t).clamp(min=T_EPS)


class Muon:
    """Muon for matrices and Adam with Nesterov's momentum for the rest, in fp32 as released, with averages of all parameters."""

    def __init__(self, net, lr=1e-3):
        self.params, self.lr, self.k = list(net.parameters()), lr, 0
        self.m, self.v, self.ema = ([torch.zeros_like(p) for p in self.params] for _ in range(3))

    @torch.no_grad()
    def step(self):
        self.k += 1
        k, grads = self.k, [p.grad for p in self.params]
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for p, g, m, v in zip(self.params, grads, self.m, self.v):
            b1 = 0.95 if p.dim() == 2 else 0.9
            m.lerp_(g, 1 - b1)
            u = m * (b1 / (1 - b1 ** (k + 1))) + g * ((1 - b1) / (1 - b1**k))
            if p.dim() == 2:
                x = u.T if u.shape[0] > u.shape[1] else u
                x = x / (x.norm() + 1e-8)
                for _ in range(5):
                    g2 = x @ x.T
                    x = 3.4445 * x + (-4.7750 * g2 + 2.0315 * g2 @ g2) @ x
                u = (x.T if u.shape[0] > u.shape[1] else x) * math.sqrt(max(1, u.shape[0] / u.shape[1]))
                p.sub_(u, alpha=self.lr)
            else:
                v.lerp_(g * g, 0.001)
                p.sub_(u / ((v / (1 - 0.999**k)).sqrt() + 1e-8), alpha=self.lr)
        torch._foreach_lerp_(self.ema, self.params, 1e-4)
        for p in self.params:
            p.grad = None


def train_step(net, encoder, optimizer, ids, bf16):
    b, s = ids.shape
    with torch.no_grad():
        x0 = encoder(ids, bf16) / 0.2
        decode, cond = torch.rand(b) < 0.2, torch.rand(b) < 0.5
        t = torch.where(decode, 1.0, torch.sigmoid(0.8 * torch.randn(b) - 1.5))
        w = 1.5 * torch.exp(torch.rand(b) * math.log(6 / 1.5)) - 1
        column, share = t[:, None, None], torch.sigmoid(0.8 * torch.randn(b, s, 1) + 0.8)
        eps, eps_d = torch.randn_like(x0), torch.randn_like(x0)
        noisy = column * x0 + (1 - column) * SIGMA * eps
        z = torch.where(decode[:, None, None], share * x0 + (1 - share) * DECODE_SIGMA * eps_d, noisy)
        use = (cond & ~decode)[:, None, None]
        none, gate = torch.zeros_like(z), decode.float()
        x_u = net(z, none, t, w, gate * 0, False, bf16)[0]
        x_prev = torch.where(use, x_u, none)
        x_c = net(z, x_prev, t, w, gate * 0, False, bf16)[0]
        guided = (1 - 1 / w)[:, None, None] * (velocity(x_c, z, column) - velocity(x_u, z, column))
        target = velocity(x0, z, column) + torch.where(use, guided, 0.0)
    x, logits = net(z, x_prev, t, w, gate, True, bf16)
    l2 = ((velocity(x, z, column) - target) ** 2).mean(-1) * (1 - gate)[:, None]
    ce = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none") * gate[:, None]
    ((l2.sum() + ce.sum()) / ids.numel()).backward()
    optimizer.step()


@torch.no_grad()
def sample(net, b, s, c, steps, bf16):
    grid = torch.cat((torch.zeros(1), torch.sigmoid(0.8 * torch.randn(steps - 1) - 1.5).sort().values, torch.ones(1))).tolist()
    z, w, gate = SIGMA * torch.randn(b, s, c), torch.full((b,), 3.0), torch.zeros(b)
    x = torch.zeros_like(z)
    for i, (at, to) in enumerate(zip(grid, grid[1:])):
        keep = max(0.0, 1 - 1.5 * (to - at)) if i + 1 < steps else 1.0
        z, at = keep * z + (1 - keep) * SIGMA * torch.randn_like(z), keep * at
        x = net(z, x, torch.full((b,), at), w, gate, False, bf16)[0]
        z = z + (to - at) * velocity(x, z, torch.tensor(at))
    return net(z, torch.zeros_like(z), torch.ones(b), w, gate + 1, True, bf16)[1].argmax(-1)


def timed(f, steps):
    f()
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        f()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def main():
    a = argparse.ArgumentParser()
    for name, value in (("rows", 8), ("seq", 256), ("steps", 5), ("sampling-steps", 32), ("width", 768), ("depth", 12), ("heads", 12), ("vocab", 32100)):
        a.add_argument(f"--{name}", type=int, default=value)
    for flag in ("bf16", "compile"):
        a.add_argument(f"--{flag}", action="store_true")
    a = a.parse_args()
    torch.manual_seed(0)
    c = 512
    net, encoder = Net(c, a.width, a.depth, a.heads, a.vocab, a.seq), Encoder(c, a.vocab).requires_grad_(False)
    optimizer = Muon(net)
    if a.compile:
        net.compile(), encoder.compile()
    ids = torch.randint(0, a.vocab, (a.rows, a.seq))
    positions = a.rows * a.seq
    train = timed(lambda: train_step(net, encoder, optimizer, ids, a.bf16), a.steps)
    sampling = timed(lambda: sample(net, a.rows, a.seq, c, a.sampling_steps, a.bf16), 1)
    print(json.dumps({
        "torch": torch.__version__, "threads": torch.get_num_threads(), "bf16": a.bf16, "compile": a.compile,
        "parameters": sum(p.numel() for p in net.parameters()),
        "train_positions_per_s": positions / train, "sample_positions_per_s": positions / sampling,
    }))


main()
