"""The text of `optimizer.layer_rates`: a learning-rate multiplier for each path."""


def parse_rates(text: str) -> dict[str, float]:
    """Reads rate multipliers.

    Args:
      text: comma-separated `path=rate`, such as "backbone=0.1,backbone/stem=0"; 0
        freezes. The longest path that fits a parameter decides.

    Returns:
      Multipliers by path.

    Raises:
      ValueError: if a part is no `path=rate`, comes twice or is negative.
    """
    rates: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        path, equals, number = part.partition("=")
        path = path.strip().strip("/")
        try:
            rate = float(number)
        except ValueError:
            rate = -1.0
        if not equals or not path or not 0 <= rate < float("inf"):
            raise ValueError(
                f"optimizer.layer_rates has {part!r}; write path=rate with a rate of 0 "
                "or more, for example backbone=0.1,backbone/stem=0."
            )
        if path in rates:
            raise ValueError(f"optimizer.layer_rates has {path!r} twice; keep one.")
        rates[path] = rate
    return rates
