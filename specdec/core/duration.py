"""How long something takes, in words."""


def in_words(seconds: float) -> str:
    """Write 75 as `75 s`, 600 as `10 min` and 7200 as `2.0 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
