"""What forked processes need, imported once: by the process that they are forked off."""

import gc

import matplotlib.backends.backend_agg  # noqa: F401
import pytest  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo

from pruning_limits import predict_limit  # noqa: F401
from validation.tables.discovery import tables
from validation.tables.runner import run_table  # noqa: F401

torch.set_num_threads(1)  # the processes share the cores among them
tables()
gc.freeze()  # collections in forked processes need not walk through all of this
