from __future__ import annotations

import gzip
import struct
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from estimators import UserError
from validation import data as data_module
from validation.data import CACHE_DIR_VARIABLE, DATA_DIR_VARIABLE, ImageData, load_data

Batch = tuple[Tensor, Tensor]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def pictures(count: int, side: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels) if channels > 1 else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_npz(path: Path, **changed: np.ndarray) -> None:
    arrays = {
        "x_train": pictures(6),
        "y_train": np.arange(6) % 3,
        "x_test": pictures(4, seed=1),
        "y_test": np.arange(4) % 3,
    }
    np.savez(path, **(arrays | changed))


def write_folder(root: Path, held_out: str = "test", side: int = 5) -> Path:
    for number, (split, count) in enumerate((("train", 3), (held_out, 2))):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for index, picture in enumerate(pictures(count, side, seed=10 * number + label)):
                Image.fromarray(picture).save(root / split / name / f"{index}.png")
    return root


def write_idx(path: Path, array: np.ndarray, pack: bool = False) -> None:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if pack else content)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download fail at once, as on a machine without a network."""
    from torchvision.datasets import cifar, mnist

    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    for module in (cifar, mnist):
        monkeypatch.setattr(module, "download_and_extract_archive", refuse)


# ------------------------------------------------------------------------------------------------- digits


def test_digits_are_embedded_and_split_the_same_every_time(digits: ImageData) -> None:
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    assert (len(digits.train_y), len(digits.test_y)) == (1400, 397)
    assert digits.train_x.dtype == torch.uint8
    assert (int(digits.train_x.min()), int(digits.train_x.max())) == (0, 255)
    again = load_data("digits")
    assert torch.equal(digits.train_x, again.train_x)
    assert torch.equal(digits.test_y, again.test_y)


def test_the_split_of_digits_shares_no_image_and_both_parts_hold_every_class_alike(digits: ImageData) -> None:
    joined = torch.cat([digits.train_x, digits.test_x]).flatten(1)
    assert len(torch.unique(joined, dim=0)) == 1797
    for labels in (digits.train_y, digits.test_y):
        shares = torch.bincount(labels, minlength=10) / len(labels)
        assert shares.min() > 0.07
        assert shares.max() < 0.13


def test_training_images_are_normalised_with_their_own_statistics(digits: ImageData) -> None:
    x = torch.cat([x for x, _ in digits.batches("train")])
    assert x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    mean, std = digits.statistics
    expected = (digits.test_x.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(torch.cat([x for x, _ in digits.batches("test", 100)]), expected)


def test_statistics_are_per_channel() -> None:
    x = torch.from_numpy(pictures(20, 4)).permute(0, 3, 1, 2).contiguous()
    x[:, 1] //= 3
    data = ImageData("made", x, torch.zeros(20, dtype=torch.int64), x, torch.zeros(20, dtype=torch.int64), 1)
    scaled = x.double() / 255
    mean, std = data.statistics
    torch.testing.assert_close(mean, scaled.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std(dim=(0, 2, 3), correction=0).float())


# ------------------------------------------------------------------------------------------------- batches


def test_every_pass_yields_the_same_batches_with_a_ragged_last_one(digits: ImageData) -> None:
    loader = digits.batches("train", 128)
    first, second = list(loader), list(loader)
    assert same(first, second)
    assert len(loader) == len(first) == 11
    assert [len(y) for _, y in first] == [128] * 10 + [120]
    assert torch.equal(torch.cat([y for _, y in first]), digits.train_y)


def test_a_limit_takes_the_first_samples(digits: ImageData) -> None:
    batches = list(digits.batches("train", 30, limit=50))
    assert [len(y) for _, y in batches] == [30, 20]
    assert torch.equal(torch.cat([y for _, y in batches]), digits.train_y[:50])


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_depends_on_seed_and_epoch_only(digits: ImageData, augment: bool) -> None:
    loader = digits.batches("train", 256)
    epoch = list(loader.shuffled(3, 5, augment=augment))
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    assert same(epoch, list(loader.shuffled(3, 5, augment=augment)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not same(epoch, list(loader.shuffled(3, 6, augment=augment)))
    assert not same(epoch, list(loader.shuffled(4, 5, augment=augment)))
    assert not same(epoch, list(loader.shuffled(5, 3, augment=augment)))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 6])
def test_starting_late_skips_batches(digits: ImageData, augment: bool, start: int) -> None:
    loader = digits.batches("train", 256)
    late = list(loader.shuffled(1, 2, start, augment))
    assert len(late) == max(0, 6 - start)
    assert same(late, list(islice(loader.shuffled(1, 2, 0, augment), start, None)))


def test_a_shuffled_epoch_holds_every_sample_once(digits: ImageData) -> None:
    epoch = list(digits.batches("train", 128).shuffled(0, 0))
    assert [len(y) for _, y in epoch] == [128] * 10 + [120]
    shuffled = torch.cat([x for x, _ in epoch]).flatten(1)
    stored = torch.cat([x for x, _ in digits.batches("train")]).flatten(1)
    assert not torch.equal(shuffled, stored)
    assert torch.equal(torch.unique(shuffled, dim=0), torch.unique(stored, dim=0))


def test_augmentation_shifts_and_flips_but_keeps_order_and_labels(digits: ImageData) -> None:
    loader = digits.batches("train", 64, limit=64)
    ((plain, labels),) = loader.shuffled(0, 0)
    ((moved, same_labels),) = loader.shuffled(0, 0, augment=True)
    assert torch.equal(labels, same_labels)
    black = float(plain.min())
    kinds = set()
    for before, after in zip(plain[:, 0], moved[:, 0], strict=True):
        padded = torch.full((16, 16), black)
        padded[4:12, 4:12] = before
        moves = {
            (down, right, flip)
            for down in range(9)
            for right in range(9)
            for flip in (False, True)
            if torch.equal(
                padded[down : down + 8, right : right + 8].flip(1) if flip else part(padded, down, right), after
            )
        }
        assert moves
        kinds |= moves
    assert {flip for *_, flip in kinds} == {False, True}
    assert len({down for down, *_ in kinds}) > 4
    assert len({right for _, right, _ in kinds}) > 4


def part(padded: Tensor, down: int, right: int) -> Tensor:
    return padded[down : down + 8, right : right + 8]


def test_every_batch_draws_its_own_augmentation(monkeypatch: pytest.MonkeyPatch, digits: ImageData) -> None:
    states = []

    def note(x: Tensor, generator: torch.Generator) -> Tensor:
        states.append(generator.initial_seed())
        return x

    monkeypatch.setattr(data_module, "_shift_and_flip", note)
    for seed in range(3):
        for epoch in range(3):
            states.append(data_module._generator(seed, epoch).initial_seed())
            list(digits.batches("train", 512).shuffled(seed, epoch, augment=True))
    assert len(set(states)) == len(states) == 9 * 4


def test_fixed_batches_are_never_augmented(monkeypatch: pytest.MonkeyPatch, digits: ImageData) -> None:
    monkeypatch.delattr(data_module, "_shift_and_flip")
    assert len(list(digits.batches("train", 700))) == 2
    assert len(list(digits.batches("train", 700).shuffled(0, 0))) == 2


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path: Path, channels: int) -> None:
    x = pictures(6, channels=channels)
    write_npz(tmp_path / "made.npz", x_train=x, x_test=pictures(4, channels=channels))
    for name in ("made", "made.npz", str(tmp_path / "made.npz")):
        data = load_data(name, tmp_path)
        assert data.shape == (channels, 5, 5)
        assert data.classes == 3
        assert data.test_y.tolist() == [0, 1, 2, 0]
        stored = x[:, None] if channels == 1 else x.transpose(0, 3, 1, 2)
        assert torch.equal(data.train_x, torch.from_numpy(stored.copy()))


def test_the_data_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "made.npz")
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    assert load_data("made").name == "made"


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder(tmp_path: Path, held_out: str) -> None:
    write_folder(tmp_path / "insects", held_out)
    (tmp_path / "insects" / "train" / "bee" / "notes.txt").write_text("no image")
    data = load_data("insects", tmp_path)
    assert data.name == "insects (PNG)"
    assert data.classes == 2
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_y.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.train_x[3].permute(1, 2, 0), torch.from_numpy(pictures(3, seed=1)[0]))


def test_images_may_lie_deeper_than_their_class_as_in_tiny_imagenet(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01443537", "n01629819"):
            (tmp_path / split / name / "images").mkdir(parents=True)
            Image.fromarray(pictures(1)[0]).save(tmp_path / split / name / "images" / "0.JPEG")
    assert load_data(str(tmp_path)).classes == 2


def test_an_archive_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "insects")
    with tarfile.open(tmp_path / "insects-images.tar.gz", "w:gz") as archive:
        for split in ("train", "test"):
            archive.add(folder / split, split)
    direct = load_data("insects", tmp_path)
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    packed = load_data("insects", tmp_path)
    monkeypatch.delattr(data_module, "_from_folder")
    cached = load_data("insects", tmp_path)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npz"]
    for data in (packed, cached):
        assert (data.name, data.classes) == (direct.name, direct.classes)
        for key in ("train_x", "train_y", "test_x", "test_y"):
            assert torch.equal(getattr(data, key), getattr(direct, key))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_raw_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, pack: bool) -> None:
    from torchvision.datasets import MNIST, FashionMNIST, utils

    kind = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[name]
    raw = tmp_path / folder / "raw"
    images = {"train": pictures(5, 28, 1), "t10k": pictures(3, 28, 1, seed=1)}
    for split, x in images.items():
        write_idx(raw / f"{split}-images-idx3-ubyte{'.gz' * pack}", x, pack)
        write_idx(raw / f"{split}-labels-idx1-ubyte{'.gz' * pack}", np.arange(len(x)), pack)
    monkeypatch.setattr(
        kind, "resources", [(file, utils.calculate_md5(raw / file) if pack else "") for file, _ in kind.resources]
    )
    data = load_data(name, tmp_path)
    assert (data.name, data.shape, data.classes) == (name, (1, 28, 28), 5)
    assert torch.equal(data.train_x[:, 0], torch.from_numpy(images["train"]))
    assert data.test_y.tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------- refusals


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_data(name, data_dir)
    text = str(caught.value)
    assert "\n" not in text
    assert "dataset" in text
    return text


def test_an_unknown_name_lists_the_known_ones_and_what_was_looked_for(tmp_path: Path) -> None:
    text = refusal("cifar11", tmp_path)
    for known in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100"):
        assert known in text
    for place in ("cifar11", "cifar11.npz", "cifar11.tar.gz"):
        assert str(tmp_path / place) in text
    assert "--data-dir" in text
    assert DATA_DIR_VARIABLE in text


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "own"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("cifar10", "CIFAR10")]
)
def test_absent_data_say_what_was_looked_for_and_how_to_get_it(tmp_path: Path, name: str, own: str) -> None:
    text = refusal(name, tmp_path / "absent")
    for place in (f"{name}.npz", f"{name}.tar.gz", own):
        assert str(tmp_path / "absent" / place) in text
    assert "--data-dir" in text
    assert DATA_DIR_VARIABLE in text


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04cut off", b"\x1f\x8b\x08cut off"])
@pytest.mark.parametrize("name", ["made.npz", "made.tar.gz"])
def test_a_damaged_archive_is_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(name, tmp_path)


def test_a_cut_archive_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    write_npz(tmp_path / "made.npz")
    folder = write_folder(tmp_path / "insects", side=40)
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(folder / "train", "train")
    for name in ("made.npz", "made.tar.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert str(tmp_path / name) in refusal(name, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_an_archive_without_a_training_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(folder, "insects")
    assert "train/" in refusal("made", tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x_train": pictures(6).astype(np.float32)}, "uint8"),
        ({"x_test": pictures(4)[0, 0]}, "uint8"),
        ({"x_test": pictures(4, side=6)}, "differ in shape"),
        ({"y_train": np.arange(5)}, "labels"),
        ({"y_train": np.arange(6) / 2}, "labels"),
        ({"y_test": np.arange(4) - 1}, "labels"),
        ({"x_test": pictures(0), "y_test": np.arange(0)}, "labels"),
        ({"y_test": np.array([0, 1, None, 2])}, "cannot read"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], said: str
) -> None:
    write_npz(tmp_path / "made.npz", **changed)
    assert said in refusal("made", tmp_path)


def test_an_npz_that_lacks_arrays_is_told_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", x_train=pictures(2), y_train=np.arange(2))
    text = refusal("made", tmp_path)
    assert "lacks x_test, y_test" in text


def test_folders_that_are_no_image_folders_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "insects")
    (folder / "test").rename(folder / "rest")
    assert "no test/ or val/" in refusal("insects", tmp_path)
    (folder / "test" / "images").mkdir(parents=True)
    assert "no images under" in refusal("insects", tmp_path)
    (folder / "test").rename(folder / "other")
    (folder / "rest").rename(folder / "test")
    Image.fromarray(pictures(1, side=7)[0]).save(folder / "test" / "bee" / "9.png")
    assert "differ in size" in refusal("insects", tmp_path)
    (folder / "test" / "bee" / "9.png").write_bytes(b"no picture")
    assert "9.png" in refusal("insects", tmp_path)


@pytest.mark.usefixtures("offline")
def test_damaged_idx_files_are_told_in_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte", pictures(3, 28, 1))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(3))
    whole = (raw / "t10k-images-idx3-ubyte").read_bytes()
    for content in (whole[:1000], whole[:10], b"no pictures at all"):
        (raw / "t10k-images-idx3-ubyte").write_bytes(content)
        assert str(tmp_path / "MNIST") in refusal("mnist", tmp_path)
