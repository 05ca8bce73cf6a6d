"""Runs of one program at once, the members of a set: alone, or with their states side by side.

Together, states have a leading axis of members, and the devices are a mesh of two axes: the members
are divided over `member`, the batches of each over `data`. Nothing is exchanged between members.
Outside of the training program the state of a member is that of a run of its own on all devices.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dnrt_jax.runtime.errors import ConfigError
from dnrt_jax.runtime.sharding import DATA, device_memory
from dnrt_jax.training.dispatch import Dispatch, Later
from dnrt_jax.training.state import TrainState
from dnrt_jax.training.step import Batch

MEMBER = "member"  # mesh axis of the members


class Trainer(Protocol):
    """Holds the states of some members and trains them."""

    def run(self, starts: Sequence[int], count: int) -> list[Later]:
        """Dispatches `count` steps of each member, from its start on: a function for each that
        waits for its values and gives them."""
        ...

    def state(self, member: int) -> TrainState:
        """The state of a member, sharded as that of a run of its own."""
        ...


class Alone:
    """A member that trains by itself."""

    def __init__(self, dispatch: Dispatch, state: TrainState):
        self._dispatch, self._state = dispatch, state

    def run(self, starts: Sequence[int], count: int) -> list[Later]:
        (start,) = starts
        self._state, values = self._dispatch.run(self._state, start, count)
        return [values]

    def state(self, member: int) -> TrainState:
        return self._state


class Together:
    """Members that train at once.

    Args:
      dispatch: of all of them, by `over_members` and `MemberBatches`.
      states: one each, which are freed one by one; shapes: of each, as of a run of its own;
        all_shapes: `member_shapes`.
    """

    def __init__(
        self,
        dispatch: Any,
        states: Iterable[TrainState],
        shapes: TrainState,
        all_shapes: TrainState,
    ):
        places = partial(jax.tree.map, lambda x: x.sharding)
        pick = lambda states, i: jax.tree.map(lambda x: x[i], states)
        self._dispatch, self._pick = dispatch, jax.jit(pick, out_shardings=places(shapes))
        room = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), all_shapes)
        put = lambda states, x, i: jax.tree.map(lambda xs, x: xs.at[i].set(x), states, x)
        put = jax.jit(put, out_shardings=places(all_shapes), donate_argnums=0)
        self._states = jax.jit(room, out_shardings=places(all_shapes))()
        for i, state in enumerate(states):
            self._states = put(self._states, state, i)

    def run(self, starts: Sequence[int], count: int) -> list[Later]:
        self._states, values = self._dispatch.run(self._states, np.asarray(starts), count)
        values = cache(values)
        of = lambda i: {name: x[:, i] for name, x in values().items()}
        return [partial(of, i) for i in range(len(starts))]

    def state(self, member: int) -> TrainState:
        return self._pick(self._states, member)


def member_mesh(mesh: Mesh, members: int, parts: int = 0) -> Mesh:
    """The devices of `mesh` as (member, data), in `parts` along `member`; 0: in as many as divide
    both members and devices.

    Raises:
      ConfigError: if the members or the devices cannot be divided into `parts`.
    """
    most = math.gcd(members, mesh.size)
    parts = parts or most
    if most % parts:
        raise ConfigError(
            f"config.parallel.member_parts={parts}: does not divide {members} members and "
            f"{mesh.size} devices; try {most}"
        )
    axes = (AxisType.Auto, AxisType.Auto)
    return Mesh(mesh.devices.reshape(parts, -1), (MEMBER, DATA), axis_types=axes)


def of_members(mesh: Mesh, *spec: Any) -> NamedSharding:
    """The sharding of arrays with a leading axis of members."""
    return NamedSharding(mesh, P(MEMBER, *spec))


def member_shapes(mesh: Mesh, shapes: TrainState, members: int) -> TrainState:
    """The states of all members as jax.ShapeDtypeStruct, by that of one with its shardings."""
    stacked = lambda x: jax.ShapeDtypeStruct(
        (members, *x.shape), x.dtype, sharding=of_members(mesh, *x.sharding.spec)
    )
    return jax.tree.map(stacked, shapes)


def bytes_a_device(shapes: TrainState) -> int:
    """Memory for states and their gradients on one device, of `member_shapes`."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(size, jax.tree.leaves((shapes, shapes.params))))


def check_memory(mesh: Mesh, shapes: TrainState, count: int) -> None:
    """Says what `count` members need on `mesh`; `shapes` is of one, as of a run of its own.

    Raises:
      ConfigError: if a device, where it tells its memory, has less.
    """
    needed, limit = bytes_a_device(member_shapes(mesh, shapes, count)), device_memory()
    had = f" of {limit / 1e6:.0f}" if limit else ""
    logging.info(
        "%d members together on %d x %d devices (member, data): states and gradients take %.1f%s "
        "MB a device",
        count,
        *mesh.devices.shape,
        needed / 1e6,
        had,
    )
    if limit and needed > limit:
        need = lambda n: bytes_a_device(member_shapes(member_mesh(mesh, n), shapes, n))
        fit = next((n for n in range(count - 1, 0, -1) if need(n) <= limit), None)
        fewer = f"name {fit} at once, or " if fit else ""
        raise ConfigError(
            f"{count} members need {needed / 1e9:.1f} GB a device, which has {limit / 1e9:.1f}: "
            f"{fewer}set config.parallel.fsdp"
        )


def over_members(
    function: Callable[..., Any], in_axes: Any, out_axes: Any, *, mesh: Mesh
) -> Callable[..., Any]:
    """What `function` is for one member, for all, which are on these axes of its arguments and
    results, as for jax.vmap. Inside, one member is on the axis `data` of `mesh`."""

    def part(*args):
        if len(args[0]["key"]) > 1:
            return jax.vmap(function, in_axes, out_axes)(*args)
        # A single member here is as a run of its own, without an axis of one.
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        one = [
            x if axis is None else _each(jnp.squeeze, x, axis)
            for x, axis in zip(args, axes, strict=True)
        ]
        result = function(*one)
        axes = out_axes if isinstance(out_axes, tuple) else (out_axes,) * len(result)
        return tuple(_each(jnp.expand_dims, x, axis) for x, axis in zip(result, axes, strict=True))

    place = lambda axis: P() if axis is None else P(*[None] * axis, MEMBER)
    specs = [jax.tree.map(place, axes, is_leaf=lambda x: x is None) for axes in (in_axes, out_axes)]
    return jax.shard_map(
        part,
        mesh=mesh,
        in_specs=specs[0],
        out_specs=specs[1],
        axis_names={MEMBER},
        check_vma=False,
    )


def _each(function: Callable[..., Array], tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda x: function(x, axis), tree)


class MemberBatches:
    """The batches of all members, with a leading axis of members, for `create_dispatches`.

    A start is an i64[M], one for each member, or one for all.

    Args:
      tasks: of the members.
      mesh: of a run of its own, over which a task spreads its batches.
    """

    def __init__(self, tasks: Sequence[Any], mesh: Mesh):
        self._tasks, self._mesh = tasks, mesh

    def train_batches(self, mesh: Mesh) -> Callable[[np.ndarray], Iterator[Batch]]:
        draws = [task.train_batches(self._mesh) for task in self._tasks]
        stack = lambda *batches: jax.tree.map(lambda *xs: jnp.stack(xs), *batches)

        def draw(starts: np.ndarray) -> Iterator[Batch]:
            streams = [
                draw(int(start))
                for draw, start in zip(draws, np.broadcast_to(starts, len(draws)), strict=True)
            ]
            jitted = None
            for batches in zip(*streams, strict=True):
                if jitted is None:
                    at = jax.tree.map(lambda x: of_members(mesh, *x.sharding.spec), batches[0])
                    jitted = jax.jit(stack, out_shardings=at)
                yield jitted(*batches)

        return draw

    def on_device(self, mesh: Mesh) -> Any:
        first, *others = self._tasks
        if (found := first.on_device(mesh)) is None:
            return None
        if not all(task.shares_samples(first) for task in others):
            return None
        each = [found.rows, *(task.on_device(mesh).rows for task in others)]

        def rows(starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            found = [
                rows(int(start), count)
                for rows, start in zip(each, np.broadcast_to(starts, len(each)), strict=True)
            ]
            indices, mask = zip(*found, strict=True)
            return np.stack(indices, 1), np.stack(mask, 1)

        return found._replace(rows=rows)
