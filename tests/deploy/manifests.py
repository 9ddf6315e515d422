"""Reading k8s/ as kustomize does, as far as these files use it: resources, generators, label and image changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s" / "base"
PRODUCTION = ROOT / "k8s" / "overlays" / "production"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kustomization(folder: Path) -> dict[str, Any]:
    (document,) = documents(folder / "kustomization.yaml")
    return document


def own_files(folder: Path) -> Iterator[Path]:
    for resource in kustomization(folder)["resources"]:
        if (folder / resource).is_file():
            yield folder / resource


def objects(folder: Path) -> list[dict[str, Any]]:
    """What the folder itself declares, patches left out."""
    return [document for path in own_files(folder) for document in documents(path)]


def named(folder: Path, kind: str, name: str = "agnt5") -> dict[str, Any]:
    (found,) = [o for o in objects(folder) if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def given_but_lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths in `given` that a model did not take over: misspelt or unknown fields."""
    match given:
        case dict():
            if not isinstance(kept, dict):
                return [path]
            return [
                lost
                for key, value in given.items()
                for lost in (
                    [f"{path}.{key}"] if key not in kept else given_but_lost(value, kept[key], f"{path}.{key}")
                )
            ]
        case list():
            if not isinstance(kept, list) or len(given) != len(kept):
                return [path]
            return [
                lost
                for i, (a, b) in enumerate(zip(given, kept, strict=True))
                for lost in given_but_lost(a, b, f"{path}[{i}]")
            ]
        case _:
            return [] if given == kept else [path]
