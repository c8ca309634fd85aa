"""Settings of the whole process that threads share: the first user sets them, the last one puts them back."""

import threading

import pytest
import torch
from torch import nn

from estimators.substitution.switches import Switch, free, without_compilers, without_cudnn


class Setting:
    """A setting and the switch that turns it off."""

    def __init__(self):
        self.value = "before"
        self.switch = Switch(self.turn)

    def turn(self):
        before, self.value = self.value, "off"
        return lambda: setattr(self, "value", before)


def test_the_last_user_puts_the_old_setting_back():
    setting = Setting()
    first, second = setting.switch.on(), setting.switch.on()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert setting.value == "off"
    second.__exit__(None, None, None)
    assert setting.value == "before"


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_errors_put_it_back(kind):
    setting = Setting()
    with pytest.raises(kind), setting.switch.on(), setting.switch.on():
        raise kind
    assert setting.value == "before"


def test_a_thread_that_was_stopped_forgets_itself_and_no_other():
    setting, entered, leaving = Setting(), threading.Event(), threading.Event()

    def other():
        with setting.switch.on():
            entered.set()
            leaving.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    stopped = setting.switch.on()
    stopped.__enter__()
    setting.switch.leave()
    assert setting.value == "off"
    leaving.set()
    thread.join()
    assert setting.value == "before"
    stopped.__exit__(None, None, None)
    assert setting.value == "before"


def test_plain_models_and_models_on_the_cpu_exchange_nothing():
    before = torch.backends.cudnn.enabled
    for model in (nn.Linear(2, 2), nn.LSTM(2, 2)):
        with without_cudnn(model), without_compilers(model):
            assert torch.backends.cudnn.enabled == before


def test_a_lock_that_ctrl_c_left_taken_does_not_hold_up_other_threads():
    lock = threading.RLock()
    lock.acquire()
    lock.acquire()
    free(lock)
    free(lock)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=10)))
    thread.start()
    thread.join()
    assert taken == [True]


def test_a_lock_of_another_thread_stays_taken():
    lock, entered, leaving = threading.RLock(), threading.Event(), threading.Event()

    def other():
        with lock:
            entered.set()
            leaving.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    free(lock)
    assert not lock.acquire(blocking=False)
    leaving.set()
    thread.join()
