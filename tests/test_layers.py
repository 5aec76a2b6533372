"""The house of CONTRIBUTING.md: every room has a floor, and imports go down only."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bandpo"
# From the bottom up; a room imports from rooms of lower floors and from itself.
FLOORS = (
    {"errors", "types", "redaction", "cpu", "environment"},
    {"disk", "config"},
    {
        "advantage",
        "batching",
        "completion",
        "data",
        "loss",
        "model",
        "ranks",
        "reward",
        "weight_sync",
    },
    {"learner", "rollout", "alarms"},
    {"artifacts", "evaluation", "methods", "planning"},
    {"run"},
    {"train"},
    {"tables", "watch"},
    {"commands"},
    {"cli"},
    {"integrations"},  # for trainers of other frameworks: nothing here imports it
)
# Of these, only rooms that generate, learn or join ranks may know anything.
HEAVY = {
    "vllm": {"rollout"},
    "deepspeed": {"learner", "ranks", "weight_sync"},
    "trl": {"integrations"},
    "verl": {"integrations"},
}
MOST_LINES = 400
MOST_FILES_AT_THE_TOP = 12
MOST_FILES_IN_A_ROOM = 16


def room_of(module: str) -> str:
    """`bandpo.data.sources` → `data`."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "bandpo":
            found |= {f"bandpo.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module of the package."""
    return [
        (path.relative_to(PACKAGE).with_suffix("").parts[0], path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    ]


def arrows() -> list[tuple[str, str, str]]:
    """(room, room that it imports from, `file imports module`), of different rooms."""
    return [
        (room, room_of(module), f"{path.relative_to(PACKAGE)} imports {module}")
        for room, path in modules()
        for module in sorted(imports_of(path))
        if module.startswith("bandpo.") and room_of(module) != room
    ]


def floor_of(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def test_every_room_has_a_floor():
    assert {room for room, _ in modules()} == set().union(*FLOORS)


def test_imports_go_down_only():
    upwards = [text for room, other, text in arrows() if floor_of(other) > floor_of(room)]
    assert upwards == []


def test_there_is_no_circle_between_rooms():
    edges: dict[str, set[str]] = {room: set() for room, _ in modules()}
    for room, other, _ in arrows():
        edges[room].add(other)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        nexts = edges.get(start, set()) - seen
        return goal in nexts or any(reaches(n, goal, seen | nexts) for n in nexts)

    assert [room for room in edges if reaches(room, room, set())] == []


def test_other_frameworks_get_losses_alone():
    """Their environments need not have what `bandpo train` needs: torch is enough for these."""
    assert {other for room, other, _ in arrows() if room == "integrations"} == {
        "errors",
        "loss",
        "types",
    }


@pytest.mark.parametrize("package", HEAVY)
def test_only_few_rooms_know_the_heavy_packages(package):
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for room, path in modules()
        for module in imports_of(path)
        if module.split(".")[0] == package and room not in HEAVY[package]
    ]
    assert wrong == []


def test_no_room_is_an_attic():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_TOP
    files = {room.name: len(list(room.glob("*.py"))) for room in PACKAGE.iterdir() if room.is_dir()}
    assert {room: n for room, n in files.items() if n > MOST_FILES_IN_A_ROOM} == {}


def test_no_file_is_too_long_to_read():
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for _, path in modules()
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_no_docstring_opens_with_a_riddle():
    """“What a run may …” makes the reader guess; a docstring names the thing or what it returns."""
    opened = [
        f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}"
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (text := ast.get_docstring(node) or "").startswith("What ")
    ]
    assert opened == []


CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def table_below(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of CONTRIBUTING.md, without its two head lines."""
    section = CONTRIBUTING.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_map_names_every_room():
    named = {name for row in table_below("The house") for name in re.findall(r"`(\w+)", row[0])}
    assert named == {room for room, _ in modules()}


def test_where_things_go_are_places_that_exist():
    for change, places in table_below("Where do I put …"):
        paths = [p for p in re.findall(r"`([\w./<>]+)`", places) if "/" in p or "." in p]
        own = [p for p in paths if "<name>" not in p and p != "README.md"]
        assert paths, change
        missing = [
            p for p in own if not (PACKAGE / p).exists() and not (PACKAGE.parent / p).exists()
        ]
        assert missing == [], change
        for new in (p for p in paths if "<name>" in p):
            folder = Path(new).parent.as_posix().split("<name>")[0].rstrip("/")
            assert (PACKAGE.parent / folder).is_dir() or (PACKAGE / folder).is_dir(), new
