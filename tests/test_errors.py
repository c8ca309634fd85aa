"""The exception of the user's mistakes and its special case."""

import pickle

import pytest

from estimators import UserError
from estimators.errors import UndefinedGGNError


@pytest.mark.parametrize("kind", [UserError, UndefinedGGNError])
def test_a_mistake_is_a_value_error_of_one_line_and_crosses_processes(kind):
    error = kind("samples: expected 1 to 9, got 0")
    with pytest.raises(ValueError, match=r"^samples: expected 1 to 9, got 0$"):
        raise error
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    assert isinstance(error, UserError)
