"""How much one plot holds, so that it can be read, and how many there are."""

LINES_PER_PLOT = 10
BARS_PER_PLOT = 25
MAX_PARTS = 4  # plots of one kind; what is beyond is named in the last caption
MAX_NAMED = 12
