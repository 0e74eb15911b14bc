"""Machine code: an assembler of some thirty instructions, and memory to run it in."""
