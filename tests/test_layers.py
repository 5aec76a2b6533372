"""DESIGN's layers: a module imports only from its own layer's packages below it, never above."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "bandpo"
# From the bottom up; a part may import parts of lower layers and itself.
LAYERS = (
    {
        "errors",
        "types",
        "cache",
        "compilation",
        "console",
        "cores",
        "launcher",
        "lock",
        "redaction",
    },
    {"composition", "config", "cross_checks", "overrides", "resume"},
    {"data", "reward", "advantage", "batching", "loss", "model"},
    {"rollout", "learner", "weight_sync"},
    {"evaluation", "tracking", "journal", "model_card", "profiling", "run_folder"},
    {
        "architecture",
        "alarms",
        "beginning",
        "cli",
        "cost",
        "doctor",
        "explain",
        "host",
        "job",
        "methods",
        "multirun",
        "plan",
        "plots",
        "probe",
        "refusals",
        "rehearsal",
        "replay",
        "saving",
        "series",
        "stops",
        "tables",
        "tabular",
        "train",
    },
)
HEAVY = {"vllm", "deepspeed"}


def part_of(module: str) -> str:
    """`bandpo.data.sources` → `data`."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "bandpo":
            found |= {f"bandpo.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def modules() -> list[tuple[str, Path]]:
    """(part, file) of every module of the package."""
    return [
        (path.relative_to(PACKAGE).with_suffix("").parts[0], path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    ]


def layer_of(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def test_every_part_has_a_layer():
    known = set().union(*LAYERS)
    assert {part for part, _ in modules()} <= known


def test_imports_go_down_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for part, path in modules()
        for module in imports_of(path)
        if module.startswith("bandpo.")
        and part_of(module) != part
        and layer_of(part_of(module)) > layer_of(part)
    ]
    assert wrong == []


def test_there_is_no_circle_between_parts():
    edges: dict[str, set[str]] = {}
    for part, path in modules():
        targets = {part_of(m) for m in imports_of(path) if m.startswith("bandpo.")}
        edges.setdefault(part, set()).update(targets - {part})

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        nexts = edges.get(start, set()) - seen
        return goal in nexts or any(reaches(n, goal, seen | nexts) for n in nexts)

    assert [part for part in edges if reaches(part, part, set())] == []


def test_only_rollout_learner_and_sync_know_vllm_and_deepspeed():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for part, path in modules()
        for module in imports_of(path)
        if module.split(".")[0] in HEAVY and part not in LAYERS[3]
    ]
    assert wrong == []
