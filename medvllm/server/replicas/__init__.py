"""Several processes that answer for one server, each with a registry of its own. Ray Serve starts them."""
