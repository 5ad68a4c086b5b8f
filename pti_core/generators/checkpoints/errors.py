"""The one error of all checkpoint readers."""


class CheckpointError(ValueError):
    """A generator file that is refused; the message names the file, what is wrong, and the way out."""
