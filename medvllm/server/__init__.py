"""The HTTP server: the models of a registry behind one port, in the protocols that existing clients speak."""
