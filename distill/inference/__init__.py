"""Run trained networks: over volumes in memory, block by block, or over a stream of sections."""
