"""The folder of a set of runs: the folders of its members, and what the members have in common.

    DIR/members.json   what the command named, and which members train
    DIR/MEMBER/        a run like any other
    DIR/summary.json   mean, deviation and 95% interval over the members of each setting

and in DIR, or with several settings in DIR/SETTING, metrics.jsonl and TensorBoard event files with
the mean over the seeds of every number of the records and, as deviation/NAME, its deviation.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dnrt_jax.runtime import checkpoint, storage
from dnrt_jax.runtime.errors import WorkdirError
from dnrt_jax.runtime.progress import Line
from dnrt_jax.runtime.statistics import describe_records, mean_record
from dnrt_jax.runtime.storage import AnyPath
from dnrt_jax.runtime.workdir import Workdir, read_json

MEMBERS = "members.json"
Settings = Mapping[str, Sequence[str]]  # names of members, by what they have in common


class SetFolder:
    """Opens or creates the folder of a set and those of its members, and locks them until closed; a
    context manager. A run by itself is the only member, called "", of a set without a folder.

    Raises:
      WorkdirError: as `Workdir`, or if the folder holds what is not meant.
    """

    def __init__(self, path: AnyPath, settings: Settings, *, is_main: bool = True):
        self._settings, self._is_main = settings, is_main
        self._setting = {name: setting for setting, names in settings.items() for name in names}
        self._stopped: set[str] = set()
        self._last: dict[str, int] = {}  # the newest step of each member
        # Records of the members of a setting, by step and name, that others have not come to.
        self._waiting: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
        is_set = "" not in self._setting
        _check_kind(path, is_set)
        self._folders: list[Workdir] = []
        with ExitStack() as opened, ExitStack() as removed:

            def folder_at(place: AnyPath) -> Workdir:
                folder = opened.enter_context(Workdir(place, is_main=is_main))
                removed.enter_context(folder.removed_on_error())
                self._folders.append(folder)
                return folder

            self._own = folder_at(path) if is_set else None
            self.members = {name: folder_at(path / name) for name in self._setting}
            several = [setting for setting, names in settings.items() if len(names) > 1]
            self._means = {s: folder_at(path / s) if s else self._folders[0] for s in several}
            self._opened = opened.pop_all()

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Context manager that, on an error, removes the folders that were created for this set."""
        with ExitStack() as stack:
            for folder in self._folders:
                stack.enter_context(folder.removed_on_error())
            yield

    def check_space(self, states: Any) -> None:
        """As `Workdir.check_space`, for the states of all members."""
        self._folders[0].check_space(states)

    def chosen(
        self, seeds: str | None, sweep: Sequence[str], unfinished: Sequence[str]
    ) -> dict[str, Any]:
        """What members.json shall say. The members that train, "trained", are those that were
        unfinished when this command was first given.

        They share a program, whose results may depend in the last digit on how many they are. So a
        command that is repeated after a kill chooses the same, though some may be at their end.
        """
        settings = {setting: list(names) for setting, names in self._settings.items()}
        command = {"seeds": seeds, "sweep": list(sweep), "settings": settings}
        about = command | {"trained": list(unfinished)}
        before: dict[str, Any] = (self._own and self._own.read_json(MEMBERS)) or about
        repeated = before | command == before
        if repeated and set(unfinished) <= set(before["trained"]):
            return before
        known = [name for names in before["settings"].values() for name in names]
        if left := [name for name in known if name not in self._setting]:
            logging.warning(
                "%s: the set had also %s, which summary.json and the means leave out now; name "
                "them too to keep them in",
                self.path,
                ", ".join(left),
            )
        return about

    def write_members(self, about: dict[str, Any]) -> None:
        """Writes members.json, as by `chosen`."""
        if self._own and self._own.read_json(MEMBERS) != about:
            self._own.write_json(MEMBERS, about)

    def start(self, active: Iterable[str]) -> None:
        """Records the means anew, from the records of the members as they are after a kill. Those
        that are not active have no more to come."""
        self._stopped, self._last = set(self.members) - set(active), {}
        if self._own and self._own not in self._means.values() and self._own.records():
            self._own.rewind(0)  # means over members of an earlier command, of which one is left
        for setting, means in self._means.items():
            means.rewind(0)
            for name in self._settings[setting]:
                for record in self.members[name].records():
                    self._take(name, record)
            for _ in self._complete(setting):
                pass

    def add(self, name: str, record: dict[str, Any]) -> Iterator[Line]:
        """Takes the record of a member; yields what can be shown with it."""
        setting = self._setting[name]
        if setting not in self._means:
            yield Line(name, record)
            return
        self._take(name, record)
        yield from self._complete(setting)

    def stop(self, name: str) -> Iterator[Line]:
        """Takes it that a member has no more records to come; yields what waited for it."""
        self._stopped.add(name)
        if (setting := self._setting[name]) in self._means:
            yield from self._complete(setting)

    def summarize(self, unfinished: Collection[str] = ()) -> None:
        """Writes summary.json: for each setting its members and, of the last evaluation and the
        best one, n, mean, deviation and 95% interval of every number over the members that are at
        their end, which all are but the `unfinished`."""
        if self._own is None or not self._is_main:
            return
        settings = []
        for setting, names in self._settings.items():
            done = [
                self.members[name].read_json("summary.json")
                for name in names
                if name not in unfinished
            ]
            about: dict[str, Any] = {"setting": setting, "members": list(names)}
            for which in ("last", "best") if done else ():
                about[which] = describe_records([summary[which] for summary in done])
            about["unfinished"] = [name for name in names if name in unfinished]
            settings.append(about)
        self._own.write_json("summary.json", {"settings": settings})

    def read_summary(self) -> Any:
        """summary.json of the set; of a run by itself its own."""
        return self._folders[0].read_json("summary.json")

    @property
    def path(self) -> AnyPath:
        return self._folders[0].path

    @property
    def local(self) -> Path:
        """As of `Workdir`."""
        return self._folders[0].local

    def _take(self, name: str, record: dict[str, Any]) -> None:
        waiting = self._waiting.setdefault(self._setting[name], {})
        waiting.setdefault(record["step"], {})[name] = record
        self._last[name] = record["step"]

    def _complete(self, setting: str) -> Iterator[Line]:
        """Records the means of the steps to which all members have come that have not ended before;
        "members" says how many, if they are not all. What some do not record has no mean."""
        waiting, members = self._waiting.get(setting, {}), self._settings[setting]
        needed = set(members) - self._stopped
        for step in sorted(step for step, found in waiting.items() if needed <= found.keys()):
            found = waiting.pop(step)  # in the order of arrival, which a kill changes
            if any(self._last.get(name, 0) >= step for name in set(members) - found.keys()):
                continue
            mean = mean_record([found[name] for name in members if name in found])
            if len(found) < len(members):
                mean["members"] = len(found)
            self._means[setting].record(mean)
            prefix = "deviation/"
            spread = {k.removeprefix(prefix): v for k, v in mean.items() if k.startswith(prefix)}
            yield Line(setting, mean, spread)

    def __enter__(self) -> "SetFolder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._opened.__exit__(kind, error, trace)


def read_members(path: AnyPath) -> dict[str, Any] | None:
    """What members.json of a set's folder says: the options seeds and sweep, the names of the
    members by setting, and those trained. None for any other folder."""
    return read_json(path / MEMBERS)


def _check_kind(path: AnyPath, is_set: bool) -> None:
    found = read_members(path)
    if found and not is_set:
        raise WorkdirError(
            f"--workdir={path}: holds a set of runs; give --seeds or --sweep as for it, or the "
            "folder of one of them"
        )
    has_run = storage.is_file(path / "config.json") or checkpoint.steps(path / "checkpoints")
    if is_set and not found and has_run:
        raise WorkdirError(f"--workdir={path}: holds a run by itself; choose another")
