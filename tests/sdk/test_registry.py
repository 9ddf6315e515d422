from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from agnt5 import DefinitionError, registry
from agnt5.registry import LoadError

HEAD = "from agnt5 import workflow, function, WorkflowContext\n"
FLOW = HEAD + "@workflow\nasync def shared_name(ctx: WorkflowContext): ...\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within the same second
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def test_two_definitions_of_one_name_are_an_error_that_names_both(folder: Path) -> None:
    write(folder, "one_shop.py", FLOW)
    write(folder, "two_shop.py", "\n\n" + FLOW)
    registry.load("one_shop")
    with pytest.raises(DefinitionError, match=r"'shared_name'.*one_shop.py:2.*two_shop.py:4.*name="):
        registry.load("two_shop")


def test_two_definitions_in_one_file_are_an_error_too(folder: Path) -> None:
    write(folder, "double_shop.py", FLOW + "\n@workflow(timeout=5)\nasync def shared_name(ctx, a: int): ...\n")
    with pytest.raises(DefinitionError, match=r"double_shop.py:2.*double_shop.py:5"):
        registry.load("double_shop")
    registry.clear()
    write(folder, "double_steps.py", HEAD + "@function\ndef pay(): ...\n@function\ndef pay(x): ...\n")
    with pytest.raises(DefinitionError, match=r"'pay'.*double_steps.py:2.*double_steps.py:4"):
        registry.load("double_steps")


def test_a_reload_replaces_what_the_file_defined(folder: Path) -> None:
    path = write(folder, "edited_shop.py", FLOW)
    module = registry.load("./edited_shop.py")
    first = registry.workflow("shared_name")
    path.write_text("# one line more\n" + FLOW)
    importlib.reload(module)
    assert registry.workflow("shared_name") is not first


def test_a_definition_made_by_a_function_may_be_made_again() -> None:
    from agnt5 import function

    def make(answer: int) -> object:
        @function
        def made() -> int:
            return answer

        return made

    make(1)
    second = make(2)
    assert registry.function("made") is second


def test_a_module_is_loaded_by_name_or_by_path_and_its_folder_can_be_imported_from(folder: Path) -> None:
    write(folder, "sub/steps_of_shop.py", HEAD + "@function\ndef pay(): ...\n")
    write(folder, "sub/shop_by_path.py", HEAD + "from steps_of_shop import pay\n@workflow\nasync def buy(ctx): ...\n")
    write(folder, "packaged/__init__.py", "")
    write(folder, "packaged/shop.py", HEAD + "@workflow\nasync def sell(ctx): ...\n")
    module = registry.load("sub/shop_by_path.py")
    assert registry.load("sub/shop_by_path.py") is module
    registry.load("packaged.shop")
    assert list(registry.workflows()) == ["buy", "sell"]
    assert list(registry.functions()) == ["pay"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere_shop", "no module 'nowhere_shop'.*nowhere_shop.py"),
        ("nowhere.shop", "no module 'nowhere'"),
        ("nowhere.py", "no file nowhere.py"),
        ("./sub/", "folder"),
        ("notes.txt/", "no file|not a Python file"),
        ("a b", "neither"),
        ("bad-name.py", "rename"),
        ("json.py", "json.*rename"),
        ("broken_shop.py", "broken_shop.py failed.*ZeroDivisionError"),
        ("broken_shop", "broken_shop.*failed.*ZeroDivisionError"),
        ("needy_shop", "needy_shop.*imports 'not_installed_anywhere'"),
        ("syntax_shop.py", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_says_why(folder: Path, target: str, told: str) -> None:
    write(folder, "sub/x.py", "")
    write(folder, "bad-name.py", "")
    write(folder, "json.py", "")
    write(folder, "broken_shop.py", "1 / 0\n")
    write(folder, "needy_shop.py", "import not_installed_anywhere\n")
    write(folder, "syntax_shop.py", "def (:\n")
    with pytest.raises(LoadError, match=told):
        registry.load(target)


@pytest.mark.parametrize("target", ["leaving_shop.py", "leaving_shop"])
def test_a_module_that_exits_while_it_is_imported_was_not_loaded(folder: Path, target: str) -> None:
    write(folder, "leaving_shop.py", "import sys\nsys.exit()\n")
    with pytest.raises(LoadError, match=r"leaving_shop.*failed.*SystemExit"):
        registry.load(target)


def test_a_workflow_that_could_never_bind_is_refused_when_it_is_loaded(folder: Path) -> None:
    write(folder, "odd_shop.py", HEAD + "@workflow\nasync def buy(ctx, s: 'NoSuchName'): ...\n")
    with pytest.raises(DefinitionError, match=r"odd_shop.py:2.*'s'.*NoSuchName"):
        registry.load("odd_shop.py")


def test_a_missing_name_is_answered_with_near_ones() -> None:
    from agnt5 import workflow

    @workflow
    async def order_workflow(ctx) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(LookupError, match="did you mean 'order_workflow'"):
        registry.workflow("order_workfow")
    with pytest.raises(LookupError, match="Known: none"):
        registry.function("pay")
    assert registry.find_workflow("x") is None


def test_a_snapshot_brings_back_what_was_registered(folder: Path) -> None:
    write(folder, "kept_shop.py", FLOW)
    registry.load("kept_shop")
    before = registry.snapshot()
    registry.clear()
    assert registry.workflows() == {}
    registry.restore(before)
    assert list(registry.workflows()) == ["shared_name"]


def test_the_code_version_follows_the_sources_not_their_place(folder: Path) -> None:
    path = write(folder, "here/version_shop.py", FLOW)
    registry.load(str(path))
    first = registry.code_version()
    assert registry.code_version() == first
    path.write_text(FLOW + "# changed\n")
    assert registry.code_version() != first
    registry.clear()
    del sys.modules["version_shop"]
    registry.load(str(write(folder, "there/version_shop.py", FLOW)))
    assert registry.code_version() == first
