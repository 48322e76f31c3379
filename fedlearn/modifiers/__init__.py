"""What combines with any algorithm or task: one modifier, one file; nothing is imported here."""
