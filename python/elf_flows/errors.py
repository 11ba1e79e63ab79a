"""The exceptions of ``elf_flows``. Their texts are those of the program ``elf``: what is wrong, and what to do."""


class ElfError(Exception):
    """Any error of ``elf_flows``."""


class SettingError(ElfError, ValueError):
    """A setting that is out of range, misspelt, or in conflict with another."""


class PlaceError(ElfError, OSError):
    """A file, folder or hub id that is missing, damaged, in use, or of the wrong kind."""


class MismatchError(ElfError, ValueError):
    """Two parts that do not fit together, such as latents of another shape than the model's."""


class RequestError(ElfError, ValueError):
    """A request that a model cannot fulfil, such as an input text for an unconditional model."""


class TensorError(ElfError, TypeError):
    """An argument that is no tensor, or one of a type or device that cannot be used."""


class ClosedError(ElfError, RuntimeError):
    """A model that was closed, or that was loaded in another process."""


class InternalError(ElfError, RuntimeError):
    """A mistake in ``elf_flows`` or libtorch, which should be reported. The interpreter and other models go on."""
