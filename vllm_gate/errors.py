"""What the gate raises. Each message is one line that names the cause and the way out."""


class GateError(ValueError):
    """The gate cannot be opened under these settings."""


class PatchError(GateError):
    """The installed vLLM is not the one that the gate was written for."""
