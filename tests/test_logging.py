"""What the library says goes to the loggers of its packages and nowhere else."""

import logging

import pytest
import torch
from helpers import classification, python, seeded
from torch import nn

from estimators import Objective
from pruning_limits import predict_limit


def predict(**options):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 100), nn.Tanh(), nn.Linear(100, 3)))
    fixed = {"epsilon": 0.02, "probes": 1, "samples": 8, "progress": False}
    return predict_limit(model, classification(6)(), **(fixed | options))


def test_nothing_is_printed(capfd):
    limit = predict(steps=4)
    assert limit.answer("formula").status != "converged"
    assert capfd.readouterr() == ("", "")


def test_the_logger_tells_objective_spectra_and_status(caplog):
    with caplog.at_level(logging.DEBUG, "pruning_limits"):
        limit = predict(steps=4)
    assert {record.name for record in caplog.records} == {"pruning_limits"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == f"900 weights, loss {limit.objective:.6g}, epsilon 0.02"
    assert any(message.startswith("ggn-8: step error ") for message in messages)
    assert messages[-1] == f"limit {limit.lower:.4f}, {limit.status}"
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [*limit.notes, messages[-1]]


def test_a_limit_that_converged_is_no_warning(caplog):
    with caplog.at_level(logging.INFO, "pruning_limits"):
        limit = predict(tolerance=1.0)
    assert limit.answer("formula").status == "converged"
    assert caplog.records[-1].levelno == logging.INFO


SMALLER = """
import torch
from estimators import Objective
objective = Objective(torch.nn.Linear(4, 3), [(torch.ones(8, 4), torch.zeros(8).long())])
list(objective.batches())
objective.shrink()
"""


def test_a_program_without_handlers_sees_no_warning(tmp_path):
    result = python("-c", SMALLER, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_smaller_batches_are_told(caplog):
    objective = Objective(nn.Linear(4, 3), [(torch.ones(8, 4), torch.zeros(8).long())])
    list(objective.batches())
    objective.shrink()
    assert objective.most == 4
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("estimators", "memory ran out with 8 samples; passing at most 4 at once from now on")
    ]


@pytest.mark.parametrize("level", ["DEBUG", "WARNING"])
def test_messages_reach_a_handler_of_the_root(level, caplog):
    with caplog.at_level(level):
        predict(steps=4)
    assert any(record.levelname == "WARNING" for record in caplog.records)
