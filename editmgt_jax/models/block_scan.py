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
      given: static; for each leaf its place among what the block was given, or None for the next of `made`.
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
    rooms: Callable[[int, list], dict[int, Array]] = lambda length, made: {},
) -> Tree:
    """The carry behind L blocks, one after another.

    Args:
      block: one block; the carry that it returns has the shapes and types of the one that it gets.
      variables: arrays [L ...], a part for each block; shared: floating arrays that all blocks see.
      constants: as `shared`, of any type and without a gradient.
      policy: of `jax.checkpoint_policies`: which arrays of a block are kept; the backward pass computes the others again.
      unroll: at most so many blocks in one turn of the loop; their number divides L.
      rooms: (L, shapes of what a block keeps) -> {place among them: an empty stack [L ...]} of the results of its kernels, which it gets,
        and writes on TPUs. They would else be copied.
    """
    block = jax.checkpoint(block, policy=policy, prevent_cse=False)
    length = len(jax.tree.leaves(variables)[0])
    loop = functools.partial(_loop, length, max(n for n in range(1, min(unroll, length) + 1) if not length % n))

    @jax.custom_vjp
    def run(variables, carry, shared, constants):
        return loop(lambda i, carry: block(_at(variables, i), carry, shared, constants, None)[0], carry)

    def forward(variables, carry, shared, constants):
        carry, kept = _forward(loop, block, variables, carry, shared, constants, rooms)
        return carry, (kept, variables, shared, constants)

    def backward(saved, gradient):
        return *_backward(loop, *saved, gradient), None

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


def _forward(loop, block, variables, carry, shared, constants, rooms):
    """-> carry, _Kept"""
    structure = {}

    def visit(i, carry, room=None):
        """One block. -> carry, what it made and its pullback needs, the stacks in its room"""
        given = _at(variables, i), carry, shared
        new, pullback, written = jax.vjp(lambda *given: block(*given, constants, room), *given, has_aux=True)
        leaves, tree = jax.tree.flatten(pullback)
        known = {id(x): place for place, x in enumerate(jax.tree.leaves((given, constants)))}
        structure.update(given=tuple(known.get(id(leaf)) for leaf in leaves), pullback=tree)
        return new, [leaf for leaf in leaves if id(leaf) not in known], written

    def step(i, state):
        carry, carries, stacks = state
        room = (tuple(stacks[place] for place in empty), i) if empty else None
        carry, made, written = visit(i, carry, room)
        stacks = _put(stacks, made, i)
        for place, stack in zip(empty, written or (), strict=True):
            stacks[place] = jax.lax.platform_dependent(stacks[place], stack, tpu=lambda _, x: x, default=lambda x, _: x)
        return carry, _put(carries, carry, i), stacks

    length = len(jax.tree.leaves(variables)[0])
    _, made, _ = jax.eval_shape(visit, jnp.int32(0), carry)
    empty = rooms(length, made)
    stacks = [empty.get(place, stack) for place, stack in enumerate(_room(length, made))]
    last, carries, stacks = loop(step, (carry, _room(length, carry), stacks))
    return last, _Kept(_put(carries, carry, length - 1), stacks, **structure)


def _backward(loop, kept, variables, shared, constants, gradient):
    """-> gradients of variables, carry and shared"""
    last = len(jax.tree.leaves(variables)[0]) - 1

    def step(i, state):
        i = last - i
        gradient, of_shared, of_variables = state
        before = _at(kept.carries, jnp.where(i > 0, i - 1, last))
        given, made = jax.tree.leaves((_at(variables, i), before, shared, constants)), iter(_at(kept.made, i))
        leaves = [next(made) if place is None else given[place] for place in kept.given]
        of_part, gradient, more = jax.tree.unflatten(kept.pullback, leaves)(gradient)
        return gradient, jax.tree.map(jnp.add, of_shared, more), _put(of_variables, of_part, i)

    start = gradient, jax.tree.map(jnp.zeros_like, shared), jax.tree.map(jnp.zeros_like, variables)
    gradient, of_shared, of_variables = loop(step, start)
    return of_variables, gradient, of_shared


def _room(length, tree):
    """Stacks for so many of each array."""
    return jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), tree)


def _at(stacks, i):
    index = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False, allow_negative_indices=False)
    return jax.tree.map(index, stacks)


def _put(stacks, arrays, i):
    def one(stack, x):
        return jax.lax.dynamic_update_index_in_dim(stack, x, i, 0, allow_negative_indices=False)

    return jax.tree.map(one, stacks, arrays)
