"""Rooms: where a block keeps an array for its backward pass, while it makes it.

A loop over blocks carries a stack for each array that its backward pass needs (`block_scan.py`). On TPUs a product writes its result
into a stack at no cost, but writes it once more if somebody reads it elsewhere; and what a kernel makes is copied. So there a block
gets the stacks, writes its arrays into them and reads them from there.

Axes    L blocks
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from editmgt_jax.models.layers import device_kind


class Room(NamedTuple):
    """Places in stacks [L ...], one for each array, at an index, int32 []."""

    stacks: tuple[jax.Array, ...]
    index: jax.Array

    def read(self) -> tuple[jax.Array, ...]:
        """The arrays in these places."""
        return tuple(read_place(stack, self.index) for stack in self.stacks)


class Request(NamedTuple):
    """What a block wants a room for.

    Attributes:
      find: (what the backward pass of a block keeps, what the block showed of it) -> indices of these arrays in the former; none
        without a room.
      empty: (L, shape of an array) -> a stack that a kernel may write; None for stacks that products write.
    """

    find: Callable[[list, list], list[int]]
    empty: Callable[[int, jax.ShapeDtypeStruct], jax.Array] | None = None


class Keeper:
    """Gives a block its rooms, in the order in which it asks, and takes them back. It lives as long as one trace of the block.

    Attributes:
      requests: what was asked for; stacks: of the rooms that came back; shown: products that were kept.
    """

    def __init__(self, rooms: Iterable[Room | None] = ()):
        self._rooms = iter(rooms)
        self.requests: list[Request] = []
        self.stacks: list[jax.Array] = []
        self.shown: list[jax.Array] = []

    def room(self) -> Room | None:
        """The next one. On TPUs a block that got it writes all of its stacks."""
        return next(self._rooms, None)

    def keep(self, room: Room | None, request: Request) -> None:
        """Takes a room back, which may be None."""
        self.requests.append(request)
        self.stacks += room.stacks if room is not None else ()

    def keep_product(self, x: jax.Array, name: str) -> jax.Array:
        """x, on TPUs written into its stack and read from there, under a name that rematerialisation may keep."""
        room, number = self.room(), len(self.shown)
        if room is not None:
            x, stack = _through(x, *room.stacks, room.index)
            room = room._replace(stacks=(stack,))
        x = checkpoint_name(x, name)
        self.shown.append(x)
        self.keep(room, Request(lambda kept, shown: [i for i, one in enumerate(kept) if one is shown[number]]))
        return x


def in_place() -> bool:
    """Whether compilers let a kernel write into the memory of an argument, where the kind of the chip is known (`layers.device_kind`).

    For TPU 7x, that of libtpu 0.0.42.1 copies the whole argument, or ends with an internal error.
    """
    return device_kind() != "TPU7x"


@jax.custom_vjp
def _through(x, stack, index):
    """-> x, the stack"""

    def write(x, stack, index):
        stack = put_and_fix(stack, x, index)
        return read_place(stack, index), stack

    return _where_used(write, lambda x, stack, _: (x, stack), x, stack, index)


_through.defvjp(lambda *given: (_through(*given), None), lambda _, gradients: (gradients[0], None, None))


def written(copied: jax.Array, by_block: jax.Array) -> jax.Array:
    """The stack that counts: on TPUs the one that the block wrote, else that into which its array was copied."""
    return _where_used(lambda _, x: x, lambda x, _: x, copied, by_block)


def _where_used(here, elsewhere, *arrays):
    """`here` of the arrays in programs for TPUs, where blocks write their rooms, `elsewhere` in others."""
    return jax.lax.platform_dependent(*arrays, tpu=here, default=elsewhere)


def put_and_fix(stack: jax.Array, x: ArrayLike, index: ArrayLike) -> jax.Array:
    """The stack with x in its place. What is then read there comes from the stack: a compiler does not see that it is x."""
    return jax.lax.optimization_barrier(put_place(stack, x, index))


def put_place(stack: jax.Array, x: ArrayLike, index: ArrayLike) -> jax.Array:
    """The stack [L ...] with x in the place of this index, not negative."""
    return jax.lax.dynamic_update_index_in_dim(stack, x, index, 0, allow_negative_indices=False)


def read_place(stack: jax.Array, index: ArrayLike) -> jax.Array:
    """The array in the place of this index, not negative, of a stack [L ...]."""
    return jax.lax.dynamic_index_in_dim(stack, index, 0, keepdims=False, allow_negative_indices=False)
