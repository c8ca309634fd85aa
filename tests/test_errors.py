"""The exception of the user's mistakes."""

import pickle

import pytest

from estimators import UserError


def test_a_mistake_is_a_value_error_of_one_line_and_crosses_processes():
    error = UserError("samples: expected 1 to 9, got 0")
    with pytest.raises(ValueError, match=r"^samples: expected 1 to 9, got 0$"):
        raise error
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (UserError, str(error))
