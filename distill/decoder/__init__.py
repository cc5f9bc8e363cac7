"""Query decoder shared by teacher and student."""
