"""A loop over blocks whose backward pass keeps only what a policy of rematerialisation says.

Differs `jax.lax.scan` of a rematerialised block computes the same; but there JAX copies what is kept into its stacks behind each
        block. Here the loop carries the stacks: a compiler writes an array where it is kept as part of what makes it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from editmgt_jax.shapes import Array

Tree = Any  # of arrays
Stacks = tuple[Array, ...]
# (its variables, carry, shared, constants, (stacks, number of the block) or None) -> (carry, the stacks or None)
Block = Callable[[Tree, Tree, Tree, Tree, tuple[Stacks, Array] | None], tuple[Tree, Stacks | None]]


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
    find_rooms: Callable[[int, list], dict[int, Array]] = lambda length, made: {},
) -> Tree:
    """The carry behind L blocks, one after another.

    Args:
      block: one block; the carry that it returns has the shapes and types of the one that it gets.
      variables: arrays [L ...], a part for each block; shared: floating arrays that all blocks see.
      constants: as `shared`, of any type and without a gradient.
      policy: of `jax.checkpoint_policies`: which arrays of a block are kept; the backward pass computes the others again.
      unroll: at most so many blocks in one turn of the loop; their number divides L.
      find_rooms: (L, shapes of what a block keeps) -> {index in them: an empty stack [L ...]}. The block gets these stacks. On TPUs it must
        write into them what it keeps: a compiler copies what a kernel makes, and does not let it write elsewhere.
    """
    block = jax.checkpoint(block, policy=policy, prevent_cse=False)
    length = len(jax.tree.leaves(variables)[0])
    if not length:
        return carry
    turns = max(n for n in range(1, min(unroll, length) + 1) if not length % n)
    loop = functools.partial(_loop, length, turns)

    @jax.custom_vjp
    def run(variables, carry, shared, constants):
        return loop(lambda i, carry: block(_at(variables, i), carry, shared, constants, None)[0], carry)

    def forward(variables, carry, shared, constants):
        carry, kept = _forward(length, loop, block, variables, carry, shared, constants, find_rooms)
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


def _forward(length, loop, block, variables, carry, shared, constants, find_rooms):
    """-> carry, _Kept"""
    structure = {}

    def visit(i, carry, room=None):
        """One block. -> carry, what it made and its pullback needs, the stacks in its room"""
        given = _at(variables, i), carry, shared
        new, pullback, written = jax.vjp(lambda *given: block(*given, constants, room), *given, has_aux=True)
        leaves, tree = jax.tree.flatten(pullback)
        # A pullback holds the very arrays that the block was given. One that it did not recognise would be kept once more.
        known = {id(x): index for index, x in enumerate(jax.tree.leaves((given, constants)))}
        structure.update(given=tuple(known.get(id(leaf)) for leaf in leaves), pullback=tree)
        return new, [leaf for leaf in leaves if id(leaf) not in known], written

    def step(i, state):
        carry, carries, stacks = state
        room = (tuple(stacks[index] for index in rooms), i) if rooms else None
        carry, made, written = visit(i, carry, room)
        stacks = _put(stacks, made, i)
        for index, stack in zip(rooms, written or (), strict=True):
            stacks[index] = _written(stacks[index], stack)
        return carry, _put(carries, carry, i), stacks

    _, made, _ = jax.eval_shape(visit, jnp.int32(0), carry)
    rooms = find_rooms(length, made)
    stacks = [rooms.get(index, stack) for index, stack in enumerate(_zeros(length, made))]
    last, carries, stacks = loop(step, (carry, _zeros(length, carry), stacks))
    # Nobody needs the last carry here, and its memory takes that before the first block.
    return last, _Kept(_put(carries, carry, length - 1), stacks, **structure)


def _written(copied, by_block):
    """The stack into which an array was copied, or on TPUs that into which the block wrote it."""
    return jax.lax.platform_dependent(copied, by_block, tpu=lambda _, x: x, default=lambda x, _: x)


def _backward(length, loop, kept, variables, shared, constants, gradient):
    """-> gradients of variables, carry and shared"""

    def step(i, state):
        i = length - 1 - i
        gradient, of_shared, of_variables = state
        before = _at(kept.carries, jnp.where(i > 0, i - 1, length - 1))
        given, made = jax.tree.leaves((_at(variables, i), before, shared, constants)), iter(_at(kept.made, i))
        leaves = [next(made) if index is None else given[index] for index in kept.given]
        of_part, gradient, more = jax.tree.unflatten(kept.pullback, leaves)(gradient)
        return gradient, jax.tree.map(jnp.add, of_shared, more), _put(of_variables, of_part, i)

    start = gradient, jax.tree.map(jnp.zeros_like, shared), jax.tree.map(jnp.zeros_like, variables)
    gradient, of_shared, of_variables = loop(step, start)
    return of_variables, gradient, of_shared


def _zeros(length, tree):
    """Stacks for so many of each array."""
    return jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), tree)


def _at(stacks, i):
    index = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False, allow_negative_indices=False)
    return jax.tree.map(index, stacks)


def _put(stacks, arrays, i):
    def one(stack, x):
        return jax.lax.dynamic_update_index_in_dim(stack, x, i, 0, allow_negative_indices=False)

    return jax.tree.map(one, stacks, arrays)
