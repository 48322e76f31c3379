"""How the gradient on a mini-batch is computed; decided in a worker, invisible to algorithms."""
