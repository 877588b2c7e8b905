"""Running models that the registry loaded."""
