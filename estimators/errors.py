"""The one exception that stands for a mistake of the user, and its special case for losses without a GGN."""


class UserError(ValueError):
    """Bad input, told in one line: which argument, what was expected, what came, what to do."""


class UndefinedGGNError(UserError):
    """A loss that is no function of independent outputs of the model, so that it has no GGN."""

    @property
    def reason(self) -> str:
        """What the GGN needs, without the name of the argument."""
        return str(self).removeprefix("loss_fn: ")
