"""Files that are written as a whole or not at all, and checkpoints that hold only tensors."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from estimators.errors import UserError

PICKLE, PICKLE_OF_TORCH = b"\x80", b"\x80\x02"
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def path_of(argument: str, path: object) -> Path:
    """Return the path of a file as the user gave it, ``~`` being the home folder.

    Args:
        argument: Name of the argument, for messages.
        path: Text or a ``pathlib.Path``.

    Raises:
        UserError: It is no path.

    Example:
        >>> path_of("checkpoint", 3)
        Traceback (most recent call last):
        estimators.errors.UserError: checkpoint: expected the path of a file, got 3
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UserError(f"{argument}: expected the path of a file, got {path!r}")
    return Path(os.path.expanduser(text))  # noqa: PTH111, a user without a home folder is no error here


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of ``path`` once it is written, with the access that files get here.

    A link leads to the file that takes the new content. Devices, pipes and streams are written to, never replaced.
    """
    part = None
    try:
        if _stream(path):
            with path.open("ab") as stream:
                yield stream
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = (path.parent / f".{path.name}.{secrets.token_hex(8)}").open("xb")
        part = Path(file.name)
        with file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from None
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


def _stream(path: Path) -> bool:
    """Tell whether a path is that of a device, a pipe, a socket or a stream, which no file may take the place of."""
    return str(path).startswith(STREAMS) or (path.exists() and not path.is_file() and not path.is_dir())


def refuse_unwritable(path: Path, suffixes: Collection[str] = ()) -> None:
    """Refuse a place that cannot be written, before anything is computed for it; nothing is created.

    Args:
        path: File to write later; folders that are missing will be created.
        suffixes: Endings that the name may have, in lower case; empty for any.

    Raises:
        UserError: The name has another ending, it is a folder, or the folder that would hold it cannot be written.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"cannot write {path}: expected a name that ends in {', '.join(suffixes)}")
    try:
        folder = next((parent for parent in path.parents if parent.exists()), Path())
        taken, stream = path.is_dir(), _stream(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from None
    if stream and os.access(path, os.W_OK):
        return
    if taken or not folder.is_dir():
        what = f"{path} is a folder" if taken else f"{folder} is no folder"
        raise UserError(f"cannot write {path}: {what}; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {folder} cannot be written; choose another place")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with _whole(path) as file:
        file.write(content)


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dictionary of tensors and plain numbers atomically; tensors are stored as those of the CPU."""
    import torch
    from torch.utils._pytree import tree_map_only

    with _whole(path) as file:
        torch.save(tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), state), file)


def load_tensors(path: Path) -> dict[str, Any]:
    """Load what ``save_tensors`` wrote, or any file of plain tensors; refuses pickles that hold anything else.

    Args:
        path: A ``.safetensors`` file or a PyTorch checkpoint.

    Returns:
        The stored dictionary, on the CPU.

    Raises:
        UserError: The file is missing, damaged, or holds more than plain tensors.
    """
    import torch

    if not path.is_file():
        what = "is a folder, expected a file" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint: {path} {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        _refuse_other_pickles(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"checkpoint: {path} is not a file of plain weights and was not loaded; "
            "save model.state_dict() with torch.save or safetensors"
        ) from None
    except Exception as error:  # every damaged file fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint: {path} cannot be read ({reason}); save it again") from None
    if not isinstance(loaded, dict):
        raise UserError(f"checkpoint: {path} holds {type(loaded).__name__}, expected a state dict")
    return loaded


def _refuse_other_pickles(path: Path) -> None:
    """Refuse pickles of a protocol that torch never wrote by itself, before torch warns of them and fails."""
    with path.open("rb") as file:
        start = file.read(2)
    if start.startswith(PICKLE) and start != PICKLE_OF_TORCH:
        raise pickle.UnpicklingError(f"pickle protocol {start[1:].hex()}")
