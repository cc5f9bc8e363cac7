"""The query decoder that teacher and student share."""
