"""What happens to an upload between a client and the server: one stage, one file."""
