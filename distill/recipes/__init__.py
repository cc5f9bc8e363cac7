"""What the command line calls: train, stream, segment, evaluate, figures. The only place where all parts meet."""
