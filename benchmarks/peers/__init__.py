"""Other frameworks as contestants; each runs in an environment that ``setup.sh`` makes."""
