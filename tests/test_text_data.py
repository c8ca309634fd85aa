from __future__ import annotations

import string
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from estimators import UserError
from validation import text_data
from validation.data import ImageData, drawn, load_data
from validation.models import build_model
from validation.text_data import HELD_OUT, LENGTH, WINDOWS, TextData, standard_library
from validation.training import accuracy

FILES = 25
HELD = (0, 10, 20)


@pytest.fixture(scope="module")
def text() -> TextData:
    return standard_library()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of 25 files, each of a letter of its own, written in an order that is not the alphabet's."""
    for number in torch.randperm(FILES, generator=torch.Generator().manual_seed(0)).tolist():
        (tmp_path / f"{string.ascii_lowercase[number]}.py").write_text(100 * string.ascii_uppercase[number])
    (tmp_path / "z.txt").write_text(1000 * "Z")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


def letters(values: torch.Tensor) -> set[str]:
    """Read numbers of characters in a library of the first upper-case letters, which are numbered in their order."""
    return {string.ascii_uppercase[value] for value in values.unique().tolist()}


# ------------------------------------------------------------------------------------------------- windows


def test_every_place_is_asked_for_the_next_character(text: TextData) -> None:
    for x, y, count in ((text.train_x, text.train_y, WINDOWS), (text.test_x, text.test_y, HELD_OUT)):
        assert x.shape == (count, 1, 1, LENGTH)
        assert y.shape == (count, LENGTH)
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(x[:, 0, 0, 1:].long(), y[:, :-1])
        assert int(y.max()) < text.classes


def test_windows_are_pieces_of_the_library(text: TextData) -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    contents = [file.read_bytes() for file in files]
    known = sorted({min(byte, 128) for content in contents for byte in set(content)})
    assert text.classes == len(known)
    plain = bytes(min(byte, 128) for byte in range(256))
    for held_out, x, y in ((False, text.train_x, text.train_y), (True, text.test_x, text.test_y)):
        part = b"".join(content for number, content in enumerate(contents) if (number % 10 == 0) is held_out)
        part = part.translate(plain)
        for start, end in zip(x[:40, 0, 0, 0].tolist(), y[:40].tolist(), strict=True):
            assert bytes(known[value] for value in (start, *end)) in part


def test_windows_differ_from_each_other(text: TextData) -> None:
    assert len(text.train_x.unique(dim=0)) > 0.95 * WINDOWS
    assert len(text.test_x.unique(dim=0)) > 0.95 * HELD_OUT


def test_the_same_text_gives_the_same_windows(text: TextData) -> None:
    again = standard_library()
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(text, name), getattr(again, name))


def test_inputs_are_the_numbers_themselves(text: TextData) -> None:
    x, y = next(iter(text.batches("train", 64)))
    assert torch.equal(x, text.train_x[:64].float())
    assert torch.equal(y, text.train_y[:64])


def test_accuracy_counts_characters(text: TextData) -> None:
    few = drawn(text, 100)
    model = build_model("characters-slim", few.shape, few.classes).eval()
    with torch.no_grad():
        right = model(few.test_x.float()).argmax(1) == few.test_y
    assert right.shape == (50, LENGTH)
    assert accuracy(model, few) == float(right.sum()) / (50 * LENGTH)
    assert accuracy(model, few, "train") <= 1


# ------------------------------------------------------------------------------------------------- held out


@pytest.mark.usefixtures("library")
def test_every_tenth_file_is_held_out_and_no_window_of_it_is_trained_on() -> None:
    data = standard_library()
    held = {string.ascii_uppercase[number] for number in HELD}
    assert letters(torch.cat([data.test_x.flatten(), data.test_y.flatten()])) == held
    rest = set(string.ascii_uppercase[:FILES]) - held
    assert letters(torch.cat([data.train_x.flatten(), data.train_y.flatten()])) == rest
    assert data.classes == FILES


def test_characters_that_are_not_ascii_count_as_one(library: Path) -> None:
    (library / "b.py").write_text(100 * "\u00e9\u20ac")
    data = standard_library()
    assert data.classes == FILES  # the letter B went, one for all others came
    assert int(data.train_x.max()) == FILES - 1


def test_windows_reach_both_ends_of_the_text(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in library.iterdir():
        file.unlink()
    for name in "ab":
        (library / f"{name}.py").write_text("".join(map(chr, range(60, 100))))
    monkeypatch.setattr(text_data, "WINDOWS", 400)
    data = standard_library()
    assert set(data.train_x[:, 0, 0, 0].tolist()) == set(range(40 - LENGTH))
    assert set(data.train_y[:, -1].tolist()) == set(range(LENGTH, 40))


# ------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("count", [2, 100, 1399])
def test_a_draw_has_so_many_samples_each_with_its_own_label(digits: ImageData, count: int) -> None:
    part = drawn(digits, count)
    assert (len(part.train_y), len(part.test_y)) == (count, min(397, count // 2))
    assert part.name == f"digits, {count:,} drawn"
    assert (part.classes, part.shape) == (digits.classes, digits.shape)
    images = digits.train_x.flatten(1).tolist()
    places = [images.index(image) for image in part.train_x.flatten(1).tolist()]
    assert len(set(places)) == count
    assert torch.equal(part.train_y, digits.train_y[places])
    assert count == 2 or places != sorted(places)


def test_a_draw_is_the_same_every_time_and_a_smaller_one_begins_it(digits: ImageData) -> None:
    large, again, small = drawn(digits, 300), drawn(digits, 300), drawn(digits, 100)
    assert torch.equal(large.train_x, again.train_x)
    assert torch.equal(large.test_y, again.test_y)
    assert torch.equal(large.train_x[:100], small.train_x)


def test_a_draw_of_more_than_there_is_takes_all(digits: ImageData) -> None:
    part = drawn(digits, 10**6)
    assert (len(part.train_y), len(part.test_y)) == (1400, 397)
    assert part.name == "digits, 1,400 drawn"
    assert torch.equal(part.train_y.bincount(), digits.train_y.bincount())


def test_a_number_behind_a_name_asks_for_a_draw(
    digits: ImageData, text: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_data, "standard_library", lambda: text)
    part, words = load_data("digits-200"), load_data("stdlib-text-100")
    assert torch.equal(part.train_x, drawn(digits, 200).train_x)
    assert (len(part.train_y), len(part.test_y)) == (200, 100)
    assert isinstance(words, TextData)
    assert torch.equal(words.test_y, drawn(text, 100).test_y)
    assert (len(words.train_y), len(words.test_y), words.classes) == (100, 50, text.classes)


def test_a_file_of_the_whole_name_is_no_draw(digits: ImageData, tmp_path: Path) -> None:
    """The real folder of Tiny ImageNet ends in a number of its own."""
    arrays = {"x_train": digits.train_x[:5, 0], "y_train": digits.train_y[:5]}
    arrays |= {"x_test": digits.test_x[:3, 0], "y_test": digits.test_y[:3]}
    np.savez(tmp_path / "tiny-images-200.npz", **{key: value.numpy() for key, value in arrays.items()})
    assert len(load_data("tiny-images-200", tmp_path).train_y) == 5
    few = load_data("tiny-images-200-2", tmp_path)
    assert (len(few.train_y), len(few.test_y)) == (2, 1)


@pytest.mark.parametrize("name", ["digits-0", "digits-", "digits-1.5", "digits-x", "stdlib-text-\u00b2", "digits--5"])
def test_a_name_that_is_none_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset: '.*' is not one of digits, stdlib-text, .* none of these exists"):
        load_data(name, tmp_path)


def test_a_draw_from_an_unknown_data_set_names_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset: 'nothing' is not one of"):
        load_data("nothing-100", tmp_path)
