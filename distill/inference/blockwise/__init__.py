"""`distill segment`: trained networks over volumes of any size, block by block, on one process or many."""
