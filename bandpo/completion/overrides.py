"""Completion of overrides: keys, groups, and the values of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bandpo.completion.candidate import Candidate, Way
from bandpo.completion.sources import config_folders, files_of, ways


class Overrides(NamedTuple):
    """The overrides that a command takes."""

    keys: Mapping[str, Any]
    sections: Mapping[str, str]
    groups: Sequence[str]
    """Those of no default list have a plus, which adds them."""
    chosen: Mapping[str, str | None]
    """The files of groups that are taken where no override names another."""

    def ways(self, word: str, others: Sequence[str]) -> Iterator[Way]:
        """The ways to complete a word beside the other arguments."""
        sign, key, equals, value = re.match(r"(\+\+?|~|)([^=]*)(=?)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
        if equals:
            yield from self._values(f"{sign}{key}=", key, value, others)
        else:
            yield from self._keys(sign, key, others)

    def _keys(self, sign: str, start: str, others: Sequence[str]) -> list[Candidate]:
        """One level of keys: `learner.` before `learner.lr=`, unless it is the only one."""
        found: dict[str, Candidate] = {}
        for key, about in self._known(sign, others):
            if key.startswith(start):
                rest, dot, _ = key[len(start) :].partition(".")
                name = f"{start}{rest}{dot}"
                if dot:
                    found[name] = Candidate(sign + name, self.sections.get(name, ""), ends=False)
                elif sign == "~":
                    found[name] = Candidate(sign + name, about)
                else:
                    found[f"{name}="] = Candidate(f"{sign}{name}=", about, ends=False)
        only = next(iter(found)) if len(found) == 1 else ""
        return self._keys(sign, only, others) if only.endswith(".") else list(found.values())

    def _known(self, sign: str, others: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Groups and keys that an override with this sign may have, and what they are."""
        for group in self.groups:
            if sign == "+" and group.startswith("+"):
                yield group[1:], f"a file of configs/{group[1:]}"
            elif sign in ("", "~") and not (sign and group.startswith("+")):
                yield group, f"a file of configs/{group.lstrip('+')}"
        if sign != "+":  # it adds keys, which are not known
            for key, entry in self.keys.items():
                if self._is_there(entry.get("of", {}), others):
                    yield key, entry.get("about", "")

    def _is_there(self, files: Mapping[str, Sequence[str]], others: Sequence[str]) -> bool:
        """Whether a key is there that only these files of a group have."""
        for group, names in files.items():
            given = [word.partition("=")[2] for word in others if word.startswith(f"{group}=")]
            if not given and group not in self.chosen:
                continue
            taken = given[-1].split(",") if given else [self.chosen[group]]
            if not set(taken) & set(names):
                return False
        return True

    def _values(self, before: str, key: str, value: str, others: Sequence[str]) -> Iterator[Way]:
        """The values of a key; in a list, or a sweep, those of its last item."""
        head = value[: max(value.rfind("["), value.rfind(",")) + 1]
        given = {before + head + item for item in re.split(r"[\[,]", head)}
        for way in self._of_key(key, before + head, value[len(head) :], others):
            if isinstance(way, Candidate):
                if way.text not in given:
                    yield Candidate(way.text, way.about, way.ends and "[" not in head)
            else:
                yield way

    def _of_key(self, key: str, before: str, item: str, others: Sequence[str]) -> Iterator[Way]:
        if key not in {group.lstrip("+") for group in self.groups}:
            return ways(self.keys.get(key, {}).get("values", []), before, item, others)
        files = files_of(key, config_folders(others))
        if key in self.chosen and self.chosen[key] is None:
            files.append(Candidate("null", "none of them"))
        return (Candidate(before + file.text, file.about) for file in files)
