"""How the uploads of a round become one: exact integer sums, or fast float sums."""
