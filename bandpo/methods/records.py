"""Token records: the loss's inputs for every token, as compact parquet that is streamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import LossOutput
from bandpo.types import TokenBatch

# One row per unmasked token; the tokens of a sequence are consecutive and in order.
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("update", pa.int16(), nullable=False),  # within the step, from 0
        pa.field("sequence", pa.int32(), nullable=False),  # within the file, ascending
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("old_logp", pa.float32(), nullable=False),
        pa.field("logp", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32()),  # of the old policy; null where the loss had none
        # Of the sample, as in TokenBatch; null where the loss had none.
        pa.field("pass_rate", pa.float32()),
        pa.field("dual", pa.float32()),
        pa.field("number", pa.int32()),
    ]
)
OF_SAMPLES = ("pass_rate", "dual", "number")  # records of earlier versions lack them
FLOATS = ("advantage", "old_logp", "logp", "entropy", "pass_rate", "dual")
READ = ("step", "update", "sequence", "advantage", "old_logp", "logp", "entropy")
CHUNK = 1 << 18  # tokens of a row group, and of one read
PADDED = 1 << 16  # tokens of a batch with its padding; smaller ones waste less on padding
# A log-softmax may round to slightly above 0.
ROUNDING = 1e-3

T = TypeVar("T")
logger = logging.getLogger(__name__)


# --- Writing -----------------------------------------------------------------------------------


def dump_path(run: Path, step: int, rank: int) -> Path:
    """The file of a rank's records of a step, in the folder of a run."""
    return run / "tokens" / f"step_{step:06d}-rank{rank}.parquet"


def recorded(
    minibatches: Iterable[T], path: Path, observers: list[Callable[[LossOutput], None]]
) -> Iterator[T]:
    """Yields the minibatches of a step and records the loss outputs that observers get for each.

    The file appears after the last minibatch, whole or not at all.
    """
    with TokenRecorder(path) as recorder:
        observers.append(recorder)
        try:
            for update, minibatch in enumerate(minibatches):
                recorder.update = update
                yield minibatch
        finally:
            observers.remove(recorder)


class TokenRecorder:
    """Writes the unmasked tokens of loss outputs to one file, under the current `update`.

    The file is written aside and renamed when the `with` block ends without an error, so that a
    kill leaves no partial file. Where the disk refuses a write, the file is discarded with a
    warning and training continues. Equal outputs give equal bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.update = path, 0
        self._sequences = self._rows = 0
        self._waiting: list[pa.Table] = []
        self._aside = path.with_name(f".{path.name}.partial")
        self._given_up = False
        with self._expendable():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._open()

    def _open(self) -> pq.ParquetWriter:
        coded = [name for name in SCHEMA.names if name not in ("old_logp", "logp", "entropy")]
        return pq.ParquetWriter(
            self._aside,
            SCHEMA,
            compression="zstd",
            use_dictionary=coded,
            # Exponents and leading bits of log-probabilities repeat: split off they compress.
            use_byte_stream_split=["old_logp", "logp", "entropy"],
            write_page_checksum=True,
        )

    @contextmanager
    def _expendable(self) -> Iterator[None]:
        """Ends the recording, not the block's caller, where the disk refuses a write."""
        try:
            yield
        except OSError as error:
            self._given_up = True
            self._aside.unlink(missing_ok=True)
            logger.warning("%s is not kept: %s", self.path, error)

    def __call__(self, output: LossOutput) -> None:
        """Records one micro-batch, in the order of its sequences."""
        if self._given_up:
            return
        batch = output.batch
        kept = batch.mask.bool()
        present = kept.any(-1)
        ids = (self._sequences + present.cumsum(0) - 1)[:, None].expand_as(kept)
        self._sequences += int(present.sum())
        rows = int(kept.sum())
        columns = {
            "step": torch.full((rows,), batch.step),
            "update": torch.full((rows,), self.update),
            "sequence": ids[kept],
            "advantage": batch.advantages[kept],
            "old_logp": batch.old_logp[kept],
            "logp": batch.logp.detach()[kept],
            **{
                name: None if (values := getattr(batch, name)) is None else values[kept]
                for name in ("entropy", *OF_SAMPLES)
            },
        }
        self._waiting.append(
            pa.table(
                [_arrow(columns[field.name], rows, field.type) for field in SCHEMA], schema=SCHEMA
            )
        )
        self._rows += rows
        if self._rows >= CHUNK:
            with self._expendable():
                self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=CHUNK)
        self._waiting, self._rows = [], 0

    def __enter__(self) -> TokenRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._given_up:
            return
        with self._expendable():
            if kind is None:
                self._write()
            self._writer.close()
            if kind is None:
                os.replace(self._aside, self.path)
        if kind is not None:
            self._aside.unlink(missing_ok=True)


def _arrow(values: Tensor | None, rows: int, kind: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(rows, kind)
    return pa.array(values.cpu().numpy()).cast(kind, safe=pa.types.is_integer(kind))


# --- Reading -----------------------------------------------------------------------------------


def find_dumps(paths: Sequence[Path]) -> list[Path]:
    """The token files among files, run folders and folders of token files, in order.

    Raises UserError for a path that is none of these.
    """
    found: list[Path] = []
    for path in paths:
        folder = path / "tokens" if (path / "tokens").is_dir() else path
        files = sorted(folder.glob("step_*.parquet")) if path.is_dir() else [path]
        if not files:
            raise UserError(
                f"{path} holds no token records (tokens/step_*.parquet): train with "
                "trainer.dump_tokens_every=10 to write them every 10 steps"
            )
        found += files
    return list(dict.fromkeys(found))


def count_tokens(path: Path) -> int:
    """The rows of a token file; raises UserError where it lacks the columns of one."""
    with _opened(path) as file:
        missing = [name for name in READ if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path} holds no token records: no column {', '.join(missing)}")
        return int(file.metadata.num_rows)


def read_batches(path: Path, chunk: int = CHUNK) -> Iterator[TokenBatch]:
    """The batches of `read_updates`."""
    return (batch for _, batch in read_updates(path, chunk))


def read_updates(path: Path, chunk: int = CHUNK) -> Iterator[tuple[int, TokenBatch]]:
    """A token file as padded batches of whole sequences, read about `chunk` tokens at a time.

    Each batch comes with its update within its step. A sequence ratio needs whole sequences, so
    memory depends on the longest one alone. Raises UserError for impossible log-probabilities and
    advantages, and for rows that another program has reordered.
    """
    last = -1
    with _opened(path) as file:
        for columns in _whole_sequences(file, chunk):
            first = columns["sequence"].diff(prepend=torch.tensor([last]))
            if bool((first < 0).any()) or int(columns["sequence"][0]) == last:
                raise UserError(f"{path}: sequence ids do not ascend: the rows were reordered")
            last = int(columns["sequence"][-1])
            _check(path, columns)
            yield from _padded(columns)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # Pre-buffering would hold the whole file.
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _whole_sequences(file: pq.ParquetFile, rows: int) -> Iterator[dict[str, Tensor]]:
    """Columns of about `rows` rows at a time; a sequence that is cut is joined to its rest."""
    names = [*READ, *(name for name in OF_SAMPLES if name in file.schema_arrow.names)]
    rest = file.schema_arrow.empty_table().select(names)
    for batch in file.iter_batches(rows, columns=names, use_threads=False):
        table = pa.concat_tables([rest, pa.table(batch).select(names)])
        sequence = table["sequence"]
        cut = pc.index(sequence, sequence[-1]).as_py() if len(table) else 0
        if cut:
            yield _columns(table.slice(0, cut))
        rest = table.slice(cut)
    if len(rest):
        yield _columns(rest)


def _columns(table: pa.Table) -> dict[str, Tensor]:
    columns = {}
    for name in table.column_names:
        if table[name].null_count == 0:
            values = table[name].cast(SCHEMA.field(name).type).to_numpy()
            columns[name] = torch.tensor(values)
    return columns


def _check(path: Path, columns: dict[str, Tensor]) -> None:
    for name in set(READ) - {"entropy"} - columns.keys():
        raise UserError(f"{path}: {name} has empty values")
    for name in columns.keys() & set(FLOATS):
        values = columns[name]
        limit = ROUNDING if name.endswith("logp") else float("inf")
        wrong = (~(values.isfinite() & (values <= limit))).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{path}: {name} is {float(values[row]):g} in sequence "
                f"{int(columns['sequence'][row])}: training had broken down, or the file is damaged"
            )


def _padded(columns: dict[str, Tensor]) -> Iterator[tuple[int, TokenBatch]]:
    """Batches of one update each, of sequences of similar length, at most PADDED tokens.

    A sequence longer than that gets a batch of its own.
    """
    _, lengths = torch.unique_consecutive(columns["sequence"], return_counts=True)
    starts = lengths.cumsum(0) - lengths
    updates = torch.stack([columns["step"][starts], columns["update"][starts].int()], dim=1)
    for step, update in updates.unique(dim=0).tolist():
        rows = (updates == torch.tensor([step, update])).all(1).nonzero()[:, 0]
        rows = rows[lengths[rows].argsort(descending=True, stable=True)]
        while len(rows):
            width = int(lengths[rows[0]])
            here, rows = rows.tensor_split([max(1, PADDED // width)])
            position = torch.arange(width)
            index = (starts[here, None] + position).clamp(max=len(columns["step"]) - 1)
            present = columns.keys() & {*FLOATS, "number"}
            values = {name: columns[name][index].float() for name in present}
            batch = TokenBatch(
                logp=values["logp"],
                old_logp=values["old_logp"],
                advantages=values["advantage"],
                mask=(position < lengths[here, None]).float(),
                entropy=values.get("entropy"),
                step=step,
                **{name: values.get(name) for name in OF_SAMPLES},
            )
            yield update, batch
