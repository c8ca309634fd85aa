"""Run folders named by a hash of their settings, and the files in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from estimators.errors import UserError
from estimators.files import load_tensors, save_tensors, write_bytes

FORMAT = 1

__all__ = [
    "folder_of",
    "load_tensors",
    "read_json",
    "run_folder",
    "save_tensors",
    "settings_hash",
    "write_bytes",
    "write_json",
]


def settings_hash(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a dictionary of plain settings."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(root: Path, kind: str, settings: dict[str, Any]) -> Path:
    """Return where the folder of one run is, or would be; nothing is written.

    Args:
        root: Folder that holds all runs.
        kind: First part of the folder's name.
        settings: Everything the run depends on, as plain JSON values.

    Returns:
        ``root/kind-<hash>``.
    """
    return root / f"{kind}-{settings_hash(settings)}"


def run_folder(root: Path, kind: str, settings: dict[str, Any]) -> Path:
    """Make or find the folder of one run and note its settings in it.

    Args:
        root: Folder that holds all runs.
        kind: First part of the folder's name.
        settings: Everything the run depends on, as plain JSON values.

    Returns:
        What ``folder_of`` returns.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = folder_of(root, kind, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "settings.json").exists():
            write_json(folder / "settings.json", settings)
    except OSError as error:
        raise UserError(f"out: cannot write to {folder}: {error.strerror}; choose another folder") from None
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically with sorted keys."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; None where it does not exist."""
    return json.loads(path.read_text()) if path.exists() else None
