"""What a person can choose wrongly about an adapter. Each kind names the option, each message says what there is instead."""

from typing import ClassVar


class UnsuitableOption(ValueError):
    """An option does not fit the model. `option` is its name in the configuration; the message completes "it is X: …"."""

    option: ClassVar[str]


class UnknownTarget(UnsuitableOption):
    """A target name matches no linear layer of the model."""

    option = "targets"


class UnknownLayers(UnsuitableOption):
    """The blocks to adapt are written wrongly, or the model has no such blocks."""

    option = "layers"


class UnsuitableStart(UnsuitableOption):
    """The model, or what is at hand of it, does not allow this start of A and B."""

    option = "init"


class UnsuitableMethod(UnsuitableOption):
    """The model has not the parts that this kind of adapter acts on."""

    option = "method"
