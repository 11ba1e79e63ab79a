"""The native part of ``elf_flows``; use it through the package."""

import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch

from elf_flows import texts as _texts

TRAJECTORY_SCRIPT: str
TRAJECTORY_STYLE: str

def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str | None = None,
    averaged: bool = True,
    encoder: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    length: int | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path
        A run's or checkpoint's folder, an exported model, a file of the released code, or a Hugging Face id.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    precision
        ``"fp32"`` or ``"bf16"`` for blocks and encoder; by default the device's native one.
    averaged
        Whether the running averages of the parameters are used instead of the parameters as trained.
    encoder
        The text encoder, if it is not where it was in training.
    config, tokenizer, length
        For a file from elsewhere: the configuration it was trained with, its tokenizer, and positions per text.

    Raises
    ------
    PlaceError
        If there is no such model, or a file is missing or damaged.
    MismatchError
        If a file belongs to another model.
    """

@final
class Encoded:
    """Texts as latents, from :meth:`Model.encode`."""

    @property
    def latents(self) -> torch.Tensor:
        """Clean latents, ``[B, S, C]``, float32."""
    @property
    def ids(self) -> torch.Tensor:
        """Token ids, ``[B, S]``, int64."""
    @property
    def input_lengths(self) -> list[int]:
        """Tokens of each row's input."""
    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without filling, its input included."""

@final
class Model:
    """A loaded model, from :func:`load`.

    It has a thread of its own, so that all threads may use it; calls are done in their order. As a context manager it
    closes itself at the end.
    """

    def generate(
        self,
        texts: Iterable[str] | None = None,
        *,
        num: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        batch_size: int = 8,
        **settings: float | str | None,
    ) -> _texts.Texts:
        """Generate texts, the same as ``elf sample`` with the same settings.

        Parameters
        ----------
        texts
            One input for each text, for a model that takes inputs.
        num
            The number of texts, for a model that takes none; 8 by default.
        steps
            Sampling steps; by default those of the model's own setting.
        seed
            The i-th text of a seed is the same whatever else is generated with it.
        sampler
            The sampler, with settings of its own as ``"NAME:SETTING=VALUE,..."``.
        batch_size
            Texts that are generated at once.
        **settings
            Other keys of a sampling file, such as ``cfg``, ``self_cond_cfg_scale``, ``temperature``, ``top_p``,
            ``best_of``, ``mbr``, ``sde_gamma`` or ``time_schedule``.

        Returns
        -------
        Texts
            A list of :class:`~elf_flows.Text`, which are ``str`` with tokens and probabilities.

        Raises
        ------
        SettingError
            If a setting is misspelt or out of range.
        RequestError
            If the model takes no inputs, or needs some.
        """

    def infill(
        self,
        texts: Iterable[str],
        *,
        steps: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        batch_size: int = 8,
        **settings: float | str | None,
    ) -> _texts.Texts:
        """Fill the gaps of texts, the same as ``elf infill`` with the same settings, with a model that was trained for it.

        Parameters
        ----------
        texts
            Texts with gaps: ``[...]`` is a gap of any number of tokens, ``[5]`` one of five. A backslash before a bracket makes it
            one of the text.
        steps, seed, sampler, batch_size, **settings
            As in :meth:`generate`.

        Returns
        -------
        Texts
            Whole texts, in which every given word stands where it stood; ``filled`` of each has what is in its gaps.

        Raises
        ------
        RequestError
            If a text has no gap or no given word, is too long, or has words that the model does not know, or if the model has
            not learned to fill gaps.
        """

    def trajectory(
        self,
        text: str | None = None,
        *,
        times: Sequence[float] | None = None,
        steps: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        **settings: float | str | None,
    ) -> _texts.Trajectory:
        """Generate one text and show it as it forms.

        Parameters
        ----------
        text
            The input, for a model that takes one.
        times
            The times in [0, 1] at which it is shown; by default it is after every step. Each costs a pass.
        steps, seed, sampler, **settings
            As in :meth:`generate`.

        Returns
        -------
        Trajectory
            An iterator over :class:`~elf_flows.Frame`.
        """

    def encode(self, texts: Iterable[str] | None = None, *, inputs: Iterable[str] | None = None) -> Encoded:
        """Encode texts into the latents that the model learned.

        Parameters
        ----------
        texts
            The texts; empty ones by default. Those of a model that writes all tokens at once are ended as in training; those
            of a model that writes block by block are beginnings.
        inputs
            One input for each, for a model that takes inputs.

        Returns
        -------
        Encoded
            Rows of the model's full length, or of the longest text for a model that writes block by block.
        """

    def denoise(
        self,
        z: torch.Tensor,
        t: torch.Tensor | float,
        x_prev: torch.Tensor | None = None,
        *,
        guidance: torch.Tensor | float | None = None,
        given: Encoded | None = None,
    ) -> torch.Tensor:
        """The network's estimate of the clean latents, in one pass without gradients.

        No tensor is copied. The velocity of the flow is ``(x - z) / max(1 - t, model.time_epsilon)``.

        Parameters
        ----------
        z
            Noisy latents, ``[B, S, C]``, float32, on the model's device. At t = 0 they are noise of standard deviation
            ``model.noise_scale``.
        t
            The time in [0, 1], or one for each row, ``[B]``.
        x_prev
            The estimate before, ``[B, S, C]``; none at first.
        guidance
            The scale of self-conditioning guidance, or one for each row; 1 by default.
        given
            Inputs whose latents stand in their places in ``z``; for a model that writes block by block, the inputs and all
            tokens before ``z``.

        Raises
        ------
        MismatchError
            If a tensor has another shape, element type or device.
        TensorError
            If an argument is no tensor, or cannot be shared.
        """

    def decode(self, z: torch.Tensor, *, given: Encoded | None = None) -> _texts.Texts:
        """Read the likeliest texts from latents ``[B, S, C]``. ``given`` is that of :meth:`denoise`."""

    def close(self) -> None:
        """Free the model. Using it afterwards raises :class:`~elf_flows.ClosedError`."""

    def __enter__(self) -> Model: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None: ...
    @property
    def path(self) -> os.PathLike[str]:
        """The path or id that it was loaded by."""
    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    @property
    def device(self) -> str:
        """The device that it computes on, ``"cpu"`` or ``"cuda:N"``."""
    @property
    def takes_input(self) -> bool:
        """Whether it generates from an input text."""
    @property
    def latent_dim(self) -> int:
        """C, channels of a latent."""
    @property
    def max_length(self) -> int:
        """S, positions of a row."""
    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
    @property
    def block_size(self) -> int | None:
        """Tokens of a block; None for a model that writes all tokens at once."""
    @property
    def noise_scale(self) -> float:
        """The standard deviation of the latents at t = 0."""
    @property
    def time_epsilon(self) -> float:
        """The smallest remaining time that a velocity is divided by."""
    @property
    def sampling(self) -> str | None:
        """The name of its own sampling setting, if it has a single one."""

@final
class Trajectory(Iterator[Any]):
    """The native part of :class:`elf_flows.Trajectory`."""

    def __next__(self) -> Any: ...
    def close(self) -> None: ...

def bleu(
    predictions: Iterable[str],
    references: Iterable[str] | Iterable[Iterable[str]],
    *,
    lowercase: bool = True,
    effective_order: bool = True,
) -> float:
    """BLEU of predictions against one or several references each, from 0 to 100.

    The defaults are those of ELF's published numbers; with both switched off, it is sacreBLEU's default.
    """

def rouge(predictions: Iterable[str], references: Iterable[str] | Iterable[Iterable[str]]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (F1) of predictions, from 0 to 100, as ``rouge1``, ``rouge2`` and ``rougeL``."""

def train(
    config: str | os.PathLike[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    on_event: Callable[[_texts.Event], Any] | None = None,
) -> str:
    """Train what a configuration describes, or go on with it from the latest checkpoint in its output folder.

    Ctrl-C saves a checkpoint and then raises ``KeyboardInterrupt``; so does an exception of ``on_event``. The same call goes
    on. A second Ctrl-C does not wait for the checkpoint.

    Parameters
    ----------
    config
        A YAML file of settings, as for ``elf train``.
    options
        Settings that differ from those of the file, by key.
    output
        The run's folder; the same as the key ``output_dir``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    on_event
        Is called with each :class:`~elf_flows.Event`, on the calling thread.

    Returns
    -------
    str
        ``"finished"``, ``"no longer better"``, ``"out of data"`` or ``"out of time"``.
    """

def stop_all() -> None:
    """Stops all work, at the end of the interpreter: libtorch must not be torn down under it."""

def panic_elsewhere(text: str) -> None:
    """Panics on another thread, as a mistake in the library would: for the tests."""
