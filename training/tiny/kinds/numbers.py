"""The arithmetic a miniature base is asked to learn, and where it ends.

The range is small so that single operations become exact: what is left to get wrong is strategy.
A problem in which *any* order of operations would leave the range is not used at all, so that a
model need not know where the range ends.
"""

LIMIT = 99  # every number stays within +- this


class OutOfRange(ArithmeticError):
    """An operation's result is beyond LIMIT or no integer."""


def apply(left: int, operator: str, right: int) -> int:
    """left operator right.

    Raises:
        OutOfRange: the result is no integer within +-LIMIT.
        ValueError: an unknown operator.
    """
    match operator:
        case "+":
            result = left + right
        case "-":
            result = left - right
        case "*":
            result = left * right
        case "/":
            result, remainder = divmod(left, right) if right else (0, 1)
            if remainder:
                raise OutOfRange(f"{left}/{right} is no integer")
        case _:
            raise ValueError(f"operator: '{operator}' is none of + - * /")
    if abs(result) > LIMIT:
        raise OutOfRange(f"{left}{operator}{right} = {result} is beyond {LIMIT}")
    return result
