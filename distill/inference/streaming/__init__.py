"""`distill stream`: sections of any number through the student, in bounded memory, none lost and none done twice."""
