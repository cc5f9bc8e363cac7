"""Apply trained networks to volumes in memory, to volumes of any size in blocks, and to streams of sections."""
