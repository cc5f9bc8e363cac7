"""What runs at each step, how many steps a training has, and how long it takes."""
