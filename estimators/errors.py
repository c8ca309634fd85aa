"""The exception for mistakes of the user, and its subclasses for missing derivatives."""


class UserError(ValueError):
    """Bad input, told in one line: which argument, what was expected, what came, what to do."""


class UndefinedGGNError(UserError):
    """A loss that is no function of independent outputs of the model, so that it has no GGN."""

    @property
    def reason(self) -> str:
        """What the GGN needs, without the name of the argument."""
        return str(self).removeprefix("loss_fn: ")


class MissingDerivativeError(UserError):
    """A function without a second derivative, so that a curvature has no products by differentiating twice.

    Args:
        message: The whole line.
        reason: What lacks which derivative, a clause.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
