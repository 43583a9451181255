r"""Jackknife groups and random ranks of image numbers: rules that no regular order of images can line up with.

.. math:: g(i) = \bigl(i + h(\lfloor i / G \rfloor)\bigr) \bmod G

with h a hash: every G images in a row fall into G different groups, and which one comes first is as good as random.
The plain remainder of i by G = 10 would be the *class* wherever ten classes take turns, as they do in most generated
sets; leaving a group out would then leave a class out, and the interval would measure that. In the same way the first
rows of a folder are its first classes, while the first in order of the hash are a random sample.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["group_of", "random_rank"]

_LOW = 0xFFFFFFFF


def group_of(index: Tensor, groups: int) -> Tensor:
    """Give the group, from 0 to groups - 1, of images with these numbers, both int64 of shape (n,)."""
    return (index % groups + random_rank(index // groups)) % groups


def random_rank(index: Tensor) -> Tensor:
    """Give each image number below 2^32 its own number below 2^32, as good as random; both int64 of shape (n,).

    Source:
        The finaliser of MurmurHash3 (Appleby 2011, public domain), a bijection. Departs from it in: nothing.
    """
    # In integers modulo 2^32, so that every machine agrees; a product that overflows still has the right low bits.
    mixed = index & _LOW
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _LOW
    return mixed ^ (mixed >> 16)
