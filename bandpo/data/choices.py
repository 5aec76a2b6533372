"""Multiple-choice problems: their choices in an order of their own, and a letter as the answer."""

from __future__ import annotations

import dataclasses
import random

from pydantic import BaseModel, ConfigDict, Field

from bandpo.types import Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Choices(BaseModel):
    """The choices of multiple-choice problems, whose right one is in the source's answer column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wrong: tuple[str, ...] = Field(
        min_length=1, max_length=25, description="the columns of the wrong choices"
    )
    seed: int = Field(default=0, description="the order follows from it and the problem's id")

    def lettered(self, problem: Problem) -> Problem:
        """The problem with its shuffled choices as lines `A) …`, and a letter as its answer.

        Raises KeyError with the column that the problem lacks.
        """
        choices = [problem.answer, *(str(problem.meta[column]).strip() for column in self.wrong)]
        order = list(range(len(choices)))
        random.Random(f"{self.seed}/{problem.id}").shuffle(order)
        lines = (f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=False))
        text = "\n".join([f"{problem.problem}\n", *lines])
        return dataclasses.replace(problem, problem=text, answer=LETTERS[order.index(0)])
