"""The error of input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used. The message is one line: the argument, its value, what is accepted."""
