"""What generation returns: texts with their tokens, and texts as they form."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import typing

from elf_flows import _native

__all__ = ["Event", "Frame", "Text", "Texts", "Trajectory"]

_numbers = itertools.count()


class Text(str):
    """A generated text: a ``str`` with its tokens.

    Attributes
    ----------
    tokens : list of str
        The part of the text that each token stands for.
    token_ids : list of int
        The tokens' ids in the model's vocabulary.
    probabilities : list of float or None
        The probability with which each token was read; None for baselines.
    confidence : float or None
        The mean natural log-probability of the tokens and the end of the text.
    input_cut : bool
        Whether the input was longer than the model reads, and was cut.
    filled : list of str or None
        What was written into each gap of a text with gaps.
    """

    tokens: list[str]
    token_ids: list[int]
    probabilities: list[float] | None
    confidence: float | None
    input_cut: bool
    filled: list[str] | None

    def __new__(cls, text, tokens=(), token_ids=(), probabilities=None, confidence=None, input_cut=False, filled=None):
        self = super().__new__(cls, text)
        self.tokens, self.token_ids = list(tokens), list(token_ids)
        self.probabilities, self.confidence, self.input_cut = probabilities, confidence, input_cut
        self.filled = filled
        return self

    def __getnewargs__(self):
        return (str(self), self.tokens, self.token_ids, self.probabilities, self.confidence, self.input_cut, self.filled)

    def _repr_html_(self) -> str:
        return _page([_event(self, 0)])


class Texts(list):
    """A list of :class:`Text`, shown in notebooks with each token coloured by its probability."""

    def _repr_html_(self) -> str:
        return _page([_event(text, place) for place, text in enumerate(self)])


@dataclasses.dataclass(frozen=True)
class Frame:
    """A text at one time of its forming.

    Attributes
    ----------
    t : float
        The time, from 0 (noise) to 1; with blocks, the fraction of the row that is written.
    step, steps : int
        Finished steps, and all steps.
    text : Text
        The text as it is read at this time.
    """

    t: float
    step: int
    steps: int
    text: Text

    @property
    def tokens(self) -> list[str]:
        """The part of the text that each token stands for."""
        return self.text.tokens

    @property
    def token_ids(self) -> list[int]:
        """The tokens' ids in the model's vocabulary."""
        return self.text.token_ids

    @property
    def probabilities(self) -> list[float] | None:
        """The probability with which each token is read."""
        return self.text.probabilities


@dataclasses.dataclass(frozen=True)
class Event:
    """A note, a warning, or progress of a training.

    Attributes
    ----------
    kind : str
        ``"note"``, ``"warning"``, ``"started"``, ``"progress"`` or ``"ended"``.
    text : str or None
        The line, the unit that is counted, or the latest measurements.
    done, total : int or None
        Finished units, and all units.
    """

    kind: str
    text: str | None
    done: int | None
    total: int | None


class Trajectory:
    """The frames of one text as it forms, in the order of their times.

    It is an iterator. The frames are computed ahead by another thread; leaving the loop early costs at most the work that
    was done meanwhile. In a notebook it is shown with a slider over the times.

    Attributes
    ----------
    frames : list of Frame
        The frames that were iterated over so far.
    """

    def __init__(self, native):
        self._native = native
        self._text = None
        self.frames: list[Frame] = []

    def __iter__(self) -> Trajectory:
        return self

    def __next__(self) -> Frame:
        made = next(self._native)
        if isinstance(made, Frame):
            self.frames.append(made)
            return made
        self._text = made
        raise StopIteration

    def close(self) -> None:
        """Stop the computation."""
        self._native.close()

    @property
    def text(self) -> Text:
        """The finished text; what is left of the trajectory is computed first."""
        for _ in self:
            pass
        return self._text

    def _repr_html_(self) -> str:
        last = self.text
        frames = [
            {**_event(frame.text, 0), "final": False, "t": frame.t, "step": frame.step, "steps": frame.steps}
            for frame in self.frames
        ]
        return _page(frames if last is None else [*frames, _event(last, 0)])


def _event(text: str, index: int) -> dict[str, typing.Any]:
    """A finished text as the server's event."""
    tokens = getattr(text, "tokens", None) or [str(text)]
    probabilities = getattr(text, "probabilities", None) or [None] * len(tokens)
    pairs = [{"text": token, "probability": p} for token, p in zip(tokens, probabilities)]
    confidence, cut = getattr(text, "confidence", None), getattr(text, "input_cut", False)
    return {"index": index, "final": True, "text": str(text), "tokens": pairs, "confidence": confidence, "input_cut": cut}


def _page(events: list[dict[str, typing.Any]]) -> str:
    """Events drawn as on the server's page, with all that it needs inside; without scripts, the last texts alone."""
    name = f"elf-flows-{next(_numbers)}"
    # "</script>" in a text must not end the script.
    data = json.dumps(events).replace("<", "\\u003c")
    texts = {event["index"]: event["text"] for event in events}
    plain = "".join(f"<p>{html.escape(text)}</p>" for text in texts.values())
    return (
        f"<style>{_native.TRAJECTORY_STYLE}</style><div id='{name}'>{plain}</div>"
        f"<script>(() => {{{_native.TRAJECTORY_SCRIPT}\n"
        f"drawTrajectory(document.getElementById('{name}'), {data});}})();</script>"
    )
