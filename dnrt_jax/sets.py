"""The experiments of a set of runs: which share a program, and whether they train at once."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from dnrt_jax.config import Config
from dnrt_jax.experiment import Experiment, build, load, numbers_of
from dnrt_jax.runtime.sharding import DATA, platform
from dnrt_jax.training import members
from dnrt_jax.training.dispatch import Dispatch, Places, create_dispatches
from dnrt_jax.training.state import TrainState


def load_all(configs: Sequence[Config]) -> list[Experiment]:
    """Reads the data of valid configs that differ in numbers alone and builds their experiments,
    which share what they can.

    Raises:
      UserError: as `load`.
    """
    bases: list[Experiment] = []
    found = []
    for config in configs:
        uses_arr = config.arr.weight > 0  # its state has centroids
        base = next((b for b in bases if (b.config.arr.weight > 0) == uses_arr), None)
        if base is not None:
            found.append(base.like(config))
            continue
        new = build(config, bases[0].task.like(config), bases[0].mesh) if bases else load(config)
        bases.append(new)
        found.append(new)
    return found


def check_memory(experiments: Sequence[Experiment]) -> None:
    """Says what those that train at once need, before a state is made or anything compiled.

    Raises:
      ConfigError: as `mesh_together`, or if a device has less memory.
    """
    for some in programs(experiments):
        if (mesh := mesh_together(some)) is not None:
            members.check_memory(mesh, some[0].shapes, len(some))


def programs(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """The experiments that are like one another, which can share a program."""
    found: dict[int, list[Experiment]] = {}
    for one in experiments:
        found.setdefault(id(one.init), []).append(one)
    return list(found.values())


def mesh_together(experiments: Sequence[Experiment]) -> Mesh | None:
    """The mesh on which experiments of one program train at once, as `config.parallel.members` and
    `member_parts` say; None if they train one after the other.

    On a CPU there is nothing to gain at once: the step of one keeps its cores busy.

    Raises:
      ConfigError: if the members or the devices cannot be divided as asked.
    """
    first, count = experiments[0], len(experiments)
    parallel = first.config.parallel
    alone = parallel.members == "alone" or (
        parallel.members == "auto" and platform(first.mesh) == "cpu"
    )
    if count == 1 or alone:
        return None
    return members.member_mesh(first.mesh, count, parallel.member_parts)


def dispatch_together(experiments: Sequence[Experiment], mesh: Mesh) -> tuple[Dispatch, TrainState]:
    """A dispatch of all of some experiments that are like the first, and the shapes of their states
    together; `mesh` is of two axes, see `training.members`."""
    first, numbers = experiments[0], numbers_of(experiments)
    shapes = members.member_shapes(mesh, first.shapes, len(experiments))
    tasks = members.MemberBatches([experiment.task for experiment in experiments], first.mesh)
    together = jax.tree.map(lambda *xs: np.stack(xs), *numbers)
    state = jax.tree.map(lambda x: x.sharding, shapes)
    places = Places(state, members.of_members(mesh, DATA), members.of_members(mesh))
    (dispatch,) = create_dispatches(
        [tasks],
        [together],
        partial(first.step_of, mesh),
        first.shapes,
        places,
        first.config,
        partial(members.over_members, mesh=mesh),
    )
    return dispatch, shapes
