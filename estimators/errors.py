"""The one exception that stands for a mistake of the user."""


class UserError(ValueError):
    """Bad input, told in one line: which argument, what was expected, what came, what to do."""
