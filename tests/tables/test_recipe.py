"""Recipe files: what they may say, and what is said of them when they are wrong."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from bandpo.cli import main
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.planning.gpus import Cluster
from bandpo.tables.recipe import Recipe, find_recipe, override_of
from bandpo.tables.runs import PlannedRun, Selection, plan_runs, seeds_of, table_hash

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.parent for path in (ROOT / "recipes").glob("*/recipe.yaml"))
TABLES = [path for path in RECIPES if not find_recipe(str(path)).is_study]
ONE_RUN = "title: x\nmodels: {a: {}}\nmethods: {grpo: {}}"
SMALL = """
title: small
models: {embedded: {}}
methods: {grpo: {seeds: [4, 7]}, tight: {overrides: {method: band_kl, method.delta: 0.01}}}
seeds: 2
overrides: {trainer.steps: 3, rollout: hf}
"""


class Echo:
    """A study that writes what it was given."""

    def __init__(self, number: int) -> None:
        self.number = number

    def run(self, folder: Path, smoke: bool) -> None:
        (folder / "table.md").write_text(f"{self.number} {smoke}")


@cache
def planned(folder: Path) -> list[PlannedRun]:
    """Every run of a recipe that ships: composing those of table1 takes seconds."""
    recipe = find_recipe(str(folder)).recipe()
    return plan_runs(recipe, Path("out"), ranks=ranks_of(recipe))


def ranks_of(recipe: Recipe) -> int:
    return Cluster.of(recipe.cluster).count if recipe.cluster else 1


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder


def test_a_study_is_instantiated_and_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    written(tmp_path / "recipes/echo", "_target_: test_recipe.Echo\nnumber: 3\n")
    monkeypatch.chdir(tmp_path)
    assert main(["table", "echo"]) == 0
    assert (tmp_path / "outputs/tables/echo/table.md").read_text() == "3 False"
    assert main(["table", "recipes/echo", "--smoke", "number=5", "--out", "here"]) == 0
    assert (tmp_path / "here/table.md").read_text() == "5 True"


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (
            "title: x\nmodels: {a: {}}\nmethods: {grpo: {}}\nsteps: 3",
            ["recipe.yaml", "steps", "key"],
        ),
        ("title: x\nmethods: {grpo: {}}", ["recipe.yaml", "models", "missing"]),
        ("title: x\nmodels: {a: {}}\nmethods: {'a/b': {}}", ["methods", "a/b"]),
        ("title: x\nmodels: {a: {}}\nmethods: {grpo: {seeds: many}}", ["methods.grpo.seeds"]),
        (f"{ONE_RUN}\nseeds: 0", ["seeds", "no seed"]),
        (
            "title: x\nmodels: {a: {}}\nmethods: {grpo: {}}\nprotocol: paper8",
            ["protocol", "paper32"],
        ),
        ("- a list", ["recipe.yaml", "mapping"]),
        ("a: [", ["recipe.yaml", "cannot be read"]),
        ("extends: recipe.yaml", ["recipe.yaml", "extends itself"]),
        ("extends: ../nowhere.yaml", ["nowhere.yaml", "cannot be read"]),
        ("_target_: nowhere.Study", ["recipe.yaml", "nowhere"]),
        ("_target_: decimal.Decimal\nbad: 1", ["recipe.yaml", "bad"]),
        ("_target_: decimal.Decimal", ["recipe.yaml", "Decimal", "run(folder, smoke)"]),
        ("title: x\nmodels: {a: {}}\nmethods: {nosuch: {}}", ["a, nosuch", "method=nosuch"]),
        (
            "title: x\nmodels: {a: {overrides: {learner.lr: -1}}}\nmethods: {grpo: {}}",
            ["a, grpo", "learner.lr=-1"],
        ),
    ],
)
def test_a_bad_recipe_is_told_in_words(content, fragments, tmp_path, capsys):
    folder = written(tmp_path / "bad", content)
    assert main(["table", str(folder), *([] if "_target_" in content else ["--plan"])]) == 2
    told = capsys.readouterr().err
    assert all(fragment in told for fragment in fragments), told


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--only", "method=grpo,seed=1"], "leaves no run"),
        (["--smoke"], "smoke: dapo is not a row"),
        (["--at-once", "0"], "at least one"),
        (["--hostfile", "nowhere"], "--hostfile nowhere: no such file"),
        (["--cluster", "8xQ1"], "such as 8xH200"),
    ],
)
def test_bad_arguments_are_told_in_words(arguments, fragment, tmp_path, capsys):
    smoke = "smoke: {methods: [dapo]}"
    folder = written(tmp_path / "few", f"{SMALL}\n{smoke}")
    assert main(["table", str(folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert fragment in capsys.readouterr().err


def test_a_launcher_that_is_none_is_told_in_words(tmp_path, capsys):
    launcher = "launcher: {_target_: nowhere.Launcher}"
    folder = written(tmp_path / "few", f"{SMALL}\n{launcher}")
    assert main(["table", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_study_has_no_plan(tmp_path, capsys):
    folder = written(tmp_path / "study", "_target_: decimal.Decimal")
    assert main(["table", str(folder), "--plan", "--at-once", "2"]) == 2
    assert "it has no --plan, --at-once" in capsys.readouterr().err


def test_a_missing_recipe_names_those_at_hand(tmp_path, monkeypatch, capsys):
    written(tmp_path / "recipes/one", SMALL)
    monkeypatch.chdir(tmp_path)
    assert main(["table", "two"]) == 2
    told = capsys.readouterr().err
    assert "known recipes: " in told and ", one, " in told and ", small, " in told


def test_recipes_that_ship_are_found_from_any_folder_and_own_ones_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("small").path == ROOT / "recipes/small"
    (tmp_path / "recipe.yaml").write_text(SMALL)  # is not meant by another's name
    assert find_recipe("small").path == ROOT / "recipes/small"
    assert find_recipe("recipe.yaml").path == find_recipe(".").path == tmp_path
    own = written(tmp_path / "recipes/small", SMALL)
    assert find_recipe("small").path == own
    assert find_recipe("recipes/small/recipe.yaml").path == own


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 1e-6, "a/b-c", "two words, 'quoted'", [1, "x y"], {"a": {"b": [None]}}),
        *(r"\d+ \\n", r"it's \'s", "\\", ["\\", r"\n"], "a\nb"),
    ],
)
def test_overrides_mean_to_hydra_what_the_file_says(value):
    (parsed,) = OverridesParser.create().parse_overrides([override_of("key", value)])
    assert parsed.value() == value


def test_runs_are_models_by_methods_by_seeds_with_folders_of_their_own(tmp_path):
    recipe = find_recipe(str(written(tmp_path / "r", SMALL))).recipe()
    runs = plan_runs(recipe, tmp_path / "out")
    cells = [("grpo", 4), ("grpo", 7), ("tight", 0), ("tight", 1)]
    assert [(run.method, run.seed) for run in runs] == cells
    assert len({run.folder for run in runs}) == 4
    assert runs[0].config.seed == 4 and runs[0].config.method.name == "grpo"
    assert runs[2].config.method.delta == 0.01 and runs[2].config.trainer.steps == 3
    narrowed = plan_runs(recipe, tmp_path, Selection.of(["method=tight,seed=1"], recipe))
    assert [(run.method, run.seed) for run in narrowed] == [("tight", 1)]
    with pytest.raises(UserError, match=r"(?s)'delta=3'.*no model x.*no seed 9"):
        Selection.of(["delta=3", "seed=9", "model=x"], recipe)


def commands_of(page: Path) -> list[list[str]]:
    """The commands of a page's bash blocks as words."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: folder.name)
def test_every_recipe_composes_and_its_readme_has_the_command_of_each_row(folder):
    found = find_recipe(str(folder))
    recipe, runs = found.recipe(), planned(folder)
    seeds = sum(len(seeds_of(recipe, method)) for method in recipe.methods)
    assert len(runs) == len(recipe.models) * seeds
    assert len({run.folder for run in runs}) == len(runs)
    commands = commands_of(folder / "README.md")
    assert ["bandpo", "table", folder.name] in commands
    trained = [
        table_hash(compose("train", words[2:], Config, ranks_of(recipe)))
        for words in commands
        if words[:2] == ["bandpo", "train"]
    ]
    rows = {table_hash(run.config): run.method for run in runs}
    assert [rows.get(command) for command in trained] == list(recipe.methods)
    published = found.expected()
    assert published.keys() <= recipe.models.keys()


def test_published_values_are_those_of_the_paper():
    paper = ROOT.parent / "shared" / "paper" / "table1.json"
    if not paper.exists():
        pytest.skip("the paper's table is not at hand")
    recipe = find_recipe(str(ROOT / "recipes/table1"))
    ours = recipe.expected()
    names = {row.overrides["model.path"]: name for name, row in recipe.recipe().models.items()}
    rows = json.loads(paper.read_text())["rows"]
    assert len(rows) >= 18
    for row in rows:
        method = row["method"].replace("(", "_").replace(")", "")
        for benchmark, scores in row["scores"].items():
            mine = ours[names[row["hub_id"]]][method][benchmark]
            renamed = scores and {"mean@32": scores["mean@32"], "best@32": scores["pass@32"]}
            assert mine == renamed, (row["hub_id"], method, benchmark)


def pairs(tree, key=""):
    """(key, value) of every leaf below every mapping, keys without what they lie under."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from pairs(value, name)
    else:
        yield key, tree


def test_numbers_of_the_release_are_stated_once():
    """Recipes say which protocol they follow, and repeat nothing of it."""
    configs = config_dir() / "protocol"
    content = yaml.safe_load((configs / "_release.yaml").read_text())
    release = {
        (f"{section}.{key}", str(value))
        for section, values in content.items()
        if section != "defaults"
        for key, value in values.items()
    }
    assert {("eval.max_tokens", "4096"), ("rollout.prompts_per_step", "256")} <= release
    for path in (ROOT / "recipes").rglob("*.yaml"):
        said = {(key, str(value)) for key, value in pairs(yaml.safe_load(path.read_text()))}
        assert not said & release, path
    for name in ("paper32", "release16"):
        content = yaml.safe_load((configs / f"{name}.yaml").read_text())
        assert content.keys() == {"defaults", "rollout"}
        assert content["rollout"].keys() == {"group_size"}


def test_the_release_decays_weights_by_a_hundredth_and_dapo_by_a_tenth():
    protocol = ["+protocol=release16", "model.path=some/model", "rollout.max_tokens=4608"]
    for method in (path.stem for path in (config_dir() / "method").glob("[!_]*.yaml")):
        found = compose("train", [f"method={method}", *protocol], Config).learner
        dapo = method == "dapo"
        assert (found.weight_decay, found.warmup_rollouts) == ((0.1, 10) if dapo else (0.01, 0))
    given = [*protocol, "method=dapo", "learner.weight_decay=0.3"]
    assert compose("train", given, Config).learner.weight_decay == 0.3


def test_table1_is_24_runs_a_seed_with_the_release_protocol(tmp_path):
    recipe = find_recipe(str(ROOT / "recipes/table1")).recipe()
    assert ranks_of(recipe) == 8
    runs = [run for run in planned(ROOT / "recipes/table1") if run.seed == 0]
    assert len(runs) == 24
    for run in runs:
        c = run.config
        assert (c.rollout.group_size, c.rollout.prompts_per_step) == (32, 256)
        assert (c.learner.lr, c.learner.updates_per_rollout) == (1e-6, 4)
        assert (c.learner.weight_decay, c.learner.warmup_rollouts) == (0.01, 0)
        assert (c.data.max_prompt_tokens, c.rollout.max_tokens, c.eval.max_tokens) == (
            1024,
            4096,
            4096,
        )
        assert (c.rollout.temperature, c.rollout.top_p, c.eval.n) == (1.0, 1.0, 32)
        assert (c.trainer.eval_every, c.trainer.checkpoint_every) == (5, 10)
        assert c.method.kl_coef == 0.001 and c.method.dual_clip == 10.0
        assert c.reward["_target_"] == "bandpo.reward.release_reward"
        assert c.data.train["name"] == "dapo_math"
        assert c.eval.benchmarks == ("amc23", "aime24", "aime25")
        assert c.trainer.steps == (800 if run.model.endswith(("1.5b", "3b")) else 500)
    deltas = {run.method: run.config.model_dump()["method"].get("delta") for run in runs}
    assert list(deltas.values()) == [None, None, 0.05, 0.03, 0.05, 0.1]
    half = recipe.model_copy(update={"protocol": "release16"})
    first = plan_runs(half, tmp_path, Selection.of(["model=qwen2.5-3b,method=grpo,seed=0"], half))
    assert first[0].config.rollout.group_size == 16
