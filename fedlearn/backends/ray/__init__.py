"""Ray actors, in a cluster of our own or in one that is joined."""
