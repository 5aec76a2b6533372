"""Token records hold what the loss saw, whole or not at all, and come back as whole sequences."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import FIXTURES
from token_dumps import output_of, random_batch, sequences_of, write_dump

from bandpo.artifacts.folder import cut_after
from bandpo.errors import UserError
from bandpo.methods.records import (
    CHUNK,
    SCHEMA,
    TokenRecorder,
    count_tokens,
    dump_path,
    find_dumps,
    read_batches,
    recorded,
)

BATCHES = [random_batch(seed) for seed in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return dump_path(tmp_path, 10, 0)


def test_a_row_a_token_in_the_order_of_the_updates(path):
    table = pq.read_table(write_dump(path, BATCHES))
    assert table.schema.equals(SCHEMA)
    expected = sequences_of(BATCHES)
    lengths = [len(sequence["logp"]) for sequence in expected]
    columns = table.to_pydict()
    assert columns["sequence"] == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert set(columns["step"]) == {10}
    per_update = [int(batch.mask.sum()) for batch in BATCHES]
    assert columns["update"] == [u for u, n in enumerate(per_update) for _ in range(n)]
    for column, field in zip(("advantage", *SCHEMA.names[4:7]), expected[0], strict=True):
        assert columns[column] == [x for sequence in expected for x in sequence[field]]


def test_it_is_compact_and_deterministic(path, tmp_path):
    batches = [random_batch(seed, sequences=64, tokens=512) for seed in range(4)]
    write_dump(path, batches)
    # Three float32 of noise a token; ids, step, update and advantage cost next to nothing.
    assert path.stat().st_size < 11.5 * count_tokens(path)
    again = write_dump(tmp_path / "again.parquet", batches)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 18])
def test_sequences_come_back_whole_for_any_chunk(path, chunk):
    write_dump(path, BATCHES)
    read = sequences_of(list(read_batches(path, chunk)))
    assert sorted(read, key=str) == sorted(sequences_of(BATCHES), key=str)


def test_steps_do_not_share_a_batch(path):
    write_dump(path, [random_batch(0, step=3), random_batch(1, step=4)])
    batches = list(read_batches(path))
    for seed, step in ((0, 3), (1, 4)):
        tokens = sum(int(batch.mask.sum()) for batch in batches if batch.step == step)
        assert tokens == int(random_batch(seed).mask.sum())


def test_entropy_may_be_absent_and_floats_double(path):
    batch = dataclasses.replace(BATCHES[0], entropy=None, logp=BATCHES[0].logp.double())
    write_dump(path, [batch])
    assert pq.read_table(path)["entropy"].null_count == count_tokens(path)
    for read in read_batches(path):
        assert read.entropy is None and read.logp.dtype == torch.float32


def test_a_rank_without_samples_leaves_an_empty_file(path):
    with TokenRecorder(path):
        pass
    assert count_tokens(path) == 0 and list(read_batches(path)) == []


def test_minibatches_pass_through_the_recorder(path):
    observers = []
    seen = []
    for batch in recorded(BATCHES, path, observers):
        for observe in observers:
            observe(output_of(batch))
        seen.append(batch)
        assert not path.exists()
    assert seen == BATCHES and observers == []
    assert pq.read_table(path)["update"].unique().to_pylist() == [0, 1, 2]


def test_an_error_leaves_neither_a_file_nor_an_observer(path):
    observers: list = []
    minibatches = recorded(BATCHES, path, observers)
    observers_at_work = next(minibatches) is BATCHES[0] and len(observers)
    assert observers_at_work
    minibatches.close()
    assert list(path.parent.iterdir()) == [] and observers == []


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_full_disk_ends_the_record_and_not_the_step(size, path, at_most, caplog):
    observers = []
    batches = [random_batch(0, sequences=64, tokens=1 + CHUNK // 16), *BATCHES]
    with at_most(size):
        for batch in recorded(batches, path, observers):
            for observe in observers:
                observe(output_of(batch))
    assert f"{path} is not kept" in caplog.text
    assert list(path.parent.iterdir()) == [] and observers == []


KILLED = """
import os, signal, sys
from pathlib import Path
from token_dumps import output_of, random_batch
from bandpo.methods.records import CHUNK, TokenRecorder
with TokenRecorder(Path(sys.argv[1])) as recorder:
    recorder(output_of(random_batch(0, sequences=64, tokens=1 + CHUNK // 16)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_half_file(path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=FIXTURES)
    assert done.returncode == -9
    (partial,) = path.parent.iterdir()
    assert partial.stat().st_size > 100_000
    with pytest.raises(UserError, match="holds no token records"):
        find_dumps([path.parents[1]])
    write_dump(path, BATCHES)  # the run is started again
    assert find_dumps([path.parents[1]]) == [path] and list(path.parent.iterdir()) == [path]


def test_steps_that_are_redone_are_forgotten(tmp_path):
    paths = [dump_path(tmp_path, step, rank) for step in (9, 10, 11) for rank in (0, 1)]
    for path in paths:
        write_dump(path, BATCHES[:1])
    (tmp_path / "metrics.jsonl").write_text("")
    cut_after(tmp_path, 10)
    assert find_dumps([tmp_path]) == paths[:4]


def test_runs_folders_and_files_are_found_once(tmp_path):
    first = write_dump(dump_path(tmp_path / "a", 10, 0), BATCHES[:1])
    second = write_dump(dump_path(tmp_path / "b", 20, 0), BATCHES[:1])
    assert find_dumps([tmp_path / "b", tmp_path / "a" / "tokens", first]) == [second, first]


def rewritten(path: Path, change) -> Path:
    pq.write_table(change(pq.read_table(path)), path)
    return path


def with_column(name: str, values) -> object:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array(values(table[name].to_numpy().copy()))
        return table.set_column(table.schema.names.index(name), name, column)

    return change


def spoiled(value: float):
    def values(column):
        column[37] = value
        return column

    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["logp", "step"]), "no column step, logp"),
        (with_column("old_logp", spoiled(float("nan"))), r"old_logp is nan in sequence \d+"),
        (with_column("logp", spoiled(0.5)), r"logp is 0.5 in sequence \d+"),
        (with_column("advantage", spoiled(float("-inf"))), r"advantage is -inf in sequence"),
        (with_column("sequence", lambda ids: ids[::-1].copy()), "do not ascend"),
        (with_column("logp", lambda logp: [None, *logp[1:]]), "logp has empty values"),
        (with_column("logp", lambda logp: [str(x) + "!" for x in logp]), "cannot be read"),
    ],
)
def test_what_is_no_record_is_refused_in_words(path, change, message):
    rewritten(write_dump(path, BATCHES), change)
    with pytest.raises(UserError, match=message) as caught:
        count_tokens(path)
        list(read_batches(path))
    assert str(path) in str(caught.value)


def test_rows_that_return_to_an_earlier_sequence_are_refused_across_chunks(path):
    write_dump(path, BATCHES)
    rewritten(path, lambda table: pa.concat_tables([table, table.slice(0, 50)]))
    with pytest.raises(UserError, match="do not ascend"):
        list(read_batches(path, 64))


@pytest.mark.parametrize("damage", ["cut", "not parquet", "missing", "a flipped byte"])
def test_damaged_files_are_named(path, damage):
    write_dump(path, BATCHES)
    whole = path.read_bytes()
    middle = len(whole) // 3
    contents = {
        "cut": whole[:-100],
        "not parquet": b"sequence,logp\n",
        "a flipped byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    path.write_bytes(contents.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=path.name):
        count_tokens(path)
        list(read_batches(path))
