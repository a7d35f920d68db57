"""The arithmetic a miniature base is asked to learn, and where it ends.

Ranges are small so that single operations become exact: what is left to get wrong is strategy.
"""

LIMIT = 99  # every number stays within +- this
FACTOR, OTHER = 9, 20  # of two factors one is at most FACTOR, the other at most OTHER


def apply(left: int, operator: str, right: int) -> int | None:
    """left operator right, or None where the result is no learnable integer."""
    match operator:
        case "+":
            result = left + right
        case "-":
            result = left - right
        case "*":
            small, large = sorted((abs(left), abs(right)))
            if small > FACTOR or large > OTHER:
                return None
            result = left * right
        case "/":
            if right == 0 or left % right:
                return None
            result = left // right
        case _:
            raise ValueError(f"operator: '{operator}' is none of + - * /")
    return result if abs(result) <= LIMIT else None
