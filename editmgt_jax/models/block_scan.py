"""A loop over blocks whose backward pass keeps only what a policy of rematerialisation says.

Differs `jax.lax.scan` of a rematerialised block computes the same; but there JAX copies what is kept into its stacks behind each
        block. Here the loop carries the stacks: a compiler writes an array where it is kept as part of what makes it, or the
        block writes it there itself (`rooms.py`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from editmgt_jax.models import rooms
from editmgt_jax.models.rooms import Keeper, Room, put_place, read_place
from editmgt_jax.shapes import Array

Tree = Any  # of arrays
# (its variables, carry, shared, constants, keeper) -> carry
Block = Callable[[Tree, Tree, Tree, Tree, Keeper], Tree]


@struct.dataclass
class _Kept:
    """What the backward pass over L blocks needs of the forward pass.

    A block's pullback, as `jax.vjp` makes it, is a tree. Its leaves are what the block was given, or made and kept.

    Attributes:
      carries: the carry before each block [L ...], that before the first at the end.
      made: [L ...] of each leaf that a block made.
      given: static; for each leaf its index in what the block was given, or None for the next of `made`.
      pullback: the static structure of the tree.
    """

    carries: Tree
    made: list[Array]
    given: tuple[int | None, ...] = struct.field(pytree_node=False)
    pullback: Any = struct.field(pytree_node=False)


def scan_blocks(
    block: Block,
    variables: Tree,
    carry: Tree,
    shared: Tree,
    constants: Tree,
    policy: Callable[..., bool],
    unroll: int = 1,
) -> Tree:
    """The carry behind L blocks, one after another.

    Args:
      block: one block; the carry that it returns has the shapes and types of the one that it gets.
      variables: arrays [L ...], a part for each block; shared: floating arrays that all blocks see.
      constants: as `shared`, of any type and without a gradient.
      policy: of `jax.checkpoint_policies`: which arrays of a block are kept; the backward pass computes the others again.
      unroll: at most so many blocks in one turn of the loop; their number divides L.
    """
    length = len(jax.tree.leaves(variables)[0])
    if not length:
        return carry
    turns = max(n for n in range(1, min(unroll, length) + 1) if not length % n)
    loop = functools.partial(_loop, length, turns)

    @jax.custom_vjp
    def run(variables, carry, shared, constants):
        return loop(lambda i, carry: block(_at(variables, i), carry, shared, constants, Keeper()), carry)

    def forward(variables, carry, shared, constants):
        visit = functools.partial(_visit, block, policy, variables, shared, constants)
        carry, kept = _forward(length, loop, visit, carry)
        return carry, (kept, variables, shared, constants)

    def backward(saved, gradient):
        return *_backward(length, loop, *saved, gradient), None

    run.defvjp(forward, backward)
    return run(variables, carry, shared, constants)


def _loop(length, unroll, step, state):
    """step(i, state) -> state, for each i. Its counter lets compilers see that a stack is written as a whole: they then do not
    fill it first. That of `jax.lax.scan` cannot be had."""

    def turn(i, state):
        for offset in range(unroll):
            state = step(i + offset, state)
        return i + unroll, state

    if unroll == length:
        return turn(0, state)[1]
    return jax.lax.while_loop(lambda x: x[0] < length, lambda x: turn(*x), (jnp.int32(0), state))[1]


class _Visit(NamedTuple):
    """One block with its pullback.

    Attributes:
      made: leaves of the pullback that the block made; given, pullback: as of `_Kept`.
      places: for each request for a room the indices of its arrays in `made`; empty: how its stacks are made.
      stacks: those of the rooms that the block got.
    """

    carry: Tree
    made: list[Array]
    given: tuple[int | None, ...]
    pullback: Any
    places: list[list[int]]
    empty: list[Callable | None]
    stacks: list[Array]


def _visit(block, policy, variables, shared, constants, i, carry, offered=()) -> _Visit:
    """Block i. It is offered rooms, in the order of its requests."""
    keeper = Keeper(offered)

    def run(*given):
        carry = block(*given, constants, keeper)
        return carry, (keeper.stacks, keeper.shown)

    given = _at(variables, i), carry, shared
    checkpointed = jax.checkpoint(run, policy=policy, prevent_cse=False)
    carry, pullback, (stacks, shown) = jax.vjp(checkpointed, *given, has_aux=True)
    leaves, tree = jax.tree.flatten(pullback)
    # A pullback holds the very arrays that the block was given. One that it did not recognise would be kept once more.
    known = {id(x): index for index, x in enumerate(jax.tree.leaves((given, constants)))}
    made = [leaf for leaf in leaves if id(leaf) not in known]
    places = [request.find(made, shown) for request in keeper.requests]
    empty = [request.empty for request in keeper.requests]
    return _Visit(carry, made, tuple(known.get(id(leaf)) for leaf in leaves), tree, places, empty, stacks)


def _forward(length, loop, visit, carry):
    """-> carry, _Kept"""
    requests, found = [], {}

    def shapes(i, carry):
        one = visit(i, carry)
        requests.extend(zip(one.places, one.empty, strict=True))
        return one.made

    made = jax.eval_shape(shapes, jnp.int32(0), carry)
    wanted, stacks = [indices for indices, _ in requests], _zeros(length, made)
    places = wanted if rooms.in_place() else [[] for _ in wanted]
    for indices, of_room in requests if rooms.in_place() else ():
        for index in indices if of_room is not None else ():
            stacks[index] = of_room(length, made[index])

    def step(i, state):
        carry, carries, stacks = state
        offered = (
            Room(tuple(stacks[index] for index in indices), jnp.int32(i)) if indices else None for indices in places
        )
        one = visit(i, carry, offered)
        if one.places != wanted:
            raise RuntimeError(f"a block must keep the same with rooms and without; got {one.places} for {wanted}")
        found.update(given=one.given, pullback=one.pullback)
        stacks = _put(stacks, one.made, i)
        for index, stack in zip(sum(places, []), one.stacks, strict=True):
            stacks[index] = rooms.written(stacks[index], stack)
        return one.carry, _put(carries, one.carry, i), stacks

    last, carries, stacks = loop(step, (carry, _zeros(length, carry), stacks))
    # Nobody needs the last carry here, and its memory takes that before the first block.
    return last, _Kept(_put(carries, carry, length - 1), stacks, **found)


def _backward(length, loop, kept, variables, shared, constants, gradient):
    """-> gradients of variables, carry and shared"""

    def step(turn, state):
        # Gradients of weights lie in the order of turns: a stack that is written from its end would be filled first.
        i = length - 1 - turn
        gradient, of_shared, of_variables = state
        before = _at(kept.carries, jnp.where(i > 0, i - 1, length - 1))
        given, made = jax.tree.leaves((_at(variables, i), before, shared, constants)), iter(_at(kept.made, i))
        leaves = [next(made) if index is None else given[index] for index in kept.given]
        of_part, gradient, more = jax.tree.unflatten(kept.pullback, leaves)(gradient)
        return gradient, jax.tree.map(jnp.add, of_shared, more), _put(of_variables, of_part, turn)

    start = gradient, jax.tree.map(jnp.zeros_like, shared), jax.tree.map(jnp.zeros_like, variables)
    gradient, of_shared, of_variables = loop(step, start)
    return jax.tree.map(lambda x: jnp.flip(x, axis=0), of_variables), gradient, of_shared


def _zeros(length, tree):
    """Stacks for so many of each array."""
    return jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), tree)


def _at(stacks, i):
    return jax.tree.map(functools.partial(read_place, index=i), stacks)


def _put(stacks, arrays, i):
    return jax.tree.map(functools.partial(put_place, index=i), stacks, arrays)
