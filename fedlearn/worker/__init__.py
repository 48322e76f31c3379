"""What works on clients: their local steps, alone or stacked, the checks of uploads, and the clients' states."""
