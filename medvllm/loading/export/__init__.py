"""Model -> graph: the export of a model for engines, and its comparison with torch, in a process of their own."""
