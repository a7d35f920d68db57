r"""Compares numbers that are too large to compute, such as 10^{10^{10}} and 10^{10^{10}} + 1.

Two expressions with different remainders for one prime have different values. If they agree for
several fixed, arbitrary primes of 61 bits, they are equal but for a chance of about 2^-240.

A power's exponent is reduced by Euler's theorem: a^e = a^(e mod t + t) modulo m, for t = phi(m)
and e >= log2(m).
"""

from __future__ import annotations

import random
from fractions import Fraction

from training.grading.reading.arithmetic import (
    IrrationalError,
    Node,
    TooLargeError,
    UndefinedError,
    evaluate,
)

_PRIMES = 4
_EXACT = 4096  # bits up to which an exponent is simply computed
_LONGEST_PRODUCT = 2_000_000  # factors of a factorial that are multiplied one by one


def equal(a: Node, b: Node) -> bool | None:
    """Whether `a` and `b` have the same value; None: it takes more than remainders."""
    from sympy import nextprime

    draw = random.Random(0)
    try:
        for _ in range(_PRIMES):
            prime = int(nextprime(draw.randrange(2**60, 2**61)))
            if _residue(a, prime, prime - 1) != _residue(b, prime, prime - 1):
                return False
    except (TooLargeError, UndefinedError, IrrationalError, ValueError, ZeroDivisionError):
        return None
    return True


def _residue(node: Node, modulus: int, totient: int) -> int:
    """The value of `node` modulo `modulus`, whose Euler totient is `totient`.

    Raises:
        TooLargeError: the remainder cannot be found this way.
    """
    if node.operator == "number":
        return _fraction(node.number, modulus)
    if node.operator == "^":
        return _power(node, modulus, totient)
    if node.operator == "!":
        return _factorial(node, modulus)
    if node.operator not in ("+", "-", "*", "/"):
        return _fraction(evaluate(node, _EXACT), modulus)
    a, b = (_residue(part, modulus, totient) for part in node.parts)
    match node.operator:
        case "+":
            return (a + b) % modulus
        case "-":
            return (a - b) % modulus
        case "*":
            return a * b % modulus
    return a * pow(b, -1, modulus) % modulus


def _fraction(value: Fraction, modulus: int) -> int:
    return value.numerator * pow(value.denominator, -1, modulus) % modulus


def _power(node: Node, modulus: int, totient: int) -> int:
    base_node, exponent_node = node.parts
    base = _residue(base_node, modulus, totient)
    try:
        exponent = evaluate(exponent_node, _EXACT)
    except TooLargeError:
        if not _is_natural(exponent_node):
            raise
        from sympy import totient as phi

        small = _residue(exponent_node, totient, int(phi(totient)))
        return pow(base, small + totient, modulus)
    if exponent.denominator != 1:
        raise IrrationalError
    return pow(base, exponent.numerator, modulus)


def _is_natural(node: Node) -> bool:
    """Whether `node` is certainly a whole number from 0 on: no minus, no division in it."""
    if node.operator == "number":
        return node.number.denominator == 1 and node.number >= 0
    return node.operator in ("+", "*", "^", "!") and all(_is_natural(part) for part in node.parts)


def _factorial(node: Node, modulus: int) -> int:
    try:
        n = evaluate(node.parts[0], _EXACT)
    except TooLargeError:
        raise TooLargeError from None  # 0 for every prime, which says nothing
    if n.denominator != 1 or n < 0:
        raise UndefinedError
    if n > _LONGEST_PRODUCT:
        raise TooLargeError
    value = 1
    for factor in range(2, n.numerator + 1):
        value = value * factor % modulus
    return value
