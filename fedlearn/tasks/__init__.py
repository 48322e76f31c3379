"""Problems to solve: a model, the clients' data, a loss and an evaluation."""
