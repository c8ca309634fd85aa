"""Image data sets held in memory as uint8 tensors, and the batches drawn from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from estimators.errors import UserError
from validation.normalisation import Affine, Normalisation

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
DATA_DIR_VARIABLE = "PRUNING_LIMITS_DATA"
CACHE_DIR_VARIABLE = "PRUNING_LIMITS_CACHE"


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set split into training and test part.

    Args:
        name: What tables call the data set.
        train_x: Training images, uint8 ``[n, channels, height, width]``.
        train_y: Training labels, int64 ``[n]`` in ``0..classes-1``.
        test_x: Test images, uint8 ``[m, channels, height, width]``.
        test_y: Test labels, int64 ``[m]``.
        classes: Number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_x.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def device(self) -> torch.device:
        """Where the images lie; networks are trained, pruned and measured there."""
        return self.train_x.device

    def to(self, device: torch.device) -> ImageData:
        """Return the data set with images and labels on a device; nothing is drawn there."""
        parts = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of the training images scaled to [0, 1]."""
        counts = torch.stack(
            [torch.bincount(self.train_x[:, c].reshape(-1), minlength=256) for c in range(self.shape[0])]
        )
        counts = counts.cpu()  # what is rounded does not depend on the device
        weights = counts.double() / counts.sum(dim=1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = weights @ levels
        std = (weights @ levels.square() - mean.square()).clamp(min=1e-12).sqrt()
        return mean.float(), std.float()

    @property
    def standardised(self) -> Affine:
        """Inputs of mean 0 and deviation 1 per channel over the training images."""
        mean, std = (values.tolist() for values in self.statistics)
        return Affine.standardising(mean, std, " (the training images' own)")

    def batches(
        self, split: str, batch_size: int = 128, limit: int | None = None, normalise: Normalisation | None = None
    ) -> Batches:
        """Batches of one split in a fixed order without augmentation.

        Args:
            split: ``"train"`` or ``"test"``.
            batch_size: Samples per batch; the last batch may be smaller.
            limit: Use the first ``limit`` samples only.
            normalise: From images to inputs; default ``standardised``.

        Returns:
            A loader that yields the same ``(x, y)`` batches on every pass.
        """
        x, y = (self.train_x, self.train_y) if split == "train" else (self.test_x, self.test_y)
        return Batches(x[:limit], y[:limit], normalise or self.standardised, batch_size)


class Batches:
    """Normalised ``(x, y)`` batches over tensors in memory.

    Without ``order`` every pass yields the same batches. ``shuffled`` gives one epoch of training batches whose
    order and augmentation depend only on ``(seed, epoch)``, so that training can start at any step. They are drawn on
    the CPU, wherever the images lie, so that they are the same on every device.

    Args:
        x: Images, uint8 ``[n, c, h, w]``.
        y: Labels, int64 ``[n]``, on the device of the images.
        normalise: From images to inputs.
        batch_size: Samples per batch.
    """

    def __init__(self, x: Tensor, y: Tensor, normalise: Normalisation, batch_size: int) -> None:
        self.x, self.y = x, y
        self.normalise = normalise
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        return -(-len(self.y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in storage order."""
        for start in range(0, len(self.y), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.normalise(self.x[part]), self.y[part]

    def shuffled(self, seed: int, epoch: int, start: int = 0, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of shuffled batches from batch number ``start`` on.

        Args:
            seed: Seed of the run.
            epoch: Epoch number; together with the seed it fixes order and augmentation.
            start: First batch to yield.
            augment: Shift by up to four pixels and flip left to right at random.

        Yields:
            ``(x, y)`` with ``x`` float32 ``[batch, c, h, w]``.
        """
        order = torch.randperm(len(self.y), generator=_generator(seed, epoch)).to(self.y.device)
        for number in range(start, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            x = self.x[index]
            if augment:
                x = _shift_and_flip(x, _generator(seed, epoch, number + 1))  # 0 would repeat the order's stream
            yield self.normalise(x), self.y[index]


def load_data(name: str, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """Load a data set by name or from a folder or file.

    ``name`` is ``digits`` (embedded, 8x8), a torchvision name (``mnist``, ``fashion-mnist``, ``cifar10``,
    ``cifar100``), or the name of a folder in ImageFolder layout (``train/<class>/*``, ``test/<class>/*`` or
    ``val/<class>/*``), a ``.tar.gz`` of such a folder, or an ``.npz`` with ``x_train, y_train, x_test, y_test``,
    each looked for under ``data_dir``. Decoded image folders are cached as ``.npz``. ``stdlib-text`` is the source text
    of Python's standard library in windows of characters, ``tabular`` 5,000 rows of 40 numbers in five classes, drawn
    by scikit-learn. With a number behind it, such as ``mnist-10000``, a data set is a fixed random draw of so many
    training samples, and of half as many held-out ones, unless a folder or file has the whole name.

    Args:
        name: Data set name or path.
        data_dir: Where data lie; default the environment variable ``PRUNING_LIMITS_DATA``, then ``./data``.

    Returns:
        The data set, decoded.

    Raises:
        UserError: The data set is unknown or not there; the message says what was looked for.

    Example:
        >>> load_data("digits").shape
        (1, 8, 8)
    """
    if name == "digits":
        return _digits()
    if name == "tabular":
        return _tabular()
    if name == "stdlib-text":
        from validation.text_data import standard_library

        return standard_library()
    root = Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or "data")
    candidates = [Path(name), *(root / stem for stem in _stems(name))]
    for path in candidates:
        if path.is_file() and path.suffix == ".npz":
            return _from_npz(name, path)
        if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
            return _from_archive(name, path)
        if path.is_dir() and (path / "train").is_dir():
            return _from_folder(name, path)
    whole, _, count = name.rpartition("-")
    if whole and count.isdecimal() and int(count):
        return drawn(load_data(whole, data_dir), int(count))
    if name in TORCHVISION:
        return _from_torchvision(name, root, candidates)
    known = ", ".join(["digits", "stdlib-text", "tabular", *TORCHVISION])
    looked = ", ".join(str(path) for path in candidates)
    raise UserError(
        f"dataset: {name!r} is not one of {known}, and none of these exists: {looked}; "
        f"give --data-dir or {DATA_DIR_VARIABLE}"
    )


def _tabular() -> ImageData:
    """Return rows of numbers in 256 levels; one label in fifty is wrong."""
    from sklearn.datasets import make_classification

    rows, labels = make_classification(
        6000, 40, n_informative=12, n_redundant=8, n_classes=5, n_clusters_per_class=2, flip_y=0.02, random_state=0
    )
    low, high = np.quantile(rows, (0.001, 0.999), axis=0)
    levels = np.clip(255 * (rows - low) / (high - low), 0, 255).round().astype(np.uint8)[:, None, :]
    return _from_arrays("tabular", levels[:5000], labels[:5000], levels[5000:], labels[5000:])


def drawn(data: ImageData, count: int) -> ImageData:
    """Return a data set with a random draw of its training samples, and of half as many held-out ones."""

    def part(size: int, most: int) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:most]

    train, test = part(len(data.train_y), count), part(len(data.test_y), count // 2)
    return replace(
        data,
        name=f"{data.name}, {len(train):,} drawn",
        train_x=data.train_x[train],
        train_y=data.train_y[train],
        test_x=data.test_x[test],
        test_y=data.test_y[test],
    )


def _stems(name: str) -> list[str]:
    return [name, f"{name}.npz", f"{name}.tar.gz", f"{name}-images.tar.gz"]


def _generator(*numbers: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)


def _shift_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    down = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    right = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = (down + torch.arange(height)).to(x.device)
    columns = (right + torch.where(flip, torch.arange(width - 1, -1, -1), torch.arange(width))).to(x.device)
    samples = torch.arange(n, device=x.device)[:, None, None]
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order] * (255 / 16)).round().astype(np.uint8)
    labels = bunch.target[order]
    return _from_arrays("digits", images[:1400], labels[:1400], images[1400:], labels[1400:])


def _from_arrays(
    name: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> ImageData:
    def images(x: np.ndarray) -> Tensor:
        if x.dtype != np.uint8 or x.ndim not in (3, 4):
            raise UserError(
                f"dataset {name!r}: images must be uint8 (n, height, width[, channels]), got {x.dtype} {x.shape}"
            )
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(x))

    def labels(y: np.ndarray, x: np.ndarray) -> Tensor:
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1] or not y.size or y.min() < 0:
            raise UserError(
                f"dataset {name!r}: {len(x)} images need as many integer labels from 0 on, got {y.dtype} {y.shape}"
            )
        return torch.from_numpy(y.astype(np.int64))

    train, test = images(x_train), images(x_test)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"dataset {name!r}: training and test images differ in shape: {x_train.shape}, {x_test.shape}")
    targets = labels(y_train, x_train), labels(y_test, x_test)
    return ImageData(name, train, targets[0], test, targets[1], int(max(part.max() for part in targets)) + 1)


def _from_npz(name: str, path: Path) -> ImageData:
    wanted = ("x_train", "y_train", "x_test", "y_test")
    with _readable(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        missing = [key for key in wanted if key not in arrays]
        if missing:
            raise UserError(f"dataset: {path} lacks {', '.join(missing)}; it must hold {', '.join(wanted)}")
        title = str(arrays["name"]) if "name" in arrays else name
        return _from_arrays(title, *(arrays[key] for key in wanted))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every damaged file fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"dataset: cannot read {path} ({reason}); remove it or put a whole copy there") from None


def _from_torchvision(name: str, root: Path, looked: list[Path]) -> ImageData:
    from torchvision import datasets

    try:
        sets = [getattr(datasets, TORCHVISION[name])(root, train=train, download=True) for train in (True, False)]
    except Exception as error:  # a failed download, or a damaged file that torchvision could not decode
        places = ", ".join(str(path) for path in [*looked, root / TORCHVISION[name]])
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset: {name!r} was not found (looked for {places}) and could not be downloaded or read ({reason}); "
            f"put it there or give --data-dir or {DATA_DIR_VARIABLE}"
        ) from None
    arrays = [part for dataset in sets for part in (np.asarray(dataset.data), np.asarray(dataset.targets))]
    return _from_arrays(name, *arrays)


def _from_folder(name: str, path: Path) -> ImageData:
    from PIL import Image

    kinds: set[str] = set()

    def read(split: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
        files = [
            (file, label) for label, class_name in enumerate(classes) for file in _images(path / split / class_name)
        ]
        if not files:
            raise UserError(f"dataset: no images under {path / split}/<class>/")
        images = []
        for file, _ in files:
            with _readable(file), Image.open(file) as image:
                kinds.add(str(image.format))
                images.append(np.asarray(image.convert("RGB")))
        sizes = sorted({image.shape[1::-1] for image in images})
        if len(sizes) > 1:
            raise UserError(
                f"dataset: the images under {path / split} differ in size, for example {sizes[0]}, {sizes[1]}; "
                "save them in one size, or give a loader of yours with --data"
            )
        return np.stack(images), np.array([label for _, label in files])

    def _images(folder: Path) -> list[Path]:
        return sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"})

    classes = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
    held_out = next((split for split in ("test", "val") if (path / split).is_dir()), None)
    if held_out is None:
        raise UserError(f"dataset: {path} has no test/ or val/ folder beside train/")
    arrays = [*read("train", classes), *read(held_out, classes)]
    return _from_arrays(f"{name} ({', '.join(sorted(kinds))})", *arrays)


def _from_archive(name: str, path: Path) -> ImageData:
    """Decode a packed image folder once and keep the arrays in the cache folder."""
    import tarfile
    import tempfile

    cache = Path(os.environ.get(CACHE_DIR_VARIABLE) or Path.home() / ".cache" / "pruning-limits")
    stat = path.stat()
    cached = cache / f"{path.name.split('.')[0]}-{stat.st_size}-{int(stat.st_mtime)}.npz"
    if not cached.exists():
        with tempfile.TemporaryDirectory() as folder:
            with _readable(path), tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            if not (Path(folder) / "train").is_dir():
                raise UserError(f"dataset: {path} has no train/ folder at its top")
            data = _from_folder(name, Path(folder))
        cache.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(
                file,
                x_train=data.train_x.permute(0, 2, 3, 1).numpy(),
                y_train=data.train_y.numpy(),
                x_test=data.test_x.permute(0, 2, 3, 1).numpy(),
                y_test=data.test_y.numpy(),
                name=np.array(data.name),
            )
        part.replace(cached)
    return _from_npz(name, cached)
